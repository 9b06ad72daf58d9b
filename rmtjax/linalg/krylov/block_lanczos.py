r"""Block Lanczos for :math:`AA^\top`: the largest singular triplets of a matrix, and bounds on the cosines of a vector with all
singular vectors, without an SVD.

Started from a block X of orthonormal columns, k steps give an orthonormal basis Q and the band matrix
:math:`T = Q^\top AA^\top Q` with :math:`AA^\top Q = QT + Q_{k+1}B E_k^\top`. They imply:

- A Ritz pair :math:`(\vartheta, y = Qs)` has the residual :math:`\rho = \|B s_k\|`; within ρ of ϑ there is an eigenvalue, and
  y is within :math:`\rho/\text{gap}` of its eigenvector.
- **No atom is larger than the Christoffel function allows.** A left singular vector u with :math:`\sigma^2 = x` has in the basis
  the coordinates :math:`z = -(T - x)^{-1}E_kB^\top q`, q being those in the next block. Since
  :math:`\|z\|^2 + \|q\|^2 \le 1`,

  .. math::
      \langle X_i, u\rangle^2 \le \big[A_1(I + A^\top A)^{-1}A_1^\top\big]_{ii}, \qquad A = -(T-x)^{-1}E_kB^\top,

  :math:`A_1` the rows of the first block. The largest value over all x bounds the squared cosine of :math:`X_i` with *every* left
  singular vector, seen or not. Rounding is a further unknown (`_christoffel`), which dominates for small x.

A tall matrix (n > m) has a null space on the left, in which much of a vector may lie, and no number of steps distinguishes it
from singular vectors of vanishing σ. There the process runs on the right side, from :math:`A^\top X`, whose inner products
with right singular vectors are σ times the cosines. A Cholesky factor of :math:`A^\top A - x` shows that there is no singular
value below some x at all.

Golub & Underwood, *The block Lanczos method for computing eigenvalues* (1977); Golub & Meurant, *Matrices, Moments and
Quadrature* (2010), for one vector and its measure. On processors the work is NumPy's, whose products need no compilation, so
that thousands of shapes cost nothing; arrays on an accelerator stay there.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError
from rmtjax._random import fixed_normal
from rmtjax.linalg.krylov.operators import (
    GramOperator,
    LowRankUpdated,
    Matrix,
    Transposed,
    in_full_precision,
)

__all__ = ["BlockLanczos", "Ritz", "angle_bounds"]

_NOISE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}
"""Ratio of a residual to the largest eigenvalue below which the rounding of products hides the residual."""


def _qr(xp: Any, block: Matrix) -> tuple[Matrix, Matrix]:
    """Return orthonormal columns and coefficients; on NumPy by two passes through the Gram matrix, faster than reflections.

    The Gram matrix has the squared condition number, so nearly dependent columns are left to reflections.
    """
    q, r = block, np.eye(block.shape[1])
    for _ in range(2 if xp is np else 0):
        try:
            lower = np.linalg.cholesky((q.T @ q).astype(np.float64))
        except np.linalg.LinAlgError:
            return np.linalg.qr(block)
        size = np.diagonal(lower)
        if not size.min() > 1e-2 * size.max():
            return np.linalg.qr(block)
        q, r = q @ np.linalg.inv(lower).T.astype(q.dtype), lower.T @ r
    return (q, r) if xp is np else xp.linalg.qr(block)


def _next_block(xp: Any, basis: Matrix, block: Matrix, step: Any) -> tuple[Matrix, Matrix, Matrix]:
    """Return orthonormal columns for the part of a block outside a basis, and the block's coefficients in both.

    On processors only those in the last two blocks of the basis are returned.
    """
    if xp is not np:
        q, r, first, second = _twice(xp, basis, block)
        little = abs(xp.diagonal(r)).min() <= 1e-3 * abs(first).max()
        return *jax.lax.cond(little, functools.partial(_filled, jnp), _cleaned, basis, q, r, step), first + second
    # Up to rounding it has coefficients only in the last two blocks.
    near = 2 * block.shape[1]
    first = basis[:, -near:].T @ block
    left = block - basis[:, -near:] @ first
    second = basis.T @ left
    q, r = _qr(np, left - basis @ second)
    # If most of what was left was rounding, the second pass left rounding too.
    if abs(second).max() > 0.1 * abs(np.diagonal(r)).min():
        q, r, first, second = _twice(np, basis, block)
    little = abs(np.diagonal(r)).min() <= 1e-3 * max(abs(first).max(), abs(second).max())
    return *(_filled(np, basis, q, r, step) if little else (q, r)), first[-near:] + second[-near:]


def _twice(xp: Any, basis: Matrix, block: Matrix) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Do the same with the whole basis, twice, and return the coefficients of both passes."""
    first = basis.T @ block
    block = block - basis @ first
    second = basis.T @ block
    return *_qr(xp, block - basis @ second), first, second


def signs_of_diagonal(xp: Any, turn: Matrix) -> Matrix:
    """Return the signs of a triangular factor's diagonal; 1 for 0, which must not cancel a column."""
    return xp.where(xp.diagonal(turn) < 0, -1, 1).astype(turn.dtype)


def _cleaned(basis: Matrix, q: Matrix, r: Matrix, _: Any) -> tuple[Matrix, Matrix]:
    q, turn = jnp.linalg.qr(q - basis @ (basis.T @ q))
    return q * signs_of_diagonal(jnp, turn), r


def _filled(xp: Any, basis: Matrix, q: Matrix, r: Matrix, step: Any) -> tuple[Matrix, Matrix]:
    """Return an equal product q r, up to rounding, with new columns for directions that the basis already contained.

    Such directions are rounding and not orthogonal to the basis. Directions outside the basis are kept; those inside are replaced
    by random ones, with which the process continues.
    """
    u, s, vt = xp.linalg.svd(r)
    q, r = q @ u.astype(q.dtype), (s[:, None] * vt).astype(r.dtype)
    if xp is np:
        fresh = np.random.default_rng(step).standard_normal(q.shape).astype(q.dtype)
    else:
        fresh = fixed_normal(step, q.shape, q.dtype)
    outside = q - basis @ (basis.T @ q)
    q = xp.where(xp.linalg.norm(outside, axis=0) > 0.5, outside, fresh)
    for _ in range(2):
        q, turn = xp.linalg.qr(q - basis @ (basis.T @ q))
        q = q * signs_of_diagonal(xp, turn)
    return q, r


@functools.partial(jax.jit, donate_argnums=1)
def _device_step(operator: LowRankUpdated, basis: jax.Array, step: jax.Array, block: jax.Array):
    """Take one step on an accelerator, where the basis is one buffer, zero where it is not yet filled."""
    with jax.default_matmul_precision("highest"):
        q, r, h = _next_block(jnp, basis, operator.gram(block), step)
        return jax.lax.dynamic_update_slice(basis, q, (0, (step + 1) * block.shape[1])), q, r, h


class Ritz(NamedTuple):
    """Ritz values and vectors of a Krylov space.

    Attributes:
        values: Ritz values of A Aᵀ, ascending, shape (k,).
        vectors: their coordinates in the basis, shape (k, k).
        first: their coordinates in the start block, shape (b, k).
        last: their residual vectors' coordinates in the next block, shape (b, k); the columns' norms are at least `noise`.
        noise: rounding errors of the residuals, shape (k,).
    """

    values: np.ndarray
    vectors: np.ndarray
    first: np.ndarray
    last: np.ndarray
    noise: np.ndarray

    @property
    def residuals(self) -> np.ndarray:
        """The norm ρ of each pair's residual."""
        return np.linalg.norm(self.last, axis=0)

    def gaps(self) -> np.ndarray:
        """Return the distance of each value to the nearest other one."""
        steps = np.diff(self.values, prepend=-np.inf, append=np.inf)
        return np.minimum(steps[:-1], steps[1:])


class BlockLanczos:
    r"""A Krylov space of :math:`AA^\top`, grown block by block and kept orthonormal.

    Args:
        operator: A, shape (n, m), in float32 or float64.
        start: X, shape (n, b), of full rank; its columns are orthonormalised in order.
        max_blocks: largest number of further blocks; at most n/b − 1.

    Raises:
        InputError: if the start has no columns, or not n rows.
    """

    def __init__(self, operator: LowRankUpdated | GramOperator | Transposed, start: Matrix, max_blocks: int) -> None:
        n, b = start.shape
        if n != operator.shape[0] or b == 0:
            raise InputError(f"start has shape {[n, b]}: must be ({operator.shape[0]}, b) with b at least 1")
        self.operator, self.width, self.steps = operator, b, 0
        self.max_blocks = max(0, min(max_blocks, n // b - 1))
        self._xp = np if isinstance(operator.weight, np.ndarray) else jnp
        q, turn = self._xp.linalg.qr(start)
        self.block = q * signs_of_diagonal(self._xp, turn)
        # On an accelerator one buffer of full size from the start, so that one step is compiled.
        columns = b if self._xp is np else b * (self.max_blocks + 1)
        self._basis, self._band = self._xp.zeros((n, 0), start.dtype), np.zeros((0, 0))
        self._make_room(columns)
        if self._xp is np:
            self._basis[:, :b] = self.block
        else:
            self._basis = self._basis.at[:, :b].set(self.block)

    def _make_room(self, columns: int) -> None:
        """Allocate a basis with a number of columns, and its band matrix."""
        used = self._band.shape[0]
        if columns <= used:
            return
        band = np.zeros((columns, columns))
        band[:used, :used] = self._band
        self._band = band
        if self._xp is np:
            # Column-major: a block is contiguous in memory.
            basis = np.empty((len(self.block), columns), self.block.dtype, order="F")
            basis[:, :used] = self._basis
            self._basis = basis
        else:
            self._basis = jnp.zeros((len(self.block), columns), self.block.dtype)

    def grow(self, steps: int) -> bool:
        """Take further steps; return whether there is room for more."""
        b, steps = self.width, min(steps, self.max_blocks - self.steps)
        self._make_room(b * (self.steps + steps + 1))
        for _ in range(steps):
            low, high = self.steps * b, (self.steps + 1) * b
            if self._xp is np:
                q, r, h = _next_block(np, self._basis[:, :high], self.operator.gram(self.block), self.steps)
                self._basis[:, high : high + b] = q
            else:
                self._basis, q, r, h = _device_step(self.operator, self._basis, self.steps, self.block)
                h = h[:high]
            self.block, self.steps = q, self.steps + 1
            # Only the last two blocks of h are above rounding, and the upper one is already known.
            diagonal = np.asarray(h, np.float64)[-b:]
            self._band[low:high, low:high] = (diagonal + diagonal.T) / 2
            self._band[high : high + b, low:high] = r
            self._band[low:high, high : high + b] = np.asarray(r, np.float64).T
        return self.steps < self.max_blocks

    def ritz(self) -> Ritz:
        """Return the Ritz values and vectors after the steps so far, of which there must be at least one."""
        k, b = self.steps * self.width, self.width
        values, vectors = np.linalg.eigh(self._band[:k, :k])
        last = self._band[k : k + b, k - b : k] @ vectors[-b:]
        # No residual is known to be below the rounding of the products. That of A(Aᵀq) is of the order of ‖A‖‖Aᵀq‖, which is
        # much less than of ‖A‖² for what is orthogonal to a few large singular vectors; that of a formed Gram matrix is not.
        # Where Aᵀq is smaller than for most q, its own rounding is not: terms of the usual size have cancelled.
        top, squares = max(values[-1], 0), np.diagonal(self._band)[:k]
        usual = min(max(np.median(squares), 0), top)
        parts = top if isinstance(self.operator, GramOperator) else squares.clip(usual, top) @ vectors**2
        noise = self.noise * np.sqrt(top * parts) * np.ones(k)
        rho = np.linalg.norm(last, axis=0)
        last = np.where(rho > 0, last * (np.maximum(rho, noise) / np.where(rho > 0, rho, 1)), noise / np.sqrt(b))
        return Ritz(values, vectors, vectors[:b], last, noise)

    @in_full_precision
    def combine(self, coordinates: np.ndarray) -> Matrix:
        """Return vectors (n, j) from their coordinates in the basis (k, j)."""
        basis = self._basis[:, : len(coordinates)]
        return basis @ self._xp.asarray(coordinates, basis.dtype)

    @property
    def noise(self) -> float:
        """The relative rounding error of a product, in units of the norms of its factors."""
        return _NOISE[np.dtype(self._basis.dtype)]


def angle_bounds(ritz: Ritz) -> np.ndarray:
    """Return bounds on the sines between Ritz vectors and eigenvectors: residual over gap."""
    return np.minimum(ritz.residuals / np.maximum(ritz.gaps(), np.finfo(float).tiny), 1.0)
