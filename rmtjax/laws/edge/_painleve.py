"""Painlevé II in 50 decimal digits, and the tables of the Tracy–Widom laws made from its solution."""

from __future__ import annotations

import decimal
import functools
import math
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np

__all__ = ["LEFT", "RIGHT", "SPLIT", "Table", "left_series", "table_of"]

LEFT, SPLIT, RIGHT = -12, -2, 20
"""In Painlevé's variable s, which is x for β = 1 and 2 and √2 x for β = 4, the table covers [left, right] in pieces of
length 1: log F up to the split, log(1 − F) from there.
"""

_DEGREE = 15
"""Degree of the pieces in Chebyshev polynomials, whose coefficients fall by a factor of about ten with each degree."""

_START, _DIGITS, _ORDER = 24, 50, 48
"""Start of Painlevé II as the Airy function, decimal digits of its integration, and order of its Taylor series.

Its steps are 1/2, at which the last term is below 4e-38 of the first. The error made at the start, some 1e-34, grows on the
way, and at s = −12 four functions are within 5e-22 of what 90 digits, 90 terms and a start at 30 give.
"""

_LEFT_TERMS, _RIGHT_TERMS = 12, 26
"""Number of terms of the asymptotic series beyond the table. The first one left out is below 1e-16."""

Series = list[Fraction]


def _times(a: Series, b: Series) -> Series:
    return [sum((a[i] * b[k - i] for i in range(k + 1)), Fraction()) for k in range(min(len(a), len(b)))]


def _log(a: Series) -> Series:
    """Return the logarithm of a series that starts with 1, from a·(log a)' = a'."""
    log = [Fraction()]
    for k in range(1, len(a)):
        log.append(a[k] - sum((i * log[i] * a[k - i] for i in range(1, k)), Fraction()) / k)
    return log


class _Airy(NamedTuple):
    r"""Series in 1/ζ for :math:`q = \mathrm{Ai}`; :math:`\zeta = \tfrac23s^{3/2}` and :math:`e = e^{-\zeta}/(2\sqrt\pi)`."""

    value: Series  # Ai / (e s^{-1/4})
    slope: Series  # Ai' / (−e s^{1/4})
    integral: Series  # I / (e s^{-3/4})
    log_f2: Series  # −L / e²
    rate: Series  # R / (e² s^{1/2})
    tail4: Series  # (1 − F₄) / e², up to e⁴
    density4: Series  # F₄' / (e² s^{1/2}), up to e⁴


def _airy(terms: int) -> _Airy:
    r"""Return the series from DLMF 9.7.2, :math:`R = \mathrm{Ai}'^2 - s\mathrm{Ai}^2` and
    :math:`-3L = 2s^2\mathrm{Ai}^2 - 2s\mathrm{Ai}'^2 - \mathrm{Ai}\,\mathrm{Ai}'`.
    """
    u = [Fraction(1)]
    for k in range(1, terms + 3):
        u.append(-u[-1] * Fraction((6 * k - 5) * (6 * k - 3) * (6 * k - 1), 216 * k * (2 * k - 1)))
    v = [u[k] * Fraction(6 * k + 1, 1 - 6 * k) for k in range(len(u))]
    c = [Fraction(1)]
    for k in range(1, len(u)):
        c.append(u[k] - (k - Fraction(1, 2)) * c[-1])  # I' = −Ai
    rate = [b - a for a, b in zip(_times(u, u), _times(v, v), strict=True)]
    log_f2 = [(w - 3 * r) / 3 for w, r in zip(_times(u, v), rate[1:], strict=False)]
    # The leading parts of the two terms of F₄ cancel, which is exact in fractions. 1 − F₄ = −L/2 − I²/8, s^{3/2} = 3ζ/2.
    cc, uc = [Fraction(), *_times(c, c)], [Fraction(), *_times(u, c)]
    tail4 = [a / 2 - b / 12 for a, b in zip(log_f2, cc, strict=False)]
    density4 = [a / 2 - b / 6 for a, b in zip(rate, uc, strict=False)]
    return _Airy(u, v, c, log_f2, rate, tail4, density4)


def _hastings_mcleod(terms: int) -> tuple[Series, Series]:
    r"""Return a, w of :math:`q = \sqrt{x/2}\sum a_nx^{-3n}` and :math:`q^2 = \tfrac x2\sum w_nx^{-3n}`, s = −x (DLMF 32.11.3)."""
    a = [Fraction(1)]
    for n in range(1, terms):
        w = _times(a, a)
        square_rest = sum((a[i] * a[n - i] for i in range(1, n)), Fraction())
        cube_rest = square_rest + sum((w[k] * a[n - k] for k in range(1, n)), Fraction())
        e = Fraction(1, 2) - 3 * (n - 1)
        a.append((e * (e - 1) * a[n - 1] - cube_rest) / 2)
    return a, _times(a, a)


def _decimal(x: Fraction) -> Decimal:
    return Decimal(x.numerator) / Decimal(x.denominator)


def _pi() -> Decimal:
    """Return π by Machin's formula."""

    def arctan_of_inverse(n: int) -> Decimal:
        term = total = Decimal(1) / n
        k = 1
        while abs(term) > Decimal(10) ** -(_DIGITS + 5):
            term /= -n * n
            k += 2
            total += term / k
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))


def _horner(coefficients: list[Decimal], x: Decimal) -> Decimal:
    total = Decimal()
    for c in reversed(coefficients):
        total = total * x + c
    return total


def _initial() -> tuple[Decimal, ...]:
    """Return q, q', I, R and L at the start, from the Airy series summed to their smallest terms."""
    s = Decimal(_START)
    zeta = 2 * s * s.sqrt() / 3
    fourth = s.sqrt().sqrt()
    e = (-zeta).exp() / (2 * _pi().sqrt())

    def total(series: Series) -> Decimal:
        result, last = Decimal(), None
        for k, c in enumerate(series):
            term = _decimal(c) / zeta**k
            if last is not None and abs(term) > last:
                break
            result, last = result + term, abs(term)
        return result

    series = _airy(80)
    q, slope = e / fourth * total(series.value), -e * fourth * total(series.slope)
    rate = slope * slope - s * q * q
    log_f2 = -(2 * s * s * q * q - 2 * s * slope * slope - q * slope) / 3
    return q, slope, e / fourth**3 * total(series.integral), rate, log_f2


def _painleve() -> dict[Fraction, tuple[list[Decimal], ...]]:
    """Return Taylor coefficients of q, I, R and L at every half-integer from the start to the left end."""
    q, slope, integral, rate, log_f2 = _initial()
    step = Decimal("-0.5")
    at = Fraction(_START)
    result = {}
    while at >= LEFT:
        s = _decimal(at)
        a, squares = [q, slope], []
        for m in range(_ORDER):
            square = 2 * sum((a[i] * a[m - i] for i in range((m + 1) // 2)), Decimal())
            squares.append(square + a[m // 2] ** 2 if m % 2 == 0 else square)
            cube = sum((squares[i] * a[m - i] for i in range(m + 1)), Decimal())
            a.append((s * a[m] + (a[m - 1] if m else 0) + 2 * cube) / ((m + 1) * (m + 2)))
        i = [integral] + [-a[k] / (k + 1) for k in range(_ORDER)]
        r = [rate] + [-squares[k] / (k + 1) for k in range(_ORDER)]
        ell = [log_f2] + [r[k] / (k + 1) for k in range(_ORDER)]
        result[at] = (a, i, r, ell)
        q, integral, rate, log_f2 = (_horner(c, step) for c in result[at])
        slope = _horner([k * a[k] for k in range(1, len(a))], step)
        at -= Fraction(1, 2)
    return result


class Table(NamedTuple):
    """The tables of one β, lowest degrees first."""

    tail: np.ndarray  # Chebyshev coefficients (degree + 1, pieces) of log F, and of log(1 − F) right of the split
    rate: np.ndarray  # the same of log F'/F, and of log F'/(1 − F)
    decay: float  # 1 − F = e^{−decay ζ} ζ^{−power} exp(log_scale + tail_series(1/ζ)) on the far right
    power: float
    log_scale: float
    tail_series: np.ndarray
    rate_series: np.ndarray  # log of F'/(1 − F)/(decay √s)


def _node(beta: int, s: float, taylor: dict, digits: int) -> tuple[float, float]:
    """Return the log of the tail and of its rate at one point of the table."""
    centre = Fraction(round(2 * s), 2)
    q, i, r, ell = (_horner(c, Decimal(s) - _decimal(centre)) for c in taylor[centre])
    tanh = 1 - 2 / (1 + i.exp())
    rate = {1: (r + q) / 2, 2: r, 4: (r - q * tanh) / 2}[beta]
    if s < SPLIT:
        log_f = {1: (ell - i) / 2, 2: ell, 4: (ell + i) / 2 + (1 + (-i).exp()).ln() - Decimal(2).ln()}[beta]
        return float(log_f), math.log(rate)
    # In as many digits as 1 − F has leading zeros, and a few more.
    with decimal.localcontext(decimal.Context(prec=digits)):
        half = (i / 2).exp()
        f = {1: ((ell - i) / 2).exp(), 2: ell.exp(), 4: (ell / 2).exp() * (half + 1 / half) / 2}[beta]
        return math.log(1 - f), math.log(rate * f / (1 - f))


@functools.cache
def _taylor() -> dict[Fraction, tuple[list[Decimal], ...]]:
    with decimal.localcontext(decimal.Context(prec=_DIGITS)):
        return _painleve()


@functools.cache
def table_of(beta: int) -> Table:
    """Return the table of one β. The first one takes a quarter of a second, each further one a tenth."""
    chebyshev = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    pieces = np.arange(LEFT, RIGHT) + 0.5
    with decimal.localcontext(decimal.Context(prec=_DIGITS)):
        values = np.array([[_node(beta, c + y / 2, _taylor(), 80) for y in chebyshev] for c in pieces])
    interpolate = np.linalg.inv(np.polynomial.chebyshev.chebvander(chebyshev, _DEGREE))
    tail, rate = np.einsum("kn,pnv->vkp", interpolate, values)
    airy = _airy(_RIGHT_TERMS)
    power, scale, tail_s, rate_s = {
        1: (0.5, math.sqrt(2 / 3) / (4 * math.sqrt(math.pi)), airy.integral, airy.value),
        2: (1.0, 1 / (4 * math.pi), airy.log_f2[1:], airy.rate[1:]),
        4: (2.0, 1 / (4 * math.pi), airy.tail4[2:], airy.density4[2:]),
    }[beta]
    decay = 1.0 if beta == 1 else 2.0
    log_tail = _log([c / tail_s[0] for c in tail_s])
    log_rate = _log([c / rate_s[0] for c in rate_s])
    count = _RIGHT_TERMS
    return Table(
        tail,
        rate,
        decay,
        power,
        math.log(scale * tail_s[0]),
        np.array([float(c) for c in log_tail[:count]]),
        np.array([float(b - a) for a, b in zip(log_tail, log_rate, strict=False)][:count]),
    )


@functools.cache
def left_series() -> tuple[np.ndarray, ...]:
    """Return polynomials in x⁻³, x = −s, for q/√(x/2), I/x^{3/2} up to its constant, R/x², and the rest of L."""
    a, w = _hastings_mcleod(_LEFT_TERMS)
    integral = [float(c / (Fraction(3, 2) - 3 * n)) / math.sqrt(2) for n, c in enumerate(a)]
    rate = [c / (2 * (2 - 3 * n)) for n, c in enumerate(w)]  # dR/dx = q²
    log_f2 = [Fraction(), *(-c / (3 - 3 * n) for n, c in enumerate(rate) if n > 1)]  # dL/dx = −R
    return tuple(np.array([float(c) for c in series]) for series in (a, integral, rate, log_f2))
