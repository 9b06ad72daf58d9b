"""Words, uniforms and normals: the right law, the right digits, and the same for a trial whatever its batch."""

import functools

import jax
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from rmtjax.ensembles import _counter as counter

# False alarms: every KS test here rejects at p < 1e-5 and every moment at 4.5 standard errors (7e-6); some twenty such
# checks make less than 3e-4 for the file. Seeds are fixed.
P, Z = 1e-5, 4.5

normal = jax.jit(counter.normal, static_argnums=1)
box_muller, cos_sin, fast_log, unit = map(
    jax.jit, (counter.box_muller, counter._cos_sin_turn, counter.fast_log, counter.unit)
)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def words(seed, stream, count, start=0):
    """The words of a seed's key."""
    return counter.words(jax.random.key_data(jax.random.key(seed))[:, None], stream, count, start)


@pytest.fixture(autouse=True)
def double():
    """The counters work in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """Normals of 100,000 trials: (trial, stream, index)."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 100_000)
        both = jax.jit(jax.vmap(lambda k: [counter.normal(k, 4, s) for s in (0, 1)]))
        return np.stack([np.asarray(x) for x in both(keys)], 1)


def test_normals_are_normal(draws):
    flat = draws.ravel()
    assert stats.kstest(flat, "norm").pvalue > P
    # Moments 1 to 4 of N(0, 1) are 0, 1, 0, 3, of variances 1, 2, 15, 96.
    for k, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs(np.mean(flat**k) - mean) < Z * np.sqrt(variance / flat.size)
    # The tail: P(|x| > 3.5) = 4.65e-4.
    tail = 2 * stats.norm.sf(3.5)
    assert abs(np.sum(np.abs(flat) > 3.5) - flat.size * tail) < Z * np.sqrt(flat.size * tail)


def test_normals_of_a_trial_are_uncorrelated(draws):
    """Neither the two of one Box–Muller pair, nor two pairs, nor two streams, nor two trials; nor do their squares."""
    x = draws.reshape(draws.shape[0], 8)
    x = np.concatenate([x, np.roll(x, 1, axis=0)], 1)
    for y in (x, x**2, np.concatenate([x[:, :8], x[:, :8] ** 2], 1)):
        correlation = np.corrcoef(y, rowvar=False)
        # 120 pairs each, so 5.3 standard errors (1e-7) a pair.
        assert np.max(np.abs(correlation - np.eye(16))) < 5.3 / np.sqrt(x.shape[0])


def same(x, y):
    """Equal but for the rounding of two compilations: the same bits went in."""
    np.testing.assert_allclose(x, y, rtol=1e-13, atol=1e-15)


def test_a_batch_of_keys_gives_what_each_key_gives():
    keys = jax.random.split(jax.random.key(2), 6)
    alone = np.stack([normal(k, 5, 3) for k in keys])

    def draw(k):
        return counter.normal(k, 5, 3)

    @jax.jit
    def others(keys):
        nested = jax.vmap(jax.vmap(draw))(keys.reshape(2, 3))
        return jax.vmap(draw)(keys), nested.reshape(6, 5), jax.lax.map(draw, keys)

    for got in others(keys):
        same(np.asarray(got), alone)
    one = jax.jit(jax.vmap(lambda _: draw(keys[1])))(np.arange(2))
    same(np.asarray(one), np.stack([alone[1]] * 2))


def test_a_batch_of_streams_gives_what_each_stream_gives():
    keys, streams = jax.random.split(jax.random.key(3), 4), np.arange(4)
    single = jax.jit(lambda k, s: counter.normal(k, 3, s))
    alone = np.stack([single(k, s) for k, s in zip(keys, streams, strict=True)])
    both, of_one_key = jax.jit(lambda k, s: (jax.vmap(single)(k, s), jax.vmap(single, (None, 0))(k[0], s)))(
        keys, streams
    )
    same(np.asarray(both), alone)
    same(np.asarray(of_one_key), np.stack([single(keys[0], s) for s in streams]))


def test_keys_of_other_generators_are_accepted():
    x, y = (np.asarray(normal(jax.random.key(seed, impl="rbg"), 4)) for seed in (0, 1))
    assert np.all(np.isfinite(x)) and np.all(x != y)


def test_a_program_in_single_precision_gets_the_same_normals():
    wanted = counter.normal(jax.random.key(5), 3)  # one operation after the other
    with jax.enable_x64(False):
        np.testing.assert_array_equal(counter.normal(jax.random.key(5), 3), wanted)


def test_an_odd_count_is_the_length_asked_for():
    for count in (1, 2, 7):
        assert jax.eval_shape(lambda k, c=count: counter.normal(k, c), jax.random.key(0)).shape == (count,)


def test_words_are_threefry_of_stream_and_index():
    """The same bits from JAX's own threefry, and from any starting index."""
    got = np.asarray(words(11, 5, 4))[:, 0]
    data = jax.random.key_data(jax.random.key(11))
    pairs = [np.asarray(threefry_2x32(data, jax.device_put(np.array([5, i], np.uint32)))) for i in range(4)]
    np.testing.assert_array_equal(got, [(int(a) << 32) | int(b) for a, b in pairs])
    np.testing.assert_array_equal(np.asarray(words(11, 5, 2, 2))[:, 0], got[2:])


def test_uniforms_reach_one_but_never_zero():
    bits = np.array([0, 1 << 12, 2**64 - 1, 2**64 - (1 << 12)], np.uint64)
    np.testing.assert_array_equal(unit(bits), [1.0, 1 - 2.0**-52, 2.0**-52, 2.0**-52])


def test_uniforms_are_uniform():
    assert stats.kstest(np.asarray(unit(words(4, 0, 200_000))).ravel(), "uniform").pvalue > P


def test_extreme_words_give_finite_normals():
    """The largest radius, √(104 ln 2) = 8.49, at every quarter turn: nothing overflows."""
    low, high = 0, 2**64 - 1
    x = np.asarray(box_muller(np.array([high, high, high, low, low, high, low, low], np.uint64)))
    assert np.all(np.isfinite(x))
    np.testing.assert_allclose(np.max(np.abs(x)), np.sqrt(104 * np.log(2)), rtol=1e-12)


def test_logarithm_to_a_few_units_in_the_last_place():
    rng = np.random.default_rng(5)
    x = np.concatenate(
        [
            rng.uniform(0, 1, 200_000),
            2.0 ** rng.uniform(-1000, 1000, 100_000),
            1 + rng.uniform(-1, 1, 100_000) * 2.0 ** rng.uniform(-52, -1, 100_000),  # relative accuracy next to log 1
            [2.0**-52, 1.0, np.sqrt(0.5), np.nextafter(np.sqrt(0.5), 0), np.sqrt(2), np.nextafter(np.sqrt(2), 2), 2.0],
        ]
    )
    got = np.asarray(fast_log(x))
    np.testing.assert_array_max_ulp(got, np.log(x), 4)
    assert np.any(x == 1) and np.all(got[x == 1] == 0)


def test_sine_and_cosine_of_a_turn():
    v = np.concatenate([np.random.default_rng(6).uniform(0, 1, 300_000), np.linspace(0, 1, 4097)])
    exact = v.astype(np.longdouble) * 2 * np.longdouble("3.14159265358979323846264338327950288")
    cos, sin = cos_sin(v)
    np.testing.assert_allclose(cos, np.cos(exact).astype(float), rtol=0, atol=4e-16)
    np.testing.assert_allclose(sin, np.sin(exact).astype(float), rtol=0, atol=4e-16)
    quarters = jax.jit(counter.cos_turn)(np.array([0, 0.25, 0.5, 0.75, 1]))
    np.testing.assert_array_equal(quarters, [1, 0, -1, 0, 1])
