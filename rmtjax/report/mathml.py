"""Equations in LaTeX as MathML, which browsers set and read aloud without a script."""

from __future__ import annotations

import functools
import re
from html import escape, unescape
from xml.etree.ElementTree import Element

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


@functools.cache
def spoken(latex: str) -> str:
    """An equation as one line of plain text; the LaTeX itself where it cannot be read."""
    try:
        return plain_equation(latex)
    except Exception:  # a user's equation may be anything
        return latex


def _write(element: Element, out: list[str]) -> None:
    # The converter's texts hold character references beside bare <, so it is written out here, with known names only.
    known = element.tag in _TAGS
    if known:
        given = "".join(
            f' {k}="{escape(v)}"' for k, v in element.attrib.items() if k in _ATTRIBUTES and _PLAIN.fullmatch(v)
        )
        out.append(f"<{element.tag}{given}>")
    out.append(escape(unescape(element.text or "")))
    for child in element:
        _write(child, out)
        out.append(escape(unescape(child.tail or "")))
    if known:
        out.append(f"</{element.tag}>")


@functools.cache
def mathml(latex: str) -> str | None:
    """An equation as a ``<math>`` element that is safe to put into a page; None for what is no LaTeX that can be read."""
    from latex2mathml.converter import Converter

    if not latex.strip():
        return None
    out: list[str] = []
    try:
        for child in Converter(display="block").convert_to_element(latex):
            _write(child, out)
    except Exception:  # the converter has a dozen errors of its own, and its parser raises others
        return None
    alternative = escape(spoken(latex))
    return f'<math display="block" alttext="{alternative}">{"".join(out)}</math>'
