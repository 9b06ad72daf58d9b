"""Singular value decompositions from the Gram matrix: in the matrix's own precision, or in double precision for single."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtjax.linalg.svd._common import (
    SVD,
    adjoint,
    normalised,
    scale_of,
    svd_shapes,
)
from rmtjax.linalg.svd.eigen import fastest_eigh, fastest_eigvalsh
from rmtjax.linalg.svd.threads import by_numpy

__all__ = ["gram64_svd", "gram64_svdvals", "gram_svd", "gram_svdvals"]


def _gram_matrix(a: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return adjoint(a) @ a


def gram_svd(a: Array) -> SVD:
    """Decompose by the Gram matrix in the precision of the matrices."""
    scale = scale_of(a)
    v = fastest_eigh(_gram_matrix(a / scale)).eigenvectors
    with jax.default_matmul_precision("highest"):
        av = (a / scale) @ v
    norms = jnp.linalg.norm(av, axis=-2)
    order = jnp.argsort(-norms, axis=-1, stable=True)
    norms = jnp.take_along_axis(norms, order, -1)
    av, v = (jnp.take_along_axis(x, order[..., None, :], -1) for x in (av, v))
    # Columns of small singular values are orthogonal only as far as their squares exceed the rounding of the largest.
    return SVD(normalised(av, norms), norms * scale[..., 0], adjoint(v))


def gram_svdvals(a: Array) -> Array:
    """Return singular values by the Gram matrix in the precision of the matrices."""
    scale = scale_of(a)
    return jnp.sqrt(jnp.maximum(fastest_eigvalsh(_gram_matrix(a / scale))[..., ::-1], 0)) * scale[..., 0]


_ILL = 1e-4
"""Ratio of singular values below which left vectors from the Gram matrix in double precision must be made orthogonal: they are
orthogonal up to 10⁻¹⁶ (σ₁/σ)²."""


def _in_double(batch: np.ndarray) -> np.ndarray:
    return batch.astype(np.complex128 if np.iscomplexobj(batch) else np.float64)


def _numpy_gram_svd(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = _in_double(batch)
    squares, v = np.linalg.eigh(a.conj().swapaxes(-1, -2) @ a)
    s, v = np.sqrt(np.maximum(squares[:, ::-1], 0)), v[:, :, ::-1]
    u = a @ v
    ill = np.flatnonzero(s[:, -1] <= _ILL * s[:, 0])
    if ill.size:
        norms = np.linalg.norm(u[ill], axis=1)
        order = np.argsort(-norms, axis=1, kind="stable")
        s[ill], v[ill] = np.take_along_axis(norms, order, 1), np.take_along_axis(v[ill], order[:, None], 2)
        # QR, column by column, keeps orthogonal columns up to phase and turns the others until they are orthogonal.
        q, r = np.linalg.qr(np.take_along_axis(u[ill], order[:, None], 2))
        size = np.diagonal(r, axis1=1, axis2=2)
        turned = q * np.where(size == 0, 1, size / np.where(size == 0, 1, np.abs(size)))[:, None]
    u /= np.where(s == 0, 1, s)[:, None]
    if ill.size:
        u[ill] = turned
    return u, s, v.conj().swapaxes(-1, -2)


def gram64_svd(a: Array) -> SVD:
    """Decompose matrices of single precision by their Gram matrix in double precision, in half the time of LAPACK."""
    return SVD(*by_numpy(_numpy_gram_svd, a, *svd_shapes(a)))


def gram64_svdvals(a: Array) -> Array:
    """Return singular values of matrices in single precision by their Gram matrix in double precision."""

    def values(batch):
        wide = _in_double(batch)
        squares = np.linalg.eigvalsh(wide.conj().swapaxes(-1, -2) @ wide)
        return (np.sqrt(np.maximum(squares[:, ::-1], 0)),)

    (s,) = by_numpy(values, a, svd_shapes(a)[1])
    return s
