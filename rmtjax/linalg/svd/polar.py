"""Singular value decompositions from the polar decomposition A = UH by QDWH and the eigenvalues of H."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rmtjax.linalg.svd._common import (
    SVD,
    adjoint,
    as_batch,
    completed,
    scale_of,
)

__all__ = ["polar_svd"]


def polar_svd(a: Array) -> SVD:
    """Return decompositions by QDWH, one matrix after another."""
    scale = scale_of(a)

    def of_matrix(a):
        u, h, _, _ = jax.lax.linalg.qdwh(a, is_hermitian=False)
        values, v = jnp.linalg.eigh(h)
        v = v[:, ::-1]
        return u @ v, jnp.maximum(values[::-1], 0), adjoint(v)

    with jax.default_matmul_precision("highest"):
        u, s, vh = (x.reshape(*a.shape[:-2], *x.shape[1:]) for x in jax.lax.map(of_matrix, as_batch(a / scale)))
    return SVD(completed(u, s), s * scale[..., 0], vh)
