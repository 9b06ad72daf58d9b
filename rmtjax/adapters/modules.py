"""The modules and variables of a model, the places that hold them, and their replacement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from rmtjax._errors import InputError, shown
from rmtjax.adapters.layers import DenseLayer

__all__ = ["Place", "dense_layers", "dotted", "exchange", "module_paths", "own_weights", "retype", "variable_places"]


def dotted(path: Sequence) -> str:
    """Return a path as dotted text."""
    return ".".join(map(str, path))


def _held(value: Any) -> Iterator[tuple[tuple, Any]]:
    """Return the modules and variables in the value of an attribute, with their paths within it."""
    leaves = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: isinstance(x, (nnx.Module, nnx.Variable)))[0]
    for keys, leaf in leaves:
        if isinstance(leaf, (nnx.Module, nnx.Variable)):
            yield tuple(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in keys), leaf


def _contents(module: nnx.Module) -> Iterator[tuple[str | int, tuple, Any]]:
    """Return the modules and variables that a module holds: attribute, path within its value, and the object."""
    for name, value in vars(module).items():
        if not name.startswith("_pytree__"):
            step = int(name) if isinstance(module, nnx.List) and name.isdigit() else name
            for inner, held in _held(value):
                yield step, inner, held


def module_paths(model: nnx.Module) -> dict[int, list[tuple]]:
    """Return all paths of each module by its id; a module that is held in several places has several."""
    paths: dict[int, list[tuple]] = {}

    def walk(module: nnx.Module, path: tuple, above: frozenset[int]) -> None:
        paths.setdefault(id(module), []).append(path)
        for name, inner, held in _contents(module):
            if isinstance(held, nnx.Module) and id(held) not in above:
                walk(held, (*path, name, *inner), above | {id(held)})

    walk(model, (), frozenset([id(model)]))
    return paths


class Place(NamedTuple):
    """The place that holds a variable: its module and the module's path, its attribute, and its path within that."""

    path: tuple
    module: nnx.Module
    name: str
    inner: tuple

    def __str__(self) -> str:
        return dotted((*self.path, self.name, *self.inner))


def variable_places(model: nnx.Module) -> dict[int, tuple[nnx.Variable, list[Place]]]:
    """Return every variable by its id, with all places that hold it; a tied weight has several."""
    places: dict[int, tuple[nnx.Variable, list[Place]]] = {}
    for path, module in sorted(nnx.iter_modules(model), key=lambda item: [(isinstance(p, str), p) for p in item[0]]):
        for name, inner, held in _contents(module):
            if isinstance(held, nnx.Variable):
                places.setdefault(id(held), (held, []))[1].append(Place(path, module, name, inner))
    return places


def dense_layers(model: nnx.Module) -> dict[tuple, DenseLayer]:
    """Return the dense layers of a model by path, in the order of its attributes."""
    kinds = (nnx.Linear, nnx.LinearGeneral)
    layers = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, kinds)}
    return dict(sorted(layers.items(), key=lambda item: [(isinstance(p, str), p) for p in item[0]]))


def own_weights(module: nnx.Module) -> list[nnx.Variable]:
    """Return the parameters that a module holds itself."""
    return [held for _, _, held in _contents(module) if isinstance(held, nnx.Param)]


def exchange(model: nnx.Module, new: Mapping[tuple, nnx.Module]) -> None:
    """Replace the modules at the given paths, wherever the model holds them.

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
            f"model: {shown(min(map(dotted, lost)))} must be held in an attribute, nnx.List or nnx.Dict to be replaced"
        )
    for holder, name, path in places:
        setattr(holder, name, new[path])


def retype(variables: Iterable[tuple[nnx.Variable, Sequence[Place]]], kind: type[nnx.Param]) -> None:
    """Change the type of variables wherever they are held, so that a tied weight stays tied."""
    for variable, places in variables:
        new = kind.from_metadata(variable.get_raw_value(), variable.get_metadata())
        for place in places:
            setattr(place.module, str(place.name), new)
