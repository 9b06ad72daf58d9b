"""Runs that draw until a standard error is reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.montecarlo import Claim, Limits, Sampler, grid, open_result, positive, real, run
from rmtjax.montecarlo import plan as plan_module
from rmtjax.montecarlo.store import Store

from .helpers import BOTH, MEAN, TWO


def _waiting():
    return Claim(
        name="waiting-time",
        equation=r"E\tau = 1/\lambda",
        source="any textbook",
        params=dict(rate=positive(), place=real()),
        law=lambda rate, place: 1 / rate + 0 * place,
        samplers=dict(direct=Sampler(lambda key, rate, place: jax.random.exponential(key) / rate, block=64)),
        grid=dict(rate=[1.0, 2.0, 4.0, 40.0], place=0.0),
    )


def test_each_cell_gets_the_trials_that_it_needs():
    result = run(_waiting(), until_se=0.01)
    assert (result["se"] <= 0.01).all()
    wanted = np.array([10_000, 2_500, 625, 6.25])
    # The estimated variance of an exponential from N trials is off by √(8/N), a few times over for the rounds.
    drawn = result["trials"].values
    assert drawn[3] == 256
    np.testing.assert_allclose(drawn[:3], wanted[:3], rtol=0.35)
    assert (drawn % 64 == 0).all()
    assert np.abs(result["z"]).max() < 4.5


def rare(of=lambda q: q):
    """Events of probability q, and what is said to be their share."""
    return Claim(
        name="rare",
        equation="E = q",
        source="any textbook",
        params=dict(q=real()),
        law=lambda q: 1.0 * of(q),
        samplers=dict(direct=Sampler(lambda key, q: (jax.random.uniform(key) < q).astype(float), block=64)),
        grid=dict(q=[1e-3, 3e-3, 0.5]),
    )


def test_a_cell_without_an_event_is_not_taken_for_one_without_variance():
    """All draws were the same in the first 256 trials; the true errors stay below twice what was asked for."""
    result = run(rare(), until_se=2e-3, seed=2)
    q, drawn = result["q"].values, result["trials"].values
    assert (drawn[:2] >= 860).all() and drawn[2] > 60_000  # 2√3 · ½ / 0.002
    assert (np.sqrt(q * (1 - q) / drawn) < 4e-3).all()
    constant = run(rare(), grid(q=[0.0]), until_se=1e-6)
    assert constant["trials"].item() == 4096 and constant["mean"].item() == 0


def test_trials_are_those_of_any_other_run():
    result = run(_waiting(), until_se=0.02, keep_samples=True)
    plain = run(_waiting(), trials=4096, keep_samples=True)
    for i, count in enumerate(result["trials"].values.astype(int)):
        drawn = result["samples"].values[0, i]
        np.testing.assert_array_equal(drawn[:count], plain["samples"].values[0, i, :count])
        assert np.isnan(drawn[count:]).all()
        np.testing.assert_allclose(result["mean"].values[0, i], drawn[:count].mean(), rtol=1e-13)
        np.testing.assert_allclose(result["variance"].values[0, i], drawn[:count].var(ddof=1), rtol=1e-12)


def test_outputs_of_ones_choice():
    cells = grid(n=[1.0, 100.0], x=[0.5, 1.0])
    every = run(TWO, cells, until_se=0.01)
    one = run(TWO, cells, until_se={"cosine": 0.01})
    assert (every["se"] <= 0.01).all()
    assert (one.sel(output="cosine")["se"] <= 0.01).all()
    assert one["trials"].sum() < every["trials"].sum()


def test_no_more_than_is_allowed():
    result = run(_waiting(), until_se=1e-9, trials=1_000)
    assert (result["trials"] == 1_000).all()
    assert result.attrs["trials_per_cell"] == 1_000
    few = run(_waiting(), until_se=1e-9, trials=10)
    assert (few["trials"] == 10).all()


def test_static_parameters():
    result = run(BOTH, sampler="dense", until_se=0.02)
    assert (result["se"] <= 0.02).all() and np.abs(result["z"]).max() < 4.5
    assert (result["trials"].sel(n=1) > 2 * result["trials"].sel(n=16)).all()


def test_what_is_no_number_ends():
    given = {f: getattr(MEAN, f) for f in MEAN.__dataclass_fields__}
    broken = Claim(**{**given, "samplers": dict(direct=lambda key, n, shift: jnp.nan * n)})
    result = run(broken, until_se=1e-3)
    assert np.isnan(result["mean"]).all() and (result["trials"] == 1024).all()


def test_the_bias_is_as_documented():
    """The mean of 4,000 cells is off by −skewness/√N standard errors, skewness 2 and N about 400; 6 σ from no bias at all."""
    cells = grid(rate=1.0, place=np.arange(4000.0))
    result = run(_waiting(), cells, until_se=0.05, seed=5)
    off = float((result["mean"] - 1).mean()) / 0.05
    expected = -2 / np.sqrt(float(result["trials"].mean()))
    assert abs(off - expected) < 4 / np.sqrt(4000)  # false alarm 6e-5
    assert abs(off) > 4 / np.sqrt(4000)


def _files(path):
    return {
        str(f.relative_to(path)): f.read_bytes()
        for f in sorted(path.rglob("*"))
        if f.is_file() and "provenance" not in f.parts
    }


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, stop):
    whole = run(_waiting(), until_se=0.005, store=tmp_path / "whole")
    assert len(list((tmp_path / "whole/tiles/count").glob("c.*"))) > 9
    write, left = Store.write, [stop]

    def stopped(self, chunk, values):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(self, chunk, values)

    monkeypatch.setattr(Store, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(_waiting(), until_se=0.005, store=tmp_path / "s")
    monkeypatch.setattr(Store, "write", write)
    partial = open_result(tmp_path / "s")
    assert 0 < partial["trials"].sum() < whole["trials"].sum() and partial.attrs["unfinished"]
    again = run(_waiting(), until_se=0.005, store=tmp_path / "s")
    assert whole.equals(again) and whole.equals(open_result(tmp_path / "s"))
    assert _files(tmp_path / "s") == _files(tmp_path / "whole")
    finished = run(_waiting(), until_se=0.005, store=tmp_path / "s")
    assert finished.equals(whole) and finished.attrs["compile_s"] == 0
    with pytest.raises(InputError, match="its until is"):
        run(_waiting(), until_se=0.01, store=tmp_path / "s")


def test_little_growth_means_more_rounds_and_the_same_draws(monkeypatch):
    """This also shows that the growth is limited: the slowest cell needs forty times the first trials."""
    rounds = []
    decided = plan_module.Plan.next
    monkeypatch.setattr(plan_module.Plan, "next", lambda *a: rounds.append(decided(*a)) or rounds[-1])
    once = run(_waiting(), until_se=0.01, keep_samples=True)
    quick, rounds[:] = len(rounds), []
    again = run(_waiting(), until_se=0.01, keep_samples=True, limits=Limits(growth=2))
    assert len(rounds) >= 6 and quick <= len(rounds) - 2  # 2⁵ < 40 ≤ 2⁶, 4² < 40 ≤ 4³
    assert (again["se"] <= 0.01).all()
    both = min(once.sizes["trial"], again.sizes["trial"])
    one, other = (r["samples"].values[..., :both] for r in (once, again))
    drawn = np.isfinite(one) & np.isfinite(other)
    assert drawn.sum() > 10_000
    np.testing.assert_array_equal(one[drawn], other[drawn])


@pytest.mark.thorough
def test_what_grows_beyond_the_memory_says_what_grew():
    with pytest.raises(InputError, match=r"memory: .* the trials that until_se = \{'value': 1e-06\} requires take"):
        run(_waiting(), until_se=1e-6, memory=2e7)


@pytest.mark.parametrize(
    ("until", "says"),
    [
        (0.0, r"until_se = 0\.0: must be a finite number > 0"),
        (-1, "until_se = -1: must be a finite number > 0"),
        (np.nan, "until_se = nan: must be"),
        (True, "until_se = True"),
        ("much", "until_se = 'much'"),
        ({"sin": 0.1}, "until_se: output 'sin' is unknown; did you mean 'sine'"),
    ],
)
def test_what_cannot_be_reached(until, says):
    with pytest.raises(InputError, match=says):
        run(TWO, until_se=until)
