r"""First and second order of singular values and vectors of a matrix; see `rmtjax.laws.perturbation`."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmtjax._checks import is_traced
from rmtjax._errors import InputError
from rmtjax._precision import float64
from rmtjax.laws.perturbation._given import ROUNDED, check_array, check_simple, inverse_gaps, separate

__all__ = [
    "Vectors",
    "first_order_singular_values",
    "first_order_singular_vectors",
    "second_order_singular_values",
]

Rectangular = Float[Array, "n m"] | tuple[Float[Array, "n k"], Float[Array, "k"], Float[Array, "k m"]]
"""A matrix, or U, σ and Vᵀ of its thin singular value decomposition."""


class Vectors(NamedTuple):
    """Changes of the left and right singular vectors, as columns, shapes (n, k) and (m, k)."""

    left: Float[Array, "n k"]
    right: Float[Array, "m k"]


class _Singular(NamedTuple):
    u: Array
    s: Array
    v: Array
    A: Array
    left: Array
    right: Array


def _singular(base: Rectangular, Delta: Array) -> _Singular:
    """Return U, σ, V, UᵀΔV, and the parts of ΔV and ΔᵀU outside the spans of U and V."""
    if isinstance(base, (tuple, list)):
        u, s, vh = base
        for name, a in (("U", u), ("values", s), ("Vh", vh)):
            check_array(name, a)
        if s.ndim != 1 or u.ndim != 2 or vh.ndim != 2 or not u.shape[1] == s.size == vh.shape[0]:
            raise InputError(f"base has shapes {u.shape}, {s.shape} and {vh.shape}: must be (n, k), (k,) and (k, m)")
        if s.size != min(u.shape[0], vh.shape[1]):
            raise InputError(f"base has {s.size} singular values: must have all {min(u.shape[0], vh.shape[1])}")
    else:
        check_array("W", base)
        if base.ndim != 2:
            raise InputError(f"W has shape {base.shape}: must be (n, m)")
        u, s, vh = jnp.linalg.svd(base, full_matrices=False)
        check_simple("values", s, ROUNDED)
        s = separate(s) if is_traced(s) else s
    check_array("Delta", Delta)
    if Delta.shape != (u.shape[0], vh.shape[1]):
        raise InputError(f"Delta has shape {Delta.shape}: must be {(u.shape[0], vh.shape[1])} like W")
    check_simple("values", s)
    if not is_traced(s) and u.shape[0] != vh.shape[1] and np.any(np.asarray(s) == 0):
        raise InputError("values has an entry 0: must be > 0 for a rectangular matrix")
    right, left = Delta @ vh.T, Delta.T @ u
    A = u.T @ right
    return _Singular(u, s, vh.T, A, right - u @ A, left - vh.T @ A.T)


@float64(trees=("base",))
def first_order_singular_values(base: Rectangular, Delta: Float[Array, "rows cols"]) -> Float[Array, "k"]:
    r"""Return the first-order shifts :math:`\sigma_i^{(1)} = u_i^\top\Delta v_i`, in descending order of :math:`\sigma_i`.

    Args:
        base: W, n×m, or U, σ and :math:`V^\top` of its thin singular value decomposition.
        Delta: the update, n×m.

    Raises:
        InputError: for shapes that do not fit, non-finite matrices, or singular values that are not simple.
    """
    return jnp.diagonal(_singular(base, Delta).A)


@float64(trees=("base",))
def second_order_singular_values(base: Rectangular, Delta: Float[Array, "rows cols"]) -> Float[Array, "k"]:
    r"""Return the second-order shifts of the singular values.

    With :math:`A_{ji} = u_j^\top\Delta v_i` and P, Q the projections off the spans of U and V,

    .. math::
        \sigma_i^{(2)} = \sum_{j\ne i}\frac{(A_{ji}+A_{ij})^2}{4(\sigma_i-\sigma_j)} + \sum_{j\ne i}\frac{(A_{ji}-A_{ij})^2}
        {4(\sigma_i+\sigma_j)} + \frac{\|P\Delta v_i\|^2 + \|Q\Delta^\top u_i\|^2}{2\sigma_i}.

    Args:
        base, Delta: as in `first_order_singular_values`.

    Raises:
        InputError: as `first_order_singular_values`.

    Examples:
        >>> [float(x) for x in second_order_singular_values(np.diag([2.0, 1.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))]
        [1.0, -1.0]
    """
    _, s, _, A, left, right = _singular(base, Delta)
    even, odd = (A + A.T) / 2, (A - A.T) / 2
    within = jnp.sum(even * (even * inverse_gaps(s)) + odd * (odd * _inverse_sums(s)), 0)
    return within + (jnp.sum(left * (left * _inverse(s)), 0) + jnp.sum(right * (right * _inverse(s)), 0)) / 2


def _inverse_sums(s: Array) -> Array:
    """Return 1/(σ_i + σ_j), 0 on the diagonal."""
    itself = jnp.eye(s.size, dtype=bool)
    return jnp.where(itself, 0.0, 1 / jnp.where(itself, 1.0, s + s[:, None]))


def _inverse(s: Array) -> Array:
    """Return 1/σ, or 0 at σ = 0, which occurs only for square matrices, which have nothing outside the spans."""
    return jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1.0), 0.0)


@float64(trees=("base",))
def first_order_singular_vectors(base: Rectangular, Delta: Float[Array, "rows cols"]) -> Vectors:
    r"""Return the first-order changes of the singular vectors.

    .. math::
        u_i^{(1)} &= \sum_{j\ne i}\frac{\sigma_iA_{ji}+\sigma_jA_{ij}}{\sigma_i^2-\sigma_j^2}\,u_j
        + \frac{P\Delta v_i}{\sigma_i}, \\
        v_i^{(1)} &= \sum_{j\ne i}\frac{\sigma_jA_{ji}+\sigma_iA_{ij}}{\sigma_i^2-\sigma_j^2}\,v_j
        + \frac{Q\Delta^\top u_i}{\sigma_i}.

    Args:
        base, Delta: as in `first_order_singular_values`. Given W, signs are those of `jnp.linalg.svd`.

    Raises:
        InputError: as `first_order_singular_values`.
    """
    u, s, v, A, left, right = _singular(base, Delta)
    # The fractions of both sums separately: no squares, and no difference of products.
    even, odd = (A + A.T) / 2 * inverse_gaps(s), (A - A.T) / 2 * _inverse_sums(s)
    return Vectors(u @ (even + odd) + left * _inverse(s), v @ (even - odd) + right * _inverse(s))
