"""Names and layouts of a model's variables in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array

from rmtjax._errors import InputError, shown
from rmtjax.adapters.layers import check_dense
from rmtjax.adapters.modules import Place, dotted
from rmtjax.checkpoints.names import weight_name

__all__ = ["Names", "from_torch", "on_host", "path_renaming", "required_renaming", "to_torch", "torch_weight"]


def on_host(value: Any) -> np.ndarray:
    """Return an array as a NumPy array in single precision."""
    return np.ascontiguousarray(np.asarray(value, np.float32))


Names = Mapping[str, str] | Callable[[str], str]


def path_renaming(names: Names | None) -> Callable[[str], str | None]:
    """Return a function from a path here to the path in the PyTorch model, or None for a path that a mapping does not cover."""
    if names is None:
        return lambda path: path
    if isinstance(names, Mapping):
        for before, after in names.items():
            if not (isinstance(before, str) and isinstance(after, str)):
                raise InputError(
                    f"names = {shown(names)}: must map paths to paths, not {shown(before)} to {shown(after)}"
                )

        def renamed(path: str) -> str | None:
            steps = path.split(".") if path else []
            for i in range(len(steps), -1, -1):  # the longest prefix wins
                beginning = ".".join(steps[:i])
                if beginning in names:
                    return ".".join([*filter(None, [names[beginning]]), *steps[i:]])
            return None

        return renamed
    if not callable(names):
        raise InputError(f"names = {shown(names)}: must be a mapping of paths, or a function of a path")

    def called(path: str) -> str:
        result = names(path)
        if not isinstance(result, str):
            raise InputError(f"names: {shown(path)} becomes {shown(result)}; must be a path")
        return result

    return called


def required_renaming(names: Names | None) -> Callable[[str], str]:
    """Return `path_renaming`, with InputError for a path that a mapping does not cover."""
    renaming = path_renaming(names)

    def renamed(path: str) -> str:
        name = renaming(path)
        if name is None:
            raise InputError(
                f"names = {shown(names)}: does not cover {path}; the key '' matches the beginning of every path"
            )
        return name

    return renamed


def torch_weight(place: Place, module: str) -> str:
    """Return the name of a variable in the PyTorch model, given that of its module."""
    return ".".join(filter(None, [module, weight_name((place.name, *place.inner))]))


def _torch_axes(place: Place, array: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of a variable in PyTorch, and the order of its axes there.

    Raises:
        InputError: for a kernel whose order of axes in PyTorch is not known.
    """
    module, shape = place.module, tuple(array.shape)
    if isinstance(module, nnx.LinearGeneral):
        check_dense(module, f"model: {dotted(place.path)}")
        flat = (math.prod(module.in_features), math.prod(module.out_features))
        return (flat, (1, 0)) if place.name == "kernel" else ((flat[1],), (0,))
    if place.name != "kernel" or len(shape) < 2:
        return shape, tuple(range(len(shape)))
    if len(shape) == 2:
        return shape, (1, 0)
    if isinstance(module, nnx.Conv):
        return shape, (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
    raise InputError(
        f"model: {place} of {type(module).__name__} has shape {shape}, whose order of axes in PyTorch is unknown"
    )


def to_torch(place: Place, array: Array) -> np.ndarray:
    flat, order = _torch_axes(place, array)
    return on_host(array.reshape(flat).transpose(order))


def from_torch(place: Place, array: Array, value: Array) -> Array | None:
    """Return a variable's value from PyTorch's; None if the shapes do not fit."""
    flat, order = _torch_axes(place, array)
    if value.shape != tuple(flat[i] for i in order):
        return None
    return value.transpose(np.argsort(order)).reshape(array.shape)
