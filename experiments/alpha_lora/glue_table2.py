"""α-LoRA, Table 2: LoRA against α-LoRA on GLUE, with a paired test over seeds, beside the paper's numbers.

Reads the runs of `glue_runs.py table2`. A run's score is that of its last epoch on the development set: nothing is chosen by
it. The paper's model is RoBERTa-base, 125 million weights, with hyper-parameters chosen for each task and method (its
Appendix E); ours is all-MiniLM-L6-v2, 22.7 million, with one setting for all.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import ttest_rel

from experiments._glue import METRICS, NAMES, mean_se, parse, record, runs, scores
from rmtjax.report.figures import INK, MUTED, PALETTE, new_figure, style

PAPER = {
    "mnli": ((85.77, 0.16), (86.12, 0.06)),
    "qnli": ((91.95, 0.03), (92.20, 0.13)),
    "mrpc": ((88.40, 0.31), (89.46, 0.53)),
    "rte": ((74.01, 1.64), (77.62, 0.59)),
    "sst2": ((94.00, 0.11), (94.38, 0.01)),
    "qqp": ((88.80, 0.02), (88.86, 0.03)),
}
"""LoRA and α-LoRA: accuracy and its deviation over three seeds."""


def rows(results: dict) -> list[dict]:
    """Return one row for each task that has both methods at two seeds or more."""
    table = []
    for task in NAMES:
        lora, alpha = (scores(results.get(f"{task}-{method}", {})) for method in ("lora", "alpha-lora"))
        both = sorted(set(lora) & set(alpha))
        if len(both) < 2:
            continue
        a, b = np.array([lora[s] for s in both]), np.array([alpha[s] for s in both])
        test = ttest_rel(b, a)
        first = results[f"{task}-lora"][both[0]]
        table.append(
            {
                "task": NAMES[task],
                "metric": METRICS[first["headline"]],
                "seeds": both,
                "lora": mean_se(a),
                "alpha_lora": mean_se(b),
                "gain": mean_se(b - a),
                "p": float(test.pvalue) if np.ptp(b - a) > 0 else 1.0,
                "best_epoch": [
                    mean_se(scores(results[f"{task}-{m}"], "best").values()) for m in ("lora", "alpha-lora")
                ],
                "paper": PAPER.get(task),
                "epochs": first["settings"]["epochs"],
            }
        )
    return table


def main(argv: list[str] | None = None) -> None:
    """Tabulate and draw the gains."""
    args = parse(argv, __file__, __doc__)
    found = runs(args.runs)
    table = rows(found)
    with style():
        figure, axes = new_figure(size=(6.4, 1.2 + 0.5 * len(table)))
        for i, row in enumerate(reversed(table)):
            gain, se = row["gain"]
            axes.errorbar(
                gain, i, xerr=2 * se, fmt="o", color=INK, ms=5, capsize=3, label="ours, ±2 s.e." if i == 0 else None
            )
            if row["paper"]:
                (a, _), (b, _) = row["paper"]
                first = not any(r["paper"] for r in table[len(table) - i :])
                axes.plot(
                    b - a, i, "D", color=PALETTE[1], ms=5, mfc="none", label="paper (RoBERTa-base)" if first else None
                )
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.set_yticks(range(len(table)), [row["task"] for row in reversed(table)])
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.set_xlabel("α-LoRA − LoRA, points")
        axes.legend(frameon=False, fontsize=8, loc="best")
    used = {name: found[name] for name in found if name.split("-", 1)[-1] in ("lora", "alpha-lora")}
    record(args, figure, {"rows": table}, used)
    for row in table:
        print(f"{row['task']:6s} LoRA {row['lora'][0]:.2f} ± {row['lora'][1]:.2f}  α-LoRA {row['alpha_lora'][0]:.2f} ±"
              f" {row['alpha_lora'][1]:.2f}  gain {row['gain'][0]:+.2f} ± {row['gain'][1]:.2f}  p {row['p']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
