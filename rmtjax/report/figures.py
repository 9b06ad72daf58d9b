"""Figures in one style: a law is a line, Monte Carlo is points with bars of two standard errors.

Figures are `matplotlib.figure.Figure` objects drawn without pyplot, so nothing global changes and no window opens.
matplotlib is imported when the first figure is made.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from rmtjax._errors import InputError, unknown
from rmtjax._text import visible
from rmtjax.montecarlo.claim import Claim
from rmtjax.montecarlo.grid import grid, zipped
from rmtjax.montecarlo.hypothesis_tests import beyond
from rmtjax.montecarlo.result import z_score
from rmtjax.montecarlo.verify import allowance
from rmtjax.report.format import number
from rmtjax.report.labels import evenly_spread, greek, is_logarithmic, literal, symbol, with_subscripts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "MUTED",
    "PALETTE",
    "colours",
    "law_against_monte_carlo",
    "new_figure",
    "points",
    "save",
    "style",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which readers with any colour vision tell apart."""

INK, MUTED = "#222222", "#8a8a8a"
_BAND = "#ececec"

_PANELS, _HUES, _CURVE = 6, 8, 200
_FEW = 16
"""Whole numbers on an axis that ends so soon may be kinds (the β of an ensemble), between which there is nothing."""

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.use_mathtext": True,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.titlesize": 11.5,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "mathtext.fontset": "dejavusans",
    "savefig.dpi": 130,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 9,
    "ytick.color": INK,
    "ytick.labelsize": 9,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The settings under which every figure of the package is drawn; the caller's own come back afterwards."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.2), **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes (one, or an array of them), without pyplot.

    Args:
        rows, columns: how many panels.
        size: width and height in inches.
        options: passed to `matplotlib.figure.Figure.subplots`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


def colours(count: int, *, ordered: bool = False) -> list:
    """`count` colours; for more than the palette holds, or for ordered values, a dark-to-light scale."""
    if count <= len(PALETTE) and not ordered:
        return list(PALETTE[:count])
    import matplotlib

    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.0, 0.88, count)]


def points(axes: Axes, x: Any, mean: Any, se: Any, colour: Any = INK, **options: Any) -> None:
    """Draw Monte Carlo means with bars of two standard errors.

    Args:
        axes: where.
        x, mean, se: arrays of one length.
        colour: of points and bars.
        options: passed to `matplotlib.axes.Axes.errorbar`.
    """
    bars = 2 * np.nan_to_num(np.asarray(se, float))
    drawn = {"fmt": "o", "ms": 4.2, "mec": "white", "mew": 0.6, "elinewidth": 1.1, "zorder": 3, "color": colour}
    axes.errorbar(x, mean, bars, **(drawn | options))


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure, the format told from the suffix, and return where. Folders are made as needed.

    Raises:
        InputError: if the suffix names no format that can be written.
    """
    path = Path(path)
    allowed = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in allowed:
        raise InputError(f"figure {str(path)!r}: the suffix must be one of {', '.join(sorted(allowed))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        if path.suffix.lower() != ".png":
            figure.savefig(path)
            return path
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    from PIL import Image

    # 256 colours are enough for lines and text, at a third of the size; and without the writer's name in it a figure of
    # the same numbers is the same file.
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path, optimize=True, dpi=(_STYLE["savefig.dpi"],) * 2)
    return path


def _axis_label(result: xr.Dataset, dim: str) -> str:
    """Meaning and symbol of an axis, and what moves along with it."""
    meaning = str(result[dim].attrs.get("long_name", dim))
    values = result[dim].values
    sign = greek(dim.partition("_")[0]) or dim
    known = not sign.isascii() and sign in meaning
    label = symbol(dim) if meaning == dim else with_subscripts(meaning) + ("" if known else f", {symbol(dim)}")
    along = []
    for name, coordinate in result.coords.items():
        if coordinate.dims == (dim,) and name != dim and np.all(values != 0):
            ratio = coordinate.values / values
            if np.allclose(ratio, ratio[0], rtol=0.02):
                factor = "" if abs(ratio[0] - 1) < 0.02 else number(float(f"{ratio[0]:.2g}")) + " "
                along.append(f"{symbol(str(name))} = {factor}{symbol(dim)}")
    return f"{label}   ({', '.join(along)})" if along else label


def _at(cells: xr.Dataset, dim: str, index: int) -> str:
    """Where on an axis: its value, or those of all that move together where the first alone does not tell."""
    names = [dim]
    if np.unique(cells[dim].values).size < cells.sizes[dim]:
        names += [str(n) for n, c in cells.coords.items() if c.dims == (dim,) and n != dim]
    return ", ".join(f"{symbol(n)} = {number(float(cells[n].values[index]))}" for n in names)


def _choose_axes(table: xr.Dataset, x: str | None, hue: str | None) -> tuple[str | None, str | None]:
    """The axes for x and hue: as asked, else the longest and the second longest."""
    dims = [str(d) for d in table["mean"].dims if d != "output"]
    for name, axis in (("x", x), ("hue", hue)):
        if axis is not None and axis not in dims:
            raise unknown(f"{name}: axis", axis, dims)
    if x is not None and x == hue:
        raise InputError(f"x = {x!r} and hue = {hue!r}: must be two different axes")
    free = sorted((d for d in dims if d not in (x, hue) and table.sizes[d] > 1), key=lambda d: -table.sizes[d])
    if x is None:
        x = free.pop(0) if free else next((d for d in dims if d != hue), None)
    if hue is None and free:
        hue = free[0]
    return x, hue


def _curve(claim: Claim | None, cells: xr.Dataset, x: str, output: str) -> tuple[np.ndarray, np.ndarray]:
    """The law along x: finely where the claim can be asked, else on the cells."""
    at = cells[x].values
    if claim is None or at.size < 2:
        return at, cells["law"].values
    between = np.geomspace if is_logarithmic(at) else np.linspace
    steps = np.interp(between(at[0], at[-1], _CURVE), at, np.arange(at.size))
    if claim.params[x].whole:
        whole = np.unique(np.round(np.interp(steps, np.arange(at.size), at)))
        steps = np.interp(whole, at, np.arange(at.size))

    def along_x(name: str, values: np.ndarray) -> np.ndarray:
        values = np.interp(steps, np.arange(at.size), values)
        return np.round(values) if claim.params[name].whole else values

    along = {str(n): along_x(str(n), c.values) for n, c in cells.coords.items() if c.dims == (x,) and n in claim.params}
    fixed = {str(n): float(c) for n, c in cells.coords.items() if c.ndim == 0 and n in claim.params}
    return along[x], claim.predict(grid(zipped(**along), **fixed))[output]


def law_against_monte_carlo(
    result: xr.Dataset,
    x: str | None = None,
    hue: str | None = None,
    output: str | Sequence[str] | None = None,
    title: str | None = None,
    *,
    claim: Claim | None = None,
) -> Figure:
    """Any claim's result: the law as lines, Monte Carlo as points with bars of 2 s.e., and z below.

    Outputs and the values of the remaining axes become panels, at most six: spread evenly over all, the one with the
    largest \\|z\\| among them.

    Args:
        result: what `rmtjax.montecarlo.run` returned.
        x: the axis along which to draw; the longest if None.
        hue: the axis told apart by colour; the second longest if None.
        output: the output or outputs to draw; all if None.
        title: the figure's title; the claim's name and source if None.
        claim: the claim that was run. With it the law is drawn as a curve between the cells, and z is of what exceeds
            its allowance, as in verdicts; without it the law is a line from cell to cell, and z of the whole difference.

    Raises:
        InputError: for an axis or output that the result does not have.
    """
    from matplotlib.figure import Figure

    names = [str(v) for v in result["output"].values]
    chosen = names if output is None else [output] if isinstance(output, str) else list(output)
    for name in chosen:
        if name not in names:
            raise unknown("output", name, names)
    table = result[["mean", "se", "law", "z"]]
    allowed = allowance(claim, result)
    if allowed.any():
        table = table.transpose("output", ...)
        gap = beyond((table["mean"] - table["law"]).values, allowed)
        table = table.assign(z=(table["mean"].dims, z_score(gap, table["se"].values, table["law"].values)))
    table = table.sel(output=chosen)
    x, hue = _choose_axes(table, x, hue)
    if x is None:
        x, table = "cell", table.expand_dims(cell=[0.0])
    rest = [str(d) for d in table["mean"].dims if d not in (x, hue, "output")]
    ranges = [range(table.sizes["output"]), *(range(table.sizes[d]) for d in rest)]
    places = [dict(zip(["output", *rest], index, strict=True)) for index in itertools.product(*ranges)]
    size_of_z = np.abs(table["z"]).fillna(0.0)
    worst = int(np.argmax([float(size_of_z.isel(place).max()) for place in places]))
    shown = [places[i] for i in evenly_spread(len(places), _PANELS, worst)]

    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with style():
        figure = Figure(figsize=(max(6.4, 3.9 * columns), 4.3 * rows + 0.5))
        heights = [ratio for _ in range(rows) for ratio in (3.2, 1.0)]
        axes = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        handles: dict[str, Any] = {}
        for i, place in enumerate(shown):
            row, column = divmod(i, columns)
            above, below = axes[2 * row : 2 * row + 2, column]
            above.sharex(below)
            _panel(above, below, table.isel(place), x, hue, chosen[place["output"]], claim, handles)
            label = [_at(table, d, place[d]) for d in rest if table.sizes[d] > 1]
            above.set_title(", ".join(label))
            above.set_ylabel(
                literal(chosen[place["output"]].replace("_", " ")) if column == 0 or len(chosen) > 1 else ""
            )
            below.set_ylabel("z" if column == 0 else "")
            below.set_xlabel("" if x == "cell" else _axis_label(table, x))
        for empty in range(len(shown), rows * columns):
            for one in axes[2 * (empty // columns) :, empty % columns][:2]:
                one.set_visible(False)
        more = f" ({len(shown)} of {len(places)} panels)" if len(shown) < len(places) else ""
        about = f"{result.attrs.get('claim', '')} — {result.attrs.get('source', '')}".strip(" —")
        heading = textwrap.fill(visible(about if title is None else title) + more, int(12 * figure.get_figwidth()))
        figure.suptitle(with_subscripts(heading), x=0.01, ha="left")
        _legend(figure, handles, "z beyond the allowance" if allowed.any() else "z = (mean − law)/s.e.")
    return figure


def _panel(above, below, cells: xr.Dataset, x: str, hue: str | None, output: str, claim, handles: dict) -> None:
    """One panel and its residuals."""
    values = cells[x].values.astype(float)
    # An axis on which the first parameter repeats or turns back has no scale: its cells are drawn side by side.
    by_place = np.unique(values).size < values.size
    cells = cells if by_place else cells.sortby(x)
    at = np.arange(values.size, dtype=float) if by_place else np.sort(values)
    few = claim is not None and x in claim.params and claim.params[x].whole and np.ptp(at) < _FEW
    apart = by_place or x == "cell" or few
    count = 1 if hue is None else cells.sizes[hue]
    worst = 0 if hue is None else int(np.argmax(np.abs(cells["z"]).fillna(0.0).max(x).values))
    lines = evenly_spread(count, _HUES, worst)
    largest = np.abs(cells["z"].values[np.isfinite(cells["z"].values)]).max(initial=3.5)
    limit = 1.15 * float(largest)
    below.axhspan(-2, 2, color=_BAND, lw=0, zorder=0)
    below.axhline(0, color=MUTED, lw=0.8, zorder=1)
    for colour, index in zip(colours(len(lines), ordered=len(lines) > 3), lines, strict=True):
        one = cells if hue is None else cells.isel({hue: index})
        curve_x, curve = (at, one["law"].values) if apart else _curve(claim, one, x, output)
        marker = {"marker": "_", "ms": 22, "mew": 1.6, "ls": ""} if apart or curve_x.size == 1 else {}
        above.plot(curve_x, curve, color=colour, zorder=2, **marker)
        points(above, at, one["mean"].values, one["se"].values, colour)
        z = one["z"].values
        inside = np.where(np.isfinite(z), z, np.nan)
        below.plot(at, inside, "o", ms=3.4, color=colour, mec="white", mew=0.4, zorder=3)
        beyond = np.isinf(z)
        below.plot(at[beyond], np.sign(z[beyond]) * limit * 0.92, "^", ms=5, color=colour, zorder=3)
        if hue is not None:
            handles.setdefault(_at(cells, hue, index), colour)
    below.set_ylim(-limit, limit)
    above.tick_params(labelbottom=False)
    if by_place:
        below.set_xticks(at, [number(v) for v in values])
    elif x == "cell" or at.size == 1:
        below.set_xticks(at, ["" if x == "cell" else number(v) for v in at])
        below.set_xlim(at[0] - 1, at[0] + 1)
    elif is_logarithmic(at):
        below.set_xscale("log")
    if is_logarithmic(np.concatenate([cells["law"].values.ravel(), cells["mean"].values.ravel()]), 3):
        above.set_yscale("log")


def _legend(figure: Figure, hues: dict[str, Any], z: str) -> None:
    """Below the panels, where it covers nothing."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Line2D([], [], color=colour, marker="o", mec="white", label=label) for label, colour in hues.items()]
    handles.append(Line2D([], [], color=INK, label="law"))
    handles.append(Line2D([], [], color=INK, ls="", marker="o", mec="white", label="Monte Carlo, ± 2 s.e."))
    handles.append(Patch(color=_BAND, label=f"{z} within ± 2"))
    columns = max(2, int(figure.get_figwidth() / 2))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns))
