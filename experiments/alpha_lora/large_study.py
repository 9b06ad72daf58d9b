"""α-LoRA, Theorem 4.2: ten thousand cells of dimensions, aspect ratios, ridges and alignments, law against simulation.

Eight p from 10² to 10⁹, five n/p, five N/p, five γ, ten β, α = 1; by default 10⁴ trials each. The run is stored
in `runs/` as it proceeds, and a killed one resumes from there.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import kstest, norm

from experiments._common import parse, record
from rmtjax.claims.alpha_lora.classifier import alpha_ftc
from rmtjax.montecarlo import grid, judge, run, zipped
from rmtjax.report.figures import MUTED, PALETTE, new_figure, style

P = 10.0 ** np.arange(2, 10)
TARGET, SOURCE = np.array([0.25, 0.5, 1.0, 2.0, 4.0]), np.array([0.5, 1.0, 2.0, 4.0, 8.0])
GAMMA = [0.1, 0.3, 1.0, 3.0, 10.0]
BETA = np.linspace(0.1, 1.0, 10)
LARGE = 1e6
"""From here on the bias, of order 1/p, is far below the resolution of so many trials."""


def cells():
    """Return the grid: sizes, which vary together, by γ and β."""
    p, n, N = (v.ravel() for v in np.meshgrid(P, TARGET, SOURCE, indexing="ij"))
    return grid(zipped(p=p, n=n * p, N=N * p), beta=BETA, gamma=GAMMA, mu=1.0, mu_perp=0.6, gamma_source=1.0, alpha=1.0)


def main(argv: list[str] | None = None) -> None:
    """Draw, test, and show the distribution of the deviations."""
    args = parse(argv, __file__, __doc__, trials=10_000)
    store = args.out / "runs" / f"large_study-{args.trials}-{args.seed}.zarr"
    result = run(alpha_ftc, cells(), trials=args.trials, seed=args.seed, store=store)
    (finding,) = judge([result], [alpha_ftc]).findings
    one = result.sel(output="accuracy").squeeze()
    off, z, p = ((one[name] if name else one["mean"] - one["law"]) for name in ("", "z", "p"))
    large = z.values[p.values >= LARGE].ravel()
    rows = [i for i, dim in enumerate(off.dims) if dim in p.dims]
    by_p = np.moveaxis(off.values, rows, range(len(rows))).reshape(len(P), -1)
    se = np.moveaxis(one["se"].values, rows, range(len(rows))).reshape(len(P), -1)
    numbers = {
        "cells": int(z.size), "trials": int(result["trials"].sum()), "holds": finding.holds, "worst_z": finding.z,
        "p_holm": finding.p, "large_cells": int(large.size), "large_worst_z": float(np.abs(large).max()),
        "large_share_beyond_2": float(np.mean(np.abs(large) > 2)), "large_ks_p": float(kstest(large, "norm").pvalue),
        "p": P, "rms_deviation": np.sqrt(np.mean(by_p**2, 1)), "rms_standard_error": np.sqrt(np.mean(se**2, 1)),
        "wall_s": float(result.attrs["wall_s"]), "compile_s": float(result.attrs["compile_s"]),
    }  # fmt: skip
    with style():
        figure, (left, right) = new_figure(1, 2, size=(9.6, 4.2))
        expected = norm.ppf((np.arange(large.size) + 0.5) / large.size)
        left.plot([-4, 4], [-4, 4], color=MUTED, lw=0.8)
        left.plot(expected, np.sort(large), ".", ms=3, color=PALETTE[0])
        left.set(xlabel="normal quantile", ylabel="z of a cell", title=f"{large.size:,} cells with p ≥ 10⁶")
        right.plot(P, numbers["rms_deviation"], "o-", color=PALETTE[0], label="r.m.s. of mean − law")
        right.plot(P, numbers["rms_standard_error"], "--", color=MUTED, label="r.m.s. standard error")
        right.set(xscale="log", yscale="log", xlabel="dimension p", title=f"all {z.size:,} cells, by p")
        right.legend()
    record(args, figure, numbers, {})


if __name__ == "__main__":
    main()
