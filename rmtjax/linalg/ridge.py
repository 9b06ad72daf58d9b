r"""Ridge resolvents of a data matrix, on whichever side is smaller."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import dot
from jaxtyping import Array, Float

__all__ = ["gram_lower", "ridge_solve"]

_LEAF = 256
"""Rows below which a full product is taken: large enough for its speed, small enough to skip most of one triangle."""


def gram_lower(x: Float[Array, "m n"]) -> Float[Array, "m m"]:
    """Return the lower triangle of X Xᵀ by halving, with 0 above the diagonal leaves, at little more than half the full cost."""
    m = x.shape[0]
    if m <= _LEAF:
        return dot(x, x.T)
    top, bottom = x[: m // 2], x[m // 2 :]
    corner = jnp.zeros((m // 2, m - m // 2), x.dtype)
    return jnp.block([[gram_lower(top), corner], [dot(bottom, top.T), gram_lower(bottom)]])


def ridge_solve(x: Float[Array, "p n"], gamma: Float[Array, ""], b: Float[Array, "p k"]) -> Float[Array, "p k"]:
    r"""Return :math:`(\frac1n XX^\top + \gamma I)^{-1}B`, by one Cholesky factorisation of order min(p, n).

    For p > n the identity :math:`\gamma(\frac1nXX^\top+\gamma)^{-1} = I - \frac1nX(\frac1nX^\top X+\gamma)^{-1}X^\top` moves
    the work to the other side.

    Args:
        x: data matrix, a sample a column.
        gamma: γ > 0.
        b: right-hand sides.
    """
    p, n = x.shape
    side = x if p <= n else x.T
    system = gram_lower(side) / n + gamma * jnp.eye(side.shape[0], dtype=x.dtype)
    factor = jax.lax.linalg.cholesky(system, symmetrize_input=False)

    def solve(rhs):
        half = jax.lax.linalg.triangular_solve(factor, rhs, left_side=True, lower=True)
        return jax.lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)

    return solve(b) if p <= n else (b - x @ solve(x.T @ b) / n) / gamma
