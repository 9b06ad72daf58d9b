"""Shared parts of the laws: the decorator of bulk laws, and points that may be complex."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Inexact, Num

from rmtjax._checks import numbers, whole
from rmtjax._precision import as_array, float64

__all__ = ["LARGEST_ORDER", "as_point", "at_points", "law"]

LARGEST_ORDER = 500
"""The largest order of a moment, up to which the coefficients of the Marchenko–Pastur moments are finite in float64."""


def law(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a bulk law in float64 and as one compiled program, with its parameters checked if their values are known.

    `c` and `sigma` must be finite and positive, `k` is a static whole number, and `z`, `m` and `w` may be complex.
    """
    signature = inspect.signature(function)
    points = tuple(name for name in ("z", "m", "w") if name in signature.parameters)
    compiled = jax.jit(function, static_argnames="k" if "k" in signature.parameters else ())

    @functools.wraps(function)
    def checked(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        arguments = bound.arguments
        if "k" in arguments:
            whole("k", arguments["k"], 0, LARGEST_ORDER)
        for name in ("c", "sigma"):
            if name in arguments:
                numbers(name, arguments[name], 0, open_low=True)
        for name in points:
            if isinstance(arguments.get(name), (list, tuple)):
                arguments[name] = as_array(name, arguments[name])
        return compiled(*bound.args, **bound.kwargs)

    return float64(checked, keep=("k", *points))


def at_points(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run in float64 a law whose first argument is a point that may be complex, an array or a list."""
    point = next(iter(inspect.signature(function).parameters))
    inner = float64(function, keep=(point,))

    @functools.wraps(function)
    def called(z, *args, **kwargs):
        return inner(as_array(point, z) if isinstance(z, (list, tuple)) else z, *args, **kwargs)

    return called


def as_point(z: Num[ArrayLike, "..."]) -> Inexact[Array, "..."]:
    """Return the argument of a transform in double precision, real or complex as given."""
    return jnp.asarray(z, jnp.complex128 if jnp.iscomplexobj(z) else jnp.float64)
