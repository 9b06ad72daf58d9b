"""The charts of the page: law and Monte Carlo with residuals, convergence, quantiles of z, and z of all tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rmtjax.report.format import number
from rmtjax.report.labels import evenly_spread, output_name, plain_symbol
from rmtjax.report.panels import Line, Panel, Table, panels_of
from rmtjax.report.svg import SHAPES, Axes, Chart, Scale, width_of

__all__ = [
    "Slope",
    "convergence",
    "law_panels",
    "overview",
    "quantiles",
    "size_axis",
    "slope_of",
]

_WIDTH, _POINTS, _TIPS = 368.0, 160, 600


def _left(y: Scale) -> float:
    return 16 + max((width_of(label, 11.5) for _, label in y.marks), default=20)


def _under(chart: Chart, label: str, left: float, top: float, right: float) -> float:
    """Write the x axis's label in at most two lines, and return their height."""
    lines, words = [], label.split(" ")
    while words:
        line = words.pop(0)
        while words and width_of(line + " " + words[0]) < right - left:
            line += " " + words.pop(0)
        lines.append(line)
    for i, line in enumerate(lines[:2]):
        chart.text((left + right) / 2, top + 14 * i, line, anchor="middle")
    return 14 * min(len(lines), 2)


def law_panels(table: Table, name: str, claim: str) -> tuple[list[Chart], int]:
    """Return the charts of the table's panels, the worst one among them, and the total number of panels."""
    panels, count = panels_of(table, most_points=_POINTS)
    return [_law_panel(table, panel, f"{name}-{i}", claim) for i, panel in enumerate(panels)], count


def _law_panel(table: Table, panel: Panel, name: str, claim: str) -> Chart:
    x, lines, title, log_y = panel.x, panel.lines, panel.title, panel.log_y
    flat = np.concatenate([line.z for line in lines])
    finite_z = flat[np.isfinite(flat)]
    worst = flat[np.argmax(np.nan_to_num(np.abs(flat), nan=-1.0, posinf=1e300))]
    description = (
        f"{claim}, {title}: {table.expected} as lines and Monte Carlo as points with bars of two standard errors"
        + ("" if x is None else f", against {table.axis_label(x)}")
        + f". Largest |z| {number(abs(float(worst)), 3)}; {int((np.abs(finite_z) <= 2).sum())} of {flat.size} points within ±2."
    )
    chart = Chart(_WIDTH, name, f"{claim}: {title}", description)
    every = np.concatenate([np.concatenate([line.mean, line.law]) for line in lines])
    top, height, gap, low = 30.0, 200.0, 16.0, 76.0
    bars = [] if log_y else [np.concatenate([line.mean - 2 * line.se, line.mean + 2 * line.se]) for line in lines]
    y = Scale.around([every, *bars], top + height, top, log=log_y)
    limit = panel.z_limit
    z_marks = [(v, f"{v:g}".replace("-", "−")) for v in (-2.0, 0.0, 2.0)] if limit < 6 else None
    z_scale = Scale(-limit, limit, top + height + gap + low, top + height + gap, marks=z_marks, most=3, note="z")
    left, right = max(_left(y), _left(z_scale)), _WIDTH - 14
    at = np.concatenate([line.at for line in lines])
    x_scale = Scale.around([at], left, right, log=panel.log_x, marks=panel.ticks, pad=0.04)
    if panel.apart:
        x_scale = Scale(float(at.min()) - 0.7, float(at.max()) + 0.7, left, right, marks=panel.ticks)

    _title(chart, title, left)
    above = Axes.draw(chart, "a", x_scale, y, below=False)
    for j, line in enumerate(lines):
        kind, px, py = f"s{j}", x_scale(line.at), y(line.law)
        high, least = y(line.law + line.allowed), y(line.law - line.allowed)
        if np.nanmax(np.abs(high - py), initial=0.0) > 1.5 and not panel.apart:
            edge = [*zip(px, high, strict=True), *zip(px[::-1], least[::-1], strict=True)]
            if np.all(np.isfinite(edge)):
                chart.fill("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in edge) + "z", kind, 0.14, above.cut)
        finite = [(a, b) for a, b in zip(px, py, strict=True) if math.isfinite(b)]
        if panel.apart:
            chart.stroke("".join(f"M{a - 14:.1f} {b:.1f}h28" for a, b in finite), kind, width=1.8)
        else:
            few = px.size <= 6  # the line between them is a guide for the eye
            chart.lines(px, py, kind, cut=above.cut, width=1.1 if few else 1.6, dash="2 3" if few else "")
            if few:
                ticks = "".join(f"M{a - 7:.1f} {b:.1f}h14" for a, b in finite)
                chart.stroke(ticks, kind, width=2.2, cut=above.cut)
    for j, line in enumerate(lines):
        px, kind = x_scale(line.at), f"s{j}"
        up, down = line.mean + 2 * line.se, line.mean - 2 * line.se
        ends = zip(px, y(np.maximum(down, 1e-300) if log_y else down), y(up), strict=True)
        bar_path = "".join(f"M{a:.1f} {b:.1f}V{c:.1f}" for a, b, c in ends if math.isfinite(b) and math.isfinite(c))
        if bar_path:
            chart.stroke(bar_path, kind, width=1.2, cut=above.cut)
        tips = _tips(table, panel, line) if flat.size <= _TIPS else None
        under = 0.9 * (len(lines) - 1 - j) if len(lines) <= 3 else 0.0  # markers beneath stay visible
        chart.markers(px, y(line.mean), kind, j, tips=tips, size=3.4 + under if line.at.size <= 40 else 2.2)

    band = z_scale(np.array([2.0, -2.0]))
    chart.fill(f"M{left:.1f} {band[0]:.1f}H{right:.1f}V{band[1]:.1f}H{left:.1f}z", "band")
    below = Axes.draw(chart, "b", x_scale, z_scale)
    chart.stroke(f"M{left:.1f} {z_scale(0):.1f}H{right:.1f}", "muted", width=0.8)
    for j, line in enumerate(lines):
        px, kind = x_scale(line.at), f"s{j}"
        inside = z_scale(np.where(np.isfinite(line.z), line.z, np.nan))
        chart.markers(px, inside, kind, j, 2.8 if line.at.size <= 60 else 1.8)
        infinite = np.isinf(line.z)
        chart.markers(px[infinite], z_scale(np.sign(line.z[infinite]) * limit * 0.9), kind, 3, 3.2, open_=True)
    bottom = top + height + gap + low + (16 if below.x.marks else 0)
    bottom += 18 + _under(chart, panel.x_label, left, bottom + 18, right)
    items = [(line.label, f"s{j}", j) for j, line in enumerate(lines) if line.label]
    if len(lines) < panel.line_count:
        items.append((f"{len(lines)} of {panel.line_count} shown", "paper", -1))
    if items:
        bottom += chart.legend(items, left - 8, bottom - 4) - 2
    source = [
        (table.expected, "ink", -1),
        ("Monte Carlo ± 2 s.e." if table.expected == "law" else "the other, ± 2 s.e.", "ink", -2),
    ]
    bottom += chart.legend(source, left - 8, bottom - 4)
    chart.height = bottom + 2
    return chart


def _tips(table: Table, panel: Panel, line: Line) -> list[str]:
    """Return the tooltip of each point."""
    places = [line.label] * line.at.size
    if panel.x is not None:
        places = [", ".join(filter(None, (line.label, table.where(panel.x, int(cell))))) for cell in line.cells]
    columns = zip(places, line.mean, line.se, line.law, line.z, strict=True)
    return [
        f"{place}: {number(mean, 6)} ± {number(se, 2)}, {table.expected} {number(law, 6)}, z = {number(z, 3)}"
        for place, mean, se, law, z in columns
    ]


def _title(chart: Chart, text: str, left: float) -> None:
    size = 13 if width_of(text, 13) < chart.width - 12 else max(10.0, 13 * (chart.width - 12) / width_of(text, 13))
    chart.text(min(left, 10), 16, text, bold=True, size=round(size, 1))


@dataclass
class Slope:
    """A power law |mean − law| ~ size^slope, its standard error, and the number of cells behind it."""

    dim: str
    slope: float
    se: float
    resolved: int
    lines: int

    def __str__(self) -> str:
        """Return the slope with as many decimals as its error makes meaningful, two or three."""
        decimals = 2 if self.se >= 0.02 else 3
        text = f"{self.slope:.{decimals}f}" + (f" ± {self.se:.{decimals}f}" if self.se >= 0.0005 else "")
        return ("0.000" + text[6:] if text.startswith("-0.000") else text).replace("-", "−")


def size_axis(table: Table) -> str | None:
    """Return the longest dim that is a size with at least two values."""
    sizes = [(n, d) for d, n in zip(table.dims, table.sizes, strict=True) if n > 1 and table.is_size(d)]
    sizes = [(n, d) for n, d in sizes if np.unique(table.values(d)).size == n and np.all(table.values(d) > 0)]
    return max(sizes, key=lambda nd: nd[0])[1] if sizes else None


def _by_size(table: Table, dim: str, array: np.ndarray) -> np.ndarray:
    """Return values with their axes in the order (output, other cells, sizes)."""
    array = np.moveaxis(array, table.dims.index(dim) + 1, -1)
    return array.reshape(array.shape[0], -1, array.shape[-1])


def slope_of(table: Table) -> Slope | None:
    """Return the common slope of log|mean − law| on log size over lines with two or more resolved sizes, each of its own height.

    A difference is resolved if it exceeds four standard errors. The error of the slope comes from the standard errors or from
    the scatter about the lines, whichever is larger.
    """
    dim = size_axis(table)
    if dim is None:
        return None
    size = np.log(table.values(dim))
    gap, se = (_by_size(table, dim, a).reshape(-1, size.size) for a in (np.abs(table.mean - table.law), table.se))
    with np.errstate(invalid="ignore"):
        resolved = np.isfinite(gap) & (gap > 4 * se) & (se > 0)
    xs, ys, errors, lines = [], [], [], 0
    for g, s, ok in zip(gap, se, resolved, strict=True):
        if ok.sum() >= 2:
            lines += 1
            xs.append(size[ok] - size[ok].mean())
            ys.append(np.log(g[ok]) - np.log(g[ok]).mean())
            errors.append(s[ok] / g[ok])
    if not lines:
        return None
    x, y, error = (np.concatenate(v) for v in (xs, ys, errors))
    total = float(np.sum(x**2))
    slope = float(np.sum(x * y) / total)
    freedom = x.size - lines - 1
    scatter = float(np.sum((y - slope * x) ** 2) / freedom / total) if freedom > 0 else 0.0
    noise = float(np.sum((x * error) ** 2)) / total**2
    return Slope(dim, slope, math.sqrt(max(scatter, noise)), int(x.size), lines)


def convergence(table: Table, name: str, claim: str, slope: Slope) -> Chart:
    """Return a chart of \\|mean − law\\| against size, with the fitted slope, and the claim's allowance if it has one."""
    dim, size = slope.dim, table.values(slope.dim)
    gap, se, allowed = (_by_size(table, dim, a) for a in (np.abs(table.mean - table.law), table.se, table.allowed))
    with np.errstate(invalid="ignore"):
        resolved = np.isfinite(gap) & (gap > 4 * se) & (se > 0)
    rows = [(o, c) for o in range(gap.shape[0]) for c in range(gap.shape[1]) if resolved[o, c].sum() >= 2]
    rows.sort(key=lambda oc: -float(gap[oc].max()))
    lines = [rows[i] for i in evenly_spread(len(rows), SHAPES, 0)]
    slope_text = f"slope {slope}"
    description = (
        f"{claim}: absolute difference of Monte Carlo mean and law against {table.axis_label(dim)} on logarithmic axes;"
        f" {slope_text} from {slope.resolved} differences above four standard errors."
    )
    chart = Chart(_WIDTH, name, f"{claim}: convergence", description)
    limits = np.where(resolved, gap, gap + 2 * se)
    shown = [limits[oc] for oc in lines] + [allowed[oc] for oc in lines if allowed[oc].all()]
    top, height = 30.0, 292.0
    y = Scale.around(shown, top + height, top, log=True)
    left, right = _left(y), _WIDTH - 14
    x = Scale.around([size], left, right, log=True, pad=0.04)
    _title(chart, f"Convergence: |mean − law|, {slope_text}", left)
    axes = Axes.draw(chart, "a", x, y)
    others = [d for d in table.dims if d != dim]
    shape = [table.sizes[table.dims.index(d)] for d in others]
    items = []
    for j, (o, c) in enumerate(lines):
        kind, px, g, s, ok = f"s{j}", x(size), gap[o, c], se[o, c], resolved[o, c]
        at = np.unravel_index(c, shape) if shape else ()
        where = [table.where(d, int(i)) for d, i, n in zip(others, at, shape, strict=True) if n > 1]
        label = ", ".join([*([output_name(table.outputs[o])] if len(table.outputs) > 1 else []), *where])
        items.append((label or output_name(table.outputs[o]), kind, j))
        order = np.argsort(size)
        if allowed[o, c].all():
            chart.lines(px[order], y(allowed[o, c])[order], kind, width=1, dash="1.5 3", cut=axes.cut, opacity=0.8)
        centre = np.exp(np.mean(np.log(g[ok]) - slope.slope * np.log(size[ok])))
        chart.lines(px[order], y(centre * size**slope.slope)[order], kind, width=1.2, dash="6 4", cut=axes.cut)
        bars = zip(px[ok], y(np.maximum(g - 2 * s, 1e-300))[ok], y(g + 2 * s)[ok], strict=True)
        chart.stroke("".join(f"M{a:.1f} {b:.1f}V{d:.1f}" for a, b, d in bars), kind, width=1.2, cut=axes.cut)
        tips = [
            f"{label} {plain_symbol(dim)} = {number(v)}: {number(w, 3)} ± {number(e, 2)}"
            for v, w, e in zip(size, g, s, strict=True)
        ]
        chart.markers(px[ok], y(g)[ok], kind, j, 3.6, [t for t, k in zip(tips, ok, strict=True) if k])
        unresolved = ~ok & np.isfinite(limits[o, c])
        chart.markers(
            px[unresolved],
            y(limits[o, c])[unresolved],
            kind,
            j,
            3.2,
            [f"at most {t}" for t, k in zip(tips, unresolved, strict=True) if k],
            open_=True,
        )
    bottom = top + height + 16
    bottom += 18 + _under(chart, table.axis_label(dim), left, bottom + 18, right)
    if len(lines) < len(rows):
        items.append((f"{len(lines)} of {len(rows)} shown", "paper", -1))
    chart.height = bottom + chart.legend(items, left - 8, bottom - 4) + 2
    return chart


def quantiles(table: Table, name: str, claim: str) -> Chart | None:
    """Return a chart of the z of every cell against normal quantiles; None if cells are few or the law is a limit."""
    z = np.sort(table.z[np.isfinite(table.z) & np.isfinite(table.beyond)])
    if z.size < 12 or table.allowed.any() or np.abs(z).max() > 12 or not z.any():
        return None
    theory = stats.norm.ppf((np.arange(z.size) + 0.5) / z.size)
    inside = int((np.abs(z) <= 2).sum())
    description = f"{claim}: z of {z.size} cells against quantiles of the normal law; {inside} within ±2,"
    description += f" {0.9545 * z.size:.0f} expected."
    chart = Chart(_WIDTH, name, f"{claim}: quantiles of z", description)
    keep = evenly_spread(z.size, 300, 0)
    limit = 1.08 * max(3.0, float(np.abs(z).max()))
    reach = 1.08 * max(2.0, float(theory[-1]))
    y = Scale(-limit, limit, 322, 30)
    left = _left(y)
    x = Scale(-reach, reach, left, _WIDTH - 14)
    _title(chart, f"z of {z.size} cells, {inside} within ± 2", left)
    axes = Axes.draw(chart, "a", x, y)
    end = min(reach, limit)
    chart.lines(x(np.array([-end, end])), y(np.array([-end, end])), "muted", width=1.2, dash="6 4", cut=axes.cut)
    chart.markers(x(theory[keep]), y(z[keep]), "s0", 0, 2.8)
    bottom = 338 + 18 + _under(chart, "quantile of the normal law", left, 356, _WIDTH - 14)
    items = [("z", "s0", -2), ("what independent cells of a true law would lie near", "muted", -1)]
    chart.height = bottom + chart.legend(items, left - 8, bottom - 4) + 2
    return chart


def overview(rows: Sequence[tuple[str, np.ndarray, bool]], name: str) -> Chart:
    """Return a chart of the z of every test, one row per claim: (name, z, whether all is as expected)."""
    reach, step = 6.0, 19.0
    wide = min(max(width_of(label, 12) for label, _, _ in rows) + 40, 264)
    count = sum(z.size for _, z, _ in rows)
    off = sum(int((np.abs(np.nan_to_num(z, posinf=9e9, neginf=-9e9)) > reach).sum()) for _, z, _ in rows)
    description = f"z-scores of {count} tests of {len(rows)} claims, a row a claim, beyond each claim's allowance."
    description += f" {off} lie beyond ±{reach:g}."
    chart = Chart(760, name, "z-scores of all tests", description)
    top, bottom = 8.0, 8.0 + step * len(rows)
    x = Scale(
        -reach * 1.08, reach * 1.08, wide, 748, marks=[(float(v), f"{v}".replace("-", "−")) for v in range(-6, 7, 2)]
    )
    y = Scale(0, 1, bottom, top, marks=[])
    band = x(np.array([-2.0, 2.0]))
    chart.fill(f"M{band[0]:.1f} {top:.1f}H{band[1]:.1f}V{bottom:.1f}H{band[0]:.1f}z", "band")
    Axes.draw(chart, "a", x, y)
    chart.stroke(f"M{x(0):.1f} {top:.1f}V{bottom:.1f}", "muted", width=0.8)
    for i, (label, z, good) in enumerate(rows):
        middle = top + (i + 0.5) * step
        short = label if len(label) <= 34 else label[:33] + "…"
        chart.text(4, middle + 4, f"{'✓' if good else '✗'} {short}", "ink" if good else "s7", bold=not good)
        z = np.where(np.isnan(z), np.nan, np.clip(z, -1e9, 1e9))
        z = z[[*evenly_spread(z.size, 150, int(np.argmax(np.nan_to_num(np.abs(z)))))]] if z.size else z
        kind = "s0" if good else "s7"
        inside = z[np.abs(z) <= reach]
        chart.markers(x(inside), np.full(inside.size, middle), kind, 0, 2.6)
        for sign in (-1, 1):
            if (sign * z > reach).any():
                tip = x.end - 3 if sign > 0 else x.start + 3
                chart.fill(f"M{tip:.1f} {middle:.1f}l{-sign * 8} -4.5v9z", kind)
    chart.text(
        (wide + 748) / 2, bottom + 32, "z beyond the claim’s allowance; an arrow stands for |z| > 6", anchor="middle"
    )
    chart.height = bottom + 42
    return chart
