"""A verdict as people and programs read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from rmtjax._console import Table
from rmtjax._files import write_json, write_text
from rmtjax._text import visible
from rmtjax.montecarlo import Claim, Finding, Verdict
from rmtjax.report.mathml import spoken
from rmtjax.report.text import markdown_table, markdown_text, number

__all__ = ["as_dict", "summary", "table", "write_report"]


def _comparison(finding: Finding) -> str:
    return f"{finding.sampler} / {finding.against}"


def _probability(p: float) -> str:
    return "1" if p >= 0.995 else f"{p:.2f}" if p >= 0.01 else f"{p:.0e}"


def _verdict(finding: Finding) -> str:
    if finding.erratum:
        return "NOT REFUTED" if finding.holds else "an error, refuted"
    return "holds" if finding.holds else "REFUTED"


def table(verdict: Verdict) -> Table:
    """The verdict as a table for the terminal, a row a finding."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("claim", no_wrap=True)
    shown.add_column("output")
    shown.add_column("compared")
    for name in ("cells", "trials", "worst z", "p (Holm)"):
        shown.add_column(name, justify="right")
    shown.add_column("verdict")
    last = None
    for f in verdict.findings:
        shown.add_row(
            "" if f.claim == last else f.claim,
            f.output,
            _comparison(f),
            f"{f.tests}",
            f"{f.trials:,}",
            f"{f.z:+.2f}",
            _probability(f.p),
            Text(_verdict(f), "green" if f.as_expected else "bold red"),
        )
        last = f.claim
    return shown


def summary(verdict: Verdict) -> str:
    """One sentence for each refuted finding, then one for all."""
    lines = []
    for f in (f for f in verdict.findings if not f.as_expected):
        cell = ", ".join(f"{name} = {number(v)}" for name, v in f.cell.items())
        found = f"the mean of {f.output} is {f.mean:.6g} ± {f.se:.2g}"
        if f.erratum:
            lines.append(f"{f.claim} is an error and is not refuted: at {cell} {found}, it says {f.expected:.6g}")
        else:
            lines.append(
                f"{f.claim} is refuted ({_comparison(f)}): at {cell} {found} where {f.expected:.6g} was expected"
                f" (z = {f.z:+.1f})"
            )
    claims, errata = ({f.claim for f in verdict.findings if f.erratum == kind} for kind in (False, True))
    amiss = {f.claim for f in verdict.findings if not f.as_expected}
    tests = sum(f.tests for f in verdict.findings)
    counts = [f"{len(claims - amiss)} of {len(claims)} claims hold"] if claims else []
    counts += [f"{len(errata - amiss)} of {len(errata)} known errors are refuted"] if errata else []
    took = f" ({verdict.wall_s:.1f} s)" if verdict.wall_s else ""
    lines.append(f"{' and '.join(counts)} in {tests:,} tests at family-wise level {verdict.level:g}{took}")
    return "\n".join(map(visible, lines))


def as_dict(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain values, with the provenance of every run."""
    return {
        "holds": verdict.holds,
        "level": verdict.level,
        "wall_s": verdict.wall_s,
        "findings": [asdict(f) for f in verdict.findings],
        "runs": {f"{claim} ({method})": result.attrs for (claim, method), result in verdict.results.items()},
    }


def write_report(verdict: Verdict, claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Write ``report.html``, ``verdict.md``, ``verdict.json`` and a figure for each claim; return what was written."""
    from rmtjax.report.figures import law_against_monte_carlo, save
    from rmtjax.report.page import write_page

    header = ["claim", "output", "compared", "cells", "trials", "worst z", "p (Holm)", "verdict"]
    rows = [
        [
            f.claim, f.output, _comparison(f), str(f.tests), f"{f.trials:,}", f"{f.z:+.2f}", _probability(f.p),
            _verdict(f) if f.as_expected else f"**{_verdict(f)}**",
        ]
        for f in verdict.findings
    ]  # fmt: skip
    first = next(iter(verdict.results.values())).attrs
    made = f"Seed {first['seed']}; {first['device']}; {first['versions']}."
    said = "\n".join(map(markdown_text, summary(verdict).split("\n")))
    text = [f"# Verdict\n\n{said}.\n\n{markdown_text(made)}\n\n{markdown_table(header, rows)}"]
    written = [folder / "verdict.json", folder / "verdict.md"]
    for claim in claims:
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', claim.name).lstrip('.')}.png"
        figure = law_against_monte_carlo(verdict.results[claim.name, claim.sampler()[0]], claim=claim)
        save(figure, folder / name)
        written.append(folder / name)
        label, source, equation = map(markdown_text, (claim.name, claim.source, spoken(claim.equation)))
        text.append(f"\n## {label}\n\n{source}: {equation}\n\n![{label}]({name})\n")
    write_json(written[0], as_dict(verdict))
    write_text(written[1], "".join(text))
    return [write_page(verdict, folder / "report.html", claims), *written]
