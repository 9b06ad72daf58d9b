"""The report of the transfer experiment: Table 1 and Figure 3 of the α-LoRA paper, ours beside theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from rmtjax._console import Table
from rmtjax._files import write_json, write_text
from rmtjax.report.figures import MUTED, colours, new_figure, save, style
from rmtjax.report.text import markdown_table

__all__ = ["figure", "markdown", "summary", "table", "table_rows", "to_dict", "write_report"]

SHOWN = {"alpha=0": "α = 0", "alpha=1": "α = 1", "alpha*": "α*, law", "loo": "α, LOO", "oracle": "oracle α"}
"""The rules that tables show, with their headings."""


def _on_amazon(result: xr.Dataset) -> bool:
    return "paper" in result


def table_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Return one row per pair and rule for α: mean, standard deviation and standard error over draws, and the paper's number."""
    rows = []
    for pair in result["pair"].values:
        for rule in result["rule"].values:
            of_rule = result.sel(pair=pair, rule=rule)
            accuracy = of_rule["accuracy"].values
            sd = accuracy.std(ddof=1) if accuracy.size > 1 else np.nan
            row = {
                "source_gamma": result.attrs["source_gamma"],
                "source": of_rule["source"].item(),
                "target": of_rule["target"].item(),
                "rule": str(rule),
                "accuracy": accuracy.mean(),
                "sd": sd,
                "se": sd / len(accuracy) ** 0.5,
                "alpha_median": float(np.median(of_rule["chosen_alpha"])),
            }
            if _on_amazon(result):
                row |= {"paper": of_rule["paper"].item(), "paper_spread": of_rule["paper_spread"].item()}
            rows.append(row)
    return rows


def summary(result: xr.Dataset) -> dict[str, Any]:
    """Return means over all pairs; differences to α = 1 over the same draws; distance to the paper; errors of the law."""
    overall = result["accuracy"].mean("pair")
    gain = overall - overall.sel(rule="alpha=1")
    used = result["alpha"].sel(alpha=slice(0, 4))
    gap = result["law"].sel(alpha=used) - result["curve"].mean("seed").sel(alpha=used)
    by_rule: dict[str, Any] = {}
    for rule in result["rule"].values:
        accuracy, lead = overall.sel(rule=rule), gain.sel(rule=rule)
        spread = lead.std(ddof=1).item() if result.sizes["seed"] > 1 else float("nan")
        by_rule[str(rule)] = {
            "accuracy": accuracy.mean().item(),
            "minus_alpha_1": lead.mean().item(),
            "minus_alpha_1_se": spread / result.sizes["seed"] ** 0.5,
        }
        if _on_amazon(result):
            away = (result["accuracy"].mean("seed") - result["paper"]).sel(rule=rule) ** 2
            by_rule[str(rule)]["rms_to_paper"] = (away.mean(skipna=False) ** 0.5).item()
    return by_rule | {
        "rms_of_law_at_alpha_0_to_4": ((gap**2).mean() ** 0.5).item(),
        "bias_of_law_at_alpha_0_to_4": gap.mean().item(),
    }


def _number(value: float, digits: int = 2) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _spread(values: np.ndarray, digits: int = 2) -> str:
    sd = values.std(ddof=1) if values.size > 1 else np.nan
    return f"{values.mean():.{digits}f}" + ("" if np.isnan(sd) else f" ± {sd:.{digits}f}")


def _columns(result: xr.Dataset, digits: int) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the heading, one row per pair, and the row of means."""
    header = ["pair", "β", *SHOWN.values(), "median α*"]
    if _on_amazon(result):
        header += ["paper β", "paper α = 0", "paper α = 1", "paper α*"]
    rows = []
    for pair in result["pair"].values:
        of_pair = result.sel(pair=pair)
        row = [str(pair), f"{of_pair['beta']:.2f}"]
        row += [_spread(of_pair["accuracy"].sel(rule=rule).values, digits) for rule in SHOWN]
        row.append(f"{of_pair['chosen_alpha'].sel(rule='alpha*').median():.2f}")
        if _on_amazon(result):
            row.append(_number(of_pair["paper_beta"].item()))
            for rule in ("alpha=0", "alpha=1"):
                paper, spread = of_pair["paper"].sel(rule=rule), of_pair["paper_spread"].sel(rule=rule)
                row.append(f"{paper:.2f} ± {spread:.2f}" if digits == 2 else f"{paper:.{digits}f}")
            row.append(_number(of_pair["paper"].sel(rule="alpha*").item(), digits))
        rows.append(row)
    overall = summary(result)
    means = ["mean", "", *(f"{overall[rule]['accuracy']:.{digits}f}" for rule in SHOWN), ""]
    if _on_amazon(result):
        paper = [f"{result['paper'].sel(rule=rule).mean():.{digits}f}" for rule in ("alpha=0", "alpha=1")]
        means += ["", *paper, ""]
    return header, rows, means


def table(result: xr.Dataset) -> Table:
    """Return the table for the terminal: accuracy in %, mean ± standard deviation over the draws."""
    header, rows, means = _columns(result, 1)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in header:
        shown.add_column(name, justify="left" if name == "pair" else "right", no_wrap=name == "pair")
    for row in rows:
        shown.add_row(*row)
    shown.add_row(*means, style="bold")
    return shown


def gains(result: xr.Dataset) -> str:
    """Return one line with the gain of each rule over α = 1 on the same draws."""
    overall = summary(result)
    parts = (
        f"{label} {overall[rule]['minus_alpha_1']:+.2f} ± {_number(overall[rule]['minus_alpha_1_se'])}"
        for rule, label in SHOWN.items()
        if rule != "alpha=1"
    )
    return f"Against α = 1 on the same draws, in points (± s.e.): {', '.join(parts)}."


def markdown(results: Sequence[xr.Dataset]) -> str:
    """Return Table 1 in Markdown, once for each result (each with one γ̃)."""
    first = results[0]
    lines = [
        f"# Transfer: n = {first.attrs['n']}, γ = {first.attrs['gamma']:g}, {first.attrs['features']}\n",
        f"Test accuracy in %, mean ± standard deviation over {first.sizes['seed']} draws of the target samples. "
        "The oracle picks α on the test split: a bound, not a method. β is estimated without bias from both train splits.",
    ]
    if _on_amazon(first):
        lines[-1] += (
            " The paper's α* column is not in our copy, but for the one value that is shown. The α* rule shrinks its"
            " estimate of ‖μ_β‖ by a constant that was chosen on these domains (other draws); LOO has no such constant."
        )
    for result in results:
        header, rows, means = _columns(result, 2)
        rows.append([f"**{cell}**" if cell else "" for cell in means])
        lines += [f"\n## γ̃ = {result.attrs['source_gamma']:g}\n", markdown_table(header, rows), gains(result)]
        if _on_amazon(result):
            overall = summary(result)
            away = (f"{SHOWN[rule]} {overall[rule]['rms_to_paper']:.2f}" for rule in ("alpha=0", "alpha=1"))
            lines[-1] += f" Rms distance to the paper: {', '.join(away)}."
    return "\n".join(lines) + "\n"


def to_dict(result: xr.Dataset) -> dict[str, Any]:
    """Return rows, summary and provenance as plain values."""
    return {
        "settings": dict(result.attrs),
        "seeds": result["seed"].values.tolist(),
        "summary": summary(result),
        "rows": table_rows(result),
        "pairs": [
            {
                name: result[name].sel(pair=pair).item()
                for name in ("source", "target", "beta", "beta_naive", "law_alpha")
            }
            for pair in result["pair"].values
        ],
    }


def figure(results: Sequence[xr.Dataset], pairs: Sequence[str] | None = None, up_to: Sequence[float] | None = None):
    """Return Figure 3: accuracy against α for at most three pairs, the law beside it; a row for each result.

    Args:
        results: from `run_transfer`, of the same pairs.
        pairs: the pairs to show; the first three by default.
        up_to: for each result the largest α to show; by default twice the largest median α*, at least 2.
    """
    measured, predicted = colours(2)
    first = results[0]
    pairs = [str(p) for p in first["pair"].values[:3]] if pairs is None else list(pairs)
    with style():
        drawn, panels = new_figure(
            len(results), len(pairs), size=(3.6 * max(len(pairs), 2), 3.3 * len(results)), sharey="row", squeeze=False
        )
        for index, (row, result) in enumerate(zip(panels, results, strict=True)):
            chosen = result["chosen_alpha"].sel(rule="alpha*").median("seed")
            end = 2 * max(1.0, float(chosen.max())) if up_to is None else up_to[index]
            cut = result.sel(alpha=slice(0, end))
            for axes, pair in zip(row, pairs, strict=True):
                of_pair = cut.sel(pair=pair)
                mean, se = (
                    of_pair["curve"].mean("seed"),
                    of_pair["curve"].std("seed", ddof=1) / cut.sizes["seed"] ** 0.5,
                )
                axes.axvline(1, color=MUTED, lw=1, ls=":", label="α = 1")
                axes.axvline(
                    chosen.sel(pair=pair), color=measured, lw=1, ls=":", label="median α* of the law, from n samples"
                )
                axes.fill_between(cut["alpha"], mean - 2 * se, mean + 2 * se, color=measured, alpha=0.2, lw=0)
                axes.plot(cut["alpha"], mean, color=measured, label="measured, ± 2 s.e.")
                axes.plot(
                    cut["alpha"], of_pair["law"], color=predicted, ls="--", label="law, moments of the whole pool"
                )
                axes.set_title(f"{pair.replace('→', ' → ')},  γ̃ = {result.attrs['source_gamma']:g}")
                axes.set_xlim(0, cut["alpha"].values[-1])  # the grid of α may stop before `end`
            row[0].set_ylabel("test accuracy (%)")
        for axes in panels[-1]:
            axes.set_xlabel("α")
        drawn.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        about = f"n = {first.attrs['n']}, γ = {first.attrs['gamma']:g}, {first.attrs['features']}"
        drawn.suptitle(f"Accuracy against α:  {about}, {first.sizes['seed']} draws", x=0.01, ha="left", fontsize=10.5)
    return drawn


def write_report(result: xr.Dataset, folder: Path) -> list[Path]:
    """Write ``transfer.md``, ``transfer.json`` and ``transfer.png`` into a folder; return the paths."""
    written = [folder / "transfer.json", folder / "transfer.md", folder / "transfer.png"]
    write_json(written[0], to_dict(result))
    write_text(written[1], markdown([result]) + "\n![Accuracy against α](transfer.png)\n")
    save(figure([result]), written[2])
    return written
