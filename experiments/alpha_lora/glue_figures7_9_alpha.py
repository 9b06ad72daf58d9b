"""α-LoRA, Figures 7 to 9: the learned α of the query and value modules, layer by layer.

Reads the runs of `glue_runs.py table2`; for each task and module the mean over rows and seeds, and the spread of rows.
"""

from __future__ import annotations

import re

import numpy as np

from experiments._glue import NAMES, parse, record, runs
from rmtjax.report.figures import MUTED, PALETTE, new_figure, style


def main(argv: list[str] | None = None) -> None:
    """Draw a panel for each task."""
    args = parse(argv, __file__, __doc__)
    found = runs(args.runs)
    tasks = [t for t in NAMES if f"{t}-alpha-lora" in found]
    numbers: dict = {}
    with style():
        figure, axes = new_figure(1, len(tasks), size=(2.8 * len(tasks), 3.0), squeeze=False, sharey=True)
        for axis, task in zip(axes[0], tasks, strict=True):
            for kind, colour, shift in (("query", PALETTE[0], -0.08), ("value", PALETTE[1], 0.08)):
                of = found[f"{task}-alpha-lora"].values()
                modules = [name for name in next(iter(of))["alpha"] if name.endswith(f".{kind}")]
                layers = [int(re.search(r"layer\.(\d+)\.", name)[1]) for name in modules]
                mean = np.array([np.mean([r["alpha"][name]["mean"] for r in of]) for name in modules])
                sd = np.array([np.mean([r["alpha"][name]["sd"] for r in of]) for name in modules])
                order = np.argsort(layers)
                x = np.array(layers)[order] + 1 + shift
                axis.errorbar(x, mean[order], sd[order], fmt="o", ms=4, color=colour, elinewidth=1.2, label=kind)
                numbers[f"{task}-{kind}"] = {
                    "layer": np.array(layers)[order],
                    "mean": mean[order],
                    "sd_of_rows": sd[order],
                }
            axis.axhline(1, color=MUTED, lw=0.8, ls=":")
            axis.set_title(NAMES[task], fontsize=9)
            axis.set_xlabel("layer")
        axes[0][0].set_ylabel("α: mean and s.d. of its rows")
        axes[0][0].legend(frameon=False, fontsize=8)
    record(args, figure, numbers, {f"{t}-alpha-lora": found[f"{t}-alpha-lora"] for t in tasks})


if __name__ == "__main__":
    main()
