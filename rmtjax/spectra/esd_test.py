r"""Comparison of a spectrum with an ensemble of random matrices: its distance from the ensemble's law, and a test.

A symmetric matrix of order N has entries of variance :math:`\sigma^2/N` off the diagonal; an n×m matrix has entries of
variance :math:`\sigma^2/m`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Num

from rmtjax._checks import number, one_of, whole
from rmtjax._errors import InputError, shown
from rmtjax._precision import float64
from rmtjax._random import key_of, pinned
from rmtjax.ensembles.wigner import hermite
from rmtjax.ensembles.wishart import laguerre
from rmtjax.laws import marchenko_pastur, semicircle
from rmtjax.linalg import sturm
from rmtjax.spectra._values import checked_values, given_values, nonnegative

__all__ = ["EsdTest", "esd_distance", "esd_test"]


@jax.jit
def _steps(values):
    """Return the sorted values, and their empirical distribution function at and just below them."""
    x, n = jnp.sort(values, -1), values.shape[-1]
    flat = x.reshape(-1, n)
    sides = (jax.vmap(functools.partial(jnp.searchsorted, side=side))(flat, flat) for side in ("right", "left"))
    return x, *(rank.reshape(x.shape).astype(x.dtype) / n for rank in sides)


@float64(keep=("cdf",))
def esd_distance(
    values: Float[Array, "... N"], cdf: Callable[[Float[Array, "..."]], Float[Array, "..."]]
) -> Float[Array, "..."]:
    r"""Return Kolmogorov's distance :math:`\sup_x|F_N(x) - F(x)|` of the empirical spectral distribution from a law.

    Both one-sided limits at every eigenvalue are compared, so atoms of the law at repeated eigenvalues count as they
    should: the zeros of a rank-deficient covariance matrix, say, provided that they are exact.

    Args:
        values: eigenvalues or singular values in any order, shape (..., N).
        cdf: the law's distribution function, elementwise on arrays.

    Raises:
        InputError: for no values, or one that is not finite.
    """
    checked_values("values", values)
    x, at, below = _steps(values)
    # The float just before 0 is subnormal, and processors may flush it to 0.
    before = cdf(jnp.where(x == 0, -jnp.finfo(x.dtype).tiny, jnp.nextafter(x, -jnp.inf)))
    return jnp.max(jnp.maximum(jnp.abs(at - cdf(x)), jnp.abs(below - before)), -1)


class EsdTest(NamedTuple):
    """The result of a test of a spectrum against an ensemble.

    Attributes:
        distance: Kolmogorov's distance from the law, `esd_distance`.
        p_value: the share of spectra of the ensemble, this one included, whose statistic is at least as large; no less than
            1/(draws + 1).
        statistic: the largest difference of the distribution functions at the law's quantiles, the one tested. For a custom
            law and sampler it is the distance itself.
        null: the statistic of each spectrum drawn, shape (draws,).
        sigma: σ of the law, given or estimated; NaN for a custom law.
    """

    distance: float
    p_value: float
    statistic: float
    null: np.ndarray
    sigma: float


_QUANTILES = 1024
"""Largest number of quantiles at which distribution functions are compared."""


@functools.partial(jax.jit, static_argnames=("singular", "n", "m", "draws"))
def _null(key, u, quantiles, beta, fit, singular: bool, n: int, m: int, draws: int):
    """Return the statistic of drawn spectra, each by as many Sturm counts as there are quantiles."""
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
    """Return the expected sum of squares of a spectrum with σ = 1."""
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

    Eigenvalues are not independent. They repel one another and stay within :math:`O(\log N/N)` of their places, so the
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
        sampler: ``key -> values`` of the ensemble tested, for a custom law; the distance of its draws from `law` calibrates
            the test.
        draws: number of spectra to draw.
        key: a typed PRNG key; ``jax.random.key(0)`` if not given.

    Raises:
        InputError: for an unknown law, values that do not fit the shape or are not finite, σ, β or draws not positive.
    """
    values = given_values("values", values)
    if sigma is not None:
        number("sigma", sigma, 0, open_low=True)
    number("beta", beta, 0, open_low=True)
    whole("draws", draws)
    generator = contextlib.nullcontext() if key is not None else pinned()
    key = key_of(0) if key is None else key
    with generator, jax.enable_x64(True):
        if callable(law):
            return _own_test(values, law, sampler, int(draws), key)
        return _named_test(values, law, shape, sigma, float(beta), int(draws), key)


def _p_value(statistic: float, null: np.ndarray) -> float:
    return (1 + int(np.sum(null >= statistic))) / (1 + null.size)


def _own_test(values, law, sampler, draws, key) -> EsdTest:
    if sampler is None:
        raise InputError("sampler is not given: must be given for a custom law")
    distance = float(esd_distance(values, law))
    null = jax.lax.map(lambda k: esd_distance(sampler(k), law), jax.random.split(key, draws))
    null = np.asarray(null)
    return EsdTest(distance, _p_value(distance, null), distance, null, math.nan)


def _named_test(values, law, shape, sigma, beta, draws, key) -> EsdTest:
    one_of("law", law, ("semicircle", "marchenko-pastur", "singular"))
    singular = law != "semicircle"
    if not singular:
        if shape is not None:
            raise InputError(f"shape = {shown(shape)}: must be None for the semicircle")
        n = m = values.size
    else:
        if shape is None or len(shape) != 2 or any(not isinstance(s, (int, np.integer)) or s < 1 for s in shape):
            raise InputError(f"shape = {shown(shape)}: must be two whole numbers ≥ 1, the sides of the matrix")
        n, m = map(int, shape)
        allowed = {min(n, m)} | ({n} if law == "marchenko-pastur" else set())
        if values.size not in allowed:
            raise InputError(f"values has {values.size} entries: must have {' or '.join(map(str, sorted(allowed)))}")
        if law == "marchenko-pastur":
            values = np.sqrt(
                np.maximum(np.sort(values)[-min(n, m) :], 0.0)
            )  # a distance is unaffected by the square root
        else:
            nonnegative("values", values)
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
