"""α-LoRA, Figure 2: the optimal α* against the alignment β, for several dimensions p and several sample sizes n.

At fixed ‖μ_β‖ = ‖μ‖ = 1, where α* never decreases with β (`monotonicity.py` says when it does).
"""

from __future__ import annotations

import numpy as np

from experiments._common import parse, record, worst_z
from rmtjax.claims.alpha_lora.classifier import optimum
from rmtjax.montecarlo import grid, run
from rmtjax.report.figures import colours, new_figure, points, style

FIXED = dict(N=2000, mu=1.0, mu_beta=1.0, gamma=1.0, gamma_source=1.0)
PANELS = {
    "p": (dict(p=[50, 200, 1000, 4000], n=200), "fixed n = 200: the dimension p varies"),
    "n": (dict(p=1000, n=[50, 200, 1000, 4000]), "fixed p = 1000: the target samples n vary"),
}


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=4_000)
    fine = np.linspace(0, 1, 101)
    numbers, runs = {}, {}
    with style():
        figure, panels = new_figure(1, 2, size=(9.6, 4.4))
        for axes, (name, (sizes, title)) in zip(panels, PANELS.items(), strict=True):
            curves = optimum.predict(grid(**sizes, **FIXED, beta=fine))["alpha_star"]
            mc = run(optimum, grid(**sizes, **FIXED, beta=np.linspace(0, 1, 6)), trials=args.trials, seed=args.seed)
            drawn = mc.sel(output="alpha_star").transpose(name, "beta")
            for i, colour in enumerate(colours(4, ordered=True)):
                axes.plot(fine, curves[i], color=colour, label=f"{name} = {sizes[name][i]}")
                points(axes, drawn["beta"], drawn["mean"][i], drawn["se"][i], colour)
            axes.axhline(1, color="#8a8a8a", lw=0.8, ls="--")
            axes.annotate("α = 1", (0.0, 1), xytext=(2, 3), textcoords="offset points", color="#8a8a8a", fontsize=9)
            axes.set_xlabel("alignment β")
            axes.set_title(title)
            axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.97))
            numbers[f"alpha_star_at_beta_1_by_{name}"] = dict(zip(map(str, sizes[name]), curves[:, -1], strict=True))
            numbers[f"never_decreases_by_{name}"] = bool((np.diff(curves, axis=1) > 0).all())
            # α* is a ratio, whose limit is off by O(1/size): the gap, not z, shows the quality of the law at p = 50.
            numbers[f"largest_gap_by_{name}"] = float(np.abs(mc["mean"] - mc["law"]).max())
            numbers[f"worst_z_by_{name}"], runs[name] = worst_z(mc), mc
        panels[0].set_ylabel("optimal α*")
        figure.suptitle(
            f"α* against alignment:  N = 2000, ‖μ‖ = ‖μ$_β$‖ = γ = γ̃ = 1;  lines: law, points: {args.trials} trials, ± 2 s.e.",
            x=0.01, ha="left", fontsize=10.5,
        )  # fmt: skip
    record(args, figure, numbers, runs)


if __name__ == "__main__":
    main()
