"""Shared parts of the claims about spectra: checked sizes, numbers of matrices drawn at once, and rates of biases."""

from __future__ import annotations

import numpy as np

from rmtjax._errors import InputError
from rmtjax.montecarlo import Sampler, positive, size

COLUMNS = size("columns; there are cN rows")
ASPECT = positive("aspect ratio c of rows to columns; cN is whole")


def check_rows(N, c, at_least=1):
    rows = c * N
    if rows < at_least - 1e-9 or abs(rows - round(rows)) > 1e-9 * rows:
        raise InputError(f"c = {c:g}: c·N must be a whole number ≥ {at_least}, but is {rows:g} for N = {N:g}")


def check_above(name, value, threshold):
    if value <= threshold:
        raise InputError(f"{name} = {value:g}: must be above the threshold {threshold:g}, where the outlier appears")


def _batch_size(N=1, c=1.0, **_):
    """Return the number of matrices drawn at once."""
    return max(1, int(2**20 // (N * N * max(c, 1.0))))


def dense(draw, *static, default_trials=2_000, **options):
    return Sampler(
        draw, static_argnames=static, options=options, block=8, batch_size=_batch_size, default_trials=default_trials
    )


def window(size_, distance):
    """Return the form of the largest eigenvalue's bias by the distance from the threshold, in units of size^(−2/3)."""
    return size_ ** (-2 / 3) / (1 + size_ ** (1 / 3) * np.maximum(distance, 0.0))


def overlap_window(size_, distance):
    """Return the same for overlaps, whose transition is smeared over size^(−1/3)."""
    return size_ ** (-1 / 3) / (1 + size_ ** (2 / 3) * distance**2)
