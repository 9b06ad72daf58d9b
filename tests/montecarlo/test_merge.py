"""Results of several seeds put together; what a run would take."""

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.montecarlo import Limits, Run, estimate, grid, merge_results, open_result, run, write_result
from rmtjax.montecarlo.store import Store

from .helpers import BOTH, MEAN, TWO
from .test_until import _waiting

CELLS = grid(n=[1.0, 2.0], x=[0.5, 1.0])
KEPT = dict(covariance=True, histogram=[-0.5, 0.0, 0.5], keep_samples=True)


@pytest.fixture(scope="module")
def parts():
    return [run(TWO, CELLS, trials=trials, seed=seed, **KEPT) for seed, trials in ((1, 300), (2, 1100), (7, 2))]


def test_merged_results_are_those_of_all_trials(parts):
    merged = merge_results(parts)
    drawn = np.concatenate([part["samples"].values for part in parts], -1)
    assert (merged["trials"] == 1402).all()
    np.testing.assert_array_equal(merged["samples"], drawn)
    np.testing.assert_allclose(merged["mean"], drawn.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(merged["variance"], drawn.var(-1, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(merged["se"], drawn.std(-1, ddof=1) / np.sqrt(1402), rtol=1e-12)
    np.testing.assert_allclose(merged["z"], (merged["mean"] - merged["law"]) / merged["se"], rtol=1e-12)
    np.testing.assert_array_equal(merged["min"], drawn.min(-1))
    np.testing.assert_array_equal(merged["max"], drawn.max(-1))
    for at in np.ndindex(2, 2):
        found = merged["covariance"].values[:, :, *at]
        np.testing.assert_allclose(found, np.cov(drawn[:, *at]), rtol=1e-11)
    assert (merged["histogram"].sum("bin") == 1402).all()
    assert merged.attrs["seed"] == [1, 2, 7] and merged.attrs["equation"] == TWO.equation
    assert merged["n"].equals(parts[0]["n"]) and merged["mean"].attrs == parts[0]["mean"].attrs


def test_in_any_order_and_in_steps(parts):
    one, other = merge_results(parts), merge_results([merge_results(parts[1:]), parts[0]])
    assert other.attrs["seed"] == [2, 7, 1]
    for name in ("mean", "variance", "covariance", "histogram", "min", "max"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-12)


def test_unfinished_ones_count_with_what_they_have(tmp_path, monkeypatch):
    """If a cell has no trial in one result, only the others' trials count."""
    write, left = Store.write, [4]

    def stopped(self, chunk, values):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(self, chunk, values)

    monkeypatch.setattr(Store, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(MEAN, trials=3000, seed=1, store=tmp_path / "s", limits=Limits(short=10_000))
    part, whole = open_result(tmp_path / "s"), run(MEAN, trials=3000, seed=2)
    merged = merge_results([part, whole])
    assert merged["trials"].equals((part["trials"] + whole["trials"]).assign_attrs(whole["trials"].attrs))
    alone = part["trials"] == 0
    assert 0 < alone.sum() < alone.size
    for name in ("mean", "variance", "se", "z", "min", "max"):
        assert np.isfinite(merged[name]).all()
        np.testing.assert_allclose(merged[name].where(alone), whole[name].where(alone), rtol=1e-12)
    assert "unfinished" not in merged.attrs


def test_kept_and_opened(parts, tmp_path):
    merged = merge_results(parts)
    write_result(tmp_path / "m", merged)
    opened = open_result(tmp_path / "m")
    assert merged.equals(opened) and opened.attrs == merged.attrs
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(InputError, match="already exists"):
        write_result(tmp_path / "m", merged)
    with pytest.raises(InputError, match="holds a different run"):
        run(TWO, CELLS, trials=10, store=tmp_path / "m")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_result(tmp_path / "file" / "m", merged)


def test_what_does_not_belong_together(parts):
    with pytest.raises(InputError, match="give at least two"):
        merge_results(parts[:1])
    with pytest.raises(InputError, match="seed = 1 is in two results"):
        merge_results([parts[0], parts[1], parts[0]])
    with pytest.raises(InputError, match=r"results\[1\] is of claim 'mean', results\[0\] of 'characteristic-function'"):
        merge_results([parts[0], run(MEAN, trials=10, seed=3)])
    with pytest.raises(InputError, match=r"results\[1\] has different values of x"):
        merge_results([parts[0], run(TWO, grid(n=[1.0, 2.0], x=[0.5, 1.1]), trials=10, seed=3, **KEPT)])
    with pytest.raises(InputError, match="covariance, histogram, samples is not in all results"):
        merge_results([parts[0], run(TWO, CELLS, trials=10, seed=3)])
    with pytest.raises(InputError, match="of method 'dense', results"):
        merge_results([run(BOTH, trials=10, seed=3), run(BOTH, trials=10, seed=4, sampler="dense")])


def test_an_estimate_is_of_the_run_and_leaves_nothing(tmp_path):
    planned = Run(BOTH, sampler="dense", trials=5_000, store=tmp_path / "s")
    found = estimate(planned, seconds=0.2)
    assert (found.cells, found.trials, found.done, found.programs) == (6, 30_000, 0, 3)
    assert found.seconds > 0 and found.compile_s >= 0 and found.workers >= 1
    blocks = 6 * 20  # of 256 trials
    assert 8 * 5 * blocks <= min(found.memory, found.stored)
    planned.discard()
    assert not (tmp_path / "s").exists()
    run(BOTH, sampler="dense", trials=5_000, store=tmp_path / "real")
    real = sum(file.stat().st_size for file in (tmp_path / "real").rglob("*") if file.is_file())
    assert 0.5 < found.stored / real < 2
    again = Run(BOTH, sampler="dense", trials=5_000)
    estimate(again, seconds=0.1)
    assert again.execute().equals(run(BOTH, sampler="dense", trials=5_000))


def test_an_estimate_of_what_is_left(tmp_path):
    run(MEAN, trials=5_000, store=tmp_path / "s")
    (tmp_path / "s/tiles/count/c.0.0").unlink()
    found = estimate(Run(MEAN, trials=5_000, store=tmp_path / "s"), seconds=0.1)
    assert found.trials == 30_000 and 0 <= found.done < 30_000
    run(MEAN, trials=5_000, store=tmp_path / "s")
    found = estimate(Run(MEAN, trials=5_000, store=tmp_path / "s"))
    assert (found.done, found.seconds, found.programs) == (30_000, 0.0, 0)


def test_an_estimate_of_a_standard_error():
    claim = _waiting()
    found = estimate(Run(claim, until_se=0.01), seconds=0.1)
    drawn = float(run(claim, until_se=0.01)["trials"].sum())
    assert 0.7 < found.trials / drawn < 1.4
    capped = estimate(Run(claim, until_se=1e-9, trials=2_000), seconds=0.1)
    assert capped.trials <= 8_000
