"""One training step, compiled once: gradients piece by piece on every device, the optimizers, α every T steps.

A batch is cut into pieces of sequences that are alike in length, and each piece is computed at the shortest of a few lengths
that holds it, by one branch of one program. On processors the pieces keep what a layer makes within the caches. Gradients
are sums over examples and dropout masks belong to examples, so the cutting changes nothing but the rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from rmtjax._random import key_of, pinned
from rmtjax.adapters import AlphaParam
from rmtjax.adapters.params import TRAINABLE
from rmtjax.finetune.data import Batch, Layout
from rmtjax.models import DropoutKey

__all__ = ["Parts", "TrainState", "Trainer", "loss_of"]

Weights = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model split up: its graph, and its weights by dotted path, in groups.

    Attributes:
        graph: the graph that `nnx.merge` needs besides the weights.
        paths: path of each variable within the module.
        template: its variable, for type and metadata.
    """

    graph: Any
    paths: Mapping[str, tuple]
    template: Mapping[str, nnx.Variable]

    @classmethod
    def of(cls, model: nnx.Module) -> tuple[Parts, Weights, Weights, Weights]:
        """Return the parts of a model: its trained weights, its α, and the rest."""
        graph, *states = nnx.split(model, TRAINABLE, AlphaParam, ...)
        paths, template, groups = {}, {}, []
        for state in states:
            group = {}
            for path, variable in nnx.to_flat_state(state):
                name = ".".join(map(str, path))
                paths[name], template[name], group[name] = path, variable, variable[...]
            groups.append(group)
        empty = {name: v.replace(jax.ShapeDtypeStruct(v.shape, v.dtype)) for name, v in template.items()}
        return cls(graph, paths, empty), *groups

    def model(self, *groups: Weights) -> Any:
        """Return the model with these weights."""
        flat = {self.paths[name]: self.template[name].replace(x) for group in groups for name, x in group.items()}
        return nnx.merge(self.graph, nnx.from_flat_state(flat))


def loss_of(regression: bool) -> Callable[[Array, Array], Array]:
    """Return the loss of each example: squared error for a regression, cross-entropy for a classification."""
    if regression:
        return lambda logits, labels: jnp.square(logits[:, 0] - labels)
    return optax.softmax_cross_entropy_with_integer_labels


class TrainState(NamedTuple):
    """The state that changes in training.

    Attributes:
        step: steps done.
        loss: sum of the losses since it was last set to zero.
        weights: adapters and head.
        alpha: the vectors α; none without α.
        optimizer: state of the optimiser of `weights`.
        alpha_optimizer: state of `alpha_updater`.
    """

    step: Int[Array, ""]
    loss: Float[Array, ""]
    weights: Weights
    alpha: Weights
    optimizer: optax.OptState
    alpha_optimizer: optax.OptState


class Trainer:
    """Compiled steps of training and evaluation of a model.

    Args:
        model: an adapted sequence classifier.
        optimizer: of adapters and head.
        alpha_optimizer: an `alpha_updater`, or None where the model has no α.
        loss: of (logits, labels), for each example.
        layout: of batches, with as many devices as the mesh.
        mesh: devices, with the axis "data" that batches are spread over.
        seed: of the dropout masks.
        dropout: whether there are any.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        alpha_optimizer: optax.GradientTransformationExtraArgs | None,
        loss: Callable[[Array, Array], Array],
        layout: Layout,
        mesh: Mesh,
        seed: int = 0,
        dropout: bool = True,
    ) -> None:
        self.parts, weights, alpha, frozen = Parts.of(model)
        self.mesh, self.layout = mesh, layout
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.spread = NamedSharding(mesh, PartitionSpec("data"))
        self._optimizer, self._alpha_optimizer, self._loss = optimizer, alpha_optimizer, loss
        self._dropout, self._key = dropout, key_of(seed)
        self.frozen = jax.device_put(frozen, self.whole)
        self.start = jax.device_put(  # copies: the first step donates its arguments, and the model belongs to its owner
            TrainState(
                jnp.zeros((), jnp.int32),
                jnp.zeros(()),
                jax.tree.map(jnp.copy, weights),
                jax.tree.map(jnp.copy, alpha),
                optimizer.init(weights),
                () if alpha_optimizer is None else alpha_optimizer.init(alpha),
            ),
            self.whole,
        )
        self.step = jax.jit(self._step, donate_argnums=0)
        self.logits = jax.jit(self._logits)

    def put(self, batch: Batch) -> Batch:
        """Put a batch on the devices."""
        return jax.device_put(batch, self.spread)

    def model(self, state: TrainState) -> Any:
        """Return the model in its present state."""
        return self.parts.model(state.weights, state.alpha, self.frozen)

    def _at_length(self, function: Callable[[Batch], Any], piece: Batch) -> Any:
        """Return `function` of a piece cut to its length; zeros if the piece is empty."""

        def cut(length):
            return lambda p: function(
                p._replace(ids=p.ids[:, :length], mask=p.mask[:, :length], types=p.types[:, :length])
            )

        branches = [cut(length) for length in self.layout.lengths]
        out = jax.eval_shape(branches[-1], piece)
        empty = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), out)
        return jax.lax.switch(piece.bucket, [lambda _: empty(), *branches], piece)

    def _gradient(self, function: Callable, trained: Weights, others: Any, batch: Batch, key: Array | None):
        """Return mean loss over a batch spread over the mesh, and its gradient with respect to `trained`."""

        def local(trained, others, batch, key):
            def loss(trained, piece):
                dropout_key = None if key is None else DropoutKey.of(key, piece.number)
                logits = function(trained, others)(piece.ids, piece.mask, piece.types, dropout_key=dropout_key)
                return (self._loss(logits, piece.labels) * piece.weight).sum()

            def add(total, piece):
                of_piece = self._at_length(functools.partial(jax.value_and_grad(loss), trained), piece)
                return jax.tree.map(jnp.add, total, of_piece), None

            def of_batch(batch):
                if len(batch.bucket) == 1:
                    return self._at_length(functools.partial(jax.value_and_grad(loss), trained), first(batch))
                nothing = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), trained))
                return jax.lax.scan(add, nothing, batch)[0]

            first = functools.partial(jax.tree.map, lambda x: x[0])
            total = jax.lax.psum((of_batch(batch), batch.weight.sum()), "data")
            (value, gradient), count = total
            return value / count, jax.tree.map(lambda g: g / count, gradient)

        everywhere, spread = PartitionSpec(), PartitionSpec("data")
        mapped = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(everywhere, everywhere, spread, everywhere),
            out_specs=everywhere,
            check_vma=False,
        )
        return mapped(trained, others, batch, key)

    def _step(self, state: TrainState, frozen: Weights, batch: Batch, fresh: Batch | None) -> tuple[TrainState, Array]:
        """Return the state after a step of the adapters on `batch` and, every T steps, of α on `fresh`; and the prior loss."""
        with pinned():
            keys = jax.random.split(jax.random.fold_in(self._key, state.step)) if self._dropout else (None, None)
        loss, gradient = self._gradient(
            lambda weights, others: self.parts.model(weights, *others),
            state.weights, (state.alpha, frozen), batch, keys[0],
        )  # fmt: skip
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        alpha, alpha_optimizer = state.alpha, state.alpha_optimizer
        if self._alpha_optimizer is not None:

            def alpha_gradient():
                return self._gradient(
                    lambda alpha, others: self.parts.model(alpha, *others), alpha, (weights, frozen), fresh, keys[1]
                )[1]

            nothing = jax.tree.map(jnp.zeros_like, alpha)
            updates, alpha_optimizer = self._alpha_optimizer.update(
                nothing, alpha_optimizer, alpha, alpha_gradient=alpha_gradient
            )
            alpha = optax.apply_updates(alpha, updates)
        return TrainState(state.step + 1, state.loss + loss, weights, alpha, optimizer, alpha_optimizer), loss

    def _logits(self, state: TrainState, frozen: Weights, batch: Batch) -> Float[Array, "pieces size outputs"]:
        """Return logits without dropout."""

        def local(weights, alpha, frozen, batch):
            model = self.parts.model(weights, alpha, frozen)

            def of_piece(_, piece):
                return None, self._at_length(lambda p: model(p.ids, p.mask, p.types), piece)

            return jax.lax.scan(of_piece, None, batch)[1]

        everywhere, spread = PartitionSpec(), PartitionSpec("data")
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(everywhere, everywhere, everywhere, spread),
            out_specs=spread,
            check_vma=False,
        )(state.weights, state.alpha, frozen, batch)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of all devices along one axis, "data"."""
    return Mesh(np.asarray(jax.devices() if devices is None else list(devices)), ("data",))
