r"""Decomposition of a spectrum into a random bulk and spikes.

Conventions are those of the laws: a symmetric matrix of order N has entries of variance :math:`\sigma^2/N` off the diagonal
and the bulk :math:`[-2\sigma, 2\sigma]`; an n×m matrix has entries of variance :math:`\sigma^2/m`, :math:`c = n/m`, and
singular values in :math:`[\sigma|1-\sqrt c|, \sigma(1+\sqrt c)]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Num

from rmtjax._checks import number, whole
from rmtjax._errors import InputError, shown
from rmtjax.laws import marchenko_pastur, semicircle
from rmtjax.laws.edge import tracy_widom
from rmtjax.spectra._values import given_values, nonnegative

__all__ = ["BulkFit", "bulk_fit", "bulk_fit_symmetric"]


class BulkFit(NamedTuple):
    r"""The random bulk of a spectrum and the spikes outside it.

    Attributes:
        sigma: σ of the bulk, the units of the laws.
        sigma_error: its standard error if the entries are Gaussian.
        c: aspect ratio n/m of the bulk; NaN for a symmetric matrix.
        lower, upper: the bulk's edges, :math:`\sigma|1-\sqrt c|` and :math:`\sigma(1+\sqrt c)`, or :math:`\mp2\sigma`.
        threshold: absolute value above which a value counts as a spike: the edge of the noise that the spikes
            leave, (n − r)×(m − r), and a margin for its fluctuations. With many spikes it is below `upper`.
        count: number of spikes.
        spikes: their indices in the values given, the largest first.
    """

    sigma: float
    sigma_error: float
    c: float
    lower: float
    upper: float
    threshold: float
    count: int
    spikes: np.ndarray


def _edge_quantile(level: Any, beta: int, edges: int = 1) -> float:
    """Return the value that one edge exceeds with probability `level`, by Tracy–Widom in the units of the β-ensembles' edge."""
    level = number("level", level, 0, 1, open_low=True, open_high=True)
    quantile = _tracy_widom_isf(level / edges, beta)
    return quantile / 2 ** (1 / 6) if beta == 4 else quantile


@functools.lru_cache(100)  # the layers of a model need the same quantiles
def _tracy_widom_isf(level: float, beta: int) -> float:
    return float(tracy_widom.isf(level, beta))


@functools.lru_cache(100)
def _median_singular_value(c: float) -> float:
    return float(marchenko_pastur.singular_ppf(0.5, c))


def _settle(count: int, threshold: Callable[[int], float], sizes: np.ndarray) -> int:
    """Return the number of spikes among descending `sizes`: each exceeds the threshold of a bulk that includes it.

    The search starts from above, from a robust value and thresholds that exclude all spikes from the bulk: together spikes hide
    one another, one at a time they cannot.
    """
    counts: list[int] = []
    while count not in counts:
        counts.append(count)
        count = min(int(np.sum(sizes > threshold(count))), sizes.size - 1)
    count = max(counts[counts.index(count) :])
    while count and sizes[count - 1] <= threshold(count - 1):
        count -= 1
    return count


def _share_lost(y: np.ndarray) -> np.ndarray:
    """Return 1/t² of y = t + 1/t, t ≥ 1, by which a spike's outlier depends on the noise."""
    y = np.maximum(y, 2.0)
    return (2 / (y + np.sqrt(y * y - 4))) ** 2


def _noise_energy(bulk: Any, noise: Callable[[Any], Any], strong: Any) -> Any:
    """Return the v of ``v · noise(v) = bulk`` by Steffensen's method; `strong` is the value of `noise` without any weak spike."""

    def again(v):
        return bulk / max(noise(v), strong / 4)

    v = bulk / strong
    for _ in range(60 if bulk else 0):
        once = again(v)
        twice = again(once)
        bend = twice - 2 * once + v
        before, v = v, v - (once - v) ** 2 / bend if bend else twice
        if not bulk / strong <= v <= 4 * bulk / strong:
            v = twice
        if abs(v - before) <= 1e-14 * v:
            break
    return v


class _Rectangle(NamedTuple):
    """An n×m noise matrix and the statistics of its largest singular values; v is the variance of an entry."""

    n: float
    m: float
    beta: int

    def threshold(self, v: Any, count: int, quantile: float) -> float:
        # Centred and scaled as Ma (Bernoulli 18, 2012) does, for an error of N^{-2/3} instead of N^{-1/3}.
        a, b = (math.sqrt(max(x - count - 0.5, 0.5)) for x in (self.n, self.m))
        return math.sqrt(v * ((a + b) ** 2 + quantile * (a + b) * (1 / a + 1 / b) ** (1 / 3)))

    def variance(self, squares: np.ndarray, count: int) -> Any:
        n, m, root = self.n, self.m, math.sqrt(self.n * self.m)
        strong = (n - count) * (m - count)

        def noise(v):  # a spike ρ takes away n + m + nm/ρ², since s² = ρ² + n + m + nm/ρ² in units of v
            return strong - root * np.sum(np.sqrt(_share_lost((squares[:count] / v - n - m) / root)))

        return _noise_energy(float(np.sum(squares[count:])), noise, strong)


def bulk_fit(
    singular_values: Num[ArrayLike, "..."],
    n: int | None = None,
    m: int | None = None,
    *,
    level: float = 1e-3,
    beta: int = 1,
) -> BulkFit:
    r"""Fit the Marchenko–Pastur law to the bulk of a matrix's singular values and list the spikes above it.

    The model is an n×m matrix of independent entries of variance :math:`\sigma^2/m` plus a matrix of low rank. A first σ is the
    median's (Gavish & Donoho, *IEEE Trans. Inf. Theory* 60, 2014), which a few spikes hardly move. Then, alternately until
    nothing changes: values above the Tracy–Widom quantile of the noise are spikes, and σ is set by the energy of the others,

    .. math::
        \sum_{\text{bulk}}s_i^2 = \frac{\sigma^2}m\Big[(n-r)(m-r) - \sum_{k\le r}\frac{nm}{\rho_k^2}\Big],

    where :math:`\rho_k`, the strength of the k-th spike in units of an entry, follows from its outlier
    :math:`s_k^2m/\sigma^2 = \rho_k^2 + n + m + nm/\rho_k^2`; the terms besides
    :math:`\rho_k^2` are noise that the spike takes with it. For Gaussian
    entries that is as precise as σ can be known, :math:`\sigma/\sqrt{2\beta nm}`.

    On a matrix that is not noise plus low rank, a trained weight matrix say, σ is that of the noise matrix with the energy of
    all values below its own edge, and the spikes are the values that no such noise explains. `esd_test` answers whether the
    rest looks like noise.

    Args:
        singular_values: all min(n, m) of them, in any order.
        n, m: sides of the matrix. If neither is given, c ≤ 1 is fitted too, by the variance of the bulk's squares, and σ is in
            units of the longer side.
        level: the probability that a matrix of nothing but noise shows a spike.
        beta: 1 for real, 2 for complex, 4 for quaternion entries.

    Returns:
        `BulkFit` of NumPy numbers; not for use inside `jit`.

    Raises:
        InputError: for values that are negative, not finite or not min(n, m) in number, or a level outside (0, 1).

    Examples:
        >>> levels = marchenko_pastur.singular_ppf((np.arange(300) + 0.5) / 300, 0.75)
        >>> fit = bulk_fit(np.append(levels[:-1], 4.0), 300, 400)
        >>> fit.count, round(fit.sigma, 2)
        (1, 1.0)
    """
    values = given_values("singular_values", singular_values)
    nonnegative("singular_values", values)
    if (n is None) != (m is None):
        raise InputError(f"n = {shown(n)}, m = {shown(m)}: give both sides of the matrix or neither")
    for name, size in (("n", n), ("m", m)):
        if size is not None:
            whole(name, size)
    if n is not None and min(n, m) != values.size:
        raise InputError(f"singular_values has {values.size} entries: must have min(n, m) = {min(n, m)}")
    quantile = _edge_quantile(level, beta)
    order = np.argsort(-values, kind="stable")
    squares = values[order] ** 2
    c = n / m if n is not None else _quartile_ratio(values)
    k = values.size
    sides = (lambda count: (n, m)) if n is not None else (lambda count: (k, _longer_side(squares[count:], count, beta)))

    def fitted(count):
        matrix = _Rectangle(*sides(count), beta)
        v = matrix.variance(squares, count)
        return matrix, v, matrix.threshold(v, count, quantile)

    first = _Rectangle(*((n, m) if n is not None else (k, k / c)), beta)
    median = (np.median(values) / _median_singular_value(float(c))) ** 2 / first.m
    robust = min(int(np.sum(values > first.threshold(median, 0, quantile))), k - 1)
    count = _settle(robust, lambda count: fitted(count)[2], values[order])
    matrix, v, threshold = fitted(count)
    c, sigma = matrix.n / matrix.m, math.sqrt(v * matrix.m)
    error = sigma / math.sqrt(2 * beta * (matrix.n - count) * (matrix.m - count))
    root = math.sqrt(c)
    return BulkFit(sigma, error, c, sigma * abs(1 - root), sigma * (1 + root), threshold, count, order[:count])


def _longer_side(squares: np.ndarray, count: int, beta: int) -> float:
    """Return the m of a k×m noise matrix whose squared singular values have the same spread: Var/mean² → k/m."""
    k = squares.size
    ratio = float(np.var(squares) / np.mean(squares) ** 2) if np.any(squares) else 1.0
    return float(max((k + 2 / beta - 1) / max(ratio, 1e-12), k) + count)


def _quartile_ratio(values: np.ndarray) -> float:
    """Return the c ≤ 1 whose law has the given ratio of quartiles, independent of the largest values."""
    grid = np.linspace(1e-4, 1, 400)
    low, high = (np.asarray(marchenko_pastur.singular_ppf(q, grid)) for q in (0.25, 0.75))
    quartiles = np.quantile(values, [0.25, 0.75])
    return float(grid[np.argmin(np.abs(low / high - quartiles[0] / quartiles[1]))]) if quartiles[1] > 0 else 1.0


def bulk_fit_symmetric(eigenvalues: Num[ArrayLike, "..."], *, level: float = 1e-3, beta: int = 1) -> BulkFit:
    r"""Fit the semicircle to the bulk of a symmetric matrix's eigenvalues and list the spikes on either side.

    As `bulk_fit`, for a matrix of independent entries of mean 0 and variance :math:`\sigma^2/N` off the diagonal,
    :math:`2\sigma^2/(\beta N)` on it, plus a symmetric one of low rank. With :math:`|\lambda_k| = \sigma(t_k + 1/t_k)`,

    .. math::
        \sum_{\text{bulk}}\lambda_i^2 = \frac{\sigma^2}N\Big[(N-r)(N-r-1+\tfrac2\beta) - \sum_{k\le r}\frac N{t_k^2}\Big].

    Args:
        eigenvalues: all N of them, in any order.
        level: the probability that a matrix of nothing but noise shows a spike, half of it on either side.
        beta: 1 for real, 2 for complex, 4 for quaternion entries.

    Raises:
        InputError: for values that are not finite, or a level outside (0, 1).

    Examples:
        >>> from rmtjax.laws import semicircle
        >>> levels = semicircle.ppf((np.arange(400) + 0.5) / 400)
        >>> fit = bulk_fit_symmetric(np.append(levels, 5.0))
        >>> fit.count, round(fit.sigma, 2)
        (1, 1.0)
    """
    values = given_values("eigenvalues", eigenvalues)
    quantile = _edge_quantile(level, beta, edges=2)
    size = np.abs(values)
    order = np.argsort(-size, kind="stable")
    squares, n = size[order] ** 2, values.size

    def fitted(count):
        strong = (n - count) * (n - count - 1 + 2 / beta)

        def noise(v):
            return strong - n * np.sum(_share_lost(np.sqrt(squares[:count] / (v * n))))

        v = _noise_energy(float(np.sum(squares[count:])), noise, strong)
        return v, threshold(v, count)

    def threshold(v, count):
        left = n - count
        return math.sqrt(v) * (2 * math.sqrt(left) + quantile * left ** (-1 / 6))

    median = (np.median(size) / float(semicircle.ppf(0.75))) ** 2 / n
    robust = min(int(np.sum(size > threshold(median, 0))), n - 1)
    count = _settle(robust, lambda count: fitted(count)[1], size[order])
    v, limit = fitted(count)
    sigma = math.sqrt(v * n)
    error = sigma / (math.sqrt(beta) * (n - count))
    return BulkFit(sigma, error, math.nan, -2 * sigma, 2 * sigma, limit, count, order[:count])
