r"""Rectangular i.i.d. and Wishart matrices: dense, with any law of the entries, and the Laguerre β-ensembles as bidiagonals.

For X p×n with independent entries of variance σ² the matrix :math:`S = XX^*/n` has in the limit :math:`p, n \to \infty`,
:math:`p/n \to c`, the Marchenko–Pastur law on :math:`[\sigma^2(1-\sqrt c)^2, \sigma^2(1+\sqrt c)^2]`, with an atom
:math:`1 - 1/c` at 0 if c > 1. Gaussian entries give the Laguerre ensembles β = 1 (real) and 2 (complex), of exact moments
:math:`E\frac1p\operatorname{tr}S = \sigma^2` and :math:`E\frac1p\operatorname{tr}S^2 = \sigma^4(1 + (p - 1 + 2/\beta)/n)`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Inexact, Key, Num, Real

from rmtjax._checks import whole
from rmtjax._errors import InputError, shown
from rmtjax._precision import float64
from rmtjax.ensembles.chi import chi
from rmtjax.ensembles.entries import entries, floating, positive

__all__ = ["Bidiagonal", "complex_wishart", "iid", "laguerre", "sample_covariance", "wishart"]


class Bidiagonal(NamedTuple):
    """A real lower-bidiagonal matrix of order p.

    Attributes:
        diagonal: shape (p,).
        subdiagonal: the diagonal below it, shape (p − 1,).
    """

    diagonal: Float[Array, "p"]
    subdiagonal: Float[Array, "p-1"]


@float64(keep=("key", "n", "m", "law", "sigma", "dtype"))
def iid(
    key: Key[Array, ""],
    n: int,
    m: int,
    law: str = "gaussian",
    sigma: Real[ArrayLike, ""] = 1.0,
    dtype=jnp.float64,
) -> Inexact[Array, "n m"]:
    r"""Draw an n×m matrix of independent entries with :math:`E|W_{ij}|^2 = \sigma^2/m`.

    Its singular values fill :math:`[\sigma|1-\sqrt c|, \sigma(1+\sqrt c)]`, c = n/m. Square Gaussian ones are Ginibre's.

    Args:
        key: a typed PRNG key.
        n, m: rows and columns.
        law: of the entries, named as in `rmtjax.ensembles.entries`.
        sigma: σ > 0.
        dtype: float32 or float64 for a real, complex64 or complex128 for a complex matrix.

    Raises:
        InputError: for a size, law, scale or dtype that is not admissible.
    """
    n, m, sigma, dtype = whole("n", n), whole("m", m), positive("sigma", sigma), floating(dtype)
    return (sigma / jnp.sqrt(m)).astype(dtype) * entries(key, (n, m), law, dtype)


@float64(keep=("x",))
def sample_covariance(x: Num[Array, "p n"]) -> Inexact[Array, "p p"]:
    r"""Return :math:`XX^*/n` of a data matrix with one sample per column, Hermitian up to rounding. No mean is subtracted.

    Args:
        x: data, a sample a column.

    Raises:
        InputError: for an empty matrix or a dtype that matrices cannot have.
    """
    if 0 in x.shape:
        raise InputError(f"x has shape {x.shape}: must have at least one row and column")
    floating(x.dtype, name="x")
    return jnp.matmul(x, x.conj().T, precision=jax.lax.Precision.HIGHEST) / x.shape[1]


@float64(keep=("key", "p", "n", "law", "sigma", "dtype"))
def wishart(
    key: Key[Array, ""],
    p: int,
    n: int,
    law: str = "gaussian",
    sigma: Real[ArrayLike, ""] = 1.0,
    dtype=jnp.float64,
) -> Inexact[Array, "p p"]:
    r"""Draw the sample covariance :math:`XX^*/n` of X p×n with independent entries of variance σ².

    Args:
        key: a typed PRNG key.
        p: dimension.
        n: samples.
        law: of the entries, named as in `rmtjax.ensembles.entries`.
        sigma: σ > 0.
        dtype: float32 or float64 for a real, complex64 or complex128 for a complex matrix.

    Raises:
        InputError: for a size, law, scale or dtype that is not admissible.
    """
    p, n, sigma, dtype = whole("p", p), whole("n", n), positive("sigma", sigma), floating(dtype)
    return sample_covariance(sigma.astype(dtype) * entries(key, (p, n), law, dtype))


def complex_wishart(
    key: Key[Array, ""],
    p: int,
    n: int,
    law: str = "gaussian",
    sigma: Real[ArrayLike, ""] = 1.0,
    dtype=jnp.complex128,
) -> Complex[Array, "p p"]:
    r"""Draw `wishart` with complex entries, :math:`E|X_{ij}|^2 = \sigma^2`; for Gaussian ones the Laguerre unitary ensemble."""
    return wishart(key, p, n, law, sigma, floating(dtype, "c"))


@float64(keep=("key", "p", "n", "beta", "sigma", "dtype"))
def laguerre(
    key: Key[Array, ""],
    p: int,
    n: Real[ArrayLike, ""],
    beta: Real[ArrayLike, ""] = 1.0,
    sigma: Real[ArrayLike, ""] = 1.0,
    dtype=jnp.float64,
) -> Bidiagonal:
    r"""Draw from the Laguerre (Wishart) β-ensemble, as a bidiagonal matrix with independent entries, for any β > 0.

    .. math::
        B_{i+1,i+1} \sim \frac{\sigma}{\sqrt{\beta n}}\chi_{\beta(n-i)}, \quad i = 0, \dots, p-1, \qquad
        B_{i+2,i+1} \sim \frac{\sigma}{\sqrt{\beta n}}\chi_{\beta(p-1-i)}, \quad i = 0, \dots, p-2.

    The squared singular values of B have the density :math:`\prod_{i<j}|\lambda_i-\lambda_j|^\beta\prod_i
    \lambda_i^{\beta(n-p+1)/2-1}e^{-\beta n\lambda_i/(2\sigma^2)}`: in law they are the eigenvalues of `wishart` at β = 1 and of
    `complex_wishart` at β = 2. Dumitriu & Edelman, *Matrix models for beta ensembles*, J. Math. Phys. 43 (2002), §III,
    where 2a = βn.

    A whole n < p is a Wishart matrix of rank n. Row by row the same reduction holds; the columns of B beyond the n-th
    are 0, and so are p − n singular values.

    Args:
        key: a typed PRNG key.
        p: order of the matrix.
        n: samples: a whole number, or any real one > p − 1. May be traced.
        beta: β > 0, may be traced.
        sigma: σ > 0.
        dtype: float32 or float64.

    Raises:
        InputError: for sizes, β, a scale or a dtype that are not admissible.
    """
    p, dtype = whole("p", p), floating(dtype, "f")
    samples, n, beta, sigma = n, positive("n", n), positive("beta", beta), positive("sigma", sigma)
    if not isinstance(samples, jax.core.Tracer) and float(samples) <= p - 1 and float(samples) % 1:
        raise InputError(f"n = {shown(samples)}: must be a whole number or > p − 1 = {p - 1}")
    return _laguerre(key, p, n, beta, sigma, dtype)


@functools.partial(jax.jit, static_argnums=(1, 5), inline=True)
def _laguerre(key, p, n, beta, sigma, dtype):
    scale = sigma / jnp.sqrt(beta * n)
    i = jnp.arange(p)
    # A column that does not exist, i ≥ n, holds nothing: χ with zero degrees of freedom is 0.
    diagonal = jnp.where(n > i, beta * (n - i), 0.0)
    below = jnp.where(n > i, beta * (p - 1 - i), 0.0)[:-1]
    draws = scale * chi(key, jnp.concatenate([diagonal, below]))
    return Bidiagonal(draws[:p].astype(dtype), draws[p:].astype(dtype))
