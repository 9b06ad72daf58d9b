"""The largest singular values of a matrix and their left vectors, by block Lanczos from a random start."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, shown
from rmtjax.linalg.krylov.block_lanczos import BlockLanczos, angle_bounds
from rmtjax.linalg.krylov.operators import (
    LowRankUpdated,
    Matrix,
    Transposed,
    full_width,
    short_side,
)

__all__ = ["TopSingular", "top_singular"]


class TopSingular(NamedTuple):
    """The largest singular values and their left vectors.

    Attributes:
        values: descending, shape (k,).
        vectors: as columns, shape (n, k).
        errors: bound on the sine of the angle between each vector and the true one.
        steps: of Lanczos.
    """

    values: np.ndarray
    vectors: Matrix
    errors: np.ndarray
    steps: int


def top_singular(
    operator: LowRankUpdated,
    k: int,
    *,
    tolerance: float = 2e-3,
    width: int | None = None,
    max_blocks: int = 96,
    rng: int | list[int] | np.random.Generator = 0,
) -> TopSingular:
    """Return the k largest singular values and left vectors, by block Lanczos from a random start.

    Args:
        operator: A, shape (n, m).
        k: number of singular values.
        tolerance: stop when every angle is below it.
        width: columns of a block, by default k + 2, of large matrices a multiple of 8, from k + 4. Fewer need fewer products
            in all, and miss copies of values that are repeated more often.
        max_blocks: largest number of blocks.
        rng: NumPy's generator for the start, or its seed.

    Returns:
        Values and vectors; `errors` above the tolerance show that it was not reached.

    Raises:
        InputError: if the matrix has too few rows for three blocks.
    """
    short, transposed = short_side(operator)
    n = short.shape[0]
    # If the sides are about as short, the right one is read once a step.
    if n == operator.shape[1] and operator.is_out_of_cache:
        short, transposed = Transposed(operator), True
    if width is None:
        width = k + 2
        if math.prod(operator.shape) >= operator.limits.entries and n >= 40 * full_width(k + 4):
            width = full_width(k + 4)
    if k < 1 or n < 3 * max(width, k + 2):
        raise InputError(f"k = {shown(k)}: must be 1 to {max(n // 3 - 2, 0)} for {n} rows or columns")
    start = np.random.default_rng(rng).standard_normal((n, width)).astype(operator.weight.dtype)
    space = BlockLanczos(
        short, start if isinstance(operator.weight, np.ndarray) else jnp.asarray(start), max(max_blocks, k // width + 1)
    )
    # Before that few matrices show anything, even ones with few strong directions.
    wanted, before, room = math.ceil(8 * (k + 2) / width) + 4, None, True
    while True:
        room = space.grow(wanted - space.steps)
        ritz = space.ritz()
        errors = angle_bounds(ritz)[-k:]
        worst = errors.max()
        # No further step helps once residuals are rounding errors of the products.
        settled = (ritz.residuals <= 1.01 * ritz.noise)[-k:].all()
        if worst <= tolerance or settled or not room:
            break
        # Residuals decay geometrically: check again when they should have converged.
        rate = 0.0 if before is None or worst >= before[1] else math.log(before[1] / worst) / (space.steps - before[0])
        more_steps = math.log(worst / tolerance) / rate if rate else 4.0
        before = (space.steps, worst)
        wanted = space.steps + math.ceil(min(max(more_steps, 24 / width), 96 / width))
    values = np.sqrt(np.maximum(ritz.values[: -k - 1 : -1], 0))
    vectors = space.combine(ritz.vectors[:, : -k - 1 : -1])
    if transposed:
        vectors = (operator @ vectors) / np.maximum(values, np.finfo(vectors.dtype).tiny).astype(vectors.dtype)
    return TopSingular(values, vectors, errors[::-1], space.steps)
