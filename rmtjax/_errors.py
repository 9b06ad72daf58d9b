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
    exits with status 2. It is raised before anything is compiled or written. Quoted text may come from an untrusted
    file, so its control characters and line breaks are escaped.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(str(message)))


class HostError(RuntimeError):
    """Another process of a run on several hosts has ended, or cannot be reached."""

    def __init__(self, reason: str) -> None:
        super().__init__(visible(f"another process of this run has ended or cannot be reached ({reason})"))


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a run; the message reports what is done so far and how to resume."""


@contextlib.contextmanager
def stopping(how_far: Callable[[], str]) -> Iterator[None]:
    """Make Ctrl-C report the progress of a run."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(how_far()) from None


def shown(value: Any, limit: int = 60) -> str:
    """Return a value as it stands in an error message: its repr on one line, cut to `limit` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    remainder = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + remainder


def unknown(label: str, name: Any, known: Iterable[str]) -> InputError:
    """Return the error for an unknown name, with the nearest known one."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if isinstance(name, str) else []
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return InputError(f"{label} {shown(name)} is unknown{hint} (known: {', '.join(known)})")


def pattern(text: Any, where: str) -> re.Pattern[str]:
    """Return a compiled regular expression; raise InputError, beginning with `where`, for anything that is not one."""
    try:
        if isinstance(text, str):
            return re.compile(text)
        reason = ""
    except (re.error, OverflowError, RecursionError) as error:
        reason = f" ({error})"
    raise InputError(f"{where} {shown(text)}: must be a regular expression{reason}")
