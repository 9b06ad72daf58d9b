"""Application of adapters to a model."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmtjax._checks import flag, number, one_of, whole
from rmtjax._errors import InputError, shown
from rmtjax._random import key_of, pinned
from rmtjax.adapters.layers import AdaptedLinear, matrix_of, shard_update, sharded_like
from rmtjax.adapters.methods import METHODS, FullUpdate, make_update
from rmtjax.adapters.modules import dotted, exchange, retype
from rmtjax.adapters.params import TRAINABLE, AlphaParam, TrainedParam
from rmtjax.adapters.selection import Pattern, check_tied, check_tied_kernels, select_layers, trained_modules

__all__ = ["SHARING", "apply_adapters", "check_plain"]

SHARING = {"module": 0, "self": 1, "attention": 2}
"""The layers that share one α: none; all below the same parent (query and value); all below its parent (attention)."""


def check_plain(model: nnx.Module) -> None:
    """Raise InputError if any variable of a model is already marked as training."""
    if jax.tree.leaves(nnx.state(model, nnx.Any(TRAINABLE, AlphaParam))):
        raise InputError("model: already has adapters; use its `merged_copy`")


def apply_adapters(
    model: nnx.Module,
    adapter: str = "lora",
    *,
    target_modules: Pattern = ("query", "value"),
    rank: int = 8,
    lora_alpha: float | None = None,
    alpha: bool = False,
    alpha_modules: Pattern | None = None,
    alpha_share: str = "module",
    train: Pattern | None = None,
    seed: int = 0,
) -> None:
    """Freeze a model and give its dense layers adapters, in place.

    The type of a variable says what trains: `AdapterParam` the adapters' weights, `TrainedParam` the model's own weights that
    train along, `AlphaParam` α. Everything else is frozen because no filter selects it.

    Args:
        model: any NNX module.
        adapter: lora, rslora, dora, orthogonal, spectral-additive, spectral-rotational; full trains every weight;
            alpha-lora is lora with `alpha`.
        target_modules: layers that get an update, as PEFT's `target_modules`: a regular expression for the whole dotted path, or
            a list of ends of paths.
        rank: r, 1 or more.
        lora_alpha: a of the factor a/r (a/√r for rslora), by default r; the spectral adapters have none.
        alpha: scale the frozen rows by α, from 1.
        alpha_modules: layers that α scales; `target_modules` by default.
        alpha_share: the layers that share one α: module (none), self (those below the same parent, such as query and value)
            or attention (those below their grandparent).
        train: modules whose own weights train along, such as a new head.
        seed: of the adapters' start.

    Raises:
        InputError: if a pattern matches nothing, the rank does not fit a layer, a layer's kernel is not a matrix of real
            numbers, layers that share α differ in outputs, a tied weight would train in one place and be frozen in
            another, or the model is adapted already.

    Warns:
        UserWarning: if a pattern also matches modules with weights that are not dense layers, or a suffix matches none.

    Examples:
        A custom layer's own method is called, with all of its arguments; only its kernel differs:

        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> from rmtjax.adapters import apply_adapters, count_parameters
        >>> class Doubled(nnx.Linear):
        ...     def __call__(self, x, shift=0.0):
        ...         return 2 * super().__call__(x) + shift
        >>> model = nnx.Dict(fc=Doubled(3, 2, use_bias=False, rngs=nnx.Rngs(0)))
        >>> x = jnp.ones((1, 3))
        >>> before = model.fc(x, shift=1.0)
        >>> apply_adapters(model, target_modules=["fc"], rank=1, alpha=True)
        >>> bool(jnp.allclose(model.fc(x, shift=1.0), before))
        True
        >>> print(count_parameters(model))
        7 trainable of 13
    """
    one_of("adapter", adapter, [*METHODS, "full", "alpha-lora"])
    one_of("alpha_share", alpha_share, SHARING)
    alpha, rank, lora_alpha, seed = (
        value.item() if isinstance(value, (np.generic, jax.Array)) and value.ndim == 0 else value
        for value in (alpha, rank, lora_alpha, seed)
    )
    flag("alpha", alpha)
    whole("rank", rank)
    whole("seed", seed, -(2**63), 2**63 - 1)
    if lora_alpha is not None:
        number("lora_alpha", lora_alpha)
    if adapter == "alpha-lora":
        adapter, alpha = "lora", True
    if alpha_modules is not None and not alpha:
        raise InputError(f"alpha_modules = {shown(alpha_modules)}: has no effect without alpha")
    if alpha_share != "module" and not alpha:
        raise InputError(f"alpha_share = {shown(alpha_share)}: is of no use without alpha")
    check_plain(model)
    full = adapter == "full"
    targets = {} if full and not alpha else select_layers(model, target_modules, "target_modules")
    scaled = {}
    if alpha:
        scaled = targets if alpha_modules is None else select_layers(model, alpha_modules, "alpha_modules")
        if full:
            targets = scaled
    trained = trained_modules(model, None if full else train, everything=full)
    marked = check_tied(
        model,
        {**targets, **scaled},
        lambda place: id(place.module) in trained,
        lambda place: full and not (place.path in targets and place.name == "kernel"),
    )
    if full:
        check_tied_kernels(model, targets)
    elif train is not None and not marked:
        warnings.warn(
            f"train = {shown(train)}: matches no weight outside the adapted layers, so no further weight is trained",
            stacklevel=2,
        )
    vectors: dict[tuple, AlphaParam] = {}
    for path, layer in scaled.items():
        group, outputs = path[: len(path) - SHARING[alpha_share]], matrix_of(layer).shape[1]
        if group not in vectors:
            vectors[group] = sharded_like(layer, AlphaParam(jnp.ones(outputs, jnp.float32)), ("outputs",))
        vector = vectors[group]
        if vector.shape != (outputs,):
            raise InputError(
                f"alpha_share = {alpha_share}: {dotted(path)} has {outputs} outputs, but a layer that shares its α"
                f" has {vector.shape[0]}"
            )
    a, key = float(rank) if lora_alpha is None else float(lora_alpha), key_of(seed % 2**32)
    adapted = {}
    for i, path in enumerate(dict.fromkeys([*targets, *scaled])):
        layer, update = targets.get(path, scaled.get(path)), None
        if path in targets:
            kernel, fold = matrix_of(layer), jax.random.fold_in(key, i)
            with pinned():
                update = FullUpdate(kernel) if full else make_update(adapter, kernel, rank, a, fold, dotted(path))
            update = shard_update(layer, update)
        vector = vectors[path[: len(path) - SHARING[alpha_share]]] if path in scaled else None
        adapted[path] = AdaptedLinear(layer, update, vector)
    exchange(model, adapted)
    retype(marked, TrainedParam)
