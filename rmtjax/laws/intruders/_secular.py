"""The secular equation of the outlier as sums over independent standard normal variables."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax.laws.intruders._spectrum import (
    Spectrum,
)

__all__ = ["Terms", "rectangular_terms", "wigner_terms"]


class Terms(NamedTuple):
    r"""The secular equation at one λ, as sums over independent standard normals :math:`T_j`.

    Attributes:
        distance: :math:`d_j`, by which the squared overlap is :math:`T_j^2/(Qd_j^2)`.
        force: :math:`f_j`, the coefficient of :math:`T_j^2` in F.
        mean: of what else F contains.
        variance: half of its variance.
        slope: :math:`-F'/Q`.
    """

    distance: Float[Array, "J"]
    force: Float[Array, "J"]
    mean: Float[Array, ""]
    variance: Float[Array, ""]
    slope: float


def wigner_terms(x, spectrum: Spectrum, theta) -> Terms:
    """Return the terms of the secular equation of a symmetric matrix at λ = edge + x."""
    d = x + spectrum.below
    zero = jnp.zeros_like(theta)
    return Terms(d, 1 / d - 1 / theta, zero, zero, 1.0)


def rectangular_terms(x, spectrum: Spectrum, theta, n, m) -> Terms:
    """Return the terms of the secular equation of a rectangular matrix at σ = edge + x, for left singular vectors."""
    c = n / m
    sigma, s, weight = spectrum.edge + x, spectrum.edge - spectrum.below[:-1], spectrum.weight[:-1]
    gap = (x + spectrum.below[:-1]) * (sigma + s)
    # The deterministic ratio of the overlaps with the two vectors of the spike.
    alpha, beta = jnp.sqrt(1 + theta**2), jnp.sqrt(c + theta**2)
    u, v = beta, jnp.sqrt(c) * alpha
    left, right = alpha * beta / theta, c * alpha * beta / theta
    a, b = (sigma * u) ** 2, (s * v) ** 2
    length = a + b
    force = (sigma * (a * u**2 + 2 * (s * u * v) ** 2 + b * v**2) / gap - (a * left + b * right)) / length
    other = (sigma * (u * v) ** 2 - (b * left + a * right)) / length
    mixed = s * u * v * (v**2 - sigma * (right - left)) / length
    # The null space of W, on the right, is far from σ: it enters by a mean and a variance.
    free, null = jnp.maximum(m - n, 0.0), v**2 / sigma - right
    return Terms(
        jnp.append(gap / jnp.sqrt(length), sigma / u),
        jnp.append(force, u**2 / sigma - left),
        jnp.sum(weight * other) + free * null,
        jnp.sum(weight * (other**2 + 2 * mixed**2)) + free * null**2,
        2.0,
    )
