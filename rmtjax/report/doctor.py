"""A diagnosis as people read it: what is installed, then what is wrong and what to do about it."""

from __future__ import annotations

from rich.text import Text

from rmtjax._console import Table
from rmtjax.doctor import Diagnosis

__all__ = ["problems", "table"]


def table(diagnosis: Diagnosis) -> Table:
    """Return a table of the facts."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in diagnosis.facts.items():
        shown.add_row(name, value)
    return shown


def problems(diagnosis: Diagnosis) -> Text:
    """Return what is wrong with its cures, or that nothing is."""
    if not diagnosis.problems:
        return Text("\nnothing is wrong")
    lines = [
        Text.assemble("\n", ("wrong", "bold red"), f"  {problem.what}\n", ("cure", "bold"), f"   {problem.cure}")
        for problem in diagnosis.problems
    ]
    return Text("\n").join(lines)
