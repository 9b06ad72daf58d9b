"""Checks of arguments, shared by all subpackages so that every message has one form: `name = value: must be …`.

A traced value has no number yet, so it passes; `is_traced` recognises it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Real
from typing import Any

import jax
import numpy as np

from rmtjax._errors import InputError, shown, unknown

__all__ = [
    "finite",
    "flag",
    "floats",
    "interval",
    "is_traced",
    "number",
    "numbers",
    "one_of",
    "one_or_list",
    "path",
    "whole",
]


def is_traced(*values: Any) -> bool:
    """Return whether any of the values is traced, so that its number is not known yet."""
    return any(isinstance(value, jax.core.Tracer) for value in values)


def interval(kind: str, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> str:
    """Return the description of an interval for a message.

    >>> interval("a finite number", 0, math.inf, open_low=True), interval("a number", 0, 1, open_high=True)
    ('a finite number > 0', 'a number in [0, 1)')
    """
    if math.isinf(low) and math.isinf(high):
        return kind
    if math.isinf(high):
        return f"{kind} {'>' if open_low else '≥'} {low:g}"
    if math.isinf(low):
        return f"{kind} {'<' if open_high else '≤'} {high:g}"
    return f"{kind} in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"


def whole(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return a whole number in [low, high] as a Python integer.

    Raises:
        InputError: for any other value, a boolean, or a traced one.

    Examples:
        >>> whole("rank", 8)
        8
    """
    allowed = f"a whole number ≥ {low}" if high is None else f"a whole number from {low} to {high}"
    if is_traced(value):
        raise InputError(f"{name} = {shown(value)}: must be {allowed}, known before compilation")
    integral = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integral or value < low or (high is not None and value > high):
        raise InputError(f"{name} = {shown(value)}: must be {allowed}")
    return int(value)


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return a finite real number in an interval as a Python float.

    Raises:
        InputError: for any other value, a boolean or NaN.

    Examples:
        >>> number("gamma", 1, 0, open_low=True)
        1.0
    """
    real = isinstance(value, (Real, np.floating)) and not isinstance(value, bool)
    try:
        real = real and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        real = False
    if not real or not _inside(value, low, high, open_low, open_high):
        allowed = interval("a finite number", low, high, open_low=open_low, open_high=open_high)
        raise InputError(f"{name} = {shown(value)}: must be {allowed}")
    return float(value)


def numbers(
    name: str,
    values: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    kind: str = "a finite number",
) -> None:
    """Check that every entry of an array is a finite number in an interval; a traced array passes.

    Args:
        name: the argument.
        values: what it is.
        low, high: ends of the interval.
        open_low, open_high: whether an end is excluded.
        kind: what the message calls the numbers.

    Raises:
        InputError: with the first entry that is not allowed.
    """
    if is_traced(values):
        return
    array = np.asarray(values, float)
    bad = ~(np.isfinite(array) & _inside(array, low, high, open_low, open_high))
    if np.any(bad):
        allowed = interval(kind, low, high, open_low=open_low, open_high=open_high)
        raise InputError(f"{name} = {float(array[bad][0]):g}: must be {allowed}")


def _inside(value: Any, low: float, high: float, open_low: bool, open_high: bool) -> Any:
    above = value > low if open_low else value >= low
    return above & (value < high if open_high else value <= high)


def finite(name: str, array: Any) -> None:
    """Check that an array, real or complex, holds no NaN and no infinity; a traced array passes.

    Raises:
        InputError: with the first entry that is not finite.
    """
    if is_traced(array):
        return
    host = np.asarray(array)  # `jax_debug_nans` watches JAX arrays only
    bad = host[~np.isfinite(host)]
    if bad.size:
        raise InputError(f"{name} has an entry {shown(bad.flat[0].item())}: all must be finite")


def floats(name: str, values: Any, allowed: str) -> np.ndarray:
    """Return numbers as a float64 array; `allowed` says in words what may be given.

    Raises:
        InputError: for anything else.

    Examples:
        >>> floats("edges", [0, 1], "a list of numbers")
        array([0., 1.])
    """
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} = {shown(values)}: must be {allowed}") from None


def one_or_list(name: str, values: Any, allowed: str) -> np.ndarray:
    """Return one number, or a list of at least one, as a float64 array; `allowed` says in words what each may be.

    Raises:
        InputError: for anything else.

    Examples:
        >>> one_or_list("alpha", 1, "a number"), one_or_list("alpha", [1, 2], "a number")
        (array(1.), array([1., 2.]))
    """
    array = floats(name, values, f"{allowed}, or a list of such numbers")
    if array.ndim > 1:
        raise InputError(f"{name} has shape {array.shape}: must be one number or a one-dimensional list")
    if array.size == 0:
        raise InputError(f"{name} is empty: must hold at least one value, each {allowed}")
    return array


def flag(name: str, value: Any) -> bool:
    """Return True or False.

    Raises:
        InputError: for any other value, 0 and 1 included.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} = {shown(value)}: must be True or False")
    return value


def path(name: str, value: Any, allowed: str = "a path") -> str:
    """Return a path as a text.

    Raises:
        InputError: for anything but a text or a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise InputError(f"{name} = {shown(value)}: must be {allowed}")
    return str(value)


def one_of(label: str, name: Any, known: Iterable[str]) -> str:
    """Return a name after checking that it is one of the known names.

    Raises:
        InputError: for any other value, with the nearest known name.
    """
    known = list(known)
    if not isinstance(name, str) or name not in known:
        raise unknown(label, name, known)
    return name
