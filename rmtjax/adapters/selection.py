"""Selection of the layers that get an adapter and of the weights that train along with them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

from flax import nnx

from rmtjax._errors import InputError, shown
from rmtjax.adapters.layers import DenseLayer, check_dense
from rmtjax.adapters.modules import Place, dense_layers, dotted, module_paths, own_weights, variable_places

__all__ = ["Pattern", "check_tied", "check_tied_kernels", "select_layers", "trained_modules"]

Pattern = str | Sequence[str]


def _matcher(pattern: Pattern) -> Callable[[str], bool]:
    """Return a function that matches a path as PEFT's `target_modules` does: by a regular expression, or a list of suffixes."""
    if isinstance(pattern, str):
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise InputError(f"target_modules = {pattern!r}: must be a regular expression ({error})") from None
        return lambda path: compiled.fullmatch(path) is not None
    try:
        ends = tuple(pattern)
    except TypeError:
        ends = (pattern,)
    if not ends or not all(isinstance(end, str) for end in ends):
        raise InputError(f"target_modules = {shown(pattern)}: must be a regular expression, or a list of path suffixes")
    return lambda path: any(path == end or path.endswith(f".{end}") for end in ends)


def select_layers(model: nnx.Module, pattern: Pattern, argument: str) -> dict[tuple, DenseLayer]:
    layers, matches, paths = dense_layers(model), _matcher(pattern), module_paths(model)

    def named(module: nnx.Module, names: Callable[[str], bool] = matches) -> bool:
        return any(names(dotted(path)) for path in paths[id(module)])

    chosen = {path: layer for path, layer in layers.items() if named(layer)}
    others = {
        path: module
        for path, module in nnx.iter_modules(model)
        if path not in layers and named(module) and any(v.ndim > 1 for v in own_weights(module))
    }
    others = {path: module for path, module in others.items() if not any(path[:-1] == above for above in chosen)}
    left_out = ", ".join(f"{dotted(path)} (of type {type(module).__name__})" for path, module in others.items())
    if not chosen:
        kinds: dict[str, str] = {}
        for path in layers:
            steps = [str(p) for p in path if isinstance(p, str)]
            kinds.setdefault(".".join(steps[-2:]), dotted(path))
        available = ", ".join(f"{kind} (as {path})" for kind, path in kinds.items())
        but = f" but {left_out}" if others else ""
        raise InputError(
            f"{argument} = {shown(pattern)}: matches no dense layer{but}; the model has {available or 'none'}"
        )
    holders = dict(nnx.iter_modules(model))
    for path, layer in chosen.items():
        check_dense(layer, f"{argument}: {dotted(path)}")
        for above in paths[id(layer)]:
            holder = holders.get(above[:-1]) if above else None
            if isinstance(holder, (nnx.SpectralNorm, nnx.WeightNorm)):
                raise InputError(
                    f"{argument}: {dotted(path)} lies in an nnx.{type(holder).__name__}, which would rescale the"
                    " adapter's weights too"
                )
    if others:
        warnings.warn(
            f"{argument} = {shown(pattern)}: {len(others)} of the {len(chosen) + len(others)} modules with weight matrices"
            f" that match are not dense layers and are left out: {left_out}",
            stacklevel=3,
        )
    if not isinstance(pattern, str):
        every = [*layers.values(), *others.values()]
        ends = [end for end in pattern if not any(named(module, _matcher([end])) for module in every)]
        if ends:
            warnings.warn(f"{argument}: {', '.join(map(repr, ends))} matches no dense layer of the model", stacklevel=3)
    return chosen


def check_tied(
    model: nnx.Module, frozen: Iterable[tuple], trains: Callable[[Place], bool], unfrozen: Callable[[Place], bool]
) -> list[tuple[nnx.Variable, list[Place]]]:
    """Return the weights that are to train, wherever they are held.

    Args:
        model: before anything of it is changed.
        frozen: paths of the layers that get an adapter.
        trains: whether a weight is to train where it is held, outside of those layers.
        unfrozen: whether a weight trains inside of those layers.

    Raises:
        InputError: if a weight would train in one place and be frozen in another, or cannot be marked.
    """
    frozen, chosen = set(frozen), []
    for variable, places in variable_places(model).values():
        if not isinstance(variable, nnx.Param):
            continue
        inside = [any(place.path[:i] in frozen for i in range(len(place.path) + 1)) for place in places]
        wishes = [unfrozen(p) if within else trains(p) for p, within in zip(places, inside, strict=True)]
        if not any(wishes):
            continue
        held = [place for place, within, wish in zip(places, inside, wishes, strict=True) if within and not wish]
        if held:
            trained = places[wishes.index(True)]
            raise InputError(
                f"model: {trained} and {held[0]} are one weight, which would train in one place and be frozen under an"
                " adapter in the other; copy one of them, or treat both alike"
            )
        if type(variable) is not nnx.Param:
            raise InputError(
                f"train: {places[0]} has type {type(variable).__name__}; only plain nnx.Param can be marked as training"
            )
        if any(place.inner for place in places):
            raise InputError(f"train: {places[0]} must be held in an attribute, nnx.List or nnx.Dict to be replaced")
        chosen.append((variable, places))
    return chosen


def trained_modules(model: nnx.Module, train: Pattern | None, everything: bool) -> set[int]:
    """Return the ids of the modules whose own weights are to train: those that match, and all modules below one that does."""
    if train is None and not everything:
        return set()
    matches = (lambda path: path == "") if everything else _matcher(train)
    paths = module_paths(model)
    trained = {
        module
        for module, own_paths in paths.items()
        if any(matches(dotted(path[:i])) for path in own_paths for i in range(len(path) + 1))
    }
    if not trained:
        raise InputError(f"train = {shown(train)}: matches no module of the model")
    return trained


def check_tied_kernels(model: nnx.Module, targets: Mapping[tuple, DenseLayer]) -> None:
    """Raise InputError if a kernel that gets a Δ of its own is also used elsewhere, where Δ would not apply."""
    kernels = {id(layer.kernel) for layer in targets.values()}
    for variable, places in variable_places(model).values():
        if id(variable) in kernels and len(places) > 1:
            raise InputError(
                f"model: {places[0]} and {places[1]} are one weight, which full fine-tuning with α would train in only one"
                " place; copy one of them, or choose layers whose kernels are not tied"
            )
