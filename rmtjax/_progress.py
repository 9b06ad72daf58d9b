"""A progress bar that counts; silent where nobody watches."""

from __future__ import annotations

import sys
from types import TracebackType

from rmtjax._text import visible

__all__ = ["Progress"]


class Progress:
    """A bar with trials/s and time left on standard error.

    Args:
        total: trials in all.
        label: what is running.
        shown: whether to draw it; None draws it on a terminal only.
        unit: what is counted.
    """

    def __init__(self, total: int, label: str, shown: bool | None = None, unit: str = "trials") -> None:
        self._bar = None
        if sys.stderr.isatty() if shown is None else shown:
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

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, trials: int) -> None:
        """Count finished trials."""
        if self._bar is not None:
            self._bar.advance(self._task, trials)

    def note(self, text: str) -> None:
        """Show a few words at the end of the bar."""
        if self._bar is not None:
            self._bar.update(self._task, note=visible(text))

    def show(self, done: int, total: int) -> None:
        """Set what is finished, and of how much."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
