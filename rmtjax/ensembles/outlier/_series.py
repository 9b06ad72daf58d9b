"""Taylor series of order 3 in z, each coefficient an array over the batch."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["Series", "affine", "multiply", "reciprocal", "square_root"]

Series = tuple[Array, Array, Array, Array]
"""Taylor coefficients of order 0 to 3 in z, each (batch,)."""


def multiply(p: Series, q: Series) -> Series:
    """Return the product of two series."""
    return tuple(sum(p[i] * q[k - i] for i in range(k + 1)) for k in range(4))


def reciprocal(p: Series) -> Series:
    """Return the reciprocal of a series."""
    r = [1 / p[0]]
    for k in range(1, 4):
        r.append(-r[0] * sum(p[i] * r[k - i] for i in range(1, k + 1)))
    return tuple(r)


def square_root(p: Series) -> Series:
    """Return the square root of a series."""
    r = [jnp.sqrt(p[0])]
    half = 0.5 / r[0]
    for k in range(1, 4):
        r.append(half * (p[k] - sum(r[i] * r[k - i] for i in range(1, k))))
    return tuple(r)


def affine(constant: Array, p: Series, factor: Array, sign: float = -1.0) -> Series:
    """Return constant + z + sign·factor·p, z being the variable of the series."""
    scaled = sign * factor
    return constant + scaled * p[0], 1 + scaled * p[1], scaled * p[2], scaled * p[3]
