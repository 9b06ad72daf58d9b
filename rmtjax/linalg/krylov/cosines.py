"""The largest cosine of given vectors with the singular vectors of a matrix, between bounds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax.linalg.krylov.block_lanczos import BlockLanczos, Ritz, angle_bounds
from rmtjax.linalg.krylov.cosine_bounds import cosine_lower_bounds, cosine_upper_bounds
from rmtjax.linalg.krylov.operators import (
    TALL,
    GramOperator,
    LowRankUpdated,
    Matrix,
    short_side,
)

__all__ = ["Cosines", "largest_cosines"]


def _none_below(operator: LowRankUpdated, gram: Matrix | None, x: float, noise: float) -> bool:
    """Return whether AᵀA − x is positive definite despite its rounding: all min(n, m) singular values are then above √x.

    Args:
        operator: A, with more rows than columns.
        gram: AᵀA if it is known.
        x: a square.
        noise: of the products.
    """
    if gram is None:
        dense = operator.dense()
        with jax.default_matmul_precision("highest"):
            gram = dense.T @ dense
    if isinstance(gram, jax.Array):
        shifted = gram - (x + noise) * jnp.eye(len(gram), dtype=gram.dtype)
        return bool(jnp.isfinite(jnp.linalg.cholesky(shifted)).all())
    diagonal = np.diagonal(gram) - (x + noise)
    kept, gram.flat[:: len(gram) + 1] = np.diagonal(gram).copy(), diagonal
    try:
        np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return False
    finally:
        gram.flat[:: len(gram) + 1] = kept
    return True


class Cosines(NamedTuple):
    """The largest absolute cosine of each vector with the left singular vectors of a matrix.

    Attributes:
        estimate: the cosine of the largest Ritz weight, shape (c,).
        lower, upper: bounds.
        cosines: with the left vector of each Ritz pair, shape (c, k).
        steps: of Lanczos.
        ritz: the Ritz pairs of the matrix; if it has more rows than columns, those of its transpose.
    """

    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    cosines: np.ndarray
    steps: int
    ritz: Ritz


def largest_cosines(
    operator: LowRankUpdated,
    vectors: Matrix,
    *,
    threshold: float | None = None,
    errors: np.ndarray | float = 0.0,
    tolerance: float = 1e-3,
    n_random: int = 1,
    n_leading: int = 0,
    min_steps: int = 8,
    max_blocks: int = 64,
    rng: int | np.random.Generator = 0,
) -> Cosines:
    """Return bounds on the largest absolute cosine of vectors with any left singular vector, by block Lanczos from them.

    Args:
        operator: A, shape (n, m).
        vectors: orthonormal columns, shape (n, c).
        threshold: stop as soon as every cosine is known to be above or below it; None continues to the tolerance.
        errors: sines of angles that the vectors may be off by, which the bounds then allow for.
        tolerance: width of the bounds at which to stop.
        n_random: number of random columns in the start block, which find directions that the vectors miss.
        n_leading: number of the largest singular vectors that must be known, too, to an angle of 0.05, before the end.
        min_steps: steps before the bounds are computed for the first time.
        max_blocks: largest number of blocks.
        rng: NumPy's generator for those columns, or its seed.

    Returns:
        `Cosines`; where lower < threshold ≤ upper the side of a cosine is unknown.
    """
    (n, c), m = vectors.shape, operator.shape[1]
    random = np.random.default_rng(rng).standard_normal((n, n_random)).astype(vectors.dtype)
    numpy = isinstance(vectors, np.ndarray)
    short, transposed = short_side(operator)
    mixing, inside = np.eye(c), vectors
    if transposed:  # the process runs on the right side, from the images of the vectors there
        random = random[: short.shape[0]]
        inside, mixing = np.linalg.qr(operator.transposed(vectors))
    start = np.concatenate([inside, random], axis=1) if numpy else jnp.concatenate([inside, jnp.asarray(random)], 1)
    space = BlockLanczos(short, start, max_blocks)
    errors = np.broadcast_to(np.asarray(errors, float), (c,))
    lower, upper, done = np.zeros(c), np.ones(c), np.zeros(c, bool)
    wanted, room, empty, refused = min_steps, True, 0.0, np.inf
    while True:
        room = space.grow(wanted - space.steps)
        ritz = space.ritz()
        wanted = space.steps + 4
        if n_leading and room and angle_bounds(ritz)[-n_leading:].max() > 0.05:
            continue
        floor = (max(operator.shape) * np.finfo(vectors.dtype).eps) ** 2 * ritz.values[-1]
        rows = mixing.T @ ritz.first[:c]
        sigma = np.sqrt(np.maximum(ritz.values, floor) + np.finfo(float).tiny)
        cosines = rows / sigma if transposed else rows
        above = np.where(ritz.values > floor, cosines, 0)
        estimate, sure, guess = cosine_lower_bounds(above, ritz, short.shape[0])
        # A vector at angle φ from the intended one has cosines that differ by at most sin φ.
        lower = np.maximum(lower, sure - errors)
        done |= lower >= (1 if threshold is None else threshold)
        if not done.all():
            open_, noise = np.flatnonzero(~done), space.noise * ritz.values[-1]
            # A null space on the left hides small singular values until there are known to be none.
            real = ritz.values[ritz.values > noise]
            if n > TALL * m and not empty and real.size and real[0] < refused / 2:
                gram = short.weight if isinstance(short, GramOperator) else None
                if _none_below(operator, gram, real[0] / 4, 8 * noise):
                    empty = real[0] / 4
                else:
                    refused = real[0]
            enough = np.inf if threshold is None else np.maximum(threshold - errors[open_], 0) ** 2
            bounds = np.sqrt(
                cosine_upper_bounds(ritz, rows[open_], max(floor, empty), transposed=transposed, enough=enough)
            )
            upper[open_] = np.minimum(upper[open_], bounds + errors[open_])
        done |= upper - lower <= tolerance + 2 * errors
        if threshold is not None:
            done |= upper < threshold
        # A further step cannot distinguish one singular vector inside the spectrum from two.
        hopeless = threshold is not None and bool((done | (guess - errors >= threshold)).all())
        if done.all() or hopeless or not room:
            return Cosines(estimate, lower, np.maximum(upper, lower), cosines, space.steps, ritz)
