"""Every law of a spectrum: the density integrates to the distribution function, quantiles invert it, the sampler follows it."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax.ensembles import density, outlier
from rmtjax.laws import marchenko_pastur as mp
from rmtjax.laws import semicircle
from rmtjax.laws.edge import tracy_widom

N, EDGE_N, TRIALS, EDGE_TRIALS = 400, 10_000, 64, 1_000
Z = 4.5
"""Standard errors that are allowed: 7e-6 on either side, so 1e-3 for the 70 shares of this file. The seed is fixed."""


class Case(NamedTuple):
    """A law with its parameters filled in.

    Attributes:
        pdf, cdf, ppf: functions of a point alone.
        atom: mass at 0.
        allowed: error of ``cdf(ppf(q))``; points are known to an ulp, which a narrow bulk makes worth more than one of q.
        draw: ``(key, x) -> shares`` of one spectrum, or of one edge, at or below points.
        trials: how many are drawn.
        bias: how far the expected share of a finite matrix may be from the law.
    """

    pdf: Callable
    cdf: Callable
    ppf: Callable
    atom: float
    allowed: float
    draw: Callable
    trials: int
    bias: float


def bulk_of_wigner(sigma):
    one = lambda f: functools.partial(f, sigma=sigma)  # noqa: E731
    return Case(
        one(semicircle.pdf), one(semicircle.cdf), one(semicircle.ppf), 0.0, 5e-16,
        lambda key, x: density.hermite_cdf(key, float(N), x / sigma), TRIALS, 0.5 / N,
    )  # fmt: skip


def shares_of_covariance(key, x, c, sigma):
    n = round(N / max(c, 1.0))
    return density.laguerre_cdf(key, float(round(c * n)), float(n), x / sigma**2)


def bulk_of_covariance(c, sigma):
    one = lambda f: lambda x: f(x, c, sigma=sigma)  # noqa: E731
    return Case(
        one(mp.pdf), one(mp.cdf), one(mp.ppf), max(0.0, 1 - 1 / c), 2e-15 + 3e-16 / math.sqrt(c),
        lambda key, x: shares_of_covariance(key, x, c, sigma), TRIALS, 0.5 / (N * min(c, 1.0)),
    )  # fmt: skip


def bulk_of_singular_values(c, sigma):
    one = lambda f: lambda x: f(x, c, sigma=sigma)  # noqa: E731
    atom = max(0.0, 1 - 1 / c)
    return Case(
        one(mp.singular_pdf), one(mp.singular_cdf), one(mp.singular_ppf), 0.0, 2e-15 + 3e-16 * max(c, 1 / c) ** 0.5,
        lambda key, x: (shares_of_covariance(key, x**2, c, sigma) - atom) / (1 - atom), TRIALS, 0.5 / (N * min(c, 1 / c)),
    )  # fmt: skip


def edge(beta):
    one = lambda f: lambda x: f(x, beta)  # noqa: E731
    stretch = 2 ** (1 / 6) if beta == 4 else 1.0

    def draw(key, x):
        return (outlier.wigner_edge(key, EDGE_N, beta) - 2) * EDGE_N ** (2 / 3) * stretch <= x

    return Case(
        one(tracy_widom.pdf), one(tracy_widom.cdf), one(tracy_widom.ppf), 0.0, 1e-14, draw, EDGE_TRIALS, 0.3 * EDGE_N ** (-1 / 3)
    )  # fmt: skip


CASES = {
    "semicircle": bulk_of_wigner(1.0),
    "semicircle, σ = 0.3": bulk_of_wigner(0.3),
    **{f"Marchenko–Pastur, c = {c:g}": bulk_of_covariance(c, 1.3) for c in (0.1, 0.5, 1.0, 4.0)},
    **{f"singular values, c = {c:g}": bulk_of_singular_values(c, 1.3) for c in (0.1, 0.5, 1.0, 4.0)},
    **{f"Tracy–Widom, β = {beta}": edge(beta) for beta in (1, 2, 4)},
}


@pytest.fixture(params=CASES)
def case(request):
    with jax.enable_x64(True):
        yield CASES[request.param]


@pytest.mark.first(8)
def test_the_density_integrates_to_the_distribution_function(case):
    """Between quantiles from 1 to 99 % of the continuous part, by 80 points of Gauss each."""
    q = case.atom + (1 - case.atom) * np.linspace(0.01, 0.99, 15)
    x = np.asarray(case.ppf(q))
    nodes, weights = np.polynomial.legendre.leggauss(80)
    half = np.diff(x)[:, None] / 2
    mass = np.sum(half * weights * np.asarray(case.pdf(x[:-1, None] + half * (1 + nodes))), 1)
    np.testing.assert_allclose(mass, np.diff(q), rtol=1e-11)
    np.testing.assert_allclose(np.diff(np.asarray(case.cdf(x))), np.diff(q), rtol=1e-11)


@pytest.mark.first(8)
def test_quantiles_invert_the_distribution_function(case):
    q = np.concatenate([np.logspace(-15, -3, 40), np.linspace(0, 1, 201), 1 - np.logspace(-16, -3, 40)])
    got = np.asarray(case.cdf(case.ppf(q)))
    np.testing.assert_allclose(got, np.maximum(q, case.atom), rtol=0, atol=case.allowed)
    assert np.isnan(case.ppf(np.array([-0.1, 1.1, np.nan]))).all()


@pytest.mark.first(1)
def test_the_sampler_follows_the_law(case):
    """Shares at or below five quantiles, to 4.5 standard errors and the bias of a finite matrix."""
    q = case.atom + (1 - case.atom) * np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    x = jnp.asarray(case.ppf(q))
    keys = jax.random.split(jax.random.key(7), case.trials)
    shares = np.asarray(jax.jit(jax.vmap(lambda key: case.draw(key, x)))(keys), float)
    error = shares.std(0, ddof=1) / np.sqrt(case.trials)
    np.testing.assert_array_less(np.abs(shares.mean(0) - q), Z * error + case.bias)
