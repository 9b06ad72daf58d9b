r"""The corner of a Gaussian resolvent, sampled exactly without forming a matrix.

For Z rows×cols with i.i.d. N(0,1) entries and :math:`A = ZZ^\top/n`, orthogonal invariance lets Z be reduced, without
touching the span of the first r rows, to block lower-bidiagonal form with independent entries: diagonal blocks
:math:`L_k` (lower triangular, diagonal :math:`\chi_{cols-kr-i}`, N(0,1) below) and sub-diagonal blocks :math:`R_k` (upper
triangular, diagonal :math:`\chi_{rows-(k+1)r-i}`, N(0,1) above). This is Golub–Kahan bidiagonalisation carried out in
law (Silverstein 1985; Dumitriu & Edelman 2002), r rows at a time. Schur complements then give the r×r corner of the
resolvent as a continued fraction,

.. math::
    H_k = \Big(\gamma + \tfrac1n L_k\big(I + \tfrac1n R_k^\top H_{k+1}R_k\big)^{-1}L_k^\top\Big)^{-1}, \qquad
    H_0 = E^\top(A+\gamma)^{-1}E,

a composition of positive, monotone maps: nothing in it can cancel or blow up. The derivative :math:`-\mathrm dH_0/\mathrm
d\gamma = E^\top(A+\gamma)^{-2}E` rides along in forward mode. `depth` gives the required number of levels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rmtjax._precision import float64
from rmtjax.ensembles._counter import normal
from rmtjax.ensembles.chi import chi
from rmtjax.linalg import small

__all__ = ["Corner", "depth", "resolvent_corner"]

_DEVIATION = 4.0
"""Davidson–Szarek: the extreme singular values of Z leave √cols ± √rows by more than t with probability ≤ 2exp(−t²/2).

For t = 4 that is 7e-4, and far less in truth, since they fluctuate on the smaller scale size^(−1/6)."""


class Corner(NamedTuple):
    """Leading r×r blocks of the resolvent and of its square."""

    resolvent: small.Matrix
    square: small.Matrix


@float64(keep=("r", "tolerance"))
def depth(
    gamma: Float[Array, ""],
    rows: Float[Array, ""],
    cols: Float[Array, ""],
    n: Float[Array, ""],
    r: int,
    tolerance: float,
) -> Int[Array, ""]:
    r"""Return the number of levels after which the fraction's remainder is below `tolerance`, for any size of the matrix.

    K levels fix the moments :math:`E^\top A^jE`, j ≤ 2K − 1 (2K where rows > cols), so the truncated and the full corner
    differ by at most twice the error of the best polynomial of that degree for :math:`1/(x+\gamma)` on the spectrum.
    The spectrum lies in :math:`[\lambda_-,\lambda_+]`, :math:`\sqrt{n\lambda_\pm} = |\sqrt{cols}\pm\sqrt{rows}|` widened by
    Davidson and Szarek's deviation, and in 0 where rows > cols. Chebyshev's expansion bounds that error by
    :math:`C\,t^{2K}`, :math:`t + 1/t = 2(\lambda_+ + \lambda_- + 2\gamma)/(\lambda_+-\lambda_-)`; likewise for
    :math:`1/(x+\gamma)^2`. Derivation: ``docs/derivations.md``.

    Args:
        gamma, rows, cols, n: as in `resolvent_corner`.
        r: rows in the corner.
        tolerance: bound on :math:`\gamma\|\Delta H\|` and :math:`\gamma^2\|\Delta(-H')\|`, relative to what these can be.
    """
    degree = _chebyshev_degree(gamma, rows, cols, n, tolerance)
    levels = jnp.ceil((degree + jnp.where(rows > cols, 0.0, 1.0)) / 2)
    available = jnp.ceil(jnp.minimum(rows, cols) / r)  # at most this many levels exist: then the matrix is used up
    return jnp.minimum(levels, available).astype(jnp.int32)


def _chebyshev_terms(gamma, rows, cols, n):
    big, little = jnp.maximum(rows, cols), jnp.minimum(rows, cols)
    upper = (jnp.sqrt(big) + jnp.sqrt(little) + _DEVIATION) ** 2 / n
    lower = jnp.maximum(jnp.sqrt(big) - jnp.sqrt(little) - _DEVIATION, 0.0) ** 2 / n
    half_width = jnp.maximum((upper - lower) / 2, 1e-300)
    a = ((upper + lower) / 2 + gamma) / half_width
    root = jnp.sqrt((lower + gamma) / half_width * (a + 1))  # a − 1 without cancellation
    return upper, half_width, a, root, 1 / (a + root)


def truncation_bound(gamma, rows, cols, n, degree):
    """Return a bound on (γ‖ΔH‖, γ²‖Δ(−H′)‖) when the moments up to `degree` agree; see `depth`."""
    upper, half_width, a, root, t = _chebyshev_terms(gamma, rows, cols, n)
    m = degree - jnp.where(rows > cols, 1.0, 0.0)  # the point 0 of the spectrum costs one degree
    tail = t ** (m + 1) / (1 - t)
    first = 2 * tail / (half_width * root)
    second = 2 * tail * (((m + 1) - m * t) / (1 - t) + a / root) / (half_width * root) ** 2
    at_zero = rows > cols
    value = jnp.where(at_zero, upper / gamma * first, first)
    derivative = jnp.where(at_zero, upper / gamma * (first / gamma + second), second)
    return 2 * gamma * value, 2 * gamma**2 * derivative


def _chebyshev_degree(gamma, rows, cols, n, tolerance):
    *_, t = _chebyshev_terms(gamma, rows, cols, n)
    degree = jnp.zeros_like(t)
    # The prefactor of t^degree grows at most linearly in the degree, so this fixed point converges in a few rounds.
    for _ in range(6):
        excess = jnp.maximum(*truncation_bound(gamma, rows, cols, n, degree)) / tolerance
        degree = jnp.maximum(degree + jnp.log(excess) / -jnp.log(t), 0.0)
    return jnp.ceil(degree) + 1


@float64(keep=("key", "r", "levels"))
def resolvent_corner(
    key: Key[Array, ""],
    gamma: Float[Array, ""],
    rows: Float[Array, ""],
    cols: Float[Array, ""],
    n: Float[Array, ""],
    r: int,
    levels: Int[Array, ""],
) -> Corner:
    r"""Draw the r×r corners of :math:`(ZZ^\top/n + \gamma)^{-1}` and of its square, Z rows×cols standard Gaussian.

    Args:
        key: a typed PRNG key. Level k draws from streams 2k and 2k + 1, so it does not depend on the depth beyond it.
        gamma: γ > 0.
        rows, cols: sizes of Z, whole numbers ≥ 0 as floats; rows and columns that do not exist contribute nothing.
        n: the normalisation, not necessarily `cols`.
        r: rows in the corner (static).
        levels: depth of the fraction, from `depth`.

    Returns:
        `Corner` of two r×r matrices of scalars.
    """
    dtype = jnp.result_type(gamma)
    i = jnp.arange(r)
    strict = [(a, b) for a in range(r) for b in range(a)]

    def blocks(k):
        # Scaled by 1/√n. Entry (a, b) of L_k sits in row kr+a, column kr+b; of R_k in row (k+1)r+a, column kr+b.
        col = cols - k * r - i
        row = rows - k * r - i
        below = row - r
        # The χ on a diagonal counts the remaining dimensions of the other side; it is absent where its own line is.
        dof = jnp.concatenate([jnp.where(row > 0, col, 0.0), jnp.where(col > 0, below, 0.0)])
        diagonal = chi(key, dof, 2 * k) / jnp.sqrt(n)
        entries = normal(key, 2 * len(strict), 2 * k + 1) / jnp.sqrt(n)
        lower = {(a, b): jnp.where((row[a] > 0) & (col[b] > 0), entries[e], 0.0) for e, (a, b) in enumerate(strict)}
        upper = {
            (b, a): jnp.where((below[b] > 0) & (col[a] > 0), entries[len(strict) + e], 0.0)
            for e, (a, b) in enumerate(strict)
        }
        zero = jnp.zeros((), dtype)
        left = tuple(tuple(diagonal[a] if a == b else lower.get((a, b), zero) for b in range(r)) for a in range(r))
        right = tuple(tuple(diagonal[r + a] if a == b else upper.get((a, b), zero) for b in range(r)) for a in range(r))
        return left, right

    once = jnp.minimum(levels, 1)

    def apart(function, *args):
        """Call a function in a loop of one turn. XLA fuses everything inside a loop and freely repeats cheap operations:
        for r = 5 the level in one piece is compiled to 47,000 instructions, in three to 22,000 that run faster too.
        """
        empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, *args))
        return jax.lax.fori_loop(0, once, lambda *_: function(*args), empty)

    def plus(matrix, value):
        return tuple(tuple(x + value if a == b else x for b, x in enumerate(row)) for a, row in enumerate(matrix))

    def inner(corner, right):
        return small.cholesky(plus(small.congruence(corner, right), 1.0))

    def schur(factor, left):
        return small.gram(small.solve_lower(factor, tuple(zip(*left, strict=True))))

    def body(j, state):
        left, right = blocks(levels - 1 - j)
        pair = apart(lambda h, dh: jax.jvp(lambda x: inner(x, right), (h,), (dh,)), *state)
        pair = apart(lambda f, df: jax.jvp(lambda x: schur(x, left), (f,), (df,)), *pair)
        ones = jnp.ones_like(gamma)
        return apart(lambda m, dm: jax.jvp(lambda x, g: small.inverse(plus(x, g)), (m, gamma), (dm, ones)), *pair)

    # Cutting off the rows beyond the last level (tail 0) leaves a spectrum inside the full one where rows ≤ cols;
    # cutting off the columns (tail 1/γ) does where rows > cols. Both are exact once the matrix is used up.
    cut_rows = rows <= cols
    tail = jnp.where(cut_rows, 0.0, 1 / gamma)
    start = small.scaled_identity(r, tail), small.scaled_identity(r, jnp.where(cut_rows, 0.0, -1 / gamma**2))
    value, derivative = jax.lax.fori_loop(0, levels, body, start)
    # No level at all: the matrix is empty and the resolvent is 1/γ.
    value = tuple(
        tuple(jnp.where(levels > 0, x, e) for x, e in zip(*rows_, strict=True))
        for rows_ in zip(value, small.scaled_identity(r, 1 / gamma), strict=True)
    )
    square = tuple(
        tuple(jnp.where(levels > 0, -x, e) for x, e in zip(*rows_, strict=True))
        for rows_ in zip(derivative, small.scaled_identity(r, 1 / gamma**2), strict=True)
    )
    return Corner(value, square)
