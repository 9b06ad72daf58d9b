"""The report of a verdict for people and programs."""

from __future__ import annotations

from rich.text import Text

from rmtjax._console import Table
from rmtjax._text import visible
from rmtjax.montecarlo import Verdict
from rmtjax.report.format import plain_number, probability
from rmtjax.report.labels import verdict_word

__all__ = ["summary", "table"]


def table(verdict: Verdict) -> Table:
    """Return the verdict as a table for the terminal, one row per finding."""
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
            f"{f.sampler} / {f.against}",
            f"{f.tests}",
            f"{f.trials:,}",
            f"{f.z:+.2f}",
            probability(f.p),
            Text(verdict_word(f), "green" if f.as_expected else "bold red"),
        )
        last = f.claim
    return shown


def summary(verdict: Verdict) -> str:
    """Return one sentence for each refuted finding, then one for all findings."""
    lines = []
    for f in (f for f in verdict.findings if not f.as_expected):
        cell = ", ".join(f"{name} = {plain_number(v)}" for name, v in f.cell.items())
        observed = f"the mean of {f.output} is {f.mean:.6g} ± {f.se:.2g}"
        if f.erratum:
            lines.append(f"{f.claim} is an error and is not refuted: at {cell} {observed}, it says {f.expected:.6g}")
        else:
            lines.append(
                f"{f.claim} is refuted ({f.sampler} / {f.against}): at {cell} {observed} where {f.expected:.6g} was expected"
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
