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
`covariance_outlier`. What row K + 1 and later ones say is damped by :math:`\prod_{k\le K}(b_k/d_k)^2`: away from the edge
a few dozen rows are enough whatever the size of the matrix, at the edge of the order of :math:`N^{1/3}` (Edelman &
Persson 2005). How many, is `outlier_depth`. Rows are drawn anew in every pass, since drawing a row from its counter is
cheaper than remembering it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rmtjax._precision import float64
from rmtjax.ensembles._rng.chi import _chi
from rmtjax.ensembles._rng.counter import batch_last, box_muller, words

__all__ = [
    "Outlier",
    "RectangularOutlier",
    "covariance_outlier",
    "outlier_depth",
    "rectangular_outlier",
    "wigner_edge",
    "wigner_outlier",
]

TOLERANCE = 1e-12
"""Default bound on what the rows that are left out could do to the outlier, relative to the scale of the spectrum."""

_GROUP = 4
"""Rows drawn at once: Box–Muller gives pairs, and the vector units want more than one row."""

_PASSES = 200
"""A pass at least halves the bracket, and a Taylor step does far better: never reached."""

_Number = Float[Array, ""] | float

Series = tuple[Array, Array, Array, Array]
"""Taylor coefficients of order 0 to 3 in z, each (batch,)."""


class Outlier(NamedTuple):
    """The largest eigenvalue and its eigenvector's squared overlap with the spike."""

    outlier: Float[Array, "..."]
    overlap: Float[Array, "..."]


class RectangularOutlier(NamedTuple):
    """The largest singular value and its singular vectors' squared overlaps with the spike's."""

    outlier: Float[Array, "..."]
    overlap_left: Float[Array, "..."]
    overlap_right: Float[Array, "..."]


def _multiply(p: Series, q: Series) -> Series:
    return tuple(sum(p[i] * q[k - i] for i in range(k + 1)) for k in range(4))


def _reciprocal(p: Series) -> Series:
    r = [1 / p[0]]
    for k in range(1, 4):
        r.append(-r[0] * sum(p[i] * r[k - i] for i in range(1, k + 1)))
    return tuple(r)


def _square_root(p: Series) -> Series:
    r = [jnp.sqrt(p[0])]
    half = 0.5 / r[0]
    for k in range(1, 4):
        r.append(half * (p[k] - sum(r[i] * r[k - i] for i in range(1, k))))
    return tuple(r)


def _affine(constant: Array, p: Series, factor: Array, sign: float = -1.0) -> Series:
    """Constant + z + sign·factor·p, for z the variable of the series itself."""
    scaled = sign * factor
    return constant + scaled * p[0], 1 + scaled * p[1], scaled * p[2], scaled * p[3]


@float64(keep=())
def outlier_depth(
    rate2: Float[Array, ""], growth: Float[Array, ""], rows: Float[Array, ""], tolerance: Float[Array, ""]
) -> Int[Array, ""]:
    r"""Rows after which the rest moves the first pivot by less than `tolerance`.

    In the limit a row k damps what lies beyond it by :math:`e^{-r_k}`, :math:`r_k^2 \ge r^2 + \kappa k` (docs/derivations.md),
    and :math:`\sum_{k<K} r_k \ge L = \log(1/\text{tolerance})` is solved for K with the sum bounded by its integral. Where
    :math:`r^2 < 0` the first rows do not damp at all, and K begins where they do.

    Args:
        rate2: :math:`r^2`, at the lowest place where the outlier may be.
        growth: κ, of the order of one over the matrix's size.
        rows: how many there are.
        tolerance: in (0, 1).
    """
    need = 1.5 * growth * jnp.log(1 / tolerance)
    r2 = jnp.maximum(rate2, 0.0)
    # (r³ + need)^{2/3} − r² without cancellation where need is small against r³.
    r3 = jnp.where(r2 > 0, r2, 1.0) ** 1.5
    far = jnp.where(r2 > 0, r2, 0.0) * jnp.expm1(jnp.log1p(need / r3) * (2 / 3))
    span = jnp.where(r2 > 0, far, need ** (2 / 3)) - jnp.minimum(rate2, 0.0)
    return jnp.minimum(jnp.ceil(span / growth) + 1, rows).astype(jnp.int32)


def _arccosh2(x):
    """(arccosh x)², continued to −(arccos x)² below 1."""
    y = jnp.maximum(x, -1.0) - 1
    near = jnp.abs(y) < 1e-4
    above = jnp.log1p(jnp.maximum(y, 0.0) + jnp.sqrt(jnp.maximum(y * (y + 2), 0.0))) ** 2
    below = -(jnp.arccos(jnp.clip(x, -1.0, 1.0)) ** 2)
    return jnp.where(near, 2 * y - y * y / 3, jnp.where(y > 0, above, below))


def _step(f: Series) -> Array:
    r"""The step to the root of the [2/1] Padé approximant of f, the one to the right of its pole.

    :math:`g(z) = z - a - \sum_i r_i/(z - p_i)`, so with one pole that matters the approximant is g itself. Right of all
    poles :math:`f_1 > 0, f_2 \le 0, f_3 \ge 0` and :math:`f_1f_3 \ge f_2^2`.
    """
    newton = -f[0] / f[1]
    curved = f[2] * jnp.abs(newton) < -1e-10 * f[1]  # else f₃/f₂ may be rounding, and Newton's step is enough
    b = jnp.where(curved, -f[3] / jnp.where(curved, f[2], 1.0), 0.0)
    a1, a2 = f[1] + b * f[0], f[2] + b * f[1]
    root = jnp.sqrt(jnp.maximum(a1 * a1 - 4 * f[0] * a2, 0.0))
    pade = jnp.where(a1 > 0, -2 * f[0] / (a1 + root), (root - a1) / (2 * jnp.where(a2 > 0, a2, 1.0)))
    return jnp.where(curved, pade, newton - f[2] / f[1] * newton**2)


def _at(f: Series, x: Array) -> Array:
    return f[0] + x * (f[1] + x * (f[2] + x * f[3]))


def _solve(
    evaluate: Callable[[Array], tuple[Sequence[Series], Array]],
    start: Array,
    spread: Array,
    shape: tuple[int, ...],
    order: int = 3,
) -> tuple[Array, Array]:
    """The largest root of some increasing concave functions, and the slope there of the one whose root it is.

    ``evaluate(z)`` gives their series at z, to the given order, and whether z lies above their last pole; below it they
    may be anything.
    """
    start, spread = jnp.broadcast_to(start, shape), jnp.broadcast_to(spread, shape)

    def one_pass(state):
        count, z, low, high, done, root, slope = state
        all_f, above_pole = evaluate(z)
        f = all_f[0]
        for other in all_f[1:]:
            f = tuple(jnp.where(other[0] < all_f[0][0], b, a) for a, b in zip(f, other, strict=True))
        short = ~(above_pole & (f[0] >= 0))
        low, high = jnp.where(short, jnp.maximum(low, z), low), jnp.where(short, high, jnp.minimum(high, z))
        move = _step(f)
        # The approximant's error is of one order more than the series in move/(distance to the poles).
        ratio = jnp.abs(move) * (jnp.abs(f[2] / f[1]) + jnp.sqrt(jnp.abs(f[3] / f[1])))
        resolution = 2e-16 * jnp.maximum(jnp.abs(z), 1e-3)
        found = above_pole & (jnp.abs(move) * ratio**order <= resolution) & (ratio < 1e-3)
        for other in all_f:
            found &= _at(other, move) >= -4 * resolution * f[1]
        tight = high - low <= 4 * resolution
        now = (found | (tight & (z == high))) & ~done
        root = jnp.where(now, jnp.where(found, z + move, z), root)
        slope = jnp.where(now, jnp.where(found, f[1] + move * (2 * f[2] + 3 * f[3] * move), f[1]), slope)
        proposed = z + move
        inside = above_pole & (proposed > low) & (proposed < high) & (count % 8 != 7)
        reach = spread * 2.0**count
        middle = jnp.where(jnp.isinf(high), low + reach, jnp.where(jnp.isinf(low), high - reach, 0.5 * (low + high)))
        following = jnp.where(tight, high, jnp.where(inside, proposed, middle))
        return count + 1, following, low, high, done | now, root, slope

    infinite = jnp.full(shape, jnp.inf)
    state = (0, start, -infinite, infinite, jnp.zeros(shape, bool), start, jnp.ones(shape))
    state = jax.lax.while_loop(lambda s: (s[0] < _PASSES) & ~jnp.all(s[4]), one_pass, state)
    return jnp.where(state[4], state[5], jnp.nan), state[6]


def _from_last(levels: Array | int, rows: Callable[[Array], tuple], step: Callable, start):
    """Fold `step` over the rows from the last to the first: ``step(state, row number from 1, row)``."""
    groups = (levels + _GROUP - 1) // _GROUP

    def group(j, state):
        drawn = rows(groups - 1 - j)
        for i in reversed(range(_GROUP)):
            state = step(state, (groups - 1 - j) * _GROUP + i + 1, tuple(v[i] for v in drawn))
        return state

    return jax.lax.fori_loop(0, groups, group, start)


def _pivot(new: Series, above: Array, k: Array, exists: Array) -> tuple[Series, Array]:
    """A pivot, 1 where its row does not exist; and whether all of the rows from 2 on are positive so far."""
    safe = (jnp.where(exists, new[0], 1.0), *(jnp.where(exists, v, 0.0) for v in new[1:]))
    return safe, above & ((safe[0] > 0) | (k == 1))


def _beyond(shape) -> Series:
    """The pivot of a row that is left out: infinite, as good as."""
    return (jnp.full(shape, 1e100), *(jnp.zeros(shape) for _ in range(3)))


def wigner_rows(key_data, group, N, beta):
    """Diagonal and squared off-diagonal entries (_GROUP, batch) of a group of rows of the β-Hermite model, edge at 2."""
    k = (group * _GROUP + jnp.arange(1, _GROUP + 1))[:, None]
    scale = 1 / (beta * N)
    diagonal = box_muller(words(key_data, 2 * group, _GROUP)) * jnp.sqrt(2 * scale)
    return diagonal, _chi(key_data, 2 * group + 1, jnp.where(k < N, beta * (N - k), 0.0)) ** 2 * scale


def wigner_series(rows, z, N, levels):
    """Series of the first pivot at z, and whether z lies above the rows from 2 on."""

    def step(state, k, row):
        pivot, above = state
        diagonal, off2 = row
        return _pivot(_affine(z - diagonal, _reciprocal(pivot), off2), above, k, k <= N)

    return _from_last(levels, rows, step, (_beyond(z.shape), jnp.ones(z.shape, bool)))


def wigner_start(N, theta, beta):
    """Where to look first, how far the outlier may be from there, and the square of the lowest damping rate."""
    edge = N ** (-2 / 3)
    strong = jnp.maximum(theta, 1 + N ** (-1 / 3))
    start = strong + 1 / strong
    spread = jnp.sqrt(2 / beta * (1 - 1 / strong**2) / N)
    # Tracy–Widom's left tail is exp(−β s³/24): beyond s³ = 600/β it is 1e-11.
    lowest = jnp.maximum(start - 8 * spread, 2 - jnp.cbrt(600 / beta) * edge)
    return start, spread + edge, 4 * _arccosh2(lowest / 2)


def _wigner(key_data, N, theta, beta, tolerance):
    start, spread, rate2 = wigner_start(N, theta, beta)
    levels = outlier_depth(jnp.min(rate2), jnp.max(4 / N), jnp.max(N), jnp.min(tolerance))
    shape = jnp.broadcast_shapes(key_data.shape[-1:], theta.shape)
    rows = lambda group: wigner_rows(key_data, group, N, beta)  # noqa: E731

    def evaluate(z):
        g, above = wigner_series(rows, z, N, levels)
        return [(g[0] - theta, *g[1:])], above

    root, slope = _solve(evaluate, start, spread, shape)
    return jnp.stack([root, 1 / slope])


_wigner_batched = batch_last(_wigner)


@float64(keep=("key",))
def wigner_outlier(
    key: Key[Array, ""],
    N: Float[Array, ""],
    theta: Float[Array, ""],
    beta: _Number = 1.0,
    tolerance: _Number = TOLERANCE,
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


def edge_levels(N: int, beta: float | int, tolerance: float) -> int:
    """Rows that `wigner_edge` needs, as a Python number."""
    with jax.ensure_compile_time_eval():
        _, _, rate2 = wigner_start(jnp.float64(N), jnp.float64(0), jnp.float64(beta))
        return int(outlier_depth(rate2, 4 / N, float(N), tolerance))


def _trace_series(rows, z, N, levels):
    r"""Series of :math:`h = 1/\sum_i(z - \lambda_i)^{-1}` at z, and whether z lies above its last pole.

    The sum, over the eigenvalues of the rows, is the logarithmic derivative of the product of all pivots.
    """

    def step(state, k, row):
        pivot, inverse, sums, negative = state
        diagonal, off2 = row
        exists = k <= N
        pivot = _affine(z - diagonal, inverse, off2)
        inverse = _reciprocal(pivot)
        slope = pivot[1], 2 * pivot[2], 3 * pivot[3]
        added = [sum(slope[i] * inverse[m - i] for i in range(m + 1)) for m in range(3)]
        sums = tuple(jnp.where(exists, t + v, t) for t, v in zip(sums, added, strict=True))
        inverse = tuple(jnp.where(exists, v, 0.0) for v in inverse)
        return pivot, inverse, sums, negative + (exists & (pivot[0] < 0))

    nothing = tuple(jnp.zeros(z.shape) for _ in range(4))
    start = (nothing, nothing, nothing[:3], jnp.zeros(z.shape, jnp.int32))
    _, _, sums, negative = _from_last(levels, rows, step, start)
    h = _reciprocal((*sums, nothing[0]))[:3]
    # Between its last pole and its root h is negative and one eigenvalue is above z. The third coefficient is that of a
    # function with one pole, which makes a step Halley's.
    return (*h, h[2] ** 2 / h[1]), (negative == 0) | ((negative == 1) & (sums[0] < 0))


@functools.cache
def _edge(levels: int) -> Callable:
    """The sampler for so many rows."""

    def sample(key_data, N, beta):
        groups = jnp.arange((levels + _GROUP - 1) // _GROUP)
        _, stored = jax.lax.scan(lambda _, group: (None, wigner_rows(key_data, group, N, beta)), None, groups)
        rows = lambda group: tuple(v[group] for v in stored)  # noqa: E731
        scale = N ** (-2 / 3)

        def evaluate(z):
            h, above = _trace_series(rows, z, N, levels)
            return [h], above

        return _solve(evaluate, 2 - 1.2 * scale, 1.3 * scale, key_data.shape[-1:], order=2)[0][None]

    return batch_last(sample)


@float64(keep=("key", "N", "beta", "tolerance"))
def wigner_edge(key: Key[Array, ""], N: int, beta: float | int = 1.0, tolerance: float = TOLERANCE) -> Float[Array, ""]:
    r"""Draw the largest eigenvalue of the Gaussian β-ensemble with edge 2, as `wigner_outlier` does for θ = 0.

    At the edge many passes over many rows are needed, about :math:`16N^{1/3}` for β = 1, so here they are drawn once and
    remembered. Their number shapes the program: N is static. Nor does the first pivot serve here, whose root and last pole
    all but coincide: the eigenvalue is found as the root of one over the trace of the resolvent.

    Args:
        key: a typed PRNG key.
        N: dimension, a whole number ≥ 1.
        beta: 1 for the GOE, 2 for the GUE, 4 for the GSE; any β > 0, not traced.
        tolerance: bound on what the rows left out could do.

    Source:
        Edelman & Persson, *Numerical methods for eigenvalue distributions of random matrices*, 2005.
    """
    return _edge(edge_levels(N, beta, tolerance))(key, jnp.float64(N), jnp.float64(beta))[0]


def rectangular_start(n, m, theta):
    """As `wigner_start`."""
    c = n / m
    edge = 1 + jnp.sqrt(c)
    # The edge of the singular values moves on this scale (Johnstone 2001, halved by the square root).
    scale = 0.5 * edge ** (1 / 3) * c ** (-1 / 6) * m ** (-2 / 3)
    critical = c**0.25
    strong = jnp.maximum(theta, critical * (1 + jnp.minimum(n, m) ** (-1 / 3)))
    start = jnp.sqrt((1 + strong**2) * (c + strong**2)) / strong
    spread = jnp.sqrt((1 - c / strong**4) * (strong**2 + (1 + c) / 2) / m) / start
    lowest = jnp.maximum(start - 8 * spread, edge - jnp.cbrt(600.0) * scale)
    cosh = (jnp.maximum(lowest, 0.0) ** 2 - 1 - c) / (2 * jnp.sqrt(c))
    return start, spread + scale, _arccosh2(cosh)


def rectangular_growth(n, m):
    """κ of `outlier_depth` for a rectangular matrix."""
    return (1 + jnp.sqrt(n / m)) ** 2 / n


def rectangular_rows(key_data, group, n, m):
    """Diagonal, entries right of it and entries below it, (_GROUP, batch), of a group of rows of the tridiagonal form."""
    k = (group * _GROUP + jnp.arange(1, _GROUP + 1))[:, None]
    dof = jnp.concatenate([jnp.where(k <= n, m - k, 0.0), jnp.where(k <= m, n - k, 0.0)])
    diagonal = box_muller(words(key_data, 2 * group, _GROUP)) / jnp.sqrt(m)
    right, below = jnp.split(_chi(key_data, 2 * group + 1, dof) / jnp.sqrt(m), 2)
    return jnp.where((k <= n) & (k <= m), diagonal, 0.0), right, below


def rectangular_series(rows, z, n, m, levels):
    r"""Series of the entries (left, cross, right) of the first 2×2 pivot at z, and whether z lies above the later rows.

    A row k carries the pair (u_k, v_k) of the eigenvector of :math:`\begin{pmatrix}0&T\\T^\top&0\end{pmatrix}`.
    """

    def step(state, k, row):
        (left, cross, right), above = state
        diagonal, ahead, under = row
        inverse = _reciprocal(
            tuple(p - q for p, q in zip(_multiply(left, right), _multiply(cross, cross), strict=True))
        )
        # u_k meets v_{k+1} through the entry to the right, v_k meets u_{k+1} through the one below.
        new_left = _affine(z, _multiply(left, inverse), ahead**2)
        new_right = _affine(z, _multiply(right, inverse), under**2)
        product = _multiply(cross, inverse)
        new_cross = ((ahead * under) * product[0] - diagonal, *((ahead * under) * p for p in product[1:]))
        determinant = new_left[0] * new_right[0] - new_cross[0] ** 2
        positive = (new_left[0] > 0) & (determinant > 0)
        return (new_left, new_cross, new_right), above & (positive | (k == 1))

    nothing = tuple(jnp.zeros(z.shape) for _ in range(4))
    start = ((_beyond(z.shape), nothing, _beyond(z.shape)), jnp.ones(z.shape, bool))
    return _from_last(levels, rows, step, start)


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
        product = _multiply(left, right)
        root = _square_root((jnp.where(ok, product[0], 1.0), *product[1:]))
        off = (cross[0] - theta, *cross[1:])
        return [tuple(p + sign * q for p, q in zip(root, off, strict=True)) for sign in (1, -1)], ok

    outlier, slope = _solve(evaluate, start, spread, shape)
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
    tolerance: _Number = TOLERANCE,
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
    """As `wigner_start`, with the eigenvalue in the outlier's place."""
    c = p / n
    root = jnp.sqrt(c)
    scale = (1 + root) ** (4 / 3) * c ** (-1 / 6) * n ** (-2 / 3)  # Johnstone 2001
    strong = jnp.maximum(ell, 1 + root * (1 + jnp.minimum(n, p) ** (-1 / 3)))
    start = strong * (1 + c / (strong - 1))
    spread = strong * jnp.sqrt(2 / beta * (1 - c / (strong - 1) ** 2) / n)
    lowest = jnp.maximum(start - 8 * spread, (1 + root) ** 2 - jnp.cbrt(600 / beta) * scale)
    return start, spread + scale, _arccosh2((lowest - 1 - c) / (2 * root))


def covariance_rows(key_data, group, p, n, beta):
    """Squared entries on the diagonal and below it, (_GROUP, batch), of a group of rows of the bidiagonal form."""
    k = (group * _GROUP + jnp.arange(1, _GROUP + 1))[:, None]
    there = (k <= p) & (k <= n)
    dof = jnp.concatenate([jnp.where(there, beta * (n - k + 1), 0.0), jnp.where(there, beta * (p - k), 0.0)])
    return tuple(jnp.split(_chi(key_data, group, dof) ** 2 / (beta * n), 2))


def covariance_series(rows, z, levels):
    """Series of q at z, z − q the first pivot, and whether z lies above the rows from 2 on."""

    def step(state, _, row):
        q, above = state
        own, below = row
        pivot = (z - below - q[0], 1 - q[1], -q[2], -q[3])
        inverse = _reciprocal(pivot)
        product = own * below
        return (own + product * inverse[0], *(product * v for v in inverse[1:])), above & (pivot[0] > 0)

    nothing = tuple(jnp.zeros(z.shape) for _ in range(4))
    return _from_last(levels, rows, step, (nothing, z > 0))


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
        g = _multiply((z, one, nothing, nothing), _reciprocal(q))
        return [(g[0] - ell, *g[1:])], above

    outlier, slope = _solve(evaluate, start, spread, shape)
    return jnp.stack([outlier, ell / (outlier * slope)])


_covariance_batched = batch_last(_covariance)


@float64(keep=("key",))
def covariance_outlier(
    key: Key[Array, ""],
    p: Float[Array, ""],
    n: Float[Array, ""],
    ell: Float[Array, ""],
    beta: _Number = 1.0,
    tolerance: _Number = TOLERANCE,
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
