"""The largest singular triplets by block Lanczos, each to a tolerance, or by a whole decomposition where that fails."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtjax.linalg.krylov import LowRankUpdated, top_singular
from rmtjax.linalg.svd._common import (
    SVD,
    as_batch,
)
from rmtjax.linalg.svd.derivatives import differentiable_svd

__all__ = ["lanczos_svd"]

_ROUNDED = 10
"""Multiple of the tolerance up to which an angle's bound may be rounding, which the bound exaggerates."""


def lanczos_svd(a: Array, k: int, tolerance: float, rng: int | list[int]) -> SVD:
    """Return the k largest singular triplets of each matrix, by block Lanczos scheduled on the host."""
    triplets = []
    on_host = next(iter(a.devices())).platform == "cpu"
    for matrix in as_batch(a):
        # A power of two, so that squares of huge or tiny numbers stay in range and nothing is rounded.
        scale = float(jnp.ldexp(jnp.ones((), a.dtype), jnp.frexp(jnp.max(jnp.abs(matrix)))[1] - 1)) or 1.0
        operator = LowRankUpdated(np.asarray(matrix) / scale if on_host else matrix / scale)
        top = top_singular(operator, k, tolerance=tolerance, width=min(4, k + 2), max_blocks=288, rng=rng)
        # The process works on squares: it cannot determine singular values below the root of their rounding.
        small = top.values[-1] <= 30 * np.sqrt(np.finfo(a.dtype).eps) * top.values[0]
        if small or not top.errors.max() <= _ROUNDED * tolerance:
            full = differentiable_svd(matrix, "auto", True)
            triplets.append((full.U[:, :k], full.S[:k], full.Vh[:k]))
            continue
        along = operator.transposed(top.vectors)
        norms = np.linalg.norm(np.asarray(along), axis=0)
        triplets.append((top.vectors, scale * top.values.astype(along.dtype), (along / norms).T))
    return SVD(*(jnp.stack(x).reshape(*a.shape[:-2], *x[0].shape) for x in zip(*triplets, strict=True)))
