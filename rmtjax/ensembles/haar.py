r"""Haar-distributed orthogonal and unitary matrices, frames and unit vectors.

The QR factorisation of a Gaussian matrix is unique, and its Q Haar-distributed, only if the diagonal of R is positive.
LAPACK's has signs (phases) of its own, which the functions here move into Q. Mezzadri, *How to generate random matrices
from the classical compact groups*, Notices AMS 54 (2007).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Inexact, Key

from rmtjax._checks import whole
from rmtjax._precision import float64
from rmtjax.ensembles.entries import entries, floating

__all__ = ["orthogonal", "special_orthogonal", "unit_vector", "unitary"]


@float64(keep=("key", "n", "k", "dtype"))
def _frame(key, n, k, dtype):
    n = whole("n", n)
    k = n if k is None else whole("k", k, 1, n)
    return _mezzadri(key, n, k, dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _mezzadri(key, n, k, dtype):
    q, r = jnp.linalg.qr(entries(key, (n, k), "gaussian", dtype))
    d = jnp.diagonal(r)
    size = jnp.abs(d)
    return q * jnp.where(size > 0, d / jnp.where(size > 0, size, 1), 1)


def orthogonal(key: Key[Array, ""], n: int, k: int | None = None, dtype=jnp.float64) -> Float[Array, "n k"]:
    r"""Draw a Haar-distributed orthonormal k-frame in :math:`\mathbb R^n`, :math:`Q^\top Q = I_k`; with k = n a matrix of O(n).

    The law is that of Q and of OQ for every orthogonal O, and of QO' too.

    Args:
        key: a typed PRNG key.
        n: dimension.
        k: vectors, n if not said.
        dtype: float32 or float64.

    Raises:
        InputError: for a size or dtype that is not admissible.
    """
    return _frame(key, n, k, floating(dtype, "f"))


def unitary(key: Key[Array, ""], n: int, k: int | None = None, dtype=jnp.complex128) -> Complex[Array, "n k"]:
    r"""Draw a Haar-distributed orthonormal k-frame in :math:`\mathbb C^n`; with k = n a matrix of U(n), the CUE.

    Args:
        key: a typed PRNG key.
        n: dimension.
        k: vectors, n if not said.
        dtype: complex64 or complex128.

    Raises:
        InputError: for a size or dtype that is not admissible.
    """
    return _frame(key, n, k, floating(dtype, "c"))


@float64(keep=("key", "n", "dtype"))
def special_orthogonal(key: Key[Array, ""], n: int, dtype=jnp.float64) -> Float[Array, "n n"]:
    r"""Draw a Haar-distributed rotation, a matrix of SO(n): `orthogonal` with its first column turned where det Q = −1.

    Args:
        key: a typed PRNG key.
        n: dimension.
        dtype: float32 or float64.

    Raises:
        InputError: for a size or dtype that is not admissible.

    Examples:
        >>> Q = special_orthogonal(jax.random.key(0), 3)
        >>> round(float(jnp.linalg.det(Q)), 6)
        1.0
    """
    q = orthogonal(key, n, None, dtype)
    return q.at[:, 0].multiply(jnp.linalg.slogdet(q)[0])


@float64(keep=("key", "n", "dtype"))
def unit_vector(key: Key[Array, ""], n: int, dtype=jnp.float64) -> Inexact[Array, "n"]:
    r"""Draw a uniform point of the unit sphere in :math:`\mathbb R^n`, or in :math:`\mathbb C^n` for a complex dtype.

    Args:
        key: a typed PRNG key.
        n: dimension.
        dtype: float32, float64, complex64 or complex128.

    Raises:
        InputError: for a size or dtype that is not admissible.
    """
    x = entries(key, (whole("n", n),), "gaussian", floating(dtype))
    return x / jnp.linalg.norm(x)
