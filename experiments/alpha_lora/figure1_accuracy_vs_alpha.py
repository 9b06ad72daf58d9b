"""α-LoRA, Figure 1: test accuracy against α for several alignments β of source and target, with the best and worst α.

Both samplers stand beside the law: the compressed one at every α, and matrices that are really drawn at a few.
"""

from __future__ import annotations

import numpy as np

from experiments._common import parse, record, worst_z
from rmtjax.claims.alpha_lora.classifier import alpha_ftc, orthogonal_norm
from rmtjax.laws import alpha_ftc as law
from rmtjax.montecarlo import grid, run, zipped
from rmtjax.report.figures import INK, MUTED, colours, new_figure, points, style

SIZES = dict(p=1000, n=200, N=1000)
RIDGE = dict(gamma=1.0, gamma_source=1.0)
MU = MU_BETA = 1.5
BETA = np.array([0.0, 0.3, 0.6, 0.9])


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=4_000)
    target = zipped(beta=BETA, mu_perp=orthogonal_norm(BETA, MU, MU_BETA))
    fixed = dict(**SIZES, **RIDGE, mu=MU)
    fine = np.linspace(-6, 10, 321)
    curves = alpha_ftc.predict(grid(target, **fixed, alpha=fine))["accuracy"]
    compressed = run(
        alpha_ftc, grid(target, **fixed, alpha=np.linspace(-6, 10, 33)), trials=args.trials, seed=args.seed
    )
    few, alphas = max(2, min(args.trials // 100, 16)), [-3.5, 0.0, 1.0, 5.5]
    shown = zipped(beta=BETA[1::2], mu_perp=orthogonal_norm(BETA[1::2], MU, MU_BETA))
    dense = run(alpha_ftc, grid(shown, **fixed, alpha=alphas), trials=few, seed=args.seed, sampler="dense")

    source = law.ridge_source(RIDGE["gamma_source"], SIZES["p"] / SIZES["N"], MU, BETA)
    limit = law.scalars(RIDGE["gamma"], SIZES["p"] / SIZES["n"], MU_BETA, source)
    best, worst = np.asarray(law.optimal_alpha(limit)), np.asarray(law.worst_alpha(limit))
    highest = np.asarray(law.best_accuracy(limit))

    with style():
        figure, axes = new_figure(size=(7.4, 4.9))
        axes.axhline(0.5, color=MUTED, lw=0.8)
        for i, colour in enumerate(colours(BETA.size)):
            axes.plot(fine, curves[i], color=colour, label=f"β = {BETA[i]:g},  α* = {best[i]:.2f}")
            mc = compressed.isel(beta=i, output=0)
            points(axes, mc["alpha"], mc["mean"], mc["se"], colour, ms=3.2)
            if BETA[i] in dense["beta"]:
                drawn = dense.sel(beta=BETA[i]).isel(output=0)
                square = dict(fmt="s", mfc="white", mec=colour, mew=1.2, ms=5.5)
                points(axes, drawn["alpha"], drawn["mean"], drawn["se"], colour, **square)
            axes.plot(best[i], highest[i], "*", ms=14, color=colour, mec=INK, mew=0.7, zorder=5)
            if fine[0] < worst[i] < fine[-1]:
                axes.plot(worst[i], 0.5, "v", ms=8, color=colour, mec=INK, mew=0.7, zorder=5)
        proxy = dict(color=MUTED, ls="")
        axes.plot([], [], "*", ms=12, mec=INK, mew=0.7, label="best α*", **proxy)
        axes.plot([], [], "v", ms=7, mec=INK, mew=0.7, label="worst α (accuracy ½)", **proxy)
        axes.plot([], [], "o", ms=4, label=f"compressed, {args.trials} trials", **proxy)
        axes.plot([], [], "s", mfc="white", ms=5.5, label=f"dense, {few} trials", **proxy)
        axes.set_xlabel("scale α of the source classifier")
        axes.set_ylabel("test accuracy on the target")
        axes.set_title("Accuracy against α:  p = 1000, n = 200, N = 1000, ‖μ‖ = ‖μ$_β$‖ = 1.5, γ = γ̃ = 1")
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1.2, handletextpad=0.5)
    numbers = {
        "beta": BETA, "alpha_star": best, "worst_alpha": worst, "best_accuracy": highest,
        "accuracy_at_0": law.accuracy(limit, 0.0), "accuracy_at_1": law.accuracy(limit, 1.0),
        "worst_z_compressed": worst_z(compressed), "worst_z_dense": worst_z(dense),
        "largest_gap_compressed": float(np.abs(compressed["mean"] - compressed["law"]).max()),
    }  # fmt: skip
    record(args, figure, numbers, {"compressed": compressed, "dense": dense})


if __name__ == "__main__":
    main()
