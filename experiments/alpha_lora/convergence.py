"""α-LoRA, Proposition 4.3 at finite size: the bias of the limiting accuracy falls as 1/p, from p = 10² to 10⁹.

The slope is fitted over the sizes at which the bias is resolved, more than 4 standard errors; beyond them the figure
shows upper limits. That choice favours upward fluctuations, so a fit of c·pˢ to all sizes stands beside it.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import curve_fit

from experiments._common import parse, record
from rmtjax.claims.alpha_lora.classifier import alpha_ftc
from rmtjax.montecarlo import grid, run, zipped
from rmtjax.report.figures import MUTED, colours, new_figure, points, style

P = np.array([1e2, 2e2, 4e2, 8e2, 1.6e3, 3.2e3, 1e4, 1e5, 1e7, 1e9])
ALPHA = [-0.5, 0.0, 1.0]
# The bias stands out most from the scatter of one trial here: many target samples leave little else random.
FIXED = dict(beta=0.15, mu=2.4, mu_perp=1.4, gamma=0.25, gamma_source=0.4)


def slope(p: np.ndarray, bias: np.ndarray, se: np.ndarray) -> tuple[float, float]:
    """Return the weighted least-squares slope of log|bias| on log p, and its standard error; nan for fewer than two sizes."""
    if p.size < 2:
        return np.nan, np.nan
    weight, x = (bias / se) ** 2, np.log(p)
    x = x - np.average(x, weights=weight)
    spread = np.sum(weight * x**2)
    return float(np.sum(weight * x * np.log(np.abs(bias))) / spread), float(spread**-0.5)


def power_law(p: np.ndarray, bias: np.ndarray, se: np.ndarray) -> tuple[float, float]:
    """Return the exponent of c·pˢ fitted to every size, resolved or not, and its standard error; nan if the fit fails."""
    start = (bias[0], -1.0)
    try:
        best, covariance = curve_fit(lambda p, c, s: c * (p / P[0]) ** s, p, bias, start, se, absolute_sigma=True)
    except RuntimeError:  # with very few trials only scatter is left to fit
        return np.nan, np.nan
    return float(best[1]), float(covariance[1, 1] ** 0.5)


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=120_000)
    sizes = zipped(p=P, n=8 * P, N=P)
    result = run(alpha_ftc, grid(sizes, **FIXED, alpha=ALPHA), trials=args.trials, seed=args.seed)
    numbers = {
        "alpha": ALPHA,
        "slope": [],
        "slope_se": [],
        "resolved": [],
        "slope_all_sizes": [],
        "slope_all_sizes_se": [],
    }
    with style():
        figure, panels = new_figure(1, len(ALPHA), size=(10.6, 4.3), sharex=True, sharey=True)
        for axes, alpha, colour in zip(panels, ALPHA, colours(len(ALPHA)), strict=True):
            one = result.sel(alpha=alpha, output="accuracy")
            bias, se = (one["mean"] - one["law"]).values, one["se"].values
            seen = np.abs(bias) > 4 * se
            fit, fit_se = slope(P[seen], bias[seen], se[seen])
            whole, whole_se = power_law(P, bias, se)
            points(axes, P[seen], np.abs(bias[seen]), se[seen], colour, label="|bias| ± 2 s.e.")
            limits = np.abs(bias[~seen]) + 2 * se[~seen]
            axes.plot(P[~seen], limits, "v", color=MUTED, mfc="white", label="upper limit |bias| + 2 s.e.")
            scale = (
                np.average(np.abs(bias[seen]) * P[seen], weights=(bias[seen] / se[seen]) ** 2) if seen.any() else np.nan
            )
            axes.plot(P, scale / P, color=colour, label=f"{scale:.2g} / p")
            axes.set(xscale="log", yscale="log", xlabel="dimension p  (n = 8p, N = p)")
            fits = f"α = {alpha:g}\nslope {fit:.2f} ± {fit_se:.2f},  all sizes {whole:.2f} ± {whole_se:.2f}"
            axes.set_title(fits.replace("-", "−"))
            axes.legend(loc="lower left")
            for name, value in zip(list(numbers)[1:], (fit, fit_se, int(seen.sum()), whole, whole_se), strict=True):
                numbers[name].append(value)
        panels[0].set_ylabel("|mean accuracy − law|")
        figure.suptitle(
            f"Finite-size bias of the accuracy:  {args.trials:,} trials a size, "
            "β = 0.15, ‖μ‖ = 2.4, ‖μ⊥‖ = 1.4, γ = 0.25, γ̃ = 0.4",
            x=0.01, ha="left", fontsize=10.5,
        )  # fmt: skip
    large = result.sel(p=P[P >= 1e5])
    numbers["worst_z_from_1e5"] = float(np.abs(large["z"]).max())
    record(args, figure, numbers, {"bias": result})


if __name__ == "__main__":
    main()
