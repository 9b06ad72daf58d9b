"""Intruder Dimensions, §V: rank against spike strength at fixed energy, and the threshold of orthogonal LoRA.

Updates of the same Frobenius norm E spread it over r directions: equal singular values E/√r (orthogonal LoRA) or those of
BAᵀ with Gaussian B and A. One of strength above c^{1/4} leaves the bulk. The law counts strengths above the threshold;
`--trials` matrices count singular values beyond the edge's 99 % quantile, and intruders at ε = 0.5 among the first ten
singular vectors. Spread over very many directions the update is as good as dense, which is drawn for comparison.
"""

from __future__ import annotations

import numpy as np

from experiments._common import parse, record
from rmtjax.laws import spikes
from rmtjax.laws.edge import tracy_widom
from rmtjax.report.figures import INK, PALETTE, new_figure, points, style

ROWS, COLUMNS, ENERGY, FIRST = 512, 512, 4.2, 10
RANKS = (1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64)


def orthogonal(rng: np.random.Generator, rank: int) -> np.ndarray:
    """Return factors with equal singular values and Haar directions."""
    left, right = (np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in (ROWS, COLUMNS))
    return left @ right.T


def gaussian(rng: np.random.Generator, rank: int) -> np.ndarray:
    """Return BAᵀ of a LoRA with two random factors."""
    return rng.normal(size=(ROWS, rank)) @ rng.normal(size=(rank, COLUMNS))


def edge() -> float:
    """Return the 99 % quantile of the largest singular value without a spike (Johnstone 2001)."""
    n, m = np.sqrt(ROWS - 0.5), np.sqrt(COLUMNS - 0.5)
    square = (n + m) ** 2 + (n + m) * np.cbrt(1 / n + 1 / m) * float(tracy_widom.ppf(0.99, 1))
    return float(np.sqrt(square / COLUMNS))


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=12)
    rng, c, top = np.random.default_rng(args.seed), ROWS / COLUMNS, edge()
    threshold = c**0.25
    critical = (ENERGY / threshold) ** 2
    kinds = {"orthogonal": orthogonal, "gaussian": gaussian}
    shape = (len(RANKS), args.trials)
    found = {kind: {name: np.zeros(shape) for name in ("law", "beyond", "intruders", "first")} for kind in kinds}
    dense = {name: np.zeros(args.trials) for name in ("beyond", "intruders", "first")}

    def look(into, place, W, U, update):
        left, s, _ = np.linalg.svd(W + update, full_matrices=False)
        into["beyond"][place] = np.sum(s > top)
        into["intruders"][place] = np.sum(np.abs(U.T @ left[:, :FIRST]).max(0) < 0.5)
        into["first"][place] = s[0]

    for t in range(args.trials):
        W = rng.normal(size=(ROWS, COLUMNS)) / np.sqrt(COLUMNS)
        U = np.linalg.svd(W, full_matrices=False)[0]
        noise = rng.normal(size=W.shape)
        look(dense, t, W, U, ENERGY / np.linalg.norm(noise) * noise)
        for i, rank in enumerate(RANKS):
            for kind, make in kinds.items():
                update = make(rng, rank)
                update *= ENERGY / np.linalg.norm(update)
                found[kind]["law"][i, t] = np.sum(np.linalg.svd(update, compute_uv=False)[:rank] > threshold)
                look(found[kind], (i, t), W, U, update)
    equal = ENERGY / np.sqrt(RANKS)
    numbers = {
        "threshold": threshold,
        "critical_rank_of_orthogonal_lora": critical,
        "ranks": RANKS,
        "strength_of_orthogonal_lora": equal,
        **{kind: {name: v.mean(1) for name, v in seen.items()} for kind, seen in found.items()},
        "dense": {name: v.mean() for name, v in dense.items()},
        "law_of_the_first_of_orthogonal_lora": np.asarray(spikes.rectangular_outlier(equal, c)),
    }
    with style():
        figure, panels = new_figure(1, 3, size=(13.2, 4.3))
        left, middle, right = panels
        for kind, colour in zip(kinds, PALETTE, strict=False):
            seen = found[kind]
            left.plot(RANKS, seen["law"].mean(1), color=colour, label=f"{kind}: strengths above c$^{{1/4}}$")
            for axes, name, label in (
                (left, "beyond", f"{kind}: singular values seen"),
                (middle, "intruders", kind),
                (right, "first", kind),
            ):
                error = seen[name].std(1) / np.sqrt(max(args.trials - 1, 1))
                points(axes, np.array(RANKS), seen[name].mean(1), error, colour, label=label)
        ranks = np.geomspace(RANKS[0], RANKS[-1], 300)
        law = np.asarray(spikes.rectangular_outlier(ENERGY / np.sqrt(ranks), c))
        right.plot(ranks, law, color=PALETTE[0], label="orthogonal: law")
        for axes, name in zip(panels, ("beyond", "intruders", "first"), strict=True):
            axes.axhline(dense[name].mean(), color=PALETTE[2], lw=1.2, label="dense update")
            axes.axvline(critical, color=INK, lw=0.8, ls=":", label=f"E²/√c = {critical:.1f}")
            axes.set(xscale="log", xlabel="rank r")
            axes.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
            axes.minorticks_off()
            axes.legend(fontsize=8)
        left.set_ylim(-0.5, 21)
        left.set_title("Singular values beyond the edge")
        middle.set_title(f"Intruders among the first {FIRST} vectors")
        right.set_title("The largest singular value")
        figure.suptitle(
            f"W {ROWS}×{COLUMNS} Gaussian, updates of Frobenius norm E = {ENERGY:g}, threshold c$^{{1/4}}$ = {threshold:.2f}",
            x=0.01, ha="left", fontsize=10.5,
        )  # fmt: skip
    record(args, figure, numbers, {})


if __name__ == "__main__":
    main()
