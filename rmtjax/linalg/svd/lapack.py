"""Decompositions by LAPACK: through `jnp.linalg`, or through NumPy with one matrix for each core."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtjax.linalg.svd._common import (
    SINGLE,
    SVD,
    Eigh,
    real_dtype,
    svd_shapes,
)
from rmtjax.linalg.svd.threads import by_numpy

__all__ = [
    "library_eigh",
    "library_eigvalsh",
    "library_svd",
    "library_svdvals",
    "numpy_symmetric",
    "threads_eigh",
    "threads_eigvalsh",
    "threads_svd",
    "threads_svdvals",
]


def library_svd(a: Array) -> SVD:
    """Decompose by `jnp.linalg.svd`."""
    return SVD(*jnp.linalg.svd(a, full_matrices=False))


def library_svdvals(a: Array) -> Array:
    """Return singular values by `jnp.linalg.svd`."""
    # JAX by default has LAPACK's routine allocate square matrices of vectors even if none are wanted.
    return jnp.linalg.svd(a, full_matrices=False, compute_uv=False)


def library_eigh(a: Array) -> Eigh:
    """Decompose Hermitian matrices by `jnp.linalg.eigh`, from their lower triangle."""
    return Eigh(*jnp.linalg.eigh(a, UPLO="L", symmetrize_input=False))


def library_eigvalsh(a: Array) -> Array:
    """Return eigenvalues by `jnp.linalg.eigvalsh`, from the lower triangle."""
    return jnp.linalg.eigvalsh(a, UPLO="L", symmetrize_input=False)


def threads_svd(a: Array) -> SVD:
    """Decompose by NumPy with a matrix for each core."""
    return SVD(*by_numpy(lambda batch: np.linalg.svd(batch, full_matrices=False), a, *svd_shapes(a)))


def threads_svdvals(a: Array) -> Array:
    """Return singular values by NumPy with a matrix for each core."""
    (s,) = by_numpy(lambda batch: (np.linalg.svd(batch, compute_uv=False),), a, svd_shapes(a)[1])
    return s


def numpy_symmetric(name: str) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Return `numpy.linalg`'s eigh or eigvalsh, with matrices of single precision decomposed in single precision.

    NumPy has LAPACK's routines for them behind functions that convert everything to double precision first. If NumPy's
    private ufuncs change, the public functions are used.
    """
    direct = getattr(getattr(np.linalg, "_umath_linalg", None), f"{name}_lo", None)
    signatures = {kind[0]: kind for kind in getattr(direct, "types", ())}

    def function(batch):
        signature = signatures.get(batch.dtype.char) if batch.dtype.name in SINGLE else None
        if signature is None:
            result = getattr(np.linalg, name)(batch)
        else:
            with np.errstate(all="ignore"):
                result = direct(batch, signature=signature)
        return tuple(result) if isinstance(result, tuple) else (result,)

    return function


def threads_eigh(a: Array) -> Eigh:
    """Decompose Hermitian matrices by NumPy with a matrix for each core."""
    kinds = jax.ShapeDtypeStruct(a.shape[:-1], real_dtype(a.dtype)), jax.ShapeDtypeStruct(a.shape, a.dtype)
    return Eigh(*by_numpy(numpy_symmetric("eigh"), a, *kinds))


def threads_eigvalsh(a: Array) -> Array:
    """Return eigenvalues without computing vectors, unlike JAX's routine."""
    (values,) = by_numpy(numpy_symmetric("eigvalsh"), a, jax.ShapeDtypeStruct(a.shape[:-1], real_dtype(a.dtype)))
    return values
