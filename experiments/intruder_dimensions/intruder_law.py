"""Intruder Dimensions, §V: the probability that the outlier is an intruder at finite size, law against simulation.

Symmetric and rectangular matrices, exact in law, without the matrix: the spectrum is that of a tridiagonal matrix, the
spike's directions are uniform in its eigenbasis, the outlier solves the secular equation and the overlaps follow. Several
directions share a spectrum, which makes them one cluster in the standard errors. Sizes that the file of results already
holds for the same seed and trials are not drawn again. The table of docs/intruder-law.md is written from the same numbers.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import erf

from experiments._common import HERE, made_with, parse, plain
from rmtjax.laws import intruders as law
from rmtjax.laws import marchenko_pastur
from rmtjax.report.figures import INK, MUTED, colours, new_figure, points, save, style
from tests.oracles.intruder_simulation import DIRECTIONS, TOLERANCES, Shape, bbp, simulate

SIZES: dict[Shape, float] = {
    (200,): 1.0, (768,): 0.5, (4096,): 0.16,
    (200, 200): 0.6, (200, 800): 0.5, (768, 768): 0.3, (768, 3072): 0.2, (4096, 4096): 0.08,
}  # fmt: skip
"""Matrices and the share of the trials that each gets; a spectrum costs N²."""

STRENGTHS = np.array([0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.45, 1.7, 2.2, 3.0])
"""θ in units of the BBP threshold."""

DRAWN = TOLERANCES[:3]
LARGE = (1e3, 1e4, 1e6, 1e9)
"""Sizes at which the law's threshold is given, to show its limit."""

DOCUMENT = HERE.parent / "docs" / "intruder-law.md"


# -- the laws ----------------------------------------------------------------------------------------------------------


def sides_of(shape: Shape) -> tuple[str, ...]:
    """Return names of the simulated sides."""
    return ("intruder",) if len(shape) == 1 else ("intruder_left", "intruder_right")


def predicted(shape: Shape, strengths: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """Return the law, array (sides, ε, θ)."""
    theta, eps = strengths * bbp(shape), eps[:, None]
    if len(shape) == 1:
        return np.asarray(law.wigner_intruder_probability(*shape, theta, eps))[None]
    left = np.asarray(law.rectangular_intruder_probability(*shape, theta, eps))
    if shape[0] == shape[1]:  # the two sides have one law
        return np.stack([left, left])
    return np.stack([left, np.asarray(law.rectangular_intruder_probability(*shape, theta, eps, side="right"))])


def independent(shape: Shape, strengths: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """Return the product over independent Gaussian overlaps, array (sides, ε, θ)."""
    theta, eps = strengths * bbp(shape), eps[:, None]
    if len(shape) == 1:
        return np.asarray(law.wigner_independent_intruder_probability(*shape, theta, eps))[None]
    n, m = shape
    quantiles = np.asarray(marchenko_pastur.singular_ppf(1 - (np.arange(1, n + 1) - 0.75) / (n - 0.5), n / m))
    found = []
    for side, size in zip(("left", "right"), shape, strict=True):
        profile = np.asarray(law.rectangular_overlap_profile(quantiles, theta[:, None], n / m, side=side))
        product = np.prod(erf(eps[..., None] * np.sqrt(size / (2 * profile))), -1)
        found.append(np.where(strengths > 1, product, 0.0))
    return np.stack(found)


def thresholds(shape: Shape, eps: np.ndarray) -> np.ndarray:
    """Return the strength at which P = ½ on the first side, in units of the BBP threshold."""
    if len(shape) == 1:
        return np.asarray(law.wigner_intruder_threshold(*shape, eps))
    return np.asarray(law.rectangular_intruder_threshold(*shape, eps)) / bbp(shape)


def without(part: str, N: int, strengths: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """Return the symmetric law without one of its parts, array (ε, θ)."""
    kept = dict(order=1) if part == "second order" else dict(has_random_edge=False)
    return np.asarray(law.wigner_intruder_probability(N, strengths, eps[:, None], **kept))


def windows() -> dict[str, dict[str, float]]:
    """Return :math:`(θ - 1)N^{1/3}` at the symmetric law's threshold, by ε and N."""
    return {
        f"{eps:g}": {f"{N:g}": (float(law.wigner_intruder_threshold(N, eps)) - 1) * N ** (1 / 3) for N in LARGE}
        for eps in DRAWN
    }


PARTS = ("edge fluctuation", "second order")


# -- the report --------------------------------------------------------------------------------------------------------


def name_of(shape: Shape) -> str:
    """Return ``200`` or ``200×800``."""
    return "×".join(map(str, shape))


def kept(path: Path, args: Any, strengths: np.ndarray) -> dict[str, Any]:
    """Return the runs of an earlier call with the same seed, trials and strengths."""
    if not path.is_file():
        return {}
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    same = dict(seed=args.seed, trials_per_cell=args.trials, strengths=plain(strengths))
    return {name: run for name, run in runs.items() if {k: run["provenance"].get(k) for k in same} == same}


def cells(shape: Shape, strengths: np.ndarray, trials: int, **by_name: np.ndarray) -> list[dict[str, Any]]:
    """Return one row for each ε and θ, of arrays (sides, ε, θ)."""
    sizes = {"N": shape[0]} if len(shape) == 1 else {"n": shape[0], "m": shape[1]}
    rows = []
    for i, eps in enumerate(TOLERANCES):
        for k, theta in enumerate(strengths):
            row = {**sizes, "theta": theta * bbp(shape), "eps": eps, "trials": trials}
            values = [{what: v[j, i, k] for what, v in by_name.items()} for j in range(len(shape))]
            if len(shape) == 1:
                rows.append(row | values[0])
            else:
                rows.append(row | {"outputs": dict(zip(sides_of(shape), values, strict=True))})
    return rows


def stacked(run: dict[str, Any], shape: Shape, statistic: str) -> np.ndarray:
    """Return the array (sides, ε, θ) from which `cells` made rows."""
    rows = [[row] if len(shape) == 1 else list(row["outputs"].values()) for row in run["cells"]]
    values = np.array([[one[statistic] for one in row] for row in rows], float)
    return values.T.reshape(len(shape), TOLERANCES.size, -1)


def errors(run: dict[str, Any], shape: Shape, strengths: np.ndarray, ablated: bool) -> dict[str, Any]:
    """Return for each ε the largest distances to the simulation, its largest standard error, and the threshold."""
    mean, se = stacked(run, shape, "mean"), stacked(run, shape, "se")
    found: dict[str, Any] = {}
    missing = {part: without(part, *shape, strengths, DRAWN)[None] for part in PARTS} if ablated else {}
    for i, eps in enumerate(TOLERANCES):
        far = {what: np.abs(stacked(run, shape, what) - mean)[:, i].max() for what in ("law", "independent")}
        for part, v in missing.items():
            if i < DRAWN.size:
                far[f"without {part}"] = np.abs(v - mean[:, : DRAWN.size])[:, i].max()
        found[f"{eps:g}"] = {**far, "se": se[:, i].max(), "threshold": thresholds(shape, eps)}
    return found


def table(numbers: dict[str, Any], window: dict[str, dict[str, float]]) -> str:
    """Return the errors as Markdown."""
    lines = ["| matrix | " + " | ".join(f"ε = {eps:g}" for eps in TOLERANCES) + " | largest standard error |"]
    lines.append("| --- |" + " --: |" * (TOLERANCES.size + 1))
    for name, row in numbers.items():
        entries = [f"{v['law']:.3f} ({v['independent']:.2f})" for v in row.values()]
        lines.append(f"| {name} | " + " | ".join(entries) + f" | {max(v['se'] for v in row.values()):.4f} |")
    lines += [
        "",
        "| N | ε | the law | " + " | ".join(f"without {part}" for part in PARTS) + " | independent overlaps |",
    ]
    lines.append("| --: | --: |" + " --: |" * (len(PARTS) + 2))
    for name, row in numbers.items():
        for eps, v in row.items():
            if f"without {PARTS[0]}" in v:
                rest = " | ".join(f"{v[f'without {part}']:.3f}" for part in PARTS)
                lines.append(f"| {name} | {eps} | {v['law']:.3f} | {rest} | {v['independent']:.3f} |")
    lines += ["", "| ε | " + " | ".join(f"N = 10^{np.log10(N):.0f}" for N in LARGE) + " |"]
    lines.append("| --: |" + " --: |" * len(LARGE))
    lines += [f"| {eps} | " + " | ".join(f"{v:.2f}" for v in row.values()) + " |" for eps, row in window.items()]
    return "\n".join(lines)


def figure_of(runs: dict[str, Any], numbers: dict[str, Any], sizes: dict[Shape, float], strengths: np.ndarray) -> Any:
    """Return a figure of P against θ: a row for symmetric and one for rectangular matrices, a column for each ε."""
    between = np.sqrt(strengths[1:] * strengths[:-1])
    fine, above = np.geomspace(strengths[0], strengths[-1], 400), np.geomspace(1.01, strengths[-1], 120)
    at = np.append(strengths, between)
    order = np.argsort(at)
    at = at[order]
    groups = [[shape for shape in sizes if len(shape) == k] for k in (1, 2)]
    groups = [group for group in groups if group]
    with style():
        figure, panels = new_figure(
            len(groups), DRAWN.size, size=(11.2, 0.7 + 3.1 * len(groups)), sharex=True, sharey=True, squeeze=False
        )
        for row, group in zip(panels, groups, strict=True):
            for shape, colour in zip(group, colours(len(group)), strict=True):
                name = name_of(shape)
                mean, se, known = (stacked(runs[name], shape, what) for what in ("mean", "se", "law"))
                known = np.concatenate([known[:, : DRAWN.size], predicted(shape, between, DRAWN)], -1)[..., order]
                product = independent(shape, above, DRAWN)[0]
                both = len(set(shape)) > 1  # only the sides that differ
                for (i, axes), j in itertools.product(enumerate(row), range(1 + both)):
                    line, look = ("--", dict(mfc="white", mec=colour, mew=1.1)) if j else ("-", {})
                    label = f"N = {name}" if len(shape) == 1 else name + (", left", ", right")[j] * both
                    axes.plot(fine, PchipInterpolator(at, known[j, i])(fine), color=colour, ls=line, label=label)
                    points(axes, strengths, mean[j, i], se[j, i], colour, **({"ms": 4} | look))
                for i, axes in enumerate(row):
                    axes.plot(above, product[i], ":", color=colour, lw=1.0)
                    threshold = numbers[name][f"{DRAWN[i]:g}"]["threshold"]
                    if threshold is not None and threshold < fine[-1]:
                        axes.plot(threshold, -0.035, "^", color=colour, ms=7, clip_on=False, zorder=6)
            for axes, eps in zip(row, DRAWN, strict=True):
                axes.axvline(1, color=MUTED, lw=0.9)
                axes.axhline(0.5, color=MUTED, lw=0.6)
                axes.set_title(f"{'symmetric' if len(group[0]) == 1 else 'rectangular'},  ε = {eps:g}")
            row[0].set_ylabel("P(intruder)")
            row[-1].legend(loc="lower right")
        for axes in panels[-1]:
            axes.set_xscale("log")
            axes.set_xticks([1, 1.2, 1.5, 2, 3], ["1", "1.2", "1.5", "2", "3"])
            axes.minorticks_off()
            axes.set(xlim=(strengths[0] * 0.985, strengths[-1] * 1.02), ylim=(-0.035, 1.03))
            axes.set_xlabel("θ in units of the BBP threshold")
        proxies = [
            axes.plot([], [], color=INK, label="law")[0],
            axes.plot([], [], ":", color=INK, lw=1.0, label="independent overlaps")[0],
            axes.plot([], [], "o", color=INK, ms=4, label="simulation, ± 2 standard errors")[0],
            axes.plot([], [], "^", color=INK, ms=7, label="intruder threshold, P = ½")[0],
            axes.plot([], [], color=MUTED, lw=0.9, label="BBP threshold")[0],
        ]
        figure.legend(handles=proxies, loc="outside lower center", ncols=5)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Draw the figure, and write the table if the results are the package's own."""
    args = parse(argv, __file__, __doc__, trials=64_000)
    sizes, strengths = SIZES, STRENGTHS
    path = args.out / "results" / f"{args.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier, runs, numbers, window = kept(path, args, strengths), {}, {}, windows()

    def write() -> None:
        report = {
            "experiment": args.name,
            "reproduces": args.about,
            "provenance": made_with(args),
            "numbers": {"largest_errors": numbers, "window": window},
            "runs": {**earlier, **runs},
        }
        text = json.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    for shape, share in sizes.items():
        name, began = name_of(shape), time.perf_counter()
        spectra = max(2, round(share * args.trials / DIRECTIONS))
        if name in earlier:
            mean, se = (stacked(earlier[name], shape, what) for what in ("mean", "se"))
            made = earlier[name]["provenance"]
        else:
            mean, se = simulate(shape, spectra, args.seed, strengths)
            made = made_with(args, jax.local_devices()[:1])
            made |= {"wall_s": round(time.perf_counter() - began, 2), "spectra": spectra, "directions": DIRECTIONS,
                     "strengths": strengths}  # fmt: skip
        law_, product = (of(shape, strengths, TOLERANCES) for of in (predicted, independent))
        z = (mean - law_) / np.maximum(se, 1 / (spectra * DIRECTIONS))
        rows = cells(shape, strengths, spectra * DIRECTIONS, mean=mean, se=se, law=law_, z=z, independent=product)
        runs[name] = plain({"provenance": made, "cells": rows})
        numbers[name] = plain(errors(runs[name], shape, strengths, ablated=len(shape) == 1))
        write()
        print(name, json.dumps(numbers[name], ensure_ascii=False), flush=True)
    image = save(figure_of(runs, numbers, sizes, strengths), args.out / "figures" / f"{args.name}.png")
    if args.out == HERE and DOCUMENT.is_file():
        text = DOCUMENT.read_text(encoding="utf-8")
        new = re.sub(
            r"(<!-- errors -->\n).*?(<!-- /errors -->)",
            lambda m: f"{m[1]}{table(numbers, window)}\n{m[2]}",
            text,
            flags=re.S,
        )
        DOCUMENT.write_text(new, encoding="utf-8")
    print(f"{image}\n{path}\n{time.perf_counter() - args.began:.1f} s")


if __name__ == "__main__":
    main()
