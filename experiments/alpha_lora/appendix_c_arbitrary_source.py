"""α-LoRA, Appendix C: accuracy against α for any source classifier, known only by its norm and its angle to μ_β."""

from __future__ import annotations

import numpy as np

from experiments._common import parse, record, worst_z
from rmtjax.claims.alpha_lora.classifier import arbitrary
from rmtjax.laws import alpha_ftc as law
from rmtjax.montecarlo import grid, run
from rmtjax.report.figures import law_against_monte_carlo

FIXED = dict(norm=0.5, mu_beta=1.5, gamma=1.0)
COSINE = np.array([-0.5, 0.0, 0.4, 0.8])


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=20_000)
    alphas = np.linspace(-6, 10, 17)
    large = run(arbitrary, grid(p=1e6, n=5e5, **FIXED, cosine=COSINE, alpha=alphas), trials=args.trials, seed=args.seed)
    # The ground truth of the same law: full matrices, at a size where the limit is close enough.
    dense = run(
        arbitrary,
        grid(p=200, n=100, **FIXED, cosine=COSINE, alpha=alphas[::4]),
        trials=max(2, args.trials // 40),
        seed=args.seed,
        sampler="dense",
    )
    source = law.SourceStatistics(FIXED["norm"] ** 2, FIXED["norm"] * COSINE * FIXED["mu_beta"])
    limit = law.scalars(FIXED["gamma"], 2.0, FIXED["mu_beta"], source)
    figure = law_against_monte_carlo(
        large, "alpha", "cosine", claim=arbitrary,
        title="Any source classifier:  p = 10⁶, n = p/2, ‖w̃‖ = 0.5, ‖μ_β‖ = 1.5, γ = 1",
    )  # fmt: skip
    numbers = {
        "cosine": COSINE, "alpha_star": law.optimal_alpha(limit), "best_accuracy": law.best_accuracy(limit),
        "accuracy_at_0": law.accuracy(limit, 0.0), "worst_z": worst_z(large), "worst_z_dense": worst_z(dense),
        "largest_gap_dense": float(np.abs(dense["mean"] - dense["law"]).max()),
    }  # fmt: skip
    record(args, figure, numbers, {"compressed": large, "dense": dense})


if __name__ == "__main__":
    main()
