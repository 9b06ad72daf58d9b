"""The cells of a sweep as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from rmtjax._console import Table
from rmtjax.report.format import byte_count, duration, plain_number

if TYPE_CHECKING:
    import xarray as xr

    from rmtjax.montecarlo import Estimate, Run

__all__ = ["plan", "summary", "table"]

_MOST = 41
"""Rows of a table in the terminal; the others are in the JSON and the store."""


def table(rows: Sequence[Mapping[str, Any]], most: int = _MOST) -> Table:
    """Return the varying parameters, then mean ± standard error, law and z of every output. Fixed ones go on top."""
    outputs = rows[0].get("outputs")
    parameters = [k for k in rows[0] if k not in ("trials", "mean", "se", "law", "z", "outputs")]
    varying = [k for k in parameters if len({row[k] for row in rows}) > 1] or parameters
    fixed = ", ".join(f"{k} = {plain_number(rows[0][k])}" for k in parameters if k not in varying)
    shown = Table(box=None, header_style="bold", pad_edge=False, title=fixed or None, title_justify="left")
    for name in [*varying, *(["output"] if outputs else []), "mean", "± se", "law", "z"]:
        shown.add_column(name, justify="right")
    for row in rows[:most]:
        lead = [plain_number(row[k]) for k in varying]
        for name, cell in ((outputs and row["outputs"]) or {"": row}).items():
            z = cell["z"]
            # Beyond 4 standard errors the law, or its limit at this size, is visibly off.
            style = "bold red" if z is None or abs(z) > 4 else ""
            values = [_digits(cell["mean"], cell["se"]), f"{cell['se']:.1e}", _digits(cell["law"], cell["se"])]
            shown.add_row(*lead, *([name] if outputs else []), *values, Text(f"{z:+.2f}", style))
    if len(rows) > most:
        shown.add_row(*(["…"] * len(shown.columns)))
        shown.caption = f"{len(rows) - most:,} more cells; --json and --out hold them all"
        shown.caption_justify = "left"
    return shown


def summary(result: xr.Dataset, until: float | Mapping[str, float] | None = None) -> str:
    """Return the number of trials, the method and the time; and the cells that are less precise than `until` requires."""
    trials, attributes = result["trials"].values, result.attrs
    least, most = (f"{int(f(trials)):,}" for f in (np.min, np.max))
    each = most if least == most else f"{least} to {most}"
    text = (
        f"{trials.size:,} cells × {each} trials ({attributes['method']}) in {attributes['wall_s']:.2f} s, of which"
        f" {attributes['compile_s']:.2f} s to compile"
    )
    targets = (
        until if isinstance(until, Mapping) else dict.fromkeys(result["output"].values.tolist(), until or math.inf)
    )
    for name, target in targets.items():
        se = result["se"].sel(output=name).values
        short = se[se > target]
        if short.size:
            text += (
                f"\n{name}: {short.size:,} of {se.size:,} cells ended at --trials before their standard error was"
                f" {target:g}; the largest is {short.max():.2g}"
            )
    return text


def plan(run: Run, estimate: Estimate) -> str:
    """Return the estimated cost of a run in three lines."""
    device = run.programs.devices[0]
    crew = f"{estimate.workers} cores" if device.platform == "cpu" else f"{estimate.workers} × {device.device_kind}"
    stored = f", {estimate.done:,} of them stored already" if estimate.done else ""
    programs = f"{estimate.programs:,} program{'s' * (estimate.programs != 1)}"
    about = "about " if run.plan.until is not None else ""
    return (
        f"{run.claim.name} ({run.sampler}): {estimate.cells:,} cells, {about}{estimate.trials:,} trials{stored}\n"
        f"about {duration(estimate.seconds)} on {crew} after {estimate.compile_s:.1f} s to compile {programs}\n"
        f"about {byte_count(estimate.memory)} of memory, {byte_count(estimate.stored)} in a store"
    )


def _digits(value: float, se: float) -> str:
    """Return a value with one decimal more than its standard error makes meaningful."""
    if not math.isfinite(value):
        return str(value)
    decimals = 6 if not se > 0 else max(0, min(15, 2 - math.floor(math.log10(se))))
    return f"{value:.{decimals}f}"
