"""Equations and tables for the terminal and for Markdown."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from rmtjax._text import visible

__all__ = ["markdown_table", "markdown_text", "plain_equation"]

_NUMBERS = re.compile(r"[-+−±–.,%×*\d\s]*")


def _fraction(node, l2tobj):
    def part(argument):
        text = l2tobj.nodelist_to_text([argument]).strip()
        is_atom = re.fullmatch(r"√\([^()]*\)|[^ +\-−/]*", text)
        return text if is_atom else f"({text})"

    over, under = node.nodeargd.argnlist
    return f"{part(over)}/{part(under)}"


@functools.cache
def _converter():
    from pylatexenc import latex2text, latexwalker, macrospec

    walker = latexwalker.get_default_latex_context_db()
    walker.add_context_category(
        "fractions", macros=[macrospec.MacroSpec(name, "{{") for name in ("frac", "tfrac", "dfrac")], prepend=True
    )
    text = latex2text.get_default_latex_context_db()
    text.add_context_category(
        "fractions",
        macros=[
            *(latex2text.MacroTextSpec(name, _fraction) for name in ("frac", "tfrac", "dfrac")),
            latex2text.MacroTextSpec("|", "‖"),
            latex2text.MacroTextSpec("top", "ᵀ"),
            latex2text.MacroTextSpec("star", "*"),
        ],
        prepend=True,
    )
    to_text = latex2text.LatexNodes2Text(latex_context=text, math_mode="text")
    return lambda latex: to_text.nodelist_to_text(
        latexwalker.LatexWalker(f"${latex}$", latex_context=walker).get_latex_nodes()[0]
    )


def plain_equation(latex: str) -> str:
    """Return an equation in LaTeX as one line of plain text, for terminals."""
    text = _converter()(latex).replace("^ᵀ", "ᵀ").replace("^*", "*").replace("^2", "²").replace("^-1", "⁻¹")
    for digit, subscript in zip("0123456789", "₀₁₂₃₄₅₆₇₈₉", strict=True):
        text = text.replace(f"_{digit}", subscript)
    return " ".join(text.split())


def markdown_text(text: str) -> str:
    """Return a text in Markdown that starts no HTML element and stays on its line."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", visible(text))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are aligned to the right."""
    header, *rows = [[markdown_text(cell).replace("|", r"\|") for cell in row] for row in (header, *rows)]
    numbers = [all(_NUMBERS.fullmatch(cell) for cell in column) for column in zip(*rows, strict=True)]
    rule = ["--:" if right else "---" for right in numbers or [False] * len(header)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows)) + "\n"
