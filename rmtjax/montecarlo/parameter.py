"""Parameters of claims, and the values that each may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtjax._checks import interval, numbers, one_or_list
from rmtjax._errors import InputError

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
        return interval(self._kind, self.low, self.high, open_low=self.open_low, open_high=self.open_high)

    @property
    def _kind(self) -> str:
        return "a whole number" if self.whole else "a finite number"

    def check(self, name: str, values: Any) -> np.ndarray:
        """Return `values` as a float64 array of one or no dimension.

        Raises:
            InputError: naming the parameter and the first value that is not admissible.
        """
        array = one_or_list(name, values, self.allowed)
        numbers(name, array, self.low, self.high, open_low=self.open_low, open_high=self.open_high, kind=self._kind)
        bad = np.atleast_1d((array != np.floor(array)) | (np.abs(array) > _LARGEST_EXACT))
        if self.whole and bad.any():
            raise InputError(f"{name} = {np.atleast_1d(array)[bad][0]:g}: must be {self.allowed}")
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
