"""Names for display: symbols of parameters, outputs in words, verdicts, and a choice of the values to show."""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from rmtjax._text import visible
from rmtjax.montecarlo import Finding

__all__ = [
    "evenly_spread",
    "greek",
    "is_logarithmic",
    "literal",
    "output_name",
    "plain_symbol",
    "verdict_word",
    "with_subscripts",
]

_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def greek(word: str) -> str | None:
    """Return the letter of a name such as alpha; None if it is not a Greek letter's name."""
    try:
        return unicodedata.lookup(f"GREEK SMALL LETTER {word.upper().replace('LAMBDA', 'LAMDA')}")
    except KeyError:
        return None


def plain_symbol(name: str) -> str:
    """Return the symbol of a parameter or output in plain text.

    >>> [plain_symbol(name) for name in ("mu_perp", "alpha_star", "theta1", "eps", "N")]
    ['μ⊥', 'α*', 'θ₁', 'ε', 'N']
    """
    head, _, tail = name.partition("_")
    letters = head.rstrip("0123456789")
    letter = "ε" if letters == "eps" else greek(letters)
    if letter:
        head = letter + head[len(letters) :].translate(_SUBSCRIPT)
    if tail in ("perp", "star"):
        return head + {"perp": "⊥", "star": "*"}[tail]
    return f"{head}_{greek(tail) or tail}" if tail else head


def literal(text: str) -> str:
    """Return a text that Matplotlib shows literally: no dollar starts mathematics, control characters are escaped."""
    return visible(text, "\n").replace("$", r"\$")


def with_subscripts(text: str) -> str:
    r"""Return a text for Matplotlib in which subscripts are set as mathematics.

    >>> with_subscripts("alignment β of μ_β, γ_source = 1")
    'alignment β of $μ_{\\mathrm{β}}$, $γ_{\\mathrm{source}}$ = 1'
    """
    return re.sub(r"(?<!\w)(\w)_(\w+)", r"$\1_{\\mathrm{\2}}$", literal(text))


def output_name(name: str) -> str:
    """Return an output's name in words, or its symbol if it begins with the name of a Greek letter.

    >>> output_name("alpha_star"), output_name("left_overlap")
    ('α*', 'left overlap')
    """
    return plain_symbol(name) if greek(name.partition("_")[0]) else name.replace("_", " ")


def verdict_word(finding: Finding) -> str:
    """Return the verdict of a finding; capitals mark one that is not as it should be."""
    if finding.erratum:
        return "NOT REFUTED" if finding.holds else "an error, refuted"
    return "holds" if finding.holds else "REFUTED"


def is_logarithmic(values: np.ndarray, decades: float = 2) -> bool:
    """Return whether positive values span so many powers of ten that an axis should be logarithmic."""
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > values.min() * 10**decades)


def evenly_spread(count: int, most: int, keep: int) -> list[int]:
    """Return at most `most` of range(count), evenly spread, with `keep` among them."""
    if count <= most:
        return list(range(count))
    chosen = np.unique(np.linspace(0, count - 1, most).round().astype(int))
    chosen[np.argmin(np.abs(chosen - keep))] = keep
    return sorted(set(chosen.tolist()))
