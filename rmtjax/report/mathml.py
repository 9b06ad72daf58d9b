"""Conversion of LaTeX equations to MathML, which browsers set and read aloud without a script."""

from __future__ import annotations

import functools
import itertools
import re
from html import escape as escape_markup
from html import unescape
from xml.etree.ElementTree import Element

from rmtjax._text import visible
from rmtjax.report.text import plain_equation

__all__ = ["mathml", "spoken"]

# fmt: off
_TAGS = frozenset((
    "math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "msub", "msup",
    "msubsup", "munder", "mover", "munderover", "mpadded", "mphantom", "mtable", "mtr", "mtd", "mmultiscripts",
    "mprescripts", "menclose", "none",
))
_ATTRIBUTES = frozenset((
    "accent", "accentunder", "columnspan", "depth", "displaystyle", "fence", "form", "height", "largeop",
    "linethickness", "lspace", "mathsize", "mathvariant", "maxsize", "minsize", "movablelimits", "notation", "rowspan",
    "rspace", "scriptlevel", "separator", "stretchy", "symmetric", "voffset", "width",
))
# fmt: on
_PLAIN = re.compile(r"[\w.%+\- ]*")
_SPACE = '<mspace width="0.167em"></mspace>'
"""The space between a function's name and its argument, which the converter omits."""


def escape(text: str) -> str:
    """Return a text without markup and control characters, safe inside a page."""
    return escape_markup(visible(text, "\n\t"))


@functools.cache
def spoken(latex: str) -> str:
    """Return an equation as one line of plain text; the LaTeX itself if it cannot be converted."""
    try:
        return plain_equation(latex)
    except Exception:  # a user's equation may be anything
        return latex


def _write(element: Element, out: list[str]) -> None:
    # The converter's texts mix character references with bare <, so they are written out here, with known names only.
    is_known = element.tag in _TAGS
    if element.tag == "mi" and unescape(element.text or "") == "~":
        out.append("<mo>∼</mo>")
        return
    if is_known:
        attributes = "".join(
            f' {k}="{escape(v)}"' for k, v in element.attrib.items() if k in _ATTRIBUTES and _PLAIN.fullmatch(v)
        )
        out.append(f"<{element.tag}{attributes}>")
    out.append(escape(unescape(element.text or "")))
    for child, following in itertools.zip_longest(element, element[1:]):
        _write(child, out)
        out.append(escape(unescape(child.tail or "")))
        if child.tag == "mi" and (child.text or "").isalpha() and len(child.text) > 1 and following is not None:
            out.append(_SPACE if following.tag in ("mi", "mn", "msub", "msup", "mfrac", "msqrt", "mrow") else "")
    if is_known:
        out.append(f"</{element.tag}>")


@functools.cache
def mathml(latex: str) -> str | None:
    """Return an equation as a ``<math>`` element that is safe in a page; None for LaTeX that cannot be converted."""
    from latex2mathml.converter import convert_to_element

    if not latex.strip():
        return None
    out: list[str] = []
    try:
        for child in convert_to_element(latex, display="block"):
            _write(child, out)
    except Exception:  # the converter has a dozen errors of its own, and its parser raises others
        return None
    alternative = escape(spoken(latex))
    return f'<math display="block" alttext="{alternative}">{"".join(out)}</math>'
