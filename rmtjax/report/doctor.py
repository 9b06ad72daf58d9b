"""The report of a diagnosis: a table of facts, and problems with suggested fixes."""

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
    """Return the problems with suggested fixes, or a statement that there are none."""
    if not diagnosis.problems:
        return Text("\nnothing is wrong")
    lines = [
        Text.assemble("\n", ("wrong", "bold red"), f"  {problem.what}\n", ("cure", "bold"), f"   {problem.cure}")
        for problem in diagnosis.problems
    ]
    return Text("\n").join(lines)
