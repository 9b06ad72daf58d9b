r"""The spectral measure of a spiked Wigner matrix at its spike: :math:`\sum_k\langle u, v_k\rangle^2\delta_{\lambda_k}`.

The matrix is :math:`W + \theta uu^\top`, W Wigner of variance 1/N. In the limit the measure has a density on the bulk and, for
:math:`|\theta| > 1`, an atom at the outlier :math:`\theta + 1/\theta` (*Intruder Dimensions*, eq. (1), with its erratum).

Every function works elementwise on arrays that broadcast, runs in float64 and is differentiable.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Num

from rmtjax._precision import float64
from rmtjax.laws._law import at_points

__all__ = ["atom", "cdf", "pdf", "stieltjes"]

_Array = Float[Array, "..."]


@float64
def atom(theta: _Array) -> _Array:
    r"""Return the mass :math:`1 - 1/\theta^2` of the spectral measure at :math:`\theta + 1/\theta`; 0 for :math:`|\theta| \le 1`.

    Source:
        *Intruder Dimensions*, eq. (1), whose condition :math:`|\theta| \ge \sqrt{\lambda_+}` is corrected; Noiry 2020.
    """
    return jnp.where(jnp.abs(theta) > 1, 1 - 1 / jnp.maximum(jnp.abs(theta), 1.0) ** 2, 0.0)


@float64
def pdf(x: _Array, theta: _Array) -> _Array:
    r"""Return the density of the spectral measure of :math:`W + \theta uu^\top` at u inside the bulk, :math:`|x| < 2`.

    .. math::
        \frac{\sqrt{4-x^2}}{2\pi(\theta^2+1-\theta x)}

    Args:
        x: points.
        theta: strength, of either sign.

    Source:
        *Intruder Dimensions*, eq. (1).
    """
    inside = jnp.abs(x) < 2
    y = jnp.where(inside, x, 0.0)
    # θ² + 1 − θx vanishes only at the edge for |θ| = 1, where the density diverges like an inverse square root.
    return jnp.where(inside, jnp.sqrt((2 - y) * (2 + y)) / (2 * jnp.pi * (theta**2 + 1 - theta * y)), 0.0)


@float64
def cdf(x: _Array, theta: _Array) -> _Array:
    r"""Return the distribution function of the spectral measure of :math:`W + \theta uu^\top` at u, the atom included.

    With :math:`x = 2\cos\varphi` and t whichever of θ and 1/θ is at most 1 in modulus, the mass in (x, 2) is

    .. math::
        \frac{\min(1, \theta^{-2})}\pi\Big[\varphi + L - \frac{L - t\sin\varphi}{t^2}\Big], \qquad
        L = \arctan\frac{t\sin\varphi}{1 - t\cos\varphi} = \sum_{k\ge1}\frac{t^k\sin k\varphi}k .

    Args:
        x: points.
        theta: strength, of either sign.

    Source:
        The integral of *Intruder Dimensions*, eq. (1); ours.
    """
    strong = jnp.abs(theta) > 1
    t = jnp.where(strong, 1 / jnp.where(strong, theta, 1.0), theta)
    phi = jnp.arccos(jnp.clip(x / 2, -1.0, 1.0))
    small = jnp.abs(t) < 0.05
    safe_t = jnp.where(small, 0.5, t)
    series = jnp.arctan2(safe_t * jnp.sin(phi), 1 - safe_t * jnp.cos(phi))
    terms = [jnp.sin(k * phi) / k for k in range(1, 13)]
    head = sum(t**k * term for k, term in enumerate(terms, 1))
    first = jnp.where(small, head, series)
    second = jnp.where(
        small,
        sum(t**k * term for k, term in enumerate(terms[1:])),
        (series - safe_t * jnp.sin(phi)) / safe_t**2,
    )
    above = jnp.where(strong, t**2, 1.0) / jnp.pi * (phi + first - second)
    atom = jnp.where(strong, 1 - t**2, 0.0)
    at = jnp.where(strong, theta + t, 0.0)
    return (1 - atom - above) + jnp.where(strong & (x >= at), atom, 0.0)


@at_points
def stieltjes(z: Num[ArrayLike, "..."], theta: _Array) -> Complex[Array, "..."]:
    r"""Return the Stieltjes transform :math:`\int\frac{\mu_\theta(\mathrm d\lambda)}{z-\lambda} = \frac1{z-\theta-m(z)}`.

    m is the semicircle's transform, :math:`1/m = z - m`.

    Args:
        z: complex points off the real axis.
        theta: strength, of either sign.

    Examples:
        >>> complex(stieltjes(4j, 0.0)).imag  # of the semicircle itself
        -0.2360679774997897
    """
    z = jnp.asarray(z, jnp.complex128)
    m = 2 / (z * (1 + jnp.sqrt(1 - 4 / z**2)))
    return 1 / (z - theta - m)
