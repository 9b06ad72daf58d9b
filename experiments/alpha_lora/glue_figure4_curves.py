"""α-LoRA, Figure 4: the score on the development set during training, LoRA against α-LoRA.

Reads the runs of `glue_runs.py table2`; lines are means over seeds, bands two standard errors.
"""

from __future__ import annotations

import numpy as np

from experiments._glue import METRICS, NAMES, parse, record, runs
from rmtjax.report.figures import PALETTE, new_figure, style


def main(argv: list[str] | None = None) -> None:
    """Draw a panel for each task."""
    args = parse(argv, __file__, __doc__)
    found = runs(args.runs)
    tasks = [t for t in NAMES if all(f"{t}-{m}" in found for m in ("lora", "alpha-lora"))]
    tasks = [t for t in tasks if len(next(iter(found[f"{t}-lora"].values()))["history"]) > 1] or tasks
    numbers = {}
    with style():
        figure, axes = new_figure(1, len(tasks), size=(3.0 * len(tasks), 3.0), squeeze=False)
        for axis, task in zip(axes[0], tasks, strict=True):
            for method, label, colour in (("lora", "LoRA", PALETTE[0]), ("alpha-lora", "α-LoRA", PALETTE[1])):
                of = found[f"{task}-{method}"]
                metric = next(iter(of.values()))["headline"]
                curves = np.array([[100 * line[metric] for line in r["history"]] for r in of.values()])
                epochs = 1 + np.arange(curves.shape[1])
                mean, se = curves.mean(0), curves.std(0, ddof=min(1, len(curves) - 1)) / np.sqrt(len(curves))
                axis.plot(epochs, mean, "o-", ms=3.5, color=colour, label=label)
                axis.fill_between(epochs, mean - 2 * se, mean + 2 * se, color=colour, alpha=0.2, lw=0)
                numbers[f"{task}-{method}"] = {"epochs": epochs, "mean": mean, "se": se, "seeds": sorted(of)}
            axis.set_title(f"{NAMES[task]}, {METRICS[metric]} %", fontsize=9)
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0][0].legend(frameon=False, fontsize=8)
    record(args, figure, numbers, {name: found[name] for name in numbers})


if __name__ == "__main__":
    main()
