"""Cosines of a layer by two singular value decompositions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rmtjax.intruders.clusters import close_values, cosine_range
from rmtjax.intruders.pair import Pair
from rmtjax.intruders.scan.verdict import Cosines, is_decided, space_gap
from rmtjax.linalg.krylov import Matrix

__all__ = ["by_svd", "decompose"]


def decompose(matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return left singular vectors and singular values.

    Raises:
        np.linalg.LinAlgError: if neither of LAPACK's two algorithms converges.
    """
    if isinstance(matrix, np.ndarray):
        try:
            return np.linalg.svd(matrix, full_matrices=False)[:2]
        except np.linalg.LinAlgError:
            return scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")[:2]
    u, s, _ = jnp.linalg.svd(matrix, full_matrices=False)
    return np.asarray(u), np.asarray(s)


def by_svd(pair: Pair, top_k: int, threshold_epsilon: float, dtype: type = np.float32) -> Cosines:
    """Return the cosines from two singular value decompositions; in double precision where single leaves a verdict open."""
    base, tuned = pair.base, pair.tuned.dense()
    if dtype is np.float64:
        base, tuned = (np.asarray(x).astype(dtype) for x in (base, tuned))
    (u, s), (tuned_u, tuned_s) = decompose(base), decompose(tuned)
    precision = float(np.finfo(dtype).eps)
    real = s > s[0] * max(pair.shape) * np.finfo(np.float32).eps  # the null space has no singular vectors of its own
    groups = close_values(s[real], space_gap(pair, float(s[0]), precision))
    tuned_groups = close_values(tuned_s, space_gap(pair, float(tuned_s[0]), precision))
    tuned_groups = [group for group in tuned_groups if group.start < top_k]
    signed = u.T @ tuned_u[:, : tuned_groups[-1].stop]
    lower, upper = (bound[:top_k] for bound in cosine_range(signed[real], groups, tuned_groups))
    if dtype is np.float32 and not is_decided(lower, upper, threshold_epsilon):
        return by_svd(pair, top_k, threshold_epsilon, np.float64)
    every = np.abs(signed[:, :top_k])
    cosines = every[real].max(0, initial=0)
    # A copy, since a view would keep every layer's full set of vectors alive.
    vectors = tuned_u[:, :top_k].astype(np.float32)
    lower, upper = np.minimum(lower, cosines), np.maximum(upper, cosines)
    return Cosines(tuned_s[:top_k], cosines, lower, upper, every[:top_k].T.copy(), s.astype(float), vectors)
