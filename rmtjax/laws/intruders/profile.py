"""The profile of the outlier's vector in the base: mean squared overlaps with every eigenvector or singular vector."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax._precision import float64
from rmtjax.laws.intruders._common import (
    check_side,
)

__all__ = ["rectangular_overlap_profile", "wigner_overlap_profile"]


@float64
def wigner_overlap_profile(x: Float[Array, "..."], theta: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Return N times the mean squared overlap of the outlier's eigenvector with an eigenvector of the base.

    .. math::
        N|\langle w_j, \hat v\rangle|^2 \to \frac{\theta^2-1}{(\lambda_{out}-\lambda_j)^2},

    the mean of the squared overlap with an eigenvector of W at :math:`\lambda_j = x`; against the semicircle it integrates
    to 1. Symmetric Wigner base, variance 1/N, θ > 1, :math:`\lambda_{out} = \theta + 1/\theta`. At θ ≤ 1 the vector sticks to the
    edge and has no such profile: NaN.

    Args:
        x: place in the bulk, :math:`|x| \le 2`.
        theta: strength of the spike.
    """
    above = theta > 1
    t = jnp.where(above, theta, 2.0)
    # (t + 1/t − x)² = ((t−1)² + (2−x)t)²/t², without cancellation at the edge.
    profile = (t - 1) * (t + 1) * t**2 / ((t - 1) ** 2 + (2 - x) * t) ** 2
    return jnp.where(above, profile, jnp.nan)


@float64(keep=("side",))
def rectangular_overlap_profile(
    s: Float[Array, "..."], theta: Float[Array, "..."], c: Float[Array, "..."], *, side: str = "left"
) -> Float[Array, "..."]:
    r"""Return n (or m) times the mean squared overlap of the outlier's singular vector with one of the base.

    .. math::
        n|\langle u_j, \hat u\rangle|^2 \to
        \frac{\theta^4-c}{(\sigma^2-s_j^2)^2}\Big[\frac{\sigma^2}{\theta^2+1} + \frac{c\,s_j^2}{\theta^2+c}\Big],
        \qquad
        m|\langle v_j, \hat v\rangle|^2 \to
        \frac{\theta^4-c}{(\sigma^2-s_j^2)^2}\Big[\frac{\sigma^2}{\theta^2+c} + \frac{s_j^2/c}{\theta^2+1}\Big]

    at a singular value :math:`s_j` of W (n×m, variance 1/m), :math:`\sigma = \sqrt{(1+\theta^2)(c+\theta^2)}/\theta`. At
    :math:`s = 0` it is that of the null space on the larger side. NaN at :math:`\theta \le c^{1/4}`.

    Args:
        s: singular value of the base.
        theta: strength of the spike.
        c: aspect ratio n/m > 0.
        side: "left" or "right".

    Raises:
        InputError: for another side.
    """
    check_side(side)
    if side == "right":  # Wᵀ is m×n, and √(m/n) Wᵀ of variance 1/n
        root = jnp.sqrt(c)
        theta, s, c = theta / root, s / root, 1 / c
    above = theta**4 > c
    t2 = jnp.where(above, theta**2, 1 + c)
    sigma2 = (1 + t2) * (c + t2) / t2
    profile = (t2 - c / t2) * t2 * (sigma2 / (t2 + 1) + c * s**2 / (t2 + c)) / (sigma2 - s**2) ** 2
    return jnp.where(above, profile, jnp.nan)
