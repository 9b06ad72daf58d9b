"""The exceptions of the package."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rmtjax._text import visible


class InputError(ValueError):
    """An argument, file or store that cannot be used.

    The message is one line that names the argument, its value and what is allowed. The command line prints it and
    exits with status 2. It is raised before anything is compiled or written. What the message quotes may come from a
    stranger's file, so control characters and line breaks in it are escapes.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(str(message)))


class HostError(RuntimeError):
    """Another process of a run on several hosts has ended, or cannot be reached."""

    def __init__(self, reason: str) -> None:
        super().__init__(visible(f"another process of this run has ended or cannot be reached ({reason})"))


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is done by then and how to resume the run."""


@contextlib.contextmanager
def stopping(how_far: Callable[[], str]) -> Iterator[None]:
    """Make Ctrl-C report the progress of a run."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(how_far()) from None


def shown(value: Any, limit: int = 60) -> str:
    """A value as it stands in an error message: its repr on one line, cut to `limit` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first few of some names, and the number of the others."""
    remainder = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + remainder


def unknown(label: str, name: Any, known: Iterable[str]) -> InputError:
    """Return the error for an unknown name, with the nearest known one."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if isinstance(name, str) else []
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return InputError(f"{label} {shown(name)} is unknown{hint} (known: {', '.join(known)})")


def pattern(text: Any, where: str) -> re.Pattern[str]:
    """A regular expression; InputError, beginning with `where`, if it is none or Python cannot compile it."""
    try:
        if isinstance(text, str):
            return re.compile(text)
        reason = ""
    except (re.error, OverflowError, RecursionError) as error:
        reason = f" ({error})"
    raise InputError(f"{where} {shown(text)}: is no regular expression{reason}")
