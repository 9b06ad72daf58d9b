"""The report of a scan for intruders: a table, and figures in the manner of the paper's Figures 2 and 3."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.cells import cell_len

from rmtjax._console import Table
from rmtjax._errors import listed
from rmtjax._files import write_json
from rmtjax._text import visible
from rmtjax.intruders import LayerScan, Mitigation, Scan
from rmtjax.report.figures import INK, MUTED, PALETTE, new_figure, save, style
from rmtjax.report.labels import literal

__all__ = ["KEY", "cosines", "doubts", "mitigated", "outliers", "similarity", "summary", "table", "write_report"]

_MOST = 60
"""Largest number of layers in a figure."""


def _short(names: Sequence[str]) -> list[str]:
    """Return names for display, without `.weight` and the leading parts that all of them share."""
    parts = [visible(name).removesuffix(".weight").split(".") for name in names]
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [".".join(p[shared:]) for p in parts]


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.2f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{value:.1e}"


KEY = (
    "‖Δ‖: largest singular value of what was added; above BBP it makes an outlier, in the limit. eff. rank: exp of the entropy"
    " of the normalised singular values of what was added. outlier: the singular value"
    " after tuning that it made, – if it is none of the leading ones; theory: where that was expected, – if it makes none or it"
    " dissolves among the base's own. Cosines are of left singular vectors, with ≈ an estimate within bounds that decide."
)
"""The explanation of the table's columns."""


def table(scan: Scan, every: bool = False, width: int | None = None) -> Table:
    """Return a table with one line per layer.

    A line has the strength of the update and the BBP threshold, the first outlier measured and predicted, the smallest of the
    cosines, and the intruders measured and predicted.

    Args:
        scan: of a checkpoint.
        every: whether to list all layers, not only those that changed.
        width: columns of the terminal, in which the less important columns of the table are left out.
    """
    rows: list[dict[str, str]] = []
    layers = [layer for layer in scan.layers if every or layer.update.frobenius > 0 or layer.intruders]
    for name, layer in zip(_short([layer.name for layer in layers]), layers, strict=True):
        theta = layer.update.strengths
        rows.append(
            {
                "layer": name,
                "shape": f"{layer.shape[0]}×{layer.shape[1]}",
                "‖Δ‖": _number(theta[0] if len(theta) else 0.0),
                "BBP\nat": _number(layer.prediction.threshold),
                "eff.\nrank": f"{layer.update.effective_rank:.1f}",
                "outlier": _number(_measured(layer)[0] if len(theta) else np.nan),
                "theory": _number(layer.prediction.outliers[0] if len(theta) else np.nan),
                "least\ncosine": f"{'≈ ' if layer.algorithm == 'bounds' else ''}{layer.cosines.min():.2f}",
                "intruders": _count(layer),
                "expected": f"{layer.predicted:.1f}" if np.isfinite(layer.predicted) and not layer.open else "–",
            }
        )
    names = list(rows[0]) if rows else ["layer"]
    wide = {name: max(cell_len(x) for row in rows for x in (*name.split("\n"), row[name])) for name in names if rows}
    for least in ("shape", "eff.\nrank", "theory", "outlier"):
        if width is not None and sum(wide.values()) + 2 * len(wide) > width:
            wide.pop(least, None)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in wide or names:
        # A narrow terminal shortens names of layers, never numbers.
        least = {} if name == "layer" else {"justify": "right", "min_width": wide[name]}
        shown.add_column(name, no_wrap=True, overflow="ellipsis", vertical="bottom", **least)
    for row, layer in zip(rows, layers, strict=True):
        shown.add_row(*(row[name] for name in wide), style="bold" if layer.intruders else None)
    return shown


def _count(layer: LayerScan) -> str:
    """Return the number of intruders and of open verdicts; a question mark if all are open, since 0 would be an answer."""
    undecidable = layer.verdicts.count("undecidable")
    if undecidable == len(layer.verdicts):
        return "?"
    return f"{layer.intruders}" + (f" + {undecidable} ?" if undecidable else "")


def _measured(layer: LayerScan) -> np.ndarray:
    """Return the measured singular value of each predicted outlier, NaN if it was not computed.

    It is the one with the outlier's rank among all outliers and the base's own spikes.
    """
    predicted = layer.prediction.outliers
    measured = np.full(predicted.shape, np.nan)
    for i in np.flatnonzero(np.isfinite(predicted)):
        rank = int((predicted > predicted[i]).sum() + (layer.base_values > predicted[i]).sum())
        if rank < len(layer.values):
            measured[i] = layer.values[rank]
    return measured


def summary(scan: Scan) -> str:
    """Return the totals in a few lines."""
    total = scan.to_dict()["total"]
    expected = f"; {total['predicted']:.1f} expected" if np.isfinite(total["predicted"]) else ""
    names = {"bounds": "bounds", "eigh": "eigendecompositions", "svd": "SVDs"}
    counts = {name: sum(layer.algorithm == algorithm for layer in scan.layers) for algorithm, name in names.items()}
    ways = ", ".join(f"{count} by {name}" for name, count in counts.items() if count)
    lines = [
        f"{total['intruders']} intruder{'s' * (total['intruders'] != 1)} among {total['vectors']} vectors of"
        f" {total['layers']} layer{'s' * (total['layers'] != 1)} (cosines below {scan.settings['threshold_epsilon']:g}"
        f"{expected})",
        f"{ways}, {scan.seconds:.1f} s",
    ]
    changed = sum(layer.update.frobenius > 0 for layer in scan.layers)
    if not changed:
        lines.append("no layer has changed")
    return "\n".join([*map(visible, lines), *doubts(scan)])


def doubts(scan: Scan) -> list[str]:
    """Return the skipped tensors and other important remarks, one line each."""
    lines, reasons = list(scan.remarks), {}
    for skip in scan.skipped:
        reasons.setdefault(re.sub(r": .*", "", skip.reason), []).append(skip.name)
    for reason, names in reasons.items():
        remainder = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"skipped ({reason}): {', '.join(names[:3])}{remainder}")
    undecidable = [layer.name for layer in scan.layers if "undecidable" in layer.verdicts]
    if undecidable:
        count = sum(layer.verdicts.count("undecidable") for layer in scan.layers)
        lines.append(
            f"{count} vectors undecidable, of singular values that coincide up to rounding: {listed(undecidable, 3)}"
        )
    if scan.incomplete:
        lines.append(
            f"INCOMPLETE: {len(scan.incomplete)} that should have been compared could not be: {listed(scan.incomplete, 3)}"
        )
    return [visible(line) for line in lines]


def mitigated(result: Mitigation) -> list[str]:
    """Return the numbers of intruders that were scaled down and that are left, and important remarks, one line each."""
    before = result.before
    planted = sum(layer.intruders > 0 for layer in before.layers)
    left = f"; {result.after.intruders} there now" if planted else ""
    return [
        f"{before.intruders} intruder{'s' * (before.intruders != 1)} in {planted} of {len(before.layers)} layers scaled by"
        f" {result.mitigation_lambda:g}{left}: {result.folder}",
        *doubts(before),
    ]


def _ticks(count: int, most: int) -> np.ndarray:
    """Return the indices among `count` to label, at most `most` of them: 1, 2, 3, … or 5, 10, 15, …"""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, count) if count <= most * s)
    return np.arange(step - 1, count, step)


def cosines(scan: Scan):
    """Return a figure of the largest cosine of every leading vector with any vector of the base; intruders are circled."""
    layers = [layer for layer in scan.layers if layer.update.frobenius > 0][:_MOST] or list(scan.layers[:_MOST])
    names = list(map(literal, _short([layer.name for layer in layers])))
    values = np.array([layer.cosines for layer in layers])
    top = values.shape[1]
    cell = min(0.38, 10 / top)  # inches
    estimated = ", estimated where bounds decide" if any(layer.algorithm == "bounds" for layer in layers) else ""
    with style():
        figure, axes = new_figure(
            size=(max(4.6, 0.5 + 0.068 * max(map(len, names)) + cell * top), 1.9 + 0.21 * len(layers))
        )
        lines = {"edgecolors": "white", "linewidth": 0.6} if cell > 0.2 else {}
        image = axes.pcolormesh(values, cmap="cividis", vmin=0, vmax=1, **lines)
        rows, columns = np.nonzero([[v == "intruder" for v in layer.verdicts] for layer in layers])
        ring = {"s": min(46, (60 * cell) ** 2), "facecolors": "none"}
        axes.scatter(columns + 0.5, rows + 0.5, edgecolors="white", linewidths=3.2, **ring)
        ring |= {"edgecolors": PALETTE[1], "linewidths": 1.6}
        axes.scatter(columns + 0.5, rows + 0.5, **ring, label=f"intruder: below {scan.settings['threshold_epsilon']:g}")
        axes.set_yticks(np.arange(len(layers)) + 0.5, names, fontsize=7.5)
        ticks = _ticks(top, int(cell * top / 0.3) + 1)
        axes.set_xticks(ticks + 0.5, ticks + 1, fontsize=8)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlabel("left singular vector after tuning")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8, borderaxespad=0.3)
        bar = figure.colorbar(image, ax=figure.axes, location="bottom", aspect=30, shrink=0.9, pad=0.03)
        bar.set_label(f"largest |cosine| with any of before{estimated}", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return figure


def similarity(scan: Scan, most: int = 6):
    """Return a figure of leading vectors after against before, in the layers with the most intruders (the paper's Figure 3)."""
    layers = sorted(scan.layers, key=lambda layer: (-layer.intruders, layer.cosines.min()))[:most]
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    with style():
        figure, axes = new_figure(rows, columns, size=(2.6 * columns + 0.9, 2.5 * rows + 0.5), squeeze=False)
        for axis in axes.flat[len(layers) :]:
            axis.set_visible(False)
        for axis, name, layer in zip(axes.flat, _short([layer.name for layer in layers]), layers, strict=False):
            image = axis.imshow(layer.similarity, cmap="cividis", vmin=0, vmax=1)
            axis.set_title(literal(name).replace("attention.self.", ""), fontsize=8)
            axis.grid(visible=False)
            ticks = _ticks(len(layer.similarity), 5)
            axis.set_xticks(ticks, ticks + 1, fontsize=7)
            axis.set_yticks(ticks, ticks + 1, fontsize=7)
            marked = [i for i, verdict in enumerate(layer.verdicts) if verdict == "intruder"]
            axis.scatter(np.full(len(marked), -0.85), marked, marker=">", color=PALETTE[1], s=30, clip_on=False)
            axis.set_xlim(-0.5, len(layer.similarity) - 0.5)
            axis.tick_params(length=0, pad=3)
            axis.tick_params("y", pad=13)  # room for the marks
        figure.supxlabel("singular vector before", fontsize=9)
        figure.supylabel("after (▸ intruder)", fontsize=9)
        figure.colorbar(image, ax=axes, label="|cosine|", shrink=0.8)
    return figure


def outliers(scan: Scan):
    """Return a figure of predicted against measured outliers, and of the strengths of updates against their thresholds."""
    layers = [layer for layer in scan.layers if len(layer.update.strengths) and layer.update.frobenius > 0][:_MOST]
    names = list(map(literal, _short([layer.name for layer in layers])))
    with style():
        width = 0.5 + 0.068 * max(map(len, names), default=0)
        figure, (left, right) = new_figure(1, 2, size=(8.2 + width, max(4.3, 1.3 + 0.19 * len(layers))))
        predicted, measured, chance = [], [], []
        for layer in layers:
            of_layer = _measured(layer)
            is_measured = np.isfinite(of_layer)
            predicted += layer.prediction.outliers[is_measured].tolist()
            measured += of_layer[is_measured].tolist()
            chance += layer.prediction.probabilities[is_measured].tolist()
        left.set_box_aspect(1)
        left.set_anchor("N")
        if predicted:
            span = [0.95 * min(predicted + measured), 1.05 * max(predicted + measured)]
            left.plot(span, span, color=MUTED, lw=1, label="equal")
            dots = left.scatter(predicted, measured, c=chance, cmap="cividis", vmin=0, vmax=1, s=22, zorder=3)
            bar = figure.colorbar(dots, ax=left, location="bottom", pad=0.03, aspect=30, shrink=0.8, anchor=(0.5, 1.0))
            bar.set_label("expected probability of an intruder", fontsize=9)
            left.legend(fontsize=8)
        else:
            left.annotate("none is expected", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
            left.set(xticks=[], yticks=[])
        left.set_xlabel("predicted outlier")
        left.set_ylabel("singular value of that rank after tuning")
        ratio = np.array([layer.update.strengths[0] / max(layer.prediction.threshold, 1e-12) for layer in layers])
        counts = np.array([layer.intruders for layer in layers])
        for has, colour, label in ((False, MUTED, "no intruder found"), (True, PALETTE[1], "intruders found")):
            which = np.flatnonzero((counts > 0) == has)
            right.plot(ratio[which], which, "o", color=colour, ms=5, label=label)
        right.axvline(1, color=INK, lw=0.9, label="BBP threshold")
        right.set_yticks(np.arange(len(layers)), names, fontsize=7.5)
        right.set_ylim(len(layers) - 0.4, -0.6)
        right.set_xscale("log")
        right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        right.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        right.tick_params("x", which="minor", labelsize=8)
        right.set_xlabel("strength of the update / threshold")
        right.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, columnspacing=1, borderaxespad=0.2)
    return figure


def write_report(scan: Scan, folder: Path) -> list[Path]:
    """Write `intruders.json` and the figures."""
    target = folder / "intruders.json"
    write_json(target, scan.to_dict())
    pictures = {"cosines": cosines, "similarity": similarity, "outliers": outliers}
    return [target, *(save(draw(scan), folder / f"{name}.png") for name, draw in pictures.items())]
