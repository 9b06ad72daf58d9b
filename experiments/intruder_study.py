"""Intruder Dimensions: intruders, score and forgetting of every way to fine-tune, on a real model and real tasks.

Reads the runs of `intruder_study_runs.py`. Which of the paper's claims hold on this model is computed from them and written
beside the table. A claim that one way has more of something than another is tested by the differences over seeds (Student's t,
one-sided), one that two things go together by Spearman's correlation over the ways' means: it holds at 5 %, is contradicted
if its opposite does, and is open else.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from _glue import NAMES, mean_se, record
from scipy.stats import spearmanr, ttest_1samp

from rmtjax.report.figures import PALETTE, new_figure, style

HERE = Path(__file__).parent
CLAIMS = {
    "LoRA plants intruders, full fine-tuning does not": ("lora-r8", "full", "intruders"),
    "a low rank plants more than a high one": ("lora-r1", "lora-r64", "intruders"),
    "full fine-tuning has the larger effective rank": ("full", "lora-r8", "effective_rank"),
    "orthonormal factors raise the effective rank": ("orthogonal-r8", "lora-r8", "effective_rank"),
    "orthonormal factors plant fewer": ("lora-r8", "orthogonal-r8", "intruders"),
    "the additive spectral adapter plants fewer": ("lora-r8", "spectral-additive-r8", "intruders"),
    "the rotational spectral adapter plants fewer": ("lora-r8", "spectral-rotational-r8", "intruders"),
    "an update below the threshold plants fewer": ("lora-r8", "guarded-lora-r8", "intruders"),
    "LoRA of rank 1 forgets more than full fine-tuning": ("lora-r1", "full", "forgotten"),
}
"""What is said, and of which two ways the first is to have more of what."""
TOGETHER = {
    "more intruders, more forgotten": ("intruders", "forgotten"),
    "more intruders, more of the first task lost by the end": ("intruders", "score_lost"),
}
"""What is said to go together, over the ways."""


def numbers_of(run: dict[str, Any]) -> dict[str, float]:
    """What is compared of a run: after its first task, and after its last."""
    first, last = run["stages"][0], run["stages"][-1]
    task = first["task"]
    return {
        "score": 100 * first["scores"][task],
        "intruders": first["spectra"]["adapted"]["intruders"],
        "predicted": first["spectra"]["adapted"]["predicted"],
        "elsewhere": first["spectra"]["all"]["intruders"] - first["spectra"]["adapted"]["intruders"],
        "effective_rank": first["spectra"]["adapted"]["effective_rank"],
        "forgotten": 100 * (1 - first["forgetting"]["cosine"]),
        "similarities_lost": 100 * (1 - first["forgetting"]["similarities_kept"]),
        "intruders_at_the_end": last["spectra"]["adapted"]["intruders"],
        "score_lost": 100 * (first["scores"][task] - last["scores"][task]),
        "forgotten_at_the_end": 100 * (1 - last["forgetting"]["cosine"]),
    }


def gather(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Runs by way and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        if "stages" in run:
            found[run["name"]][run["seed"]] = run
    if not found:
        raise SystemExit(f"{folder} holds no results: run intruder_study_runs.py first")
    return dict(found)


def verdict(p: float) -> str:
    """Of a one-sided p-value."""
    return "holds" if p < 0.05 else "contradicted" if p > 0.95 else "open"


def claims(values: dict[str, dict[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """Each claim with the paired difference over seeds or the correlation over ways, p and verdict."""
    told: list[dict[str, Any]] = []
    for text, (more, less, what) in CLAIMS.items():
        both = sorted(set(values.get(more, {})) & set(values.get(less, {})))
        if len(both) < 2:
            continue
        differences = np.array([values[more][s][what] - values[less][s][what] for s in both], float)
        if np.ptp(differences) > 0:
            p = float(ttest_1samp(differences, 0, alternative="greater").pvalue)
        else:  # counts may differ by the same in all seeds: how often would all signs be this one?
            p = {1.0: 0.5 ** len(both), 0.0: 0.5, -1.0: 1 - 0.5 ** len(both)}[float(np.sign(differences[0]))]
        told.append(
            {"claim": text, "of": what, "more": more, "less": less, "difference": mean_se(differences), "p": p,
             "seeds": both, "verdict": verdict(p)}
        )  # fmt: skip
    means = [
        {what: np.mean([v[what] for v in of.values()]) for what in ("intruders", "forgotten", "score_lost")}
        for of in values.values()
    ]
    for text, (a, b) in TOGETHER.items():
        pairs = np.array([(v[a], v[b]) for v in means], float)
        if len(pairs) > 3 and np.ptp(pairs, axis=0).all():
            found = spearmanr(*pairs.T, alternative="greater")
            told.append(
                {"claim": text, "of": f"{a}, {b}", "spearman": float(found.statistic), "p": float(found.pvalue),
                 "ways": len(pairs), "verdict": verdict(found.pvalue)}
            )  # fmt: skip
    return told


def main(argv: list[str] | None = None) -> None:
    """Tabulate, draw, and say what holds."""
    parser = argparse.ArgumentParser(prog=Path(__file__).stem, description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=HERE / "results" / "intruder-study", help="files of runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for figures/ and results/ (default: this one)")
    args = parser.parse_args(argv)
    args.name, args.about = Path(__file__).stem, __doc__.splitlines()[0]
    found = gather(args.runs)
    values = {name: {seed: numbers_of(run) for seed, run in of.items()} for name, of in found.items()}
    table = {
        name: {
            "seeds": sorted(of),
            **{what: mean_se([v[what] for v in of.values()]) for what in next(iter(of.values()))},
        }
        for name, of in values.items()
    }
    some = next(iter(next(iter(found.values())).values()))
    tasks = [NAMES[stage["task"]] for stage in some["stages"]]
    with style():
        figure, panels = new_figure(1, 2, size=(9.2, 4.4))
        for i, (name, row) in enumerate(table.items()):
            look = {
                "color": PALETTE[i % len(PALETTE)],
                "marker": "osD^v<>Pp*"[i % 10],
                "ms": 6,
                "capsize": 2,
                "ls": "none",
            }
            for axes, what in zip(panels, ("forgotten", "score_lost"), strict=True):
                (x, dx), (y, dy) = row["intruders"], row[what]
                axes.errorbar(x, y, xerr=2 * np.nan_to_num(dx), yerr=2 * np.nan_to_num(dy), label=name, **look)
        for axes in panels:
            axes.set_xlabel(f"intruders in the adapted layers after {tasks[0]}")
        panels[0].set_ylabel("% of cosine with the pre-trained embeddings lost")
        panels[0].set_title(f"text never trained on, after {tasks[0]}")
        panels[1].set_ylabel(f"points of {tasks[0]} lost")
        panels[1].set_title(f"{tasks[0]} after {' and '.join(tasks[1:])}")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    told = claims(values)
    record(args, figure, {"tasks": tasks, "table": table, "claims": told}, found)
    for name, row in table.items():
        cells = [
            f"{what} {row[what][0]:.2f} ± {row[what][1]:.2f}"
            for what in ("score", "intruders", "forgotten", "score_lost")
        ]
        print(f"{name:24s} {'  '.join(cells)}")
    for one in told:
        number = (
            f"{one['difference'][0]:+.2f} ± {one['difference'][1]:.2f}"
            if "difference" in one
            else f"ρ = {one['spearman']:+.2f}"
        )
        print(f"{one['verdict']}: {one['claim']} ({number}, p = {one['p']:.3f})")


if __name__ == "__main__":
    main()
