"""A verdict as one self-contained HTML page, which needs no network and no other file."""

from __future__ import annotations

import base64
import csv as csv_module
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from rmtjax._files import write_text
from rmtjax._text import visible
from rmtjax.montecarlo import Claim, Finding, Verdict
from rmtjax.montecarlo.verify import claim_of
from rmtjax.report.charts import (
    Slope,
    convergence,
    law_panels,
    overview,
    quantiles,
    size_axis,
    slope_of,
)
from rmtjax.report.format import chance, number, signed, to_precision_of, with_error
from rmtjax.report.labels import output_name, plain_symbol, verdict_word
from rmtjax.report.mathml import mathml, spoken
from rmtjax.report.panels import Table
from rmtjax.report.svg import COLOURS
from rmtjax.report.verdict import summary

__all__ = ["csv", "page", "write_page"]

_ROWS = 60
"""Largest number of cells in a table of the page; of more, those with the largest |z| are shown."""

_EMBED = 3_000_000
"""Largest number of bytes of CSV in the page."""

_SHOWN_AS = {
    "method": "sampler",
    "trials_per_cell": "trials per cell",
    "device": "device",
    "versions": "versions",
    "git_commit": "commit",
    "finished": "finished",
    "wall_s": "wall time",
    "compile_s": "of which compilation",
    "seed": "seed",
    "store": "store",
    "unfinished": "unfinished",
}


@dataclass
class _Download:
    """The download of a figure's data: a link, or the reason why it is missing."""

    name: str
    href: str | None
    size: int


@dataclass
class _Figure:
    """Charts that share a caption and data."""

    ident: str
    caption: str
    charts: list[tuple[str, str]]  # SVG and the file's name
    data: _Download


@dataclass
class _Section:
    label: str
    ident: str
    source: str
    latex: str
    math: str | None
    plain: str
    findings: list[dict[str, Any]]
    good: bool
    status: str
    finished: bool
    facts: list[tuple[str, str]]
    notes: list[str]
    parameters: list[dict[str, str]]
    figures: list[_Figure]
    header: list[str]
    rows: list[list[str]]
    rows_of: int
    provenance: list[tuple[str, list[tuple[str, str]]]]


def csv(result: xr.Dataset, claim: Claim | None = None, reference: xr.Dataset | None = None) -> str:
    """Return the data that the page offers, one row per cell: output, parameters, mean, se, law, z, trials.

    If the claim allows a bias, also the allowance and the z of the excess over it.

    Numbers are written so that they read back to the same float64. Texts are names of outputs and parameters; one
    that a spreadsheet would take for a formula is preceded by an apostrophe.

    Args:
        result: from `run` or `open_result`.
        claim: its claim, for the allowance.
        reference: another sampler's result on the same grid, which then takes the law's place.
    """
    return _csv(Table.of(result, claim, reference))


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    columns = table.columns()
    values = {
        "mean": table.mean, "se": table.se, "law" if table.expected == "law" else f"mean_{table.expected}": table.law,
        "z": table.z, **({"allowance": table.allowed, "z_beyond": table.beyond} if table.allowed.any() else {}),
    }  # fmt: skip
    writer.writerow([_text(n) for n in ("output", *columns, *values, "trials")])
    lead = [[_exact(v) for v in column] for column in columns.values()]
    trials = [int(v) for v in table.trials.ravel()]
    for i, name in enumerate(table.outputs):
        cells = ([_exact(v) for v in array[i].ravel()] for array in values.values())
        writer.writerows((_text(name), *row) for row in zip(*lead, *cells, trials, strict=True))
    return out.getvalue()


def _exact(value: float) -> str:
    value = float(value)
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _text(name: str) -> str:
    name = visible(name)
    return f"'{name}" if name[:1] in ("=", "+", "-", "@") else name


def _slug(text: str) -> str:
    """Return a text as letters, digits and single dashes."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:60].strip("-") or "claim"


class _Idents:
    """Unique names for ids and files, regardless of case. Parts of a section have two dashes in their names."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, text: str) -> str:
        base = _slug(text)
        ident, k = base, 2
        while ident.lower() in self._given:
            ident, k = f"{base}-{k}", k + 1
        self._given.add(ident.lower())
        return ident


def _many(count: int) -> str:
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,}"


def _cell(cell: dict[str, float]) -> str:
    return ", ".join(f"{plain_symbol(n)} = {number(v)}" for n, v in cell.items())


def _status(f: Finding) -> tuple[str, str]:
    """Return the status in words, and as a CSS class: good, bad or none."""
    if not f.tests:
        return "not tested", "none"
    words = {
        "holds": "holds",
        "REFUTED": "refuted",
        "an error, refuted": "error, refuted",
        "NOT REFUTED": "error, not refuted",
    }
    return words[verdict_word(f)], "good" if f.as_expected else "bad"


def _finding(f: Finding, target: str, finished: bool) -> dict[str, Any]:
    words, kind = _status(f)
    words += " so far" * (kind == "good" and not finished)
    return {
        "claim": f.claim, "target": target, "output": output_name(f.output), "compared": f"{f.sampler} / {f.against}",
        "cells": f"{f.tests:,}", "trials": f"{f.trials:,}", "z": signed(f.z) if f.tests else "–",
        "p": chance(f.p) if f.tests else "–", "status": words, "kind": kind,
        "cell": _cell(f.cell), "mean": with_error(f.mean, f.se), "expected": number(f.expected, 7),
        "expected_name": "the law" if f.against == "law" else f.against,
    }  # fmt: skip


def _span(values: np.ndarray) -> str:
    """Return the values of a parameter in a few words."""
    if values.size <= 8:
        return ", ".join(number(float(v)) for v in values)
    return f"{values.size:,} values from {number(float(values.min()))} to {number(float(values.max()))}"


def _parameters(table: Table) -> list[dict[str, str]]:
    rows = []
    for name, (dim, values) in table.coords.items():
        with_ = [n for n, (d, _) in table.coords.items() if d == dim and n != name] if dim is not None else []
        meaning = table.meaning.get(name, name)
        rows.append({
            "name": name, "symbol": plain_symbol(name), "meaning": "" if meaning == name else meaning, "values": _span(values),
            "with": ", ".join(map(plain_symbol, with_)),
        })  # fmt: skip
    return rows


def _numbers(table: Table) -> tuple[list[str], list[list[str]], int]:
    """Return heading and rows of the table of cells: all of them, or those with the largest |z|."""
    columns = table.columns()
    varying = [n for n, (d, v) in table.coords.items() if d is not None and v.size > 1] or list(columns)
    several = len(table.outputs) > 1
    flat = table.beyond.reshape(len(table.outputs), -1)
    total = flat.size
    places = [(i, j) for j in range(flat.shape[1]) for i in range(flat.shape[0])]
    if total > _ROWS:
        size = np.nan_to_num(np.abs(flat), nan=-1.0, posinf=1e300)
        worst = np.argsort(-size, axis=None, kind="stable")[:20]
        places = [tuple(int(v) for v in np.unravel_index(k, flat.shape)) for k in worst]
    mean, se, law, z = (a.reshape(flat.shape) for a in (table.mean, table.se, table.law, table.z))
    allowed = table.allowed.any()
    header = [*(["output"] if several else []), *map(plain_symbol, varying), "mean ± s.e.", table.expected, "z"]
    header += ["z beyond allowance"] if allowed else []
    rows = []
    for i, j in places:
        row = [
            *([output_name(table.outputs[i])] if several else []),
            *(number(float(columns[n][j])) for n in varying),
        ]
        row += [with_error(mean[i, j], se[i, j]), to_precision_of(law[i, j], se[i, j]), signed(z[i, j])]
        rows.append(row + ([signed(flat[i, j])] if allowed else []))
    return header, rows, total


def _provenance(result: xr.Dataset) -> list[tuple[str, str]]:
    shown = []
    for key, value in result.attrs.items():
        if key in ("claim", "equation", "source") or value is None or value == "":
            continue
        name = _SHOWN_AS.get(key, key.removeprefix("option_") if key.startswith("option_") else key)
        if key.endswith("_s") and isinstance(value, (int, float)):
            text = f"{value:,.2f} s"
        elif key == "trials_per_cell":
            text = f"{int(value):,}"
        elif key == "unfinished":
            text = "yes"
        else:
            text = str(value)
        shown.append((name, text))
    order = list(_SHOWN_AS.values())
    return sorted(shown, key=lambda kv: order.index(kv[0]) if kv[0] in order else len(order))


class _Maker:
    """Sections of a page, with their shared ids and room for data."""

    def __init__(self) -> None:
        self.idents, self.room, self.left_out = _Idents(), _EMBED, 0
        for reserved in ("overview", "printed", "top", "main", "claims", "theme", "strip", "z-scores", "tests"):
            self.idents(reserved)

    def download(self, name: str, text: str) -> _Download:
        """Return a link that contains the data, while there is room."""
        href = f"data:text/csv;charset=utf-8,{quote(text, safe=',.-+/:;()*!=@$')}"
        size = len(href)
        if size > self.room:
            self.left_out += 1
            return _Download(name, None, size)
        self.room -= size
        return _Download(name, href, size)

    def section(
        self, label: str, findings: list[Finding], result: xr.Dataset, others: dict[str, xr.Dataset],
        reference: xr.Dataset | None, claim: Claim | None, unknown: bool,
    ) -> tuple[_Section, Table]:  # fmt: skip
        ident = self.idents(label)
        table = Table.of(result, claim)
        latex, source = str(result.attrs.get("equation", "")), str(result.attrs.get("source", ""))
        slope = slope_of(table)
        charts, places = law_panels(table, f"{ident}--law", label)
        drawn = [(c.svg(), f"{ident}-{k + 1}.svg") for k, c in enumerate(charts)]
        if slope is not None:
            drawn.append((convergence(table, f"{ident}--size", label, slope).svg(), f"{ident}-convergence.svg"))
        normal = quantiles(table, f"{ident}--z", label)
        if normal is not None:
            drawn.append((normal.svg(), f"{ident}-quantiles.svg"))
        caption = "Lines are the law, points Monte Carlo with bars of two standard errors; below each, z"
        caption += " of what exceeds the claim’s allowance" if table.allowed.any() else ""
        caption += ", with ± 2 shaded."
        if len(charts) < places:
            caption += f" {len(charts)} of {places} panels, the worst among them; the data have all."
        if slope is not None and table.allowed.any():
            caption += " Dotted in the convergence: what the claim allows. Open: at most this, not resolved."
        figures = [_Figure(f"{ident}--figure", caption, drawn, self.download(f"{ident}.csv", _csv(table)))]
        for k, (method, compared) in enumerate(others.items() if reference is not None else ()):
            pair = Table.of(compared, claim, reference)
            panels, count = law_panels(pair, f"{ident}--with{k}", f"{label}, {method}")
            pair_caption = (
                f"Two samplers of the same quantity: {pair.expected} as lines, {method} as points with bars of two standard"
                " errors of the difference; below, z of the difference."
            )
            if len(panels) < count:
                pair_caption += f" {len(panels)} of {count} panels, the worst among them."
            name = f"{ident}-{_slug(method)}"
            pictures = [(c.svg(), f"{name}-{i + 1}.svg") for i, c in enumerate(panels)]
            figures.append(
                _Figure(f"{ident}--with{k}--figure", pair_caption, pictures, self.download(f"{name}.csv", _csv(pair)))
            )
        header, rows, total = _numbers(table)
        finished = not result.attrs.get("unfinished") and bool((table.trials > 0).all())
        shown = [_finding(f, ident, finished) for f in findings]
        kinds = {f["kind"] for f in shown}
        worst = next((f for kind in ("bad", "none") for f in shown if f["kind"] == kind), shown[0])
        provenance = [(str(result.attrs.get("method", "")) or "run", _provenance(result))]
        provenance += [(f"{method}, compared", _provenance(compared)) for method, compared in others.items()]
        section = _Section(
            label=label, ident=ident, source=source, status=worst["status"], finished=finished,
            latex=latex, math=mathml(latex), plain=spoken(latex), findings=shown,
            good="bad" not in kinds, facts=_facts(result, table), parameters=_parameters(table),
            notes=_notes(result, table, claim, slope, unknown, finished), figures=figures, header=header, rows=rows,
            rows_of=total, provenance=provenance,
        )  # fmt: skip
        return section, table


def _facts(result: xr.Dataset, table: Table) -> list[tuple[str, str]]:
    facts = [("sampler", str(result.attrs.get("method", "–"))), ("cells", f"{table.cells:,}")]
    least, most = (int(v) for v in (table.trials.min(), table.trials.max()))
    facts.append(("trials a cell", f"{most:,}" if least == most else f"{least:,} to {most:,}"))
    if "seed" in result.attrs:
        facts.append(("seed", str(result.attrs["seed"])))
    if isinstance(result.attrs.get("wall_s"), (int, float)):
        facts.append(("wall time", f"{result.attrs['wall_s']:.1f} s"))
    return facts


def _notes(
    result: xr.Dataset, table: Table, claim: Claim | None, slope: Slope | None, unknown: bool, finished: bool
) -> list[str]:
    notes = []
    if not finished:
        drawn = int((table.trials > 0).sum())
        notes.append(
            f"This run is not finished: {drawn:,} of {table.trials.size:,} cells have been drawn. Those without are left out."
        )
    if claim is not None and claim.erratum:
        notes.append("This is a known error, as it was printed: the data are to refute it.")
    if unknown:
        notes.append("The claim itself was not at hand, only its result. It is tested as if its law were exact.")
    if table.allowed.any():
        largest = np.nanmax(table.allowed)
        notes.append(
            "The law is a limit. The claim says how far it may be off at finite size, at most "
            f"{number(float(largest), 2)} here; a verdict counts only what exceeds that."
        )
    if slope is not None:
        notes.append(
            f"|mean − law| goes as {plain_symbol(slope.dim)} to the power {slope}, by {slope.resolved} differences above four"
            " standard errors."
        )
    elif (dim := size_axis(table)) is not None and table.sizes[table.dims.index(dim)] > 2:
        notes.append(
            f"|mean − law| stands above four standard errors at fewer than two values of {plain_symbol(dim)}: no slope."
        )
    odd = int((~np.isfinite(table.mean) & (table.trials >= 2)).sum())
    if odd:
        notes.append(f"{odd:,} {'mean is' if odd == 1 else 'means are'} not finite, which refutes a law.")
    return notes


def _printed(sections: dict[str, tuple[_Section, Table]], verdict: Verdict) -> list[dict[str, Any]]:
    """Return the printed law beside the corrected one, for each pair of claims ``erratum-…`` and ``corrected-…``."""
    rows = []
    for f in verdict.findings:
        corrected = f"corrected-{f.claim.removeprefix('erratum-')}"
        if not f.erratum or f.against != "law" or corrected not in sections or not f.claim.startswith("erratum-"):
            continue
        (wrong, _), (right, table) = sections[f.claim], sections[corrected]
        columns = table.columns()
        same = np.all(
            [columns[n] == v for n, v in f.cell.items() if n in columns] or [np.zeros(table.cells, bool)], axis=0
        )
        if not same.any() or f.output not in table.outputs:
            continue
        i, j = table.outputs.index(f.output), int(np.argmax(same))
        mean, se, law = (a.reshape(len(table.outputs), -1)[i, j] for a in (table.mean, table.se, table.law))
        rows.append({
            "source": wrong.source.removesuffix(", as printed"),
            "wrong": wrong, "right": right, "output": output_name(f.output), "cell": _cell(f.cell),
            "printed": number(f.expected, 6), "printed_drawn": with_error(f.mean, f.se), "z": signed(f.z),
            "held": number(float(law), 6), "held_drawn": with_error(float(mean), float(se)),
            "refuted": f.as_expected, "holds": right.good,
        })  # fmt: skip
    return rows


@functools.cache
def _assets() -> tuple[str, str]:
    folder = files("rmtjax.report")
    light, dark = ("".join(f"--{k}:{v[i]};" for k, v in COLOURS.items()) for i in range(2))
    style = folder.joinpath("page.css").read_text("utf-8").replace("/*light*/", light).replace("/*dark*/", dark)
    style += "".join(
        f"svg .l.{k}{{stroke:var(--{k})}}svg .a.{k},svg text.{k}{{fill:var(--{k})}}"
        f"svg .m.{k}{{fill:var(--{k});stroke:var(--paper)}}svg .m.{k}.o{{fill:var(--paper);stroke:var(--{k})}}"
        for k in COLOURS
    )
    return style, folder.joinpath("page.js").read_text("utf-8")


@functools.cache
def _template():
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    def shown(value):  # applied last to every expression in the template, so that none can be forgotten
        return visible(value) if type(value) is str else value

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=shown
    )
    environment.filters["lines"] = lambda text: Markup(escape(visible(text, "\n\t")))
    return environment.from_string(files("rmtjax.report").joinpath("page.html.jinja").read_text("utf-8"))


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def page(verdict: Verdict, claims: Iterable[Claim] = (), *, title: str = "Laws against Monte Carlo") -> str:
    """Return the page: a table of all findings, then for each claim its equation, figures, numbers and provenance.

    Everything comes from the results. If a result's claim is among those given, the page also draws the bias that the claim
    allows a limit law at finite size.

    Args:
        verdict: from `rmtjax.montecarlo.verify`, or from `rmtjax.montecarlo.judge` of stored results.
        claims: known claims, among them those of the results.
        title: its heading.

    Returns:
        HTML. Figures are SVG inside it. It holds the data of each figure as CSV, up to 3 MB in all, and says how to get
        the rest.
    """
    by_name = {claim.name: claim for claim in claims}
    maker = _Maker()
    parts: dict[str, tuple[_Section, Table]] = {}
    for label in dict.fromkeys(f.claim for f in verdict.findings):
        findings = [f for f in verdict.findings if f.claim == label]
        method = next(f.sampler for f in findings if f.against == "law")
        result = verdict.results[label, method]
        others = {f.sampler: verdict.results[label, f.sampler] for f in findings if f.against != "law"}
        claim = claim_of(result, by_name)
        parts[label] = maker.section(
            label, findings, result, others, verdict.references.get(label), claim, claim is None
        )
    sections = [section for section, _ in parts.values()]
    strip = overview([(s.label, t.beyond.ravel(), s.good) for s, t in parts.values()], "strip")
    lines = summary(verdict).split("\n")
    going = [s.label for s in sections if not s.finished]
    if going:
        runs = f"{len(going)} runs are" if len(going) > 1 else f"the run of {going[0]} is"
        lines[-1] += f"; {runs} not finished, and more trials may decide otherwise"
    tested = {(s.label) for s in sections}
    errata = {f.claim for f in verdict.findings if f.erratum}
    good = {s.label for s in sections if s.good}
    cards = []
    if tested - errata:
        cards.append((f"{len(good - errata)} of {len(tested - errata)}", "claims hold", tested - errata <= good))
    if errata:
        cards.append((f"{len(good & errata)} of {len(errata)}", "known errors refuted", errata <= good))
    cards.append((f"{sum(f.tests for f in verdict.findings):,}", "tests", None))
    drawn = sum(int(r["trials"].sum()) for r in verdict.results.values())
    cards.append((_many(drawn), "trials in all cells", None))
    style, script = _assets()
    first = next(iter(verdict.results.values())).attrs
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:"
    policy += "; base-uri 'none'; form-action 'none'"
    return _template().render(
        title=title, summary=lines[-1], refuted=lines[:-1], holds=verdict.holds, cards=cards, sections=sections,
        strip=strip.svg(), strip_data=maker.download("tests.csv", _tests_csv(verdict)), printed=_printed(parts, verdict),
        level=f"{verdict.level:g}", style=style, script=script, policy=policy, left_out=maker.left_out,
        made=[str(first[k]) for k in ("device", "versions", "finished") if first.get(k)],
        findings=[finding for s in sections for finding in s.findings],
    )  # fmt: skip


def _tests_csv(verdict: Verdict) -> str:
    """Return the findings as CSV."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow(
        ["claim", "output", "method", "against", "cells", "trials", "worst_z", "p_holm", "holds", "erratum"]
    )
    for f in verdict.findings:
        writer.writerow([
            *map(_text, (f.claim, f.output, f.sampler, f.against)), f.tests, f.trials, _exact(f.z), _exact(f.p), f.holds,
            f.erratum,
        ])  # fmt: skip
    return out.getvalue()


def write_page(
    verdict: Verdict, path: str | os.PathLike, claims: Iterable[Claim] = (), *, title: str = "Laws against Monte Carlo"
) -> Path:
    """Write `page` into a file atomically, and return its path."""
    write_text(path, page(verdict, claims, title=title))
    return Path(path)
