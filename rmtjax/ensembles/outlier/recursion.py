"""The recursion of pivots from the last row to the first, and the number of rows that it needs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rmtjax._precision import float64
from rmtjax.ensembles.outlier._series import Series

__all__ = ["GROUP", "TOLERANCE", "Number", "arccosh_squared", "beyond", "checked_pivot", "from_last", "outlier_depth"]

TOLERANCE = 1e-12
"""Default bound on the effect of the omitted rows on the outlier, relative to the scale of the spectrum."""

GROUP = 4
"""Number of rows drawn at once: Box–Muller gives pairs, and vector units need more than one row."""

Number = Float[Array, ""] | float


@float64(keep=())
def outlier_depth(
    rate2: Float[Array, ""], growth: Float[Array, ""], rows: Float[Array, ""], tolerance: Float[Array, ""]
) -> Int[Array, ""]:
    r"""Return the number of rows after which the rest moves the first pivot by less than `tolerance`.

    In the limit a row k damps what lies beyond it by :math:`e^{-r_k}`, :math:`r_k^2 \ge r^2 + \kappa k` (docs/derivations.md),
    and :math:`\sum_{k<K} r_k \ge L = \log(1/\text{tolerance})` is solved for K with the sum bounded by its integral. Where
    :math:`r^2 < 0` the first rows do not damp at all, and K begins where they do.

    Args:
        rate2: :math:`r^2`, at the lowest place where the outlier may be.
        growth: κ, of the order of one over the matrix's size.
        rows: number of rows.
        tolerance: in (0, 1).
    """
    need = 1.5 * growth * jnp.log(1 / tolerance)
    r2 = jnp.maximum(rate2, 0.0)
    # (r³ + need)^{2/3} − r² without cancellation where need is small against r³.
    r3 = jnp.where(r2 > 0, r2, 1.0) ** 1.5
    far = jnp.where(r2 > 0, r2, 0.0) * jnp.expm1(jnp.log1p(need / r3) * (2 / 3))
    span = jnp.where(r2 > 0, far, need ** (2 / 3)) - jnp.minimum(rate2, 0.0)
    return jnp.minimum(jnp.ceil(span / growth) + 1, rows).astype(jnp.int32)


def arccosh_squared(x):
    """Return (arccosh x)², continued to −(arccos x)² below 1."""
    y = jnp.maximum(x, -1.0) - 1
    near = jnp.abs(y) < 1e-4
    above = jnp.log1p(jnp.maximum(y, 0.0) + jnp.sqrt(jnp.maximum(y * (y + 2), 0.0))) ** 2
    below = -(jnp.arccos(jnp.clip(x, -1.0, 1.0)) ** 2)
    return jnp.where(near, 2 * y - y * y / 3, jnp.where(y > 0, above, below))


def from_last(levels: Array | int, rows: Callable[[Array], tuple], step: Callable, start):
    """Fold `step` over the rows from the last to the first: ``step(state, row number from 1, row)``."""
    groups = (levels + GROUP - 1) // GROUP

    def group(j, state):
        drawn = rows(groups - 1 - j)
        for i in reversed(range(GROUP)):
            state = step(state, (groups - 1 - j) * GROUP + i + 1, tuple(v[i] for v in drawn))
        return state

    return jax.lax.fori_loop(0, groups, group, start)


def checked_pivot(new: Series, above: Array, k: Array, exists: Array) -> tuple[Series, Array]:
    """Return a pivot, 1 if its row does not exist; and whether all rows from 2 on are positive so far."""
    safe = (jnp.where(exists, new[0], 1.0), *(jnp.where(exists, v, 0.0) for v in new[1:]))
    return safe, above & ((safe[0] > 0) | (k == 1))


def beyond(shape) -> Series:
    """Return a pivot that stands for the omitted rows: practically infinite."""
    return (jnp.full(shape, 1e100), *(jnp.zeros(shape) for _ in range(3)))
