"""α-LoRA, Figure 5: the score around the learned α.

From the checkpoints that `glue_runs.py table2` left in `runs/`: all else stays as trained while α is moved, along the line
from 1 through the learned α, by one shift of all its numbers, and by random shifts of the same size.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np

from experiments._common import HERE
from experiments._glue import METRICS, NAMES, parse, record, runs
from experiments.alpha_lora.glue_runs import qnli_folder
from rmtjax._files import write_json
from rmtjax._startup import device_for_each_core, keep_programs
from rmtjax.datasets.glue import find_glue
from rmtjax.finetune import Run, Settings
from rmtjax.finetune.checkpoints import Checkpoints
from rmtjax.report.figures import MUTED, PALETTE, new_figure, style

TASKS = ("mrpc", "rte")
ALONG = np.linspace(-3, 5, 9)
SHIFTS = np.array([-0.4, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4])


def moved(alpha: dict, direction: str, by: float, seed: int) -> dict:
    """Return moved vectors α: `along` is 1 + by (α − 1), `shift` α + by, `random` α + by · N(0, 1)."""
    random = np.random.default_rng(seed)
    changed = {}
    for name, a in sorted(alpha.items()):
        a = np.asarray(a)
        step = {"along": 1 + by * (a - 1), "shift": a + by, "random": a + by * random.standard_normal(a.shape)}
        changed[name] = step[direction].astype(a.dtype)
    return changed


def main(argv: list[str] | None = None) -> None:
    """Evaluate and draw."""
    args = parse(argv, __file__, __doc__)
    keep_programs()
    device_for_each_core()
    found, numbers, used = runs(args.runs), {}, {}
    for task in TASKS:
        for seed, result in found.get(f"{task}-alpha-lora", {}).items():
            folder = HERE / "runs" / f"{task}-alpha-lora-{seed}"
            if not (folder / "checkpoints").exists():
                continue
            used.setdefault(f"{task}-alpha-lora", {})[seed] = result
            # A minute each, so results are stored beside the checkpoint that they belong to.
            kept = folder / "figure5.json"
            if kept.exists() and kept.stat().st_mtime > (folder / "checkpoints").stat().st_mtime:
                for how, (by, scores) in json.loads(kept.read_text(encoding="utf-8")).items():
                    numbers.setdefault(f"{task}-{how}", {"by": np.array(by), "scores": {}})["scores"][str(seed)] = (
                        scores
                    )
                continue
            data = qnli_folder(find_glue(), HERE / "runs") if task == "qnli" else find_glue()
            known = {f.name for f in dataclasses.fields(Settings)}
            settings = {k: v for k, v in result["settings"].items() if k in known}
            run = Run(Settings.from_dict({**settings, "data": str(data)}))
            state = Checkpoints(folder / "checkpoints").latest(run.trainer.start)
            for how, values in (("along", ALONG), ("shift", SHIFTS), ("random", SHIFTS[SHIFTS >= 0])):
                scores = []
                for by in values:
                    alpha = jax.device_put(moved(state.alpha, how, float(by), seed), run.trainer.whole)
                    scores.append(100 * run.evaluate(state._replace(alpha=alpha))[run.task.headline])
                numbers.setdefault(f"{task}-{how}", {"by": values, "scores": {}})["scores"][str(seed)] = scores
            mine = {how: numbers[f"{task}-{how}"] for how in ("along", "shift", "random")}
            write_json(kept, {how: (list(n["by"]), n["scores"][str(seed)]) for how, n in mine.items()})
            print(task, seed, {k: v["scores"][str(seed)] for k, v in numbers.items() if k.startswith(task)}, flush=True)
    tasks = [t for t in TASKS if f"{t}-along" in numbers]
    labels = {"along": "1 + t (α − 1), t", "shift": "α + s, s", "random": "α + s N(0, 1), s"}
    with style():
        figure, axes = new_figure(len(tasks), 3, size=(9.0, 2.8 * len(tasks)), squeeze=False, sharey="row")
        for row, task in zip(axes, tasks, strict=True):
            for axis, how in zip(row, labels, strict=True):
                curves = np.array(list(numbers[f"{task}-{how}"]["scores"].values()))
                x = numbers[f"{task}-{how}"]["by"]
                se = curves.std(0, ddof=min(1, len(curves) - 1)) / np.sqrt(len(curves))
                axis.plot(x, curves.mean(0), "o-", ms=3.5, color=PALETTE[0])
                axis.fill_between(
                    x, curves.mean(0) - 2 * se, curves.mean(0) + 2 * se, color=PALETTE[0], alpha=0.2, lw=0
                )
                axis.axvline(1.0 if how == "along" else 0.0, color=MUTED, lw=0.8, ls=":")
                axis.set_xlabel(labels[how])
            row[0].set_ylabel(
                f"{NAMES[task]}, {METRICS[next(iter(used[f'{task}-alpha-lora'].values()))['headline']]} %"
            )
    record(args, figure, numbers, used)


if __name__ == "__main__":
    main()
