"""The charts of the page: law and Monte Carlo with residuals, convergence, quantiles of z, z of everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from rmtjax.montecarlo.claim import Claim
from rmtjax.montecarlo.hypothesis_tests import beyond
from rmtjax.montecarlo.result import z_score
from rmtjax.montecarlo.verify import allowance
from rmtjax.report.format import number
from rmtjax.report.labels import evenly_spread, is_logarithmic, output_name, plain_symbol
from rmtjax.report.svg import SHAPES, Axes, Chart, Scale, width_of

__all__ = [
    "Slope",
    "Table",
    "convergence",
    "law_panels",
    "overview",
    "quantiles",
    "size_axis",
    "slope_of",
]

_WIDTH, _PANELS, _POINTS, _TIPS = 368.0, 6, 160, 600
_SIZES = frozenset(("N", "M", "n", "m", "p", "d", "size", "width", "dimension"))


@dataclass
class Table:
    """A result as plain arrays, (output, cells of the grid…).

    Attributes:
        outputs, dims: names; `sizes` goes with the dims.
        coords: by parameter, its dim (None where it is fixed) and values.
        meaning: by parameter, in words.
        mean, se, law, z, trials: as in the result.
        allowed: how far the law may be off by the claim's word.
        beyond: z of what exceeds that, which is what is tested.
        expected: what `law` is: the law, or the sampler that is compared with.
    """

    outputs: list[str]
    dims: list[str]
    sizes: list[int]
    coords: dict[str, tuple[str | None, np.ndarray]]
    meaning: dict[str, str]
    mean: np.ndarray
    se: np.ndarray
    law: np.ndarray
    z: np.ndarray
    trials: np.ndarray
    allowed: np.ndarray
    beyond: np.ndarray
    whole: frozenset[str]
    expected: str = "law"

    @classmethod
    def of(cls, result: xr.Dataset, claim: Claim | None = None, reference: xr.Dataset | None = None) -> Table:
        """From a result, its claim where there is one, and another sampler's result where that takes the law's place."""
        dims = [str(d) for d in result["mean"].dims if d != "output"]
        order = ("output", *dims)
        values = {n: result[n].transpose(*order).values.astype(float) for n in ("mean", "se", "law", "z")}
        trials = np.broadcast_to(result["trials"].transpose(*dims).values, values["mean"].shape[1:])
        coords: dict[str, tuple[str | None, np.ndarray]] = {}
        for name, c in result.coords.items():
            if c.dtype.kind in "fiub" and (c.ndim == 0 or (c.ndim == 1 and c.dims[0] in dims)):
                coords[str(name)] = (str(c.dims[0]) if c.ndim else None, np.atleast_1d(c.values.astype(float)))
        for dim in dims:
            coords.setdefault(dim, (dim, np.arange(float(result.sizes[dim]))))
        meaning = {n: str(result[n].attrs.get("long_name", n)) if n in result.coords else n for n in coords}
        if claim is not None and set(claim.params) >= set(coords):
            coords = {n: coords[n] for n in claim.params if n in coords}
            whole = {n for n in coords if claim.params[n].whole and n in _SIZES | {"rank"}}
        else:
            whole = {n for n, (_, v) in coords.items() if n in _SIZES and np.all(v == np.floor(v)) and np.all(v > 0)}
        expected = "law"
        if reference is not None:
            expected, other = (
                str(reference.attrs.get("method", "reference")),
                reference[["mean", "se"]].transpose(*order),
            )
            allowed = np.zeros_like(values["se"])
            values["se"], values["law"] = np.hypot(values["se"], other["se"].values), other["mean"].values
            values["z"] = tested = z_score(values["mean"] - values["law"], values["se"], values["law"])
        else:
            allowed = allowance(claim, result)
            tested = z_score(beyond(values["mean"] - values["law"], allowed), values["se"], values["law"])
        tested = np.where(trials >= 2, tested, np.nan)
        return cls(
            [str(v) for v in result["output"].values], dims, [int(result.sizes[d]) for d in dims], coords, meaning,
            **values, trials=trials, allowed=allowed, beyond=tested, whole=frozenset(whole), expected=expected,
        )  # fmt: skip

    @property
    def cells(self) -> int:
        """How many cells the grid has."""
        return math.prod(self.sizes)

    def values(self, dim: str) -> np.ndarray:
        """Values of the parameter that names a dim."""
        return self.coords[dim][1] if dim in self.coords else np.arange(float(self.sizes[self.dims.index(dim)]))

    def is_size(self, dim: str) -> bool:
        """Whether it is a dimension or a number of samples."""
        return dim in self.whole

    def where(self, dim: str, index: int) -> str:
        """``N = 10⁹``; with what moves along where the first alone does not tell."""
        names = [dim]
        if np.unique(self.values(dim)).size < self.values(dim).size:
            names += [n for n, (d, _) in self.coords.items() if d == dim and n != dim]
        return ", ".join(f"{plain_symbol(n)} = {number(float(self.coords[n][1][index]))}" for n in names)

    def columns(self) -> dict[str, np.ndarray]:
        """Every parameter in every cell, in the order of the cells."""
        index = np.indices(self.sizes).reshape(len(self.sizes), -1) if self.sizes else np.zeros((0, 1), int)
        every = {}
        for name, (dim, values) in self.coords.items():
            every[name] = np.full(self.cells, values[0]) if dim is None else values[index[self.dims.index(dim)]]
        return every

    def axis_label(self, dim: str) -> str:
        """Meaning and symbol of an axis, and what moves along with it."""
        meaning, sign = self.meaning.get(dim, dim), plain_symbol(dim)
        known = not meaning.isascii() or sign in meaning.split()
        label = sign if meaning == dim else meaning if known else f"{sign}: {meaning}"
        at, along = self.values(dim), []
        for name, (d, values) in self.coords.items():
            if d == dim and name != dim and np.all(at != 0):
                ratio = values / at
                if np.allclose(ratio, ratio[0], rtol=0.02):
                    factor = "" if abs(ratio[0] - 1) < 0.02 else number(float(f"{ratio[0]:.2g}")) + " "
                    along.append(f"{plain_symbol(name)} = {factor}{sign}")
        return f"{label} ({', '.join(along)})" if along else label


def _together(table: Table, dim: str) -> list[str]:
    """The parameters that vary along a dim."""
    return [n for n, (d, v) in table.coords.items() if d == dim and np.unique(v).size > 1] or [dim]


def _left(y: Scale) -> float:
    return 16 + max((width_of(label, 11.5) for _, label in y.marks), default=20)


def _under(chart: Chart, label: str, left: float, top: float, right: float) -> float:
    """The x axis's label in as many lines as it needs; the height."""
    lines, rest = [], label.split(" ")
    while rest:
        line = rest.pop(0)
        while rest and width_of(line + " " + rest[0]) < right - left:
            line += " " + rest.pop(0)
        lines.append(line)
    for i, line in enumerate(lines[:2]):
        chart.text((left + right) / 2, top + 14 * i, line, anchor="middle")
    return 14 * min(len(lines), 2)


def _axes_for(table: Table) -> tuple[str | None, str | None]:
    """The dims for x and for colour: the longest; a size counts half, for a limit changes little with it."""
    free = [d for d, n in zip(table.dims, table.sizes, strict=True) if n > 1]
    place = {d: i for i, d in enumerate(table.dims)}
    free.sort(key=lambda d: (-table.sizes[place[d]] * (0.5 if table.is_size(d) else 1.0), -place[d]))
    return (free[0] if free else None), (free[1] if len(free) > 1 else None)


@dataclass
class _Line:
    label: str
    at: np.ndarray
    mean: np.ndarray
    se: np.ndarray
    law: np.ndarray
    allowed: np.ndarray
    z: np.ndarray
    tips: list[str]


def law_panels(table: Table, name: str, claim: str) -> tuple[list[Chart], int]:
    """A chart for each output and value of the remaining axes, at most six with the worst among them; and of how many."""
    x, hue = _axes_for(table)
    rest = [d for d, n in zip(table.dims, table.sizes, strict=True) if n > 1 and d not in (x, hue)]
    axis = {d: i for i, d in enumerate(table.dims)}
    places = list(itertools.product(range(len(table.outputs)), *(range(table.sizes[axis[d]]) for d in rest)))
    badness = np.abs(np.nan_to_num(table.beyond, nan=0.0, posinf=1e300, neginf=-1e300))
    order = [axis[d] + 1 for d in rest]
    others = tuple(i for i in range(1, badness.ndim) if i not in order)
    worst = int(np.argmax(badness.max(axis=others).ravel())) if others else int(np.argmax(badness.ravel()))
    chosen = evenly_spread(len(places), _PANELS, worst)
    charts = []
    for k, i in enumerate(chosen):
        index: list[Any] = [places[i][0], *([0] * len(table.dims))]
        for d, j in zip(rest, places[i][1:], strict=True):
            index[axis[d] + 1] = j
        title = ", ".join([output_name(table.outputs[places[i][0]]), *(
            table.where(d, j) for d, j in zip(rest, places[i][1:], strict=True)
        )])  # fmt: skip
        charts.append(_law_panel(table, index, x, hue, f"{name}-{k}", title, claim))
    return charts, len(places)


def _law_panel(
    table: Table, index: list[Any], x: str | None, hue: str | None, name: str, title: str, claim: str
) -> Chart:
    axis = {d: i + 1 for i, d in enumerate(table.dims)}
    count = 1 if hue is None else table.sizes[axis[hue] - 1]
    values = np.zeros(1) if x is None else table.values(x)
    by_place = np.unique(values).size < values.size
    order = np.arange(values.size) if by_place else np.argsort(values, kind="stable")
    at = np.arange(float(values.size)) if by_place else values[order]

    def cut(array: np.ndarray, j: int) -> np.ndarray:
        place = list(index)
        if hue is not None:
            place[axis[hue]] = j
        if x is not None:
            place[axis[x]] = order
        return np.atleast_1d(array[tuple(place)])

    hues = range(count)
    worst_line = max(hues, key=lambda j: float(np.nan_to_num(np.abs(cut(table.beyond, j)), posinf=1e300).max()))
    lines = []
    for j in evenly_spread(count, SHAPES, worst_line):
        z = cut(table.beyond, j)
        keep = evenly_spread(
            at.size, _POINTS if count <= 2 else _POINTS // 3, int(np.argmax(np.nan_to_num(np.abs(z), posinf=1e300)))
        )
        mean, se, law = (cut(a, j)[keep] for a in (table.mean, table.se, table.law))
        where = [] if hue is None else [table.where(hue, j)]
        tips = [
            ", ".join([*where, *([] if x is None else [table.where(x, int(order[k]))])])
            + f": {number(m, 6)} ± {number(s, 2)}, {table.expected} {number(w, 6)}, z = {number(v, 3)}"
            for k, m, s, w, v in zip(keep, mean, se, law, z[keep], strict=True)
        ]
        lines.append(
            _Line(where[0] if where else "", at[keep], mean, se, law, cut(table.allowed, j)[keep], z[keep], tips)
        )

    flat = np.concatenate([z.z for z in lines])
    known = flat[np.isfinite(flat)]
    worst = flat[np.argmax(np.nan_to_num(np.abs(flat), nan=-1.0, posinf=1e300))]
    said = (
        f"{claim}, {title}: {table.expected} as lines and Monte Carlo as points with bars of two standard errors"
        + ("" if x is None else f", against {table.axis_label(x)}")
        + f". Largest |z| {number(abs(float(worst)), 3)}; {int((np.abs(known) <= 2).sum())} of {flat.size} points within ±2."
    )
    chart = Chart(_WIDTH, name, f"{claim}: {title}", said)
    every = np.concatenate([np.concatenate([n.mean, n.law]) for n in lines])
    log_y = is_logarithmic(every, 3)
    top, height, gap, low = 30.0, 200.0, 16.0, 76.0
    bars = [] if log_y else [np.concatenate([n.mean - 2 * n.se, n.mean + 2 * n.se]) for n in lines]
    y = Scale.around([every, *bars], top + height, top, log=log_y)
    limit = 1.15 * max(3.5, float(np.abs(known).max(initial=0.0)))
    z_marks = [(v, f"{v:g}".replace("-", "−")) for v in (-2.0, 0.0, 2.0)] if limit < 6 else None
    z_scale = Scale(-limit, limit, top + height + gap + low, top + height + gap, marks=z_marks, most=3, note="z")
    left, right = max(_left(y), _left(z_scale)), _WIDTH - 14
    marks = None
    if by_place:
        together = _together(table, x)
        rows = zip(*(table.coords[n][1] for n in together), strict=True)
        marks = [(float(i), ", ".join(number(float(v)) for v in row)) for i, row in enumerate(rows)]
    elif x is None:
        marks = []
    elif at.size <= 5 and not table.is_size(x):
        marks = [(float(v), number(float(v))) for v in at]
    log_x = not by_place and is_logarithmic(at)
    x_scale = Scale.around([at], left, right, log=log_x, marks=marks, pad=0.04)
    if by_place or at.size == 1:
        x_scale = Scale(
            float(at.min()) - 0.7,
            float(at.max()) + 0.7,
            left,
            right,
            marks=marks or [(float(at[0]), number(float(at[0])))],
        )
        if x is None:
            x_scale.marks = []

    _title(chart, title, left)
    above = Axes.draw(chart, "a", x_scale, y, below=False)
    for j, one in enumerate(lines):
        kind, px, py = f"s{j}", x_scale(one.at), y(one.law)
        if np.nanmax(np.abs(y(one.law + one.allowed) - y(one.law)), initial=0.0) > 1.5 and px.size > 1 and not by_place:
            edge = [
                *zip(px, y(one.law + one.allowed), strict=True),
                *zip(px[::-1], y(one.law - one.allowed)[::-1], strict=True),
            ]
            if np.all(np.isfinite(edge)):
                chart.fill("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in edge) + "z", kind, 0.14, above.cut)
        if by_place or px.size == 1:
            chart.stroke(
                "".join(f"M{a - 14:.1f} {b:.1f}h28" for a, b in zip(px, py, strict=True) if math.isfinite(b)),
                kind,
                width=1.8,
            )
        else:
            few = px.size <= 6  # what lies between is a guide for the eye
            chart.lines(px, py, kind, cut=above.cut, width=1.1 if few else 1.6, dash="2 3" if few else "")
            if few:
                ticks = "".join(f"M{a - 7:.1f} {b:.1f}h14" for a, b in zip(px, py, strict=True) if math.isfinite(b))
                chart.stroke(ticks, kind, width=2.2, cut=above.cut)
    for j, one in enumerate(lines):
        px, kind = x_scale(one.at), f"s{j}"
        up, down = (
            y(one.mean + 2 * one.se),
            y(np.maximum(one.mean - 2 * one.se, 1e-300) if log_y else one.mean - 2 * one.se),
        )
        bars_path = "".join(
            f"M{a:.1f} {b:.1f}V{c:.1f}"
            for a, b, c in zip(px, down, up, strict=True)
            if math.isfinite(b) and math.isfinite(c)
        )
        if bars_path:
            chart.stroke(bars_path, kind, width=1.2, cut=above.cut)
        tips = one.tips if flat.size <= _TIPS else None
        under = 0.9 * (len(lines) - 1 - j) if len(lines) <= 3 else 0.0  # what lies beneath looks out
        chart.markers(px, y(one.mean), kind, j, tips=tips, size=3.4 + under if one.at.size <= 40 else 2.2)

    band = z_scale(np.array([2.0, -2.0]))
    chart.fill(f"M{left:.1f} {band[0]:.1f}H{right:.1f}V{band[1]:.1f}H{left:.1f}z", "band")
    below = Axes.draw(chart, "b", x_scale, z_scale)
    chart.stroke(f"M{left:.1f} {z_scale(0):.1f}H{right:.1f}", "muted", width=0.8)
    for j, one in enumerate(lines):
        px, kind = x_scale(one.at), f"s{j}"
        chart.markers(
            px, z_scale(np.where(np.isfinite(one.z), one.z, np.nan)), kind, j, 2.8 if one.at.size <= 60 else 1.8
        )
        beyond_all = np.isinf(one.z)
        chart.markers(px[beyond_all], z_scale(np.sign(one.z[beyond_all]) * limit * 0.9), kind, 3, 3.2, open_=True)
    bottom = top + height + gap + low + (16 if below.x.marks else 0)
    label = ", ".join(map(plain_symbol, _together(table, x))) if by_place else "" if x is None else table.axis_label(x)
    bottom += 18 + _under(chart, label, left, bottom + 18, right)
    items = [(one.label, f"s{j}", j) for j, one in enumerate(lines) if one.label]
    if len(lines) < count:
        items.append((f"{len(lines)} of {count} shown", "paper", -1))
    if items:
        bottom += chart.legend(items, left - 8, bottom - 4) - 2
    source = [
        (table.expected, "ink", -1),
        ("Monte Carlo ± 2 s.e." if table.expected == "law" else "the other, ± 2 s.e.", "ink", -2),
    ]
    bottom += chart.legend(source, left - 8, bottom - 4)
    chart.height = bottom + 2
    return chart


def _title(chart: Chart, text: str, left: float) -> None:
    size = 13 if width_of(text, 13) < chart.width - 12 else max(10.0, 13 * (chart.width - 12) / width_of(text, 13))
    chart.text(min(left, 10), 16, text, bold=True, size=round(size, 1))


@dataclass
class Slope:
    """A power law |mean − law| ~ size^slope: its error, and from how many cells."""

    dim: str
    slope: float
    se: float
    resolved: int
    lines: int

    def __str__(self) -> str:
        """As many decimals as its error makes meaningful, two or three."""
        decimals = 2 if self.se >= 0.02 else 3
        told = f"{self.slope:.{decimals}f}" + (f" ± {self.se:.{decimals}f}" if self.se >= 0.0005 else "")
        return ("0.000" + told[6:] if told.startswith("-0.000") else told).replace("-", "−")


def size_axis(table: Table) -> str | None:
    """The longest dim that is a size with at least two values."""
    sizes = [(n, d) for d, n in zip(table.dims, table.sizes, strict=True) if n > 1 and table.is_size(d)]
    sizes = [(n, d) for n, d in sizes if np.unique(table.values(d)).size == n and np.all(table.values(d) > 0)]
    return max(sizes, key=lambda nd: nd[0])[1] if sizes else None


def _by_size(table: Table, dim: str, array: np.ndarray) -> np.ndarray:
    """(output, other cells, sizes)."""
    array = np.moveaxis(array, table.dims.index(dim) + 1, -1)
    return array.reshape(array.shape[0], -1, array.shape[-1])


def slope_of(table: Table) -> Slope | None:
    """The common slope of log|mean − law| on log size over lines with at least two resolved sizes, each with its own height.

    Resolved is what exceeds four standard errors. The error of the slope is from the standard errors or from the scatter
    about the lines, whichever is larger.
    """
    dim = size_axis(table)
    if dim is None:
        return None
    size = np.log(table.values(dim))
    gap, se = (_by_size(table, dim, a).reshape(-1, size.size) for a in (np.abs(table.mean - table.law), table.se))
    with np.errstate(invalid="ignore"):
        seen = np.isfinite(gap) & (gap > 4 * se) & (se > 0)
    xs, ys, errors, lines = [], [], [], 0
    for g, s, ok in zip(gap, se, seen, strict=True):
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
    """\\|mean − law\\| against size, the fitted slope beside it, the allowance of the claim where it has one."""
    dim, size = slope.dim, table.values(slope.dim)
    gap, se, allowed = (_by_size(table, dim, a) for a in (np.abs(table.mean - table.law), table.se, table.allowed))
    with np.errstate(invalid="ignore"):
        resolved = np.isfinite(gap) & (gap > 4 * se) & (se > 0)
    rows = [(o, c) for o in range(gap.shape[0]) for c in range(gap.shape[1]) if resolved[o, c].sum() >= 2]
    rows.sort(key=lambda oc: -float(gap[oc].max()))
    lines = [rows[i] for i in evenly_spread(len(rows), SHAPES, 0)]
    told = f"slope {slope}"
    said = (
        f"{claim}: absolute difference of Monte Carlo mean and law against {table.axis_label(dim)} on logarithmic axes; {told}"
        f" from {slope.resolved} differences above four standard errors."
    )
    chart = Chart(_WIDTH, name, f"{claim}: convergence", said)
    limits = np.where(resolved, gap, gap + 2 * se)
    shown = [limits[oc] for oc in lines] + [allowed[oc] for oc in lines if allowed[oc].all()]
    top, height = 30.0, 292.0
    y = Scale.around(shown, top + height, top, log=True)
    left, right = _left(y), _WIDTH - 14
    x = Scale.around([size], left, right, log=True, pad=0.04)
    _title(chart, f"Convergence: |mean − law|, {told}", left)
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
        rest = ~ok & np.isfinite(limits[o, c])
        chart.markers(
            px[rest],
            y(limits[o, c])[rest],
            kind,
            j,
            3.2,
            [f"at most {t}" for t, k in zip(tips, rest, strict=True) if k],
            open_=True,
        )
    bottom = top + height + 16
    bottom += 18 + _under(chart, table.axis_label(dim), left, bottom + 18, right)
    if len(lines) < len(rows):
        items.append((f"{len(lines)} of {len(rows)} shown", "paper", -1))
    chart.height = bottom + chart.legend(items, left - 8, bottom - 4) + 2
    return chart


def quantiles(table: Table, name: str, claim: str) -> Chart | None:
    """The z of every cell against the quantiles of the normal law; None where they are few or the law is a limit."""
    z = np.sort(table.z[np.isfinite(table.z) & np.isfinite(table.beyond)])
    if z.size < 12 or table.allowed.any() or np.abs(z).max() > 12 or not z.any():
        return None
    theory = stats.norm.ppf((np.arange(z.size) + 0.5) / z.size)
    inside = int((np.abs(z) <= 2).sum())
    said = f"{claim}: z of {z.size} cells against quantiles of the normal law; {inside} within ±2,"
    said += f" {0.9545 * z.size:.0f} expected."
    chart = Chart(_WIDTH, name, f"{claim}: quantiles of z", said)
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
    """The z of every test in one row a claim: (name, z, whether all is as it should be)."""
    reach, step = 6.0, 19.0
    wide = min(max(width_of(label, 12) for label, _, _ in rows) + 40, 264)
    count = sum(z.size for _, z, _ in rows)
    off = sum(int((np.abs(np.nan_to_num(z, posinf=9e9, neginf=-9e9)) > reach).sum()) for _, z, _ in rows)
    said = f"z-scores of {count} tests of {len(rows)} claims, a row a claim, beyond each claim's allowance."
    said += f" {off} lie beyond ±{reach:g}."
    chart = Chart(760, name, "z-scores of all tests", said)
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
