"""The GLUE experiments make their tables and figures from the files of runs, whatever runs there are."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats

from .test_experiments import experiment

MODULES = [f"bert.encoder.layer.{i}.attention.self.{kind}" for i in range(3) for kind in ("query", "value")]


def result(task, method, seed, score, epochs=3):
    metric = "matthews" if task == "cola" else "accuracy"
    history = [
        {"step": 10 * k, "epoch": k, "loss": 1 / k, metric: score - 0.01 * (epochs - k)} for k in range(1, epochs + 1)
    ]
    alpha = {name: {"mean": 1 + 0.01 * i, "sd": 0.02, "min": 0.9, "max": 1.1} for i, name in enumerate(MODULES)}
    return {
        "settings": {"task": task, "adapter": method, "seed": seed, "epochs": epochs, "alpha": "alpha" in method,
                     "alpha_every": 5, "val_split": 1.0},
        "headline": metric, "last": score, "best": score, "best_epoch": epochs, "history": history,
        "alpha": alpha if "alpha" in method else {}, "seconds": 1.0, "made_with": {"device": "none"},
    }  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """Two tasks, five seeds, α better by known amounts; and the ablations of one."""
    random = np.random.default_rng(0)
    scores = {}
    folder = tmp_path / "glue"
    folder.mkdir()
    names = [f"{t}-{m}" for t in ("mrpc", "cola") for m in ("lora", "alpha-lora")]
    names += [f"mrpc-alpha-lora-T{t}" for t in (1, 20)] + ["mrpc-alpha-lora-split0.2", "mrpc-dora", "mrpc-alpha-dora"]
    for name in names:
        task, method = name.split("-", 1)
        scores[name] = 0.7 + 0.02 * random.standard_normal(5) + 0.03 * ("alpha" in name)
        for seed, score in enumerate(scores[name]):
            (folder / f"{name}-{seed}.json").write_text(json.dumps(result(task, method, seed, float(score))))
    return folder, scores


def run(name, folder, out, monkeypatch):
    module = experiment(name)
    module.main(["--runs", str(folder), "--out", str(out)])
    assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / "results" / f"{name}.json").read_text(encoding="utf-8"))["numbers"]


def test_table2_is_the_paired_comparison(runs, tmp_path, monkeypatch, capsys):
    folder, scores = runs
    rows = {row["task"]: row for row in run("glue_table2", folder, tmp_path, monkeypatch)["rows"]}
    assert set(rows) == {"MRPC", "CoLA"}
    for task, row in (("mrpc", rows["MRPC"]), ("cola", rows["CoLA"])):
        gain = 100 * (scores[f"{task}-alpha-lora"] - scores[f"{task}-lora"])
        np.testing.assert_allclose(row["gain"], [gain.mean(), gain.std(ddof=1) / np.sqrt(5)], rtol=1e-5)
        t = gain.mean() / (gain.std(ddof=1) / np.sqrt(5))
        assert row["p"] == pytest.approx(2 * stats.t.sf(abs(t), 4), rel=1e-5)
    assert rows["MRPC"]["paper"][1] == [89.46, 0.53] and rows["CoLA"]["paper"] is None
    assert "α-LoRA" in capsys.readouterr().out


def test_a_seed_that_one_method_lacks_is_left_out(runs, tmp_path, monkeypatch):
    folder, scores = runs
    (folder / "mrpc-lora-2.json").unlink()
    row = run("glue_table2", folder, tmp_path, monkeypatch)["rows"][0]
    kept = [0, 1, 3, 4]
    assert row["seeds"] == kept
    assert row["alpha_lora"][0] == pytest.approx(100 * scores["mrpc-alpha-lora"][kept].mean(), rel=1e-5)


def test_curves_and_alphas(runs, tmp_path, monkeypatch):
    folder, scores = runs
    curves = run("glue_figure4_curves", folder, tmp_path, monkeypatch)
    np.testing.assert_allclose(
        curves["cola-lora"]["mean"], 100 * (scores["cola-lora"].mean() - np.array([0.02, 0.01, 0])), rtol=1e-5
    )
    alphas = run("glue_figures7_9_alpha", folder, tmp_path, monkeypatch)
    assert alphas["mrpc-query"] == {"layer": [0, 1, 2], "mean": [1.0, 1.02, 1.04], "sd_of_rows": [0.02] * 3}


def test_ablations(runs, tmp_path, monkeypatch):
    folder, scores = runs
    numbers = run("glue_ablations", folder, tmp_path, monkeypatch)
    assert numbers["T"]["value"] == [1.0, 5.0, 20.0] and numbers["split"]["value"] == [0.2, 1.0]  # those of table2, too
    for i, name in enumerate(("mrpc-alpha-lora-T1", "mrpc-alpha-lora", "mrpc-alpha-lora-T20")):
        np.testing.assert_allclose(numbers["T"]["mean_se"][i][0], 100 * scores[name].mean(), rtol=1e-5)
    assert "DoRA" in numbers and "rsLoRA" not in numbers


def test_plans_name_every_run_once(monkeypatch):
    plans = importlib.import_module("experiments.alpha_lora.glue_runs").PLANS
    names = [f"{name}-{settings.seed}" for plan in plans.values() for seed in range(5) for name, settings in plan(seed)]
    assert len(names) == len(set(names))
    assert all(settings.checked() for plan in plans.values() for _, settings in plan(0))


# -- the study of intruders ----------------------------------------------------------------------------------------------


def study_run(name, seed, intruders, cosine, lost, learned=0.8):
    rank = 90.0 if name == "full" else 5.0 + 0.1 * seed
    spectra = {"intruders": intruders, "predicted": intruders + 0.5, "effective_rank": rank}
    stages = [
        {"task": task, "score": 0.8, "correlations": {"mrpc": score, task: score},
         "forgetting": {"cosine": cosine, "similarities_kept": 0.9},
         "spectra": {"adapted": spectra, "all": {**spectra, "intruders": intruders + 2, "frobenius": 9.0 - cosine**-2}}}
        for task, score in (("mrpc", learned), ("cola", learned * (1 - lost)))
    ]  # fmt: skip
    return {"name": name, "seed": seed, "sequence": {"mrpc": 3, "cola": 1}, "texts": 832, "stages": stages,
            "made_with": {"device": "none"}}  # fmt: skip


def test_study_says_which_claims_hold(tmp_path, monkeypatch, capsys):
    """Differences are of means over seeds; correlations are over the ways, of what did all tasks if they ask for that."""
    random = np.random.default_rng(0)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "pilot-full-rate0.1.json").write_text('{"last": 0.7}')
    counts = {"full": 0, "lora-r8": 12, "lora-r1": 4, "lora-r64": 10, "guarded-lora-r8": 1, "orthogonal-r8": 12}
    made = {}
    for name, count in counts.items():
        for seed in range(6 if name != "full" else 4):
            n = count + int(random.integers(0, 2))
            learned = 0.01 if name == "orthogonal-r8" else 0.8  # which has nothing to forget
            made[name, seed] = study_run(name, seed, n, 1 - 0.01 * n, 0.02 * n, learned)
            if seed == 3:  # one of the seeds has done the first task only, and would spoil what is lost if that counted
                made[name, seed] |= {"sequence": {"mrpc": 3}, "stages": made[name, seed]["stages"][:1]}
                made[name, seed]["stages"][0]["correlations"] = {"mrpc": 0.1}
            (folder / f"{name}-{seed}.json").write_text(json.dumps(made[name, seed]))
    found = run("intruder_study", folder, tmp_path, monkeypatch)
    assert found["tasks"] == ["MRPC", "CoLA"] and set(found["table"]) == set(counts)
    assert found["table"]["full"]["elsewhere"][0] == 2 and found["table"]["lora-r8"]["score"] == [80, 0]
    told = {one["claim"]: one for one in found["claims"]}
    verdicts = {claim: one["verdict"] for claim, one in told.items()}
    assert verdicts["LoRA plants intruders, full fine-tuning does not"] == "holds"
    assert verdicts["a low rank plants more than a high one"] == "contradicted"
    assert verdicts["full fine-tuning has the larger effective rank"] == "holds"
    assert verdicts["orthonormal factors plant fewer"] == "open"
    assert verdicts["an update below the threshold plants fewer"] == "holds"
    assert told["more intruders, more forgotten"]["spearman"] == pytest.approx(1)
    assert verdicts["more intruders, more of the earlier tasks lost by the end"] == "holds"
    lost = [0.02 * made["full", s]["stages"][0]["spectra"]["adapted"]["intruders"] for s in range(3)]
    full = found["table"]["full"]
    assert full["lost"][0] == pytest.approx(100 * np.mean(lost)) and full["learned_cola"][0] == pytest.approx(
        80 * (1 - np.mean(lost))
    )
    assert full["learned_mrpc"] == pytest.approx([80, 0])  # of the same seeds as what became of it
    assert (full["seeds"], full["seeds_of_all_tasks"]) == ([0, 1, 2, 3], [0, 1, 2])
    assert told["more intruders, more of the earlier tasks lost by the end"]["ways"] == len(counts) - 1
    assert [round(one["spearman"], 6) for one in found["controls"]] == [-1, -1]  # the norm falls here with what is lost
    assert not {"verdict", "p_holm"} & set(found["controls"][0])
    out = capsys.readouterr().out
    assert "contradicted: a low rank" in out and "comparison: a larger update, more forgotten (ρ = -1.00" in out
    # By hand: Welch's t, and Holm's factor for the smallest p.
    r1, r64 = (
        [made[name, s]["stages"][0]["spectra"]["adapted"]["intruders"] for s in range(6)]
        for name in ("lora-r1", "lora-r64")
    )
    one = told["a low rank plants more than a high one"]
    of_mean = [np.var(x, ddof=1) / 6 for x in (r1, r64)]
    assert one["difference"] == pytest.approx([np.mean(r1) - np.mean(r64), np.sqrt(sum(of_mean))])
    freedom = sum(of_mean) ** 2 / sum(v**2 / 5 for v in of_mean)
    assert one["p"] == pytest.approx(2 * stats.t.sf(abs(one["difference"][0]) / one["difference"][1], freedom))
    first = min(told.values(), key=lambda claim: claim["p"])
    assert first["p_holm"] == pytest.approx(len(told) * first["p"])
    other = made["full", 0] | {"sequence": {"mrpc": 1}}
    (folder / "full-0.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="are of different tasks or texts"):
        run("intruder_study", folder, tmp_path, monkeypatch)


def test_results_of_another_study_are_not_taken_for_this_one(tmp_path, monkeypatch):
    study = importlib.import_module("experiments.intruder_dimensions.intruder_study_runs")
    chosen = study.settings("lora-r8", "mrpc", 0, 1)
    told = {k: v for k, v in chosen.checked().to_dict().items() if k not in ("data", "model", "task", "epochs")}
    file = tmp_path / "lora-r8-0.json"
    file.write_text(json.dumps({"settings": told, "sequence": {"mrpc": 3}, "texts": 832}))
    study.check_same(file, chosen, {"mrpc": 3}, 832)
    for sequence, texts, rate in (({"mrpc": 1}, 832, None), ({"mrpc": 3}, 800, None), ({"mrpc": 3}, 832, 0.5)):
        asked = chosen if rate is None else dataclasses.replace(chosen, learning_rate=rate)
        with pytest.raises(SystemExit, match=r"lora-r8-0\.json is of another (sequence|texts|learning_rate); move"):
            study.check_same(file, asked, sequence, texts)


def test_embeddings_that_stay_keep_their_behaviour(monkeypatch):
    drift = importlib.import_module("experiments.intruder_dimensions.intruder_study_runs").drift
    x = np.random.default_rng(1).standard_normal((40, 16))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((16, 16)))[0]
    assert drift(x, x) == pytest.approx({"cosine": 1, "similarities_kept": 1})
    turned = drift(x, x @ turn)  # another basis: all similarities are as they were
    assert turned["similarities_kept"] == pytest.approx(1) and abs(turned["cosine"]) < 0.5


# -- and of what mending brings back -------------------------------------------------------------------------------------


def test_mitigation_beside_its_control(tmp_path, monkeypatch, capsys):
    """Per run: what mending changes at the least λ, and how much more of it than an update that is shrunk as far."""
    mitigation = importlib.import_module("experiments.intruder_dimensions.intruder_mitigation")
    random = np.random.default_rng(0)
    folder = tmp_path / "results/intruder-mitigation"
    folder.mkdir(parents=True)
    changed, beyond = [], []
    for name in ("lora-r8", "rslora-r8"):
        for seed in (2, 3):
            start, end, other = 40 + random.normal(), 30 + random.normal(), 33 + random.normal()
            changed.append(end - start)
            beyond.append(end - other)
            run = {"name": name, "seed": seed, "scales": [1.0, 0.5, 0.0], "made_with": {"device": "none"}}
            for way, last in (("mended", end), ("shrunk", other)):
                forgotten = (start, (start + last) / 2, last)
                run[way] = [
                    {"forgotten": f, "matthews": 50.0, "intruders": i}
                    for f, i in zip(forgotten, (6, 5, 0), strict=True)
                ]
            (folder / f"{name}-{seed}.json").write_text(json.dumps(run))
    mitigation.main(["--draw", "--out", str(tmp_path)])
    assert (tmp_path / "figures/intruder_mitigation.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "results/intruder_mitigation.json").read_text(encoding="utf-8"))["numbers"]
    for key, values in (("changed", changed), ("beyond", beyond)):
        assert found[f"forgotten_{key}"]["mean_se"] == pytest.approx([np.mean(values), stats.sem(values)])
        assert found[f"forgotten_{key}"]["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert found["matthews_changed"]["mean_se"] == [0, 0] and found["matthews_changed"]["p"] is None
    assert found["ways"]["lora-r8"]["seeds"] == [2, 3] and found["ways"]["lora-r8"]["mended"]["intruders"][1] == [5, 0]
    assert "forgotten, beyond at λ = 0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds no results"):
        mitigation.main(["--draw", "--out", str(tmp_path / "empty")])


def test_an_update_is_shrunk_evenly(tmp_path, monkeypatch):
    """By so much, weight by weight, whatever the names lead with, and in the weights' own precision."""
    evenly = importlib.import_module("experiments.intruder_dimensions.intruder_mitigation").evenly
    random = np.random.default_rng(1)
    base = {name: random.standard_normal((4, 3)).astype(np.float32) for name in ("a.weight", "b.weight")}
    tuned = {"bert.a.weight": base["a.weight"] + 1, "b.weight": base["b.weight"]}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/config.json").write_text("{}")
    save_file(tuned, tmp_path / "tuned/model.safetensors")
    evenly(base, tmp_path / "tuned", 0.25, tmp_path / "out")
    made = load_file(tmp_path / "out/model.safetensors")
    np.testing.assert_allclose(made["bert.a.weight"], base["a.weight"] + 0.25, rtol=1e-6)
    np.testing.assert_array_equal(made["b.weight"], base["b.weight"])
    assert made["b.weight"].dtype == np.float32 and (tmp_path / "out/config.json").exists()
