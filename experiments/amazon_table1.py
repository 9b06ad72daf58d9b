"""α-LoRA, Table 1 and Figure 3: sentiment carried between Amazon review domains, twelve pairs, measured beside the paper.

The paper names neither its n, γ, γ̃ nor its word features. The table is made for γ̃ = 1 and γ̃ = 10 with n = 100, γ = 1 and
all 5,000 counts; the sensitivity table varies each choice in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr
from _common import HERE, _plain

from rmtjax._errors import InputError
from rmtjax.report.figures import MUTED, colours, new_figure, save, style
from rmtjax.tasks.transfer import RULES, run_transfer, sensitivity
from rmtjax.transfer.estimator import ALPHAS

NAME = "amazon_table1"
SOURCE_GAMMAS = (1.0, 10.0)
TASKS = ("books→dvd", "dvd→electronics", "electronics→kitchen")
SHOWN = {"alpha=0": "α = 0", "alpha=1": "α = 1", "alpha*": "α*, law", "loo": "α, LOO", "oracle": "oracle α"}
SHOWN_UP_TO = {1.0: 4.0, 10.0: 12.0}
GRID = np.union1d(ALPHAS, np.concatenate([np.linspace(0, end, 49) for end in SHOWN_UP_TO.values()]))


def hardware() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def table_rows(result: xr.Dataset) -> list[dict]:
    """One row a pair and rule for α: mean, standard deviation and standard error over the draws, and the paper's number."""
    rows = []
    for pair in result["pair"].values:
        for rule in RULES:
            one = result.sel(pair=pair, rule=rule)
            accuracy = one["accuracy"].values
            rows.append(
                {
                    "source_gamma": result.attrs["source_gamma"],
                    "source": one["source"].item(),
                    "target": one["target"].item(),
                    "rule": rule,
                    "accuracy": accuracy.mean(),
                    "sd": accuracy.std(ddof=1),
                    "se": accuracy.std(ddof=1) / len(accuracy) ** 0.5,
                    "alpha_median": float(np.median(one["chosen_alpha"])),
                    "paper": one["paper"].item(),
                    "paper_spread": one["paper_spread"].item(),
                }
            )
    return rows


def summary(result: xr.Dataset) -> dict:
    """Means over all pairs; differences to α = 1 over the same draws; distance to the paper; what the law foretold."""
    overall = result["accuracy"].mean("pair")
    gain = overall - overall.sel(rule="alpha=1")
    away = (result["accuracy"].mean("seed") - result["paper"]) ** 2
    used = result["alpha"].sel(alpha=slice(0, 4))
    curve = result["curve"].mean("seed").sel(alpha=used)
    return {
        rule: {
            "accuracy": overall.sel(rule=rule).mean().item(),
            "minus_alpha_1": gain.sel(rule=rule).mean().item(),
            "minus_alpha_1_se": (gain.sel(rule=rule).std(ddof=1) / result.sizes["seed"] ** 0.5).item(),
            "rms_to_paper": (away.sel(rule=rule).mean(skipna=False) ** 0.5).item(),
        }
        for rule in RULES
    } | {
        "rms_of_law_at_alpha_0_to_4": (((result["law"].sel(alpha=used) - curve) ** 2).mean() ** 0.5).item(),
        "bias_of_law_at_alpha_0_to_4": (result["law"].sel(alpha=used) - curve).mean().item(),
    }


def markdown(results: list[xr.Dataset]) -> str:
    """Table 1, measured beside the paper, once for each γ̃."""
    first = results[0]
    lines = [
        f"# Table 1: n = {first.attrs['n']}, γ = {first.attrs['gamma']:g}, {first.attrs['features']}",
        "",
        f"Test accuracy in %, mean ± standard deviation over {first.sizes['seed']} draws of the target samples. "
        "The oracle picks α on the test split: a bound, not a method. β is estimated without bias from both train splits. "
        "The paper's α* column is not in our copy, but for the one value that is shown.",
    ]
    for result in results:
        lines += [
            "",
            f"## γ̃ = {result.attrs['source_gamma']:g}",
            "",
            "| pair | β | paper β | "
            + " | ".join(SHOWN.values())
            + " | median α* | paper α = 0 | paper α = 1 | paper α* |",
            "|---|" + "---:|" * (len(SHOWN) + 6),
        ]
        for pair in result["pair"].values:
            one = result.sel(pair=pair)
            cells = [f"{one['beta']:.2f}", _number(one["paper_beta"].item(), 2)]
            for rule in SHOWN:
                accuracy = one["accuracy"].sel(rule=rule)
                cells.append(f"{accuracy.mean():.2f} ± {accuracy.std(ddof=1):.2f}")
            cells.append(f"{one['chosen_alpha'].sel(rule='alpha*').median():.2f}")
            for rule in ("alpha=0", "alpha=1"):
                cells.append(f"{one['paper'].sel(rule=rule):.2f} ± {one['paper_spread'].sel(rule=rule):.2f}")
            cells.append(_number(one["paper"].sel(rule="alpha*").item(), 2))
            lines.append(f"| {pair} | " + " | ".join(cells) + " |")
        found = summary(result)
        means = [f"**{found[rule]['accuracy']:.2f}**" for rule in SHOWN]
        paper = [f"{result['paper'].sel(rule=rule).mean():.2f}" for rule in ("alpha=0", "alpha=1")]
        lines.append("| **mean** | | | " + " | ".join(means) + " | | " + " | ".join(paper) + " | |")
        gains = ", ".join(
            f"{label} {found[rule]['minus_alpha_1']:+.2f} ± {found[rule]['minus_alpha_1_se']:.2f}"
            for rule, label in SHOWN.items()
            if rule != "alpha=1"
        )
        away = ", ".join(f"{SHOWN[rule]} {found[rule]['rms_to_paper']:.2f}" for rule in ("alpha=0", "alpha=1"))
        lines += ["", f"Against α = 1 on the same draws (± s.e.): {gains}.", f"Rms distance to the paper: {away}."]
    return "\n".join(lines) + "\n"


def draw(results: list[xr.Dataset]):
    """Figure 3: accuracy against α for three tasks, and the law beside it, a row for each γ̃."""
    measured, foretold = colours(2)
    with style():
        figure, panels = new_figure(
            len(results), len(TASKS), size=(10.8, 3.3 * len(results)), sharey="row", squeeze=False
        )
        for row, result in zip(panels, results, strict=True):
            gamma = result.attrs["source_gamma"]
            cut = result.sel(alpha=slice(0, SHOWN_UP_TO[gamma]))
            for axes, task in zip(row, TASKS, strict=True):
                one = cut.sel(pair=task)
                mean, se = one["curve"].mean("seed"), one["curve"].std("seed", ddof=1) / cut.sizes["seed"] ** 0.5
                axes.axvline(1, color=MUTED, lw=1, ls=":", label="α = 1")
                best = one["chosen_alpha"].sel(rule="alpha*").median().item()
                axes.axvline(best, color=measured, lw=1, ls=":", label="median α* of the law, from n samples")
                axes.fill_between(cut["alpha"], mean - 2 * se, mean + 2 * se, color=measured, alpha=0.2, lw=0)
                axes.plot(cut["alpha"], mean, color=measured, label="measured, ± 2 s.e.")
                axes.plot(cut["alpha"], one["law"], color=foretold, ls="--", label="law, moments of the whole pool")
                axes.set_title(f"{task.replace('→', ' → ')},  γ̃ = {gamma:g}")
                axes.set_xlim(0, SHOWN_UP_TO[gamma])
            row[0].set_ylabel("test accuracy (%)")
        for axes in panels[-1]:
            axes.set_xlabel("α")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        first = results[0]
        figure.suptitle(
            f"Accuracy against α:  n = {first.attrs['n']}, γ = {first.attrs['gamma']:g}, "
            f"{first.attrs['features']}, {first.sizes['seed']} draws",
            x=0.01, ha="left", fontsize=10.5,
        )  # fmt: skip
    return figure


def write(path: Path, report: dict) -> None:
    """A JSON file with no NaN in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    print(path)


def main(argv: list[str] | None = None) -> None:
    """Measure, write the tables, draw the figure."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the Amazon files (default: where the package looks)")
    parser.add_argument("--seeds", type=int, default=20, help="draws of the target samples (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for figures/ and results/ (default: this one)")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error(f"--seeds {args.seeds}: must be at least 2")

    def report(done: int, total: int, what: str) -> None:
        print(f"  {done}/{total} {what}", file=sys.stderr)

    try:
        began = time.perf_counter()
        results = [
            run_transfer(args.data, source_gamma=value, seeds=args.seeds, alphas=GRID, progress=report)
            for value in SOURCE_GAMMAS
        ]
        if results[0].attrs["data"] != "amazon":
            raise InputError("no Amazon folder is found; give --data, or set RMTJAX_DATA")
        table_s, began = time.perf_counter() - began, time.perf_counter()
        effects = [sensitivity(args.data, source_gamma=v, seeds=args.seeds, progress=report) for v in SOURCE_GAMMAS]
    except InputError as error:
        parser.error(str(error))

    first = results[0]
    about = {
        "reproduces": __doc__.splitlines()[0],
        "hardware": hardware(),
        "versions": first.attrs["versions"],
        "seeds": first["seed"].values,
    }
    folder = args.out / "results"
    rows = [row for result in results for row in table_rows(result)]
    write(
        folder / f"{NAME}.json",
        {
            "experiment": NAME,
            **about,
            "wall_s": round(table_s, 2),
            "settings": {key: first.attrs[key] for key in ("n", "gamma", "features", "rules")},
            "paper": "alpha=0 and alpha=1 from Table 1; its alpha* column is not in our copy, but for one value",
            "summary": {f"source_gamma={r.attrs['source_gamma']:g}": summary(r) for r in results},
            "pairs": [
                {
                    name: first[name].sel(pair=pair).item()
                    for name in ("source", "target", "beta", "beta_naive", "paper_beta")
                }
                | {
                    "law_alpha": {
                        f"source_gamma={r.attrs['source_gamma']:g}": r["law_alpha"].sel(pair=pair).item()
                        for r in results
                    }
                }
                for pair in first["pair"].values
            ],
            "rows": rows,
        },
    )
    with open(folder / f"{NAME}.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in rows:
            table.writerow({key: "" if value != value else value for key, value in {**row, **_plain(row)}.items()})
    (folder / f"{NAME}.md").write_text(markdown(results), encoding="utf-8")
    write(
        folder / "amazon_sensitivity.json",
        {
            "experiment": "amazon_sensitivity",
            **about,
            "wall_s": round(time.perf_counter() - began, 2),
            "base": [{k: e.attrs[k] for k in ("features", "words", "n", "gamma", "source_gamma")} for e in effects],
            "rows": [
                {
                    "base_source_gamma": e.attrs["source_gamma"],
                    "choice": one["choice"].item(),
                    "value": one["value"].item(),
                }
                | {
                    f"{name}_{rule}": one[name].sel(rule=rule).item()
                    for name in ("accuracy", "spread", "rms")
                    for rule in (
                        ("alpha=0", "alpha=1") if name == "rms" else ("alpha=0", "alpha=1", "alpha*", "loo", "oracle")
                    )
                }
                for e in effects
                for one in (e.isel(setting=k) for k in range(e.sizes["setting"]))
            ],
        },
    )
    print(save(draw(results), args.out / "figures" / "amazon_figure3.png"))
    print(markdown(results))


def _number(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
