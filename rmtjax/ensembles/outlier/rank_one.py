r"""The outlier of a spiked Gaussian matrix, sampled exactly without forming the matrix.

Orthogonal invariance lets a Gaussian matrix be reduced, without touching the directions of its spike, to a tridiagonal
one with independent entries (Trotter 1984; Silverstein 1985; Dumitriu & Edelman 2002). For its rows k = 1, 2, … the
pivots of :math:`z - T`, eliminated from the last row up, obey

.. math::
    d_k(z) = z - a_k - b_k^2/d_{k+1}(z),

and z lies above the largest eigenvalue of the rows from 2 on if and only if :math:`d_2, d_3, \dots > 0`. There the
spike of strength θ in the first entry has its outlier where :math:`g(z) = \theta` with :math:`g = d_1`. `g` increases
and is concave, so a Taylor step at z can be trusted or caught; the squared overlap is :math:`1/g'`. The spiked
rectangular and the spiked covariance matrix lead to the same kind of equation, see `rectangular_outlier` and
`covariance_outlier`. The effect of row K + 1 and later ones is damped by :math:`\prod_{k\le K}(b_k/d_k)^2`: away from the edge
a few dozen rows are enough whatever the size of the matrix, at the edge of the order of :math:`N^{1/3}` (Edelman &
Persson 2005). `outlier_depth` gives the number. Rows are drawn anew in every pass, since drawing a row from its counter is
cheaper than remembering it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rmtjax._precision import float64
from rmtjax.ensembles._counter import batch_last, box_muller, words
from rmtjax.ensembles.chi import chi_batched
from rmtjax.ensembles.outlier._newton import largest_root
from rmtjax.ensembles.outlier._series import affine, multiply, reciprocal, square_root
from rmtjax.ensembles.outlier.recursion import (
    GROUP,
    TOLERANCE,
    Number,
    arccosh_squared,
    beyond,
    checked_pivot,
    from_last,
    outlier_depth,
)

__all__ = [
    "Outlier",
    "RectangularOutlier",
    "covariance_outlier",
    "covariance_rows",
    "covariance_start",
    "rectangular_growth",
    "rectangular_outlier",
    "rectangular_start",
    "wigner_outlier",
    "wigner_rows",
    "wigner_start",
]


class Outlier(NamedTuple):
    """The largest eigenvalue and its eigenvector's squared overlap with the spike."""

    outlier: Float[Array, "..."]
    overlap: Float[Array, "..."]


class RectangularOutlier(NamedTuple):
    """The largest singular value and its singular vectors' squared overlaps with the spike's."""

    outlier: Float[Array, "..."]
    overlap_left: Float[Array, "..."]
    overlap_right: Float[Array, "..."]


def wigner_rows(key_data, group, N, beta):
    """Return diagonal and squared off-diagonal entries (GROUP, batch) of a group of rows of the β-Hermite model, edge at 2."""
    k = (group * GROUP + jnp.arange(1, GROUP + 1))[:, None]
    scale = 1 / (beta * N)
    diagonal = box_muller(words(key_data, 2 * group, GROUP)) * jnp.sqrt(2 * scale)
    return diagonal, chi_batched(key_data, 2 * group + 1, jnp.where(k < N, beta * (N - k), 0.0)) ** 2 * scale


def wigner_series(rows, z, N, levels):
    """Return series of the first pivot at z, and whether z lies above the rows from 2 on."""

    def step(state, k, row):
        pivot, above = state
        diagonal, off2 = row
        return checked_pivot(affine(z - diagonal, reciprocal(pivot), off2), above, k, k <= N)

    return from_last(levels, rows, step, (beyond(z.shape), jnp.ones(z.shape, bool)))


def wigner_start(N, theta, beta):
    """Return a starting point, the largest distance of the outlier from it, and the square of the lowest damping rate."""
    edge = N ** (-2 / 3)
    strong = jnp.maximum(theta, 1 + N ** (-1 / 3))
    start = strong + 1 / strong
    spread = jnp.sqrt(2 / beta * (1 - 1 / strong**2) / N)
    # Tracy–Widom's left tail is exp(−β s³/24): beyond s³ = 600/β it is 1e-11.
    lowest = jnp.maximum(start - 8 * spread, 2 - jnp.cbrt(600 / beta) * edge)
    return start, spread + edge, 4 * arccosh_squared(lowest / 2)


def _wigner(key_data, N, theta, beta, tolerance):
    start, spread, rate2 = wigner_start(N, theta, beta)
    levels = outlier_depth(jnp.min(rate2), jnp.max(4 / N), jnp.max(N), jnp.min(tolerance))
    shape = jnp.broadcast_shapes(key_data.shape[-1:], theta.shape)
    rows = lambda group: wigner_rows(key_data, group, N, beta)  # noqa: E731

    def evaluate(z):
        g, above = wigner_series(rows, z, N, levels)
        return [(g[0] - theta, *g[1:])], above

    root, slope = largest_root(evaluate, start, spread, shape)
    return jnp.stack([root, 1 / slope])


_wigner_batched = batch_last(_wigner)


@float64(keep=("key",))
def wigner_outlier(
    key: Key[Array, ""],
    N: Float[Array, ""],
    theta: Float[Array, ""],
    beta: Number = 1.0,
    tolerance: Number = TOLERANCE,
) -> Outlier:
    r"""Draw the largest eigenvalue of :math:`W + \theta uu^\top` and :math:`|\langle u,\hat v\rangle|^2` of its eigenvector.

    W is the Gaussian β-ensemble with edge 2: :math:`\mathbb E|W_{ij}|^2 = 1/N` off the diagonal. Reduced around u it is
    tridiagonal with diagonal :math:`\mathcal N(0, 2/(\beta N))` and off-diagonal :math:`\chi_{\beta(N-k)}/\sqrt{\beta N}`.

    Args:
        key: a typed PRNG key.
        N: dimension, a whole number ≥ 1 as a float.
        theta: θ ≥ 0; 0 gives the largest eigenvalue of W itself.
        beta: 1 for the GOE, 2 for the GUE, 4 for the GSE; any β > 0.
        tolerance: bound on what the rows left out could do.

    Source:
        Dumitriu & Edelman, *Matrix models for beta ensembles*, J. Math. Phys. 43 (2002).
    """
    drawn = _wigner_batched(key, N, theta, beta, tolerance)
    return Outlier(drawn[0], drawn[1])


def rectangular_start(n, m, theta):
    """Return for singular values the quantities that `wigner_start` returns for eigenvalues."""
    c = n / m
    edge = 1 + jnp.sqrt(c)
    # The edge of the singular values fluctuates on this scale (Johnstone 2001, halved by the square root).
    scale = 0.5 * edge ** (1 / 3) * c ** (-1 / 6) * m ** (-2 / 3)
    critical = c**0.25
    strong = jnp.maximum(theta, critical * (1 + jnp.minimum(n, m) ** (-1 / 3)))
    start = jnp.sqrt((1 + strong**2) * (c + strong**2)) / strong
    spread = jnp.sqrt((1 - c / strong**4) * (strong**2 + (1 + c) / 2) / m) / start
    lowest = jnp.maximum(start - 8 * spread, edge - jnp.cbrt(600.0) * scale)
    cosh = (jnp.maximum(lowest, 0.0) ** 2 - 1 - c) / (2 * jnp.sqrt(c))
    return start, spread + scale, arccosh_squared(cosh)


def rectangular_growth(n, m):
    """Return κ of `outlier_depth` for a rectangular matrix."""
    return (1 + jnp.sqrt(n / m)) ** 2 / n


def rectangular_rows(key_data, group, n, m):
    """Return the tridiagonal form's diagonal, entries right of it and entries below it, (GROUP, batch), for a group of rows."""
    k = (group * GROUP + jnp.arange(1, GROUP + 1))[:, None]
    dof = jnp.concatenate([jnp.where(k <= n, m - k, 0.0), jnp.where(k <= m, n - k, 0.0)])
    diagonal = box_muller(words(key_data, 2 * group, GROUP)) / jnp.sqrt(m)
    right, below = jnp.split(chi_batched(key_data, 2 * group + 1, dof) / jnp.sqrt(m), 2)
    return jnp.where((k <= n) & (k <= m), diagonal, 0.0), right, below


def rectangular_series(rows, z, n, m, levels):
    r"""Return series of the entries (left, cross, right) of the first 2×2 pivot at z, and whether z lies above the later rows.

    A row k carries the pair (u_k, v_k) of the eigenvector of :math:`\begin{pmatrix}0&T\\T^\top&0\end{pmatrix}`.
    """

    def step(state, k, row):
        (left, cross, right), above = state
        diagonal, ahead, under = row
        inverse = reciprocal(tuple(p - q for p, q in zip(multiply(left, right), multiply(cross, cross), strict=True)))
        # u_k meets v_{k+1} through the entry to the right, v_k meets u_{k+1} through the one below.
        new_left = affine(z, multiply(left, inverse), ahead**2)
        new_right = affine(z, multiply(right, inverse), under**2)
        product = multiply(cross, inverse)
        new_cross = ((ahead * under) * product[0] - diagonal, *((ahead * under) * p for p in product[1:]))
        determinant = new_left[0] * new_right[0] - new_cross[0] ** 2
        positive = (new_left[0] > 0) & (determinant > 0)
        return (new_left, new_cross, new_right), above & (positive | (k == 1))

    nothing = tuple(jnp.zeros(z.shape) for _ in range(4))
    start = ((beyond(z.shape), nothing, beyond(z.shape)), jnp.ones(z.shape, bool))
    return from_last(levels, rows, step, start)


def _rectangular(key_data, n, m, theta, tolerance):
    start, spread, rate2 = rectangular_start(n, m, theta)
    levels = outlier_depth(
        jnp.min(rate2), jnp.max(rectangular_growth(n, m)), jnp.max(jnp.maximum(n, m)), jnp.min(tolerance)
    )
    shape = jnp.broadcast_shapes(key_data.shape[-1:], theta.shape)
    rows = lambda group: rectangular_rows(key_data, group, n, m)  # noqa: E731

    def evaluate(z):
        (left, cross, right), above = rectangular_series(rows, z, n, m, levels)
        # The determinant of the spiked pivot, ℓr − (x − θ)², vanishes where √(ℓr) is θ − x, or x − θ.
        ok = above & (left[0] > 0) & (right[0] > 0)
        product = multiply(left, right)
        root = square_root((jnp.where(ok, product[0], 1.0), *product[1:]))
        off = (cross[0] - theta, *cross[1:])
        return [tuple(p + sign * q for p, q in zip(root, off, strict=True)) for sign in (1, -1)], ok

    outlier, slope = largest_root(evaluate, start, spread, shape)
    (left, _, right), _ = rectangular_series(rows, outlier, n, m, levels)
    ratio = jnp.sqrt(right[0] / left[0])
    return jnp.stack([outlier, ratio / slope, 1 / (ratio * slope)])


_rectangular_batched = batch_last(_rectangular)


@float64(keep=("key",))
def rectangular_outlier(
    key: Key[Array, ""],
    n: Float[Array, ""],
    m: Float[Array, ""],
    theta: Float[Array, ""],
    tolerance: Number = TOLERANCE,
) -> RectangularOutlier:
    r"""Draw the largest singular value of :math:`W + \theta uv^\top` and its vectors' squared overlaps with u and v.

    W is n×m with i.i.d. entries :math:`\mathcal N(0, 1/m)`. Reduced around u and v it is tridiagonal and not symmetric:
    :math:`\mathcal N(0, 1/m)` on the diagonal, :math:`\chi_{m-k}/\sqrt m` to the right of it and :math:`\chi_{n-k}/\sqrt m`
    below. The pivots are 2×2 matrices; in the first one, with diagonal (ℓ, r) and off-diagonal x, the spike shows where
    :math:`\sqrt{\ell r} + x = \theta`, and the overlaps are :math:`\sqrt{r/\ell}/g'` and :math:`\sqrt{\ell/r}/g'`.

    Args:
        key: a typed PRNG key.
        n, m: rows and columns, whole numbers ≥ 1 as floats.
        theta: θ ≥ 0.
        tolerance: bound on what the rows left out could do.
    """
    drawn = _rectangular_batched(key, n, m, theta, tolerance)
    return RectangularOutlier(drawn[0], drawn[1], drawn[2])


def covariance_start(p, n, ell, beta):
    """Return the quantities of `wigner_start` for the largest eigenvalue of a sample covariance matrix."""
    c = p / n
    root = jnp.sqrt(c)
    scale = (1 + root) ** (4 / 3) * c ** (-1 / 6) * n ** (-2 / 3)  # Johnstone 2001
    strong = jnp.maximum(ell, 1 + root * (1 + jnp.minimum(n, p) ** (-1 / 3)))
    start = strong * (1 + c / (strong - 1))
    spread = strong * jnp.sqrt(2 / beta * (1 - c / (strong - 1) ** 2) / n)
    lowest = jnp.maximum(start - 8 * spread, (1 + root) ** 2 - jnp.cbrt(600 / beta) * scale)
    return start, spread + scale, arccosh_squared((lowest - 1 - c) / (2 * root))


def covariance_rows(key_data, group, p, n, beta):
    """Return the squared entries on the diagonal and below it, (GROUP, batch), of a group of rows of the bidiagonal form."""
    k = (group * GROUP + jnp.arange(1, GROUP + 1))[:, None]
    exists = (k <= p) & (k <= n)
    dof = jnp.concatenate([jnp.where(exists, beta * (n - k + 1), 0.0), jnp.where(exists, beta * (p - k), 0.0)])
    return tuple(jnp.split(chi_batched(key_data, group, dof) ** 2 / (beta * n), 2))


def covariance_series(rows, z, levels):
    """Return series of q at z, z − q the first pivot, and whether z lies above the rows from 2 on."""

    def step(state, _, row):
        q, above = state
        diagonal2, below = row
        pivot = (z - below - q[0], 1 - q[1], -q[2], -q[3])
        inverse = reciprocal(pivot)
        product = diagonal2 * below
        return (diagonal2 + product * inverse[0], *(product * v for v in inverse[1:])), above & (pivot[0] > 0)

    nothing = tuple(jnp.zeros(z.shape) for _ in range(4))
    return from_last(levels, rows, step, (nothing, z > 0))


def _covariance(key_data, p, n, ell, beta, tolerance):
    start, spread, rate2 = covariance_start(p, n, ell, beta)
    levels = outlier_depth(
        jnp.min(rate2), jnp.max(rectangular_growth(p, n)), jnp.max(jnp.minimum(p, n)), jnp.min(tolerance)
    )
    shape = jnp.broadcast_shapes(key_data.shape[-1:], ell.shape)
    rows = lambda group: covariance_rows(key_data, group, p, n, beta)  # noqa: E731

    def evaluate(z):
        q, above = covariance_series(rows, z, levels)
        one, nothing = jnp.ones(shape), jnp.zeros(shape)
        g = multiply((z, one, nothing, nothing), reciprocal(q))
        return [(g[0] - ell, *g[1:])], above

    outlier, slope = largest_root(evaluate, start, spread, shape)
    return jnp.stack([outlier, ell / (outlier * slope)])


_covariance_batched = batch_last(_covariance)


@float64(keep=("key",))
def covariance_outlier(
    key: Key[Array, ""],
    p: Float[Array, ""],
    n: Float[Array, ""],
    ell: Float[Array, ""],
    beta: Number = 1.0,
    tolerance: Number = TOLERANCE,
) -> Outlier:
    r"""Draw the largest eigenvalue of a spiked sample covariance matrix and its squared overlap with the spike.

    :math:`S = \frac1n\Sigma^{1/2}ZZ^\top\Sigma^{1/2}`, Z p×n standard Gaussian, :math:`\Sigma = I + (\ell-1)uu^\top`. Reduced
    around u, :math:`Z/\sqrt n` is lower-bidiagonal with :math:`x_k = \chi^2_{\beta(n-k+1)}/(\beta n)` and :math:`y_k =
    \chi^2_{\beta(p-k)}/(\beta n)` for the squares on and below the diagonal; then :math:`d_{k+1} = z - y_k - q_{k+1}`,
    :math:`q_k = x_k(1 + y_k/d_{k+1})`, the outlier is where :math:`g(z) = z/q_1 = \ell` and the overlap is
    :math:`\ell/(z\,g')`.

    Args:
        key: a typed PRNG key.
        p, n: dimension and number of samples, whole numbers ≥ 1 as floats.
        ell: population eigenvalue ℓ > 0 of the spike; the others are 1.
        beta: 1 for real data, 2 for complex; any β > 0.
        tolerance: bound on what the rows left out could do.

    Source:
        Dumitriu & Edelman, *Matrix models for beta ensembles*, J. Math. Phys. 43 (2002), the β-Laguerre ensemble.
    """
    drawn = _covariance_batched(key, p, n, ell, beta, tolerance)
    return Outlier(drawn[0], drawn[1])
