"""α-LoRA, §4: "α* is non-decreasing in β" holds at fixed ‖μ_β‖, and not at fixed ‖μ⊥‖.

2,000 random settings of each kind are asked of the law; at one that violates the statement, Monte Carlo confirms it.
"""

from __future__ import annotations

import numpy as np

from experiments._common import parse, record, worst_z
from rmtjax.claims.alpha_lora.classifier import mean_norm, optimum
from rmtjax.laws import alpha_ftc as law
from rmtjax.montecarlo import grid, run, zipped
from rmtjax.report.figures import MUTED, PALETTE, new_figure, points, style

SETTINGS, SHOWN = 2_000, 16
EXAMPLE = dict(mu=2.0, gamma=1.0, gamma_source=1.0)
MU_PERP = 0.3
SIZES = dict(p=1e4, n=5e3, N=2e4)


def optimal(setting: dict, beta: np.ndarray, mu_beta: np.ndarray) -> np.ndarray:
    """Return α* along β, one row per setting."""
    source = law.ridge_source(setting["gamma_source"], setting["eta_source"], setting["mu"], beta)
    return np.asarray(law.optimal_alpha(law.scalars(setting["gamma"], setting["eta"], mu_beta, source)))


def decreases(curves: np.ndarray) -> np.ndarray:
    """Return the rows that decrease anywhere by more than rounding."""
    return (np.diff(curves, axis=1) < -1e-9 * np.abs(curves).max(1, keepdims=True)).any(1)


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=4_000)
    rng = np.random.default_rng(args.seed)
    ranges = dict(
        gamma=(0.01, 10), gamma_source=(0.01, 10), eta=(0.1, 10), eta_source=(0.1, 10), mu=(0.3, 3), norm=(0.3, 3)
    )
    setting = {name: np.exp(rng.uniform(*np.log(ends), (SETTINGS, 1))) for name, ends in ranges.items()}
    t = np.linspace(0, 1, 101)
    # Fixed ‖μ_β‖: β up to ‖μ_β‖/‖μ‖, where the means are parallel. Fixed ‖μ⊥‖: β up to 1.
    fixed_total = optimal(setting, t * setting["norm"] / setting["mu"], setting["norm"] + 0 * t)
    fixed_rest = optimal(setting, t, mean_norm(t, setting["mu"], setting["norm"]))
    falls = {"at fixed ‖μ$_β$‖": decreases(fixed_total), "at fixed ‖μ⊥‖": decreases(fixed_rest)}

    fine, beta = np.linspace(0, 1, 201), np.linspace(0, 1, 11)
    line = optimum.predict(grid(zipped(beta=fine, mu_beta=mean_norm(fine, EXAMPLE["mu"], MU_PERP)), **SIZES, **EXAMPLE))
    cells = grid(zipped(beta=beta, mu_beta=mean_norm(beta, EXAMPLE["mu"], MU_PERP)), **SIZES, **EXAMPLE)
    result = run(optimum, cells, trials=args.trials, seed=args.seed)
    one = result.sel(output="alpha_star")
    top, end = one.isel(beta=int(one["law"].argmax("beta"))), one.isel(beta=-1)
    drop = float(top["mean"] - end["mean"])
    drop_se = float(np.hypot(top["se"], end["se"]))

    with style():
        figure, panels = new_figure(1, 3, size=(11.2, 4.1))
        labels = ("β ‖μ‖ / ‖μ$_β$‖", "alignment β")
        for axes, curves, (name, bad), label in zip(
            panels, (fixed_total, fixed_rest), falls.items(), labels, strict=False
        ):
            for row in range(SHOWN):
                axes.plot(t, curves[row] / curves[row].max(), color=PALETTE[1] if bad[row] else PALETTE[0], lw=0.9)
            axes.set_title(f"{name}: falls in {bad.sum()} of {SETTINGS}")
            axes.set_xlabel(label)
        panels[0].set_ylabel(f"α* / its largest value,  {SHOWN} of the settings")
        axes = panels[2]
        axes.plot(fine, line["alpha_star"], color=PALETTE[1], label="law")
        points(axes, beta, one["mean"], one["se"], label=f"Monte Carlo, {args.trials} trials")
        axes.axhline(float(end["mean"]), color=MUTED, lw=0.8, ls=":")
        axes.set(xlabel="alignment β", ylabel="optimal α*")
        axes.set_title(f"one setting: falls by {drop:.2f}, z = {drop / drop_se:.0f}")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.0))
        figure.suptitle(
            "α* against alignment: blue never falls, orange does.  "
            "Right: p = 10⁴, n = p/2, N = 2p, ‖μ‖ = 2, ‖μ⊥‖ = 0.3, γ = γ̃ = 1",
            x=0.01, ha="left", fontsize=10.5,
        )  # fmt: skip
    numbers = {
        "settings": SETTINGS, "violations_at_fixed_mu_beta": int(decreases(fixed_total).sum()),
        "violations_at_fixed_mu_perp": int(decreases(fixed_rest).sum()),
        "example": {"beta": [float(top["beta"]), 1.0], "alpha_star": [float(top["mean"]), float(end["mean"])],
                    "drop": drop, "drop_se": drop_se, "z_of_drop": drop / drop_se},
        "worst_z": worst_z(result),
    }  # fmt: skip
    record(args, figure, numbers, {"example": result})


if __name__ == "__main__":
    main()
