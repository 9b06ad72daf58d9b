"""Hypothesis tests: pure functions from means, standard errors and numbers of trials to z and p, elementwise on arrays."""

from __future__ import annotations

import numpy as np

from rmtjax.montecarlo.result import z_score

__all__ = ["are_events", "beyond", "binomial", "holm", "t_with_allowance", "welch"]


def beyond(gap: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the part of a gap that exceeds the allowance, with its sign.

    >>> beyond(np.array([-3.0, 0.5]), np.array([1.0, 1.0])).tolist()
    [-2.0, 0.0]
    """
    excess = np.sign(gap) * np.maximum(np.abs(gap) - allowed, 0.0)
    return np.where(np.isfinite(gap), excess, gap)


def t_with_allowance(
    mean: np.ndarray, se: np.ndarray, trials: np.ndarray, law: np.ndarray, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Test |E x − law| ≤ allowed by Student's t.

    Args:
        mean, se, trials: estimate of E x, its standard error, and its number of trials.
        law: the expected value.
        allowed: largest distance allowed between the law and E x.

    Returns:
        The excess of mean − law over the allowance in standard errors, and its two-sided p-value. A mean that is not a number
        refutes the law: its p-value is 0.
    """
    from scipy import stats

    z = z_score(beyond(mean - law, allowed), se, law)
    p = 2 * stats.t.sf(np.abs(z), trials - 1)
    return z, np.where(np.isfinite(p), p, 0.0)


def welch(
    mean: np.ndarray,
    se: np.ndarray,
    trials: np.ndarray,
    other_mean: np.ndarray,
    other_se: np.ndarray,
    other_trials: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test whether two means estimate the same number, by Welch's t-test.

    Args:
        mean, se, trials: of the one sample.
        other_mean, other_se, other_trials: of the other.

    Returns:
        The difference other_mean − mean in standard errors, its two-sided p-value, and its standard error. Where neither
        sample varies, equal means (up to rounding) have z = 0 and p = 1, and others z = ±∞ and p = 0.
    """
    from scipy import stats

    both = np.hypot(se, other_se)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.ttest_ind_from_stats(
            other_mean,
            other_se * np.sqrt(other_trials),
            other_trials,
            mean,
            se * np.sqrt(trials),
            trials,
            equal_var=False,
        ).pvalue
    z = z_score(other_mean - mean, both, mean)
    p = np.where(both == 0, np.where(z == 0, 1.0, 0.0), p)
    return z, np.where(np.isfinite(p), p, 0.0), both


def are_events(
    mean: np.ndarray, variance: np.ndarray, least: np.ndarray, most: np.ndarray, trials: np.ndarray
) -> np.ndarray:
    """Return a mask of the cells in which every trial gave 0 or 1. Values between these bounds never vary as much."""
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = mean * (1 - mean) * trials / (trials - 1)
        at_bounds = np.isin(least, (0, 1)) & np.isin(most, (0, 1)) & (trials >= 2)
        return at_bounds & (np.abs(variance - expected) <= 1e-6 * expected)


def binomial(
    share: np.ndarray, law: np.ndarray, allowed: np.ndarray, trials: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Test a probability by the exact distribution of the number of events.

    A t-test would take the small variance of a few events, or of none, for precision.

    Args:
        share: of the trials in which the event happened.
        law: its probability.
        allowed: largest distance of the true probability from the law. The null hypothesis is the one nearest to `share`.
        trials: their number.

    Returns:
        The normal deviate of the p-value, with the sign of the excess, and the two-sided p-value.
    """
    from scipy import stats

    nearest = np.clip(share, np.clip(law - allowed, 0, 1), np.clip(law + allowed, 0, 1))
    events = np.rint(share * trials)
    below, above = stats.binom.cdf(events, trials, nearest), stats.binom.sf(events - 1, trials, nearest)
    p = np.where(nearest == share, 1.0, np.minimum(2 * np.minimum(below, above), 1.0))
    return np.sign(share - nearest) * stats.norm.isf(p / 2), p


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p-values (Scand. J. Statist. 6, 1979).

    Rejecting those ≤ a errs with probability ≤ a, whatever the dependence between the tests.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(adjusted, 1.0)
    return out
