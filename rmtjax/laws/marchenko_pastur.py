r"""Marchenko–Pastur law: the eigenvalues of a sample covariance matrix, and the singular values of an i.i.d. matrix.

`X` is p×n with independent entries of mean 0 and variance σ². As p, n → ∞ with :math:`c = p/n` fixed, the eigenvalues of
:math:`XX^\top/n` fill :math:`[\lambda_-, \lambda_+]`, :math:`\lambda_\pm = \sigma^2(1\pm\sqrt c)^2`, with density

.. math::
    \frac{\sqrt{(x-\lambda_-)(\lambda_+-x)}}{2\pi\sigma^2cx}

and an atom :math:`\max(0, 1-1/c)` at 0 (Marchenko & Pastur, *Mat. Sb.* 72, 1967; *Intruder Dimensions*, eq. (2), where the
c of the denominator is missing).

The functions ``singular_*`` are about an n×m matrix of independent entries of variance σ²/m with :math:`c = n/m`: its
min(n, m) singular values, the square roots of the eigenvalues above without the atom, fill
:math:`[\sigma|1-\sqrt c|, \sigma(1+\sqrt c)]`. For c = 1 they follow the quarter circle on :math:`[0, 2\sigma]`.

With :math:`x = \sigma^2(1 + c - 2\sqrt c\cos\varphi)` and :math:`r = \min(\sqrt c, 1/\sqrt c)` the mass outside the atom has the
density :math:`\frac2\pi\sin^2\varphi/(1+r^2-2r\cos\varphi)` in φ on :math:`[0, \pi]`; taken from the other end,
:math:`\varphi\to\pi-\varphi`, it is the same with −r. So one function serves both ends, and each keeps its relative accuracy.

Every function works elementwise on arrays that broadcast, runs in float64 and is differentiable in every argument; where
c = 1 and the two sides have different derivatives in c, it is that of c < 1. c and σ are refused unless they are finite and
positive; where they are traced, nothing is checked.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact, Num

from rmtjax.laws._law import as_point, law

__all__ = [
    "atom",
    "cdf",
    "inverse_stieltjes",
    "moment",
    "pdf",
    "ppf",
    "r_transform",
    "s_transform",
    "sf",
    "singular_cdf",
    "singular_moment",
    "singular_pdf",
    "singular_ppf",
    "singular_support",
    "stieltjes",
    "support",
]

_NEWTON = 8
"""Number of Newton steps to a quantile."""


# -- the mass up to an angle -------------------------------------------------------------------------------------------


def _gaps(c):
    """Return the smaller of √c and 1/√c, called r, and 1 − r to full accuracy."""
    root = jnp.sqrt(c)
    r = jnp.where(c <= 1, root, 1 / root)
    return r, jnp.where(c <= 1, 1 - c, (c - 1) / c) / (1 + r)


def _rate(angle, r, gap):
    r"""Return :math:`\frac2\pi\sin^2\varphi/(1+r^2-2r\cos\varphi)`, `gap` being 1 − r."""
    v = jnp.sin(angle / 2) ** 2
    distance = gap**2 + 4 * r * v
    positive = distance > 0
    share = jnp.where(positive, 4 * v / jnp.where(positive, distance, 1.0), 1 / jnp.where(positive, 1.0, r))
    return 2 / math.pi * (1 - v) * share


def _mass(angle, r, gap):
    r"""Return :math:`\int_0^\varphi` of `_rate`, for r in [−1, 1].

    In closed form, :math:`\frac1\pi[\varphi + r\sin\varphi - (1-r^2)(A - r\sin\varphi)/r^2]` with
    :math:`A = \arctan\frac{r\sin\varphi}{1-r\cos\varphi}`. Where φ is small beside 1 − r this is a difference of nearly equal
    numbers, and there the integrand is so smooth that twelve points of Gauss give the integral to rounding.
    """
    small = angle < 0.5 * jnp.minimum(gap, 1.0)
    narrow = jnp.where(small, angle, 0.0)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    rates = _rate(narrow[..., None] * ((1 + nodes) / 2), r[..., None], gap[..., None])
    tail = narrow / 2 * jnp.sum(weights * rates, -1)

    wide = jnp.where(small, jnp.pi / 2, angle)
    sin, cos = jnp.sin(wide), jnp.cos(wide)
    distance = gap + 2 * r * jnp.sin(wide / 2) ** 2  # 1 − r cos φ
    w = sin / jnp.where(distance > 0, distance, 1.0)
    # (A − r sin φ)/r² = w cos φ − (t − arctan t)/r², t = rw; and t − arctan t = t³(1/3 − t²/5 + …).
    t = r * w
    short = jnp.abs(t) < 0.25
    t_short, t_long = jnp.where(short, t, 0.0), jnp.where(short, 1.0, t)
    series = jnp.zeros_like(t)
    for k in range(14, -1, -1):
        series = series * t_short**2 + (-1) ** k / (2 * k + 3)
    excess = jnp.where(short, r * w**3 * series, (t_long - jnp.arctan(t_long)) / jnp.where(short, 1.0, r) ** 2)
    body = (wide + r * sin - gap * (1 + r) * (w * cos - excess)) / jnp.pi
    return jnp.where(small, tail, body)


def _from_edges(x, low, high, c, below, above):
    """Return whether x is in the left half of the bulk, its angle from the nearer end, and r and 1 − r seen from that end.

    `below` and `above` are the factors of the squared distances from the ends, up to a constant.
    """
    inside = (x > low) & (x < high)
    below, above = (math.prod(jnp.sqrt(jnp.where(inside, f, 1.0)) for f in d) for d in (below, above))
    left = below < above
    near, far = jnp.where(left, below, above), jnp.where(left, above, below)
    angle = jnp.where(inside, 2 * jnp.arctan2(near, far), 0.0)
    r, gap = _gaps(c)
    return left, angle, jnp.where(left, r, -r), jnp.where(left, gap, 1 + r)


# -- eigenvalues -------------------------------------------------------------------------------------------------------


@law
def support(
    c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Return the ends of the bulk, :math:`\lambda_\pm = \sigma^2(1\pm\sqrt c)^2`. For c > 1 there is an atom at 0 besides.

    Args:
        c: aspect ratio p/n > 0.
        sigma: σ > 0.

    Raises:
        InputError: if c or σ is not finite and positive.
    """
    return _support(c, sigma)


def _support(c, sigma):
    root = jnp.sqrt(c)
    return (sigma * (1 - c) / (1 + root)) ** 2, (sigma * (1 + root)) ** 2


@law
def atom(c: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Return the mass at 0, :math:`\max(0, 1-1/c)`: the share of eigenvalues that are 0 because p > n.

    Args:
        c: aspect ratio p/n > 0.

    Raises:
        InputError: if c is not finite and positive.

    Examples:
        >>> float(atom(4.0))
        0.75
    """
    return _atom(c)


def _atom(c):
    return jnp.where(c <= 1, 0.0, (c - 1) / c)


def _weight(c):
    """Return the mass outside the atom."""
    return jnp.where(c <= 1, 1.0, 1 / c)


@law
def pdf(
    x: Float[Array, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Float[Array, "..."]:
    r"""Return the density without the atom, :math:`\sqrt{(x-\lambda_-)(\lambda_+-x)}/(2\pi\sigma^2cx)`, of mass min(1, 1/c).

    0 off the support; at x = 0 for c = 1 it is infinite.

    Args:
        x: points.
        c: aspect ratio p/n > 0.
        sigma: σ > 0.

    Raises:
        InputError: if c or σ is not finite and positive.
    """
    low, high = _support(c, sigma)
    inside = (x > low) & (x < high)
    middle = (low + high) / 2
    at = jnp.where(inside, x, middle)
    density = jnp.sqrt(at - low) * jnp.sqrt(high - at) / (2 * jnp.pi * sigma**2 * c * at)
    outside = jnp.where(jnp.isnan(x), jnp.nan, jnp.where((x == 0) & (low == 0), jnp.inf, 0.0))
    return jnp.where(inside, density, outside)


@law
def cdf(
    x: Float[Array, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Float[Array, "..."]:
    r"""Return the distribution function, the atom at 0 included.

    In closed form, and of full relative accuracy near the lower end where there is no atom. Arguments and errors as for
    `pdf`.
    """
    low, high = _support(c, sigma)
    left, angle, r, gap = _from_edges(x, low, high, c, [x - low], [high - x])
    weight, zero = _weight(c), _atom(c)
    mass = weight * _mass(angle, r, gap)
    value = jnp.where(x <= low, zero, jnp.where(x >= high, 1.0, jnp.where(left, zero + mass, 1 - mass)))
    return jnp.where(jnp.isnan(x), jnp.nan, jnp.where(x < 0, 0.0, value))


@law
def sf(
    x: Float[Array, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Float[Array, "..."]:
    r"""Return the survival function, the mass above x, of full relative accuracy near the upper end.

    Arguments and errors as for `pdf`.
    """
    low, high = _support(c, sigma)
    left, angle, r, gap = _from_edges(x, low, high, c, [x - low], [high - x])
    weight = _weight(c)
    mass = weight * _mass(angle, r, gap)
    value = jnp.where(x <= low, weight, jnp.where(x >= high, 0.0, jnp.where(left, weight - mass, mass)))
    return jnp.where(jnp.isnan(x), jnp.nan, jnp.where(x < 0, 1.0, value))


def _share(q, c, singular):
    """Return the mass outside the atom below the quantile at q, as a share of the whole; ½ if there is no such quantile."""
    if singular:
        return jnp.where((q >= 0) & (q <= 1), q, 0.5)
    p = 1 - (1 - q) / _weight(c)
    return jnp.where((p > 0) & (p <= 1) | (p == 0) & (c <= 1), p, 0.5)


def _angle(p, c):
    """Return whether the quantile at a share p is measured from the left, its angle, and r and 1 − r from that end."""
    left = p <= 0.5
    p = jnp.where(left, p, 1 - p)
    r, gap = _gaps(c)
    r, gap = jnp.where(left, r, -r), jnp.where(left, gap, 1 + r)
    positive = p > 0
    goal = jnp.where(positive, p, 0.5)
    # The mass is about (2/3π)φ³/gap² or, farther from the end, below 2φ/π; its slope in log-log, from 3 to 1, is tame.
    start = jnp.maximum(jnp.cbrt(1.5 * jnp.pi * goal) * jnp.cbrt(gap**2), jnp.pi / 2 * goal)

    def newton(_, angle):
        angle = jnp.minimum(angle, 0.999 * jnp.pi)
        mass = _mass(angle, r, gap)
        # Not mass·log(goal/mass)/…, nor a quotient that XLA would turn into it: the product may be too small for a float.
        return angle * jnp.exp(jnp.log(goal / mass) * (mass / (angle * _rate(angle, r, gap))))

    angle = jax.lax.fori_loop(0, _NEWTON, newton, jax.lax.stop_gradient(start))
    return left, jnp.where(positive, angle, 0.0), r, gap


def _place(angle, r, gap, c, singular):
    """Return the eigenvalue or singular value at an angle from one end, σ = 1."""
    sine, scale = jnp.sin(angle / 2), jnp.where(c <= 1, 1.0, c)
    if singular:
        # From the left (r > 0) both terms may underflow when squared; from the right gap > 1, and they do not.
        left = jnp.hypot(gap, 2 * jnp.sqrt(jnp.maximum(r, 0)) * sine)
        return jnp.sqrt(scale) * jnp.where(r > 0, left, jnp.sqrt(gap**2 + 4 * r * sine**2))
    return scale * (gap**2 + 4 * r * sine**2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _quantile(q, c, singular):
    """Return the quantile at q, σ = 1, of eigenvalues, or without the atom of singular values."""
    return _place(*_angle(_share(q, c, singular), c)[1:], c, singular)


def _quantile_jvp(singular, primals, tangents):
    q, c = primals
    left, angle, r, gap = _angle(_share(q, c, singular), c)
    x = _place(angle, r, gap, c, singular)

    def mass(c):
        r, gap = _gaps(c)
        return _mass(angle, jnp.where(left, r, -r), jnp.where(left, gap, 1 + r))

    # By the angle φ from the left end, or by minus that from the right, and by c at fixed φ: x = 1 + c ∓ 2√c cos φ.
    root, side = jnp.sqrt(c), jnp.where(left, 1.0, -1.0)
    by_angle, by_c = 2 * root * jnp.sin(angle), 1 - side * jnp.cos(angle) / root
    if singular:
        positive = x > 0
        twice = jnp.where(positive, 2 * x, 1.0)
        by_angle, by_c = (
            jnp.where(positive, by_angle / twice, jnp.cos(angle / 2)),
            jnp.where(positive, by_c / twice, -0.5),
        )
    rate, (_, change) = _rate(angle, r, gap), jax.jvp(mass, (c,), (jnp.ones_like(c),))
    moves = rate > 0  # otherwise at an end, which keeps its mass of 0 whatever c is
    by_share = jnp.where(moves, by_angle / jnp.where(moves, rate, 1.0), jnp.inf)
    by_c = by_c - jnp.where(moves, side * by_share * change, 0.0)
    weight = 1.0
    if not singular:
        weight = _weight(c)
        by_c = by_c - jnp.where((c > 1) & (q < 1), by_share * (1 - q), 0.0)
    tangent = jnp.zeros_like(x)
    # 1/pdf is infinite at the ends, so it is not multiplied by derivatives that are not needed.
    if not isinstance(tangents[0], SymbolicZero):
        tangent = tangent + by_share / weight * tangents[0]
    if not isinstance(tangents[1], SymbolicZero):
        tangent = tangent + by_c * tangents[1]
    return x, tangent


_quantile.defjvp(_quantile_jvp, symbolic_zeros=True)


@law
def ppf(
    q: Float[Array, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Float[Array, "..."]:
    r"""Return the quantile function, the inverse of `cdf`: 0 as long as q is within the atom. NaN unless 0 ≤ q ≤ 1.

    Its gradient in q is 1/`pdf`, infinite at the ends of the bulk.

    Args:
        q: lower tail probability.
        c: aspect ratio p/n > 0.
        sigma: σ > 0.

    Raises:
        InputError: if c or σ is not finite and positive.
    """
    q, c, sigma = jnp.broadcast_arrays(q, c, sigma)
    x = jnp.where((c > 1) & (q <= _atom(c)), 0.0, sigma**2 * _quantile(q, c, False))
    return jnp.where((q >= 0) & (q <= 1), x, jnp.nan)


@law
def moment(k: int, c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0) -> Float[Array, "..."]:
    r"""Return the moment :math:`\int x^k\mu(\mathrm dx) = \sigma^{2k}\sum_{j=0}^{k-1}\frac{1}{j+1}\binom kj\binom{k-1}j c^j`.

    The coefficients are Narayana's numbers.

    Args:
        k: whole number from 0 to 500.
        c: aspect ratio p/n > 0.
        sigma: σ > 0.

    Raises:
        InputError: if k is not such a number, or c or σ not finite and positive.
    """
    return _moment(k, c, sigma)


def _moment(k, c, sigma):
    if k == 0:
        return jnp.ones_like(c * sigma)
    total = jnp.zeros_like(c)
    for j in range(k - 1, -1, -1):
        total = total * c + float(math.comb(k, j) * math.comb(k - 1, j) // (j + 1))
    return total * sigma ** (2 * k)


@law
def stieltjes(
    z: Num[ArrayLike, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Inexact[Array, "..."]:
    r"""Return the Stieltjes transform :math:`m(z) = \int\mu(\mathrm d\lambda)/(z-\lambda)`, the atom included.

    The root of :math:`c\sigma^2zm^2 - bm + 1 = 0`, :math:`b = z + \sigma^2(c-1)`, that decays like 1/z:

    .. math::
        m = \frac2{b+s} = \frac{b-s}{2c\sigma^2z}, \qquad s = \sqrt{z-\lambda_-}\sqrt{z-\lambda_+},

    in whichever form b and s do not cancel. On the bulk a complex z of imaginary part 0 gives the limit from above, a real z
    gives NaN. Infinite at the atom.

    Args:
        z: real or complex.
        c: aspect ratio p/n > 0.
        sigma: σ > 0.

    Raises:
        InputError: if c or σ is not finite and positive.
    """
    z = as_point(z)
    low, high = _support(c, sigma)
    if jnp.iscomplexobj(z):
        outside, at = True, z
        s = jnp.sqrt(z - low) * jnp.sqrt(z - high)
        b = z + sigma**2 * (c - 1)
        agree = b.real * s.real + b.imag * s.imag >= 0
    else:
        right, left = z >= high, z <= low
        outside = right | left
        at = jnp.where(outside, z, 2 * high)
        sign = jnp.where(left, -1.0, 1.0)
        s = sign * jnp.sqrt(sign * (at - low)) * jnp.sqrt(sign * (at - high))
        b = at + sigma**2 * (c - 1)
        agree = b * s >= 0
    total = jnp.where(agree, b + s, b - s)
    m = jnp.where(agree, 2 / jnp.where(agree, total, 1.0), total / jnp.where(agree, 1.0, 2 * c * sigma**2 * at))
    return jnp.where(outside, m, jnp.nan)


@law
def inverse_stieltjes(
    m: Num[ArrayLike, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Inexact[Array, "..."]:
    r"""Return the z at which `stieltjes` is m, :math:`z = 1/m + \sigma^2/(1-c\sigma^2m)`; on the image of the transform.

    Args:
        m: real or complex.
        c: aspect ratio p/n > 0.
        sigma: σ > 0.

    Raises:
        InputError: if c or σ is not finite and positive.
    """
    m = as_point(m)
    return 1 / m + sigma**2 / (1 - c * sigma**2 * m)


@law
def r_transform(
    m: Num[ArrayLike, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Inexact[Array, "..."]:
    r"""Return Voiculescu's R-transform :math:`R(m) = z(m) - 1/m = \sigma^2/(1-c\sigma^2m)`, additive under free convolution.

    Arguments and errors as for `inverse_stieltjes`.
    """
    return jnp.asarray(sigma) ** 2 / (1 - c * jnp.asarray(sigma) ** 2 * as_point(m))


@law
def s_transform(
    w: Num[ArrayLike, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Inexact[Array, "..."]:
    r"""Return Voiculescu's S-transform :math:`S(w) = 1/(\sigma^2(1+cw))`, multiplicative under free convolution.

    With :math:`\psi(u) = \sum_{k\ge1}\mu_ku^k`, :math:`\mu_k` the moments, it is
    :math:`S(w) = \frac{1+w}w\psi^{-1}(w)`.

    Args:
        w: real or complex.
        c: aspect ratio p/n > 0.
        sigma: σ > 0.

    Raises:
        InputError: if c or σ is not finite and positive.
    """
    return 1 / (jnp.asarray(sigma) ** 2 * (1 + c * as_point(w)))


# -- singular values ---------------------------------------------------------------------------------------------------


@law
def singular_support(
    c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Return the ends :math:`\sigma|1-\sqrt c|` and :math:`\sigma(1+\sqrt c)` of the singular values of an n×m matrix, c = n/m.

    Args:
        c: aspect ratio n/m > 0.
        sigma: σ > 0, with σ²/m the variance of an entry.

    Raises:
        InputError: if c or σ is not finite and positive.
    """
    return _singular_support(c, sigma)


def _singular_support(c, sigma):
    root = jnp.sqrt(c)
    return sigma * jnp.where(c <= 1, 1 - c, c - 1) / (1 + root), sigma * (1 + root)


@law
def singular_pdf(
    x: Float[Array, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Float[Array, "..."]:
    r"""Return the density :math:`\sqrt{(x^2-a^2)(b^2-x^2)}/(\pi\sigma^2\min(c,1)\,x)` on `singular_support` [a, b].

    Args:
        x: points.
        c: aspect ratio n/m > 0.
        sigma: σ > 0, with σ²/m the variance of an entry.

    Raises:
        InputError: if c or σ is not finite and positive.
    """
    low, high = _singular_support(c, sigma)
    inside = (x > low) & (x < high)
    at = jnp.where(inside, x, (low + high) / 2)
    corner = (x == 0) & (low == 0)  # of the quarter circle
    share = jnp.where(corner, 1.0, jnp.sqrt(at - low) * jnp.sqrt(at + low) / at)
    at = jnp.where(corner, 0.0, at)
    density = share * jnp.sqrt(high - at) * jnp.sqrt(high + at) / (jnp.pi * sigma**2 * jnp.where(c <= 1, c, 1.0))
    return jnp.where(inside | corner, density, jnp.where(jnp.isnan(x), x, 0.0))


@law
def singular_cdf(
    x: Float[Array, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Float[Array, "..."]:
    r"""Return the distribution function of the singular values, in closed form. Arguments and errors as for `singular_pdf`."""
    low, high = _singular_support(c, sigma)
    left, angle, r, gap = _from_edges(x, low, high, c, [x - low, x + low], [high - x, high + x])
    mass = _mass(angle, r, gap)
    value = jnp.where(x <= low, 0.0, jnp.where(x >= high, 1.0, jnp.where(left, mass, 1 - mass)))
    return jnp.where(jnp.isnan(x), x, value)


@law
def singular_ppf(
    q: Float[Array, "..."], c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0
) -> Float[Array, "..."]:
    r"""Return the quantile function, the inverse of `singular_cdf`. NaN unless 0 ≤ q ≤ 1. Arguments and errors as for `ppf`."""
    q, c, sigma = jnp.broadcast_arrays(q, c, sigma)
    return jnp.where((q >= 0) & (q <= 1), sigma * _quantile(q, c, True), jnp.nan)


@law
def singular_moment(k: int, c: Float[Array, "..."], *, sigma: Float[Array, "..."] | float = 1.0) -> Float[Array, "..."]:
    r"""Return the moment :math:`E\,x^k` of the singular values.

    For even k a moment of the eigenvalues, over min(1, 1/c). For odd k,

    .. math::
        \frac2\pi\int_0^\pi\sin^2\varphi\,(1 + c - 2\sqrt c\cos\varphi)^{k/2-1}\,\mathrm d\varphi
        = {}_2F_1(-\tfrac k2, 1-\tfrac k2; 2; c) \qquad (c \le 1,\ \sigma = 1),

    for k = 1 and 3 by the trapezoidal rule in :math:`\log(\varphi/(\pi-\varphi))`, whose error is at rounding also next to
    c = 1, where the integrand is singular at a distance of 1 − √c. From there Gauss's relation between neighbours,
    :math:`(p+2)M_{p+1} = (2p+1)(1+c)M_p - (p-1)(1-c)^2M_{p-1}` with :math:`p = k/2`, goes up stably.

    Args:
        k: whole number from 0 to 500.
        c: aspect ratio n/m > 0.
        sigma: σ > 0, with σ²/m the variance of an entry.

    Raises:
        InputError: if k is not such a number, or c or σ not finite and positive.
    """
    if k == 0:
        return jnp.ones_like(c * sigma)
    if k % 2 == 0:
        return _moment(k // 2, c, sigma) / _weight(c)
    step = 0.25
    t = step * np.arange(-80, 81)
    angle, beyond = math.pi / (1 + np.exp(-t)), math.pi / (1 + np.exp(t))
    v = np.sin(angle / 2) ** 2
    weights = step * angle * beyond / math.pi * 8 / math.pi * v * np.sin(beyond / 2) ** 2
    r, gap = _gaps(c)
    distance = gap[..., None] ** 2 + 4 * r[..., None] * v
    last, mean = (jnp.sum(weights * distance ** (p - 1), -1) for p in (0.5, 1.5))
    if k == 1:
        mean = last
    for p in np.arange(1.5, k / 2):
        last, mean = mean, ((2 * p + 1) * (1 + r**2) * mean - (p - 1) * (gap * (1 + r)) ** 2 * last) / (p + 2)
    return mean * (sigma * jnp.where(c <= 1, 1.0, jnp.sqrt(c))) ** k
