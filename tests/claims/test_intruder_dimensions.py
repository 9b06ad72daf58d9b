"""The claims of the intruder paper: they hold, and would be refuted if their law were wrong."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.claims import CLAIMS, GROUPS, errata, find_claims
from rmtjax.claims.intruder_dimensions import spikes as claims
from rmtjax.montecarlo import grid, verify


def _small(claim, **axes):
    """The claim on a few cells, without the comparison of its samplers."""
    return dataclasses.replace(claim, grid=claim.grid.override(**axes), comparison_grid=None)


def test_names_that_scripts_use():
    for name, parameters, outputs in (
        ("bbp-wigner", {"N", "theta"}, {"outlier", "overlap"}),
        ("bbp-rectangular", {"N", "c", "theta"}, {"outlier", "overlap_left", "overlap_right"}),
        ("bbp-covariance", {"N", "c", "theta"}, {"outlier", "overlap"}),
        ("tracy-widom", {"N", "beta"}, {"mean", "square", "lower", "median", "upper"}),
        ("semicircle", {"N", "x"}, {"cdf"}),
        ("marchenko-pastur", {"N", "c", "x"}, {"cdf"}),
    ):
        claim = CLAIMS[name]
        assert set(claim.params) == parameters
        assert set(claim.predict(claim.grid)) == outputs
    assert find_claims(["errata"]) == list(GROUPS["errata"])
    assert find_claims(["transfer", "alpha-ftc"]) == list(GROUPS["transfer"])


def test_every_erratum_has_its_correction_on_the_same_grid():
    names = [c.name for c in errata.CLAIMS]
    assert len(names) == 20
    for wrong, right in zip(errata.CLAIMS[::2], errata.CLAIMS[1::2], strict=True):
        assert wrong.erratum
        assert not right.erratum
        assert wrong.name.removeprefix("erratum-") == right.name.removeprefix("corrected-")
        assert wrong.grid is right.grid


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("claim", "axes"),
    [
        (claims.bbp_wigner, dict(N=[300, 1e8], theta=[1.3, 3.0])),
        (claims.bbp_rectangular, dict(N=[400, 1e8], c=[0.25, 4.0], theta=[1.8, 3.0])),
        (claims.bbp_covariance, dict(N=[400, 1e8], c=[0.25, 4.0], theta=[4.0])),
        (claims.fluctuation, dict(N=[1e6], theta=[2.0], beta=[1, 4])),
        (claims.edge, dict(N=[1e6], beta=[2])),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_laws_hold_and_would_be_refuted(claim, axes):
    """At level 1e-3. A law that is off by 3 %, or by 0.03, is refuted."""
    small = _small(claim, **axes)
    assert verify([small], trials=2_000, seed=1, level=1e-3).holds
    law = lambda **cell: {k: v * 1.03 + 0.03 for k, v in _law(claim, cell).items()}  # noqa: E731
    assert not verify([dataclasses.replace(small, law=law)], trials=2_000, seed=1, level=1e-3).holds


def _law(claim, cell):
    from rmtjax.montecarlo.claim import call_with

    return {k: np.asarray(v) for k, v in call_with(claim.law, **cell).items()}


@pytest.mark.parametrize("pair", [errata.threshold, errata.rectangular], ids=lambda pair: pair[1].name)
def test_errata_are_refuted_and_their_corrections_hold(pair):
    verdict = verify(pair, trials=500, level=1e-3)
    assert verdict.holds
    assert [f.holds for f in verdict.findings] == [False, True]


def test_the_samplers_agree_where_the_transition_is():
    """Dense and compressed on both sides of the threshold, at level 1e-3."""
    cells = grid(N=[30], theta=[0.5, 1.0, 2.0])
    assert verify(
        [dataclasses.replace(claims.bbp_wigner, grid=cells, comparison_grid=cells)], trials=1_000, level=1e-3
    ).holds


def test_rows_that_are_no_whole_number_are_refused():
    from rmtjax import InputError

    with pytest.raises(InputError, match=r"c = 0.3: c·N must be a whole number ≥ 1, but is 0.9 for N = 3"):
        claims.bbp_rectangular.resolve(grid(N=[3], c=[0.3], theta=[1.0]))
    with pytest.raises(InputError, match="beta = 3: must be 1, 2 or 4"):
        claims.edge.resolve(grid(N=[10], beta=[3]))
    with pytest.raises(InputError, match="theta = 1: must be above the threshold 1"):
        claims.fluctuation.resolve(grid(N=[10], theta=[1.0], beta=[1]))


def test_two_claims_of_one_name_are_refused(tmp_path):
    """They would be one in the results."""
    text = (Path(__file__).parents[2] / "docs/tutorials/own_law.py").read_text(encoding="utf-8")
    for name, law in (("one", "2 + 5"), ("other", "3 + 5")):
        (tmp_path / f"{name}.py").write_text(text.replace("2 + 5", law), encoding="utf-8")
    with pytest.raises(InputError, match="claim 'goe-fourth-moment' is defined twice"):
        find_claims([str(tmp_path / "one.py"), str(tmp_path / "other.py")])
