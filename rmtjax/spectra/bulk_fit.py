r"""What given spectra tell: their ranks, how far they are from a law, and the bulk and spikes that they are made of.

Conventions are those of the laws: a symmetric matrix of order N has entries of variance :math:`\sigma^2/N` off the diagonal
and the bulk :math:`[-2\sigma, 2\sigma]`; an n×m matrix has entries of variance :math:`\sigma^2/m`, :math:`c = n/m`, and
singular values in :math:`[\sigma|1-\sqrt c|, \sigma(1+\sqrt c)]`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Num

from rmtjax._errors import InputError, shown, unknown
from rmtjax._precision import float64
from rmtjax._random import key_of, pinned
from rmtjax.linalg import sturm

__all__ = [
    "BulkFit",
    "EsdTest",
    "bulk_fit",
    "bulk_fit_symmetric",
    "effective_rank",
    "esd_distance",
    "esd_test",
    "stable_rank",
]


# -- ranks -------------------------------------------------------------------------------------------------------------


def _known(*arrays: Any) -> bool:
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def _checked_values(name: str, values: Any, nonnegative: bool = False) -> None:
    if values.ndim == 0 or values.shape[-1] == 0:
        raise InputError(f"{name} has shape {values.shape}: must be (..., k) with k at least 1")
    if _known(values) and not np.all(np.isfinite(values)):
        bad = np.asarray(values)[~np.isfinite(values)]  # on the host, where `jax_debug_nans` does not look
        raise InputError(f"{name} has an entry {shown(float(bad[0]))}: all must be finite")
    if nonnegative and _known(values) and np.any(values < 0):
        raise InputError(f"{name} has an entry {shown(float(np.min(values)))}: none may be negative")


@float64
def effective_rank(singular_values: Float[Array, "... k"]) -> Float[Array, "..."]:
    r"""Effective rank :math:`\exp(-\sum_ip_i\log p_i)`, :math:`p_i = \sigma_i/\sum_j\sigma_j`; 0 of a matrix of zeros.

    Between 1 and the rank, which it is if all singular values that are not 0 are equal. Source: Roy & Vetterli, *The
    effective rank*, EUSIPCO 2007.

    Args:
        singular_values: shape (..., k), in any order.

    Raises:
        InputError: for no singular value, or one that is negative or not finite.
    """
    _checked_values("singular_values", singular_values, nonnegative=True)
    top = jnp.max(singular_values, -1, keepdims=True)
    some = top > 0
    scaled = singular_values / jnp.where(some, top, 1.0)
    p = scaled / jnp.where(some, jnp.sum(scaled, -1, keepdims=True), 1.0)
    positive = p > 0
    entropy = -jnp.sum(jnp.where(positive, p * jnp.log(jnp.where(positive, p, 1.0)), 0.0), -1)
    return jnp.where(some[..., 0], jnp.exp(entropy), 0.0)


@float64
def stable_rank(singular_values: Float[Array, "... k"]) -> Float[Array, "..."]:
    r"""Stable rank :math:`\|W\|_F^2/\|W\|_2^2 = \sum_i\sigma_i^2/\max_i\sigma_i^2`; 0 of a matrix of zeros.

    Args:
        singular_values: shape (..., k), in any order.

    Raises:
        InputError: for no singular value, or one that is negative or not finite.
    """
    _checked_values("singular_values", singular_values, nonnegative=True)
    top = jnp.max(singular_values, -1, keepdims=True)
    return jnp.sum((singular_values / jnp.where(top > 0, top, 1.0)) ** 2, -1)


def _given_values(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "fiu" or values.ndim != 1 or values.size == 0:
        raise InputError(f"{name} has shape {values.shape} and dtype {values.dtype}: must be (k,), k ≥ 1, and real")
    values = values.astype(float)
    if not np.all(np.isfinite(values)):
        bad = np.asarray(values)[~np.isfinite(values)]  # on the host, where `jax_debug_nans` does not look
        raise InputError(f"{name} has an entry {shown(float(bad[0]))}: all must be finite")
    return values


# -- a spectrum against a law ------------------------------------------------------------------------------------------


@jax.jit
def _steps(values):
    """Values in order, and their empirical distribution function at and just below them."""
    x, n = jnp.sort(values, -1), values.shape[-1]
    flat = x.reshape(-1, n)
    sides = (jax.vmap(functools.partial(jnp.searchsorted, side=side))(flat, flat) for side in ("right", "left"))
    return x, *(rank.reshape(x.shape).astype(x.dtype) / n for rank in sides)


@float64(keep=("cdf",))
def esd_distance(
    values: Float[Array, "... N"], cdf: Callable[[Float[Array, "..."]], Float[Array, "..."]]
) -> Float[Array, "..."]:
    r"""Kolmogorov's distance :math:`\sup_x|F_N(x) - F(x)|` of the empirical spectral distribution from a law.

    Both one-sided limits at every eigenvalue are compared, so atoms of the law at repeated eigenvalues count as they
    should: the zeros of a rank-deficient covariance matrix, say, provided that they are exact.

    Args:
        values: eigenvalues or singular values in any order, shape (..., N).
        cdf: the law's distribution function, elementwise on arrays.

    Raises:
        InputError: for no value or one that is not finite.
    """
    _checked_values("values", values)
    x, at, below = _steps(values)
    # The float before 0 is one that processors may take for 0.
    before = cdf(jnp.where(x == 0, -jnp.finfo(x.dtype).tiny, jnp.nextafter(x, -jnp.inf)))
    return jnp.max(jnp.maximum(jnp.abs(at - cdf(x)), jnp.abs(below - before)), -1)


class EsdTest(NamedTuple):
    """Whether a spectrum is that of an ensemble.

    Attributes:
        distance: Kolmogorov's distance from the law, `esd_distance`.
        p_value: the share of spectra of the ensemble, this one included, whose statistic is at least as large; no less than
            1/(draws + 1).
        statistic: the largest difference of the distribution functions at the law's quantiles, the one tested. For a law
            and sampler of one's own it is the distance itself.
        null: the statistic of each spectrum drawn, shape (draws,).
        sigma: σ of the law, given or estimated; NaN for a law of one's own.
    """

    distance: float
    p_value: float
    statistic: float
    null: np.ndarray
    sigma: float


_QUANTILES = 1024
"""Most quantiles at which distribution functions are compared."""


@functools.partial(jax.jit, static_argnames=("singular", "n", "m", "draws"))
def _null(key, u, quantiles, beta, fit, singular: bool, n: int, m: int, draws: int):
    """The statistic of spectra drawn, each by as many Sturm counts as there are quantiles."""
    from rmtjax.ensembles.wigner import hermite
    from rmtjax.ensembles.wishart import laguerre

    k = min(n, m)

    def statistic(key):
        if singular:
            (a, b), count = laguerre(key, k, float(max(n, m)), beta), sturm.singular_count_below
            a, b = (x * math.sqrt(max(n, m) / m) for x in (a, b))  # they come with variance 1/max(n, m)
            second = jnp.sum(a**2) + jnp.sum(b**2)
        else:
            (a, b), count = hermite(key, n, beta), sturm.count_below
            second = jnp.sum(a**2) + 2 * jnp.sum(b**2)
        spread = jnp.where(fit, jnp.sqrt(second / _second_moment(singular, n, m, beta)), 1.0)
        return jnp.max(jnp.abs(count(a, b, quantiles * spread) / k - u))

    together = max(1, 2**21 // (n + u.size))
    return jax.lax.map(statistic, jax.random.split(key, draws), batch_size=min(draws, together))


def _second_moment(singular: bool, n: int, m: int, beta):
    """The expected sum of squares of a spectrum with σ = 1."""
    return n if singular else n - 1 + 2 / beta


def esd_test(
    values: Num[ArrayLike, "..."],
    law: str | Callable[[Array], Array] = "semicircle",
    shape: tuple[int, int] | None = None,
    *,
    sigma: float | int | None = None,
    beta: float | int = 1,
    sampler: Callable[[Key[Array, ""]], Float[Array, "N"]] | None = None,
    draws: int = 999,
    key: Key[Array, ""] | None = None,
) -> EsdTest:
    r"""Test whether a spectrum is that of an ensemble of random matrices, by its distance from the ensemble's law.

    Eigenvalues are not independent. They repel one another and stick to their places within :math:`O(\log N/N)`, so the
    distance from the law is of that order and not :math:`1/\sqrt N`; the p-value of Kolmogorov and Smirnov would call nearly
    every spectrum too good and hardly any wrong. Here the p-value is calibrated by drawing spectra of the Gaussian β-ensemble
    at the same size in its exact tridiagonal (bidiagonal) form, whose distribution function Sturm counts give at the law's
    quantiles without any eigenvalue. For Gaussian matrices the test is exact at every size. For other entries it holds as
    far as universality does: the fluctuations of smooth statistics depend on the entries' fourth moment.

    Args:
        values: the spectrum, shape (N,), in any order.
        law: ``"semicircle"`` for the N eigenvalues of a symmetric matrix; ``"marchenko-pastur"`` for the eigenvalues of
            :math:`XX^\top/n`, X p×n of variance σ², all p or the min(p, n) largest; ``"singular"`` for the min(n, m) singular
            values of an n×m matrix of variance σ²/m; or a distribution function, which needs `sampler`.
        shape: (p, n) or (n, m), for the latter two.
        sigma: σ; estimated from the second moment if not given, of each spectrum drawn as well.
        beta: 1 for real, 2 for complex, 4 for quaternion matrices, or any other β > 0.
        sampler: ``key -> values`` of the ensemble tested, for a law of one's own; the distance of what it draws from `law`
            calibrates the test.
        draws: how many spectra are drawn.
        key: a typed PRNG key; ``jax.random.key(0)`` if not given.

    Raises:
        InputError: for an unknown law, values that do not fit the shape or are not finite, σ, β or draws not positive.
    """
    values = _given_values("values", values)
    for name, x in (("sigma", sigma), ("beta", beta), ("draws", draws)):
        if x is not None and not (np.isreal(x) and np.isfinite(x) and x > 0 and (name != "draws" or x == int(x))):
            raise InputError(f"{name} = {shown(x)}: must be a {'whole number' if name == 'draws' else 'number'} > 0")
    own = contextlib.nullcontext() if key is not None else pinned()
    key = key_of(0) if key is None else key
    with own, jax.enable_x64(True):
        if callable(law):
            return _own_test(values, law, sampler, int(draws), key)
        return _named_test(values, law, shape, sigma, float(beta), int(draws), key)


def _p_value(statistic: float, null: np.ndarray) -> float:
    return (1 + int(np.sum(null >= statistic))) / (1 + null.size)


def _own_test(values, law, sampler, draws, key) -> EsdTest:
    if sampler is None:
        raise InputError("sampler is not given: a law of one's own needs one to be tested against")
    distance = float(esd_distance(values, law))
    null = jax.lax.map(lambda k: esd_distance(sampler(k), law), jax.random.split(key, draws))
    null = np.asarray(null)
    return EsdTest(distance, _p_value(distance, null), distance, null, math.nan)


def _named_test(values, law, shape, sigma, beta, draws, key) -> EsdTest:
    from rmtjax.laws import marchenko_pastur, semicircle

    if law not in ("semicircle", "marchenko-pastur", "singular"):
        raise unknown("law", law, ("semicircle", "marchenko-pastur", "singular"))
    singular = law != "semicircle"
    if not singular:
        if shape is not None:
            raise InputError(f"shape = {shown(shape)}: the semicircle has none, the spectrum says how many")
        n = m = values.size
    else:
        if shape is None or len(shape) != 2 or any(not isinstance(s, (int, np.integer)) or s < 1 for s in shape):
            raise InputError(f"shape = {shown(shape)}: must be two whole numbers ≥ 1, the sides of the matrix")
        n, m = map(int, shape)
        allowed = {min(n, m)} | ({n} if law == "marchenko-pastur" else set())
        if values.size not in allowed:
            raise InputError(f"values has {values.size} entries: must have {' or '.join(map(str, sorted(allowed)))}")
        if law == "marchenko-pastur":
            values = np.sqrt(np.maximum(np.sort(values)[-min(n, m) :], 0.0))  # a distance does not see the square root
        elif np.any(values < 0):
            raise InputError(f"values has an entry {shown(float(np.min(values)))}: none may be negative")
    k = min(n, m)
    if sigma is None and not np.any(values):
        raise InputError("values are all 0: sigma cannot be estimated")
    fitted = math.sqrt(np.sum(values**2) / _second_moment(singular, n, m, beta)) if sigma is None else float(sigma)
    size = min(_QUANTILES, 16 * k)
    u = (np.arange(size) + 0.5) / size
    if singular:
        quantiles = marchenko_pastur.singular_ppf(u, n / m)
        distance = esd_distance(values / fitted, lambda x: marchenko_pastur.singular_cdf(x, n / m))
    else:
        quantiles, distance = semicircle.ppf(u), esd_distance(values / fitted, semicircle.cdf)
    counts = np.searchsorted(np.sort(values / fitted), np.asarray(quantiles), side="left")
    statistic = float(np.max(np.abs(counts / k - u)))
    null = np.asarray(_null(key, u, quantiles, beta, sigma is None, singular, n, m, draws))
    return EsdTest(float(distance), _p_value(statistic, null), statistic, null, fitted)


# -- bulk and spikes ---------------------------------------------------------------------------------------------------


class BulkFit(NamedTuple):
    r"""The random part of a spectrum and what sticks out of it.

    Attributes:
        sigma: σ of the bulk, the units of the laws.
        sigma_error: its standard error if the entries are Gaussian.
        c: aspect ratio n/m of the bulk; NaN for a symmetric matrix.
        lower, upper: the bulk's edges, :math:`\sigma|1-\sqrt c|` and :math:`\sigma(1+\sqrt c)`, or :math:`\mp2\sigma`.
        threshold: what a value must exceed (in absolute value) to count as a spike: the edge of the noise that the spikes
            leave, (n − r)×(m − r), and a margin for its fluctuations. With many spikes it is below `upper`.
        count: how many spikes.
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
    """What one of the edges exceeds with probability `level`, Tracy–Widom variables in the units of the β-ensembles' edge."""
    if not (isinstance(level, (float, int, np.floating)) and 0 < level < 1):
        raise InputError(f"level = {shown(level)}: must be between 0 and 1")
    quantile = _tracy_widom_isf(float(level) / edges, beta)
    return quantile / 2 ** (1 / 6) if beta == 4 else quantile


@functools.lru_cache(100)  # the layers of a model ask for the same ones
def _tracy_widom_isf(level: float, beta: int) -> float:
    from rmtjax.laws.edge import tracy_widom

    return float(tracy_widom.isf(level, beta))


@functools.lru_cache(100)
def _median_singular_value(c: float) -> float:
    from rmtjax.laws import marchenko_pastur

    return float(marchenko_pastur.singular_ppf(0.5, c))


def _settle(count: int, threshold: Callable[[int], float], sizes: np.ndarray) -> int:
    """How many of the descending `sizes` are spikes: each larger than the threshold of a bulk that it is itself part of.

    From above, where a robust start and thresholds that leave all spikes out of the bulk lead: together spikes hide one
    another, one at a time they cannot.
    """
    seen: list[int] = []
    while count not in seen:
        seen.append(count)
        count = min(int(np.sum(sizes > threshold(count))), sizes.size - 1)
    count = max(seen[seen.index(count) :])
    while count and sizes[count - 1] <= threshold(count - 1):
        count -= 1
    return count


def _share_lost(y: np.ndarray) -> np.ndarray:
    """1/t² of y = t + 1/t, t ≥ 1: how a spike's outlier depends on the noise."""
    y = np.maximum(y, 2.0)
    return (2 / (y + np.sqrt(y * y - 4))) ** 2


def _noise_energy(bulk: Any, noise: Callable[[Any], Any], strong: Any) -> Any:
    """The v of ``v · noise(v) = bulk``, `strong` being what `noise` would be without any weak spike; by Steffensen's method."""

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
    """An n×m noise matrix and what its largest singular values do; v is the variance of an entry."""

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

        def noise(v):  # a spike ρ takes n + m + nm/ρ² with it, s² = ρ² + n + m + nm/ρ² in units of v
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
    median's (Gavish & Donoho, *IEEE Trans. Inf. Theory* 60, 2014), which a few spikes hardly move. Then, in turn until nothing
    changes: values above the Tracy–Widom quantile of the noise are spikes, and σ is set by the energy of the others,

    .. math::
        \sum_{\text{bulk}}s_i^2 = \frac{\sigma^2}m\Big[(n-r)(m-r) - \sum_{k\le r}\frac{nm}{\rho_k^2}\Big],

    where :math:`\rho_k`, the strength of the k-th spike in units of an entry, follows from its outlier
    :math:`s_k^2m/\sigma^2 = \rho_k^2 + n + m + nm/\rho_k^2`: what a spike takes with it besides its own energy. For Gaussian
    entries that is as precise as σ can be known, :math:`\sigma/\sqrt{2\beta nm}`.

    On a matrix that is not noise plus low rank, a trained weight matrix say, σ is that of the noise matrix with the energy of
    all values below its own edge, and the spikes are the values that no such noise explains. Whether the rest looks like noise
    is another question: ask `esd_test`.

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
    """
    values = _given_values("singular_values", singular_values)
    if np.any(values < 0):
        raise InputError(f"singular_values has an entry {shown(float(np.min(values)))}: none may be negative")
    if (n is None) != (m is None):
        raise InputError(f"n = {shown(n)}, m = {shown(m)}: give both sides of the matrix or neither")
    for name, size in (("n", n), ("m", m)):
        if size is not None and (not isinstance(size, (int, np.integer)) or size < 1):
            raise InputError(f"{name} = {shown(size)}: must be a whole number ≥ 1")
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
    """The m of a k×m noise matrix whose squared singular values vary as much: Var/mean² → k/m."""
    k = squares.size
    ratio = float(np.var(squares) / np.mean(squares) ** 2) if np.any(squares) else 1.0
    return float(max((k + 2 / beta - 1) / max(ratio, 1e-12), k) + count)


def _quartile_ratio(values: np.ndarray) -> float:
    """The c ≤ 1 whose law has the given ratio of quartiles: blind to what the largest values do."""
    from rmtjax.laws import marchenko_pastur

    grid = np.linspace(1e-4, 1, 400)
    low, high = (np.asarray(marchenko_pastur.singular_ppf(q, grid)) for q in (0.25, 0.75))
    given = np.quantile(values, [0.25, 0.75])
    return float(grid[np.argmin(np.abs(low / high - given[0] / given[1]))]) if given[1] > 0 else 1.0


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
    """
    values = _given_values("eigenvalues", eigenvalues)
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

    from rmtjax.laws import semicircle

    median = (np.median(size) / float(semicircle.ppf(0.75))) ** 2 / n
    robust = min(int(np.sum(size > threshold(median, 0))), n - 1)
    count = _settle(robust, lambda count: fitted(count)[1], size[order])
    v, limit = fitted(count)
    sigma = math.sqrt(v * n)
    error = sigma / (math.sqrt(beta) * (n - count))
    return BulkFit(sigma, error, math.nan, -2 * sigma, 2 * sigma, limit, count, order[:count])
