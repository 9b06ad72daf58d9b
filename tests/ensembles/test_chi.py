"""χ draws: SciPy's law at every kind of degrees of freedom, and the same for a trial whatever its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax.ensembles.chi import chi

# False alarms: KS at p < 1e-5 and moments at 4.5 standard errors (7e-6), thirty checks in all: 3e-4. Seeds are fixed.
P, Z = 1e-5, 4.5
DOF = np.array([0.0, -3.0, 0.02, 0.3, 1.0, 1.7, 2.0, 3.0, 10.0, 1e3, 1e6, 1e9])
TRIALS = 100_000
one = jax.jit(chi)


@pytest.fixture(autouse=True)
def double():
    """χ works in float64."""
    with jax.enable_x64(True):
        yield


many = jax.jit(jax.vmap(lambda k, s: chi(k, jnp.asarray(DOF, jnp.float64), s), in_axes=(0, None)))


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """(trial, degrees of freedom)."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), TRIALS)
        return np.asarray(many(keys, 2))


@pytest.mark.first(1)
@pytest.mark.parametrize("k", DOF[2:])
def test_law(draws, k):
    x = draws[:, list(DOF).index(k)]
    assert np.all(x >= 0) and np.all(np.isfinite(x))
    if k < 1e8:  # SciPy's distribution function loses its digits beyond
        assert stats.kstest(x, stats.chi(k).cdf).pvalue > P
    # χ² has mean k, variance 2k and fourth central moment 12k² + 48k.
    y = x**2 - k
    assert abs(np.mean(y)) < Z * np.sqrt(2 * k / TRIALS)
    assert abs(np.mean(y**2) - 2 * k) < Z * np.sqrt((8 * k**2 + 48 * k) / TRIALS)


def test_large_numbers_of_degrees_are_normal(draws):
    """χ_k − √(k − 1/2) tends to N(0, 1/2); the skewness of order k^{-1/2} is far below what 1e5 draws can see."""
    k = 1e9
    assert stats.kstest((draws[:, list(DOF).index(k)] - np.sqrt(k - 0.5)) * np.sqrt(2), "norm").pvalue > P


def test_no_degrees_of_freedom_no_length(draws):
    np.testing.assert_array_equal(draws[:, :2], 0.0)


def test_draws_are_uncorrelated(draws):
    """45 pairs at 5.3 standard errors each; lag one between trials too."""
    x = draws[:, 2:]
    ranks = stats.rankdata(np.concatenate([x, np.roll(x, 1, axis=0)], 1), axis=0)
    correlation = np.corrcoef(ranks, rowvar=False)
    assert np.max(np.abs(correlation - np.eye(20))) < 5.3 / np.sqrt(TRIALS)


def test_streams_are_independent(draws):
    keys = jax.random.split(jax.random.key(1), TRIALS)
    other = np.asarray(many(keys, 3))
    for j in range(2, DOF.size):
        assert abs(stats.spearmanr(draws[:, j], other[:, j]).statistic) < Z / np.sqrt(TRIALS)


@pytest.mark.thorough
def test_a_batch_of_keys_gives_what_each_key_gives(draws):
    """200 keys one by one: among 2,400 entries the rejected ones are drawn again, alone and in the batch alike."""
    keys = jax.random.split(jax.random.key(1), TRIALS)[:200]
    alone = np.stack([one(k, jnp.asarray(DOF), 2) for k in keys])
    np.testing.assert_allclose(draws[:200], alone, rtol=1e-12)
    nested = jax.jit(jax.vmap(jax.vmap(lambda k: chi(k, jnp.asarray(DOF), 2))))(keys.reshape(10, 20))
    np.testing.assert_allclose(np.asarray(nested).reshape(200, -1), alone, rtol=1e-12)


def test_a_batch_of_degrees_gives_what_each_gives():
    """One key, many degrees of freedom along the batch, with and without a boost among them."""
    key, dof = jax.random.key(7), jnp.asarray(DOF).reshape(-1, 2)
    alone = np.stack([one(key, d, 0) for d in dof])
    np.testing.assert_allclose(np.asarray(jax.jit(jax.vmap(lambda d: chi(key, d)))(dof)), alone, rtol=1e-12)


@pytest.mark.thorough
def test_a_batch_of_streams_gives_what_each_stream_gives():
    keys, streams = jax.random.split(jax.random.key(8), 5), jnp.arange(5)
    dof = jnp.array([0.5, 3.0, 40.0])
    alone = np.stack([one(k, dof, s) for k, s in zip(keys, streams, strict=True)])
    got = jax.jit(jax.vmap(lambda k, s: chi(k, dof, s)))(keys, streams)
    np.testing.assert_allclose(np.asarray(got), alone, rtol=1e-12)
    alone = np.stack([one(keys[0], dof, s) for s in streams])
    got = jax.jit(jax.vmap(lambda s: chi(keys[0], dof, s)))(streams)
    np.testing.assert_allclose(np.asarray(got), alone, rtol=1e-12)


def test_an_entry_does_not_depend_on_what_the_others_need():
    """The boost below shape 1 is taken for all entries or for none: entries above it must not notice."""
    key = jax.random.key(9)
    with_boost, without = one(key, jnp.array([5.0, 0.5]), 0), one(key, jnp.array([5.0, 7.0]), 0)
    assert with_boost[0] == without[0]
