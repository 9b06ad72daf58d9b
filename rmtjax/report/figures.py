"""Figures in one style: a law is a line, Monte Carlo is points with bars of two standard errors.

Figures are `matplotlib.figure.Figure` objects drawn without pyplot, so nothing global changes and no window opens.
matplotlib is imported when the first figure is made.
"""

from __future__ import annotations

import contextlib
import io
import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from rmtjax._errors import InputError
from rmtjax._text import visible
from rmtjax.montecarlo.claim import Claim
from rmtjax.report.labels import with_subscripts
from rmtjax.report.panels import Panel, Table, panels_of

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
    """Apply the settings under which every figure of the package is drawn; afterwards the caller's own are restored."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.2), **options: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes (one, or an array of them), without pyplot.

    Args:
        rows, columns: numbers of panels.
        size: width and height in inches.
        options: passed to `matplotlib.figure.Figure.subplots`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


def colours(count: int, *, ordered: bool = False) -> list:
    """Return `count` colours; for more than the palette holds, or for ordered values, a dark-to-light scale."""
    if count <= len(PALETTE) and not ordered:
        return list(PALETTE[:count])
    import matplotlib

    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.0, 0.88, count)]


def points(axes: Axes, x: Any, mean: Any, se: Any, colour: Any = INK, **options: Any) -> None:
    """Draw Monte Carlo means with bars of two standard errors.

    Args:
        axes: axes to draw in.
        x, mean, se: arrays of one length.
        colour: of points and bars.
        options: passed to `matplotlib.axes.Axes.errorbar`.
    """
    bars = 2 * np.nan_to_num(np.asarray(se, float))
    drawn = {"fmt": "o", "ms": 4.2, "mec": "white", "mew": 0.6, "elinewidth": 1.1, "zorder": 3, "color": colour}
    axes.errorbar(x, mean, bars, **(drawn | options))


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Save a figure in the format of the suffix, and return its path. Folders are created as needed.

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

    # 256 colours are enough for lines and text, at a third of the size; and without the writer's name in it, a figure of
    # the same numbers is the same file.
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path, optimize=True, dpi=(_STYLE["savefig.dpi"],) * 2)
    return path


def law_against_monte_carlo(
    result: xr.Dataset,
    x: str | None = None,
    hue: str | None = None,
    output: str | Sequence[str] | None = None,
    title: str | None = None,
    *,
    claim: Claim | None = None,
) -> Figure:
    """Return a figure of any claim's result: the law as lines, Monte Carlo as points with bars of 2 s.e., and z below.

    Outputs and the values of the remaining axes become panels, at most six: spread evenly over all, the one with the
    largest \\|z\\| among them.

    Args:
        result: from `rmtjax.montecarlo.run`.
        x: the axis along which to draw; the longest if None.
        hue: the axis distinguished by colour; the second longest if None.
        output: the output or outputs to draw; all if None.
        title: the figure's title; the claim's name and source if None.
        claim: the claim that was run. With it the law is drawn as a curve between the cells, and z measures the
            excess over its allowance, as in verdicts; without it the law is a line from cell to cell, and z measures the whole
            difference.

    Raises:
        InputError: for an axis or output that the result does not have.
    """
    from matplotlib.figure import Figure

    table = Table.of(result, claim)
    outputs = [output] if isinstance(output, str) else output
    panels, count = panels_of(table, x, hue, outputs, claim=claim)
    several = len({panel.output for panel in panels}) > 1
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with style():
        figure = Figure(figsize=(max(6.4, 3.9 * columns), 4.3 * rows + 0.5))
        heights = [ratio for _ in range(rows) for ratio in (3.2, 1.0)]
        axes = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        colour_of: dict[str, Any] = {}
        for i, panel in enumerate(panels):
            row, column = divmod(i, columns)
            above, below = axes[2 * row : 2 * row + 2, column]
            above.sharex(below)
            _draw(above, below, panel, colour_of)
            above.set_title(with_subscripts(panel.where))
            above.set_ylabel(with_subscripts(panel.output) if column == 0 or several else "")
            below.set_ylabel("z" if column == 0 else "")
            below.set_xlabel(with_subscripts(panel.x_label))
        for empty in range(len(panels), rows * columns):
            for unused in axes[2 * (empty // columns) :, empty % columns][:2]:
                unused.set_visible(False)
        remark = f" ({len(panels)} of {count} panels)" if len(panels) < count else ""
        about = f"{result.attrs.get('claim', '')} — {result.attrs.get('source', '')}".strip(" —")
        heading = textwrap.fill(visible(about if title is None else title) + remark, int(12 * figure.get_figwidth()))
        figure.suptitle(with_subscripts(heading), x=0.01, ha="left")
        _legend(figure, colour_of, "z beyond the allowance" if table.allowed.any() else "z = (mean − law)/s.e.")
    return figure


def _draw(above: Axes, below: Axes, panel: Panel, colour_of: dict[str, Any]) -> None:
    """Draw a panel and its residuals; the colours of its lines are added by label."""
    below.axhspan(-2, 2, color=_BAND, lw=0, zorder=0)
    below.axhline(0, color=MUTED, lw=0.8, zorder=1)
    for colour, line in zip(colours(len(panel.lines), ordered=len(panel.lines) > 3), panel.lines, strict=True):
        dashes = {"marker": "_", "ms": 22, "mew": 1.6, "ls": ""} if panel.apart else {}
        above.plot(*line.curve, color=colour, zorder=2, **dashes)
        points(above, line.at, line.mean, line.se, colour)
        finite = np.where(np.isfinite(line.z), line.z, np.nan)
        below.plot(line.at, finite, "o", ms=3.4, color=colour, mec="white", mew=0.4, zorder=3)
        infinite = np.isinf(line.z)
        edge = np.sign(line.z[infinite]) * panel.z_limit * 0.92
        below.plot(line.at[infinite], edge, "^", ms=5, color=colour, zorder=3)
        if line.label:
            colour_of.setdefault(with_subscripts(line.label), colour)
    below.set_ylim(-panel.z_limit, panel.z_limit)
    above.tick_params(labelbottom=False)
    at = panel.lines[0].at
    if panel.apart:
        below.set_xlim(at.min() - 0.7, at.max() + 0.7)
    if panel.ticks is not None:
        below.set_xticks([value for value, _ in panel.ticks], [label for _, label in panel.ticks])
    elif panel.log_x:
        below.set_xscale("log")
    if panel.log_y:
        above.set_yscale("log")


def _legend(figure: Figure, hues: dict[str, Any], z: str) -> None:
    """Draw the legend below the panels, where it covers nothing."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Line2D([], [], color=colour, marker="o", mec="white", label=label) for label, colour in hues.items()]
    handles.append(Line2D([], [], color=INK, label="law"))
    handles.append(Line2D([], [], color=INK, ls="", marker="o", mec="white", label="Monte Carlo, ± 2 s.e."))
    handles.append(Patch(color=_BAND, label=f"{z} within ± 2"))
    columns = max(2, int(figure.get_figwidth() / 2))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns))
