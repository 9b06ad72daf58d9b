"""Intruder Dimensions, Figure 1: all eigenvalues of one spiked matrix of order 10⁶, below, at and above the threshold.

The matrix is the tridiagonal form of W + θuuᵀ, W from the GOE, and the histogram is made of Sturm counts. The outlier's law
and its scatter are those of `--trials` draws without the matrix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments._common import parse, record
from rmtjax.ensembles import outlier
from rmtjax.ensembles.wigner import hermite
from rmtjax.laws import semicircle, spikes
from rmtjax.linalg import sturm
from rmtjax.report.figures import PALETTE, new_figure, style

N, BINS = 1_000_000, 120
THETA = (0.7, 1.0, 1.5, 2.0)
RANGE = (-2.15, 2.75)


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=2_000)
    edges = np.linspace(*RANGE, BINS + 1)
    numbers = {"N": N}
    matrix_key, draw_key = jax.random.split(jax.random.key(args.seed))
    with jax.enable_x64(True):
        matrix = hermite(matrix_key, N)
        keys = jax.random.split(draw_key, args.trials)
        draw = jax.jit(jax.vmap(outlier.wigner_outlier, in_axes=(0, None, None)))
        counts = jax.jit(sturm.histogram)
        top = jax.jit(lambda a, b: sturm.largest(a, b, 1)[..., 0])
        with style():
            figure, panels = new_figure(2, 2, size=(10.4, 6.2), sharex=True, sharey=True)
            for axes, theta in zip(panels.flat, THETA, strict=True):
                diagonal = matrix.diagonal.at[0].add(theta)
                density = np.asarray(counts(diagonal, matrix.off_diagonal, jnp.asarray(edges))) / N * BINS
                density = density / (RANGE[1] - RANGE[0])
                axes.stairs(density, edges, fill=True, color=PALETTE[0], alpha=0.35, label="eigenvalues of one matrix")
                x = np.linspace(-2, 2, 400)
                axes.plot(x, semicircle.pdf(x), color=PALETTE[0], label="semicircle")
                largest = float(top(diagonal, matrix.off_diagonal))
                law, share = float(spikes.wigner_outlier(theta)), float(spikes.wigner_overlap(theta))
                drawn = draw(keys, float(N), theta)
                mean, sd = float(np.mean(drawn.outlier)), float(np.std(drawn.outlier))
                axes.plot([largest], [0.015], "v", color=PALETTE[1], ms=8, label="its largest eigenvalue")
                axes.axvline(law, color=PALETTE[1], lw=1, ls="--", label="law of the outlier, or the edge")
                seen = f"overlap with u: law {share:.3f}, mean {np.mean(drawn.overlap):.3f}"
                axes.set_title(f"θ = {theta:g}:  λ₁ = {largest:.4f},  law {law:.4f}\n{seen}")
                axes.set_ylim(0, 0.36)
                numbers[f"theta = {theta:g}"] = {
                    "largest_of_one_matrix": largest,
                    "law": law,
                    "mean": mean,
                    "deviation": sd,
                    "overlap": {"law": share, "mean": float(np.mean(drawn.overlap))},
                }
            for axes in panels[1]:
                axes.set_xlabel("eigenvalue")
            for axes in panels[:, 0]:
                axes.set_ylabel("density")
            handles, labels = panels[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=4)
            figure.suptitle(
                f"W + θuuᵀ, W from the GOE of order {N:,}: where an eigenvalue leaves the bulk",
                x=0.01, ha="left", fontsize=10.5,
            )  # fmt: skip
    record(args, figure, numbers, {})


if __name__ == "__main__":
    main()
