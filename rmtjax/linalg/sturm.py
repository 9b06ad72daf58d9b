r"""Eigenvalues of symmetric tridiagonal and singular values of bidiagonal matrices by counting: none is computed to count.

The pivots of :math:`T - xI = LDL^\top`,

.. math::
    q_1 = a_1 - x, \qquad q_i = (a_i - x) - b_{i-1}^2/q_{i-1},

have as many negative signs as T has eigenvalues below x (Sylvester). So a histogram costs :math:`O(N)` a bin (Albrecht, Chan
and Edelman, *Sturm sequences and random eigenvalue distributions*, Found. Comput. Math. 9, 2009) and one eigenvalue 64
counts. A pivot of exactly 0 is replaced by a tiny positive number, which makes the count that of eigenvalues strictly below
x; in floating point the count is that of a matrix whose entries are off by a few roundings and does not decrease with x
(Demmel, Dhillon and Ren, ETNA 3, 1995).

Singular values of a bidiagonal B go through the tridiagonal matrix of Golub and Kahan, of order 2N with a zero diagonal and
the entries of B in turn beside it, whose eigenvalues are :math:`\pm\sigma_i`; small ones come out to full *relative* accuracy
(Demmel and Kahan, SIAM J. Sci. Stat. Comput. 11, 1990).

Points, not rows, lie along the vector axis: a loop over rows carries one pivot for each pair of a point and a matrix.
Everything works on batches, under `jit` and `vmap`, and in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from rmtjax._checks import finite, is_traced, whole
from rmtjax._errors import InputError, shown
from rmtjax._precision import float64

__all__ = [
    "count_below",
    "eigenvalues",
    "histogram",
    "largest",
    "singular_count_below",
    "singular_histogram",
    "singular_values",
]

_ROWS = 4
"""Rows in one turn of the loop where the points are the vector axis: enough to hide the loop's own cost, few enough that
several vectors of points are in flight at once. Measured at 100 points: 1.3 ns an entry and point with one row a turn, 0.7
with four, 1.3 with eight. Where the batch of matrices is the vector axis rows are streamed from memory and one is best."""

_TINY, _SMALL = 2.0**-1000, 2.0**-900
"""The number that replaces a pivot of 0, and the size below which entries and points count as 0 if the largest is about 1."""

_SIGN = np.int64(2**63 - 1)


def _checked(diagonal: Array, off_diagonal: Array) -> None:
    n = diagonal.shape[-1] if diagonal.ndim else 0
    if n < 1:
        raise InputError(f"diagonal has shape {diagonal.shape}: must be (..., N) with N at least 1")
    if off_diagonal.ndim == 0 or off_diagonal.shape[-1] != n - 1:
        raise InputError(
            f"off_diagonal has shape {off_diagonal.shape}: must be (..., {n - 1}), one less than diagonal's"
        )
    finite("diagonal", diagonal)
    finite("off_diagonal", off_diagonal)


class _Prepared(NamedTuple):
    """Matrices of a batch, scaled and laid out for the loop over rows."""

    diagonal: Float[Array, "rows B"]
    squares: Float[Array, "rows B"]
    scale: Float[Array, "B 1"]


def _largest_entry(a: Array, b: Array) -> Float[Array, "B"]:
    return jnp.maximum(jnp.max(jnp.abs(a), 1), jnp.max(jnp.abs(b), 1, initial=0.0))


def _prepare(a: Float[Array, "B N"], b: Float[Array, "B N-1"]) -> _Prepared:
    # A power of two brings the largest entry to [1/2, 1), or to 4 where it is nearly infinite: no eigenvalue beyond ±12.
    exponent = lax.bitcast_convert_type(_largest_entry(a, b), jnp.int64) >> 52
    scale = lax.bitcast_convert_type((2045 - jnp.clip(exponent, 22, 2044)) << 52, jnp.float64)[:, None]
    a, b = a * scale, b * scale
    # Rows of pivot 32 − x in front fill the last turn up.
    extra = -a.shape[1] % _ROWS
    rows = jnp.pad(_flushed(a), ((0, 0), (extra, 0)), constant_values=32.0)
    squares = jnp.pad(b * b, ((0, 0), (extra + 1, 0)))
    return _Prepared(rows.T, squares.T, scale)


def _flushed(x: Array) -> Array:
    # Differences of what is left are zero or far above the smallest number, so no pivot is −0 or flushed to it.
    return jnp.where(jnp.abs(x) < _SMALL, 0.0, x)


def _counted(matrices: _Prepared, points: Float[Array, "B P"]) -> Int[Array, "B P"]:
    """Return the number of negative pivots."""
    x = _flushed(jnp.clip(points * matrices.scale, -16, 16))

    def step(state, row):
        q, count = state
        a, b2 = row
        q = (a - x) - b2 / q
        q = jnp.where(q == 0, _TINY, q)
        return (q, count + (q < 0)), None

    def steps(state, rows):
        for row in zip(*(v[..., None] for v in rows), strict=True):
            state, _ = step(state, row)
        return state, None

    along_batch = x.shape[0] > x.shape[1]  # the longer axis is the vector axis
    if along_batch:
        x, turn, rows = x.T, step, matrices[:2]
    else:
        turn, rows = steps, tuple(v.reshape(-1, _ROWS, v.shape[1]) for v in matrices[:2])
    start = jnp.ones_like(x), jnp.zeros(x.shape, jnp.int64)
    count = lax.scan(turn, start, rows)[0][1].astype(jnp.int32)
    return count.T if along_batch else count


@custom_vmap
def _count(a: Float[Array, "B N"], b: Float[Array, "B N-1"], points: Float[Array, "B P"]) -> Int[Array, "B P"]:
    """Return counts of a batch of matrices, each at points of its own."""
    return _counted(_prepare(a, b), points)


@_count.def_vmap
def _count_of_batches(size, batched, a, b, points):
    if not (batched[0] or batched[1]):  # points alone: more of them for the same matrices
        together = jnp.moveaxis(points, 0, 1)
        return jnp.moveaxis(_count(a, b, together.reshape(len(together), -1)).reshape(together.shape), 1, 0), True
    return _of_batch(_count, *_all_batched(size, batched, a, b, points)), True


def _all_batched(size, batched, *arrays):
    return (
        v if is_batched else jnp.broadcast_to(v, (size, *v.shape))
        for v, is_batched in zip(arrays, batched, strict=True)
    )


def _of_batch(function, a: Array, b: Array, *more: Array) -> Array:
    """Apply ``function(a (B, N), b (B, N-1), ...)`` to arrays whose leading axes broadcast."""
    batch = jnp.broadcast_shapes(*(v.shape[:-1] for v in (a, b, *more)))
    flat = (jnp.broadcast_to(v, (*batch, v.shape[-1])).reshape(int(np.prod(batch)), v.shape[-1]) for v in (a, b, *more))
    result = function(*flat)
    return result.reshape(*batch, result.shape[-1])


def _checked_points(points: Array) -> None:
    if not is_traced(points) and np.any(np.isnan(points)):
        raise InputError("points has an entry nan: all must be numbers, infinite ones included")


@jax.jit
def _count_below(diagonal: Array, off_diagonal: Array, points: Array) -> Array:
    arrays = map(lax.stop_gradient, (diagonal, off_diagonal, jnp.atleast_1d(points)))
    result = _of_batch(_count, *arrays)
    return result if points.ndim else result[..., 0]


@jax.jit
def _histogram(diagonal: Array, off_diagonal: Array, edges: Array) -> Array:
    return jnp.diff(_count_below(diagonal, off_diagonal, edges))


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
    _checked(diagonal, off_diagonal)
    _checked_points(points)
    return _count_below(diagonal, off_diagonal, points)


def _checked_edges(edges: Array) -> None:
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
    _checked(diagonal, off_diagonal)
    _checked_edges(edges)
    return _histogram(diagonal, off_diagonal, edges)


def _ordered(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Return whole numbers in the order of the floats: neighbours differ by one."""
    bits = lax.bitcast_convert_type(x, jnp.int64)
    return bits ^ ((bits >> 63) & _SIGN)


def _unordered(key: Int[Array, "..."]) -> Float[Array, "..."]:
    return lax.bitcast_convert_type(key ^ ((key >> 63) & _SIGN), jnp.float64)


def _middle(low, high):
    """Return halfway between two whole numbers, rounded down, without overflow."""
    return (low & high) + ((low ^ high) >> 1)


@custom_vmap
def _bisect(
    a: Float[Array, "B N"], b: Float[Array, "B N-1"], index: Int[Array, "B K"], tolerance: Float[Array, "B 1"]
) -> Float[Array, "B K"]:
    """Return the least floats whose neighbours above have more than `index` eigenvalues below them.

    Halving the *list of floats* rather than an interval ends after 64 counts with two neighbours, wherever the eigenvalue.
    """
    matrices = _prepare(a, b)
    reach = jnp.clip(3 * _largest_entry(a, b), _TINY, jnp.finfo(a.dtype).max)  # Gershgorin, generously
    high = jnp.broadcast_to(_ordered(reach)[:, None], index.shape)
    low = -1 - high

    def unfinished(state):
        low, high = state
        return jnp.any((high - low != 1) & (_unordered(high) - _unordered(low) > tolerance))

    def halve(state):
        low, high = state
        middle = _middle(low, high)
        if index.size > 1:
            above = _counted(matrices, _unordered(middle)) <= index
            return jnp.where(above, middle, low), jnp.where(above, high, middle)
        # One eigenvalue alone leaves the vector units idle: three points cost as much as one.
        quarters = jnp.concatenate([_middle(low, middle), middle, _middle(middle, high)], 1)
        part = jnp.sum(_counted(matrices, _unordered(quarters)) <= index)
        ends = jnp.concatenate([low, quarters, high], 1)[0]
        return ends[part][None, None], ends[part + 1][None, None]

    low, _ = lax.while_loop(unfinished, halve, (low, high))
    values = _unordered(low)
    return jnp.where(jnp.abs(values) * matrices.scale < 2 * _SMALL, 0.0, values)


@_bisect.def_vmap
def _bisect_of_batches(size, batched, *arguments):
    return _of_batch(_bisect, *_all_batched(size, batched, *arguments)), True


def _vectors(a: Array, b: Array, values: Array) -> Array:
    """Return unit eigenvectors (B, K, N) by inverse iteration."""
    n = a.shape[1]
    if n == 1:
        return jnp.ones((*values.shape, 1))
    size = _largest_entry(a, b)[:, None]
    shift = (values + 4 * jnp.finfo(a.dtype).eps * jnp.where(size > 0, size, 1.0))[..., None]
    shape = (*values.shape, n)
    beside = lambda pad: jnp.broadcast_to(jnp.pad(b, ((0, 0), pad))[:, None], shape)  # noqa: E731
    matrix = beside((1, 0)), a[:, None] - shift, beside((0, 1))
    # A start that no eigenvector of interest is orthogonal to: irrational rotations, without symmetry.
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


def _positions(indices: Any, n: int) -> Array:
    if indices is None:
        return jnp.arange(n)
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise InputError(f"indices has dtype {indices.dtype}: must be whole numbers")
    if not is_traced(indices) and indices.size and not (np.min(indices) >= -n and np.max(indices) < n):
        raise InputError(f"indices = {shown(np.asarray(indices))}: must be between {-n} and {n - 1} for {n} of them")
    return indices


@jax.jit
def _eigenvalues(diagonal: Array, off_diagonal: Array, index: Array, tolerance: Array) -> Array:
    index = jnp.where(index < 0, index + diagonal.shape[-1], index)
    result = _of_batch(_selected, diagonal, off_diagonal, jnp.atleast_1d(index), tolerance[None])
    return result if index.ndim else result[..., 0]


def _width(tolerance: ArrayLike) -> Array:
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
        indices: which, in ascending order from 0, or from the top with −1, −2, …; one whole number or an array (..., K) whose
            leading axes broadcast with the matrices'. All if not given.
        tolerance: an interval this wide is not halved again and its lower end is the answer; 0 for full precision.

    Returns:
        Eigenvalues in the order of `indices`, shape (..., K), without the last axis where `indices` is one number.

    Raises:
        InputError: as `count_below`, and for an index that does not exist.
    """
    _checked(diagonal, off_diagonal)
    return _eigenvalues(diagonal, off_diagonal, _positions(indices, diagonal.shape[-1]), _width(tolerance))


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
        count: how many (static).
        tolerance: as in `eigenvalues`.

    Raises:
        InputError: as `count_below`, and for a count that is not in 1…N.
    """
    _checked(diagonal, off_diagonal)
    return _eigenvalues(diagonal, off_diagonal, _how_many(count, diagonal.shape[-1]), _width(tolerance))


def _golub_kahan(diagonal: Array, off_diagonal: Array) -> tuple[Array, Array]:
    """Return the tridiagonal matrix of order 2N with eigenvalues ±σ: diagonal 0, beside it the entries of B in turn."""
    batch = jnp.broadcast_shapes(diagonal.shape[:-1], off_diagonal.shape[:-1])
    n = diagonal.shape[-1]
    a = jnp.broadcast_to(diagonal, (*batch, n))
    b = jnp.broadcast_to(jnp.pad(off_diagonal, [(0, 0)] * (off_diagonal.ndim - 1) + [(0, 1)]), (*batch, n))
    # The barrier keeps the compiler from folding millions of zeros by hand.
    return lax.optimization_barrier(jnp.zeros((*batch, 2 * n))), jnp.stack([a, b], -1).reshape(*batch, 2 * n)[..., :-1]


@jax.jit
def _singular_count(diagonal: Array, off_diagonal: Array, points: Array) -> Array:
    counts = _count_below(*_golub_kahan(diagonal, off_diagonal), points)
    return jnp.where(points > 0, counts - diagonal.shape[-1], 0)


@jax.jit
def _singular_histogram(diagonal: Array, off_diagonal: Array, edges: Array) -> Array:
    return jnp.diff(_singular_count(diagonal, off_diagonal, edges))


@jax.jit
def _singular_values(diagonal: Array, off_diagonal: Array, index: Array, tolerance: Array) -> Array:
    n = diagonal.shape[-1]
    values = _eigenvalues(
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
    _checked(diagonal, off_diagonal)
    _checked_points(points)
    return _singular_count(diagonal, off_diagonal, points)


@float64
def singular_histogram(
    diagonal: Float[Array, "... N"], off_diagonal: Float[Array, "... M"], edges: Float[Array, "... edges"]
) -> Int[Array, "..."]:
    """Return how many singular values of a bidiagonal matrix lie in each bin, closed on the left; see `histogram`.

    Args:
        diagonal: shape (..., N).
        off_diagonal: above or below the diagonal, shape (..., N − 1).
        edges: shape (..., bins + 1), not decreasing.

    Raises:
        InputError: as `histogram`.
    """
    _checked(diagonal, off_diagonal)
    _checked_edges(edges)
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
        indices: which, in ascending order from 0, or from the top with −1, −2, …; all if not given.
        tolerance: as in `eigenvalues`.

    Raises:
        InputError: as `eigenvalues`.
    """
    _checked(diagonal, off_diagonal)
    return _singular_values(diagonal, off_diagonal, _positions(indices, diagonal.shape[-1]), _width(tolerance))
