"""The output folder of `verify --out` and `report`: the page, tables, numbers and a figure for each claim."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rmtjax._files import write_json, write_text
from rmtjax.montecarlo import Claim, Verdict
from rmtjax.report.figures import law_against_monte_carlo, save
from rmtjax.report.format import probability
from rmtjax.report.labels import verdict_word
from rmtjax.report.mathml import spoken
from rmtjax.report.page import write_page
from rmtjax.report.text import markdown_table, markdown_text
from rmtjax.report.verdict import summary

__all__ = ["write_report"]


def write_report(verdict: Verdict, claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Write ``report.html``, ``verdict.md``, ``verdict.json`` and a figure for each claim; return the paths."""
    header = ["claim", "output", "compared", "cells", "trials", "worst z", "p (Holm)", "verdict"]
    rows = [
        [
            f.claim, f.output, f"{f.sampler} / {f.against}", str(f.tests), f"{f.trials:,}", f"{f.z:+.2f}", probability(f.p),
            verdict_word(f) if f.as_expected else f"**{verdict_word(f)}**",
        ]
        for f in verdict.findings
    ]  # fmt: skip
    first = next(iter(verdict.results.values())).attrs
    provenance = f"Seed {first['seed']}; {first['device']}; {first['versions']}."
    summary_text = "\n".join(map(markdown_text, summary(verdict).split("\n")))
    text = [f"# Verdict\n\n{summary_text}.\n\n{markdown_text(provenance)}\n\n{markdown_table(header, rows)}"]
    written = [folder / "verdict.json", folder / "verdict.md"]
    for claim in claims:
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', claim.name).lstrip('.')}.png"
        figure = law_against_monte_carlo(verdict.results[claim.name, claim.sampler()[0]], claim=claim)
        save(figure, folder / name)
        written.append(folder / name)
        label, source, equation = map(markdown_text, (claim.name, claim.source, spoken(claim.equation)))
        text.append(f"\n## {label}\n\n{source}: {equation}\n\n![{label}]({name})\n")
    write_json(written[0], verdict.to_dict())
    write_text(written[1], "".join(text))
    return [write_page(verdict, folder / "report.html", claims), *written]
