r"""Eigenvalues of symmetric tridiagonal and singular values of bidiagonal matrices by counting, without computing them to count.

The pivots of :math:`T - xI = LDL^\top`,

.. math::
    q_1 = a_1 - x, \qquad q_i = (a_i - x) - b_{i-1}^2/q_{i-1},

have as many negative signs as T has eigenvalues below x (Sylvester). So a histogram costs :math:`O(N)` a bin (Albrecht, Chan
and Edelman, *Sturm sequences and random eigenvalue distributions*, Found. Comput. Math. 9, 2009) and one eigenvalue 64
counts. A pivot of exactly 0 is replaced by a tiny positive number, which makes the count that of eigenvalues strictly below
x; in floating point the count is that of a matrix whose entries are off by a few roundings and does not decrease with x
(Demmel, Dhillon and Ren, ETNA 3, 1995).

Singular values of a bidiagonal B go through the tridiagonal matrix of Golub and Kahan, of order 2N with a zero diagonal and
the entries of B alternating beside it, whose eigenvalues are :math:`\pm\sigma_i`; small ones come out to full *relative* accuracy
(Demmel and Kahan, SIAM J. Sci. Stat. Comput. 11, 1990).

Points, not rows, lie along the vector axis: a loop over rows carries one pivot for each pair of a point and a matrix.
Everything works on batches, under `jit` and `vmap`, and in float64.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from rmtjax._checks import is_traced, whole
from rmtjax._errors import InputError, shown
from rmtjax._precision import float64
from rmtjax.linalg.sturm._counting import (
    SMALL,
    TINY,
    all_batched,
    checked,
    count_of_batches,
    counted,
    largest_entry,
    of_batch,
    prepare,
)

__all__ = [
    "checked_edges",
    "checked_points",
    "count_below",
    "eigenvalues",
    "eigenvalues_of_batches",
    "histogram",
    "largest",
    "positions",
    "width_of",
]

_SIGN = np.int64(2**63 - 1)


def checked_points(points: Array) -> None:
    """Raise `InputError` if a point is NaN."""
    if not is_traced(points) and np.any(np.isnan(points)):
        raise InputError("points has an entry nan: all must be numbers, finite or infinite")


@jax.jit
def _histogram(diagonal: Array, off_diagonal: Array, edges: Array) -> Array:
    return jnp.diff(count_of_batches(diagonal, off_diagonal, edges))


@float64
def count_below(
    diagonal: Float[Array, "... N"], off_diagonal: Float[Array, "... M"], points: Float[Array, "..."]
) -> Int[Array, "..."]:
    r"""Return the number of eigenvalues of a symmetric tridiagonal matrix strictly below each point.

    It costs one division for each row and point: about 0.7 ns on one core where there are a hundred points or a hundred
    matrices. It does not decrease with the point, and its derivative is 0.

    Args:
        diagonal: shape (..., N).
        off_diagonal: shape (..., N − 1).
        points: shape (..., P), or one number. Leading axes of the three broadcast, so a batch of matrices may share its
            points or have some for each. ±∞ are allowed.

    Returns:
        Counts in 0…N of shape (..., P), without the last axis where `points` is one number.

    Raises:
        InputError: for shapes that do not fit, entries that are not finite or points that are NaN.

    Examples:
        >>> int(count_below([2.0, 2.0, 2.0], [1.0, 1.0], 2.5))  # of 2 − √2, 2 and 2 + √2
        2
    """
    checked(diagonal, off_diagonal)
    checked_points(points)
    return count_of_batches(diagonal, off_diagonal, points)


def checked_edges(edges: Array) -> None:
    """Raise `InputError` unless there are two edges or more that do not decrease."""
    if edges.ndim == 0 or edges.shape[-1] < 2:
        raise InputError(f"edges has shape {edges.shape}: must be (..., bins + 1) with at least one bin")
    if not is_traced(edges) and not np.all(np.diff(edges) >= 0):
        raise InputError(f"edges = {shown(np.asarray(edges))}: must not decrease")


@float64
def histogram(
    diagonal: Float[Array, "... N"], off_diagonal: Float[Array, "... M"], edges: Float[Array, "... edges"]
) -> Int[Array, "..."]:
    r"""Return the number of eigenvalues of a symmetric tridiagonal matrix in each bin :math:`[e_k, e_{k+1})`.

    Source: Albrecht, Chan and Edelman (2009), the difference of two Sturm counts.

    Args:
        diagonal: shape (..., N).
        off_diagonal: shape (..., N − 1).
        edges: shape (..., bins + 1), not decreasing; ±∞ are allowed, so that all N eigenvalues can be in some bin.

    Raises:
        InputError: as `count_below`, and for edges that decrease or are fewer than two.
    """
    checked(diagonal, off_diagonal)
    checked_edges(edges)
    return _histogram(diagonal, off_diagonal, edges)


def _ordered(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Return integers in the order of the floats: neighbours differ by one."""
    bits = lax.bitcast_convert_type(x, jnp.int64)
    return bits ^ ((bits >> 63) & _SIGN)


def _unordered(key: Int[Array, "..."]) -> Float[Array, "..."]:
    return lax.bitcast_convert_type(key ^ ((key >> 63) & _SIGN), jnp.float64)


def _middle(low, high):
    """Return the midpoint of two integers, rounded down, without overflow."""
    return (low & high) + ((low ^ high) >> 1)


@custom_vmap
def _bisect(
    a: Float[Array, "B N"], b: Float[Array, "B N-1"], index: Int[Array, "B K"], tolerance: Float[Array, "B 1"]
) -> Float[Array, "B K"]:
    """Return the least floats whose neighbours above have more than `index` eigenvalues below them.

    Halving the *list of floats* rather than an interval ends after 64 counts with two neighbours, wherever the eigenvalue.
    """
    matrices = prepare(a, b)
    reach = jnp.clip(3 * largest_entry(a, b), TINY, jnp.finfo(a.dtype).max)  # Gershgorin, generously
    high = jnp.broadcast_to(_ordered(reach)[:, None], index.shape)
    low = -1 - high

    def unfinished(state):
        low, high = state
        return jnp.any((high - low != 1) & (_unordered(high) - _unordered(low) > tolerance))

    def halve(state):
        low, high = state
        middle = _middle(low, high)
        if index.size > 1:
            above = counted(matrices, _unordered(middle)) <= index
            return jnp.where(above, middle, low), jnp.where(above, high, middle)
        # For a single eigenvalue the vector units are idle: three points cost as much as one.
        quarters = jnp.concatenate([_middle(low, middle), middle, _middle(middle, high)], 1)
        part = jnp.sum(counted(matrices, _unordered(quarters)) <= index)
        ends = jnp.concatenate([low, quarters, high], 1)[0]
        return ends[part][None, None], ends[part + 1][None, None]

    low, _ = lax.while_loop(unfinished, halve, (low, high))
    values = _unordered(low)
    return jnp.where(jnp.abs(values) * matrices.scale < 2 * SMALL, 0.0, values)


@_bisect.def_vmap
def _bisect_of_batches(size, batched, *arguments):
    return of_batch(_bisect, *all_batched(size, batched, *arguments)), True


def _vectors(a: Array, b: Array, values: Array) -> Array:
    """Return unit eigenvectors (B, K, N) by inverse iteration."""
    n = a.shape[1]
    if n == 1:
        return jnp.ones((*values.shape, 1))
    size = largest_entry(a, b)[:, None]
    shift = (values + 4 * jnp.finfo(a.dtype).eps * jnp.where(size > 0, size, 1.0))[..., None]
    shape = (*values.shape, n)
    beside = lambda pad: jnp.broadcast_to(jnp.pad(b, ((0, 0), pad))[:, None], shape)  # noqa: E731
    matrix = beside((1, 0)), a[:, None] - shift, beside((0, 1))
    # A start with no orthogonal eigenvector of interest: irrational rotations, without symmetry.
    x = jnp.broadcast_to(1.5 + jnp.sin(jnp.arange(n) ** 2 * 0.7390851332151607), shape)
    for _ in range(3):
        x = lax.linalg.tridiagonal_solve(*matrix, x[..., None])[..., 0]
        x = x / jnp.max(jnp.abs(x), -1, keepdims=True)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@jax.custom_jvp
def _selected(a, b, index, tolerance):
    return _bisect(a, b, index, tolerance)


@_selected.defjvp
def _selected_jvp(primals, tangents):
    a, b, index, tolerance = primals
    values = _selected(a, b, index, tolerance)
    v = _vectors(a, b, values)
    along = jnp.sum(v * v * tangents[0][:, None], -1)
    beside = jnp.sum(v[..., 1:] * v[..., :-1] * tangents[1][:, None], -1)
    return values, along + 2 * beside


def positions(indices: Any, n: int) -> Array:
    """Return indices of eigenvalues as an array, by default all of them."""
    if indices is None:
        return jnp.arange(n)
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise InputError(f"indices has dtype {indices.dtype}: must be whole numbers")
    if not is_traced(indices) and indices.size and not (np.min(indices) >= -n and np.max(indices) < n):
        raise InputError(f"indices = {shown(np.asarray(indices))}: must be between {-n} and {n - 1} for {n} values")
    return indices


@jax.jit
def eigenvalues_of_batches(diagonal: Array, off_diagonal: Array, index: Array, tolerance: Array) -> Array:
    """Return chosen eigenvalues of a batch, checked already; see `eigenvalues`."""
    index = jnp.where(index < 0, index + diagonal.shape[-1], index)
    result = of_batch(_selected, diagonal, off_diagonal, jnp.atleast_1d(index), tolerance[None])
    return result if index.ndim else result[..., 0]


def width_of(tolerance: ArrayLike) -> Array:
    """Return a tolerance as a float64 scalar."""
    if not is_traced(tolerance) and not (jnp.ndim(tolerance) == 0 and tolerance >= 0):
        raise InputError(f"tolerance = {shown(np.asarray(tolerance))}: must be one number ≥ 0")
    return jnp.asarray(tolerance, jnp.float64)


@float64(keep=("indices",))
def eigenvalues(
    diagonal: Float[Array, "... N"],
    off_diagonal: Float[Array, "... M"],
    indices: Shaped[ArrayLike, "..."] | None = None,
    tolerance: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "..."]:
    r"""Return chosen eigenvalues of a symmetric tridiagonal matrix by bisection on the count.

    64 counts of all of them at once, each as accurate as the count: to a few roundings of the largest entry. Differentiable
    where the eigenvalue is simple, :math:`\mathrm d\lambda = v^\top\mathrm dT\,v`, v by inverse iteration.

    Args:
        diagonal: shape (..., N).
        off_diagonal: shape (..., N − 1).
        indices: the chosen ones, in ascending order from 0, or from the top with −1, −2, …; one whole number or an array (..., K)
            whose leading axes broadcast with the matrices'. All if not given.
        tolerance: an interval this wide is not halved again and its lower end is the answer; 0 for full precision.

    Returns:
        Eigenvalues in the order of `indices`, shape (..., K), without the last axis where `indices` is one number.

    Raises:
        InputError: as `count_below`, and for an index that does not exist.
    """
    checked(diagonal, off_diagonal)
    return eigenvalues_of_batches(diagonal, off_diagonal, positions(indices, diagonal.shape[-1]), width_of(tolerance))


def _how_many(count: int, n: int) -> Array:
    return jnp.arange(n - 1, n - 1 - whole("count", count, 1, n), -1)


@float64(keep=("count",))
def largest(
    diagonal: Float[Array, "... N"],
    off_diagonal: Float[Array, "... M"],
    count: int = 1,
    tolerance: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "..."]:
    """Return the `count` largest eigenvalues of a symmetric tridiagonal matrix, in descending order; see `eigenvalues`.

    Args:
        diagonal: shape (..., N).
        off_diagonal: shape (..., N − 1).
        count: number of eigenvalues (static).
        tolerance: as in `eigenvalues`.

    Raises:
        InputError: as `count_below`, and for a count that is not in 1…N.
    """
    checked(diagonal, off_diagonal)
    return eigenvalues_of_batches(diagonal, off_diagonal, _how_many(count, diagonal.shape[-1]), width_of(tolerance))
