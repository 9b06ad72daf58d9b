r"""Wigner matrices: dense, with any law of the entries, and the Gaussian β-ensembles as tridiagonal matrices.

All are Hermitian N×N and normalised so that :math:`E|W_{ij}|^2 = \sigma^2/N` off the diagonal, for β = 1 (real), 2
(complex), 4 (quaternion) and every other β. The limiting spectrum is the semicircle on :math:`[-2\sigma, 2\sigma]`. The
Gaussian ones have diagonal variance :math:`2\sigma^2/(\beta N)` and the joint density of eigenvalues

.. math::
    \prod_{i<j}|\lambda_i - \lambda_j|^\beta \exp\Big(-\frac{\beta N}{4\sigma^2}\sum_i\lambda_i^2\Big).

Their exact moments are :math:`E\frac1N\operatorname{tr}W^2 = \sigma^2(1 + (\kappa-1)/N)` and :math:`E\frac1N\operatorname{tr}
W^4 = \sigma^4(2 + 5(\kappa-1)/N + (3 - 5\kappa + 3\kappa^2)/N^2)`, :math:`\kappa = 2/\beta`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Inexact, Key, Real

from rmtjax._checks import whole
from rmtjax._precision import float64
from rmtjax.ensembles._counter import normal
from rmtjax.ensembles.chi import chi
from rmtjax.ensembles.entries import entries, floating, parse_entries, positive

__all__ = ["Tridiagonal", "goe", "gse", "gue", "hermite", "wigner"]


class Tridiagonal(NamedTuple):
    """A real symmetric tridiagonal matrix of order N.

    Attributes:
        diagonal: shape (N,).
        off_diagonal: the diagonals next to it, shape (N − 1,).
    """

    diagonal: Float[Array, "N"]
    off_diagonal: Float[Array, "N-1"]


def _mirror(a):
    """Return the symmetric matrix with the strict lower triangle of `a` and zeros on the diagonal."""
    lower = jnp.tril(a, -1)
    return lower + lower.T


def _skew(a):
    """Return the antisymmetric matrix with the strict upper triangle of `a`."""
    upper = jnp.triu(a, 1)
    return upper - upper.T


@float64(keep=("key", "N", "law", "sigma", "dtype", "diagonal"))
def wigner(
    key: Key[Array, ""],
    N: int,
    law: str = "gaussian",
    sigma: Real[ArrayLike, ""] = 1.0,
    dtype=jnp.float64,
    diagonal: Real[ArrayLike, ""] | None = None,
) -> Inexact[Array, "N N"]:
    r"""Draw a Wigner matrix :math:`W_{ij} = \overline{W_{ji}} = \sigma x_{ij}/\sqrt N`, independent for :math:`i \ge j`.

    Off the diagonal :math:`E|x_{ij}|^2 = 1`; for a complex dtype the real and the imaginary part are independent. The
    diagonal is real, of the same law. Wigner, *Ann. Math.* 62 (1955).

    Heavy entries of index ν < 2 call for the scale :math:`N^{-1/\nu}`: take ``law="heavy:ν"`` and
    :math:`\sigma = N^{1/2-1/\nu}` (Cizeau & Bouchaud, *Phys. Rev. E* 50, 1994).

    Args:
        key: a typed PRNG key.
        N: order of the matrix.
        law: of the entries, named as in `rmtjax.ensembles.entries`.
        sigma: σ > 0.
        dtype: float32 or float64 for a real symmetric, complex64 or complex128 for a complex Hermitian matrix.
        diagonal: :math:`Ex_{ii}^2 \ge 0`. None means 2 for real and 1 for complex matrices, with which Gaussian entries
            give the GOE and the GUE.

    Raises:
        InputError: for a size, law, scale or dtype that is not admissible.
    """
    N, sigma, dtype = whole("N", N), positive("sigma", sigma), floating(dtype)
    diagonal = positive("diagonal", (2.0 if dtype.kind == "f" else 1.0) if diagonal is None else diagonal, zero=True)
    parse_entries(law)
    return _wigner(key, N, law, sigma, dtype, diagonal)


@functools.partial(jax.jit, static_argnums=(1, 2, 4), inline=True)
def _wigner(key, N, law, sigma, dtype, diagonal):
    real = jnp.finfo(dtype).dtype
    a = entries(key, (N, N), law, real)
    scale = (sigma / jnp.sqrt(N)).astype(real)
    on = jnp.diag(jnp.diagonal(a) * jnp.sqrt(diagonal).astype(real))
    if dtype.kind == "f":
        return scale * (_mirror(a) + on)
    half = jnp.sqrt(0.5).astype(real)  # one triangle of the draws is the real part, the other the imaginary one
    return jax.lax.complex(scale * (half * _mirror(a) + on), scale * half * _skew(a))


def goe(key: Key[Array, ""], N: int, sigma: Real[ArrayLike, ""] = 1.0, dtype=jnp.float64) -> Float[Array, "N N"]:
    r"""Draw from the Gaussian orthogonal ensemble, β = 1: variance :math:`\sigma^2/N` off, :math:`2\sigma^2/N` on the diagonal.

    Args:
        key: a typed PRNG key.
        N: order of the matrix.
        sigma: σ > 0.
        dtype: float32 or float64.

    Raises:
        InputError: for a size, scale or dtype that is not admissible.
    """
    return wigner(key, N, "gaussian", sigma, floating(dtype, "f"))


def gue(key: Key[Array, ""], N: int, sigma: Real[ArrayLike, ""] = 1.0, dtype=jnp.complex128) -> Complex[Array, "N N"]:
    r"""Draw from the Gaussian unitary ensemble, β = 2: complex Hermitian, :math:`E|W_{ij}|^2 = \sigma^2/N` everywhere.

    Args:
        key: a typed PRNG key.
        N: order of the matrix.
        sigma: σ > 0.
        dtype: complex64 or complex128.

    Raises:
        InputError: for a size, scale or dtype that is not admissible.
    """
    return wigner(key, N, "gaussian", sigma, floating(dtype, "c"))


@float64(keep=("key", "N", "sigma", "dtype"))
def gse(key: Key[Array, ""], N: int, sigma: Real[ArrayLike, ""] = 1.0, dtype=jnp.complex128) -> Complex[Array, "M M"]:
    r"""Draw from the Gaussian symplectic ensemble, β = 4: a complex Hermitian matrix of order M = 2N.

    .. math::
        W = \begin{pmatrix} X & Y \\ -\bar Y & \bar X\end{pmatrix}, \qquad X = X^*, \quad Y = -Y^\top.

    The quaternion :math:`q_{ij} = (X_{ij}, Y_{ij})` has four independent components of variance :math:`\sigma^2/(4N)` for
    i ≠ j; the diagonal is real, of variance :math:`\sigma^2/(2N)`. Every eigenvalue is double. Mehta, *Random Matrices*,
    ch. 2.

    Args:
        key: a typed PRNG key.
        N: order of the quaternion matrix, half that of the result.
        sigma: σ > 0.
        dtype: complex64 or complex128.

    Raises:
        InputError: for a size, scale or dtype that is not admissible.
    """
    N, sigma, dtype = whole("N", N), positive("sigma", sigma), floating(dtype, "c")
    return _gse(key, N, sigma, dtype)


@functools.partial(jax.jit, static_argnums=(1, 3), inline=True)
def _gse(key, N, sigma, dtype):
    real = jnp.finfo(dtype).dtype
    a, b = entries(key, (2, N, N), "gaussian", real)
    scale = (sigma / jnp.sqrt(4 * N)).astype(real)
    on = jnp.diag(jnp.diagonal(a) * jnp.sqrt(2.0).astype(real))
    x = jax.lax.complex(scale * (_mirror(a) + on), scale * _skew(a))
    lower = jnp.tril(b, -1)
    y = scale * jax.lax.complex(lower - lower.T, _skew(b))
    return jnp.block([[x, y], [-y.conj(), x.conj()]])


@float64(keep=("key", "N", "beta", "sigma", "dtype"))
def hermite(
    key: Key[Array, ""],
    N: int,
    beta: Real[ArrayLike, ""] = 1.0,
    sigma: Real[ArrayLike, ""] = 1.0,
    dtype=jnp.float64,
) -> Tridiagonal:
    r"""Draw from the Gaussian (Hermite) β-ensemble, as a tridiagonal matrix with independent entries, for any β > 0.

    .. math::
        H_{kk} \sim \frac{\sigma}{\sqrt{\beta N}}N(0, 2), \qquad
        H_{k,k+1} = H_{k+1,k} \sim \frac{\sigma}{\sqrt{\beta N}}\chi_{\beta(N-k)}, \quad k = 1, \dots, N-1.

    Its eigenvalues are in law those of `goe`, `gue` and (each once) `gse` at β = 1, 2, 4, and the squared first entries of
    its eigenvectors those of any fixed direction. Dumitriu & Edelman, *Matrix models for beta ensembles*, J. Math. Phys.
    43 (2002), §II.

    Args:
        key: a typed PRNG key.
        N: order of the matrix.
        beta: β > 0, may be traced.
        sigma: σ > 0.
        dtype: float32 or float64.

    Raises:
        InputError: for a size, β, scale or dtype that is not admissible.
    """
    N, beta, sigma, dtype = whole("N", N), positive("beta", beta), positive("sigma", sigma), floating(dtype, "f")
    return _hermite(key, N, beta, sigma, dtype)


@functools.partial(jax.jit, static_argnums=(1, 4), inline=True)
def _hermite(key, N, beta, sigma, dtype):
    scale = sigma / jnp.sqrt(beta * N)
    diagonal = scale * jnp.sqrt(2.0) * normal(key, N, 0)
    dof = beta * jnp.arange(N - 1, 0, -1)
    off = scale * chi(key, dof, 1) if N > 1 else jnp.zeros(0)
    return Tridiagonal(diagonal.astype(dtype), off.astype(dtype))
