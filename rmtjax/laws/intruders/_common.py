"""Argument checks of the intruder laws, and the lifting of a law of scalars to arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._checks import is_traced, numbers, one_of

__all__ = ["SMALLEST", "check_eps", "check_side", "check_sizes", "check_theta", "elementwise", "oriented"]

SMALLEST = 32
"""The smallest size that the laws cover: they treat the top of the spectrum eigenvalue by eigenvalue."""


def check_sizes(**values: Any) -> None:
    """Raise `InputError` unless sizes are finite and at least `SMALLEST`."""
    for name, value in values.items():
        numbers(name, value, SMALLEST)


def check_theta(theta: Any) -> None:
    """Raise `InputError` unless strengths are finite and positive."""
    numbers("theta", theta, 0, open_low=True)


def check_eps(**values: Any) -> None:
    """Raise `InputError` unless tolerances or probabilities lie between 0 and 1."""
    for name, value in values.items():
        numbers(name, value, 0, 1, open_low=True, open_high=True)


def check_side(side: str) -> None:
    """Raise `InputError` unless a side is "left" or "right"."""
    one_of("side", side, ("left", "right"))


def oriented(n: Any, m: Any, theta: Any, side: str) -> tuple[Any, Any, Any]:
    """Return the sizes and the strength for which the vector of a side is a left vector.

    A right vector is a left one of √(m/n) Wᵀ, which is m×n of variance 1/n.
    """
    return (n, m, theta) if side == "left" else (m, n, theta * jnp.sqrt(m / n))


def elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lift a function of scalars to arrays, one element after another, since each one solves a thousand saddle points already.

    Known arguments go through one program for scalars, whatever their shape.
    """

    def mapped(*args):
        args = jnp.broadcast_arrays(*args)
        shape = args[0].shape
        if not shape:
            return function(*args)
        flat = tuple(a.ravel() for a in args)
        if not is_traced(*args):
            values = [function(*row) for row in zip(*map(np.asarray, flat), strict=True)]
            return jnp.asarray(values, jnp.float64).reshape(shape)
        return jax.lax.map(lambda row: function(*row), flat).reshape(shape)

    return mapped
