"""The Amazon experiment: its numbers against a plain loop, the digits where no data are, and every bad argument."""

import numpy as np
import pytest

from experiments.alpha_lora.amazon import PAPER_TABLE_1, SENSITIVITY, sensitivity, with_paper
from rmtjax._errors import InputError
from rmtjax.datasets import amazon
from rmtjax.datasets.amazon import DOMAINS, find_data, load_pair
from rmtjax.datasets.digits import load_default
from rmtjax.transfer.domains import RULES, run_transfer
from rmtjax.transfer.estimator import AlphaTransferClassifier, ridge_classifier

DATA = find_data()
needs_data = pytest.mark.skipif(DATA is None, reason="no Amazon reviews under RMTJAX_DATA or ../shared/data")


@pytest.fixture
def no_data(monkeypatch):
    """As where nothing was downloaded."""
    monkeypatch.setattr(amazon, "find_data", lambda path=None: None)


@pytest.fixture
def folder(tmp_path):
    """Four small domains of six words, of which the first two tell the labels apart."""
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        for split, size in (("train", 60), ("test", 40)):
            y = rng.permutation(np.repeat([-1, 1], size // 2))
            counts = rng.poisson(1 + 2 * np.outer(y > 0, [1, 0, 0, 0, 0, 0]) + 2 * np.outer(y < 0, [0, 1, 0, 0, 0, 0]))
            lines = [
                f"{label} " + " ".join(f"{k}:{c}" for k, c in enumerate(row))
                for label, row in zip(y, counts, strict=True)
            ]
            (tmp_path / f"{domain}_{split}.svmlight").write_text("\n".join(lines) + "\n")
    return tmp_path


def check_against_the_estimator(result, pair, source_gamma, seed, k, labels):
    """Every number of one pair and draw, by the public estimator on the task's own arrays."""
    X, y = pair.target_sample(result.attrs["n"], seed)
    w = ridge_classifier(pair.source_X, pair.source_y, source_gamma)
    one = result.isel(pair=k).sel(seed=seed)
    for rule, alpha in labels.items():
        model = AlphaTransferClassifier(alpha, gamma=result.attrs["gamma"], source_coef=w).fit(X, y)
        accuracy = 100 * model.score(pair.test_X, pair.test_y)
        assert one["accuracy"].sel(rule=rule).item() == pytest.approx(accuracy)
        assert one["chosen_alpha"].sel(rule=rule).item() == pytest.approx(model.alpha_[0])
    scores = model.path(result["alpha"].values) @ pair.test_X.T * pair.test_y
    np.testing.assert_allclose(one["curve"], 100 * (scores > 0).mean(1))
    np.testing.assert_allclose(one["predicted"], 100 * model.predicted_accuracy(result["alpha"].values), rtol=1e-6)
    assert one["accuracy"].sel(rule="oracle").item() == one["curve"].max().item()
    assert one["accuracy"].sel(rule="source").item() == pytest.approx(100 * np.mean(pair.test_X @ w * pair.test_y > 0))


EVERY = {"alpha=0": 0.0, "alpha=1": 1.0, "alpha*": "optimal", "loo": "loo"}


def test_without_data_the_digits_are_used(no_data):
    result = run_transfer(seeds=[3, 7], alphas=[0.0, 0.5, 1.0], source_gamma=2.0)
    assert result.attrs["data"] == "digits" and result.attrs["n"] == 8 and "paper" not in result
    assert dict(result["accuracy"].sizes) == {"pair": 3, "seed": 2, "rule": len(RULES)}
    check_against_the_estimator(result, load_default(), 2.0, 7, 0, EVERY)
    assert np.isfinite(result["accuracy"]).all() and np.isfinite(result["beta"]).all()


def test_without_data_domains_cannot_be_asked_for(no_data):
    for asked in ({"source": "books"}, {"pairs": [("books", "dvd")]}):
        with pytest.raises(InputError, match="no Amazon folder is found; allowed: data"):
            run_transfer(**asked)
    with pytest.raises(InputError, match="no Amazon folder"):
        sensitivity()


def test_small_folder_every_pair(folder):
    seen = []
    result = run_transfer(folder, n=10, words=6, seeds=2, alphas=[0, 1, 2], progress=seen.append)
    assert [step.done for step in seen] == list(range(1, 17)) and {step.total for step in seen} == {16}
    assert list(result["pair"].values) == [f"{s}→{t}" for s, t in PAPER_TABLE_1]
    assert result["accuracy"].sel(rule="alpha=0").mean() > 65
    for k, pair in enumerate([("books", "dvd"), ("books", "electronics")]):
        check_against_the_estimator(result, load_pair(folder, *pair, words=6), 1.0, 1, k, EVERY)
    assert with_paper(result)["paper"].sel(pair="dvd→electronics", rule="alpha*") == 76.88
    assert np.isnan(with_paper(result)["paper_beta"].sel(pair="books→dvd"))


def test_pairs_are_chosen_by_source_target_or_list(folder):
    few = dict(n=5, words=6, seeds=1, alphas=[1.0])
    assert run_transfer(folder, source="dvd", **few).sizes["pair"] == 3
    assert list(run_transfer(folder, source="dvd", target="books", **few)["pair"].values) == ["dvd→books"]
    chosen = [("kitchen", "dvd"), ("books", "dvd")]
    assert list(run_transfer(folder, pairs=chosen, **few)["source"].values) == ["kitchen", "books"]


def test_one_draw_does_not_depend_on_the_others(folder):
    few = dict(n=8, words=6, alphas=[0.0, 1.0])
    alone = run_transfer(folder, source="books", target="dvd", seeds=[4], **few)
    among = run_transfer(folder, seeds=6, **few).sel(pair=["books→dvd"], seed=[4])
    np.testing.assert_allclose(alone["accuracy"], among["accuracy"])


def test_sensitivity_is_run_transfer_one_choice_at_a_time(folder):
    found = sensitivity(folder, n=10, words=6, seeds=2, choices={"n": [6, 10], "features": ["log"], "gamma": [3.0]})
    assert list(found["value"].values) == ["6", "10", "log", "3.0"]
    for k, change in enumerate([{"n": 6}, {}, {"features": "log"}, {"gamma": 3.0}]):
        same = run_transfer(folder, **{"n": 10, "words": 6, "seeds": 2, **change})
        np.testing.assert_allclose(found["accuracy"][k], same["accuracy"].mean(("pair", "seed")))
        away = ((same["accuracy"].mean("seed") - with_paper(same)["paper"]) ** 2).mean("pair", skipna=False) ** 0.5
        np.testing.assert_allclose(found["rms"][k], away)
    assert np.isfinite(found["rms"].sel(rule=["alpha=0", "alpha=1"])).all()
    assert np.isnan(found["rms"].sel(rule="alpha*")).all()


def test_the_papers_table_is_complete_but_for_what_our_copy_lost():
    assert len(PAPER_TABLE_1) == 12 and {s for s, _ in PAPER_TABLE_1} == set(DOMAINS)
    assert [pair for pair, row in PAPER_TABLE_1.items() if row.beta is None] == [("books", "dvd")]
    assert [row.optimal for row in PAPER_TABLE_1.values() if row.optimal is not None] == [76.88]
    # The target's own classifier is the same whatever the source.
    assert all(len({row.zero for (_, t), row in PAPER_TABLE_1.items() if t == target}) == 1 for target in DOMAINS)


@needs_data
def test_one_amazon_pair():
    result = run_transfer(DATA, source="electronics", target="kitchen", seeds=3, alphas=[0.0, 1.0, 2.0])
    check_against_the_estimator(result, load_pair(DATA, "electronics", "kitchen"), 1.0, 2, 0, EVERY)
    mean = result["accuracy"].mean("seed").isel(pair=0)
    # A reference run over 20 draws: 71.6 and 84.4, which scatter by 2 and by 0.6.
    assert mean.sel(rule="alpha=0").item() == pytest.approx(71.6, abs=4)
    assert mean.sel(rule="alpha=1").item() == pytest.approx(84.4, abs=1.5)
    assert result["beta"].item() == pytest.approx(0.88, abs=0.01) and result["beta_naive"] < 0.7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"source": "bokks"}, "domain 'bokks' is unknown; did you mean 'books'"),
        ({"target": "films"}, "domain 'films' is unknown"),
        ({"source": "dvd", "target": "dvd"}, "both 'dvd'"),
        ({"pairs": "some"}, "pairs = 'some': must be "),
        ({"pairs": [("books",)]}, "pairs = .*: must be "),
        ({"pairs": 3}, "pairs = 3: must be "),
        ({"pairs": [("books", "books")]}, "both 'books'"),
        ({"pairs": [("books", "dvd")], "target": "kitchen"}, "has no pair"),
        ({"pairs": []}, "has no pair"),
        ({"n": 1}, "n = 1: must be a whole number ≥ 2"),
        ({"n": 2.5}, "n = 2.5: must be "),
        ({"n": 61, "words": 6}, "n = 61 target samples cannot be drawn; allowed: 2 to 60"),
        ({"gamma": 0}, "gamma = 0: must be "),
        ({"source_gamma": -1}, "source_gamma = -1: must be "),
        ({"features": "tf"}, "features 'tf' is unknown"),
        ({"words": 0}, "words = 0: must be "),
        ({"words": 5001}, "words = 5001: must be "),
        ({"seeds": 0}, "seeds = 0: must be "),
        ({"seeds": []}, "seeds = .*: must be "),
        ({"seeds": [1, 1]}, "seeds = .* distinct seeds"),
        ({"seeds": [-1]}, "seeds = .*: must be "),
        ({"seeds": "five"}, "seeds = 'five': must be "),
        ({"alphas": []}, "alphas = .* at least one"),
        ({"alphas": [np.nan]}, "alphas = .* NaN"),
    ],
)
def test_bad_arguments_are_named(folder, arguments, said):
    with pytest.raises(InputError, match=said) as error:
        run_transfer(folder, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"gama": [1.0]}, "choice 'gama' is unknown; did you mean 'gamma'"),
        ({"n": []}, r"choices\['n'\] = \[\]: must be "),
        ({"features": "log"}, r"choices\['features'\] = 'log': must be "),
        ({}, "choices = {} is empty"),
        ({"n": [1]}, "n = 1: must be "),
        ({"gamma": [1.0, 0.0]}, "gamma = 0.0: must be "),
        ({"words": [9000]}, "words = 9000: must be "),
    ],
)
def test_bad_choices_are_named(folder, choices, said):
    with pytest.raises(InputError, match=said):
        sensitivity(folder, choices=choices)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        run_transfer(tmp_path / "nowhere")


def test_default_choices_hold_the_base():
    assert set(SENSITIVITY) == {"features", "words", "n", "gamma", "source_gamma"}
    assert 100 in SENSITIVITY["n"] and "counts" in SENSITIVITY["features"]
