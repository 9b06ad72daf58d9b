"""Unrolled arithmetic of symmetric positive definite matrices of a few rows.

`vmap` of `jnp.linalg` calls LAPACK once per matrix, which for a 3×3 matrix is all overhead. Here a matrix is a tuple of
rows of scalars, so a batch of them is plain elementwise arithmetic that XLA fuses and vectorises. Meant for at most
about ten rows: the code grows with the cube.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Matrix = tuple[tuple[jax.Array, ...], ...]


def from_array(a: jax.Array) -> Matrix:
    """Return rows of scalars from an array of shape (r, c)."""
    return tuple(tuple(a[i, j] for j in range(a.shape[1])) for i in range(a.shape[0]))


def scaled_identity(r: int, value: jax.Array) -> Matrix:
    """Return `value` times the r×r identity."""
    zero = jnp.zeros_like(value)
    return tuple(tuple(value if i == j else zero for j in range(r)) for i in range(r))


def quadratic(a: Matrix, x, y) -> jax.Array:
    """Return the bilinear form xᵀ A y, `x` and `y` sequences of scalars."""
    return sum(xi * sum(aij * yj for aij, yj in zip(row, y, strict=True)) for row, xi in zip(a, x, strict=True))


def cholesky(a: Matrix) -> Matrix:
    """Return the lower-triangular C with C Cᵀ = A, without the entries above the diagonal.

    A pivot that is not positive gives a zero column, so that a positive *semi*-definite matrix has a factor too.
    """
    c: list[list[jax.Array]] = []
    for i, row in enumerate(a):
        c.append([])
        for j in range(i):
            rest = row[j] - sum(c[i][k] * c[j][k] for k in range(j))
            c[i].append(rest * c[j][j + 1])
        pivot = row[i] - sum(x * x for x in c[i])
        positive = pivot > 0
        safe = jnp.sqrt(jnp.where(positive, pivot, 1.0))
        c[i].append(jnp.where(positive, safe, 0.0))
        c[i].append(jnp.where(positive, 1 / safe, 0.0))  # the reciprocal pivot is kept, since division is slow
    return tuple(tuple(row) for row in c)


def solve_lower(c: Matrix, b: Matrix) -> Matrix:
    """Return C⁻¹ B by forward substitution, `c` as `cholesky` returns it."""
    x: list[list[jax.Array]] = []
    for i, row in enumerate(c):
        x.append([(bij - sum(row[k] * x[k][j] for k in range(i))) * row[i + 1] for j, bij in enumerate(b[i])])
    return tuple(tuple(row) for row in x)


def gram(a: Matrix) -> Matrix:
    """Return AᵀA, each entry computed once."""
    n = len(a[0])
    upper = {(i, j): sum(row[i] * row[j] for row in a) for i in range(n) for j in range(i, n)}
    return tuple(tuple(upper[min(i, j), max(i, j)] for j in range(n)) for i in range(n))


def congruence(h: Matrix, r: Matrix) -> Matrix:
    """Return Rᵀ H R for a symmetric H and an upper-triangular R, entries known to be zero skipped."""
    n = len(h)
    hr = [[sum(h[i][k] * r[k][j] for k in range(j + 1)) for j in range(n)] for i in range(n)]
    upper = {(i, j): sum(r[k][i] * hr[k][j] for k in range(i + 1)) for i in range(n) for j in range(i, n)}
    return tuple(tuple(upper[min(i, j), max(i, j)] for j in range(n)) for i in range(n))


def inverse(a: Matrix) -> Matrix:
    """Return A⁻¹ of a symmetric positive definite A, as C⁻ᵀC⁻¹."""
    r = len(a)
    one, zero = jnp.ones_like(a[0][0]), jnp.zeros_like(a[0][0])
    identity = tuple(tuple(one if i == j else zero for j in range(r)) for i in range(r))
    return gram(solve_lower(cholesky(a), identity))
