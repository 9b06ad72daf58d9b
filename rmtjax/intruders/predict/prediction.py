"""The prediction of an update's effect, put together from outliers, edge and draws."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rmtjax._checks import number, whole
from rmtjax.intruders.predict.drawn import drawn_intruders
from rmtjax.intruders.predict.outliers import intruding_outliers
from rmtjax.spectra.bulk_fit import BulkFit

__all__ = ["Prediction", "bulk_edge", "check_question", "predict", "predict_beyond"]

_FEW, _LOW = 16, 0.5
"""Numbers of leading vectors and threshold up to which all intruders are outliers. Beyond, many are base vectors that have only
mixed with one another, so all are drawn; also if more than that many directions are each somewhat below the threshold."""


def check_question(top_k: Any, threshold_epsilon: Any) -> None:
    """Raise InputError unless `top_k` is a number of leading vectors and `threshold_epsilon` a cosine between 0 and 1."""
    whole("top_k", top_k)
    number("threshold_epsilon", threshold_epsilon, 0, 1, open_low=True, open_high=True)


def bulk_edge(singular_values: np.ndarray, fit: BulkFit) -> float:
    """Return the end of the bulk, one spacing beyond its last value, which is a pole of the sums over it."""
    last = singular_values[fit.count : fit.count + 9]
    return max(fit.threshold, float(last[0] + (last[0] - last[-1]) / 8))


class Prediction(NamedTuple):
    """The predicted effect of an update of given strengths on a matrix.

    Attributes:
        threshold: least strength that makes an outlier, in the limit.
        outliers: mean singular values, NaN for strengths that make none, or none that keeps half of itself among the base's own
            spikes, shape (r,).
        overlaps: squared, of the left vectors with the update's, shape (r,); of outliers among spikes, before any mixing.
        probabilities: of an intruder, shape (r,); near the threshold there may be one without a clear outlier.
        intruders: mean number among the leading vectors. The sum of the probabilities, as long as ε ≤ 0.5 and there are no more
            than 16 leading vectors, nor directions between half the threshold and it, which are more together than one by one;
            beyond that from `drawn_intruders`. Where that takes too long, the sum in the last case, in the others NaN.
    """

    threshold: float
    outliers: np.ndarray
    overlaps: np.ndarray
    probabilities: np.ndarray
    intruders: float


def predict(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    bulk: BulkFit,
    threshold_epsilon: float = 0.5,
    *,
    top_k: int | None = None,
    draws: int = 64,
    seed: int = 0,
) -> Prediction:
    r"""Return the predicted outliers, overlaps and number of intruders of an update.

    :math:`D(z_i) = 1/\theta_i^2` for the outliers (Benaych-Georges & Nadakuditi 2012); the rest is the module's, and in
    docs/derivations.md, §6.

    Args:
        strengths: singular values θ of the update, shape (r,).
        singular_values: of the base, all of them (or as many numbers of the same distribution), shape (min(n, m),).
        shape: (n, m).
        bulk: fit of the base's random part, `rmtjax.spectra.bulk_fit.bulk_fit`.
        threshold_epsilon: ε.
        top_k: an outlier is an intruder only if it is among so many leading singular values.
        draws: of the mixing.
        seed: of the draws.

    Returns:
        `Prediction`.
    """
    s = np.asarray(singular_values, float)
    return predict_beyond(
        strengths, s, shape, bulk_edge(s, bulk), threshold_epsilon, top_k=top_k, draws=draws, seed=seed
    )


def predict_beyond(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    edge: float,
    threshold_epsilon: float = 0.5,
    *,
    top_k: int | None = None,
    draws: int = 64,
    seed: int = 0,
) -> Prediction:
    """Return `predict` where the singular values above an edge are the spikes of the base."""
    theta, s = np.asarray(strengths, float), np.asarray(singular_values, float)
    limit, outliers, overlaps, chances = intruding_outliers(
        theta, s, shape, edge, threshold_epsilon, top_k, draws, seed
    )
    one_by_one = threshold_epsilon <= _LOW and (top_k is None or top_k <= _FEW)
    many = float("nan")
    if not one_by_one or ((theta > limit / 2) & (theta <= limit)).sum() > _FEW:
        many = drawn_intruders(theta[theta > limit / 8], s, shape, threshold_epsilon, top_k=top_k, seed=seed)
    if one_by_one and np.isnan(many):
        many = float(chances.sum() if top_k is None else min(chances.sum(), top_k))
    return Prediction(limit, outliers, overlaps, chances, many)
