"""Safe text output: untrusted names cannot control a terminal, and no stream fails on a character."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import unicodedata

__all__ = ["ascii_json", "close_output", "prepare_streams", "say", "visible", "visible_json"]


def visible(text: str, keep: str = "") -> str:
    r"""Return a text with every unprintable character escaped: ``\x1b``, ``\n``, ``\u202e``.

    Unprintable are control characters, line separators, marks that change the direction of text or have no width, and lone
    surrogates: the characters that `str.isprintable` rejects, except for spaces of other widths.

    Args:
        text: the text to show.
        keep: characters that stay, such as the line breaks of a text of several lines.

    Examples:
        >>> print(visible("a\x1b[2Jb\nc"))
        a\x1b[2Jb\nc
    """
    if text.isprintable():
        return text
    return "".join(c if _prints(c) or c in keep else repr(c)[1:-1] for c in text)


def _prints(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _json_escape(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def visible_json(text: str) -> str:
    """Return JSON of the same content with unprintable characters escaped; line breaks between items stay."""
    if text.replace("\n", "").isprintable():
        return text
    return re.sub(r"[^\n -~]", lambda c: c.group() if _prints(c.group()) else _json_escape(c), text)


def ascii_json(text: str) -> str:
    """Return JSON of the same content in pure ASCII."""
    return text if text.isascii() else re.sub(r"[^\x00-\x7f]", _json_escape, text)


def prepare_streams() -> None:
    """Let standard output and error escape characters that they cannot encode, and discard output where they are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Write a line to standard error; it is lost if nobody reads it."""
    with contextlib.suppress(OSError):
        print(visible(text), file=sys.stderr, flush=True)


def close_output() -> None:
    """Discard the buffered rest of standard output after its reader has closed the pipe."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
