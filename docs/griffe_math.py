"""Sphinx-style equations of docstrings, carried through Markdown.

Like those of pages they travel as inline code that holds LaTeX in base 64, and `docs/hooks.py` sets them as MathML.
"""

from __future__ import annotations

import base64
import re

import griffe

_INLINE = re.compile(r":math:`([^`]+)`")
_BLOCK = re.compile(r"^( *)\.\. math::[ ]*\n((?:\1[ ]+\S.*(?:\n|\Z)|[ ]*\n)+)", re.MULTILINE)


def wrapped(kind: str, latex: str) -> str:
    """Return LaTeX as inline code; `kind` is `math` or `math-block`."""
    return f"`{kind}:{base64.b64encode(' '.join(latex.split()).encode()).decode()}`"


def _block(match: re.Match) -> str:
    latex = match[2].strip()
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{split}} {latex} \end{{split}}"  # "aligned" is unknown to latex2mathml
    return f"{match[1]}{wrapped('math-block', latex)}\n\n"


class SphinxMath(griffe.Extension):
    """Wraps the equations in ``:math:`` and ``.. math::``."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Wrap the equations of an object; Griffe calls this with everything that it has read."""
        if obj.docstring is not None:
            text = _BLOCK.sub(_block, obj.docstring.value)
            obj.docstring.value = _INLINE.sub(lambda m: wrapped("math", m[1]), text)
