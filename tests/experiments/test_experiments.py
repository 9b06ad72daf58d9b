"""Every experiment runs, and leaves a figure and finite numbers; any result can be drawn."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from rmtjax._errors import InputError
from rmtjax.montecarlo import Claim, grid, real, run, size, zipped
from rmtjax.report.figures import law_against_monte_carlo, save
from rmtjax.report.labels import plain_symbol, with_subscripts

FOLDER = Path(__file__).parents[2] / "experiments"


def experiment(name):
    """Return the module of an experiment, whichever paper it is of."""
    [file] = FOLDER.glob(f"*/{name}.py")
    return importlib.import_module(f"experiments.{file.parent.name}.{name}")


TRIALS = {
    "intruder_figure2_profile": 3,
    "intruder_figure3_similarity": 3,
    "appendix_c_arbitrary_source": 16,
    "appendix_d_three_sources": 16,
    "convergence": 16,
    "figure1_accuracy_vs_alpha": 16,
    "figure2_optimal_alpha_vs_beta": 16,
    "figure6_decision_function": 16,
    "intruder_figure1_outlier": 16,
    "intruder_law": 16,
    "large_study": 16,
    "monotonicity": 16,
    "rank_against_strength": 2,
}
SMALLER = {
    "intruder_figure1_outlier": dict(N=20_000),
    "intruder_law": dict(SIZES={(64,): 1.0}, STRENGTHS=np.array([1.0, 2.0]), PARTS=(), windows=dict),
    "large_study": dict(P=np.array([1e2, 1e6]), TARGET=np.array([0.5, 1.0]), BETA=[0.5], GAMMA=[1.0]),
    "intruder_figure2_profile": dict(ROWS=60, COLUMNS=120, FIRST=20),
    "rank_against_strength": dict(ROWS=64, COLUMNS=64, RANKS=(1, 4)),
}
"""Replacements in experiments that fewer trials alone do not make small."""


def numbers(value) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


@pytest.mark.first(1)
@pytest.mark.parametrize("name", TRIALS)
def test_experiment_leaves_a_figure_and_finite_numbers(name, tmp_path, monkeypatch, capsys):
    module = experiment(name)
    assert module.__doc__.startswith(("α-LoRA, ", "Intruder Dimensions, "))

    for attribute, value in SMALLER.get(name, {}).items():
        monkeypatch.setattr(module, attribute, value)

    module.main(["--trials", f"{TRIALS[name]}", "--seed", "3", "--out", str(tmp_path)])

    image = (tmp_path / "figures" / f"{name}.png").read_bytes()
    assert image.startswith(b"\x89PNG") and 10_000 < len(image) < 150_000
    report = json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert report["experiment"] == name
    assert report["provenance"]["seed"] == 3 and report["provenance"]["versions"] and report["provenance"]["device"]
    found = numbers(report["numbers"])
    assert found and all(map(math.isfinite, found))
    if name == "monotonicity":
        assert report["numbers"]["violations_at_fixed_mu_beta"] == 0
        assert report["numbers"]["violations_at_fixed_mu_perp"] > report["numbers"]["settings"] / 3
        assert report["numbers"]["example"]["z_of_drop"] > 10
    for one in report["runs"].values():
        assert one["provenance"]["seed"] == 3
        for cell in one["cells"]:
            for output in cell.get("outputs", {"": cell}).values():
                assert math.isfinite(output["mean"]) and math.isfinite(output["se"]) and math.isfinite(output["law"])


def test_arguments_that_cannot_be_used_are_named(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("experiments.alpha_lora.convergence").main(["--trials", "1"])
    assert "--trials 1: must be at least 2" in capsys.readouterr().err


def test_slope_is_recovered_from_exact_powers(monkeypatch):
    convergence = importlib.import_module("experiments.alpha_lora.convergence")
    bias = 3.0 / convergence.P
    fit, error = convergence.slope(convergence.P, bias, 0.01 * bias)
    assert fit == pytest.approx(-1, abs=1e-12) and 0 < error < 0.01
    fit, _ = convergence.power_law(convergence.P, bias, 0.01 * bias)
    assert fit == pytest.approx(-1, abs=1e-6)


SHAPES = {
    "scalar only": grid(a=1.0, b=2.0, c=3.0),
    "one value on an axis": grid(a=[1.0], b=2.0, c=3.0),
    "one axis": grid(a=np.linspace(0, 1, 7), b=2.0, c=3.0),
    "one axis over decades": grid(a=[1.0, 1e3, 1e9], b=2.0, c=3.0),
    "axes that move together": grid(zipped(a=[1.0, 1e3, 1e6], b=[2.0, 2e3, 2e6]), c=3.0),
    "an axis that repeats and turns back": grid(zipped(a=[3.0, 1.0, 3.0], b=[1.0, 2.0, 3.0]), c=[0.0, 1.0]),
    "two axes": grid(a=np.linspace(0, 1, 7), b=[1.0, 2.0, 3.0], c=3.0),
    "three axes, more panels than fit": grid(a=np.linspace(0, 1, 9), b=np.linspace(0, 1, 8), c=np.linspace(0, 1, 7)),
}


def normal_claim(outputs: tuple[str, ...], scatter: float = 1.0) -> Claim:
    """Normal variables of mean a + b + c."""

    def law(a, b, c):
        return {name: i + a + b + c for i, name in enumerate(outputs)}

    def draw(key, a, b, c):
        return {name: value + scatter * jax.random.normal(key) for name, value in law(a, b, c).items()}

    params = dict(a=real("alignment β of μ_β"), b=real(), c=real("c"))
    return Claim("normal", "x", "nowhere", params, law, {"direct": draw}, grid(a=0.0, b=0.0, c=0.0))


@pytest.mark.first(2)
@pytest.mark.parametrize("outputs", [("value",), ("m0", "m1", "v0", "v1", "v2", "v3", "v4")], ids=["one", "seven"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_result_can_be_drawn(shape, outputs, tmp_path):
    claim = normal_claim(outputs)
    result = run(claim, SHAPES[shape], trials=16)
    figure = law_against_monte_carlo(result, claim=claim)
    seen = [axes for axes in figure.axes if axes.get_visible()]
    panels = result["mean"].sizes["output"] * int(
        np.prod(sorted(s for d, s in result.sizes.items() if d != "output")[:-2])
    )
    assert len(seen) == 2 * min(6, panels)
    assert save(figure, tmp_path / "new" / "figure.png").stat().st_size > 5_000


def test_points_and_lines_are_the_result():
    claim = normal_claim(("value",))
    result = run(claim, SHAPES["one axis"], trials=64)
    above, below = law_against_monte_carlo(result).axes
    line, points = above.get_lines()[0], above.containers[0][0]
    np.testing.assert_allclose(line.get_ydata(), result["law"].values[0])
    np.testing.assert_allclose(points.get_ydata(), result["mean"].values[0])
    half = above.containers[0][2][0].get_segments()[0]
    assert half[1, 1] - half[0, 1] == pytest.approx(4 * float(result["se"][0, 0]))
    assert any(
        np.allclose(drawn.get_ydata(), result["z"].values[0])
        for drawn in below.get_lines()
        if len(drawn.get_ydata()) == 7
    )


def test_figures_judge_beyond_the_allowance_as_verdicts_do():
    claim = dataclasses.replace(normal_claim(("value",)), bias_bound=lambda a, b, c: 0.2 + 0 * a)
    result = run(claim, SHAPES["one axis"], trials=64)
    drawn = [line.get_ydata() for line in law_against_monte_carlo(result, claim=claim).axes[1].get_lines()]
    gap = (result["mean"] - result["law"]).values[0]
    wanted = np.sign(gap) * np.maximum(np.abs(gap) - 0.2, 0) / result["se"].values[0]
    assert any(len(y) == 7 and np.allclose(y, wanted) for y in drawn)
    assert not np.allclose(wanted, result["z"].values[0])


@pytest.mark.parametrize("sizes,apart", [([1, 2, 4], True), ([10, 100, 1000], False)])
def test_laws_along_whole_numbers_are_asked_at_whole_numbers_alone(sizes, apart):
    asked = []

    def law(N):
        asked.extend(np.ravel(N).tolist())
        return {"value": 1 / N}

    def draw(key, N):
        return {"value": 1 / N + jax.random.normal(key)}

    claim = Claim("whole", "x", "nowhere", {"N": size()}, law, {"direct": draw}, grid(N=sizes))
    line = law_against_monte_carlo(run(claim, trials=16), claim=claim).axes[0].get_lines()[0]
    assert all(round(N) == N for N in asked)
    if apart:
        assert line.get_xdata().tolist() == sizes and line.get_linestyle() == "None"
    else:
        assert len(line.get_xdata()) > 100
        np.testing.assert_allclose(line.get_ydata(), 1 / line.get_xdata())


def test_axes_and_output_are_chosen():
    result = run(normal_claim(("m0", "m1")), SHAPES["two axes"], trials=16)
    figure = law_against_monte_carlo(result, "b", "a", output="m1", title="chosen")
    above = figure.axes[0]
    assert figure.get_suptitle() == "chosen" and above.get_ylabel() == "m1" and len(above.containers) == 7


def test_a_law_that_is_wrong_without_scatter_is_drawn_at_the_edge():
    claim = normal_claim(("value",), scatter=0.0)
    result = run(claim, SHAPES["one axis"], trials=16)
    result["z"][0, 3] = np.inf
    below = law_against_monte_carlo(result).axes[1]
    assert any(drawn.get_marker() == "^" and len(drawn.get_xdata()) == 1 for drawn in below.get_lines())


def test_the_worst_panel_is_among_those_shown():
    result = run(normal_claim(("value",)), SHAPES["three axes, more panels than fit"], trials=16)
    result["z"][0, 2, 3, 3] = 40.0  # the axis of panels is the third
    titles = [axes.get_title(loc="left") for axes in law_against_monte_carlo(result).axes]
    assert "c = 0.5" in titles


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(x="aa"), "x: axis 'aa' is unknown; did you mean 'a'"),
        (dict(hue="d"), "hue: axis 'd' is unknown"),
        (dict(x="a", hue="a"), "must be two different axes"),
        (dict(output="valu"), "output 'valu' is unknown; did you mean 'value'"),
    ],
)
def test_what_cannot_be_drawn_is_named(asked, message):
    result = run(normal_claim(("value",)), SHAPES["two axes"], trials=2)
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        law_against_monte_carlo(result, **asked)


def test_a_figure_is_the_same_file_twice_and_needs_a_known_suffix(tmp_path):
    result = run(normal_claim(("value",)), SHAPES["one axis"], trials=2)
    files = [save(law_against_monte_carlo(result), tmp_path / f"{i}.png").read_bytes() for i in range(2)]
    assert files[0] == files[1]
    with pytest.raises(InputError, match="the suffix must be one of"):
        save(law_against_monte_carlo(result), tmp_path / "figure.doc")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpha", "α"),
        ("gamma_source", r"$γ_{\mathrm{source}}$"),
        ("mu_perp", "μ⊥"),
        ("alpha_star", "α*"),
        ("N", "N"),
        ("cosine", "cosine"),
    ],
)
def test_symbols(name, expected):
    assert with_subscripts(plain_symbol(name)) == expected
