"""The content of charts of law against Monte Carlo, independent of drawing: panels, lines, axes and labels.

`charts` draws a panel as SVG for the page, `figures` with Matplotlib.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from rmtjax._checks import one_of
from rmtjax._errors import InputError
from rmtjax.montecarlo.claim import Claim
from rmtjax.montecarlo.grid import grid, zipped
from rmtjax.montecarlo.hypothesis_tests import beyond
from rmtjax.montecarlo.result import z_score
from rmtjax.montecarlo.verify import allowance
from rmtjax.report.format import number
from rmtjax.report.labels import evenly_spread, is_logarithmic, output_name, plain_symbol

__all__ = ["LINES", "PANELS", "Line", "Panel", "Table", "panels_of"]

PANELS, LINES = 6, 8
"""Largest number of panels of a chart, and of lines of a panel."""

_CURVE = 200
_FEW = 16
"""Whole numbers that span less than this may be kinds, such as the β of an ensemble: nothing is drawn between them."""

_SIZES = frozenset(("N", "M", "n", "m", "p", "d", "size", "width", "dimension"))


@dataclass
class Table:
    """A result as plain arrays, (output, cells of the grid…).

    Attributes:
        outputs, dims: names; `sizes` goes with the dims.
        coords: by parameter, its dim (None if it is fixed) and values.
        meaning: by parameter, in words.
        mean, se, law, z, trials: as in the result.
        allowed: the bias that the claim allows the law.
        beyond: z of the excess over that, which is tested.
        integers: the parameters that are whole numbers.
        expected: the name of `law`: the law, or the sampler that the result is compared with.
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
    integers: frozenset[str]
    expected: str = "law"

    @classmethod
    def of(cls, result: xr.Dataset, claim: Claim | None = None, reference: xr.Dataset | None = None) -> Table:
        """Return the table of a result, with its claim if it has one, and another sampler's result in place of the law."""
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
            integers = {n for n in coords if claim.params[n].whole}
        else:
            integers = {n for n, (_, v) in coords.items() if n in _SIZES and np.all(v == np.floor(v)) and np.all(v > 0)}
        expected = "law"
        if reference is not None:
            expected, moments = (
                str(reference.attrs.get("method", "reference")),
                reference[["mean", "se"]].transpose(*order),
            )
            allowed = np.zeros_like(values["se"])
            values["se"], values["law"] = np.hypot(values["se"], moments["se"].values), moments["mean"].values
            values["z"] = tested = z_score(values["mean"] - values["law"], values["se"], values["law"])
        else:
            allowed = allowance(claim, result)
            tested = values["z"]
            if allowed.any():
                tested = z_score(beyond(values["mean"] - values["law"], allowed), values["se"], values["law"])
        tested = np.where(trials >= 2, tested, np.nan)
        return cls(
            [str(v) for v in result["output"].values], dims, [int(result.sizes[d]) for d in dims], coords, meaning,
            **values, trials=trials, allowed=allowed, beyond=tested, integers=frozenset(integers), expected=expected,
        )  # fmt: skip

    @property
    def cells(self) -> int:
        """The number of cells of the grid."""
        return math.prod(self.sizes)

    def values(self, dim: str) -> np.ndarray:
        """Return the values of the parameter that names a dim."""
        return self.coords[dim][1] if dim in self.coords else np.arange(float(self.sizes[self.dims.index(dim)]))

    def is_size(self, dim: str) -> bool:
        """Return whether a parameter is a dimension or a number of samples."""
        return dim in self.integers and dim in _SIZES | {"rank"}

    def where(self, dim: str, index: int) -> str:
        """Return ``N = 10⁹``, with the parameters that vary along if the first one is ambiguous."""
        names = [dim]
        if np.unique(self.values(dim)).size < self.values(dim).size:
            names += [n for n, (d, _) in self.coords.items() if d == dim and n != dim]
        return ", ".join(f"{plain_symbol(n)} = {number(float(self.coords[n][1][index]))}" for n in names)

    def columns(self) -> dict[str, np.ndarray]:
        """Return every parameter in every cell, in the order of the cells."""
        index = np.indices(self.sizes).reshape(len(self.sizes), -1) if self.sizes else np.zeros((0, 1), int)
        every = {}
        for name, (dim, values) in self.coords.items():
            every[name] = np.full(self.cells, values[0]) if dim is None else values[index[self.dims.index(dim)]]
        return every

    def axis_label(self, dim: str) -> str:
        """Return meaning and symbol of an axis, and the parameters that vary along with it."""
        meaning, sign = self.meaning.get(dim, dim), plain_symbol(dim)
        has_symbol = not meaning.isascii() or sign in meaning.split()
        label = sign if meaning == dim else meaning if has_symbol else f"{sign}: {meaning}"
        at, along = self.values(dim), []
        for name, (d, values) in self.coords.items():
            if d == dim and name != dim and np.all(at != 0):
                ratio = values / at
                if np.allclose(ratio, ratio[0], rtol=0.02):
                    factor = "" if abs(ratio[0] - 1) < 0.02 else number(float(f"{ratio[0]:.2g}")) + " "
                    along.append(f"{plain_symbol(name)} = {factor}{sign}")
        return f"{label} ({', '.join(along)})" if along else label


@dataclass(frozen=True)
class Line:
    """One line of a panel: the law, and Monte Carlo at the cells.

    Attributes:
        label: its name among the others; empty if it is the only one.
        cells: indices of the cells along the axis.
        at: their positions on it.
        mean, se, law, allowed: as in the table.
        z: of the excess over the allowance.
        curve: positions and values of the law's line, shape (2, points), finer than the cells if the claim was given.
    """

    label: str
    cells: np.ndarray
    at: np.ndarray
    mean: np.ndarray
    se: np.ndarray
    law: np.ndarray
    allowed: np.ndarray
    z: np.ndarray
    curve: np.ndarray


@dataclass(frozen=True)
class Panel:
    """One output along one axis, with lines for the values of a second.

    Attributes:
        output, where: in words, the output and the values of the axes that are not drawn.
        x: the dim along the axis; None for a single cell.
        x_label: its meaning and symbol.
        lines, line_count: the lines, and their number without a limit.
        apart: whether the cells stand side by side with nothing between them.
        ticks: marks of the axis with their labels; None if a scale sets them.
        log_x, log_y: whether an axis is logarithmic.
        z_limit: end of the axis of z.
    """

    output: str
    where: str
    x: str | None
    x_label: str
    lines: tuple[Line, ...]
    line_count: int
    apart: bool
    ticks: list[tuple[float, str]] | None
    log_x: bool
    log_y: bool
    z_limit: float

    @property
    def title(self) -> str:
        """Output and place."""
        return ", ".join(filter(None, (self.output, self.where)))


def panels_of(
    table: Table,
    x: str | None = None,
    hue: str | None = None,
    outputs: Sequence[str] | None = None,
    *,
    claim: Claim | None = None,
    most_points: int | None = None,
) -> tuple[list[Panel], int]:
    """Return a panel for each output and value of the remaining axes, at most `PANELS`, and the number of all panels.

    They are spread evenly over all, the one with the largest \\|z\\| among them; so are lines and points.

    Args:
        table: the result.
        x: dim to draw along; the longest if None, where a dimension counts half.
        hue: dim distinguished by colour; the next if None.
        outputs: the outputs to draw; all if None.
        claim: source of the law between the cells; None draws the law at the cells only.
        most_points: limit of the points of a panel.

    Raises:
        InputError: for a dim or output that the table does not have.
    """
    for name in () if outputs is None else outputs:
        one_of("output", name, table.outputs)
    chosen = range(len(table.outputs)) if outputs is None else [table.outputs.index(name) for name in outputs]
    x, hue = _choose_axes(table, x, hue)
    panel_dims = [d for d, n in zip(table.dims, table.sizes, strict=True) if n > 1 and d not in (x, hue)]
    axis = {d: i + 1 for i, d in enumerate(table.dims)}
    places = list(itertools.product(chosen, *(range(table.sizes[axis[d] - 1]) for d in panel_dims)))
    badness = _size(table.beyond)[list(chosen)]
    others = tuple(i for i in range(1, badness.ndim) if i not in [axis[d] for d in panel_dims])
    worst = int(np.argmax(badness.max(axis=others).ravel() if others else badness.ravel()))
    panels = []
    for i in evenly_spread(len(places), PANELS, worst):
        place = [places[i][0], *([0] * len(table.dims))]
        for d, j in zip(panel_dims, places[i][1:], strict=True):
            place[axis[d]] = j
        where = ", ".join(table.where(d, j) for d, j in zip(panel_dims, places[i][1:], strict=True))
        panels.append(_panel(table, place, x, hue, where, claim, most_points))
    return panels, len(places)


def _choose_axes(table: Table, x: str | None, hue: str | None) -> tuple[str | None, str | None]:
    """Return the dims for x and colour: as requested, else the longest. A size counts half, as limits change little with it."""
    for name, dim in (("x", x), ("hue", hue)):
        if dim is not None:
            one_of(f"{name}: axis", dim, table.dims)
    if x is not None and x == hue:
        raise InputError(f"x = {x!r} and hue = {hue!r}: must be two different axes")
    place = {d: i for i, d in enumerate(table.dims)}
    free = [d for d, n in zip(table.dims, table.sizes, strict=True) if n > 1 and d not in (x, hue)]
    free.sort(key=lambda d: (-table.sizes[place[d]] * (0.5 if table.is_size(d) else 1.0), -place[d]))
    if x is None and free:
        x = free.pop(0)
    if hue is None and free:
        hue = free[0]
    return x, hue


def _panel(
    table: Table,
    place: list[int],
    x: str | None,
    hue: str | None,
    where: str,
    claim: Claim | None,
    most_points: int | None,
) -> Panel:
    axis = {d: i + 1 for i, d in enumerate(table.dims)}
    count = 1 if hue is None else table.sizes[axis[hue] - 1]
    values = np.zeros(1) if x is None else table.values(x)
    # An axis on which the first parameter repeats or turns back has no scale: its cells are drawn side by side.
    by_place = np.unique(values).size < values.size
    order = np.arange(values.size) if by_place else np.argsort(values, kind="stable")
    at = np.arange(float(values.size)) if by_place else values[order]
    few = x in table.integers and np.ptp(at) < _FEW
    apart = by_place or few or at.size == 1

    def along(array: np.ndarray, j: int) -> np.ndarray:
        index: list = list(place)
        if hue is not None:
            index[axis[hue]] = j
        if x is not None:
            index[axis[x]] = order
        return np.atleast_1d(array[tuple(index)])

    worst_line = max(range(count), key=lambda j: float(_size(along(table.beyond, j)).max()))
    lines = []
    for j in evenly_spread(count, LINES, worst_line):
        most = at.size if most_points is None else most_points if count <= 2 else most_points // 3
        keep = evenly_spread(at.size, most, int(np.argmax(_size(along(table.beyond, j)))))
        mean, se, law, allowed, z = (
            along(array, j)[keep] for array in (table.mean, table.se, table.law, table.allowed, table.beyond)
        )
        curve = np.stack([at[keep], law])
        if claim is not None and not apart and x is not None:
            at_line = list(place)
            if hue is not None:
                at_line[axis[hue]] = j
            curve = _curve(claim, table, at_line, x, order)
        label = "" if hue is None else table.where(hue, j)
        lines.append(Line(label, order[keep], at[keep], mean, se, law, allowed, z, curve))

    ticks, label = None, "" if x is None else table.axis_label(x)
    if x is None:
        ticks = []
    elif by_place:
        together = _together(table, x)
        label = ", ".join(map(plain_symbol, together))
        rows = zip(*(table.coords[name][1] for name in together), strict=True)
        ticks = [(float(i), ", ".join(number(float(value)) for value in row)) for i, row in enumerate(rows)]
    elif apart or (at.size <= 5 and not table.is_size(x)):
        ticks = [(float(value), number(float(value))) for value in at]
    drawn = np.concatenate([array for line in lines for array in (line.mean, line.law)])
    finite = np.abs(np.concatenate([line.z for line in lines]))
    return Panel(
        output=output_name(table.outputs[place[0]]),
        where=where,
        x=x,
        x_label=label,
        lines=tuple(lines),
        line_count=count,
        apart=apart,
        ticks=ticks,
        log_x=not by_place and is_logarithmic(at),
        log_y=is_logarithmic(drawn, 3),
        z_limit=1.15 * max(3.5, float(finite[np.isfinite(finite)].max(initial=0.0))),
    )


def _size(z: np.ndarray) -> np.ndarray:
    """Return comparable absolute values, with 0 for unknown ones."""
    return np.abs(np.nan_to_num(z, nan=0.0, posinf=1e300, neginf=-1e300))


def _together(table: Table, dim: str) -> list[str]:
    """Return the parameters that vary along a dim."""
    return [n for n, (d, v) in table.coords.items() if d == dim and np.unique(v).size > 1] or [dim]


def _curve(claim: Claim, table: Table, place: list[int], x: str, order: np.ndarray) -> np.ndarray:
    """Return points of the law along x, more than there are cells; only whole numbers if x is an integer."""
    at = table.values(x)[order]
    between = np.geomspace if is_logarithmic(at) else np.linspace
    steps = np.interp(between(at[0], at[-1], _CURVE), at, np.arange(at.size))
    if x in table.integers:
        integers = np.unique(np.round(np.interp(steps, np.arange(at.size), at)))
        steps = np.interp(integers, at, np.arange(at.size))
    moving, fixed = {}, {}
    for name in claim.params:
        dim, values = table.coords[name]
        if dim == x:
            moved = np.interp(steps, np.arange(at.size), values[order])
            moving[name] = np.round(moved) if name in table.integers else moved
        else:
            fixed[name] = float(values[0] if dim is None else values[place[table.dims.index(dim) + 1]])
    return np.stack([moving[x], claim.predict(grid(zipped(**moving), **fixed))[table.outputs[place[0]]]])
