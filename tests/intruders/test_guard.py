"""How strong an update may be: against the law, against its own prediction, and against dense draws."""

import numpy as np
import pytest

from rmtjax._errors import InputError
from rmtjax.intruders import predict, strength_limit
from rmtjax.laws import intruders
from rmtjax.linalg.dense import one_blas_thread


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
        predict(np.array([x]), s, shape, edge, 0.5, top=10, draws=256).probabilities[0]
        for x in np.linspace(0.1, 0.97, 15) * found
    ]
    assert max(chances) <= 0.1


def test_a_smaller_probability_asks_for_more():
    _, s, _ = base(150, 150, spikes=(3.0, 2.6))
    limits = [strength_limit(s, (150, 150), probability=p) for p in (0.01, 0.1, 0.5, 0.9)]
    assert limits == sorted(limits) and limits[0] < limits[-1]


def test_at_the_limit_so_many_draws_are_intruders():
    """150 draws at the limit for one half: a frequency off by 0.17 is 4 standard errors, the rest is what the law may err."""
    n, m = 130, 150
    random = np.random.default_rng(3)
    u, s, vt = base(n, m, spikes=(3.0,))
    w, theta = (u * s) @ vt, strength_limit(s, (n, m), probability=0.5)
    hits = []
    for _ in range(150):
        a, b = (x / np.linalg.norm(x) for x in (random.standard_normal(n), random.standard_normal(m)))
        tuned = np.linalg.svd(w + theta * np.outer(a, b), full_matrices=False)[0][:, :10]
        hits.append((np.abs(u.T @ tuned).max(0) < 0.5).any())
    assert abs(np.mean(hits) - 0.5) < 0.2


@pytest.mark.parametrize("probability", [0, 1, -0.1, "a"])
def test_a_probability_that_is_none(probability):
    with pytest.raises(InputError, match=r"probability = .*: must be between 0 and 1"):
        strength_limit(np.ones(10), (10, 10), probability=probability)
