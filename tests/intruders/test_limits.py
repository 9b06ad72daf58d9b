"""The allowed strength of an update: against the law, against its own prediction, and against dense draws."""

import numpy as np
import pytest
from flax import nnx

from rmtjax._errors import InputError
from rmtjax.adapters import apply_adapters
from rmtjax.intruders import intruder_limits, strength_limit
from rmtjax.intruders.predict.edge import lone_intruders
from rmtjax.intruders.predict.prediction import predict_beyond
from rmtjax.laws import intruders
from rmtjax.linalg.svd import one_blas_thread


@pytest.fixture(autouse=True)
def small_matrices():
    """BLAS's own threads only get in each other's way here."""
    with one_blas_thread():
        yield


def base(n, m, spikes=(), seed=0):
    w = np.random.default_rng(seed).standard_normal((n, m)) / np.sqrt(m)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    s[: len(spikes)] = spikes
    return u, s, vt


@pytest.mark.first(1)
@pytest.mark.parametrize("shape", [(300, 300), (200, 400)])
def test_of_a_gaussian_base_it_is_the_laws_threshold(shape):
    _, s, _ = base(*shape)
    found = strength_limit(s, shape, probability=0.5)
    assert found == pytest.approx(float(intruders.rectangular_intruder_threshold(*shape, eps=0.5)), rel=0.1)


def test_it_is_higher_where_spikes_stand_in_the_way_and_holds_all_the_way_up():
    shape = (200, 240)
    _, plain, _ = base(*shape)
    _, s, _ = base(*shape, spikes=(4.0, 3.6, 3.3, 3.1, 2.9, 2.8, 2.7, 2.6, 2.5, 2.45, 2.4, 2.35))
    found = strength_limit(s, shape, probability=0.1)
    assert found > 1.3 * strength_limit(plain, shape, probability=0.1)
    edge = s[12] + 0.05
    chances = [
        predict_beyond(np.array([x]), s, shape, edge, 0.5, top_k=10, draws=256).probabilities[0]
        for x in np.linspace(0.1, 0.97, 15) * found
    ]
    assert max(chances) <= 0.1


def test_a_smaller_probability_asks_for_more():
    _, s, _ = base(150, 150, spikes=(3.0, 2.6))
    limits = [strength_limit(s, (150, 150), probability=p) for p in (0.01, 0.1, 0.5, 0.9)]
    assert limits == sorted(limits) and limits[0] < limits[-1]


def draws_with_intruders(u, s, vt, theta, draws, random, top=10):
    """Numbers of intruders after updates in random directions."""
    w, found = (u * s) @ vt, []
    for _ in range(draws):
        a, b = (x / np.linalg.norm(x) for x in (random.standard_normal(side) for side in w.shape))
        tuned = np.linalg.svd(w + theta * np.outer(a, b), full_matrices=False)[0][:, :top]
        found.append((np.abs(u.T @ tuned).max(0) < 0.5).sum())
    return np.array(found)


@pytest.mark.first(2)
@pytest.mark.parametrize("probability", [0.05, 0.2, 0.5])
@pytest.mark.parametrize(("shape", "tops"), [((130, 150), (3.0,)), ((120, 120), ()), ((160, 80), (2.9, 2.6))])
def test_at_the_limit_so_many_draws_are_intruders(shape, tops, probability):
    """300 draws; 4 standard errors of a frequency, which a true one misses once in 16,000, and 0.01 that the last bisection and
    the guard's own draws may be off.
    """
    random = np.random.default_rng(3)
    u, s, vt = base(*shape, spikes=tops)
    found = draws_with_intruders(u, s, vt, strength_limit(s, shape, probability=probability), 300, random)
    assert abs(found.mean() - probability) < 4 * np.sqrt(probability * (1 - probability) / 300) + 0.01


@pytest.mark.first(1)
@pytest.mark.parametrize("top", [3, 10])
@pytest.mark.parametrize(("shape", "tops"), [((120, 120), ()), ((160, 80), (3.1,)), ((80, 160), (2.9, 2.6))])
def test_one_direction_through_the_edge_and_past_spikes(shape, tops, top):
    """From below the threshold to beyond all: means of 200 draws, 4 standard errors."""
    random = np.random.default_rng(7)
    u, s, vt = base(*shape, spikes=tops)
    theta = (shape[0] / shape[1]) ** 0.25 * np.array([0.7, 0.9, 1.1, 1.3, 1.6, 2.2, 2.9, 4.0])
    expected = lone_intruders(theta, s, shape, 0.5, top_k=top, draws=2000)
    assert expected[0] < 0.1 and expected[-1] > 0.9
    for x, wanted in zip(theta, expected, strict=True):
        found = draws_with_intruders(u, s, vt, x, 200, random, top)
        assert abs(found.mean() - wanted) < 4 * max(found.std(), 0.1) / np.sqrt(200) + 0.005, x


def test_all_vectors_of_a_small_matrix_count():
    """The last one, too, which has no singular value below it."""
    random = np.random.default_rng(8)
    u, s, vt = base(6, 8, spikes=())
    for top in (3, 6):
        expected = lone_intruders(np.array([1.0]), s, (6, 8), 0.7, top_k=top, draws=4000)[0]
        w, found = (u * s) @ vt, []
        for _ in range(1000):
            a, b = (x / np.linalg.norm(x) for x in (random.standard_normal(side) for side in w.shape))
            tuned = np.linalg.svd(w + np.outer(a, b), full_matrices=False)[0][:, :top]
            found.append((np.abs(u.T @ tuned).max(0) < 0.7).sum())
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(800)


def test_a_base_of_small_rank_has_room_for_none():
    """Any direction is new to it, and among ten leading ones; among four it is not if it is weak."""
    s = np.append([9.0, 8, 7, 6, 5], np.zeros(35))
    assert strength_limit(s, (40, 50)) == 0
    assert strength_limit(s, (40, 50), top_k=4) > 1


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 0), ("top_k", 2.5), ("threshold_epsilon", 0), ("threshold_epsilon", 1.5)]
)
def test_what_is_looked_at_must_make_sense(name, value):
    with pytest.raises(InputError, match=rf"{name} = {value}"):
        strength_limit(np.ones(10), (10, 10), **{name: value})


@pytest.mark.parametrize("probability", [0, 1, -0.1, "a"])
def test_a_probability_that_is_none(probability):
    with pytest.raises(InputError, match=r"probability = .*: must be a finite number in \(0, 1\)"):
        strength_limit(np.ones(10), (10, 10), probability=probability)


def test_nothing_goes_unguarded_by_mistake():
    model = nnx.Dict(one=nnx.Linear(24, 24, rngs=nnx.Rngs(0)), other=nnx.Linear(24, 24, rngs=nnx.Rngs(1)))
    with pytest.raises(InputError, match="model: has no layer with an adapter to guard"):
        intruder_limits(model)
    apply_adapters(model, "lora", rank=8, target_modules=".*")
    assert set(intruder_limits(model, top_k=3)) == {"one", "other"}
    assert (
        set(intruder_limits(model, top_k=3, layers="one"))
        == set(intruder_limits(model, top_k=3, layers=["one"]))
        == {"one"}
    )
    with pytest.raises(InputError, match="layers: typo is not one of one, other"):
        intruder_limits(model, layers=["one", "typo"])
    for probability in (2.0, -1, "x", float("nan")):
        with pytest.raises(InputError, match=rf"probability = '?{probability}'?: must be a finite number in \(0, 1\)"):
            intruder_limits(model, probability=probability)


def test_the_order_of_the_singular_values_does_not_matter():
    s = np.linspace(2, 0.1, 60)
    assert strength_limit(s, (60, 80)) == strength_limit(s[::-1], (60, 80))
    assert strength_limit(s, (60, 80), probability=np.float32(0.05), top_k=np.int64(10)) == strength_limit(s, (60, 80))
