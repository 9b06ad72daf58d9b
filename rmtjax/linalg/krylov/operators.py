"""Matrices that are multiplied and never formed: an update of low rank, a Gram matrix, a transpose."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

__all__ = [
    "OUT_OF_CACHE_ENTRIES",
    "TALL",
    "CacheLimits",
    "GramOperator",
    "LowRankUpdated",
    "Matrix",
    "Transposed",
    "full_width",
    "in_full_precision",
    "short_side",
]

Matrix = np.ndarray | jax.Array
"""A NumPy array on processors, a JAX array on an accelerator."""

OUT_OF_CACHE_ENTRIES = 1 << 22
"""Matrices with at least this many entries do not fit in cache."""


@dataclasses.dataclass(frozen=True)
class CacheLimits:
    """Sizes that decide how products read a matrix from a processor's memory.

    Attributes:
        entries: a matrix with at least this many entries does not fit in cache.
        row_block: rows of such a matrix that are used for both products while they are in cache, so that it is read once.
    """

    entries: int = OUT_OF_CACHE_ENTRIES
    row_block: int = 512


def full_width(columns: int) -> int:
    """Return a number of columns rounded up to a multiple of 8, which BLAS multiplies a large matrix by in the same time."""
    return -(-columns // 8) * 8


def in_full_precision(method: Any) -> Any:
    """Compute the products of a method in full single precision, which is not the default on accelerators."""

    @functools.wraps(method)
    def call(self, *arguments):
        with jax.default_matmul_precision("highest"):
            return method(self, *arguments)

    return call


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weight", "scale", "left", "right"], meta_fields=["limits"]
)
@dataclasses.dataclass(frozen=True)
class LowRankUpdated:
    r"""A matrix :math:`\mathrm{diag}(d)W + BA` that is multiplied and never formed.

    Attributes:
        weight: W, shape (n, m).
        scale: d, shape (n,); None for ones.
        left, right: B (n, r) and A (r, m); None for no update.
        limits: sizes that decide how products read W on a processor.
    """

    weight: Matrix
    scale: Matrix | None = None
    left: Matrix | None = None
    right: Matrix | None = None
    limits: CacheLimits = CacheLimits()

    @property
    def is_out_of_cache(self) -> bool:
        """Whether the matrix lies in a processor's memory and does not fit in its cache."""
        return isinstance(self.weight, np.ndarray) and self.weight.size >= self.limits.entries

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape

    @in_full_precision
    def __matmul__(self, x: Matrix) -> Matrix:
        """Return the product with x (m, k)."""
        y = self.weight @ x
        y = y if self.scale is None else self.scale[:, None] * y
        return y if self.left is None else y + self.left @ (self.right @ x)

    @in_full_precision
    def transposed(self, x: Matrix) -> Matrix:
        """Return the product of the transpose with x (n, k)."""
        y = self.weight.T @ (x if self.scale is None else self.scale[:, None] * x)
        return y if self.left is None else y + self.right.T @ (self.left.T @ x)

    def gram(self, x: Matrix) -> Matrix:
        """Return the product of the matrix times its transpose with x (n, k)."""
        return self @ self.transposed(x)

    def transposed_gram(self, x: Matrix) -> Matrix:
        """Return the product of the transpose times the matrix with x (m, k)."""
        if not self.is_out_of_cache:
            return self.transposed(self @ x)
        low, inner = None if self.left is None else self.right @ x, 0.0
        y = np.zeros_like(x)
        step = self.limits.row_block
        for row in range(0, self.shape[0], step):
            part = slice(row, row + step)
            weight = self.weight[part]
            z = weight @ x
            z = z if self.scale is None else self.scale[part, None] * z
            if low is not None:
                z += self.left[part] @ low
                inner = inner + self.left[part].T @ z
            y += weight.T @ (z if self.scale is None else self.scale[part, None] * z)
        return y if low is None else y + self.right.T @ inner

    @in_full_precision
    def dense(self) -> Matrix:
        """Return the matrix itself."""
        w = self.weight if self.scale is None else self.scale[:, None] * self.weight
        return w if self.left is None else w + self.left @ self.right


class GramOperator:
    r"""A matrix of which only :math:`AA^\top` is known, which is worth forming if A is long and its other side short.

    Args:
        gram: :math:`AA^\top`, shape (n, n).
    """

    def __init__(self, gram: Matrix) -> None:
        self.weight, self.shape = gram, gram.shape

    def gram(self, x: Matrix) -> Matrix:
        """Return the product with x (n, k)."""
        return self.weight @ x


class Transposed:
    """The transpose of an operator."""

    def __init__(self, operator: LowRankUpdated) -> None:
        self.operator, self.weight, self.shape = operator, operator.weight, operator.shape[::-1]

    def gram(self, x: Matrix) -> Matrix:
        """Return the product of the matrix times its transpose with x."""
        return self.operator.transposed_gram(x)


TALL = 1.1
"""Ratio of the sides from which a matrix is processed from its right side; below it the null space on the left is small."""

_LONG, _FORMED, _SPIKED = 1.5, 1024, 50
"""Ratio of the sides from which, and shorter side up to which, the Gram matrix is formed; and the largest ratio of its Frobenius
norm to the mean of the other eigenvalues: beyond it the rounding of a few large ones would drown the others."""


def short_side(operator: LowRankUpdated) -> tuple[LowRankUpdated | GramOperator | Transposed, bool]:
    """Return an operator on the shorter side with the same singular values, and whether that is the right side."""
    n, m = operator.shape
    if isinstance(operator.weight, np.ndarray) and min(n, m) <= _FORMED and max(n, m) >= _LONG * min(n, m):
        dense = operator.dense()
        gram = dense.T @ dense if n > m else dense @ dense.T
        largest = np.linalg.norm(gram)
        if largest <= _SPIKED * max(np.trace(gram) - largest, 0) / len(gram):
            return GramOperator(gram), n > m
    flipped = n > TALL * m and isinstance(operator.weight, np.ndarray)
    return (Transposed(operator) if flipped else operator), flipped
