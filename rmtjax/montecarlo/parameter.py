"""Parameters of claims, and the values that each may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtjax._errors import InputError, shown

__all__ = ["Parameter", "between", "nonnegative", "positive", "real", "size"]

_LARGEST_EXACT = 2.0**53


@dataclass(frozen=True)
class Parameter:
    """A real parameter: its allowed interval, whether it is a whole number, and its meaning.

    Attributes:
        low, high: ends of the interval.
        open_low, open_high: whether an end is excluded. Infinite values are never allowed.
        whole: whether only whole numbers are allowed.
        meaning: a few words for listings.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    meaning: str = ""

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        kind = "whole number" if self.whole else "finite number"
        if math.isinf(self.low) and math.isinf(self.high):
            return f"a {kind}"
        if math.isinf(self.high):
            return f"a {kind} {'>' if self.open_low else '≥'} {self.low:g}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"a {kind} in {left}{self.low:g}, {self.high:g}{right}"

    def check(self, name: str, values: Any) -> np.ndarray:
        """Return `values` as a float64 array of one or no dimension.

        Raises:
            InputError: naming the parameter and the first value that is not admissible.
        """
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"{name} = {shown(values)}: must be {self.allowed}, or a list of such numbers") from None
        if array.ndim > 1:
            raise InputError(f"{name} has shape {array.shape}: must be one number or a one-dimensional list")
        if array.size == 0:
            raise InputError(f"{name} is empty: must hold at least one value, each {self.allowed}")
        bad = ~np.isfinite(array) | (array < self.low) | (array > self.high)
        if self.open_low:
            bad |= array == self.low
        if self.open_high:
            bad |= array == self.high
        if self.whole:
            bad |= (array != np.floor(array)) | (np.abs(array) > _LARGEST_EXACT)
        if bad.any():
            raise InputError(f"{name} = {np.atleast_1d(array)[np.atleast_1d(bad)][0]:g}: must be {self.allowed}")
        return array + 0.0  # −0 and 0 are the same value


def real(meaning: str = "") -> Parameter:
    """Return a parameter that may be any finite number."""
    return Parameter(meaning=meaning)


def positive(meaning: str = "") -> Parameter:
    """Return a parameter that may be any finite number > 0."""
    return Parameter(low=0.0, open_low=True, meaning=meaning)


def nonnegative(meaning: str = "") -> Parameter:
    """Return a parameter that may be any finite number ≥ 0."""
    return Parameter(low=0.0, meaning=meaning)


def between(
    low: float, high: float, meaning: str = "", *, open_low: bool = False, open_high: bool = False
) -> Parameter:
    """Return a parameter that may be any number between two others."""
    return Parameter(low=low, high=high, open_low=open_low, open_high=open_high, meaning=meaning)


def size(meaning: str = "", *, at_least: int = 1) -> Parameter:
    """Return a parameter that may be any whole number from `at_least` to 2⁵³."""
    return Parameter(low=float(at_least), whole=True, meaning=meaning)
