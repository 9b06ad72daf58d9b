"""Reports of the decomposition benchmark: a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtjax._console import Table
from rmtjax._text import visible
from rmtjax.report.figures import MUTED, PALETTE, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["svd_figure", "svd_summary", "svd_table", "write_svd"]

_TITLES = {
    "svd": "singular vectors and values",
    "svdvals": "singular values",
    "eigh": "eigenvectors and values",
    "eigvalsh": "eigenvalues",
}


def _shape(case: dict[str, Any]) -> str:
    batch, n, m = case["shape"]
    return f"{batch}×{n}×{m}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def svd_table(result: dict[str, Any]) -> Table:
    """Return a table with one line per case: the algorithm and speed of `auto`, beside the others; above 1 ours is faster."""
    peers = list(dict.fromkeys(name for case in result["cases"] for name in case["over_auto"]))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("what")
    shown.add_column("batch×n×m", justify="right")
    shown.add_column("auto")
    for name in ("matrices/s", "GFLOP/s", "% of peak", "error of σ", "auto/best"):
        shown.add_column(name, justify="right")
    for name in peers:
        shown.add_column(f"{name} ÷", justify="right")
    for case in result["cases"]:
        auto = case["times"]["rmtjax auto"]
        if "median_s" not in auto:
            shown.add_row(case["what"], _shape(case), f"failed: {auto['failed']}")
            continue
        best = f"{case['auto_over_best']:.2f}" if "best" in case else "–"
        shown.add_row(
            case["what"] if case["k"] is None else f"top {case['k']}",
            _shape(case),
            case["auto"],
            _number(auto["matrices_per_s"]),
            _number(auto["gflops"]),
            f"{100 * auto['share']:.1f}",
            f"{case['accuracy']['auto']['gaussian']['values']:.0e}",
            best,
            *(f"{case['over_auto'][name]:.2f}" if name in case["over_auto"] else "–" for name in peers),
        )
    return shown


def svd_summary(result: dict[str, Any]) -> str:
    """Return the machine, the meaning of the columns, and failures."""
    lines = [
        f"{result['hardware']}, {result['dtype']}, matrix products at {result['peak_gflops']:,.0f} GFLOP/s;"
        " NAME ÷: its time over auto's; auto/best: the algorithm it takes over the fastest of ours that is as precise."
    ]
    for case in result["cases"]:
        for name, one in case["times"].items():
            if "failed" in one:
                lines.append(f"{name} failed at {case['what']} of {_shape(case)}: {one['failed']}")
    if result["left_out"]:
        lines.append(f"{result['left_out']} cases were left out for want of time")
    unsuited: dict[tuple, list[str]] = {}  # operations by the shapes that they do not support
    for what in dict.fromkeys(what for what, _ in result.get("unsuited", [])):
        shapes = tuple("×".join(map(str, shape)) for other, shape in result["unsuited"] if other == what)
        unsuited.setdefault((what == "top", *shapes), []).append(what)
    for (is_top, *shapes), names in unsuited.items():
        why = "sides of less than 16 k" if is_top else "not square"
        lines.append(f"{' and '.join(names)} left out of {', '.join(shapes)}: {why}")
    return "\n".join(map(visible, lines))


@style()
def svd_figure(result: dict[str, Any]) -> Figure:
    """Return a figure of the throughput of `auto`, our other algorithms and the peers, one panel per operation."""
    cases = [case for case in result["cases"] if "median_s" in case["times"]["rmtjax auto"]]
    kinds = list(dict.fromkeys(case["what"] for case in cases))
    peers = list(dict.fromkeys(name for case in cases for name in case["over_auto"]))
    columns = min(len(kinds), 2)
    rows = -(-len(kinds) // columns)
    most = max(sum(case["what"] == kind for case in cases) for kind in kinds)
    size = (max(1.4 + 0.42 * most, 3.2) * columns, 0.7 + 3.3 * rows)
    fig, panels = new_figure(rows, columns, size=size, sharey=True, squeeze=False)
    for axes, kind in zip(panels.flat, kinds, strict=False):
        own = [case for case in cases if case["what"] == kind]
        others = [
            (i, one["gflops"])
            for i, case in enumerate(own)
            for name, one in case["times"].items()
            if name.startswith("rmtjax ") and "gflops" in one
        ]
        axes.scatter(
            *zip(*others, strict=True), color="#c4c4c4", s=14, lw=0, label="rmtjax, other algorithms", zorder=2
        )
        for j, name in enumerate(["rmtjax auto", *peers]):
            at = [
                (i, case["times"][name]["gflops"])
                for i, case in enumerate(own)
                if "gflops" in case["times"].get(name, {})
            ]
            marker = {"marker": "D", "s": 34} if j == 0 else {"marker": "osv^Px*"[(j - 1) % 7], "s": 22}
            if at:
                axes.scatter(
                    *zip(*at, strict=True), color=PALETTE[j % len(PALETTE)], label=name, zorder=4 - (j > 0), **marker
                )
        axes.axhline(result["peak_gflops"], color=MUTED, lw=1, ls="--", label="matrix products")
        axes.set_yscale("log")
        axes.set_xlim(-0.6, len(own) - 0.4)
        axes.set_xticks(
            range(len(own)), [_shape(case) for case in own], rotation=60, ha="right", rotation_mode="anchor"
        )
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", visible=False)
        axes.set_title(_TITLES[kind] if kind != "top" else f"the {own[0]['k']} largest singular triplets")
        if axes in panels[:, 0]:
            axes.set_ylabel("GFLOP/s")
    spare = list(panels.flat)[len(kinds) :]
    for axes in spare:
        axes.axis("off")
    handles = panels[0, 0].get_legend_handles_labels()
    if spare:
        spare[0].legend(*handles, loc="center")
    else:
        fig.legend(*handles, loc="outside upper center", ncols=4)
    return fig


def write_svd(result: dict[str, Any], folder: str | Path, stem: str = "svd") -> list[Path]:
    """Write the figure into a folder."""
    path = Path(folder) / f"{stem}.png"
    save(svd_figure(result), path)
    return [path]
