"""Intruder Dimensions: intruders, score and forgetting of every way to fine-tune, on a real model and real tasks.

Reads the runs of `intruder_study_runs.py`. Which of the paper's claims hold on this model is computed from them and written
beside the table: a difference of means over seeds with its standard error, or Spearman's correlation over all runs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from _glue import NAMES, mean_se, record
from scipy.stats import spearmanr

from rmtjax.report.figures import PALETTE, new_figure, style

HERE = Path(__file__).parent
CLAIMS = {
    "LoRA plants intruders, full fine-tuning does not": ("lora-r8", "full", "intruders"),
    "a low rank plants more than a high one": ("lora-r1", "lora-r64", "intruders"),
    "full fine-tuning has the larger effective rank": ("full", "lora-r8", "effective_rank"),
    "LoRA of rank 1 forgets more than full fine-tuning": ("lora-r1", "full", "forgotten"),
    "an update below the threshold plants none": ("lora-r8", "guarded-lora-r8", "intruders"),
}
"""What is said, and of which two ways the first is to have more of what."""


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


def claims(values: dict[str, dict[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """Each claim with the paired difference over seeds, and the correlations."""
    told = []
    for text, (more, less, what) in CLAIMS.items():
        both = sorted(set(values.get(more, {})) & set(values.get(less, {})))
        if not both:
            continue
        mean, se = mean_se([values[more][s][what] - values[less][s][what] for s in both])
        holds = mean > 2 * se if len(both) > 1 else mean > 0
        told.append({"claim": text, "of": what, "difference": (mean, se), "seeds": both, "holds": bool(holds)})
    every = [v for of in values.values() for v in of.values()]
    for text, (a, b) in {
        "more intruders, more forgotten": ("intruders", "forgotten"),
        "more intruders, more of the first task lost by the end": ("intruders", "score_lost"),
    }.items():
        pairs = np.array([(v[a], v[b]) for v in every], float)
        if len(pairs) > 3 and np.ptp(pairs, axis=0).all():
            found = spearmanr(*pairs.T)
            told.append(
                {"claim": text, "of": f"{a}, {b}", "spearman": float(found.statistic), "p": float(found.pvalue),
                 "runs": len(pairs), "holds": bool(found.statistic > 0 and found.pvalue < 0.05)}
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
        print(f"{'holds' if one['holds'] else 'does not hold'}: {one['claim']} ({number})")


if __name__ == "__main__":
    main()
