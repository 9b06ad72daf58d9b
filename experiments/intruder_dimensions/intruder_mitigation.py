"""Intruder Dimensions, §V: the effect of scaling intruders down on score and forgetting, beside a control.

Of the runs of `intruder_study_runs.py` whose weights are still in `runs/study`, the models after MRPC are mended: each intruder's
singular value is multiplied by λ. The control moves as far back in Frobenius norm, but all of the update evenly: W + t(W' − W).
If intruders are what makes a model forget, mending brings more back than the control does. Runs that
`results/intruder-mitigation/` holds are not measured again; `--draw` measures none.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.stats import ttest_1samp

from experiments._common import HERE
from experiments._glue import mean_se, record
from experiments.intruder_dimensions.intruder_study import LABELS, LOOKS
from experiments.intruder_dimensions.intruder_study_runs import THRESHOLD, TOP, drift, embeddings, score_with, settings
from rmtjax._files import write_json
from rmtjax._provenance import provenance
from rmtjax._startup import device_for_each_core, keep_programs
from rmtjax.datasets.glue import find_glue, load_glue
from rmtjax.intruders import mitigate, scan
from rmtjax.models import model_folder
from rmtjax.report.figures import new_figure, style

METHODS = ("lora-r8", "rslora-r8", "alpha-lora-r8")
SCALES = (0.5, 0.0)
"""λ; at 1 nothing changes."""


def evenly(base: dict[str, np.ndarray], tuned: Path, t: float, out: Path) -> None:
    """Return a copy of a tuned model with only the given share of its update."""
    shutil.copytree(tuned, out)
    weights = load_file(tuned / "model.safetensors")
    before = {name: base[name.removeprefix("bert.")] for name in weights}
    moved = {name: (before[name] + t * (x - before[name])).astype(x.dtype) for name, x in weights.items()}
    save_file(moved, out / "model.safetensors", metadata={"format": "pt"})


def measure(name: str, seed: int, tuned: Path, data: Path, texts: list[str], work: Path) -> dict[str, Any]:
    """Measure score, forgetting and intruders at every λ, mitigated and shrunk."""
    base = model_folder()
    before, weights = embeddings(base, texts), load_file(base / "model.safetensors")
    chosen = settings(name, "mrpc", seed, 1, data=str(data))
    found = scan("minilm", tuned, top_k=TOP, threshold_epsilon=THRESHOLD)
    planted = [s for one in found.layers for s, v in zip(one.values, one.verdicts, strict=True) if v == "intruder"]
    norm, of_intruders = np.sqrt(sum(one.update.frobenius**2 for one in found.layers)), np.linalg.norm(planted)

    def told(folder: Path) -> dict[str, float]:
        return {
            "matthews": 100 * score_with(folder, tuned, chosen, work / "scored"),
            "forgotten": 100 * (1 - drift(before, embeddings(folder, texts))["cosine"]),
            "intruders": scan("minilm", folder, top_k=TOP, threshold_epsilon=THRESHOLD).intruders,
        }

    tuned_itself = told(tuned)
    ways: dict[str, list[dict[str, float]]] = {"mended": [tuned_itself], "shrunk": [tuned_itself]}
    for scale in SCALES:
        t = 1 - (1 - scale) * of_intruders / norm
        for way in ways:
            folder = work / way
            if way == "mended":
                mitigate("minilm", tuned, folder, mitigation_lambda=scale, top_k=TOP, threshold_epsilon=THRESHOLD)
            else:
                evenly(weights, tuned, t, folder)
            ways[way].append(told(folder))
            shutil.rmtree(folder)
    return {
        "name": name, "seed": seed, "scales": [1.0, *SCALES], "norm": norm, "norm_of_intruders": of_intruders,
        "texts": len(texts), **ways, "made_with": provenance(jax.local_devices(), "flax"),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Do the missing measurements and draw all of them."""
    parser = argparse.ArgumentParser(prog=Path(__file__).stem, description=__doc__.splitlines()[0])
    parser.add_argument(
        "--texts", type=int, default=832, help="sentences to measure forgetting by (default: %(default)s)"
    )
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for figures/, results/ and runs/ (default: this one)"
    )
    args = parser.parse_args(argv)
    args.name, args.about = Path(__file__).stem, __doc__.splitlines()[0]
    results, runs = args.out / "results" / "intruder-mitigation", args.out / "runs" / "study"
    data = find_glue()
    if not args.draw and data is not None:
        keep_programs()
        device_for_each_core()
        texts = load_glue("sst2", data, "dev").first[: args.texts]
        results.mkdir(parents=True, exist_ok=True)
        for tuned in sorted(runs.glob("*/0-mrpc-merged")):
            name, _, seed = tuned.parent.name.rpartition("-")
            file = results / f"{name}-{seed}.json"
            if name in METHODS and not file.exists() and (tuned / "head.safetensors").exists():
                write_json(file, measure(name, int(seed), tuned, data, texts, tuned.parent / "mitigation"))
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(results.glob("*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(run["name"], {})[run["seed"]] = run
    if not found:
        raise SystemExit(f"{results} holds no results: run intruder_study_runs.py first, here, and then this")
    draw(args, found)


def draw(args: argparse.Namespace, results: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Draw the figure and the table of means, with the gain of mitigation over the control."""
    every = [run for of in results.values() for run in of.values()]
    scales = every[0]["scales"]

    def curves(runs: Any, way: str, measure: str) -> np.ndarray:
        return np.array([[point[measure] for point in run[way]] for run in runs], float)

    numbers: dict[str, Any] = {"scales": scales, "ways": {}}
    with style():
        figure, panels = new_figure(1, 2, size=(9.2, 4.2), sharex=True)
        for name in (name for name in METHODS if name in results):
            of, row = list(results[name].values()), {"label": LABELS[name], "seeds": sorted(results[name])}
            colour, marker = LOOKS[name]
            for way, line in (("mended", "-"), ("shrunk", ":")):
                row[way] = {
                    what: [mean_se(column) for column in curves(of, way, what).T]
                    for what in ("matthews", "forgotten", "intruders")
                }
                for axes, what in zip(panels, ("forgotten", "matthews"), strict=True):
                    mean, error = np.array(row[way][what], float).T
                    label = (
                        f"{LABELS[name]}, {'intruders × λ' if way == 'mended' else 'the whole update shrunk as far'}"
                    )
                    axes.plot(scales, mean, line, color=colour, marker=marker, ms=6, label=label)
                    if way == "mended":
                        axes.fill_between(scales, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.12, lw=0)
            numbers["ways"][name] = row
        panels[0].set_ylabel("% of the embeddings' cosine lost")
        panels[0].set_title("text never trained on")
        panels[1].set_ylabel("Matthews correlation, %")
        panels[1].set_title("MRPC")
        for axes in panels:
            axes.set_xlabel("λ")
        panels[0].invert_xaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    # Per run, at the smallest λ: the effect of mitigation, and its excess over that of the control.
    for what in ("forgotten", "matthews"):
        mended, shrunk = (curves(every, way, what) for way in ("mended", "shrunk"))
        for key, difference in (("changed", mended[:, -1] - mended[:, 0]), ("beyond", mended[:, -1] - shrunk[:, -1])):
            p = float(ttest_1samp(difference, 0).pvalue) if len(difference) > 1 and np.ptp(difference) else float("nan")
            numbers[f"{what}_{key}"] = {"mean_se": mean_se(difference), "p": p, "runs": len(difference)}
            mean, error = mean_se(difference)
            print(
                f"{what}, {key} at λ = {scales[-1]:g}: {mean:+.2f} ± {error:.2f} over {len(difference)} runs, p = {p:.2g}"
            )
    record(args, figure, numbers, results)


if __name__ == "__main__":
    main()
