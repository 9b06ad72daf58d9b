r"""Wigner's semicircle law: the eigenvalues of a symmetric matrix of independent entries.

The off-diagonal entries of the N×N matrix have mean 0 and variance σ²/N. As N → ∞ its spectrum fills
:math:`[-2\sigma, 2\sigma]` with the density and the Stieltjes transform

.. math::
    \frac{\sqrt{4\sigma^2-x^2}}{2\pi\sigma^2}, \qquad
    m(z) = \int\frac{\mu(\mathrm d\lambda)}{z-\lambda} = \frac{z-\sqrt{z^2-4\sigma^2}}{2\sigma^2}

(Wigner, *Ann. Math.* 67, 1958; *Intruder Dimensions*, §IV-B, where m is printed as the transform of another law).

Every function works elementwise on arrays that broadcast, runs in float64 and is differentiable in every argument. σ is
refused unless it is finite and positive; where it is traced, nothing is checked.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact, Num

from rmtjax.laws._law import as_point, law

__all__ = ["cdf", "inverse_stieltjes", "moment", "pdf", "ppf", "r_transform", "stieltjes", "support"]

_SINE = [(-1) ** k / math.factorial(2 * k + 3) for k in range(14)]
"""Coefficients of (u − sin u)/u³ in powers of u². At u = π the first term left out is below 1e-19."""

_KEPLER = [1.0, 1 / 60, 1 / 1400, 1 / 25200, 43 / 17248000]
"""Coefficients of u/y in powers of y², u − sin u = y³/6, from which Newton's method for Kepler's equation starts."""


@law
def support(*, sigma: Float[Array, "..."] | float = 1.0) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Return the ends of the spectrum, :math:`\mp2\sigma`.

    Args:
        sigma: σ > 0.

    Raises:
        InputError: if σ is not finite and positive.

    Examples:
        >>> [float(end) for end in support(sigma=0.5)]
        [-1.0, 1.0]
    """
    return jnp.asarray(-2.0 * sigma), jnp.asarray(2.0 * sigma)


def _density(x):
    inside = jnp.abs(x) < 2
    x = jnp.where(inside, x, 0.0)
    return jnp.where(inside, jnp.sqrt((2 - x) * (2 + x)) / (2 * math.pi), 0.0)


@law
def pdf(x: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0) -> Float[Array, "..."]:
    r"""Return the density :math:`\sqrt{4\sigma^2-x^2}/(2\pi\sigma^2)`, 0 off the support.

    Args:
        x: points.
        sigma: σ > 0.

    Raises:
        InputError: if σ is not finite and positive.
    """
    s = x / sigma
    return jnp.where(jnp.isnan(s), s, _density(s) / sigma)


def _sine_gap(u):
    """Return the gap u − sin u on [0, π], of full relative accuracy at 0."""
    total = jnp.zeros_like(u)
    for c in _SINE[::-1]:
        total = total * u**2 + c
    return total * u**3


@jax.custom_jvp
def _distribution(x):
    # x = ∓2 cos φ with φ the angle from the nearer end, and the mass beyond it is (2φ − sin 2φ)/2π.
    angle = 2 * jnp.arcsin(jnp.sqrt(jnp.clip(2 - jnp.abs(x), 0, 2)) / 2)
    tail = _sine_gap(2 * angle) / (2 * math.pi)
    return jnp.where(x < 0, tail, 1 - tail)


_distribution.defjvps(lambda dx, _, x: _density(x) * dx)


@law
def cdf(x: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0) -> Float[Array, "..."]:
    r"""Return the distribution function.

    .. math::
        \frac12 + \frac{x\sqrt{4\sigma^2-x^2}}{4\pi\sigma^2} + \frac1\pi\arcsin\frac x{2\sigma}

    Near the lower end it keeps its relative accuracy; near the upper one ``cdf(-x)`` is the mass above x. Arguments and
    errors as for `pdf`.
    """
    return _distribution(x / sigma)


def _angle(q):
    """Return twice the angle from the nearer end at which the mass beyond is q ≤ ½: u − sin u = 2πq, Kepler's equation."""
    y = jnp.cbrt(12 * math.pi * q)
    u = jnp.zeros_like(y)
    for c in _KEPLER[::-1]:
        u = u * y**2 + c
    u = u * y
    for _ in range(3):
        away = u > 0
        u_safe = jnp.where(away, u, 1.0)
        u = jnp.where(away, u - (_sine_gap(u_safe) - 2 * math.pi * q) / (2 * jnp.sin(u_safe / 2) ** 2), 0.0)
    return u


@jax.custom_jvp
def _quantile(q):
    x = 2 * jnp.cos(_angle(jnp.minimum(q, 1 - q)) / 2)
    return jnp.where((q >= 0) & (q <= 1), jnp.where(q < 0.5, -x, x), jnp.nan)


@_quantile.defjvp
def _(primals, tangents):
    (q,), (dq,) = primals, tangents
    return _quantile(q), math.pi / jnp.sin(_angle(jnp.minimum(q, 1 - q)) / 2) * dq


@law
def ppf(q: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0) -> Float[Array, "..."]:
    r"""Return the quantile function, the inverse of `cdf`; its gradient is 1/`pdf`, infinite at the ends. NaN unless 0 ≤ q ≤ 1.

    Args:
        q: lower tail probability.
        sigma: σ > 0.

    Raises:
        InputError: if σ is not finite and positive.
    """
    return sigma * _quantile(q)


@law
def moment(k: int, *, sigma: Float[Array, "..."] | float = 1.0) -> Float[Array, "..."]:
    r"""Return :math:`\int x^k\mu(\mathrm dx) = \sigma^kC_{k/2}` with Catalan's :math:`C_j = \binom{2j}j/(j+1)`; 0 for odd k.

    Args:
        k: whole number from 0 to 500.
        sigma: σ > 0.

    Raises:
        InputError: if k is not such a number, or σ not finite and positive.
    """
    j, odd = divmod(int(k), 2)
    return (0.0 if odd else float(math.comb(2 * j, j) // (j + 1))) * jnp.asarray(sigma) ** k


@law
def stieltjes(z: Num[ArrayLike, "..."], *, sigma: Float[Array, "..."] | float = 1.0) -> Inexact[Array, "..."]:
    r"""Return the Stieltjes transform.

    .. math::
        m(z) = \int\frac{\mu(\mathrm d\lambda)}{z-\lambda} = \frac2{z+\sqrt{z-2\sigma}\sqrt{z+2\sigma}}

    This branch of the root is that of :math:`m\sim1/z`, and nothing cancels, however large z is. On the support a complex z
    of imaginary part 0 gives the limit from above, a real z gives NaN.

    Args:
        z: real or complex.
        sigma: σ > 0.

    Raises:
        InputError: if σ is not finite and positive.
    """
    z = as_point(z)
    edge = 2 * jnp.asarray(sigma)
    if jnp.iscomplexobj(z):
        return 2 / (z + jnp.sqrt(z - edge) * jnp.sqrt(z + edge))
    outside = jnp.abs(z) >= edge
    size = jnp.where(outside, jnp.abs(z), 2 * edge)
    m = 2 / (size + jnp.sqrt(size - edge) * jnp.sqrt(size + edge))
    return jnp.where(outside, jnp.sign(z) * m, jnp.nan)


@law
def inverse_stieltjes(m: Num[ArrayLike, "..."], *, sigma: Float[Array, "..."] | float = 1.0) -> Inexact[Array, "..."]:
    r"""Return the z at which `stieltjes` is m, :math:`z = 1/m + \sigma^2m`.

    Inverse on the image of the transform, :math:`|m| \le 1/\sigma` for real m. At :math:`m = 1/\theta` it is the outlier of a
    spike of strength θ > σ.

    Args:
        m: real or complex.
        sigma: σ > 0.

    Raises:
        InputError: if σ is not finite and positive.
    """
    m = as_point(m)
    return 1 / m + jnp.asarray(sigma) ** 2 * m


@law
def r_transform(m: Num[ArrayLike, "..."], *, sigma: Float[Array, "..."] | float = 1.0) -> Inexact[Array, "..."]:
    r"""Return Voiculescu's R-transform :math:`R(m) = z(m) - 1/m = \sigma^2m`, additive under free convolution.

    Args:
        m: real or complex.
        sigma: σ > 0.

    Raises:
        InputError: if σ is not finite and positive.
    """
    return jnp.asarray(sigma) ** 2 * as_point(m)
