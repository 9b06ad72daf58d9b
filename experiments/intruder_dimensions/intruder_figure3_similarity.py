"""Intruder Dimensions, Figure 3: singular vectors before and after, full fine-tuning against LoRA of the same size.

|⟨u_i, u'_j⟩| of the leading vectors of a Gaussian W and of W + Δ, mean over `--trials` matrices. LoRA of rank r pushes r
intruders in front, and the old vectors r places down the diagonal.
"""

from __future__ import annotations

import numpy as np

from experiments._common import parse, record
from rmtjax.laws import perturbation
from rmtjax.report.figures import new_figure, style

N, SHOWN, RANK, TIMES = 400, 24, 6, 2.0


def orthonormal(rng: np.random.Generator, rank: int) -> np.ndarray:
    """Return a Haar frame of the column space."""
    return np.linalg.qr(rng.normal(size=(N, rank)))[0]


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=50)
    rng = np.random.default_rng(args.seed)
    similarity = {name: np.zeros((SHOWN, SHOWN)) for name in ("full", "lora")}
    intruders = {name: [] for name in similarity}
    rotations = []
    delta = TIMES * np.sqrt(RANK / N)  # so that the dense update's Frobenius norm is LoRA's
    for _ in range(args.trials):
        W = rng.normal(size=(N, N)) / np.sqrt(N)
        U, s, _ = np.linalg.svd(W)
        updates = {
            "full": delta * rng.normal(size=(N, N)) / np.sqrt(N),
            "lora": TIMES * orthonormal(rng, RANK) @ orthonormal(rng, RANK).T,
        }
        for name, update in updates.items():
            cosine = np.abs(U.T @ np.linalg.svd(W + update)[0])
            similarity[name] += cosine[:SHOWN, :SHOWN] / args.trials
            intruders[name].append(np.sum(cosine[:, :RANK].max(0) < 0.5))
            if name == "full":
                rotations.append([1 - cosine[0, 0] ** 2, float(perturbation.singular_rotation(s, delta, N, N).left[0])])
    seen, expected = np.median(rotations, 0)
    numbers = {
        "delta": delta,
        "frobenius_norm": TIMES * RANK**0.5,
        "intruders_among_the_first_rank": {name: float(np.mean(v)) for name, v in intruders.items()},
        "rotation_of_the_first_vector_under_full": {"median": seen, "median_of_first_order": expected},
        "diagonal": {name: np.diag(v) for name, v in similarity.items()},
        "diagonal_shifted_by_rank": np.diag(similarity["lora"], RANK),
    }
    with style():
        figure, panels = new_figure(1, 2, size=(10.2, 5.4), sharey=True)
        titles = {
            "full": f"Full fine-tuning, δ = {delta:.2f}",
            "lora": f"LoRA of rank {RANK}, θ = {TIMES:g}",
        }
        for axes, (name, title) in zip(panels, titles.items(), strict=True):
            axes.grid(False)
            image = axes.imshow(
                similarity[name],
                vmin=0,
                vmax=1,
                cmap="viridis",
                aspect="auto",
                extent=(0.5, SHOWN + 0.5, SHOWN + 0.5, 0.5),
            )
            axes.set(
                title=f"{title}\n{np.mean(intruders[name]):.1f} of the first {RANK} vectors are intruders (ε = 0.5)",
                xlabel="singular vector after",
                xticks=[1, 6, 12, 18, 24],
                yticks=[1, 6, 12, 18, 24],
            )
        panels[0].set_ylabel("singular vector of W")
        figure.colorbar(image, ax=panels, label="mean |cosine|", shrink=0.85)
        figure.suptitle(
            f"W {N}×{N} Gaussian; both updates have Frobenius norm {TIMES * RANK**0.5:.1f}",
            x=0.01, ha="left", fontsize=10.5,
        )  # fmt: skip
    record(args, figure, numbers, {})


if __name__ == "__main__":
    main()
