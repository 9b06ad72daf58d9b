"""Progress of long calls: a bar on a terminal, or reports to a function of the caller's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rmtjax._errors import InputError, shown
from rmtjax._text import visible

__all__ = ["Progress", "Report", "Reporter"]


@dataclass(frozen=True)
class Progress:
    """The progress of a call.

    Attributes:
        done: units done so far.
        total: units in all; it may grow.
        unit: the name of the unit, such as trials or layers.
        note: the present step.
    """

    done: int
    total: int
    unit: str
    note: str = ""


Report = bool | Callable[[Progress], None] | None
"""The argument `progress` of every long call: True draws a bar on standard error and None does so on a terminal only; a function
is called with a `Progress` after every step."""


class Reporter:
    """Reports the progress of a call to a terminal or a function; used in a `with` statement.

    Args:
        total: units in all.
        label: the name of the call, in front of the bar.
        progress: receiver of the reports.
        unit: the name of the unit.

    Raises:
        InputError: if `progress` is none of the allowed values.
    """

    def __init__(self, total: int, label: str, progress: Report = None, unit: str = "trials") -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise InputError(f"progress = {shown(progress)}: must be True, False, None or a function of a Progress")
        self._tell = progress if callable(progress) else None
        self._now = Progress(0, total, unit)
        self._bar = None
        if self._tell is None and (sys.stderr.isatty() if progress is None else progress):
            from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
            from rich.text import Text

            from rmtjax._console import Console

            class Rate(ProgressColumn):
                def render(self, task):
                    speed = task.finished_speed or task.speed
                    if not speed:
                        return Text("starting …")
                    return Text(f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2f} {unit}/s")

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%", markup=False),
                Rate(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(visible(label), total=total, note="")

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int, note: str | None = None) -> None:
        """Count the units finished since the last call, and report them."""
        self.show(self._now.done + count, self._now.total, note)

    def note(self, text: str) -> None:
        """Report the present step in a few words."""
        self.show(self._now.done, self._now.total, text)

    def show(self, done: int, total: int, note: str | None = None) -> None:
        """Report the units done, the total and the present step."""
        note = self._now.note if note is None else note
        self._now = Progress(done, total, self._now.unit, note)
        if self._tell is not None:
            self._tell(self._now)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, note=visible(note))
