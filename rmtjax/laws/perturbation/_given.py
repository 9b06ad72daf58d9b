"""Checks of matrices and spectra for perturbation theory, and gaps between eigenvalues."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmtjax._checks import finite, is_traced
from rmtjax._errors import InputError

__all__ = ["ROUNDED", "check_array", "check_simple", "check_symmetric", "inverse_gaps", "separate"]


def check_array(name: str, a: Array) -> None:
    """Raise `InputError` for an array that is empty or has an entry that is not finite."""
    if a.size == 0:
        raise InputError(f"{name} has shape {a.shape}: must not be empty")
    finite(name, a)


def check_simple(name: str, values: Array, slack: float = 0.0) -> None:
    """Raise `InputError` for equal entries; with slack, for entries that differ by less than that share of the largest."""
    if not is_traced(values):
        sizes = np.max(np.abs(values), axis=-1, keepdims=True, initial=0.0)
        if np.any(np.diff(np.sort(values, axis=-1)) <= slack * sizes):
            rounded = " up to rounding" if slack else ""
            raise InputError(f"{name} has equal entries{rounded}: must be distinct for perturbation theory")


ROUNDED = 32 * float(np.finfo(np.float64).eps)
"""Multiple of the largest value up to which computed values may stand for equal ones."""


def separate(values: Array) -> Array:
    """Return computed values, all NaN if two of them may be equal ones that rounding separates."""
    ordered = jnp.sort(values)
    equal = jnp.any(jnp.diff(ordered) <= ROUNDED * jnp.max(jnp.abs(values)))
    return jnp.where(equal, jnp.nan, values)


def check_symmetric(name: str, a: Array) -> None:
    """Raise `InputError` for a matrix that differs from its transpose."""
    if not is_traced(a):
        gap, size = float(np.max(np.abs(a - a.T))), float(np.max(np.abs(a)))
        if gap > 1e-12 * size:
            raise InputError(f"{name} differs from its transpose by {gap:.3g}: must be symmetric")


def inverse_gaps(values: Float[Array, "N"]) -> Float[Array, "N N"]:
    """Return 1/(λ_i − λ_j) at (j, i), 0 on the diagonal."""
    itself = jnp.eye(values.size, dtype=bool)
    return jnp.where(itself, 0.0, 1 / jnp.where(itself, 1.0, values - values[:, None]))
