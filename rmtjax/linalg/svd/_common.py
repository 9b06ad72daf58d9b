"""Results of decompositions, names of algorithms, and helpers that several algorithms share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rmtjax._random import fixed_normal

__all__ = [
    "EIGH_ALGORITHMS",
    "SINGLE",
    "SVD",
    "SVD_ALGORITHMS",
    "Eigh",
    "adjoint",
    "as_batch",
    "completed",
    "diagonal",
    "normalised",
    "real_dtype",
    "scale_of",
    "svd_shapes",
]

SVD_ALGORITHMS = ("library", "threads", "jacobi", "gram", "gram64", "polar", "randomized", "lanczos")
"""Names of algorithms of `svd`; the last two compute the k largest triplets."""

SINGLE = ("float32", "complex64")
"""Dtypes of the matrices that `gram64` takes."""

EIGH_ALGORITHMS = ("library", "threads", "jacobi")
"""Names of algorithms of `eigh` and `eigvalsh`."""


class SVD(NamedTuple):
    r""":math:`A = U\,\mathrm{diag}(s)\,V^*`.

    Attributes:
        U: left singular vectors as columns, shape (..., n, k).
        S: singular values, descending, shape (..., k).
        Vh: right singular vectors as rows, conjugated, shape (..., k, m).
    """

    U: Array
    S: Array
    Vh: Array


class Eigh(NamedTuple):
    r""":math:`A = V\,\mathrm{diag}(\lambda)\,V^*`.

    Attributes:
        eigenvalues: ascending, shape (..., N).
        eigenvectors: as columns, shape (..., N, N).
    """

    eigenvalues: Array
    eigenvectors: Array


def real_dtype(dtype: Any) -> Any:
    """Return the dtype of the absolute value of numbers of a dtype."""
    return jnp.finfo(dtype).dtype


def svd_shapes(a: Array) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of U, S and Vh of the thin SVD of matrices."""
    *batch, n, m = a.shape
    k = min(n, m)
    shapes = ((*batch, n, k), a.dtype), ((*batch, k), real_dtype(a.dtype)), ((*batch, k, m), a.dtype)
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]


def adjoint(a: Array) -> Array:
    """Return the conjugate transpose of matrices."""
    return jnp.swapaxes(a, -1, -2).conj()


def diagonal(square: Array) -> Array:
    """Return the diagonals of square matrices."""
    return jnp.diagonal(square, axis1=-2, axis2=-1)


def as_batch(a: Array) -> Array:
    """Return matrices with their leading axes merged into one."""
    return a.reshape(-1, *a.shape[-2:])


def completed(u: Array, s: Array) -> Array:
    """Return orthonormal columns (..., m, n), replacing those of vanishing singular values, which may be anything."""
    m, n = u.shape[-2:]
    lost = (s <= max(m, n) * jnp.finfo(s.dtype).eps * s[..., :1])[..., None, :]

    def complete(u):
        # QR, column by column, keeps orthonormal columns up to sign and turns the others until they are orthonormal.
        q, r = jnp.linalg.qr(jnp.where(lost, fixed_normal(0, (m, n), s.dtype), u))
        size = diagonal(r)
        turn = jnp.where(size == 0, 1.0, size / jnp.where(size == 0, 1.0, jnp.abs(size)))
        return jnp.where(lost, q, q * turn[..., None, :])

    return jax.lax.cond(jnp.any(lost), complete, lambda u: u, u)


def normalised(columns: Array, norms: Array) -> Array:
    """Return orthogonal columns (..., m, n) divided by their descending norms."""
    return completed(columns / jnp.where(norms == 0, 1.0, norms)[..., None, :], norms)


def scale_of(a: Array) -> Array:
    """Return the largest absolute entry of each matrix, with two axes of length 1; 1 for a matrix of zeros."""
    largest = jnp.max(jnp.abs(a), (-1, -2), keepdims=True)
    return jnp.where(largest > 0, largest, 1.0)
