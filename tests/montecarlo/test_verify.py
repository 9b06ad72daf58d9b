import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax import InputError
from rmtjax.claims import CLAIMS
from rmtjax.montecarlo import Claim, RunConfig, holm, judge, open_result, real, run, verify
from rmtjax.montecarlo.grid import Axis, Grid
from rmtjax.montecarlo.hypothesis_tests import binomial, t_with_allowance, welch
from rmtjax.montecarlo.plan import make_plan
from rmtjax.montecarlo.result import assemble
from rmtjax.report.page import write_page

from .helpers import BOTH, MEAN, TWO
from .test_until import rare


def _shifted(by, **changes):
    given = {f: getattr(MEAN, f) for f in MEAN.__dataclass_fields__}
    return Claim(**{**given, "name": "shifted", "law": lambda n, shift: shift + by + 0 * n, **changes})


def test_holm_against_its_definition():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.5])).tolist() == [0.5]


def test_welch_against_its_formula():
    """Welch and Satterthwaite; SciPy has it from standard deviations."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 5, 30))
    b = b[:, :12] * 3 + 0.5
    sample = [(x.mean(1), x.std(1, ddof=1) / np.sqrt(x.shape[1]), np.full(5, x.shape[1])) for x in (a, b)]
    z, p, se = welch(*sample[0], *sample[1])
    variances = [se**2 for _, se, _ in sample]
    np.testing.assert_allclose(se**2, sum(variances), rtol=1e-14)
    freedom = se**4 / sum(v**2 / (n - 1) for v, (_, _, n) in zip(variances, sample, strict=True))
    np.testing.assert_allclose(z, (b.mean(1) - a.mean(1)) / se, rtol=1e-13)
    np.testing.assert_allclose(p, 2 * stats.t.sf(np.abs(z), freedom), rtol=1e-12)
    np.testing.assert_allclose(p, stats.ttest_ind(b, a, axis=1, equal_var=False).pvalue, rtol=1e-12)


def test_samples_that_do_not_vary():
    zero, trials = np.zeros(3), np.full(3, 10)
    z, p, _ = welch(np.ones(3), zero, trials, np.array([1.0, 1 + 1e-15, 2.0]), zero, trials)
    assert z.tolist() == [0, 0, np.inf] and p.tolist() == [1, 1, 0]
    z, p = t_with_allowance(np.array([1.0, 2.0, np.nan]), zero, trials, np.ones(3), np.full(3, 0.5))
    assert z[0] == 0 and z[1] == np.inf and p.tolist() == [1, 0, 0]


def test_true_laws_hold_and_false_ones_do_not():
    verdict = verify([MEAN, TWO, BOTH], trials=4000)
    assert verdict.holds
    assert {f.claim for f in verdict.findings} == {"mean", "characteristic-function", "mean-both"}
    assert sum(f.against != "law" for f in verdict.findings) == 1
    # 0.1 is 6.3 standard errors where n = 1 and more elsewhere
    refuted = verify([MEAN, _shifted(0.1)], trials=4000)
    assert not refuted.holds
    assert [f.holds for f in refuted.findings] == [True, False]
    assert refuted.findings[1].cell["n"] == 16


@pytest.mark.thorough
def test_the_family_wise_error_is_the_level():
    """100 verdicts on 6 true cells each at level 0.2: 20 false alarms expected, 4.5 standard deviations are ±18."""
    alarms = sum(not verify([MEAN], trials=100, seed=seed, level=0.2).holds for seed in range(100))
    assert 2 <= alarms <= 38


@pytest.mark.parametrize("q", [1e-3, 1e-2, 0.5, 0.999])
@pytest.mark.parametrize("drawn", [10, 300])
def test_shares_of_events_are_tested_exactly(q, drawn):
    """Over all numbers of events, a p-value is at most a with probability a at most, with an allowance even less often."""
    seen = np.arange(drawn + 1.0)
    chance = stats.binom.pmf(seen, drawn, q)
    for allowed in (0.0, 0.05):
        z, p = binomial(seen / drawn, np.full(drawn + 1, q), np.full(drawn + 1, allowed), np.full(drawn + 1, drawn))
        for level in (0.3, 0.1, 0.01, 1e-4):
            assert chance[p <= level].sum() <= level * (1 + 1e-9)
        assert (np.sign(z) == np.sign(np.where(p < 1, seen / drawn - q, 0))).all()
    assert p[0] < 1e-12 or q < 0.6 or drawn == 10


def test_rare_events_refute_what_is_false_and_nothing_else():
    """Of 300 draws none is an event: no reason to refute q = 0.001, but q = 0.1."""
    claim = dataclasses.replace(rare(), grid=dict(q=1e-3))
    seed = next(s for s in range(9) if run(claim, trials=300, seed=s)["mean"].item() == 0)
    assert verify([claim], trials=300, seed=seed).holds
    assert not verify([dataclasses.replace(claim, law=lambda q: 0.1 + 0 * q)], trials=300, seed=seed).holds


def test_a_stated_bias_is_allowed_and_no_more():
    assert verify([_shifted(0.1, bias_bound=lambda n, shift: 0.1 + 0 * n)], trials=4000).holds
    assert not verify([_shifted(0.1, bias_bound=lambda n, shift: 0.02 + 0 * n)], trials=4000).holds
    assert not verify([_shifted(-0.1, bias_bound=lambda n, shift: 0.02 + 0 * n)], trials=4000).holds


def test_samplers_that_disagree_are_found_out():
    samplers = dict(BOTH.samplers, dense=lambda key, n, shift: shift + 0.2 + jax.random.normal(key) / jnp.sqrt(n))
    given = {f: getattr(BOTH, f) for f in BOTH.__dataclass_fields__}
    verdict = verify([Claim(**{**given, "samplers": samplers})], trials=4000)
    assert [f.holds for f in verdict.findings] == [True, False]
    assert verdict.findings[1].against == "direct"


def test_what_is_not_a_number_refutes():
    broken = Claim(
        name="broken", equation="", source="", params=dict(x=real()), law=lambda x: x,
        samplers=dict(direct=lambda key, x: jnp.sqrt(-1 - x * x)), grid=dict(x=0.0),
    )  # fmt: skip
    assert not verify([broken], trials=10).holds


def test_a_constant_is_compared_exactly():
    def constant(law):
        return Claim(
            name="constant", equation="", source="", params=dict(x=real()), law=law,
            samplers=dict(direct=lambda key, x: x), grid=dict(x=[1.0, 2.0]),
        )  # fmt: skip

    assert verify([constant(lambda x: x * (1 + 1e-15))], trials=10).holds
    assert not verify([constant(lambda x: x * (1 + 1e-9))], trials=10).holds


@pytest.mark.parametrize("level", [0, 1, -0.1, float("nan"), "x"])
def test_levels_that_cannot_be(level):
    with pytest.raises(InputError, match=r"^level = "):
        verify([MEAN], trials=10, level=level)


def test_nothing_to_verify():
    with pytest.raises(InputError, match="claims is empty"):
        verify([])


def test_a_known_error_is_to_be_refuted():
    wrong = _shifted(0.1, name="wrong", erratum=True)
    verdict = verify([MEAN, wrong], trials=4000)
    assert verdict.holds
    assert [(f.erratum, f.holds, f.as_expected) for f in verdict.findings] == [
        (False, True, True),
        (True, False, True),
    ]
    right = _shifted(0.0, name="right", erratum=True)
    verdict = verify([MEAN, right], trials=4000)
    assert not verdict.holds
    assert not verdict.findings[1].as_expected


def test_what_a_verdict_says_of_known_errors():
    from rmtjax.report.verdict import summary

    said = summary(verify([MEAN, _shifted(0.1, name="wrong", erratum=True)], trials=4000))
    assert said.startswith("1 of 1 claims hold and 1 of 1 known errors are refuted in 12 tests")
    said = summary(verify([_shifted(0.0, name="right", erratum=True)], trials=4000)).splitlines()
    assert said[0].startswith("right is an error and is not refuted: at ")
    assert said[1].startswith("0 of 1 known errors are refuted in 6 tests")


@functools.cache
def _first_cell(name):
    """A claim's first cell alone, and the law there."""
    claim = CLAIMS[name]
    cells = claim.resolve(
        Grid(tuple(Axis({n: v[:1] for n, v in axis.values.items()}, True) for axis in claim.grid.axes))
    )
    return cells, claim.predict(cells)


def _one_cell(name, share=None):
    """A result as `run` leaves it of the first cell alone, without a dimension; its mean is the law, or a share of events."""
    claim, (cells, law) = CLAIMS[name], _first_cell(name)
    method, sampler = claim.sampler()
    plan = make_plan(claim, sampler, cells, tuple(law), RunConfig(trials=64))
    tiles = plan.first()
    mean = np.stack([v.reshape(1, -1) for v in law.values()], 1)[None].repeat(len(tiles), 0)
    mean = mean if share is None else np.full_like(mean, share)
    count = np.full((len(tiles), 1), plan.block, float)
    m2 = np.ones_like(mean) if share is None else plan.block * share * (1 - share) * np.ones_like(mean)
    values = dict(count=count, mean=mean, m2=m2, min=0 * mean, max=0 * mean + 1)
    return assemble(plan, law, tiles, values).assign_attrs(method=method, seed=0, trials_per_cell=64)


@pytest.mark.parametrize("share", [None, 0.0, 0.5])
def test_one_cell_of_every_claim_is_judged(share):
    """If nothing varies there is no dimension, with a bias or without, events or not."""
    results = [_one_cell(name, share) for name in CLAIMS]
    assert all(
        not set(result["mean"].dims) - {"output", *claim.within}
        for result, claim in zip(results, CLAIMS.values(), strict=True)
    )
    assert any(
        result["mean"].dims == ("output",) and claim.bias_bound
        for result, claim in zip(results, CLAIMS.values(), strict=True)
    )
    verdict = judge(results, CLAIMS.values())
    assert len({finding.claim for finding in verdict.findings}) == len(CLAIMS)
    assert share is not None or all(finding.z == 0 for finding in verdict.findings)


def test_one_cell_with_a_bias_is_verified_and_reported(tmp_path):
    biased = dataclasses.replace(_shifted(0.01, bias_bound=lambda n, shift: 0.02 + 0 * n), grid=dict(n=4, shift=0.0))
    verdict = verify([biased], trials=1000)
    assert verdict.holds and [f.tests for f in verdict.findings] == [1]
    run(biased, trials=1000, store=tmp_path / "s")
    page = write_page(judge([open_result(tmp_path / "s")], [biased]), tmp_path / "report.html", [biased])
    assert "shifted" in page.read_text(encoding="utf-8")
