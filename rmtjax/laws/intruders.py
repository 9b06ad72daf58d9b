r"""Intruder dimensions: how far the outlier of a spiked matrix stays from every singular vector of the base.

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

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.scipy.special import erf, ndtri
from jaxtyping import Array, Float

from rmtjax._errors import InputError, shown, unknown
from rmtjax._precision import float64
from rmtjax.laws import marchenko_pastur, semicircle
from rmtjax.laws.edge import tracy_widom

__all__ = [
    "independent_intruder_probability",
    "intruder_probability",
    "intruder_threshold",
    "overlap_profile",
    "rectangular_intruder_probability",
    "rectangular_intruder_threshold",
    "rectangular_overlap_profile",
]

SMALLEST = 32
"""The smallest size that the laws are for: the top of the spectrum is taken eigenvalue by eigenvalue."""

_SINGLE, _BULK = 12, 20
"""Eigenvalues that count one by one, and Gauss points for the rest."""

_TOP, _OUTLIER, _NORM = 6, 16, 12
"""Gauss points for the largest eigenvalue, for λ and for log Q. Doubling any moves P by less than 0.002 for ε ≤ 0.7, and by
0.011 at 0.9."""

_TRUNCATED = 20
"""Gauss points for a truncated variable: for z > 0, where up to 10⁹ of a kind add up, to 1e-13; for z < 0 to 1e-8."""

_REACH = 5.0
"""How many standard deviations of the outlier the integral over λ covers on either side."""

_CENTRING, _DESCENT = 16, 60
"""Newton steps to the best log Q, and at most so many to a saddle point."""

_NEGLIGIBLE = -60.0
"""Logarithm of a density that no longer counts."""

_NEVER = 1e3
"""A θ beyond which a threshold is reported as infinite."""

_SIDES = ("left", "right")


# -- what is admissible ------------------------------------------------------------------------------------------------


def _known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _check(low: float, high: float, allowed: str, **values: Any) -> None:
    for name, value in values.items():
        if _known(value):
            given = np.asarray(value, float)
            bad = ~((given > low) & (given < high))
            if np.any(bad):
                raise InputError(f"{name} = {shown(float(given[bad][0]))}: must be {allowed}")


def _check_sizes(**values: Any) -> None:
    _check(math.nextafter(SMALLEST, 0), math.inf, f"a finite size, at least {SMALLEST}", **values)


def _check_side(side: str) -> None:
    if side not in _SIDES:
        raise unknown("side", side, _SIDES)


# -- the profile of overlaps -------------------------------------------------------------------------------------------


@float64
def overlap_profile(theta: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Where the outlier's eigenvector lies in the base.

    .. math::
        N|\langle w_j, \hat v\rangle|^2 \to \frac{\theta^2-1}{(\lambda_{out}-\lambda_j)^2},

    the mean of the squared overlap with an eigenvector of W at :math:`\lambda_j = x`; against the semicircle it integrates
    to 1. Symmetric Wigner base, variance 1/N, θ > 1, :math:`\lambda_{out} = \theta + 1/\theta`. At θ ≤ 1 the vector sticks to the
    edge and has no such profile: NaN.

    Args:
        theta: strength of the spike.
        x: in the bulk, :math:`|x| \le 2`.
    """
    above = theta > 1
    t = jnp.where(above, theta, 2.0)
    # (t + 1/t − x)² = ((t−1)² + (2−x)t)²/t², with nothing that cancels at the edge.
    profile = (t - 1) * (t + 1) * t**2 / ((t - 1) ** 2 + (2 - x) * t) ** 2
    return jnp.where(above, profile, jnp.nan)


@float64(keep=("side",))
def rectangular_overlap_profile(
    theta: Float[Array, "..."], s: Float[Array, "..."], c: Float[Array, "..."], side: str = "left"
) -> Float[Array, "..."]:
    r"""Where the outlier's singular vector lies in the base.

    .. math::
        n|\langle u_j, \hat u\rangle|^2 \to
        \frac{\theta^4-c}{(\sigma^2-s_j^2)^2}\Big[\frac{\sigma^2}{\theta^2+1} + \frac{c\,s_j^2}{\theta^2+c}\Big],
        \qquad
        m|\langle v_j, \hat v\rangle|^2 \to
        \frac{\theta^4-c}{(\sigma^2-s_j^2)^2}\Big[\frac{\sigma^2}{\theta^2+c} + \frac{s_j^2/c}{\theta^2+1}\Big]

    at a singular value :math:`s_j` of W (n×m, variance 1/m), :math:`\sigma = \sqrt{(1+\theta^2)(c+\theta^2)}/\theta`. At
    :math:`s = 0` it is that of the null space on the larger side. NaN at :math:`\theta \le c^{1/4}`.

    Args:
        theta: strength of the spike.
        s: singular value of the base.
        c: aspect ratio n/m > 0.
        side: "left" or "right".

    Raises:
        InputError: for another side.
    """
    _check_side(side)
    if side == "right":  # Wᵀ is m×n, and √(m/n) Wᵀ of variance 1/n
        root = jnp.sqrt(c)
        theta, s, c = theta / root, s / root, 1 / c
    above = theta**4 > c
    t2 = jnp.where(above, theta**2, 1 + c)
    sigma2 = (1 + t2) * (c + t2) / t2
    profile = (t2 - c / t2) * t2 * (sigma2 / (t2 + 1) + c * s**2 / (t2 + c)) / (sigma2 - s**2) ** 2
    return jnp.where(above, profile, jnp.nan)


# -- the mean spectrum ---------------------------------------------------------------------------------------------------


@functools.cache
def _top_law() -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadrature for the Tracy–Widom law of β = 1 (Stieltjes' procedure, then Golub and Welsch)."""
    x = np.linspace(-10, 8, 2001)
    with jax.ensure_compile_time_eval():
        p = np.asarray(tracy_widom.pdf(x, 1))
    p = p / p.sum()
    diagonal, beside = np.zeros(_TOP), np.zeros(_TOP)
    before, now, last = np.zeros_like(x), np.ones_like(x), 1.0
    for k in range(_TOP):
        norm = np.sum(p * now**2)
        diagonal[k], beside[k] = np.sum(p * x * now**2) / norm, norm / last
        before, now, last = now, (x - diagonal[k]) * now - (beside[k] * before if k else 0.0), norm
    off = np.sqrt(beside[1:])
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2


class _Spectrum(NamedTuple):
    """The base's mean spectrum: `edge − below[i]` stands for `weight[i]` eigenvalues or singular values.

    `top` are the places of the largest one, again below the edge, that P is averaged over with the weights of `_top_law`.
    """

    edge: Float[Array, ""]
    below: Float[Array, "J"]
    weight: Float[Array, "J"]
    top: Float[Array, "T"]


_INDEX = np.append(np.arange(1.0, _SINGLE + 1), _SINGLE + 0.5) - 0.75
"""Of the quantiles: the mean of the j-th eigenvalue from the top for β = 1 is where the mean count is j − ¾."""

_LEGENDRE = {n: np.polynomial.legendre.leggauss(n) for n in (_BULK, _OUTLIER, _TRUNCATED)}


def _arc(start):
    """Angles from `start` to π and their weights; the quarter of an eigenvalue of β = 1 that is left sits at π.

    Even in the logarithm: start is of the order of N^(−1/3), and so are the angles over which the sums change.
    """
    x, w = _LEGENDRE[_BULK]
    half = jnp.log(jnp.pi / start) / 2
    angle = start * jnp.exp(half * (1 + x))
    return angle, half * w * angle


def _wigner_spectrum(N) -> _Spectrum:
    n = N - 0.5
    edge = 2 * jnp.sqrt(n / N)
    below = edge * (1 + semicircle.ppf(_INDEX / n) / 2)
    angle, step = _arc(2 * jnp.arcsin(jnp.sqrt(below[-1] / (2 * edge))))
    return _Spectrum(
        edge,
        jnp.concatenate([below[:-1], 2 * edge * jnp.sin(angle / 2) ** 2, 2 * edge[None]]),
        jnp.concatenate([jnp.ones(_SINGLE), step * n * 2 / jnp.pi * jnp.sin(angle) ** 2, jnp.full(1, 0.25)]),
        -_top_law()[0] * n ** (-1 / 6) / jnp.sqrt(N),
    )


def _rectangular_spectrum(n, m) -> _Spectrum:
    """Of singular values; the last entry is the null space of Wᵀ."""
    p, q = n - 0.5, m - 0.5
    c, root_p, root_q = p / q, jnp.sqrt(p), jnp.sqrt(q)
    edge = (root_p + root_q) / jnp.sqrt(m)
    s = jnp.sqrt(q / m) * marchenko_pastur.singular_ppf(1 - _INDEX / jnp.minimum(p, q), c)
    span = 4 * root_p * root_q / m  # s² = edge² − span·sin²(φ/2)
    angle, step = _arc(2 * jnp.arcsin(jnp.sqrt((edge - s[-1]) * (edge + s[-1]) / span)))
    weight = step * p * 2 / jnp.pi * jnp.sin(angle) ** 2 / (1 + c + 2 * jnp.sqrt(c) * jnp.cos(angle))
    bottom = jnp.abs(root_p - root_q) / jnp.sqrt(m)
    bulk = jnp.sqrt(bottom**2 + span * jnp.cos(angle / 2) ** 2)
    # Johnstone (Ann. Statist. 29, 2001) with the halves of Ma (Bernoulli 18, 2012).
    stretch = (root_p + root_q) * jnp.cbrt(1 / root_p + 1 / root_q) / m * _top_law()[0]
    return _Spectrum(
        edge,
        jnp.concatenate([edge - s[:-1], edge - bulk, (edge - bottom)[None], edge[None]]),
        jnp.concatenate([jnp.ones(_SINGLE), weight, jnp.full(1, 0.25), jnp.maximum(n - m, 0.0)[None]]),
        -stretch / (edge + jnp.sqrt(edge**2 + stretch)),
    )


# -- what the outlier's equation is made of --------------------------------------------------------------------------------


class _Terms(NamedTuple):
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


def _wigner_terms(x, spectrum: _Spectrum, theta) -> _Terms:
    """At λ = edge + x."""
    d = x + spectrum.below
    zero = jnp.zeros_like(theta)
    return _Terms(d, 1 / d - 1 / theta, zero, zero, 1.0)


def _rectangular_terms(x, spectrum: _Spectrum, theta, n, m) -> _Terms:
    """At σ = edge + x; the left singular vectors."""
    c = n / m
    sigma, s, weight = spectrum.edge + x, spectrum.edge - spectrum.below[:-1], spectrum.weight[:-1]
    gap = (x + spectrum.below[:-1]) * (sigma + s)
    # The deterministic ratio of the overlaps with the spike's two vectors.
    alpha, beta = jnp.sqrt(1 + theta**2), jnp.sqrt(c + theta**2)
    u, v = beta, jnp.sqrt(c) * alpha
    left, right = alpha * beta / theta, c * alpha * beta / theta
    a, b = (sigma * u) ** 2, (s * v) ** 2
    length = a + b
    force = (sigma * (a * u**2 + 2 * (s * u * v) ** 2 + b * v**2) / gap - (a * left + b * right)) / length
    other = (sigma * (u * v) ** 2 - (b * left + a * right)) / length
    mixed = s * u * v * (v**2 - sigma * (right - left)) / length
    # The null space of W, of right vectors, is far from σ: a number and its variance.
    free, null = jnp.maximum(m - n, 0.0), v**2 / sigma - right
    return _Terms(
        jnp.append(gap / jnp.sqrt(length), sigma / u),
        jnp.append(force, u**2 / sigma - left),
        jnp.sum(weight * other) + free * null,
        jnp.sum(weight * (other**2 + 2 * mixed**2)) + free * null**2,
        2.0,
    )


# -- truncated variables -----------------------------------------------------------------------------------------------

_REST = (5.5, 20.0)
"""Where :math:`e^{-zs^2}` has fallen to nothing: at √z s = 5.5 from its top at 0 (z > 0), at −z(1 − s) = 20 from that at 1."""


def _truncated(z: Float[Array, "J"], order: int) -> tuple[Float[Array, "J"], list[Float[Array, "J"]]]:
    r""":math:`\log\int_0^1e^{-zs^2}\mathrm ds` and the first cumulants of :math:`s^2` under that density, 2 or 4 of them."""
    x, w = _LEGENDRE[_TRUNCATED]
    up, down = _REST
    fixed = stop_gradient(z)
    low = jnp.maximum(1 - down / jnp.maximum(-fixed, down), 0.0)[..., None]
    high = jnp.minimum(up / jnp.sqrt(jnp.maximum(fixed, up**2)), 1.0)[..., None]
    s2 = (low + (high - low) * (1 + x) / 2) ** 2
    shift = jnp.minimum(z, 0.0)
    density = w * (high - low) / 2 * jnp.exp(shift[..., None] - z[..., None] * s2)
    total = jnp.sum(density, -1)
    mean = jnp.sum(density * s2, -1) / total
    away = s2 - mean[..., None]
    central = [jnp.sum(density * away**k, -1) / total for k in range(2, order + 1)]
    if order == 4:
        central[2] = central[2] - 3 * central[0] ** 2
    return jnp.log(total) - shift, [mean, *central]


# -- the saddle point --------------------------------------------------------------------------------------------------


class _Sums(NamedTuple):
    r"""Everything at one λ, in units in which the mean of Q is 1; :math:`\ell = \log Q`.

    Attributes:
        rate: :math:`r_j`: without the constraints :math:`y_j` has the density :math:`y^{-1/2}e^{-e^\ell r_jy/2}`.
        g: :math:`F = e^\ell\sum_jy_jg_j + \dots`
        weight: how many j there are of each kind.
        mean, variance: of the rest of F, as in `_Terms`.
        tolerance: ε².
    """

    rate: Float[Array, "J"]
    g: Float[Array, "J"]
    weight: Float[Array, "J"]
    mean: Float[Array, ""]
    variance: Float[Array, ""]
    tolerance: Float[Array, ""]


class _Potential(NamedTuple):
    """The exponent of the inverse Fourier transform at a real point (p, q), its gradient and Hessian there."""

    value: Float[Array, ""]
    by_p: Float[Array, ""]
    by_q: Float[Array, ""]
    pp: Float[Array, ""]
    pq: Float[Array, ""]
    qq: Float[Array, ""]
    cumulants: list[Float[Array, "J"]]  # of y, times the weights
    half: Float[Array, "J"]  # e^ℓ r/2
    mean: Float[Array, ""]
    variance: Float[Array, ""]

    def newton(self, by_p, by_q):
        """Minus the inverse Hessian times a vector."""
        det = self.pp * self.qq - self.pq**2
        return (self.pq * by_q - self.qq * by_p) / det, (self.pq * by_p - self.pp * by_q) / det


def _potential(sums: _Sums, p, q, ell, order: int = 2) -> _Potential:
    r"""Convex in (p, q), with :math:`\kappa_j = e^\ell r_j/2 + pg_j + q`.

    .. math::
        \sum_j\log\Big[\sqrt{e^\ell r_j/2\pi}\int_0^{\varepsilon^2}y^{-1/2}e^{-\kappa_jy}\mathrm dy\Big] + q - p\bar F + p^2V .
    """
    e2, w, g = sums.tolerance, sums.weight, sums.g
    half = jnp.exp(ell) * sums.rate / 2
    log, c = _truncated(e2 * (half + p * g + q), order)
    c = [w * e2 ** (k + 1) * x for k, x in enumerate(c)]
    mean, variance = sums.mean * jnp.exp(-ell), sums.variance * jnp.exp(-2 * ell)
    return _Potential(
        jnp.sum(w * (log + 0.5 * jnp.log(4 / jnp.pi * e2 * half))) + q - p * mean + p**2 * variance,
        2 * p * variance - mean - jnp.sum(c[0] * g),
        1 - jnp.sum(c[0]),
        2 * variance + jnp.sum(c[1] * g**2),
        jnp.sum(c[1] * g),
        jnp.sum(c[1]),
        c,
        half,
        mean,
        variance,
    )


def _centre(sums: _Sums):
    """The ℓ that counts most, the saddle point there and its derivative, and the width in ℓ: Newton in all three."""

    def step(_, state):
        p, q, ell, *_ = state
        at = _potential(sums, p, q, ell)
        c1, c2 = at.cumulants
        by_ell = jnp.sum(sums.weight / 2 - c1 * at.half) + p * at.mean - 2 * p**2 * at.variance
        ell_ell = jnp.sum(c2 * at.half**2 - c1 * at.half) - p * at.mean + 4 * p**2 * at.variance
        ell_p = jnp.sum(c2 * sums.g * at.half) + at.mean - 4 * p * at.variance
        ell_q = jnp.sum(c2 * at.half)
        turn_p, turn_q = at.newton(ell_p, ell_q)
        to_p, to_q = at.newton(at.by_p, at.by_q)
        curvature = jnp.minimum(ell_ell + ell_p * turn_p + ell_q * turn_q, -0.5)
        move = jnp.clip(-(by_ell + ell_p * to_p + ell_q * to_q) / curvature, -0.4, 0.4)
        decrement = -(at.by_p * to_p + at.by_q * to_q)
        damp = 1 / (1 + jnp.sqrt(jnp.maximum(decrement - 1, 0.0)))
        return (
            p + damp * to_p + turn_p * move,
            q + damp * to_q + turn_q * move,
            ell + move,
            turn_p,
            turn_q,
            1 / jnp.sqrt(-curvature),
        )

    zero = jnp.zeros(())
    return jax.lax.fori_loop(0, _CENTRING, step, (zero,) * 6)


def _saddle(sums: _Sums, p, q, ell):
    """The minimum of the potential in (p, q), and whether it was found; where the density is negligible it need not be."""

    def look(p, q):
        at = _potential(sums, p, q, ell)
        dp, dq = at.newton(at.by_p, at.by_q)
        return at.value, dp, dq, -(at.by_p * dp + at.by_q * dq)

    def step(state):
        count, p, q, *old = state
        new = look(p + old[1], q + old[2])
        better = new[0] <= old[0] + 1e-9
        kept = (old[0], old[1] / 4, old[2] / 4, old[3])
        picked = (jnp.where(better, x, y) for x, y in zip(new, kept, strict=True))
        return count + 1, jnp.where(better, p + old[1], p), jnp.where(better, q + old[2], q), *picked

    def unfinished(state):
        count, _, _, value, _, _, decrement = state
        return (count < _DESCENT) & (decrement > 1e-6) & (value > _NEGLIGIBLE)

    zero, infinite = jnp.zeros_like(p), jnp.full_like(p, jnp.inf)
    _, p, q, _, _, _, decrement = jax.lax.while_loop(unfinished, step, (0, p, q, infinite, zero, zero, infinite))
    return p, q, decrement < 1e-2


def _log_density(sums: _Sums, p, q, ell):
    r"""Logarithm of h at the saddle point (p, q), corrected by :math:`\frac18\rho_4-\frac18\rho_{13}^2-\frac1{12}\rho_{23}^2`.

    McCullagh, *Tensor Methods in Statistics* (1987), §6.3. The correction stays in the exponent, which keeps h positive. A
    last Newton step from a constant makes the derivative that of the true saddle point.
    """
    at = _potential(sums, p, q, ell)
    dp, dq = at.newton(at.by_p, at.by_q)
    at = _potential(sums, p + dp, q + dq, ell, 4)
    _, _, c3, c4 = at.cumulants
    det = at.pp * at.qq - at.pq**2
    # Each y adds its cumulants along the vector (g, 1); in these coordinates the covariance is the identity.
    one = jnp.ones_like(sums.g) / jnp.sqrt(at.qq)
    other = (sums.g - at.pq / at.qq) * jnp.sqrt(at.qq / det)
    square = one**2 + other**2
    rho4 = jnp.sum(c4 * square**2)
    rho13 = jnp.sum(c3 * square * one) ** 2 + jnp.sum(c3 * square * other) ** 2
    rho23 = sum(times * jnp.sum(c3 * one ** (3 - k) * other**k) ** 2 for k, times in enumerate((1, 3, 3, 1)))
    return at.value - math.log(2 * math.pi) - jnp.log(det) / 2 + rho4 / 8 - rho13 / 8 - rho23 / 12


# -- the integrals -----------------------------------------------------------------------------------------------------


def _given_top(spectrum: _Spectrum, terms: Callable[..., _Terms], theta, eps):
    """P(intruder) for one spectrum."""
    highest = jnp.maximum(-spectrum.below[0], -spectrum.below[1])

    def force(log_x):
        at = terms(highest + jnp.exp(log_x), spectrum)
        return jnp.sum(spectrum.weight * at.force) + at.mean

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        positive = force(middle) > 0
        return jnp.where(positive, middle, low), jnp.where(positive, high, middle)

    # Where the outlier would be if F were its mean; in log λ, since it may be very close to the top.
    bracket = jax.lax.fori_loop(0, 45, halve, (jnp.full_like(theta, math.log(1e-12)), jnp.log(2 * theta + 2)))
    x0 = stop_gradient(jnp.exp((bracket[0] + bracket[1]) / 2))
    at = stop_gradient(terms(highest + x0, spectrum))
    scale = jnp.sum(spectrum.weight / at.distance**2)  # the mean of Q
    deviation = jnp.sqrt(2 * jnp.sum(spectrum.weight * at.force**2) + 2 * at.variance) / (at.slope * scale)
    low, high = jnp.maximum(x0 - _REACH * deviation, 0.0), x0 + _REACH * deviation
    nodes, weights = _LEGENDRE[_OUTLIER]
    hermite_nodes, hermite_weights = np.polynomial.hermite_e.hermegauss(_NORM)

    def density(x):
        at = terms(highest + x, spectrum)
        d2 = at.distance**2
        sums = _Sums(
            scale * d2,
            jnp.sqrt(scale) * at.force * d2,
            spectrum.weight,
            at.mean / jnp.sqrt(scale),
            at.variance / scale,
            eps**2,
        )
        fixed = stop_gradient(sums)
        p, q, ell, turn_p, turn_q, width = _centre(fixed)

        def node(z, weight):
            move = width * z
            p_, q_, found = _saddle(fixed, p + turn_p * move, q + turn_q * move, ell + move)
            found, p_, q_, ell_ = stop_gradient(
                (found, jnp.where(found, p_, 0.0), jnp.where(found, q_, 0.0), ell + move)
            )
            log = jnp.where(found, _log_density(sums, p_, q_, ell_), _NEGLIGIBLE)
            return weight * jnp.exp(log + z**2 / 2)

        # F = e^ℓ Σ y g in units of √scale.
        return (
            at.slope * jnp.sqrt(scale) * stop_gradient(width) * jnp.sum(jax.vmap(node)(hermite_nodes, hermite_weights))
        )

    values = jax.vmap(density)(low + (high - low) * (1 + nodes) / 2)
    return (high - low) / 2 * jnp.sum(weights * values)


def _averaged(spectrum: _Spectrum, terms: Callable[..., _Terms], theta, eps):
    """The mean of P over the largest eigenvalue."""

    def one(top):
        return _given_top(spectrum._replace(below=spectrum.below.at[0].set(top)), terms, theta, eps)

    return jnp.clip(jnp.sum(_top_law()[1] * jax.vmap(one)(spectrum.top)), 0.0, 1.0)


def _by_partials(function):
    """Differentiate forward, at the place itself: few arguments, many steps, and nothing to remember for later."""
    every = tuple(range(len(inspect.signature(function).parameters)))
    jacobian = jax.jit(jax.jacfwd(lambda *args: (function(*args),) * 2, every, has_aux=True))
    wrapped = jax.custom_jvp(jax.jit(function))

    @wrapped.defjvp
    def _(args, tangents):
        partials, value = jacobian(*args)
        return value, sum(p * t for p, t in zip(partials, tangents, strict=True))

    return wrapped


@_by_partials
def _wigner(N, theta, eps):
    return _averaged(_wigner_spectrum(N), lambda x, s: _wigner_terms(x, s, theta), theta, eps)


@_by_partials
def _rectangular(n, m, theta, eps):
    return _averaged(_rectangular_spectrum(n, m), lambda x, s: _rectangular_terms(x, s, theta, n, m), theta, eps)


def _elementwise(function):
    """Of scalars to of arrays, one element after the other: each is a thousand saddle points already.

    Known arguments go through one program for scalars, whatever their shape.
    """

    def mapped(*args):
        args = jnp.broadcast_arrays(*args)
        shape = args[0].shape
        if not shape:
            return function(*args)
        flat = tuple(a.ravel() for a in args)
        if all(map(_known, args)):
            values = [function(*row) for row in zip(*map(np.asarray, flat), strict=True)]
            return jnp.asarray(values, jnp.float64).reshape(shape)
        return jax.lax.map(lambda row: function(*row), flat).reshape(shape)

    return mapped


_wigner_mapped, _rectangular_mapped = _elementwise(_wigner), _elementwise(_rectangular)


@float64
def intruder_probability(
    N: Float[Array, "..."], theta: Float[Array, "..."], eps: Float[Array, "..."]
) -> Float[Array, "..."]:
    r"""P(intruder) for :math:`W + \theta uu^\top`, W from the GOE of order N (variance 1/N), u Haar.

    The probability that the top eigenvector has :math:`|\langle w_j, \hat v\rangle| < \varepsilon` with every eigenvector
    of W. See the module for the law and its accuracy.

    Args:
        N: order of the matrix, at least 32; may be traced.
        theta: strength of the spike, θ > 0.
        eps: tolerance ε in (0, 1).

    Raises:
        InputError: for arguments outside these ranges.

    Source:
        Ours; derived in ``docs/intruder-law.md``.
    """
    _check_sizes(N=N)
    _check(0.0, math.inf, "a finite number > 0", theta=theta)
    _check(0.0, 1.0, "between 0 and 1", eps=eps)
    return _wigner_mapped(N, theta, eps)


def _oriented(n, m, theta, side):
    """A right vector is a left one of √(m/n) Wᵀ, which is m×n of variance 1/n."""
    return (n, m, theta) if side == "left" else (m, n, theta * jnp.sqrt(m / n))


@float64(keep=("side",))
def rectangular_intruder_probability(
    n: Float[Array, "..."],
    m: Float[Array, "..."],
    theta: Float[Array, "..."],
    eps: Float[Array, "..."],
    side: str = "left",
) -> Float[Array, "..."]:
    r"""P(intruder) for :math:`W + \theta uv^\top`, W n×m Gaussian of variance 1/m, u and v independent and Haar.

    The top left (or right) singular vector is compared with the min(n, m) left (right) singular vectors of W that a
    reduced SVD returns; where the side is the longer one, W's null space is not among them.

    Args:
        n, m: rows and columns, at least 32; may be traced.
        theta: strength of the spike, θ > 0; the BBP threshold is :math:`(n/m)^{1/4}`.
        eps: tolerance ε in (0, 1).
        side: "left" or "right".

    Raises:
        InputError: for arguments outside these ranges.

    Source:
        Ours; derived in ``docs/intruder-law.md``.
    """
    _check_side(side)
    _check_sizes(n=n, m=m)
    _check(0.0, math.inf, "a finite number > 0", theta=theta)
    _check(0.0, 1.0, "between 0 and 1", eps=eps)
    return _rectangular_mapped(*_oriented(n, m, theta, side), eps)


@jax.jit
def _independent(N, theta, eps):
    N, theta, eps = jnp.broadcast_arrays(N, theta, eps)

    def one(N, theta, eps):
        spectrum = _wigner_spectrum(N)
        above = theta > 1
        t = jnp.where(above, theta, 2.0)
        distance = (t - 1) ** 2 / t + (2 - spectrum.edge) + spectrum.below
        log = jnp.log(erf(eps * jnp.sqrt(N / (2 * (t - 1) * (t + 1))) * distance))
        return jnp.where(above, jnp.exp(jnp.sum(spectrum.weight * log)), 0.0)

    return jnp.vectorize(one)(N, theta, eps)


@float64
def independent_intruder_probability(
    N: Float[Array, "..."], theta: Float[Array, "..."], eps: Float[Array, "..."]
) -> Float[Array, "..."]:
    r"""The law that `intruder_probability` approaches above the window :math:`\theta - 1 \sim N^{-1/3}`.

    .. math::
        \prod_j\operatorname{erf}\Big(\varepsilon(\lambda_{out}-\lambda_j)\sqrt{\tfrac N{2(\theta^2-1)}}\Big)

    takes the overlaps for independent Gaussians of the variances of `overlap_profile`, which they are where none of them
    is of order 1, and the outlier for its limit. Inside the window it is off by up to 0.5. 0 at θ ≤ 1. Arguments and errors
    as for `intruder_probability`.
    """
    _check_sizes(N=N)
    _check(0.0, math.inf, "a finite number > 0", theta=theta)
    _check(0.0, 1.0, "between 0 and 1", eps=eps)
    return _independent(N, theta, eps)


# -- the threshold -----------------------------------------------------------------------------------------------------


def _search(function, guess, probability):
    """Where `function`, increasing, crosses a level: a guarded secant of its probit in log θ. Infinite where it does not."""
    level, never = ndtri(probability), jnp.log(_NEVER)

    def unfinished(state):
        count, low, high, _, height, _ = state
        return (count < 80) & (jnp.abs(height) > 1e-8) & (high - low > 1e-9) & (low < never - 0.01)

    def step(state):
        count, low, high, x, height, new = state
        at = ndtri(jnp.clip(function(jnp.exp(new)), 1e-15, 1 - 1e-15)) - level
        low, high = jnp.where(at < 0, new, low), jnp.where(at < 0, high, new)
        rise, run = at - height, new - x
        secant = jnp.where(rise * run > 0, new - at * run / jnp.where(rise == 0, 1.0, rise), new - jnp.sign(at))
        following = jnp.clip(secant, new - 0.5, new + 0.5)
        following = jnp.where((following > low) & (following < high), following, (low + high) / 2)
        return count + 1, low, high, new, at, following

    start = jnp.log(guess)
    state = step((0, -never, never, start, jnp.zeros_like(start), start))  # from the same place twice: no secant
    if all(map(_known, state)):  # the law's own program serves, and no other is compiled
        while unfinished(state):
            state = step(state)
    else:
        state = jax.lax.while_loop(unfinished, step, state)
    _, low, _, x, _, _ = state
    return jnp.where(low < never - 0.01, jnp.exp(x), jnp.inf)


def _crossing(function, bbp):
    """The θ at which ``function(*sizes, θ, eps)`` reaches a level, differentiable by the implicit function theorem."""

    @jax.custom_jvp
    def crossing(*args):
        *sizes, eps, probability = args
        guess = bbp(*sizes) * (1 + jnp.cbrt(2 / (jnp.minimum(sizes[0], sizes[-1]) * eps**2)))
        return _search(lambda theta: function(*sizes, theta, eps), guess, probability)

    @crossing.defjvp
    def _(args, tangents):
        theta = crossing(*args)
        crosses = jnp.isfinite(theta)
        safe = jnp.where(crosses, theta, bbp(*args[:-2]))

        def residual(theta, *args):
            return function(*args[:-2], theta, args[-2]) - args[-1]

        _, slope = jax.jvp(lambda t: residual(t, *args), (safe,), (jnp.ones_like(safe),))
        _, moved = jax.jvp(lambda *a: residual(safe, *a), args, tangents)
        return theta, jnp.where(crosses, -moved / jnp.where(crosses, slope, 1.0), 0.0)

    return crossing


_wigner_crossings = _elementwise(_crossing(_wigner, jnp.ones_like))
_rectangular_crossings = _elementwise(_crossing(_rectangular, lambda n, m: (n / m) ** 0.25))


@float64
def intruder_threshold(
    N: Float[Array, "..."], eps: Float[Array, "..."], probability: Float[Array, "..."] | float = 0.5
) -> Float[Array, "..."]:
    r"""The θ at which `intruder_probability` reaches a level; the BBP threshold, where an outlier appears, is 1.

    It tends to 1 as :math:`1 + w(\varepsilon, P)N^{-1/3}`. Infinite where no θ up to 1000 is enough: a Haar vector itself
    may be closer than ε to some eigenvector. Levels above 0.98 are beyond the law's accuracy.

    Args:
        N: order of the matrix, at least 32; may be traced.
        eps: tolerance ε in (0, 1).
        probability: the level, in (0, 1).

    Raises:
        InputError: for arguments outside these ranges.
    """
    _check_sizes(N=N)
    _check(0.0, 1.0, "between 0 and 1", eps=eps, probability=probability)
    return _wigner_crossings(N, eps, probability)


@float64(keep=("side",))
def rectangular_intruder_threshold(
    n: Float[Array, "..."],
    m: Float[Array, "..."],
    eps: Float[Array, "..."],
    probability: Float[Array, "..."] | float = 0.5,
    side: str = "left",
) -> Float[Array, "..."]:
    r"""The θ at which `rectangular_intruder_probability` reaches a level; the BBP threshold is :math:`(n/m)^{1/4}`.

    Args:
        n, m: rows and columns, at least 32; may be traced.
        eps: tolerance ε in (0, 1).
        probability: the level, in (0, 1).
        side: "left" or "right".

    Raises:
        InputError: for arguments outside these ranges.
    """
    _check_side(side)
    _check_sizes(n=n, m=m)
    _check(0.0, 1.0, "between 0 and 1", eps=eps, probability=probability)
    if side == "left":
        return _rectangular_crossings(n, m, eps, probability)
    return _rectangular_crossings(m, n, eps, probability) * jnp.sqrt(n / m)
