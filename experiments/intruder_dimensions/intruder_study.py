"""Intruder Dimensions: intruders, score and forgetting of every way to fine-tune, on a real model and real tasks.

Reads the runs of `intruder_study_runs.py`, of which some seeds may have done the first tasks only. The paper's claims that
hold on this model are computed from them and written beside the table. A claim that one way has more of something than another is
tested by the difference of their means over seeds (Welch's t); one that two things go together by Spearman's correlation over the
ways' means. A claim holds, or is contradicted, if its two-sided p is below 5 % after Holm's correction for the number of claims;
else it is open.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import sem, spearmanr, ttest_ind_from_stats

from experiments._common import HERE
from experiments._glue import NAMES, mean_se, record
from rmtjax.report.figures import PALETTE, new_figure, style

LABELS = {
    "full": "full fine-tuning", "lora-r1": "LoRA, r = 1", "lora-r8": "LoRA", "lora-r64": "LoRA, r = 64", "rslora-r8": "rsLoRA",
    "alpha-lora-r8": "α-LoRA", "orthogonal-r8": "orthogonal LoRA", "spectral-additive-r8": "spectral, additive",
    "spectral-rotational-r8": "spectral, rotational", "guarded-lora-r8": "LoRA, guarded",
}  # fmt: skip
"""Methods in the order of the table; r is 8 unless stated."""
_BLUE, _ORANGE, _GREEN, _PINK, _YELLOW, _SKY, _BLACK = PALETTE
LOOKS = {
    "full": (_BLACK, "o"), "lora-r1": (_SKY, "s"), "lora-r8": (_BLUE, "D"), "lora-r64": (_BLUE, "^"), "rslora-r8": (_SKY, "v"),
    "alpha-lora-r8": (_YELLOW, "<"), "orthogonal-r8": (_GREEN, ">"), "spectral-additive-r8": (_PINK, "X"),
    "spectral-rotational-r8": (_PINK, "p"), "guarded-lora-r8": (_ORANGE, "*"),
}  # fmt: skip
"""Colours by family, and markers."""
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
"""Each claim with two methods and the quantity that the first is said to have more of."""
TOGETHER = {
    "more intruders, more forgotten": ("intruders", "forgotten"),
    "more intruders, more of the earlier tasks lost by the end": ("intruders", "lost"),
}
"""Pairs of quantities that are said to go together, over the methods."""
CONTROLS = {
    "a larger update, more forgotten": ("norm", "forgotten"),
    "a larger update, more of the earlier tasks lost by the end": ("norm", "lost"),
}
"""Alternative explanations of the claims about forgetting; nobody claims them, so they get no verdict."""
_LEARNED = 0.1
"""Sum of the earlier tasks' correlations from which the share that is kept is meaningful."""


def numbers_of(run: dict[str, Any], tasks: list[str]) -> dict[str, float]:
    """Return a run's numbers for comparison, after its first task and after the last of all tasks; NaN for missing ones."""
    first, last = run["stages"][0], run["stages"][-1]
    told = {
        "score": 100 * first["score"],
        "intruders": first["spectra"]["adapted"]["intruders"],
        "predicted": first["spectra"]["adapted"]["predicted"],
        "elsewhere": first["spectra"]["all"]["intruders"] - first["spectra"]["adapted"]["intruders"],
        "effective_rank": first["spectra"]["adapted"]["effective_rank"],
        "norm": first["spectra"]["all"]["frobenius"],
        "forgotten": 100 * (1 - first["forgetting"]["cosine"]),
        "similarities_lost": 100 * (1 - first["forgetting"]["similarities_kept"]),
    }
    if len(run["stages"]) == len(tasks):
        # A run that hardly learns has nothing to forget: the share of what was learned, of all earlier tasks together.
        learned = sum(stage["correlations"][stage["task"]] for stage in run["stages"][:-1])
        kept = {task: last["correlations"][task] for task in tasks[:-1]}
        told |= {
            **{f"learned_{stage['task']}": 100 * stage["correlations"][stage["task"]] for stage in run["stages"]},
            "intruders_at_the_end": last["spectra"]["adapted"]["intruders"],
            **{f"kept_{task}": 100 * correlation for task, correlation in kept.items()},
            "lost": 100 * (1 - sum(kept.values()) / learned) if learned > _LEARNED else float("nan"),
            "forgotten_at_the_end": 100 * (1 - last["forgetting"]["cosine"]),
        }
    learned, kept = [f"learned_{task}" for task in tasks], [f"kept_{task}" for task in tasks[:-1]]
    later = [*learned, "intruders_at_the_end", *kept, "lost", "forgotten_at_the_end"]
    return {**dict.fromkeys([*told, *later], float("nan")), **told}


def gather(folder: Path) -> tuple[dict[str, dict[int, dict[str, Any]]], list[str]]:
    """Return runs by method and seed, and all tasks; SystemExit unless each run did a prefix of the same tasks."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        if "stages" in run:
            found[run["name"]][run["seed"]] = files[file.name] = run
    if not found:
        raise SystemExit(f"{folder} holds no results: run intruder_study_runs.py first")
    longest = max(files, key=lambda name: len(files[name]["sequence"]))
    whole = list(files[longest]["sequence"].items())
    for name, run in files.items():
        if (done := list(run["sequence"].items())) != whole[: len(done)] or run["texts"] != files[longest]["texts"]:
            raise SystemExit(f"{folder}: {name} and {longest} are of different tasks or texts")
    return {name: found[name] for name in LABELS if name in found}, [task for task, _ in whole]


def together(
    values: dict[str, dict[int, dict[str, float]]], claims: dict[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return Spearman's correlation of two numbers over the methods' means, and its p, if four methods or more have both."""
    told = []
    for text, pair in claims.items():
        every = [np.array([[v[what] for what in pair] for v in of.values()], float) for of in values.values()]
        every = [runs[np.isfinite(runs).all(1)] for runs in every]  # both numbers from the same runs
        means = np.array([runs.mean(0) for runs in every if len(runs)])
        if len(means) > 3 and np.ptp(means, axis=0).all():
            found = spearmanr(*means.T)
            told.append(
                {"claim": text, "of": ", ".join(pair), "spearman": float(found.statistic), "p": float(found.pvalue),
                 "ways": len(means)}
            )  # fmt: skip
    return told


def claims(values: dict[str, dict[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """Return each claim with the difference of two methods or the correlation over methods, p, p after Holm, and verdict."""
    told: list[dict[str, Any]] = []

    def samples(name: str, measure: str) -> np.ndarray:
        return np.array([v[measure] for v in values[name].values()], float)

    for text, (more, less, what) in CLAIMS.items():
        if more not in values or less not in values:
            continue
        one, other = samples(more, what), samples(less, what)
        if min(len(one), len(other)) < 2 or np.ptp(one) == np.ptp(other) == 0:
            continue
        told_of = [number for x in (one, other) for number in (x.mean(), x.std(ddof=1), len(x))]
        test = ttest_ind_from_stats(*told_of, equal_var=False)
        difference, error = float(one.mean() - other.mean()), float(np.hypot(sem(one), sem(other)))
        told.append(
            {"claim": text, "of": what, "more": more, "less": less, "difference": (difference, error),
             "p": float(test.pvalue), "for": difference > 0}
        )  # fmt: skip
    told += [{**one, "for": one["spearman"] > 0} for one in together(values, TOGETHER)]
    worst = 0.0
    for i, one in enumerate(sorted(told, key=lambda claim: claim["p"])):
        worst = max(worst, min(1.0, (len(told) - i) * one["p"]))
        one["p_holm"] = worst
        one["verdict"] = "open" if worst >= 0.05 else "holds" if one["for"] else "contradicted"
    return told


def main(argv: list[str] | None = None) -> None:
    """Tabulate, draw, and report the claims that hold."""
    parser = argparse.ArgumentParser(prog=Path(__file__).stem, description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=HERE / "results" / "intruder-study", help="files of runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for figures/ and results/ (default: this one)")
    args = parser.parse_args(argv)
    args.name, args.about = Path(__file__).stem, __doc__.splitlines()[0]
    found, done = gather(args.runs)
    values = {name: {seed: numbers_of(run, done) for seed, run in of.items()} for name, of in found.items()}
    table = {
        name: {
            "label": LABELS[name],
            "seeds": sorted(of),
            "seeds_of_all_tasks": sorted(seed for seed, run in found[name].items() if len(run["stages"]) == len(done)),
            **{what: mean_se(v[what] for v in of.values() if np.isfinite(v[what])) for what in next(iter(of.values()))},
        }
        for name, of in values.items()
    }
    tasks = [NAMES[task] for task in done]
    with style():
        figure, panels = new_figure(1, 2, size=(9.2, 4.4))
        marks = []
        for name in table:
            colour, marker = LOOKS[name]
            look = {
                "color": colour,
                "marker": marker,
                "ms": 10 if marker == "*" else 7,
                "mec": "white",
                "mew": 0.6,
                "ls": "none",
            }
            for axes, what in zip(panels, ("forgotten", "lost"), strict=True):
                both = [v for v in values[name].values() if np.isfinite(v[what])]
                (x, dx), (y, dy) = (mean_se(v[of] for v in both) for of in ("intruders", what))
                axes.errorbar(x, y, 2 * np.nan_to_num(dy), 2 * np.nan_to_num(dx), elinewidth=1, **look)
            marks += panels[0].plot([], [], label=LABELS[name], **look)
        for axes in panels:
            axes.set_xlabel(f"intruders in the adapted layers after {tasks[0]}")
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel("% of the embeddings' cosine lost")
        panels[0].set_title(f"text never trained on, after {tasks[0]}")
        panels[1].set_ylabel("% of the learned Matthews correlation lost")
        panels[1].set_title(f"{' and '.join(tasks[:-1])} after {tasks[-1]}")
        figure.legend(handles=marks, loc="outside lower center", ncols=5)
    told, controls = claims(values), together(values, CONTROLS)
    record(args, figure, {"tasks": tasks, "table": table, "claims": told, "controls": controls}, found)
    for name, row in table.items():
        cells = [
            f"{what} {row[what][0]:.2f} ± {row[what][1]:.2f}" for what in ("score", "intruders", "forgotten", "lost")
        ]
        print(f"{name:24s} {'  '.join(cells)}")
    for one in told:
        number = (
            f"{one['difference'][0]:+.2f} ± {one['difference'][1]:.2f}"
            if "difference" in one
            else f"ρ = {one['spearman']:+.2f}"
        )
        print(f"{one['verdict']}: {one['claim']} ({number}, p = {one['p_holm']:.3f} of {len(told)})")
    for one in controls:
        print(f"for comparison: {one['claim']} (ρ = {one['spearman']:+.2f}, p = {one['p']:.3f})")


if __name__ == "__main__":
    main()
