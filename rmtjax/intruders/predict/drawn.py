"""Intruders of all directions of an update together, by simulation."""

from __future__ import annotations

import numpy as np

from rmtjax.intruders.predict.edge import SINGLE_POLES, shared_poles

__all__ = ["drawn_intruders"]

_DENSE = 800
"""Largest matrix that is decomposed for this."""


def drawn_intruders(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    threshold_epsilon: float = 0.5,
    *,
    top_k: int | None = None,
    draws: int = 16,
    seed: int = 0,
) -> float:
    r"""Return the mean number of intruders among the leading vectors after an update in Haar directions, all directions together.

    In the base's singular vectors the sum is :math:`\mathrm{diag}(s) + A\Theta B^\top`. Where k of the :math:`s_j` share a pole,
    the r columns of A and of B there span 2r dimensions at most, and nothing is changed in the others; so a matrix of the
    leading states and of 2r for each share stands for the whole, and is drawn and decomposed.

    Args:
        strengths: of the update, shape (r,).
        singular_values, shape, threshold_epsilon: see `predict`.
        top_k: number of leading vectors to look at; by default 12.
        draws: of the directions.
        seed: of the draws.

    Returns:
        The mean; NaN where that matrix would have more than 800 rows or columns.
    """
    theta, s = np.asarray(strengths, float), np.asarray(singular_values, float)
    r, random, top_k = theta.size, np.random.default_rng(seed), min(s.size, SINGLE_POLES if top_k is None else top_k)
    if r == 0:
        return 0.0
    single = min(s.size, top_k + SINGLE_POLES)
    shares = shared_poles(s[single:])
    wide = [share for share in shares if share.size > 2 * r]
    single = s.size - sum(share.size for share in wide)
    poles = np.concatenate([s[:single], *(np.full(2 * r, np.sqrt(np.mean(share**2))) for share in wide)])
    outside = [min(side - s.size, r) for side in shape]
    rows, columns = (poles.size + extra for extra in outside)
    if max(rows, columns) > _DENSE:
        return float("nan")
    base = np.zeros((rows, columns))
    base[range(poles.size), range(poles.size)] = poles
    counts = []
    for _ in range(draws):
        turns, parts = [], [random.standard_normal((single, 2 * r))]
        for share in wide:
            turn, part = np.linalg.qr(random.standard_normal((share.size, 2 * r)))
            turns.append(turn)
            parts.append(part)
        both = np.concatenate(parts)
        sides = []
        for half, side, count in ((both[:, :r], shape[0], outside[0]), (both[:, r:], shape[1], outside[1])):
            beyond = random.standard_normal((side - s.size, r))
            beyond = np.linalg.qr(beyond)[1] if len(beyond) > r else beyond
            stacked = np.concatenate([half, beyond[:count]])
            sides.append(np.linalg.solve(np.linalg.cholesky(stacked.T @ stacked), stacked.T).T)  # orthonormal columns
        vectors, values, _ = np.linalg.svd(base + (sides[0] * theta) @ sides[1].T, full_matrices=False)
        vectors = vectors[:, :top_k]
        cosines = np.abs(vectors[:single]).max(0)
        for i, turn in enumerate(turns):
            place = single + 2 * r * i
            cosines = np.maximum(cosines, np.abs(turn @ vectors[place : place + 2 * r]).max(0))
        counts.append(((cosines < threshold_epsilon) & (values[:top_k] > 1e-6 * values[0])).sum())
    return float(np.mean(counts))
