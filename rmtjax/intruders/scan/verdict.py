"""Decisions from bounds on cosines, and vectors that are known only as a space."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from rmtjax.intruders.pair import Pair

__all__ = ["LARGEST_ANGLE", "Cosines", "ScanLimits", "is_decided", "space_gap"]

LARGEST_ANGLE = 0.2
"""Angle by which a vector may be off if singular values nearly coincide; the bounds on its cosines allow for it."""


@dataclasses.dataclass(frozen=True)
class ScanLimits:
    """Sizes at which a scan changes its algorithm. Verdicts do not depend on them.

    Attributes:
        eigh_side: smaller side up to which a processor has all eigenvectors of a Gram matrix sooner than a Krylov space.
        values_side: smaller side up to which all singular values of a base are computed; above it a quadrature stands for them.
        single_thread_entries: entries of a matrix up to which BLAS's threads gain less than one matrix for each core does.
    """

    eigh_side: int = 400
    values_side: int = 512
    single_thread_entries: int = 1 << 20


class Cosines(NamedTuple):
    """The findings of one algorithm on a layer.

    Attributes:
        values: the k largest singular values after tuning.
        cosines: the largest absolute cosine of each of their left vectors with any left singular vector of the base.
        lower, upper: bounds on the cosines.
        similarity: absolute cosines of the k leading vectors after (rows) and before (columns).
        base_values: singular values before, all of them or as many numbers of the same distribution.
        vectors: the k leading left singular vectors after, as columns (n, k).
    """

    values: np.ndarray
    cosines: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    similarity: np.ndarray
    base_values: np.ndarray
    vectors: np.ndarray


def space_gap(pair: Pair, largest_value: float, precision: float = float(np.finfo(np.float32).eps)) -> float:
    """Return the distance of singular values below which their vectors count as one space.

    The error of a decomposition in this precision mixes such vectors, and so does the rounding of the stored numbers.
    """
    stored = 0.0
    if pair.rounding > precision:
        stored = pair.rounding * float(np.linalg.norm(np.asarray(pair.base))) / math.sqrt(math.prod(pair.shape))
    return max(4 * precision * largest_value, stored)


def is_decided(lower: np.ndarray, upper: np.ndarray, threshold_epsilon: float) -> bool:
    """Return, for each pair of bounds, whether they decide if the cosine is below the threshold."""
    return bool(((lower >= threshold_epsilon) | (upper < threshold_epsilon)).all())
