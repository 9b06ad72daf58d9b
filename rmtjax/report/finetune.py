"""The report of a fine-tuning: a table and its curves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtjax._console import Table
from rmtjax.report.figures import INK, PALETTE, new_figure, save, style

_OTHER = ("step", "epoch", "loss", "seconds")

__all__ = ["curves", "files", "summary", "table"]


def summary(result: Mapping[str, Any]) -> str:
    """Return the final score, the best score and the speed in one line."""
    speed = result["steps_per_second"]
    return (
        f"{result['headline']} {100 * result['last']:.2f} (best {100 * result['best']:.2f} in epoch {result['best_epoch']}), "
        f"{result['seconds']:.0f} s" + (f", {speed:.2f} steps/s" if speed else "")
    )


def files(out: str | os.PathLike) -> list[str]:
    """Return the names of the files that a run has written."""
    names = ("adapter", "model", "metrics.jsonl", "curves.png", "result.json", "checkpoints")
    return [name for name in names if (Path(out) / name).exists()]


def table(result: Mapping[str, Any]) -> Table:
    """Return the history of a run: loss and metrics after each epoch."""
    lines = result["history"]
    metrics = [name for name in lines[0] if name not in _OTHER and not name.startswith("alpha_")]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("epoch", "step", "loss", *metrics):
        shown.add_column(name.replace("_", " "), justify="right")
    with_alpha = "alpha_mean" in lines[0]
    if with_alpha:
        shown.add_column("α mean", justify="right")
        shown.add_column("α range", justify="right")
    for line in lines:
        cells = [
            str(line["epoch"]),
            f"{line['step']:,}",
            f"{line['loss']:.4f}",
            *(f"{100 * line[m]:.2f}" for m in metrics),
        ]
        if with_alpha:
            cells += [f"{line['alpha_mean']:.3f}", f"{line['alpha_min']:.3f} … {line['alpha_max']:.3f}"]
        best = line["epoch"] == result["best_epoch"]
        shown.add_row(*cells, style="bold" if best else "")
    return shown


def curves(result: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Draw training loss and metrics over epochs, and the range of α, if any."""
    lines = result["history"]
    epochs = [line["epoch"] for line in lines]
    metrics = [name for name in lines[0] if name not in _OTHER and not name.startswith("alpha_")]
    panels = 3 if "alpha_mean" in lines[0] else 2
    settings = result["settings"]
    with style():
        figure, axes = new_figure(1, panels, size=(3.4 * panels, 3.0))
        axes[0].plot(epochs, [line["loss"] for line in lines], "o-", color=INK, ms=3.5)
        axes[0].set_ylabel("training loss")
        for colour, name in zip(PALETTE, metrics, strict=False):
            axes[1].plot(
                epochs, [100 * line[name] for line in lines], "o-", color=colour, ms=3.5, label=name.replace("_", " ")
            )
        axes[1].set_ylabel("development set, %")
        axes[1].legend(frameon=False, fontsize=8)
        if panels == 3:
            axes[2].fill_between(
                epochs,
                [x["alpha_min"] for x in lines],
                [x["alpha_max"] for x in lines],
                color=PALETTE[0],
                alpha=0.25,
                lw=0,
            )
            axes[2].plot(epochs, [line["alpha_mean"] for line in lines], "o-", color=PALETTE[0], ms=3.5)
            axes[2].axhline(1, color=INK, lw=0.8, ls=":")
            axes[2].set_ylabel("α: mean and range")
        for axis in axes:
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            if len(epochs) == 1:
                axis.set_xticks(epochs)
        name = f"{'α-' if settings['alpha'] else ''}{settings['adapter']}"
        figure.suptitle(f"{settings['task']}, {name}, seed {settings['seed']}", fontsize=10)
        return save(figure, path)
