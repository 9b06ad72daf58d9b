"""Putting adapters on a model, taking them off, and counting what trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmtjax._errors import InputError, check_known, shown
from rmtjax._random import key_of, pinned
from rmtjax.adapters.linear import AdaptedLinear, matrix_of
from rmtjax.adapters.updates import METHODS, Dense, update
from rmtjax.adapters.variables import AdapterParam, AlphaParam, TrainedParam

__all__ = ["SHARING", "TRAINABLE", "Count", "Pattern", "adapt", "count_parameters", "merged"]

Pattern = str | Sequence[str]
Model = TypeVar("Model", bound=nnx.Module)

TRAINABLE = nnx.Any(AdapterParam, TrainedParam)
"""What an optimiser trains, without α."""

SHARING = {"module": 0, "self": 1, "attention": 2}
"""How many layers share one α: each its own; all below one parent (query and value); all below its parent (attention)."""


def _matcher(pattern: Pattern) -> Callable[[str], bool]:
    """As PEFT's `target_modules`: a string is a regular expression for the whole path, a list are ends of paths."""
    if isinstance(pattern, str):
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise InputError(f"target = {pattern!r}: is no regular expression ({error})") from None
        return lambda path: compiled.fullmatch(path) is not None
    try:
        ends = tuple(pattern)
    except TypeError:
        ends = (pattern,)
    if not ends or not all(isinstance(end, str) for end in ends):
        raise InputError(f"target = {shown(pattern)}: must be a regular expression, or a list of ends of paths")
    return lambda path: any(path == end or path.endswith(f".{end}") for end in ends)


def check_plain(model: nnx.Module) -> None:
    """Raise InputError if anything of a model is marked as training already."""
    if jax.tree.leaves(nnx.state(model, nnx.Any(TRAINABLE, AlphaParam))):
        raise InputError("model: is adapted already; take `merged` of it first")


def _dotted(path: Sequence) -> str:
    return ".".join(map(str, path))


def dense_layers(model: nnx.Module) -> dict[tuple, nnx.Linear | nnx.LinearGeneral]:
    """The dense layers of a model by path, in the order of its attributes."""
    kinds = (nnx.Linear, nnx.LinearGeneral)
    found = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, kinds)}
    return dict(sorted(found.items(), key=lambda item: [(isinstance(p, str), p) for p in item[0]]))


def _selected(model: nnx.Module, pattern: Pattern, argument: str) -> dict[tuple, nnx.Linear | nnx.LinearGeneral]:
    layers, matches = dense_layers(model), _matcher(pattern)
    chosen = {path: layer for path, layer in layers.items() if matches(_dotted(path))}
    if not chosen:
        kinds: dict[str, str] = {}
        for path in layers:
            named = [str(p) for p in path if isinstance(p, str)]
            kinds.setdefault(".".join(named[-2:]), _dotted(path))
        there = ", ".join(f"{kind} (as {path})" for kind, path in kinds.items())
        raise InputError(f"{argument} = {shown(pattern)}: matches no dense layer; there are {there or 'none'}")
    for path, layer in chosen.items():
        if isinstance(layer, nnx.LinearGeneral):
            if layer.batch_axis or layer.axis != tuple(range(-len(layer.axis), 0)):
                raise InputError(
                    f"{argument}: {_dotted(path)} has batch axes or contracts other axes than the last ones"
                )
        elif layer.kernel.ndim != 2:
            raise InputError(
                f"{argument}: {_dotted(path)} is a stack of layers, its kernel has shape {layer.kernel.shape}"
            )
    return chosen


def exchange(model: nnx.Module, new: Mapping[tuple, nnx.Module]) -> None:
    """Put modules in the place of those at the given paths, wherever the model holds these.

    Raises:
        InputError: before anything is changed, if one lies where nothing can be set, such as in a tuple.
    """
    modules = dict(nnx.iter_modules(model))
    old = {id(modules[path]): path for path in new}
    places = [
        (holder, name, old[id(value)])
        for holder in modules.values()
        for name, value in vars(holder).items()
        if id(value) in old
    ]
    lost = set(new) - {path for _, _, path in places}
    if lost:
        raise InputError(
            f"model: {shown(min(map(_dotted, lost)))} is in no attribute, nnx.List or nnx.Dict to be set anew"
        )
    for holder, name, path in places:
        setattr(holder, name, new[path])


def _retyped(model: nnx.Module, old: type, new: type, where: Callable[[tuple], bool]) -> None:
    """Give variables of one type another, in modules whose path passes; one that is shared stays so."""
    made: dict[int, tuple[nnx.Variable, nnx.Variable]] = {}
    for path, module in list(nnx.iter_modules(model)):
        if where(path):
            for name, value in list(vars(module).items()):
                if type(value) is old:
                    setattr(module, name, made.setdefault(id(value), (value, new(value[...])))[1])


def _train(model: nnx.Module, matches: Callable[[str], bool]) -> None:
    """Make plain weights train whose module's path matches, or lies below one that does; none below an adapter."""
    modules = dict(nnx.iter_modules(model))

    def chosen(path: tuple) -> bool:
        above = [path[:i] for i in range(len(path) + 1)]
        if any(isinstance(modules.get(p), AdaptedLinear) for p in above):
            return False
        return any(matches(_dotted(p)) for p in above)

    _retyped(model, nnx.Param, TrainedParam, chosen)


def adapt(
    model: Model,
    method: str = "lora",
    *,
    target: Pattern = ("query", "value"),
    rank: int = 8,
    scale: float | None = None,
    alpha: bool = False,
    alpha_target: Pattern | None = None,
    alpha_share: str = "module",
    train: Pattern | None = None,
    seed: int = 0,
) -> Model:
    """Freeze a model and give its dense layers adapters, in place.

    What trains is marked by type: `AdapterParam` for the adapters' weights, `TrainedParam` for the model's own that train
    along, `AlphaParam` for α. All else is frozen because no filter selects it.

    Args:
        model: any NNX module.
        method: lora, rslora, dora, orthogonal, spectral-additive, spectral-rotational; full trains every weight;
            alpha-lora is lora with `alpha`.
        target: layers that get an update, as PEFT's `target_modules`: a regular expression for the whole dotted path, or
            a list of ends of paths.
        rank: r, 1 or more.
        scale: a, of the factor a/r (a/√r for rslora), r by default; PEFT's `lora_alpha`. Spectral methods have none.
        alpha: scale the frozen rows by α, from 1.
        alpha_target: layers that α scales; `target` by default.
        alpha_share: which layers share one α: module (none), self (those below the same parent, such as query and value)
            or attention (those below their grandparent).
        train: modules whose own weights train along, such as a new head.
        seed: of the adapters' start.

    Returns:
        The model.

    Raises:
        InputError: if a pattern matches nothing, the rank does not fit a layer, layers that share α differ in outputs,
            or the model is adapted already.
    """
    check_known("method", method, [*METHODS, "full", "alpha-lora"])
    check_known("alpha_share", alpha_share, SHARING)
    plains = {}
    for name, value in (("alpha", alpha), ("rank", rank), ("scale", scale), ("seed", seed)):
        plain = value.item() if isinstance(value, (np.generic, jax.Array)) and value.ndim == 0 else value
        kinds = {"alpha": bool, "rank": int, "seed": int}.get(name, (int, float, type(None)))
        if not isinstance(plain, kinds) or (name != "alpha" and isinstance(plain, bool)):
            what = {"alpha": "True or False", "scale": "a number"}.get(name, "a whole number")
            raise InputError(f"{name} = {shown(value)}: must be {what}")
        plains[name] = plain
    alpha, rank, scale, seed = plains.values()
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"seed = {seed}: must fit into 64 bits")
    if method == "alpha-lora":
        method, alpha = "lora", True
    if alpha_target is not None and not alpha:
        raise InputError(f"alpha_target = {shown(alpha_target)}: is of no use without alpha")
    check_plain(model)
    full = method == "full"
    targets = {} if full and not alpha else _selected(model, target, "target")
    scaled = {}
    if alpha:
        scaled = targets if alpha_target is None else _selected(model, alpha_target, "alpha_target")
        if full:
            targets = scaled
    if train is not None and not any(map(_matcher(train), (_dotted(path) for path, _ in nnx.iter_modules(model)))):
        raise InputError(f"train = {shown(train)}: matches no module of the model")
    vectors: dict[tuple, AlphaParam] = {}
    for path, layer in scaled.items():
        group, outputs = path[: len(path) - SHARING[alpha_share]], matrix_of(layer).shape[1]
        vector = vectors.setdefault(group, AlphaParam(jnp.ones(outputs)))
        if vector.shape != (outputs,):
            raise InputError(
                f"alpha_share = {alpha_share}: {_dotted(path)} has {outputs} outputs, a layer that it shares α with"
                f" {vector.shape[0]}"
            )
    a, key = float(rank) if scale is None else float(scale), key_of(seed % 2**32)
    adapted = {}
    for i, path in enumerate(dict.fromkeys([*targets, *scaled])):
        layer, own = targets.get(path, scaled.get(path)), None
        if path in targets:
            kernel, fold = matrix_of(layer), jax.random.fold_in(key, i)
            with pinned():
                own = Dense(kernel) if full else update(method, kernel, rank, a, fold, _dotted(path))
        vector = vectors[path[: len(path) - SHARING[alpha_share]]] if path in scaled else None
        adapted[path] = AdaptedLinear(layer, own, vector)
    exchange(model, adapted)
    if full:
        _train(model, lambda path: path == "")
        for layer in adapted.values():  # their kernels have a Δ, which trains
            if layer.base.bias is not None:
                layer.base.bias = TrainedParam(layer.base.bias[...])
    elif train is not None:
        _train(model, _matcher(train))
    return model


def merged(model: Model) -> Model:
    """A copy of a model with every adapter folded into a plain dense layer and no weight marked as training."""
    model = nnx.clone(model)
    layers = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, AdaptedLinear)}
    if () in layers:
        model = layers[()].plain()
    else:
        exchange(model, {path: layer.plain() for path, layer in layers.items()})
    _retyped(model, TrainedParam, nnx.Param, lambda path: True)
    return model


class Count(NamedTuple):
    """Numbers of parameters: those that train, α among them, and all."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} trainable of {self.total:,}"


def count_parameters(model: nnx.Module) -> Count:
    """How many numbers of a model train, and how many there are; shared ones count once, constants not at all."""

    def size(state) -> int:
        return sum(x.size for x in jax.tree.leaves(state))

    return Count(size(nnx.state(model, nnx.Any(TRAINABLE, AlphaParam))), size(nnx.state(model, nnx.Param)))
