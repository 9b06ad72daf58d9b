"""A dense layer with an adapter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rmtjax._errors import InputError, shown
from rmtjax.adapters.methods import FullUpdate, Update
from rmtjax.adapters.methods.base import scaled_by
from rmtjax.adapters.params import AdapterConstant, AlphaParam

__all__ = ["AdaptedLinear"]

DenseLayer = nnx.Linear | nnx.LinearGeneral
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_LOST = 0.01
"""Share of an adapter's effect whose loss by rounding is worth a warning."""


def matrix_of(layer: DenseLayer) -> Float[Array, "inputs outputs"]:
    """Return the kernel of a dense layer as a matrix; that of an `nnx.LinearGeneral` is flattened on both sides."""
    kernel = layer.kernel[...]
    return kernel.reshape(math.prod(layer.in_features), -1) if isinstance(layer, nnx.LinearGeneral) else kernel


def _features(layer: DenseLayer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of the input and output axes of a layer's kernel."""
    if isinstance(layer, nnx.LinearGeneral):
        return tuple(layer.in_features), tuple(layer.out_features)
    return (layer.in_features,), (layer.out_features,)


def check_dense(layer: DenseLayer, where: str) -> None:
    """Raise InputError, beginning with `where`, unless a layer's kernel is one matrix of real numbers."""
    if isinstance(layer, nnx.LinearGeneral) and (layer.batch_axis or layer.axis != tuple(range(-len(layer.axis), 0))):
        raise InputError(f"{where} has batch axes, or contracts axes other than the last ones")
    if not isinstance(layer.kernel, nnx.Variable):
        raise InputError(f"{where} holds its kernel as a {type(layer.kernel).__name__}; must be an nnx.Variable")
    kernel, (inputs, outputs) = layer.kernel[...], _features(layer)
    if kernel.shape != (*inputs, *outputs):
        stacked = kernel.ndim > len(inputs) + len(outputs)
        problem = "is a stack of layers: its kernel" if stacked else "is not a plain matrix product: its kernel"
        raise InputError(f"{where} {problem} has shape {kernel.shape}, one layer needs {(*inputs, *outputs)}")
    if kernel.dtype.name not in _FLOATS:
        raise InputError(f"{where} has a kernel of dtype {kernel.dtype.name}; must be one of {', '.join(_FLOATS)}")
    raw = layer.kernel.get_metadata()
    if raw.get("on_get_value"):
        raise InputError(f"{where} has a kernel whose values change when they are read (on_get_value)")


def _is_plain(layer: DenseLayer) -> bool:
    """Return whether a layer multiplies by its kernel in the ordinary way and does nothing else."""
    if type(layer) is nnx.LinearGeneral:
        ordinary = layer.dot_general in (None, jax.lax.dot_general) and layer.dot_general_cls is None
    else:
        ordinary = type(layer) is nnx.Linear and layer.dot_general is jax.lax.dot_general
    return (
        ordinary
        and layer.precision is None
        and layer.preferred_element_type is None
        and layer.promote_dtype is promote_dtype
    )


def _is_half(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 16


def _is_concrete(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)


def _is_placed(x: Any) -> bool:
    """Return whether an array holds numbers and lies on a mesh."""
    return _is_concrete(x) and isinstance(x.sharding, NamedSharding)


def _inner_sharding(sharding: Any, outputs: int) -> Any:
    """Return the sharding of an intermediate (*batch, r), from that of an output (*batch, *outputs)."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, _inner_sharding(sharding.spec, outputs))
    return PartitionSpec(*tuple(sharding)[:-outputs], None)


class AdaptedLinear(nnx.Module):
    """A dense layer with its kernel frozen and updated: diag(α) W + ΔW (α-LoRA, eq. 10) in the place of W.

    A plain `nnx.Linear` or `nnx.LinearGeneral` is computed here, in one product or beside the base's. Any other, such as a
    subclass or one with its own `dot_general`, `precision`, `promote_dtype` or `preferred_element_type`, is called itself,
    with every argument that it is given and the new kernel in the place of its own. Where it multiplies by its kernel through
    `nnx.Linear` or `nnx.LinearGeneral`, ΔW is multiplied beside W, so that half precision does not round it away. α scales
    W and not the bias.

    Args:
        base: the layer itself.
        update: the update that is added; None adds nothing.
        alpha: the factor of each row of W, which several layers may share; None leaves W alone.
    """

    def __init__(self, base: DenseLayer, update: Update | None = None, alpha: AlphaParam | None = None) -> None:
        self.base = base
        self.update = nnx.data(update)
        self.alpha = nnx.data(alpha)
        self.merged_kernel = nnx.data(None)

    @property
    def is_merged(self) -> bool:
        """Whether the layer computes with one kernel (see `merge_weights`)."""
        return self.merged_kernel is not None

    def _scaled(self, kernel: Array) -> Array:
        return scaled_by(kernel, None if self.alpha is None else self.alpha[...])

    def _wide_kernel(self) -> Float[Array, "inputs outputs"]:
        """Return the kernel that the layer stands for, in single precision or more."""
        kernel = matrix_of(self.base)
        kernel = self._scaled(kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)))
        return kernel if self.update is None else self.update.kernel(kernel)

    def kernel(self, dtype: jax.typing.DTypeLike | None = None) -> Float[Array, "inputs outputs"]:
        """Return the kernel that the layer stands for, as a matrix in the base's dtype or in another."""
        return self._wide_kernel().astype(self.base.kernel.dtype if dtype is None else dtype)

    def loss_of(self, dtype: jax.typing.DTypeLike) -> float:
        r"""Return the share of the adapter's effect that a dtype rounds away, :math:`\|K - \mathrm{round}(K)\|/\|K - W\|`.

        It is infinite where K is too large for the dtype, and 0 where the adapter does nothing or where the values are not
        known because a function is traced.
        """
        base, wide = matrix_of(self.base), self._wide_kernel()
        if not (_is_concrete(base) and _is_concrete(wide)):
            return 0.0
        exact, rounded = np.asarray(wide, np.float64), np.asarray(wide.astype(dtype), np.float64)
        if not np.isfinite(rounded).all():
            return math.inf
        effect = np.linalg.norm(exact - np.asarray(base, np.float64))
        return float(np.linalg.norm(rounded - exact) / effect) if effect else 0.0

    def merge_weights(self) -> None:
        """Compute with one kernel from now on. The base stays unchanged, so `unmerge_weights` restores it exactly.

        Warns:
            UserWarning: if the kernel's dtype, or that in which the layer computes, rounds more than 1 % of the update away.
        """
        warn_of_loss({"": self}, "merge_weights", computing=True)
        self._merge()

    def _merge(self) -> None:
        self.merged_kernel = nnx.data(sharded_like(self.base, AdapterConstant(self.kernel()), ("inputs", "outputs")))

    def unmerge_weights(self) -> None:
        """Compute with the base and the update again."""
        self.merged_kernel = nnx.data(None)

    def plain(self, dtype: jax.typing.DTypeLike | None = None) -> DenseLayer:
        """Return a copy of the base with the merged kernel in the base's dtype or in another.

        Warns:
            UserWarning: if that dtype rounds more than 1 % of the update away.
        """
        warn_of_loss({"": self}, "plain", dtype)
        return nnx.clone(self)._plain(dtype)

    def _plain(self, dtype: jax.typing.DTypeLike | None) -> DenseLayer:
        """Return the base itself with its kernel replaced by the merged one; its other variables are the same objects."""
        layer, kernel = self.base, self.kernel(dtype)
        old, value = layer.kernel, kernel.reshape(layer.kernel.shape)
        if _is_placed(old[...]) and _is_concrete(value):
            value = jax.device_put(value, old[...].sharding)
        layer.kernel = old.replace(value)
        if dtype is not None:
            layer.param_dtype = kernel.dtype
        return layer

    def __getattr__(self, name: str) -> Any:
        """Return a plain attribute of the base, such as `out_features`; no methods, since they know nothing of the adapter."""
        base = vars(self).get("base")
        value = None if base is None else vars(base).get(name)
        if value is None or name.startswith("_") or callable(value):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value

    def __call__(
        self, inputs: Float[Array, "*batch inputs"], *args: Any, **options: Any
    ) -> Float[Array, "*batch outputs"]:
        base = self.base
        if options.get("out_sharding", ()) is None:
            options.pop("out_sharding")
        if args or options or not _is_plain(base):
            return self._through_base(inputs, *args, **options)
        matrix = matrix_of(base)
        bias = None if base.bias is None else base.bias[...]
        x, _, bias = base.promote_dtype((inputs, matrix, bias), dtype=base.dtype)
        general = isinstance(base, nnx.LinearGeneral)
        if general:
            x = x.reshape(*x.shape[: x.ndim - len(base.axis)], len(matrix))
        if self.is_merged or self.update is None:
            kernel = self.merged_kernel[...] if self.is_merged else self._scaled(matrix)
            y = x @ kernel.astype(x.dtype)
        else:
            # α scales the weights in at least single precision: in half precision most of its steps from 1 would be rounded away.
            y = self.update(x, matrix, None if self.alpha is None else self.alpha[...])
        if general:
            y = y.reshape(*y.shape[:-1], *base.out_features)
        return y if bias is None else y + bias

    def _through_base(self, inputs: Array, *args: Any, **options: Any) -> Any:
        """Return the base's own output with the new kernel in place of its kernel."""
        base, shape = self.base, self.base.kernel.shape
        merged = self.is_merged
        kernel = nnx.Param((self.merged_kernel[...] if merged else self.kernel()).reshape(shape))
        new, multiplied = kernel[...], []
        exchanged: dict[str, Any] = {"kernel": kernel}
        if not merged:
            exchanged |= self._products(new, multiplied)
        # A copy with the same variables: the layer counts, draws and sows as usual, and two threads may call it at once.
        layer = object.__new__(type(base))
        vars(layer).update(vars(base), **exchanged)
        comparable = kernel[...] is new
        outputs = layer(inputs, *args, **options)
        if layer.kernel is not kernel or (comparable and kernel[...] is not new):
            raise InputError(
                f"model: a layer of type {type(base).__name__} changes its kernel when it is called, so it cannot be adapted"
            )
        after = vars(layer) | {name: vars(base)[name] for name in exchanged if name in vars(base)}
        for name in [name for name in vars(base) if name not in after]:
            del vars(base)[name]
        vars(base).update(after)
        half = any(map(_is_half, (new.dtype, base.dtype, jnp.result_type(inputs))))
        if half and not merged and not multiplied:
            warnings.warn(
                f"a layer of type {type(base).__name__} multiplies by its kernel itself, so half precision rounds the"
                " adapter's update together with the kernel; call the `__call__` of nnx.Linear or use its dot_general",
                stacklevel=3,
            )
        return outputs

    def _products(self, new: Array, multiplied: list[Array]) -> dict[str, Any]:
        """Return attributes that let a layer multiply by W and ΔW separately; its products with anything else stay its own."""
        base, (inputs, outputs) = self.base, _features(self.base)
        promoted: list[Array] = []
        after = tuple(range(len(inputs)))

        def promote(arrays, *args, **options):
            results = base.promote_dtype(arrays, *args, **options)
            promoted.extend(result for array, result in zip(arrays, results, strict=True) if array is new)
            return results

        def wrapped(dot: Callable[..., Array]) -> Callable[..., Array]:
            def product(lhs, rhs, dimension_numbers, *args, **options):
                (axes, contracted), batched = dimension_numbers
                is_kernel = any(rhs is kernel for kernel in promoted) and rhs.shape == new.shape
                if not is_kernel or tuple(contracted) != after or any(map(len, batched)):
                    return dot(lhs, rhs, dimension_numbers, *args, **options)
                multiplied.append(rhs)
                if rhs.dtype.name not in _FLOATS:  # a dtype of its own, such as an eight-bit one
                    return dot(lhs, rhs, dimension_numbers, *args, **options)
                frozen = self._scaled(matrix_of(base))
                if isinstance(self.update, FullUpdate):
                    frozen = self.update.kernel(frozen)
                y = dot(lhs, frozen.reshape(new.shape).astype(rhs.dtype), dimension_numbers, *args, **options)
                if self.update is None or isinstance(self.update, FullUpdate):
                    return y
                a, b = (factor.astype(rhs.dtype) for factor in self.update.factors())
                inner_options = {k: v for k, v in options.items() if k == "precision"}
                if options.get("out_sharding") is not None:
                    inner_options["out_sharding"] = _inner_sharding(options["out_sharding"], len(outputs))
                inner = jax.lax.dot_general(
                    lhs, a.reshape(*inputs, -1), ((axes, contracted), ((), ())), **inner_options
                )
                last = (((inner.ndim - 1,), (0,)), ((), ()))
                y = y + dot(inner, b.reshape(-1, *outputs), last, *args, **options)
                rates = self.update.rates(frozen)
                return y if rates is None else y * rates.reshape(outputs).astype(y.dtype)

            return product

        attributes: dict[str, Any] = {"promote_dtype": promote}
        if getattr(base, "dot_general_cls", None) is not None:
            attributes["dot_general_cls"] = lambda: wrapped(base.dot_general_cls())
        else:
            attributes["dot_general"] = wrapped(jax.lax.dot_general if base.dot_general is None else base.dot_general)
        return attributes


def adapted_layers(model: nnx.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted layers of a model by their dotted paths."""
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, AdaptedLinear)
    }


def _flattened(names: Any, layer: DenseLayer) -> dict[str | None, Any]:
    """Return the sharding of the sides of a layer's matrix, from that of the axes of its kernel."""
    inputs, outputs = _features(layer)
    names = (*names, *[None] * (len(inputs) + len(outputs) - len(names)))

    def side(axes: tuple) -> Any:  # only the first of several axes stays together when they are flattened
        return axes[0] if not any(axes[1:]) else None

    return {"inputs": side(names[: len(inputs)]), "outputs": side(names[len(inputs) :]), None: None}


def sharded_like(layer: DenseLayer, variable: nnx.Variable, sides: tuple[str | None, ...]) -> nnx.Variable:
    """Return a variable sharded like the kernel of a layer, in its metadata and in the placement of its array.

    Args:
        layer: a dense layer.
        variable: to be sharded; it is returned itself where the kernel is not sharded.
        sides: of each axis of the variable, the side of the kernel's matrix that it is: "inputs", "outputs" or None.
    """
    metadata, kernel, value = layer.kernel.get_metadata(), layer.kernel[...], variable[...]
    names, changes = metadata.get("out_sharding"), {}
    if names is not None:
        spec = names.spec if isinstance(names, NamedSharding) else names
        sharding = [_flattened(tuple(spec), layer)[side] for side in sides]
        sharding = tuple(sharding) if type(names) is tuple else PartitionSpec(*sharding)
        changes["out_sharding"] = NamedSharding(names.mesh, sharding) if isinstance(names, NamedSharding) else sharding
        changes |= {name: metadata[name] for name in ("mesh", "sharding_rules") if name in metadata}
    if _is_placed(kernel) and _is_concrete(value):
        axes = _flattened(tuple(kernel.sharding.spec), layer)
        value = jax.device_put(value, NamedSharding(kernel.sharding.mesh, PartitionSpec(*(axes[s] for s in sides))))
        changes["value"] = value
    return variable.replace(changes.pop("value", value), **changes) if changes else variable


def shard_update(layer: DenseLayer, update: Update) -> Update:
    """Shard every variable of a layer's update like the layer's kernel, in place."""
    for name, sides in update.sides.items():
        setattr(update, name, sharded_like(layer, getattr(update, name), sides))
    return update


def checked_dtype(dtype: Any) -> jax.typing.DTypeLike | None:
    """Return a checked dtype for kernels.

    Raises:
        InputError: if it is none of real numbers.
    """
    if dtype is None:
        return None
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in _FLOATS:
        raise InputError(f"dtype = {shown(dtype)}: must be one of {', '.join(_FLOATS)}, or None for the base's own")
    return jnp.dtype(name)


def warn_of_loss(
    layers: Mapping[str, AdaptedLinear], argument: str, dtype: Any = None, *, computing: bool = False
) -> None:
    """Warn once about all layers whose merged kernel loses more than 1 % of the update to rounding.

    Raises:
        InputError: if a merged kernel is too large for the dtype.
    """
    dtype, lost = checked_dtype(dtype), {}
    for path, layer in layers.items():
        kinds = {jnp.dtype(layer.base.kernel.dtype if dtype is None else dtype)}
        if computing and layer.base.dtype is not None:
            kinds.add(jnp.dtype(layer.base.dtype))
        for kind in kinds:
            if kind.itemsize < 4 or kind.itemsize < layer.base.kernel.dtype.itemsize:
                share = layer.loss_of(kind)
                if not share < math.inf:
                    where = f"{path}: " if path else ""
                    raise InputError(
                        f"{argument}: {where}the merged kernel holds numbers that are not finite in {kind.name}"
                    )
                lost[path] = max((share, kind.name), lost.get(path, (0.0, kind.name)))
    lost = {path: (share, kind) for path, (share, kind) in lost.items() if share > _LOST}
    if lost:
        path, (share, kind) = max(lost.items(), key=lambda item: item[1][0])
        where = f" in {path}" if path else ""
        others = f" ({len(lost)} layers lose more than {_LOST:.0%})" if len(lost) > 1 else ""
        warnings.warn(
            f"{argument}: rounding to {kind} loses {share:.0%} of the adapter's effect{where}{others};"
            " use dtype=jnp.float32 in `merged_copy`, or keep the adapter unmerged",
            stacklevel=3,
        )


def merge_weights(model: nnx.Module) -> None:
    """Fold every adapter into one kernel, in place; `unmerge_weights` restores the model exactly.

    Warns:
        UserWarning: if half precision, of a kernel or of the layer's computing, rounds more than 1 % of an update away.
    """
    layers = adapted_layers(model)
    warn_of_loss(layers, "merge_weights", computing=True)
    for layer in layers.values():
        layer._merge()


def unmerge_weights(model: nnx.Module) -> None:
    """Restore the unmerged weights of every adapter, in place."""
    for layer in adapted_layers(model).values():
        layer.unmerge_weights()
