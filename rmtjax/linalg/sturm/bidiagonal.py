r"""Singular values of bidiagonal matrices by counting.

They go through the tridiagonal matrix of Golub and Kahan, of order 2N with a zero diagonal and the entries of B
alternating beside it, whose eigenvalues are :math:`\pm\sigma_i`; small ones come out to full *relative* accuracy (Demmel and
Kahan, SIAM J. Sci. Stat. Comput. 11, 1990).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from rmtjax._precision import float64
from rmtjax.linalg.sturm._counting import (
    checked,
    count_of_batches,
)
from rmtjax.linalg.sturm.tridiagonal import checked_edges, checked_points, eigenvalues_of_batches, positions, width_of

__all__ = ["singular_count_below", "singular_histogram", "singular_values"]


def _golub_kahan(diagonal: Array, off_diagonal: Array) -> tuple[Array, Array]:
    """Return the tridiagonal matrix of order 2N with eigenvalues ±σ: diagonal 0, off-diagonal the entries of B alternately."""
    batch = jnp.broadcast_shapes(diagonal.shape[:-1], off_diagonal.shape[:-1])
    n = diagonal.shape[-1]
    a = jnp.broadcast_to(diagonal, (*batch, n))
    b = jnp.broadcast_to(jnp.pad(off_diagonal, [(0, 0)] * (off_diagonal.ndim - 1) + [(0, 1)]), (*batch, n))
    # The barrier keeps the compiler from constant-folding millions of zeros.
    return lax.optimization_barrier(jnp.zeros((*batch, 2 * n))), jnp.stack([a, b], -1).reshape(*batch, 2 * n)[..., :-1]


@jax.jit
def _singular_count(diagonal: Array, off_diagonal: Array, points: Array) -> Array:
    counts = count_of_batches(*_golub_kahan(diagonal, off_diagonal), points)
    return jnp.where(points > 0, counts - diagonal.shape[-1], 0)


@jax.jit
def _singular_histogram(diagonal: Array, off_diagonal: Array, edges: Array) -> Array:
    return jnp.diff(_singular_count(diagonal, off_diagonal, edges))


@jax.jit
def _singular_values(diagonal: Array, off_diagonal: Array, index: Array, tolerance: Array) -> Array:
    n = diagonal.shape[-1]
    values = eigenvalues_of_batches(
        *_golub_kahan(diagonal, off_diagonal), jnp.where(index < 0, index + 2 * n, index + n), tolerance
    )
    return jnp.abs(values)


@float64
def singular_count_below(
    diagonal: Float[Array, "... N"], off_diagonal: Float[Array, "... M"], points: Float[Array, "..."]
) -> Int[Array, "..."]:
    r"""Return the number of singular values of a bidiagonal matrix strictly below each point.

    Upper and lower bidiagonal matrices with the same entries have the same singular values. Entries below
    :math:`10^{-150}` of the largest count as 0; all others contribute to full relative accuracy.

    Args:
        diagonal: shape (..., N).
        off_diagonal: above or below the diagonal, shape (..., N − 1).
        points: as in `count_below`.

    Raises:
        InputError: as `count_below`.
    """
    checked(diagonal, off_diagonal)
    checked_points(points)
    return _singular_count(diagonal, off_diagonal, points)


@float64
def singular_histogram(
    diagonal: Float[Array, "... N"], off_diagonal: Float[Array, "... M"], edges: Float[Array, "... edges"]
) -> Int[Array, "..."]:
    """Return the number of singular values of a bidiagonal matrix in each bin, closed on the left; see `histogram`.

    Args:
        diagonal: shape (..., N).
        off_diagonal: above or below the diagonal, shape (..., N − 1).
        edges: shape (..., bins + 1), not decreasing.

    Raises:
        InputError: as `histogram`.
    """
    checked(diagonal, off_diagonal)
    checked_edges(edges)
    return _singular_histogram(diagonal, off_diagonal, edges)


@float64(keep=("indices",))
def singular_values(
    diagonal: Float[Array, "... N"],
    off_diagonal: Float[Array, "... M"],
    indices: Shaped[ArrayLike, "..."] | None = None,
    tolerance: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "..."]:
    """Return chosen singular values of a bidiagonal matrix by bisection, each to full relative accuracy; see `eigenvalues`.

    Args:
        diagonal: shape (..., N).
        off_diagonal: above or below the diagonal, shape (..., N − 1).
        indices: the chosen ones, in ascending order from 0, or from the top with −1, −2, …; all if not given.
        tolerance: as in `eigenvalues`.

    Raises:
        InputError: as `eigenvalues`.
    """
    checked(diagonal, off_diagonal)
    return _singular_values(diagonal, off_diagonal, positions(indices, diagonal.shape[-1]), width_of(tolerance))
