"""Intruder Dimensions, Figure 2: one ordinary and one intruding singular vector against all pre-trained ones.

A Gaussian W (n×m) is tuned by LoRA of rank one, θ = 2·threshold, and by a dense update of the same Frobenius norm. Cosines of
one matrix, and their mean squares over `--trials` of them beside the law.
"""

from __future__ import annotations

import itertools

import numpy as np

from experiments._common import parse, record
from rmtjax.laws import intruders
from rmtjax.report.figures import INK, PALETTE, new_figure, points, style

ROWS, COLUMNS = 300, 600
TIMES = 2.0  # the threshold
FIRST = 40


def unit(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a Haar direction."""
    x = rng.normal(size=size)
    return x / np.linalg.norm(x)


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=100)
    rng, c = np.random.default_rng(args.seed), ROWS / COLUMNS
    theta = TIMES * c**0.25
    first, squares, singular, largest = None, [], [], []
    for _ in range(args.trials):
        W = rng.normal(size=(ROWS, COLUMNS)) / np.sqrt(COLUMNS)
        noise = rng.normal(size=W.shape)
        U, s, _ = np.linalg.svd(W, full_matrices=False)
        lora = np.linalg.svd(W + theta * np.outer(unit(rng, ROWS), unit(rng, COLUMNS)), full_matrices=False)[0]
        full = np.linalg.svd(W + theta / np.linalg.norm(noise) * noise, full_matrices=False)[0]
        cosines = {"full": np.abs(U.T @ full[:, 0]), "lora_first": np.abs(U.T @ lora[:, 0])}
        cosines["lora_second"] = np.abs(U.T @ lora[:, 1])
        first = first or cosines
        squares.append(cosines["lora_first"] ** 2)
        singular.append(s)
        largest.append([cosines[name].max() for name in cosines])
    law = np.mean([intruders.rectangular_overlap_profile(s, theta, c) for s in singular], 0) / ROWS
    intruder = float(intruders.rectangular_intruder_probability(ROWS, COLUMNS, theta, 0.5))
    largest = np.array(largest)
    numbers = {
        "theta": theta,
        "threshold": c**0.25,
        "largest_cosine": {
            name: {"mean": float(v.mean()), "below_one_half": float(np.mean(v < 0.5))}
            for name, v in zip(cosines, largest.T, strict=True)
        },
        "intruder_probability_one_half": intruder,
        "profile": {"law": law[:: ROWS // 10], "mean": np.mean(squares, 0)[:: ROWS // 10]},
    }
    index = np.arange(1, ROWS + 1)
    bins = np.unique(np.geomspace(1, ROWS + 1, 24).astype(int))
    centre, mean, error, line = (np.zeros(len(bins) - 1) for _ in range(4))
    for k, (low, high) in enumerate(itertools.pairwise(bins)):
        each = ROWS * np.mean(np.array(squares)[:, low - 1 : high - 1], 1)
        centre[k], mean[k], line[k] = np.sqrt(low * (high - 1)), each.mean(), ROWS * law[low - 1 : high - 1].mean()
        error[k] = 2 * each.std() / np.sqrt(max(args.trials - 1, 1))
    with style():
        figure, (left, right) = new_figure(1, 2, size=(10.4, 4.4))
        for name, label, mark, colour in (
            ("full", "full fine-tuning, first vector", "s", PALETTE[2]),
            ("lora_second", "LoRA, second vector: the old first one", "o", PALETTE[0]),
            ("lora_first", "LoRA, first vector: an intruder", "x", PALETTE[1]),
        ):
            left.plot(index[:FIRST], first[name][:FIRST], mark, color=colour, mfc="none", ms=6, label=label)
        left.axhline(0.5, color=INK, lw=0.8, ls=":", label="ε = 0.5")
        left.set(
            ylim=(0, 1.02),
            xlabel="singular vector of W",
            ylabel="|cosine|",
            title=f"One matrix, the first {FIRST} vectors",
        )
        left.legend(loc="upper right", bbox_to_anchor=(1, 0.95))
        points(right, centre, mean, error / 2, PALETTE[1], label="mean ± 2 s.e.")
        right.plot(centre, line, color=INK, label="law")
        right.set(
            xscale="log", yscale="log", xlabel="singular vector of W", ylabel="n · cosine²", yticks=[0.5, 1, 2, 4]
        )
        right.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        right.minorticks_off()
        right.set_title(f"The intruder's profile over all {ROWS}, {args.trials} matrices")
        right.legend(loc="lower left")
        figure.suptitle(
            f"W {ROWS}×{COLUMNS} Gaussian, Δ = θuvᵀ with θ = {TIMES:g} c$^{{1/4}}$ = {theta:.2f} or dense of the same norm",
            x=0.01, ha="left", fontsize=10.5,
        )  # fmt: skip
    record(args, figure, numbers, {})


if __name__ == "__main__":
    main()
