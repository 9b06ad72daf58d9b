"""Bounds on the cosines of a small layer from the eigenvectors of two Gram matrices."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from rmtjax.intruders.clusters import close_values
from rmtjax.intruders.pair import Pair
from rmtjax.intruders.scan.verdict import LARGEST_ANGLE, Cosines, is_decided, space_gap
from rmtjax.linalg.svd import one_blas_thread

__all__ = ["by_eigh"]

_BACKWARD = 1e-6
"""Error of a decomposition in single precision, relative to its largest value; `--exact` leaves the same error."""


def by_eigh(pair: Pair, top_k: int, threshold_epsilon: float) -> Cosines | None:
    """Return bounds from the eigenvectors of the Gram matrices of the shorter side; None if they leave a verdict open.

    What these and an SVD in single precision find are eigenvectors of matrices that differ by ρ = 3·10⁻⁶ λ₁ at most: vector j of
    one holds a share ρ/|λᵢ − λⱼ| of each other vector i of the other, and any mixture of those that are closer than that.
    Singular vectors of eigenvalues below ρ cannot be distinguished from the null space.
    """
    n, m = pair.shape
    k = min(n, m)

    def gram(matrix):
        short = matrix.T if n > m else matrix
        return short @ short.T

    with one_blas_thread():  # more threads would only wait for one another
        squares, inside = np.linalg.eigh(gram(pair.base))  # other layers run at the same time; SciPy would block them
        tuned = pair.tuned.dense()
        tuned_squares, vectors = scipy.linalg.eigh(
            gram(tuned).T,
            driver="evr",
            subset_by_index=[max(k - top_k - 1, 0), k - 1],
            overwrite_a=True,
            check_finite=False,
        )
    if len(tuned_squares) < min(
        top_k + 1, k
    ):  # `evr` may return fewer eigenvectors than requested if eigenvalues coincide
        return None
    squares, inside = np.maximum(squares[::-1].astype(float), 0), inside[:, ::-1]
    tuned_squares, vectors = np.maximum(tuned_squares[::-1].astype(float), 0), vectors[:, ::-1][:, :top_k]
    noise, tuned_noise = 3 * _BACKWARD * squares[0], 3 * _BACKWARD * tuned_squares[0]
    known = squares > 2 * noise
    if known.sum() < top_k or tuned_squares[top_k - 1] <= 2 * tuned_noise:
        return None
    s, t = np.sqrt(squares), np.sqrt(tuned_squares[:top_k])
    gap = space_gap(pair, float(s[0]))
    if (-np.diff(np.sqrt(tuned_squares)) <= gap).any():
        return None
    # Error of each vector along each other one; vectors that were not computed are farther away than the last computed one.
    apart = np.abs(tuned_squares[:top_k, None] - tuned_squares)
    np.fill_diagonal(apart, np.inf)
    weight = np.sqrt(tuned_squares / tuned_squares[:top_k, None]) if n > m else 1  # images of long vectors are longer
    errors = np.minimum(tuned_noise * (weight / np.maximum(apart, np.finfo(float).tiny)).max(1, initial=0), 1)
    if errors.max() > LARGEST_ANGLE:
        return None
    if n > m:  # left vectors are the images of these
        vectors = tuned @ vectors / t.astype(tuned.dtype)
        held = np.abs(inside.T @ (pair.base.T @ vectors)).astype(float)
        scale, least, most = s, np.sqrt(np.maximum(squares - noise, 0)), np.sqrt(squares + noise)
    else:
        held = np.abs(inside.T @ vectors).astype(float)
        scale = least = most = np.ones(k)
    every = np.minimum(held / np.maximum(scale, s[0] * _BACKWARD)[:, None], 1)
    distance = np.abs(squares[known][:, None] - squares)
    near = distance <= 8 * noise
    upper = (np.sqrt(near @ held**2) + np.where(near, 0, noise / np.where(near, 1, distance)) @ held) / least[known][
        :, None
    ]
    rest = np.sqrt(np.maximum(1 - np.sum(every[known] ** 2, 0), 0) if n > m else np.sum(held[~known] ** 2, 0))
    upper = np.maximum(upper.max(0), rest if not known.all() else 0)
    distance[np.arange(known.sum()), np.flatnonzero(known)] = np.inf
    sine = np.minimum(noise / np.maximum(distance.min(1), np.finfo(float).tiny), 1)[:, None]
    others = np.sqrt(np.maximum(np.sum(held**2, 0) - held[known] ** 2, 0))
    lower = ((held[known] * np.sqrt(1 - sine**2) - others * sine) / most[known][:, None]).max(0)
    lower, upper = np.maximum(lower - errors, 0), np.minimum(upper + errors, 1)
    spaces = [group for group in close_values(s, gap) if group.stop - group.start > 1]
    if any((np.linalg.norm(every[space], axis=0) >= threshold_epsilon).any() for space in spaces):
        return None
    if not is_decided(lower, upper, threshold_epsilon):
        return None
    cosines = np.clip(every[known].max(0), lower, upper)
    return Cosines(t, cosines, lower, upper, every[:top_k].T.copy(), s, vectors)
