"""Formatting of numbers for terminals, figures and pages."""

from __future__ import annotations

import math

__all__ = [
    "byte_count",
    "chance",
    "duration",
    "number",
    "plain_number",
    "probability",
    "signed",
    "to_precision_of",
    "with_error",
]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """Return 10 to a whole power in one word: 10⁻³."""
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def number(value: float, digits: int = 4) -> str:
    """Return a value for a label.

    >>> [number(x) for x in (0.25, 40, 1e9, -2.5e-7, float("inf"))]
    ['0.25', '40', '10⁹', '−2.5·10⁻⁷', '∞']
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-12)
    if -4 < exponent < 5 and not (exponent == 4 and value == 1e4):
        return f"{value:.{digits}g}".replace("-", "−") if exponent < digits else f"{value:.0f}".replace("-", "−")
    mantissa = f"{value / 10.0**exponent:.{digits}g}".replace("-", "−")
    return power_of_ten(exponent) if mantissa == "1" else f"{mantissa}·{power_of_ten(exponent)}"


def plain_number(value: float, digits: int = 4) -> str:
    """Return a value in characters that can be typed: whole numbers below 10⁶ in full, larger powers of ten short.

    >>> [plain_number(x) for x in (2.0, 1e9, 0.33333)]
    ['2', '1e9', '0.3333']
    """
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def probability(p: float) -> str:
    """Return a probability with two decimals, or as a power of ten where it is small.

    >>> [probability(p) for p in (0.999, 0.25, 3e-5)]
    ['1', '0.25', '3e-05']
    """
    return "1" if p >= 0.995 else f"{p:.2f}" if p >= 0.01 else f"{p:.0e}"


def chance(p: float) -> str:
    """Return a probability like `probability`, with typographic powers of ten.

    >>> [chance(p) for p in (0.25, 3e-5, 0.0)]
    ['0.25', '3·10⁻⁵', '< 10⁻³⁰⁰']
    """
    return "< 10⁻³⁰⁰" if p < 1e-300 else number(p, 1) if p < 0.01 else probability(p)


def signed(z: float) -> str:
    """Return a standardised deviation with its sign.

    >>> [signed(z) for z in (1.234, -0.001, -12345.6)]
    ['+1.23', '0.00', '−12346']
    """
    if not math.isfinite(z):
        return number(z) if not math.isinf(z) else ("+∞" if z > 0 else "−∞")
    if abs(z) < 0.005:
        return "0.00"
    return (f"{z:+.2f}" if abs(z) < 1e4 else f"{'+' if z > 0 else '−'}{number(abs(z), 3)}").replace("-", "−")


def with_error(mean: float, se: float) -> str:
    """Return a mean and its standard error, with one decimal more than the error makes meaningful.

    >>> with_error(0.123456, 0.0012), with_error(2.0, 0.0)
    ('0.1235 ± 0.001', '2 in every draw')
    """
    if not math.isfinite(mean) or not math.isfinite(se):
        return number(mean)
    if not se > 0:
        return f"{mean:.6g} in every draw".replace("-", "−")
    decimals = max(0, min(10, 1 - math.floor(math.log10(se))))
    return f"{mean:.{decimals}f} ± {se:.1g}".replace("-", "−").replace("e−0", "e−")


def to_precision_of(value: float, se: float, more: int = 1) -> str:
    """Return a value with the decimals that a standard error makes meaningful, and `more` further ones.

    >>> to_precision_of(0.123456, 0.0012), to_precision_of(0.123456, 0.0012, 2)
    ('0.1235', '0.12346')
    """
    if not math.isfinite(value) or not se > 0 or not math.isfinite(se):
        return number(value, 7)
    return f"{value:.{max(0, min(15, more - math.floor(math.log10(se))))}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are at least two.

    >>> duration(90), duration(1e5)
    ('90.0 s', '27.8 h')
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def byte_count(count: float) -> str:
    """Return a number of bytes in a suitable unit.

    >>> byte_count(1234567)
    '1.23 MB'
    """
    power = min(3, int(math.log10(max(count, 1))) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
