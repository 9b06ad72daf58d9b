"""Bounds on the cosines of a large layer by Krylov spaces."""

from __future__ import annotations

import numpy as np

from rmtjax.intruders.pair import Pair
from rmtjax.intruders.scan.spectra import gram_values, stand_in_values
from rmtjax.intruders.scan.verdict import LARGEST_ANGLE, Cosines, ScanLimits, is_decided, space_gap
from rmtjax.linalg.krylov import OUT_OF_CACHE_ENTRIES, LowRankUpdated, full_width, largest_cosines, top_singular

__all__ = ["by_bounds"]


def by_bounds(pair: Pair, top_k: int, threshold_epsilon: float, limits: ScanLimits) -> Cosines | None:
    """Return bounds from Krylov spaces; None if they leave a verdict open."""
    n, m = pair.shape
    tuned = top_singular(pair.tuned, top_k)
    if tuned.errors.max() > LARGEST_ANGLE or (-np.diff(tuned.values) <= space_gap(pair, float(tuned.values[0]))).any():
        return None
    dense = min(n, m) <= limits.values_side
    beside = 1 if dense else 4 if n * m < OUT_OF_CACHE_ENTRIES else full_width(top_k + 4) - top_k
    bounds = largest_cosines(
        LowRankUpdated(pair.base), tuned.vectors, threshold=threshold_epsilon, errors=tuned.errors,
        n_random=beside, n_leading=top_k, min_steps=max(8, tuned.steps - 4),  # the base's leading vectors take about as many
    )  # fmt: skip
    if not is_decided(bounds.lower, bounds.upper, threshold_epsilon):
        return None
    s = gram_values(pair.base) if dense else stand_in_values(bounds.ritz, top_k + np.arange(beside), pair.base)
    estimate = np.clip(bounds.estimate, bounds.lower, bounds.upper)
    similarity = np.abs(bounds.cosines[:, : -top_k - 1 : -1])
    return Cosines(tuned.values, estimate, bounds.lower, bounds.upper, similarity, s, np.asarray(tuned.vectors))
