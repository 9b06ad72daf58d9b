"""Checks of spectra that users pass in."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmtjax._checks import finite, is_traced
from rmtjax._errors import InputError, shown

__all__ = ["checked_values", "given_values", "nonnegative"]


def nonnegative(name: str, values: Any) -> None:
    """Raise `InputError` if a known value is negative."""
    if not is_traced(values) and np.any(np.asarray(values) < 0):
        raise InputError(f"{name} has an entry {shown(float(np.min(values)))}: none may be negative")


def checked_values(name: str, values: Any) -> None:
    """Raise `InputError` unless an array ends in an axis of at least one value and all values are finite."""
    if values.ndim == 0 or values.shape[-1] == 0:
        raise InputError(f"{name} has shape {values.shape}: must be (..., k) with k at least 1")
    finite(name, values)


def given_values(name: str, values: Any) -> np.ndarray:
    """Return one spectrum as a NumPy array of floats, shape (k,).

    Raises:
        InputError: for other shapes, values that are not real or not finite, or no values.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiu" or values.ndim != 1 or values.size == 0:
        raise InputError(f"{name} has shape {values.shape} and dtype {values.dtype}: must be (k,), k ≥ 1, and real")
    values = values.astype(float)
    finite(name, values)
    return values
