r"""Tracy–Widom laws: the largest eigenvalue at the edge of the spectrum, for β = 1, 2, 4.

With q the Hastings–McLeod solution of Painlevé II, :math:`q'' = sq + 2q^3`, :math:`q(s)\sim\mathrm{Ai}(s)` as
:math:`s\to\infty`, and

.. math::
    I(s) = \int_s^\infty q, \qquad R(s) = \int_s^\infty q^2, \qquad L(s) = -\int_s^\infty R ,

the distribution functions are (Tracy & Widom, *CMP* 159, 1994 and 177, 1996)

.. math::
    F_2(s) = e^{L}, \qquad F_1(s) = e^{(L - I)/2}, \qquad F_4(s/\sqrt2) = e^{L/2}\cosh(I/2),

which are the Fredholm determinants :math:`F_1 = \det(1-B_s)`, :math:`F_2 = \det(1-B_s)\det(1+B_s)`,
:math:`F_4(s/\sqrt2) = \tfrac12[\det(1-B_s)+\det(1+B_s)]` of :math:`B_s(x,y) = \mathrm{Ai}(x+y+s)` on
:math:`L^2(0,\infty)` (Ferrari & Spohn, *J. Phys. A* 38, 2005; Bornemann, *Math. Comp.* 79, 2010).

**Scaling.** Mean and variance are −1.2065336 and 1.6077810 (β = 1), −1.7710868 and 0.8131948 (β = 2), −2.3068849 and
0.5177237 (β = 4), as in Bornemann's tables. For N eigenvalues of joint density
:math:`\propto\prod_{i<j}|\lambda_i-\lambda_j|^\beta\prod_i e^{-\beta\lambda_i^2/4}`, which fill
:math:`[-2\sqrt N, 2\sqrt N]`,

.. math::
    N^{1/6}(\lambda_{\max} - 2\sqrt N) \to T_1,\ T_2,\ 2^{-1/6}\,T_4 \qquad (\beta = 1, 2, 4),

with :math:`T_\beta` following the law of this module. So the largest eigenvalue of an N×N Wigner matrix with
:math:`E|W_{ij}|^2 = \sigma^2/N` off the diagonal is :math:`\sigma(2 + N^{-2/3}T_\beta)`, but
:math:`\sigma(2 + N^{-2/3}2^{-1/6}T_4)` for quaternion entries (whose N eigenvalues are those of a 2N×2N complex matrix, each
twice). That is one of three scalings of β = 4 in use:

- :math:`T_4` is Tracy & Widom's, Bornemann's, and ours;
- :math:`2^{-1/6}\,T_4`, mean −2.0552 and variance 0.4109, is the natural one of the β-ensembles, the stochastic Airy operator's
  at β = 4 (Ramírez, Rider & Virág, *JAMS* 24, 2011): its distribution function at s is ``cdf(2**(1/6) * s, 4)``;
- :math:`\sqrt2\,T_4`, mean −3.2624 and variance 1.0354, is meant where :math:`F_4 = e^{L/2}\cosh(I/2)` is written without
  the :math:`\sqrt2`: ``cdf(s / 2**0.5, 4)``.

**Numbers.** On first use Painlevé II is integrated once, in 50 decimal digits, by its Taylor series from s = 24 to −12.
That gives L, I, R and q to far more digits than float64 holds, and from them piecewise polynomials on [−12, 20] for
log F left of −2, for log(1 − F) right of it, and for the logarithm of their rate of change. So both tails keep their
*relative* accuracy. Beyond lie the asymptotic series, with as many terms as it takes: on the left that of q, with the
constants of Baik, Buckingham & DiFranco (*CMP* 280, 2008); on the right that of the Airy function, where
:math:`q = \mathrm{Ai}` to a relative :math:`e^{-119}`.

Every function of x works elementwise, runs in float64, and can be jitted, vmapped and differentiated.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmtjax._errors import InputError, shown
from rmtjax._precision import float64
from rmtjax.laws.edge._painleve import LEFT, RIGHT, SPLIT, left_series, table_of

__all__ = ["cdf", "isf", "kurtosis", "logcdf", "logpdf", "logsf", "mean", "pdf", "ppf", "sf", "skewness", "var"]

_NEWTON = 3
"""Number of Newton steps to a quantile."""

_HUGE = 1e100
"""Modulus of x beyond which the logarithm of a tail counts as −∞, since the cube of x would overflow."""

_ZETA_PRIME = -0.16542114370045092921  # ζ'(−1)


def _stretch(beta: int) -> float:
    """Return s/x, the factor that turns a point into Painlevé's variable."""
    return math.sqrt(2) if beta == 4 else 1.0


def _checked(beta: Any) -> int:
    if isinstance(beta, bool) or not isinstance(beta, (int, np.integer)) or beta not in (1, 2, 4):
        raise InputError(f"beta = {shown(beta)}: must be the whole number 1, 2 or 4, known before compilation")
    return int(beta)


def _polynomial(coefficients, x):
    """Return Σ cₖ xᵏ, unrolled."""
    total = jnp.zeros_like(x)
    for c in coefficients[::-1]:
        total = total * x + c
    return total


def _piecewise(coefficients, piece, y):
    """Return Σ cₖ Tₖ(y) by Clenshaw's recurrence, unrolled, each coefficient looked up when it is needed."""
    last = before = jnp.zeros_like(y)
    for row in coefficients[:0:-1]:
        last, before = jnp.asarray(row)[piece] + 2 * y * last - before, last
    return jnp.asarray(coefficients[0])[piece] + y * last - before


def _far_left(x, beta):
    """Return log F and log F'/F at −x, x ≥ 12."""
    q, integral, rate, log_f2 = (_polynomial(c, x**-3) for c in left_series())
    q, rate = q * jnp.sqrt(x / 2), rate * x**2
    integral = integral * x * jnp.sqrt(x) + math.log(2) / 2
    log_f2 = log_f2 - x**3 / 12 - jnp.log(x) / 8 + (math.log(2) / 24 + _ZETA_PRIME)
    if beta == 2:
        return log_f2, jnp.log(rate)
    if beta == 1:
        return (log_f2 - integral) / 2, jnp.log((rate + q) / 2)
    log_f = (log_f2 + integral) / 2 + jnp.log1p(jnp.exp(-integral)) - math.log(2)
    return log_f, jnp.log((rate - q * jnp.tanh(integral / 2)) / 2)


def _far_right(s, law):
    """Return log (1 − F) and log F'/(1 − F) at s ≥ 20."""
    log_s = jnp.log(s)
    zeta = s * jnp.sqrt(s) / 1.5
    log_tail = _polynomial(law.tail_series, 1 / zeta) + law.log_scale
    log_tail = log_tail - law.decay * zeta - law.power * (1.5 * log_s - math.log(1.5))
    return log_tail, _polynomial(law.rate_series, 1 / zeta) + math.log(law.decay) + 0.5 * log_s


def _log_tail_and_rate(x, beta):
    """Return log F and log F'/F at s = x left of the split; log (1 − F) and log F'/(1 − F) right of it; F' = dF/ds."""
    law = table_of(beta)
    left, right = x < LEFT, x > RIGHT
    inside = jnp.where(left | right, 0.0, x)
    piece = jnp.clip(jnp.floor(inside) - LEFT, 0, RIGHT - LEFT - 1)
    y = 2 * (inside - LEFT - piece) - 1  # NaN stays NaN
    piece = jnp.where(jnp.isnan(piece), 0, piece).astype(jnp.int32)
    middle = (_piecewise(table, piece, y) for table in (law.tail, law.rate))
    far_left = _far_left(jnp.where(left, jnp.minimum(-x, _HUGE), -LEFT), beta)
    far_right = _far_right(jnp.where(right, jnp.minimum(x, _HUGE), RIGHT), law)
    parts = zip(middle, far_left, far_right, strict=True)
    tail, rate = (jnp.where(left, a, jnp.where(right, b, m)) for m, a, b in parts)
    return jnp.where(jnp.abs(x) > _HUGE, -jnp.inf, tail), rate


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _log_tail(x, beta):
    return _log_tail_and_rate(x, beta)[0]


@_log_tail.defjvp
def _(beta, primals, tangents):
    # From the table of rates, which has one or two more correct digits than the derivative of an interpolant.
    (x,), (dx,) = primals, tangents
    rate = jnp.exp(_log_rate(x, beta))
    return _log_tail(x, beta), jnp.where(x < SPLIT, rate, -rate) * dx


def _log_rate(x, beta):
    return _log_tail_and_rate(x, beta)[1]


@functools.cache
def _knots(beta: int) -> tuple[tuple[np.ndarray, np.ndarray, float], ...]:
    """Return on each side: (−log tail) to the power that makes it nearly linear in x, x itself, and dx beyond the last knot."""
    law, result = table_of(beta), []
    decay = 1 / (24 if beta != 2 else 12), law.decay / 1.5
    for low, high, power, rate in ((LEFT, SPLIT, 1 / 3, decay[0]), (SPLIT, RIGHT, 2 / 3, decay[1])):
        y = (np.arange(8) + 0.5) / 8
        x = (np.arange(low, high)[:, None] + y).ravel()
        log_tail = np.polynomial.chebyshev.chebval(2 * y - 1, law.tail[:, low - LEFT : high - LEFT]).ravel()
        order = np.argsort(-log_tail)
        result.append(((-log_tail[order]) ** power, x[order], rate**-power))
    (left, x_left, dx_left), right = result
    return (left, x_left, -dx_left), right


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _quantile(log_tail, left, beta):
    """Return the s at which the tail on the given side of the split has the given logarithm."""
    nothing = jnp.isinf(log_tail)
    power = jnp.where(left, 1 / 3, 2 / 3)
    goal = -jnp.where(nothing, -1.0, log_tail)
    goal = goal**power
    starts = (jnp.interp(goal, w, x) + dx * jnp.maximum(goal - w[-1], 0) for w, x, dx in _knots(beta))
    x = jnp.where(left, *starts)
    low, high = jnp.where(left, -jnp.inf, SPLIT), jnp.where(left, np.nextafter(SPLIT, -np.inf), jnp.inf)

    def newton(_, x):
        x = jnp.clip(x, low, high)
        value, log_rate = _log_tail_and_rate(x, beta)
        w = (-value) ** power
        slope = power * w / value * jnp.exp(log_rate)  # on the left; of the other sign on the right
        return x - jnp.where(left, w - goal, goal - w) / slope

    x = jax.lax.fori_loop(0, _NEWTON, newton, x)
    return jnp.where(nothing, jnp.where(left, -jnp.inf, jnp.inf), jnp.clip(x, low, high))


@_quantile.defjvp
def _(beta, primals, tangents):
    x = _quantile(*primals, beta)
    inverse_rate = jnp.exp(-_log_rate(x, beta))
    return x, jnp.where(primals[1], inverse_rate, -inverse_rate) * tangents[0]


def _compiled(function):
    """Compile a law, with β checked and its points in float64."""
    compiled = jax.jit(function, static_argnums=1)

    @functools.wraps(function)
    def checked(x, beta):
        return compiled(x, _checked(beta))

    return float64(checked, keep=("beta",))


def _constant(function):
    """Return a constant of the law with β checked, in float64."""

    @functools.wraps(function)
    def checked(beta):
        return function(_checked(beta))

    return float64(checked, keep=("beta",))


@_compiled
def logpdf(x: Float[Array, "..."], beta: int) -> Float[Array, "..."]:
    r"""Return the logarithm of the density, :math:`\log F_\beta'(x)`, far beyond where `pdf` underflows.

    Args:
        x: points.
        beta: 1, 2 or 4.

    Raises:
        InputError: for any other β.
    """
    s = _stretch(beta) * x
    return _log_tail(s, beta) + _log_rate(s, beta) + math.log(_stretch(beta))


@_compiled
def pdf(x: Float[Array, "..."], beta: int) -> Float[Array, "..."]:
    r"""Return the density :math:`F_\beta'(x)`, of full relative accuracy in both tails. Arguments and errors as for `logpdf`."""
    s = _stretch(beta) * x
    return jnp.exp(_log_tail(s, beta) + _log_rate(s, beta)) * _stretch(beta)


@_compiled
def cdf(x: Float[Array, "..."], beta: int) -> Float[Array, "..."]:
    r"""Return the distribution function :math:`F_\beta(x)`, of full relative accuracy in the left tail.

    Arguments and errors as for `logpdf`.
    """
    s = _stretch(beta) * x
    tail = _log_tail(s, beta)
    return jnp.where(s < SPLIT, jnp.exp(tail), 1 - jnp.exp(tail))


@_compiled
def sf(x: Float[Array, "..."], beta: int) -> Float[Array, "..."]:
    r"""Return the survival function :math:`1 - F_\beta(x)`, of full relative accuracy in the right tail.

    Arguments and errors as for `logpdf`.
    """
    s = _stretch(beta) * x
    tail = _log_tail(s, beta)
    return jnp.where(s < SPLIT, 1 - jnp.exp(tail), jnp.exp(tail))


@_compiled
def logcdf(x: Float[Array, "..."], beta: int) -> Float[Array, "..."]:
    r"""Return :math:`\log F_\beta(x)`, far beyond where `cdf` underflows. Arguments and errors as for `logpdf`."""
    s = _stretch(beta) * x
    tail = _log_tail(s, beta)
    return jnp.where(s < SPLIT, tail, jnp.log1p(-jnp.exp(tail)))


@_compiled
def logsf(x: Float[Array, "..."], beta: int) -> Float[Array, "..."]:
    r"""Return :math:`\log(1 - F_\beta(x))`, far beyond where `sf` underflows. Arguments and errors as for `logpdf`."""
    s = _stretch(beta) * x
    tail = _log_tail(s, beta)
    return jnp.where(s < SPLIT, jnp.log1p(-jnp.exp(tail)), tail)


def _inverse(p, beta, upper):
    """Return the quantile of a lower or an upper tail, whichever keeps full accuracy."""
    above = math.exp(np.polynomial.chebyshev.chebval(-1.0, table_of(beta).tail[:, SPLIT - LEFT]))  # the split
    left = p > above if upper else p <= 1 - above
    valid = (p >= 0) & (p <= 1)
    p = jnp.where(valid, p, 0.5)
    direct = ~left if upper else left
    s = _quantile(jnp.where(direct, jnp.log(p), jnp.log1p(-p)), left, beta)
    return jnp.where(valid, s / _stretch(beta), jnp.nan)


@_compiled
def ppf(q: Float[Array, "..."], beta: int) -> Float[Array, "..."]:
    r"""Return the quantile function :math:`F_\beta^{-1}(q)`, by Newton's method on the logarithm of the smaller tail.

    Its gradient is 1/`pdf`. ∓∞ at q = 0 and 1, NaN outside. For probabilities close to 1 see `isf`.

    Args:
        q: lower tail probability.
        beta: 1, 2 or 4.

    Raises:
        InputError: for any other β.
    """
    return _inverse(q, beta, upper=False)


@_compiled
def isf(p: Float[Array, "..."], beta: int) -> Float[Array, "..."]:
    r"""Return the inverse of the survival function, :math:`F_\beta^{-1}(1 - p)`, down to the smallest p. See `ppf`.

    Args:
        p: upper tail probability.
        beta: 1, 2 or 4.

    Raises:
        InputError: for any other β.
    """
    return _inverse(p, beta, upper=True)


@functools.cache
def _moments(beta: int) -> tuple[float, float, float, float]:
    """Return mean, variance, skewness and excess kurtosis by Gauss–Legendre on every piece; the mass beyond is below 1e-26."""
    y, weights = np.polynomial.legendre.leggauss(24)
    x = (np.arange(LEFT, RIGHT)[:, None] + (y + 1) / 2).ravel()
    law = table_of(beta)
    log_density = np.polynomial.chebyshev.chebval(y, law.tail + law.rate).ravel()
    mass = np.tile(weights / 2, RIGHT - LEFT) * np.exp(log_density)
    x = x / _stretch(beta)
    mean = np.sum(mass * x)
    var, third, fourth = (np.sum(mass * (x - mean) ** k) for k in (2, 3, 4))
    return float(mean), float(var), float(third / var**1.5), float(fourth / var**2 - 3)


@_constant
def mean(beta: int) -> Float[Array, ""]:
    r"""Return the mean: −1.2065335745820, −1.7710868074116 and −2.3068848932411 for β = 1, 2 and 4.

    Raises:
        InputError: for any other β.

    Examples:
        >>> f"{float(mean(2)):.6f}"
        '-1.771087'
    """
    return jnp.asarray(_moments(beta)[0])


@_constant
def var(beta: int) -> Float[Array, ""]:
    r"""Return the variance: 1.6077810345814, 0.8131947928330 and 0.5177237207727. Errors as for `mean`."""
    return jnp.asarray(_moments(beta)[1])


@_constant
def skewness(beta: int) -> Float[Array, ""]:
    r"""Return the skewness :math:`E(x-Ex)^3/\mathrm{Var}^{3/2}`. Errors as for `mean`."""
    return jnp.asarray(_moments(beta)[2])


@_constant
def kurtosis(beta: int) -> Float[Array, ""]:
    r"""Return the excess kurtosis :math:`E(x-Ex)^4/\mathrm{Var}^2 - 3`. Errors as for `mean`."""
    return jnp.asarray(_moments(beta)[3])
