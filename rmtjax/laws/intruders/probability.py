r"""Intruder dimensions: the probability that the outlier of a spiked matrix stays far from every singular vector of the base.

A Gaussian base W is tuned by a rank-one update of Haar direction, :math:`M = W + \theta uu^\top` (GOE, variance 1/N) or
:math:`M = W + \theta uv^\top` (n×m, variance 1/m, c = n/m). The top eigenvector v̂ of M (left or right singular vector) is
an *intruder* at tolerance ε if :math:`\max_j|\langle w_j, \hat v\rangle| < \varepsilon`, :math:`w_j` those of W
(Shuttleworth et al. 2024; *Intruder Dimensions*, §V). Above the BBP threshold it is so in the limit, whatever ε is. At
finite size the transition is a window of width :math:`N^{-1/3}`, and this module says where in it one stands.

In the eigenbasis of W, with t a standard Gaussian vector, the outlier λ and the squared overlaps y are

.. math::
    F(\lambda) = \sum_j t_j^2\Big(\frac1{\lambda-\lambda_j} - \frac1\theta\Big) = 0, \qquad
    y_j = \frac{t_j^2}{Q(\lambda-\lambda_j)^2}, \qquad Q = \sum_j\frac{t_j^2}{(\lambda-\lambda_j)^2} = -F'(\lambda).

Counting the zero of F by Kac and Rice turns the probability given the spectrum into

.. math::
    P = \int\mathrm d\lambda\int\frac{\mathrm dQ}Q\,h(\lambda, Q), \qquad h = \Big[\prod_j\sqrt{\tfrac Q{2\pi}}\,d_j
    \int_0^{\varepsilon^2}\!\frac{\mathrm dy_j}{\sqrt{y_j}}e^{-Qd_j^2y_j/2}\Big]\,
    \delta\Big(\sum_jy_j - 1\Big)\,\delta\Big(\sum_jy_jg_j\Big),

:math:`d_j = \lambda-\lambda_j` and :math:`g_j = d_j - d_j^2/\theta`: a density of two sums of *independent truncated*
variables. h is taken by the saddle point in two dimensions with its second-order correction, the two outer integrals by Gauss
quadrature. The spectrum is replaced by its mean, except for the largest eigenvalue, over whose Tracy–Widom law P is
averaged; the mean spectrum is that of the semicircle at :math:`(j-\frac34)/(N-\frac12)`. Rectangular matrices add a second
Gaussian for each singular value, which hardly fluctuates and is integrated out.

The derivation, what each correction is worth, and a table of law against simulation: ``docs/intruder-law.md``. The error
measured there, over N = 200 to 4096, θ from 0.9 to 3 times the threshold, symmetric and rectangular, is at most 0.02 for
ε ≤ 0.7; it grows to 0.03 at ε = 0.8 and 0.05 at ε = 0.9. Within 0.015 of 1 the law is not monotone in θ.

Everything works elementwise on arrays that broadcast, runs in float64 and can be jitted, vmapped and differentiated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float

from rmtjax._checks import whole
from rmtjax._precision import float64
from rmtjax.laws.intruders._common import (
    check_eps,
    check_side,
    check_sizes,
    check_theta,
    elementwise,
    oriented,
)
from rmtjax.laws.intruders._integral import rectangular_law, wigner_law
from rmtjax.laws.intruders._spectrum import (
    wigner_spectrum,
)

__all__ = ["rectangular_intruder_probability", "wigner_independent_intruder_probability", "wigner_intruder_probability"]


@float64(keep=("order", "has_random_edge"))
def wigner_intruder_probability(
    N: Float[Array, "..."],
    theta: Float[Array, "..."],
    eps: Float[Array, "..."],
    *,
    order: int = 2,
    has_random_edge: bool = True,
) -> Float[Array, "..."]:
    r"""Return P(intruder) for :math:`W + \theta uu^\top`, W from the GOE of order N (variance 1/N), u Haar.

    The probability that the top eigenvector has :math:`|\langle w_j, \hat v\rangle| < \varepsilon` with every eigenvector
    of W. See the module for the law and its accuracy.

    Args:
        N: order of the matrix, at least 32; may be traced.
        theta: strength of the spike, θ > 0.
        eps: tolerance ε in (0, 1).
        order: order of the saddle-point approximation, 2 for the law, 1 to see what the correction is worth.
        has_random_edge: whether to average P over the largest eigenvalue; False shows the effect of its fluctuation.

    Raises:
        InputError: for arguments outside these ranges.

    Source:
        Ours; derived in ``docs/intruder-law.md``.

    Examples:
        >>> f"{float(wigner_intruder_probability(768, 1.2, 0.5)):.3f}"
        '0.436'
    """
    whole("order", order, 1, 2)
    check_sizes(N=N)
    check_theta(theta)
    check_eps(eps=eps)
    return elementwise(wigner_law(int(order), bool(has_random_edge)))(N, theta, eps)


@float64(keep=("side", "order", "has_random_edge"))
def rectangular_intruder_probability(
    n: Float[Array, "..."],
    m: Float[Array, "..."],
    theta: Float[Array, "..."],
    eps: Float[Array, "..."],
    *,
    side: str = "left",
    order: int = 2,
    has_random_edge: bool = True,
) -> Float[Array, "..."]:
    r"""Return P(intruder) for :math:`W + \theta uv^\top`, W n×m Gaussian of variance 1/m, u and v independent and Haar.

    The top left (or right) singular vector is compared with the min(n, m) left (right) singular vectors of W that a
    reduced SVD returns; where the side is the longer one, W's null space is not among them.

    Args:
        n, m: rows and columns, at least 32; may be traced.
        theta: strength of the spike, θ > 0; the BBP threshold is :math:`(n/m)^{1/4}`.
        eps: tolerance ε in (0, 1).
        side: "left" or "right".
        order, has_random_edge: as for `wigner_intruder_probability`.

    Raises:
        InputError: for arguments outside these ranges.

    Source:
        Ours; derived in ``docs/intruder-law.md``.
    """
    check_side(side)
    whole("order", order, 1, 2)
    check_sizes(n=n, m=m)
    check_theta(theta)
    check_eps(eps=eps)
    return elementwise(rectangular_law(int(order), bool(has_random_edge)))(*oriented(n, m, theta, side), eps)


@jax.jit
def _independent(N, theta, eps):
    N, theta, eps = jnp.broadcast_arrays(N, theta, eps)

    def chance(N, theta, eps):
        spectrum = wigner_spectrum(N)
        above = theta > 1
        t = jnp.where(above, theta, 2.0)
        distance = (t - 1) ** 2 / t + (2 - spectrum.edge) + spectrum.below
        log = jnp.log(erf(eps * jnp.sqrt(N / (2 * (t - 1) * (t + 1))) * distance))
        return jnp.where(above, jnp.exp(jnp.sum(spectrum.weight * log)), 0.0)

    return jnp.vectorize(chance)(N, theta, eps)


@float64
def wigner_independent_intruder_probability(
    N: Float[Array, "..."], theta: Float[Array, "..."], eps: Float[Array, "..."]
) -> Float[Array, "..."]:
    r"""Return the law that `wigner_intruder_probability` approaches above the window :math:`\theta - 1 \sim N^{-1/3}`.

    .. math::
        \prod_j\operatorname{erf}\Big(\varepsilon(\lambda_{out}-\lambda_j)\sqrt{\tfrac N{2(\theta^2-1)}}\Big)

    takes the overlaps for independent Gaussians of the variances of `wigner_overlap_profile`, which they are where none of them
    is of order 1, and the outlier for its limit. Inside the window it is off by up to 0.5. 0 at θ ≤ 1. Arguments and errors
    as for `wigner_intruder_probability`.
    """
    check_sizes(N=N)
    check_theta(theta)
    check_eps(eps=eps)
    return _independent(N, theta, eps)
