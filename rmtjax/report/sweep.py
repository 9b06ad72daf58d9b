"""The cells of a sweep as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from rmtjax.report.text import number

__all__ = ["table"]

_MOST = 41
"""Rows of a terminal's table; the rest is in the JSON and the store."""


def table(rows: Sequence[Mapping[str, Any]], most: int = _MOST) -> Table:
    """Parameters that vary, then mean ± standard error, law and z of every output. Those that are fixed go on top."""
    outputs = rows[0].get("outputs")
    parameters = [k for k in rows[0] if k not in ("trials", "mean", "se", "law", "z", "outputs")]
    varying = [k for k in parameters if len({row[k] for row in rows}) > 1] or parameters
    fixed = ", ".join(f"{k} = {number(rows[0][k])}" for k in parameters if k not in varying)
    shown = Table(box=None, header_style="bold", pad_edge=False, title=fixed or None, title_justify="left")
    for name in [*varying, *(["output"] if outputs else []), "mean", "± se", "law", "z"]:
        shown.add_column(name, justify="right")
    for row in rows[:most]:
        lead = [number(row[k]) for k in varying]
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


def _digits(value: float, se: float) -> str:
    """As many decimals as the standard error makes meaningful, and one more."""
    import math

    if not math.isfinite(value):
        return str(value)
    decimals = 6 if not se > 0 else max(0, min(15, 2 - math.floor(math.log10(se))))
    return f"{value:.{decimals}f}"
