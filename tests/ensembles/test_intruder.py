"""Draws of intruders: what the compression says is what the matrices say."""

import jax
import numpy as np
import pytest
from scipy import stats

from rmtjax._errors import InputError
from rmtjax.ensembles import intruder

# False alarms: KS at p < 1e-5, 7 checks: 7e-5 for the file. Seeds are fixed.
P = 1e-5


@pytest.fixture(autouse=True)
def double():
    """Draws are made in float64."""
    with jax.enable_x64(True):
        yield


def drawn(function, *sizes, count, seed, theta, eps):
    """`count` draws as NumPy arrays."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: function(key, *sizes, theta, eps)))(keys))


# -- given the spectrum: the same numbers ------------------------------------------------------------------------------


def test_wigner_secular_equation():
    """Outlier and cosine of given W and u, below, at and above the threshold, against decompositions."""
    rng = np.random.default_rng(1)
    theta = np.array([0.01, 0.7, 1.0, 1.4, 5.0])
    for _ in range(5):
        g = rng.normal(size=(40, 40))
        base = (g + g.T) / np.sqrt(80)
        values, vectors = np.linalg.eigh(base)
        u = rng.normal(size=40)
        outlier, cosine = intruder._wigner_secular(values[::-1], u @ vectors[:, ::-1], theta)
        for k, strength in enumerate(theta):
            tuned, new = np.linalg.eigh(base + strength * np.outer(u, u) / (u @ u))
            np.testing.assert_allclose(outlier[k], tuned[-1], rtol=1e-13)
            np.testing.assert_allclose(cosine[k], np.max(np.abs(vectors.T @ new[:, -1])), rtol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (12, 30), (30, 12)])
def test_rectangular_secular_equation(n, m):
    """Likewise, on both sides, where one has a null space; some outliers lie below the largest singular value."""
    rng = np.random.default_rng(2)
    theta = np.array([0.01, 0.7, 1.0, 1.4, 5.0])
    lower = 0
    for _ in range(10):
        base = rng.normal(size=(n, m)) / np.sqrt(m)
        U, s, Vt = np.linalg.svd(base)
        a, b = rng.normal(size=n), rng.normal(size=m)
        found = intruder._rectangular_secular(s, a @ U, Vt @ b, theta)
        spike = np.outer(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        for k, strength in enumerate(theta):
            u, tuned, vt = np.linalg.svd(base + strength * spike)
            lower += tuned[0] < s[0]
            cosines = np.max(np.abs(U[:, : s.size].T @ u[:, 0])), np.max(np.abs(Vt[: s.size] @ vt[0]))
            np.testing.assert_allclose(found[0][k], tuned[0], rtol=1e-12)
            np.testing.assert_allclose([found[1][k], found[2][k]], cosines, rtol=1e-9)
    assert lower > 0


# -- the draws ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_wigner_draws():
    """3000 draws have the law of dense matrices, on both sides of the threshold at once."""
    theta, eps = np.array([0.8, 1.4]), np.array([0.5, 0.6])
    fast = drawn(intruder.wigner_intruder, 20, count=3000, seed=1, theta=theta, eps=eps)
    dense = drawn(intruder.dense_wigner_intruder, 20, count=3000, seed=2, theta=theta, eps=eps)
    for k in range(2):
        for name in ("outlier", "cosine"):
            assert stats.ks_2samp(getattr(fast, name)[:, k], getattr(dense, name)[:, k]).pvalue > P
    for one in (fast, dense):
        np.testing.assert_array_equal(one.intruder, one.cosine < eps)
        assert np.all(one.outlier[:, 1] > one.outlier[:, 0])  # of the same matrix


@pytest.mark.thorough
def test_rectangular_draws():
    """The same beside its dense version at the threshold, where nothing is independent."""
    theta, eps = 1.1 * (8 / 20) ** 0.25, np.array([0.5, 0.8])
    fast = drawn(intruder.rectangular_intruder, 8, 20, count=3000, seed=3, theta=theta, eps=eps)
    dense = drawn(intruder.dense_rectangular_intruder, 8, 20, count=3000, seed=4, theta=theta, eps=eps)
    for name in ("outlier", "cosine_left", "cosine_right"):
        assert stats.ks_2samp(getattr(fast, name), getattr(dense, name)).pvalue > P
    for one in (fast, dense):
        np.testing.assert_array_equal(one.intruder_left, one.cosine_left[:, None] < eps)
        np.testing.assert_array_equal(one.intruder_right, one.cosine_right[:, None] < eps)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda key: intruder.wigner_intruder(key, 1, 1.0, 0.5), "N = 1"),
        (lambda key: intruder.wigner_intruder(key, 10, 0.0, 0.5), "theta = 0"),
        (lambda key: intruder.wigner_intruder(key, 10, np.array([1.0, np.inf]), 0.5), "theta = inf"),
        (lambda key: intruder.wigner_intruder(key, 10, 1.0, 1.0), r"eps = 1: must be a finite number in \(0, 1\)"),
        (lambda key: intruder.dense_wigner_intruder(key, 10, 1.0, -1.0), "eps = -1"),
        (lambda key: intruder.rectangular_intruder(key, 10, 1, 1.0, 0.5), "m = 1"),
        (lambda key: intruder.dense_rectangular_intruder(key, 1, 10, 1.0, 0.5), "n = 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(call, part):
    with pytest.raises(InputError, match=part) as caught:
        call(jax.random.key(0))
    assert "\n" not in str(caught.value)
