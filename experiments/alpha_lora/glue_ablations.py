"""α-LoRA, §5.2 and Appendix E: the effect of T, `val_split` and the adapter under α, on MRPC.

Reads the runs of `glue_runs.py every split relatives table2`; points are means over seeds of the last epoch's accuracy, bars two
standard errors.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import ttest_rel

from experiments._glue import mean_se, parse, record, runs, scores
from rmtjax.report.figures import INK, MUTED, PALETTE, new_figure, style


def series(results: dict, prefix: str, setting: str) -> dict[float, dict[int, float]]:
    """Return scores by the number at the end of the names with a given beginning, and those of table2 by its setting."""
    names = {float(name.removeprefix(prefix)): name for name in results if name.startswith(prefix)}
    if names and "mrpc-alpha-lora" in results:
        names[float(next(iter(results["mrpc-alpha-lora"].values()))["settings"][setting])] = "mrpc-alpha-lora"
    return {value: scores(results[name]) for value, name in sorted(names.items())}


def main(argv: list[str] | None = None) -> None:
    """Draw the three panels."""
    args = parse(argv, __file__, __doc__)
    found = runs(args.runs)
    numbers: dict = {}
    base = scores(found.get("mrpc-lora", {}))
    with style():
        figure, axes = new_figure(1, 3, size=(9.6, 3.2), sharey=True)
        for axis, key, setting, label in (
            (axes[0], "T", "alpha_every", "T, steps between two moves of α"),
            (axes[1], "split", "val_split", "share kept for α"),
        ):
            table = series(found, f"mrpc-alpha-lora-{key}", setting)
            points = np.array([mean_se(of.values()) for of in table.values()]).reshape(-1, 2)
            values = np.array(list(table))
            apart = values == 1 if key == "split" else np.zeros(len(values), bool)  # there both have all of the data
            for chosen, look in ((~apart, {"fmt": "o-"}), (apart, {"fmt": "s", "label": "all of it for both"})):
                if chosen.any():
                    bars = 2 * points[chosen, 1]
                    axis.errorbar(values[chosen], points[chosen, 0], bars, ms=4, color=PALETTE[0], capsize=3, **look)
            axis.set_xlabel(label)
            numbers[key] = {"value": list(table), "mean_se": points, "seeds": [sorted(of) for of in table.values()]}
        if len(axes[0].lines):
            axes[0].set_xscale("log")
        axes[0].set_ylabel("MRPC accuracy, %")
        methods = {"LoRA": "lora", "rsLoRA": "rslora", "DoRA": "dora"}
        for i, (name, method) in enumerate(methods.items()):
            pair = [scores(found.get(f"mrpc-{a}{method}", {})) for a in ("", "alpha-")]
            for of, colour, shift, label in zip(
                pair, (INK, PALETTE[0]), (-0.1, 0.1), ("without α", "with α"), strict=True
            ):
                if of:
                    mean, se = mean_se(of.values())
                    told = label if i == 0 else None
                    axes[2].errorbar(i + shift, mean, 2 * se, fmt="o", ms=4, color=colour, capsize=3, label=told)
            both = sorted(set(pair[0]) & set(pair[1]))
            if len(both) > 1:
                a, b = (np.array([of[s] for s in both]) for of in pair)
                p = float(ttest_rel(b, a).pvalue) if np.ptp(b - a) > 0 else 1.0
                numbers[name] = {
                    "without": mean_se(a),
                    "with": mean_se(b),
                    "gain": mean_se(b - a),
                    "p": p,
                    "seeds": both,
                }
        axes[2].set_xticks(range(len(methods)), methods)
        axes[2].set_xlim(-0.5, len(methods) - 0.5)
        axes[2].legend(frameon=False, fontsize=8)
        if base:
            for axis in axes[:2]:
                axis.axhline(mean_se(base.values())[0], color=MUTED, lw=0.8, ls=":", label="LoRA")
            axes[0].legend(frameon=False, fontsize=8)
            axes[1].legend(frameon=False, fontsize=8)
    record(args, figure, numbers, {name: of for name, of in found.items() if name.startswith("mrpc-")})


if __name__ == "__main__":
    main()
