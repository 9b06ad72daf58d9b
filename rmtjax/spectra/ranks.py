"""Ranks of a matrix that follow from its singular values without a threshold."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax._precision import float64
from rmtjax.spectra._values import checked_values, nonnegative

__all__ = ["effective_rank", "stable_rank"]


@float64
def effective_rank(singular_values: Float[Array, "... k"]) -> Float[Array, "..."]:
    r"""Return the effective rank :math:`\exp(-\sum_ip_i\log p_i)`, :math:`p_i = \sigma_i/\sum_j\sigma_j`; 0 for a zero matrix.

    It lies between 1 and the rank, and equals the rank if all nonzero singular values are equal. Source: Roy & Vetterli, *The
    effective rank*, EUSIPCO 2007.

    Args:
        singular_values: shape (..., k), in any order.

    Raises:
        InputError: for no singular values, or one that is negative or not finite.

    Examples:
        >>> float(effective_rank([1.0, 1.0, 0.0]))
        2.0
    """
    checked_values("singular_values", singular_values)
    nonnegative("singular_values", singular_values)
    top = jnp.max(singular_values, -1, keepdims=True)
    some = top > 0
    scaled = singular_values / jnp.where(some, top, 1.0)
    p = scaled / jnp.where(some, jnp.sum(scaled, -1, keepdims=True), 1.0)
    positive = p > 0
    entropy = -jnp.sum(jnp.where(positive, p * jnp.log(jnp.where(positive, p, 1.0)), 0.0), -1)
    return jnp.where(some[..., 0], jnp.exp(entropy), 0.0)


@float64
def stable_rank(singular_values: Float[Array, "... k"]) -> Float[Array, "..."]:
    r"""Return the stable rank :math:`\|W\|_F^2/\|W\|_2^2 = \sum_i\sigma_i^2/\max_i\sigma_i^2`; 0 for a zero matrix.

    Args:
        singular_values: shape (..., k), in any order.

    Raises:
        InputError: for no singular values, or one that is negative or not finite.
    """
    checked_values("singular_values", singular_values)
    nonnegative("singular_values", singular_values)
    top = jnp.max(singular_values, -1, keepdims=True)
    return jnp.sum((singular_values / jnp.where(top > 0, top, 1.0)) ** 2, -1)
