"""Counts and spectral measures against dense matrices."""

import jax
import numpy as np
import pytest

from rmtjax.claims import SPECTRA
from rmtjax.ensembles import density
from rmtjax.ensembles.outlier import rank_one
from rmtjax.montecarlo import run


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


wigner_rows = jax.jit(rank_one.wigner_rows)
covariance_rows = jax.jit(rank_one.covariance_rows)
hermite = jax.jit(jax.vmap(density.hermite_cdf, in_axes=(0, None, None, None)))
laguerre = jax.jit(jax.vmap(density.laguerre_cdf, in_axes=(0, None, None, None)))
measure = jax.jit(jax.vmap(density.spectral_measure, in_axes=(0, None, None, None, None, None, None)))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.first(1)
@pytest.mark.parametrize(("N", "beta"), [(1, 1.0), (2, 2.0), (30, 1.0), (33, 4.0)])
def test_hermite_counts_are_those_of_its_rows(N, beta):
    data = jax.random.key_data(keys(100)).T
    groups = [wigner_rows(data, g, float(N), beta) for g in range(-(-N // 4))]
    diagonal, off2 = (np.concatenate([np.asarray(g[i]) for g in groups])[:N] for i in (0, 1))
    M = np.zeros((100, N, N))
    i = np.arange(N)
    M[:, i, i] = diagonal.T
    M[:, i[:-1], i[1:]] = M[:, i[1:], i[:-1]] = np.sqrt(off2[:-1].T)
    points = np.linspace(-2.5, 2.5, 11)
    exact = (np.linalg.eigvalsh(M)[:, :, None] <= points).mean(1)
    found = hermite(keys(100), float(N), points, beta)
    np.testing.assert_allclose(found, exact, atol=1e-12)


@pytest.mark.first(1)
@pytest.mark.parametrize(("p", "n"), [(1, 1), (1, 3), (3, 1), (17, 30), (30, 17), (16, 16)])
def test_laguerre_counts_are_those_of_its_rows(p, n):
    data = jax.random.key_data(keys(100)).T
    size = min(p, n)
    groups = [covariance_rows(data, g, float(p), float(n), 1.0) for g in range(-(-size // 4))]
    own, below = (np.concatenate([np.asarray(g[i]) for g in groups])[:size] for i in (0, 1))
    Z = np.zeros((100, max(p, size + 1), size))
    i = np.arange(size)
    Z[:, i, i], Z[:, i + 1, i] = np.sqrt(own.T), np.sqrt(below.T)
    assert size < p or not Z[:, p:].any()
    values = np.linalg.eigvalsh(Z[:, :p] @ Z[:, :p].transpose(0, 2, 1))
    values[:, : p - size] = 0.0
    points = np.array([-1.0, 0.0, 0.05, 0.4, 1.0, 2.0, 4.0, 12.0])
    found = laguerre(keys(100), float(p), float(n), points)
    np.testing.assert_allclose(found, (values[:, :, None] <= points).mean(1), atol=1e-12)


def test_points_that_hit_an_eigenvalue_do_no_harm():
    """A pivot that is exactly 0 is taken for the smallest number: the count stays whole and increases with the point."""
    zero = laguerre(keys(100), 3.0, 1.0, np.zeros(8))
    np.testing.assert_allclose(zero, 2 / 3)


@pytest.mark.parametrize(("theta", "x", "y"), [(1.5, 0.7, 0.3), (-0.5, 2.5, 0.1), (0.0, -1.0, 1.0)])
def test_spectral_measure_is_the_resolvent_of_its_rows(theta, x, y):
    N = 40
    data = jax.random.key_data(keys(100)).T
    groups = [wigner_rows(data, g, float(N), 1.0) for g in range(10)]
    diagonal, off2 = (np.concatenate([np.asarray(g[i]) for g in groups]) for i in (0, 1))
    M = np.zeros((100, N, N))
    i = np.arange(N)
    M[:, i, i] = diagonal.T
    M[:, i[:-1], i[1:]] = M[:, i[1:], i[:-1]] = np.sqrt(off2[:-1].T)
    M[:, 0, 0] += theta
    exact = np.linalg.inv((x + 1j * y) * np.eye(N) - M)[:, 0, 0]
    np.testing.assert_allclose(measure(keys(100), float(N), theta, x, y, 1.0, 1e-12), exact, atol=1e-11)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.05), (1.9, 0.02), (2.5, 0.01)])
def test_rows_left_out_do_not_matter(x, y):
    """Against the depth for 1e-60, at N = 10⁸."""
    few, many = (measure(keys(100), 1e8, 1.5, x, y, 1.0, t) for t in (1e-12, 1e-60))
    np.testing.assert_allclose(few, many, atol=1e-11)


@pytest.mark.thorough
def test_a_share_of_none_is_zero_however_it_is_compiled():
    """1 − count/p is −5.6e-17 for count = p = 10 once a compiler multiplies by the reciprocal and adds in one step."""
    marchenko_pastur = next(claim for claim in SPECTRA if claim.name == "marchenko-pastur")
    result = run(marchenko_pastur, marchenko_pastur.comparison_grid, trials=64)
    assert result["mean"].sel(x=0, c=[0.5, 1.0]).values.tolist() == [[[0.0, 0.0]]]
