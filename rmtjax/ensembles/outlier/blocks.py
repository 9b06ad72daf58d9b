"""Block rows of Gaussian matrices in block tridiagonal form, and arithmetic of small matrices with the batch last."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtjax.ensembles._counter import box_muller, words
from rmtjax.ensembles.chi import chi_batched

__all__ = [
    "adjoint",
    "covariance_block",
    "hermitian_eigh",
    "hermitian_inverse",
    "matmul",
    "paired",
    "rectangular_block",
    "wigner_block",
]


def adjoint(a):
    """Return the conjugate transpose of matrices (r, s, ...)."""
    return jnp.conj(jnp.swapaxes(a, 0, 1))


def matmul(a, b):
    """Return A B for arrays (i, k, ...) and (k, j, ...), as elementwise arithmetic over the batch."""
    return sum(a[:, k, None] * b[None, k, :] for k in range(a.shape[1]))


def hermitian_inverse(a):
    """Return the inverse of Hermitian matrices (s, s, ...), and how many of their eigenvalues are negative.

    Sweeping one row after the other; the pivots are those of LDLᵀ, whose signs are the inertia.
    """
    s = a.shape[0]
    negative = jnp.zeros(a.shape[2:], jnp.int32)
    diagonal = np.eye(s, dtype=bool).reshape(s, s, *[1] * (a.ndim - 2))
    for k in range(s):
        pivot = jnp.real(a[k, k])
        negative = negative + (pivot < 0)
        pivot = jnp.where(pivot == 0, jnp.finfo(pivot.dtype).tiny, pivot)
        column, row = a[:, k] / pivot, a[k] / pivot
        swept = a - column[:, None] * a[k][None]
        in_row, in_column = diagonal[k][:, None], diagonal[k][None]
        swept = jnp.where(in_row, row[None], swept)
        a = jnp.where(in_column, jnp.where(in_row, -1 / pivot, column[:, None]), swept)
    return -a, negative


def hermitian_eigh(a):
    """Return eigenvalues (s, ...) in ascending order and vectors (s, s, ...) of Hermitian matrices (s, s, ...)."""
    values, vectors = jnp.linalg.eigh(jnp.moveaxis(a, (0, 1), (-2, -1)))
    return jnp.moveaxis(values, -1, 0), jnp.moveaxis(vectors, (-2, -1), (0, 1))


class _Draws:
    """The normals and χ of one block row, served one after another."""

    def __init__(self, key_data, k, normals: int, dof: Array):
        even, k = normals + normals % 2, jnp.asarray(k)
        self._normals = iter(box_muller(words(key_data, 2 * k, even)) if even else ())
        self._chi = iter(chi_batched(key_data, 2 * k + 1, dof))

    def normal(self, beta: int = 1):
        """Return standard normal draws, complex with E|x|² = 1 for β = 2."""
        return next(self._normals) if beta == 1 else (next(self._normals) + 1j * next(self._normals)) / np.sqrt(2)

    def triangular(self, rows: Array, r: int, beta: int = 1):
        """Return the triangular factor (r, r, batch) of a standard Gaussian matrix of the given number of rows and r columns."""
        factor = [[None] * r for _ in range(r)]
        for i in range(r):
            for j in range(r):
                entry = next(self._chi) / np.sqrt(beta) if i == j else self.normal(beta) if i < j else 0.0
                factor[i][j] = jnp.where(rows > i, entry, 0.0)
        return stacked(factor)


def _degrees(rows, r, beta=1):
    """Return the degrees of freedom of the diagonal of `_Draws.triangular`, (r, batch)."""
    return beta * jnp.maximum(rows - jnp.arange(r)[:, None], 0.0)


def stacked(rows):
    """Return rows of broadcastable arrays as one array."""
    rows = [jnp.stack(jnp.broadcast_arrays(*row)) for row in rows]
    return jnp.stack(jnp.broadcast_arrays(*rows))


def _exists(k, size, r):
    """Return the coordinates (r, batch) of block k that are among the first `size`, as a mask."""
    return k * r + jnp.arange(1, r + 1)[:, None] <= size


def paired(upper_left, lower_left):
    """Return blocks (2r, 2r, batch) that carry left and right vectors side by side and couple only one kind to the other."""
    zero = jnp.zeros_like(upper_left)
    return jnp.concatenate([jnp.concatenate([zero, upper_left], 1), jnp.concatenate([lower_left, zero], 1)], 0)


def wigner_block(key_data, k, N, r: int, beta: int):
    """Return block row k = 0, 1, … of a GOE or GUE matrix of edge 2: diagonal block, coupling, and which coordinates exist."""
    exists, left = _exists(k, N, r), N - (k + 1) * r
    draws = _Draws(key_data, k, r + beta * r * (r - 1), _degrees(left, r, beta))
    A = [[0.0] * r for _ in range(r)]
    for i in range(r):
        A[i][i] = draws.normal() * np.sqrt(2 / beta)
        for j in range(i):
            A[i][j] = draws.normal(beta)
            A[j][i] = jnp.conj(A[i][j])
    A = stacked(A) * (exists[:, None] & exists[None])
    return A / jnp.sqrt(N), adjoint(draws.triangular(left, r, beta)) / jnp.sqrt(N), exists


def rectangular_block(key_data, k, n, m, r: int):
    """Return block row k of an n×m matrix of variance 1/m, left and right vectors side by side; as `wigner_block`."""
    left, right = _exists(k, n, r), _exists(k, m, r)
    below, ahead = n - (k + 1) * r, m - (k + 1) * r
    dof = jnp.concatenate(jnp.broadcast_arrays(_degrees(below, r), _degrees(ahead, r)))
    draws = _Draws(key_data, k, 2 * r * r - r, dof)
    A = stacked([[draws.normal() for _ in range(r)] for _ in range(r)]) * (left[:, None] & right[None])
    R = draws.triangular(below, r) * right[None]
    L = draws.triangular(ahead, r) * left[None]
    root = jnp.sqrt(m)
    return paired(A, adjoint(A)) / root, paired(adjoint(L), adjoint(R)) / root, jnp.concatenate([left, right])


def covariance_block(key_data, k, p, n, r: int):
    """Return block row k of a p×n matrix of variance 1/n in bidiagonal form; as `rectangular_block`."""
    left, right = _exists(k, p, r), _exists(k, n, r)
    below, ahead = p - (k + 1) * r, n - k * r
    dof = jnp.concatenate(jnp.broadcast_arrays(_degrees(ahead, r), _degrees(below, r)))
    draws = _Draws(key_data, k, r * (r - 1), dof)
    L = adjoint(draws.triangular(ahead, r) * left[None])
    R = draws.triangular(below, r) * right[None]
    root = jnp.sqrt(n)
    coupling = paired(jnp.zeros_like(L), adjoint(R))
    return paired(L, adjoint(L)) / root, coupling / root, jnp.concatenate([left, right])
