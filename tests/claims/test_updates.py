"""The claims about updates: they hold, and would be refuted if their law were wrong."""

import dataclasses

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.claims.intruder_dimensions import updates
from rmtjax.montecarlo import grid, verify
from rmtjax.montecarlo.claim import call_with


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("claim", "axes", "trials"),
    [
        (updates.rank_two, dict(N=[1e6]), 1_000),
        (updates.ORTHOGONAL[0], dict(c=[0.25]), 100),
        (updates.perturbative, dict(i=[1, 10], delta=[0.02]), 5_000),
        (updates.full, dict(N=[101], delta=[0.6]), 400),
        (updates.planted, dict(N=[100], theta=[2.0]), 400),
        (updates.heavy, dict(N=[40]), 2_000),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_laws_hold_and_would_be_refuted(claim, axes, trials):
    """At level 1e-3. A law that is off by 10 %, and by 0.03, is refuted."""
    small = dataclasses.replace(claim, grid=claim.grid.override(**axes))
    assert verify([small], trials=trials, seed=1, level=1e-3).holds

    def wrong(**cell):
        return {name: np.asarray(v) * 1.1 + 0.03 for name, v in call_with(claim.law, **cell).items()}

    assert not verify([dataclasses.replace(small, law=wrong)], trials=trials, seed=1, level=1e-3).holds


def test_oblique_spikes_count_by_the_updates_singular_values():
    """At c = 1: σ of FΘ from its Gram matrix, and outliers t + 1/t."""
    gram = np.array([[9.0, 3 * 2 * 0.5], [3 * 2 * 0.5, 4.0]])
    t = np.sqrt(np.linalg.eigvalsh(gram)[::-1])
    law = updates.rank_two.law(c=1.0, theta=3.0, theta2=2.0, cosine=0.5)
    np.testing.assert_allclose([law["outlier_1"], law["outlier_2"]], t + 1 / t)
    # The part of u₁ and of v₁ that the outliers' vectors hold, both together.
    share = sum(law[f"overlap_left_{k}"] / (1 - 1 / t[k - 1] ** 2) for k in (1, 2))
    np.testing.assert_allclose(share, 1)


@pytest.mark.parametrize(
    ("claim", "cell", "part"),
    [
        (updates.rank_two, dict(N=10, c=1.0, theta=2.0, theta2=1.0, cosine=1.0), "cosine = 1"),
        (updates.rank_two, dict(N=10, c=0.25, theta=2.0, theta2=1.0, cosine=0.0), "c = 0.25: c·N must be a whole"),
        (updates.perturbative, dict(N=10, i=11, delta=0.1), "i = 11: must be at most N = 10"),
        (updates.planted, dict(N=10, theta=1.0, x=0.0), "theta = 1: must be above the threshold 1"),
        (updates.heavy, dict(N=10, nu=4.0, x=3.0), "nu = 4"),
        (updates.heavy, dict(N=10, nu=3.0, x=2.0), "x = 2"),
    ],
)
def test_what_is_not_admissible_is_refused(claim, cell, part):
    with pytest.raises(InputError, match=part):
        claim.resolve(grid(**cell))
