"""Singular values of a base and of its update, as accurate as verdicts and predictions need them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rmtjax.intruders.pair import Pair
from rmtjax.intruders.scan.result import Update
from rmtjax.linalg.krylov import Matrix, Ritz
from rmtjax.linalg.svd import svdvals
from rmtjax.spectra.ranks import effective_rank, stable_rank

__all__ = ["gram_values", "stand_in_values", "update_of"]

_DENSE = 1024
"""Smaller side up to which the Gram matrix of an update is computed in double precision."""


def gram_values(matrix: Matrix, dtype: type = np.float32) -> np.ndarray:
    """Return all singular values, descending, by the Gram matrix; those below the root of the dtype's precision are rounding.

    That is enough for a bulk and its spikes; the ranks of an update want more.
    """
    if isinstance(matrix, jax.Array):
        with jax.enable_x64(True):
            return np.asarray(svdvals(matrix.astype(dtype), algorithm="gram")).astype(float)
    side = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).astype(dtype, copy=False)
    gram = side @ side.T
    del matrix, side
    if len(gram) <= _DENSE:  # NumPy's and SciPy's BLAS each have threads, which wait for work on cores that others need
        values = np.linalg.eigvalsh(gram)
    else:  # in place
        values = scipy.linalg.eigvalsh(gram.T, overwrite_a=True, check_finite=False, driver="evd")
    return np.sqrt(np.maximum(values[::-1], 0)).astype(float)


def stand_in_values(ritz: Ritz, columns: np.ndarray, matrix: Matrix, noise: float = 1e-3) -> np.ndarray:
    """Return min(n, m) numbers distributed as the singular values, from spectral measures of random columns by a Krylov space.

    The space is that of the shorter side. The largest Ritz values that have converged are themselves; the others follow the
    distribution function that the Gauss quadrature of the columns, averaged, gives; together they have the matrix's energy.
    """
    count = min(matrix.shape)
    theta, weight = np.maximum(ritz.values, 0), (ritz.first[columns] ** 2).mean(0)
    weight = weight / weight.sum()
    settled = 0
    while settled < min(len(theta) // 2, count) and ritz.residuals[-1 - settled] < noise * theta[-1 - settled]:
        settled += 1
    body = slice(0, len(theta) - settled)
    level = (np.cumsum(weight[body]) - weight[body] / 2) / weight[body].sum()
    level, theta_body = np.append(0, level), np.append(max(1.5 * theta[0] - theta[1] / 2, 0), theta[body])
    levels = (np.arange(count - settled) + 0.5) / (count - settled)
    unsettled = np.interp(levels, level, theta_body)[::-1]
    converged = theta[len(theta) - settled :][::-1]
    on_host = isinstance(matrix, np.ndarray)
    energy = sum(float(row @ row) for row in matrix) if on_host else float(jnp.sum(matrix * matrix))
    unsettled *= max(energy - converged.sum(), 0) / max(unsettled.sum(), np.finfo(float).tiny)
    return np.sqrt(np.concatenate([converged, np.minimum(unsettled, converged[-1] if settled else np.inf)]))


def _ranks(values: np.ndarray, keep: int | None = None) -> Update:
    frobenius = float(np.sqrt(np.sum(values**2)))
    if frobenius == 0:
        return Update(values[:0], 0.0, 0.0, 0.0)
    real = values[values > values[0] * (1e-6 if values.size <= _DENSE else 1e-3)]
    return Update(
        real if keep is None else real[:keep], frobenius, float(effective_rank(real)), float(stable_rank(values))
    )


def update_of(pair: Pair, top_k: int) -> Update:
    if pair.factors is not None:
        left, right = pair.factors
        return _ranks(np.linalg.svd(np.linalg.qr(left)[1] @ np.linalg.qr(right.T)[1].T, compute_uv=False))
    # In double precision if memory allows.
    return _ranks(
        gram_values(pair.update(), np.float64 if min(pair.shape) <= _DENSE else np.float32), keep=max(top_k, 16)
    )
