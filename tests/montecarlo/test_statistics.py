import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax.montecarlo.keys import cell_keys, trial_keys
from rmtjax.montecarlo.statistics import Comoments, Histogram, Moments, Samples, merge_tiles


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 8])
def test_merged_blocks_are_the_statistics_of_the_whole(blocks):
    rng = np.random.default_rng(blocks)
    block, outputs, points, trials = 16, 2, 3, 16 * blocks - 5
    # A mean far from 0 against a small spread: sums of squares would lose all digits here.
    x = 1e8 + rng.normal(size=(blocks * block, outputs, points))
    statistics = (Moments(), Comoments(), Histogram((1e8 - 1, 1e8, 1e8 + 1)), Samples())
    parts = []
    for b in range(blocks):
        live = np.arange(b * block, (b + 1) * block) < trials

        with jax.enable_x64(True):
            part = jnp.asarray(x[b * block : (b + 1) * block])
            state = {k: np.asarray(v) for s in statistics for k, v in s.block(part, jnp.asarray(live)).items()}
        parts.append(state)
    stacked = {k: np.stack([p[k] for p in parts]) for k in parts[0]}
    # Another cell of other blocks beside it.
    owner = np.append(np.zeros(blocks, int), [3, 3])
    merged = merge_tiles(statistics, {k: np.concatenate([v, v[:1], v[:1]]) for k, v in stacked.items()}, owner)
    assert set(merged) == {name for s in statistics[:-1] for name in s.names}
    assert merged["count"][1] == 2 * stacked["count"][0]
    np.testing.assert_allclose(merged["mean"][1], stacked["mean"][0], rtol=1e-15)
    whole = x[:trials]
    assert merged["count"][0] == trials
    np.testing.assert_allclose(merged["mean"][0], whole.mean(0), rtol=1e-15)
    np.testing.assert_allclose(merged["m2"][0], ((whole - whole.mean(0)) ** 2).sum(0), rtol=1e-6)
    np.testing.assert_array_equal(merged["min"][0], whole.min(0))
    np.testing.assert_array_equal(merged["max"][0], whole.max(0))
    centred = whole - whole.mean(0)
    np.testing.assert_allclose(merged["comoment"][0], np.einsum("tip,tjp->ijp", centred, centred), atol=1e-6)
    edges = [-np.inf, 1e8 - 1, 1e8, 1e8 + 1, np.inf]
    counts = np.array([[np.histogram(whole[:, o, q], edges)[0] for q in range(points)] for o in range(outputs)])
    np.testing.assert_array_equal(merged["histogram"][0], counts)
    np.testing.assert_array_equal(stacked["samples"].reshape(x.shape)[:trials], whole)


def test_a_key_belongs_to_values_not_to_a_place_in_a_grid():
    one = cell_keys(0, "s", {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 3.0])})
    other = cell_keys(0, "s", {"b": np.array([3.0]), "a": np.array([2.0])})
    np.testing.assert_array_equal(one[1], other[0])
    assert not np.array_equal(one[0], one[1])


def test_keys_differ_by_seed_stream_cell_and_trial():
    cells = {"a": np.arange(50.0)}
    keys = [cell_keys(seed, stream, cells) for seed in (0, 1, 2**32 - 1) for stream in ("s", "t")]
    keys = np.concatenate(keys)
    assert len({tuple(k) for k in keys}) == len(keys)

    first = np.asarray(jax.random.key_data(trial_keys(jnp.asarray(keys[0]), jnp.uint32(0), 8)))
    later = np.asarray(jax.random.key_data(trial_keys(jnp.asarray(keys[0]), jnp.uint32(4), 8)))
    np.testing.assert_array_equal(first[4:], later[:4])
    assert len({tuple(k) for k in first}) == 8
