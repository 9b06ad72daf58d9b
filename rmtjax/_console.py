"""Rich's console and table for untrusted text: no markup, no emoji, no control characters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import rich.console
import rich.table
from rich.segment import Segment
from rich.text import Text

from rmtjax._text import visible

__all__ = ["Console", "Table"]


class Console(rich.console.Console):
    """A console that prints strings verbatim and shows control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any):
        """See rich."""
        return super().render_str(visible(text, "\n"), **options)

    def render(self, renderable, options=None) -> Iterator[Segment]:
        """See rich."""
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text, "\n")
            yield segment if shown == segment.text else Segment(shown, segment.style)

    def on_broken_pipe(self) -> None:
        """Let the command line handle a reader that has closed the pipe."""
        raise BrokenPipeError


class Table(rich.table.Table):
    """A table whose cells hold plain text only: no markup, and line breaks as escapes."""

    def add_row(self, *cells, **options: Any) -> None:
        """See rich."""
        super().add_row(*(Text(visible(cell)) if isinstance(cell, str) else cell for cell in cells), **options)
