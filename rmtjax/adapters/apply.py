"""Putting adapters on a model, taking them off, and counting what trains."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmtjax._checks import one_of
from rmtjax._errors import InputError, shown
from rmtjax._random import key_of, pinned
from rmtjax.adapters.layers import (
    AdaptedLinear,
    DenseLayer,
    check_dense,
    checked_dtype,
    matrix_of,
    shard_update,
    sharded_like,
    warn_of_loss,
)
from rmtjax.adapters.methods import METHODS, Dense, update
from rmtjax.adapters.params import AdapterParam, AlphaParam, TrainedParam

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


def dotted(path: Sequence) -> str:
    """A path as one text."""
    return ".".join(map(str, path))


def _held(value: Any) -> Iterator[tuple[tuple, Any]]:
    """The modules and variables in the value of an attribute, with their paths within it."""
    leaves = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: isinstance(x, (nnx.Module, nnx.Variable)))[0]
    for keys, leaf in leaves:
        if isinstance(leaf, (nnx.Module, nnx.Variable)):
            yield tuple(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in keys), leaf


def _contents(module: nnx.Module) -> Iterator[tuple[str | int, tuple, Any]]:
    """The modules and variables that a module holds: attribute, path within its value, and what is there."""
    for name, value in vars(module).items():
        if not name.startswith("_pytree__"):
            step = int(name) if isinstance(module, nnx.List) and name.isdigit() else name
            for inner, held in _held(value):
                yield step, inner, held


def module_paths(model: nnx.Module) -> dict[int, list[tuple]]:
    """All paths of each module by its id: one that is held in several places has several."""
    paths: dict[int, list[tuple]] = {}

    def walk(module: nnx.Module, path: tuple, above: frozenset[int]) -> None:
        paths.setdefault(id(module), []).append(path)
        for name, inner, held in _contents(module):
            if isinstance(held, nnx.Module) and id(held) not in above:
                walk(held, (*path, name, *inner), above | {id(held)})

    walk(model, (), frozenset([id(model)]))
    return paths


class Place(NamedTuple):
    """Where a variable is held: its module and the module's path, its attribute, and its path within that."""

    path: tuple
    module: nnx.Module
    name: str
    inner: tuple

    def __str__(self) -> str:
        return dotted((*self.path, self.name, *self.inner))


def variable_places(model: nnx.Module) -> dict[int, tuple[nnx.Variable, list[Place]]]:
    """Every variable by its id, with all places that hold it: a tied weight has several."""
    places: dict[int, tuple[nnx.Variable, list[Place]]] = {}
    for path, module in sorted(nnx.iter_modules(model), key=lambda item: [(isinstance(p, str), p) for p in item[0]]):
        for name, inner, held in _contents(module):
            if isinstance(held, nnx.Variable):
                places.setdefault(id(held), (held, []))[1].append(Place(path, module, name, inner))
    return places


def dense_layers(model: nnx.Module) -> dict[tuple, DenseLayer]:
    """The dense layers of a model by path, in the order of its attributes."""
    kinds = (nnx.Linear, nnx.LinearGeneral)
    layers = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, kinds)}
    return dict(sorted(layers.items(), key=lambda item: [(isinstance(p, str), p) for p in item[0]]))


def _selected(model: nnx.Module, pattern: Pattern, argument: str) -> dict[tuple, DenseLayer]:
    layers, matches, paths = dense_layers(model), _matcher(pattern), module_paths(model)

    def named(module: nnx.Module, names: Callable[[str], bool] = matches) -> bool:
        return any(names(dotted(path)) for path in paths[id(module)])

    chosen = {path: layer for path, layer in layers.items() if named(layer)}
    others = {
        path: module
        for path, module in nnx.iter_modules(model)
        if path not in layers and named(module) and any(v.ndim > 1 for v in _own_weights(module))
    }
    others = {path: module for path, module in others.items() if not any(path[:-1] == above for above in chosen)}
    left_out = ", ".join(f"{dotted(path)} (of type {type(module).__name__})" for path, module in others.items())
    if not chosen:
        kinds: dict[str, str] = {}
        for path in layers:
            steps = [str(p) for p in path if isinstance(p, str)]
            kinds.setdefault(".".join(steps[-2:]), dotted(path))
        known = ", ".join(f"{kind} (as {path})" for kind, path in kinds.items())
        but = f" but {left_out}" if others else ""
        raise InputError(f"{argument} = {shown(pattern)}: matches no dense layer{but}; there are {known or 'none'}")
    holders = dict(nnx.iter_modules(model))
    for path, layer in chosen.items():
        check_dense(layer, f"{argument}: {dotted(path)}")
        for above in paths[id(layer)]:
            holder = holders.get(above[:-1]) if above else None
            if isinstance(holder, (nnx.SpectralNorm, nnx.WeightNorm)):
                raise InputError(
                    f"{argument}: {dotted(path)} lies in an nnx.{type(holder).__name__}, which rescales all weights of a"
                    " layer, those of an adapter too"
                )
    if others:
        warnings.warn(
            f"{argument} = {shown(pattern)}: {len(others)} of the {len(chosen) + len(others)} modules with weight matrices"
            f" that it names are left out, which are no dense layers: {left_out}",
            stacklevel=3,
        )
    if not isinstance(pattern, str):
        every = [*layers.values(), *others.values()]
        ends = [end for end in pattern if not any(named(module, _matcher([end])) for module in every)]
        if ends:
            warnings.warn(f"{argument}: {', '.join(map(repr, ends))} matches no dense layer of the model", stacklevel=3)
    return chosen


def _own_weights(module: nnx.Module) -> list[nnx.Variable]:
    """The parameters that a module holds itself."""
    return [held for _, _, held in _contents(module) if isinstance(held, nnx.Param)]


def exchange(model: nnx.Module, new: Mapping[tuple, nnx.Module]) -> None:
    """Put modules in the place of those at the given paths, wherever the model holds these.

    Raises:
        InputError: before anything is changed, if one lies where nothing can be set, such as in a tuple.
    """
    modules = dict(nnx.iter_modules(model))
    old = {id(modules[path]): path for path in new}
    places, lost = [], [path for path in new if path == ()]
    for path, holder in modules.items():
        for name, inner, held in _contents(holder):
            if id(held) in old:
                if inner:
                    lost.append((*path, name, *inner))
                else:
                    places.append((holder, str(name), old[id(held)]))
    if lost:
        raise InputError(
            f"model: {shown(min(map(dotted, lost)))} is in no attribute, nnx.List or nnx.Dict to be set anew"
        )
    for holder, name, path in places:
        setattr(holder, name, new[path])


def _retype(variables: Iterable[tuple[nnx.Variable, Sequence[Place]]], kind: type[nnx.Param]) -> None:
    """Give variables another type wherever they are held, so that one that is tied stays so."""
    for variable, places in variables:
        new = kind.from_metadata(variable.get_raw_value(), variable.get_metadata())
        for place in places:
            setattr(place.module, str(place.name), new)


def check_tied(
    model: nnx.Module, frozen: Iterable[tuple], trains: Callable[[Place], bool], unfrozen: Callable[[Place], bool]
) -> list[tuple[nnx.Variable, list[Place]]]:
    """The weights that are to train, wherever they are held.

    Args:
        model: before anything of it is changed.
        frozen: paths of the layers that get an adapter.
        trains: whether a weight is asked to train where it is held, outside of those layers.
        unfrozen: whether a weight trains inside of those layers.

    Raises:
        InputError: if a weight would train in one place and be frozen in another, or cannot be marked.
    """
    frozen, chosen = set(frozen), []
    for variable, places in variable_places(model).values():
        if not isinstance(variable, nnx.Param):
            continue
        inside = [any(place.path[:i] in frozen for i in range(len(place.path) + 1)) for place in places]
        wanted = [unfrozen(p) if within else trains(p) for p, within in zip(places, inside, strict=True)]
        if not any(wanted):
            continue
        held = [place for place, within, wish in zip(places, inside, wanted, strict=True) if within and not wish]
        if held:
            trained = places[wanted.index(True)]
            raise InputError(
                f"model: {trained} and {held[0]} are one weight, which would train in the one and be frozen under the adapter"
                " of the other; give one a copy, or leave both to the same"
            )
        if type(variable) is not nnx.Param:
            raise InputError(
                f"train: {places[0]} is of the type {type(variable).__name__}; only plain nnx.Param can be marked as training"
            )
        if any(place.inner for place in places):
            raise InputError(f"train: {places[0]} is in no attribute, nnx.List or nnx.Dict to be set anew")
        chosen.append((variable, places))
    return chosen


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
        InputError: if a pattern matches nothing, the rank does not fit a layer, a layer's kernel is no matrix of real
            numbers, layers that share α differ in outputs, a tied weight would train in one place and be frozen in
            another, or the model is adapted already.

    Warns:
        UserWarning: if a pattern also names modules with weights that are no dense layers, or an end matches none.

    Examples:
        A layer of one's own is called itself, with all of its arguments; only its kernel is another:

        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> class Doubled(nnx.Linear):
        ...     def __call__(self, x, shift=0.0):
        ...         return 2 * super().__call__(x) + shift
        >>> model = nnx.Dict(fc=Doubled(3, 2, use_bias=False, rngs=nnx.Rngs(0)))
        >>> x = jnp.ones((1, 3))
        >>> before = model.fc(x, shift=1.0)
        >>> model = adapt(model, target=["fc"], rank=1, alpha=True)
        >>> bool(jnp.allclose(model.fc(x, shift=1.0), before))
        True
        >>> print(count_parameters(model))
        7 trainable of 13
    """
    one_of("method", method, [*METHODS, "full", "alpha-lora"])
    one_of("alpha_share", alpha_share, SHARING)
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
    trained = _trained(model, None if full else train, everything=full)
    marked = check_tied(
        model,
        {**targets, **scaled},
        lambda place: id(place.module) in trained,
        lambda place: full and not (place.path in targets and place.name == "kernel"),
    )
    if full:
        _check_tied_kernels(model, targets)
    elif train is not None and not marked:
        warnings.warn(
            f"train = {shown(train)}: names no weight outside of the adapted layers, so none trains along", stacklevel=2
        )
    vectors: dict[tuple, AlphaParam] = {}
    for path, layer in scaled.items():
        group, outputs = path[: len(path) - SHARING[alpha_share]], matrix_of(layer).shape[1]
        if group not in vectors:
            vectors[group] = sharded_like(layer, AlphaParam(jnp.ones(outputs, jnp.float32)), ("outputs",))
        vector = vectors[group]
        if vector.shape != (outputs,):
            raise InputError(
                f"alpha_share = {alpha_share}: {dotted(path)} has {outputs} outputs, a layer that it shares α with"
                f" {vector.shape[0]}"
            )
    a, key = float(rank) if scale is None else float(scale), key_of(seed % 2**32)
    adapted = {}
    for i, path in enumerate(dict.fromkeys([*targets, *scaled])):
        layer, own = targets.get(path, scaled.get(path)), None
        if path in targets:
            kernel, fold = matrix_of(layer), jax.random.fold_in(key, i)
            with pinned():
                own = Dense(kernel) if full else update(method, kernel, rank, a, fold, dotted(path))
            own = shard_update(layer, own)
        vector = vectors[path[: len(path) - SHARING[alpha_share]]] if path in scaled else None
        adapted[path] = AdaptedLinear(layer, own, vector)
    exchange(model, adapted)
    _retype(marked, TrainedParam)
    return model


def _trained(model: nnx.Module, train: Pattern | None, everything: bool) -> set[int]:
    """The ids of the modules whose own weights are asked to train: those that match, and all below one that does."""
    if train is None and not everything:
        return set()
    matches = (lambda path: path == "") if everything else _matcher(train)
    paths = module_paths(model)
    trained = {
        module
        for module, own in paths.items()
        if any(matches(dotted(path[:i])) for path in own for i in range(len(path) + 1))
    }
    if not trained:
        raise InputError(f"train = {shown(train)}: matches no module of the model")
    return trained


def _check_tied_kernels(model: nnx.Module, targets: Mapping[tuple, DenseLayer]) -> None:
    """Raise InputError if a kernel that gets a Δ of its own is used elsewhere, where it would not move along."""
    kernels = {id(layer.kernel) for layer in targets.values()}
    for variable, places in variable_places(model).values():
        if id(variable) in kernels and len(places) > 1:
            raise InputError(
                f"model: {places[0]} and {places[1]} are one weight, which full fine-tuning with α would train in one place"
                " alone; give one a copy, or choose layers whose kernels are not tied"
            )


def merged(model: Model, *, dtype: jax.typing.DTypeLike | None = None) -> Model:
    """A copy of a model with every adapter folded into its dense layer and no weight marked as training.

    Layers stay of the type that they are, and tied weights stay tied, but for a kernel that an adapter changes in one place
    alone: that is a matrix of its own from then on.

    Args:
        model: with adapters; it stays as it is.
        dtype: of the merged kernels; by default each keeps that of its base, as in PEFT. Single precision keeps all of the
            update where the base is in half precision.

    Raises:
        InputError: if a merged kernel is too large for its dtype, or `dtype` is none of real numbers.

    Warns:
        UserWarning: if rounding loses more than 1 % of an update; the message says how much.

    Examples:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Dict(fc=nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
        >>> model = adapt(model, target=["fc"], rank=1)
        >>> merged(model).fc.kernel.dtype.name, merged(model, dtype=jnp.float32).fc.kernel.dtype.name
        ('bfloat16', 'float32')
    """
    dtype = checked_dtype(dtype)
    model = nnx.clone(model)
    layers = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, AdaptedLinear)}
    warn_of_loss({dotted(path): layer for path, layer in layers.items()}, "merged", dtype)
    if () in layers:
        model = layers[()]._plain(dtype)
    else:
        exchange(model, {path: layer._plain(dtype) for path, layer in layers.items()})
    _retype([entry for entry in variable_places(model).values() if type(entry[0]) is TrainedParam], nnx.Param)
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
