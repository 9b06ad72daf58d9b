"""α-LoRA, Figure 6: the decision function on a finite test set, against the two Gaussians of Theorem 4.2.

One classifier is trained on matrices that are really drawn, and `--trials` test points of each class are put to it.
It is one training set, so its mean and deviation differ from the limits by O(1/√p); `rmtjax verify alpha-ftc-decision`
averages over training sets.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kstest, norm

from experiments._common import parse, record
from rmtjax.claims.alpha_lora.classifier import mean_norm
from rmtjax.ensembles.alpha_ftc import dense
from rmtjax.ensembles.entries import entries
from rmtjax.laws import alpha_ftc as law
from rmtjax.report.figures import INK, PALETTE, new_figure, style

P, N_TARGET, N_SOURCE = 1000, 500, 2000
BETA, MU, MU_PERP, GAMMA, GAMMA_SOURCE = 0.8, 1.5, 1.0, 1.0, 1.0


def draw(seed: int, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw decisions of both parts of the classifier on fresh points, (2, points) each, and the labels."""
    with jax.enable_x64(True):
        source_key, target_key, test_key = jax.random.split(jax.random.key(seed), 3)
        mean, target_mean = dense.means(P, MU, BETA, MU_PERP)
        source = dense.fit_source(source_key, N_SOURCE, mean, jnp.asarray(GAMMA_SOURCE), "gaussian")
        fitted = dense.fit_target(target_key, N_TARGET, target_mean, jnp.asarray(GAMMA), source[:, None], "gaussian")
        labels = np.repeat([-1.0, 1.0], points)
        x = entries(test_key, (P, 2 * points), "gaussian", target_mean.dtype) + target_mean[:, None] * labels
        return np.asarray(fitted.w @ x), np.asarray(fitted.u[:, 0] @ x), labels


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=4_000)
    own, lent, labels = draw(args.seed, args.trials)
    source = law.ridge_source(GAMMA_SOURCE, P / N_SOURCE, MU, BETA)
    limit = law.scalars(GAMMA, P / N_TARGET, mean_norm(BETA, MU, MU_PERP), source)
    best = float(law.optimal_alpha(limit))
    m0, m1, v0, v1, v2 = map(float, limit)
    numbers = {"alpha_star": best}
    with style():
        figure, panels = new_figure(1, 3, size=(10.4, 3.9), sharey=True)
        for axes, (name, alpha) in zip(
            panels, {"α = 0": 0.0, "α = 1": 1.0, f"α* = {best:.2f}": best}.items(), strict=True
        ):
            m = m0 + alpha * m1
            sd = (v0 + 2 * alpha * v1 + alpha**2 * v2) ** 0.5
            decision = own + alpha * lent
            grid = np.linspace(-abs(m) - 4 * sd, abs(m) + 4 * sd, 400)
            for sign, colour in ((-1, PALETTE[1]), (1, PALETTE[0])):
                axes.hist(decision[labels == sign], 60, density=True, color=colour, alpha=0.35, lw=0)
                axes.plot(grid, norm.pdf(grid, sign * m, sd), color=colour)
            axes.axvline(0, color=INK, lw=0.8, ls=":")
            seen = float(np.mean(decision * labels > 0))
            predicted = float(law.accuracy(limit, alpha))
            axes.set_title(f"{name}\naccuracy: law {100 * predicted:.1f} %, test {100 * seen:.1f} %")
            axes.set_xlabel("decision  $w_α^\\top x$")
            distance = kstest(decision * labels, norm(m, sd).cdf)
            numbers[name.split(" =")[0] + ("" if alpha == best else f" = {alpha:g}")] = {
                "mean": {"law": m, "test": float(np.mean(decision * labels))},
                "deviation": {"law": sd, "test": float(np.std(decision * labels - np.mean(decision * labels)))},
                "accuracy": {"law": predicted, "test": seen},
                "kolmogorov_distance": float(distance.statistic),
            }  # fmt: skip
        panels[0].set_ylabel("density")
        for colour, text in ((PALETTE[1], "class −1"), (PALETTE[0], "class +1")):
            axes.plot([], [], color=colour, label=text)
        axes.hist([], label=f"{args.trials} test points a class", color="#b8b8b8")
        axes.plot([], [], color=INK, label="Gaussians of Theorem 4.2")
        figure.legend(loc="outside lower center", ncols=4)
        figure.suptitle(
            f"Decision function:  p = {P}, n = {N_TARGET}, N = {N_SOURCE}, β = {BETA}, ‖μ‖ = {MU}, ‖μ⊥‖ = {MU_PERP:g}, γ = γ̃ = 1",
            x=0.01, ha="left", fontsize=10.5,
        )  # fmt: skip
    record(args, figure, numbers, {})


if __name__ == "__main__":
    main()
