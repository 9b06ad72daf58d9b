r"""The largest eigenvalue of a Gaussian β-ensemble, sampled exactly without forming the matrix.

The recursion of `rmtjax.ensembles.outlier.rank_one` without a spike, whose rows are drawn once and remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rmtjax._precision import float64
from rmtjax.ensembles._counter import batch_last
from rmtjax.ensembles.outlier._newton import largest_root
from rmtjax.ensembles.outlier._series import affine, reciprocal
from rmtjax.ensembles.outlier.rank_one import wigner_rows, wigner_start
from rmtjax.ensembles.outlier.recursion import (
    GROUP,
    TOLERANCE,
    from_last,
    outlier_depth,
)

__all__ = ["edge_levels", "wigner_edge"]


def edge_levels(N: int, beta: float | int, tolerance: float) -> int:
    """Return the number of rows that `wigner_edge` needs, as a Python number."""
    with jax.ensure_compile_time_eval():
        _, _, rate2 = wigner_start(jnp.float64(N), jnp.float64(0), jnp.float64(beta))
        return int(outlier_depth(rate2, 4 / N, float(N), tolerance))


def _trace_series(rows, z, N, levels):
    r"""Return series of :math:`h = 1/\sum_i(z - \lambda_i)^{-1}` at z, and whether z lies above its last pole.

    The sum, over the eigenvalues of the rows, is the logarithmic derivative of the product of all pivots.
    """

    def step(state, k, row):
        pivot, inverse, sums, negative = state
        diagonal, off2 = row
        exists = k <= N
        pivot = affine(z - diagonal, inverse, off2)
        inverse = reciprocal(pivot)
        slope = pivot[1], 2 * pivot[2], 3 * pivot[3]
        added = [sum(slope[i] * inverse[m - i] for i in range(m + 1)) for m in range(3)]
        sums = tuple(jnp.where(exists, t + v, t) for t, v in zip(sums, added, strict=True))
        inverse = tuple(jnp.where(exists, v, 0.0) for v in inverse)
        return pivot, inverse, sums, negative + (exists & (pivot[0] < 0))

    nothing = tuple(jnp.zeros(z.shape) for _ in range(4))
    start = (nothing, nothing, nothing[:3], jnp.zeros(z.shape, jnp.int32))
    _, _, sums, negative = from_last(levels, rows, step, start)
    h = reciprocal((*sums, nothing[0]))[:3]
    # Between its last pole and its root h is negative and one eigenvalue is above z. The third coefficient is that of a
    # function with one pole, which makes a step Halley's.
    return (*h, h[2] ** 2 / h[1]), (negative == 0) | ((negative == 1) & (sums[0] < 0))


@functools.cache
def _edge(levels: int) -> Callable:
    """Return the sampler for a number of rows."""

    def sample(key_data, N, beta):
        groups = jnp.arange((levels + GROUP - 1) // GROUP)
        _, stored = jax.lax.scan(lambda _, group: (None, wigner_rows(key_data, group, N, beta)), None, groups)
        rows = lambda group: tuple(v[group] for v in stored)  # noqa: E731
        scale = N ** (-2 / 3)

        def evaluate(z):
            h, above = _trace_series(rows, z, N, levels)
            return [h], above

        return largest_root(evaluate, 2 - 1.2 * scale, 1.3 * scale, key_data.shape[-1:], order=2)[0][None]

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
