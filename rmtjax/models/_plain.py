"""The functions between the matrix products of an encoder as JAX and Flax have them, for comparison with `_fast_cpu`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmtjax._random import key_of
from rmtjax.models._fast_cpu import DropoutKey

__all__ = ["attention", "dropout", "gelu", "layer_norm"]


def layer_norm(
    x: Float[Array, "*batch d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*batch d"]:
    """Return (x − mean)/√(var + eps) · scale + bias over the last axis, its moments in float32."""
    unit = jax.nn.standardize(x.astype(jnp.float32), axis=-1, epsilon=eps)
    return (unit * scale + bias).astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x Φ(x) with the normal distribution function Φ."""
    return jax.nn.gelu(x, approximate=False)


def dropout(
    x: Float[Array, "batch ..."], rate: float, dropout_key: DropoutKey | None, place: int
) -> Float[Array, "batch ..."]:
    """Return inverted dropout with masks of `jax.random`, which differ from those of the fast function; see there."""
    if dropout_key is None or rate == 0:
        return x

    def kept(word):
        return jax.random.bernoulli(jax.random.fold_in(key_of(word), place), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(kept)(dropout_key.word), x * np.asarray(1 / (1 - rate), x.dtype), 0)


def attention(
    query: Float[Array, "batch heads q d"],
    key: Float[Array, "batch heads k d"],
    value: Float[Array, "batch heads k d"],
    bias: Float[Array, "batch 1 1 k"] | None,
    rate: float = 0.0,
    dropout_key: DropoutKey | None = None,
    place: int = 0,
) -> Float[Array, "batch heads q d"]:
    """Return softmax(Q Kᵀ/√d + bias) V, the softmax in float32, its probabilities dropped with probability `rate`."""
    scores = (jnp.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])).astype(jnp.float32)
    scores = scores if bias is None else scores + bias
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(query.dtype), rate, dropout_key, place)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value)
