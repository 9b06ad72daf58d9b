"""The functions between the matrix products of an encoder, with derivatives written by hand where that is faster on processors.

`rmtjax.models.functions.plain_functions` chooses those of `_plain` instead. The gain that is recorded is one of a whole step of
training: in benchmarks/results/train-step-float32-2-cores-of-amd-epyc.json (2026-11-22) a step of MiniLM with these functions
takes half the time of one by PyTorch's PEFT. The gain of a single function is not recorded. `python -m benchmarks.train_step`
times a step with the plain functions, too; a function here can be deleted when that step takes no longer with its plain form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from rmtjax._threefry import threefry2x32

__all__ = ["DropoutKey", "attention", "dropout", "gelu", "layer_norm"]


def _apart(function: Callable, *args: Array) -> Array:
    """Return `function(*args)`, shielded from XLA's fusion on processors with the operations before and after it.

    XLA fuses a layer norm's result into each of its users and so repeats the whole residual stream behind it, some thirty
    operands deep after six layers; it is of no use any more when XLA bounds that. Elsewhere it is the function itself.

    The call is a loop of one turn whose length is computed from the first number of the first argument, in a way that
    the compiler does not see through.
    """

    def looped(*args):
        if args[0].size == 0:
            return function(*args)
        first = args[0][(0,) * args[0].ndim].astype(jnp.float32)
        once = 1 + (jax.lax.bitcast_convert_type(first, jnp.uint32) >> 31) // 2
        out = jax.eval_shape(function, *args)
        start = jnp.zeros(out.shape, out.dtype)
        return jax.lax.fori_loop(0, once.astype(jnp.int32), lambda *_: function(*args), start)

    return jax.lax.platform_dependent(*args, cpu=looped, default=function)


def _normalised(x: Float[Array, "*batch d"], eps: float) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred * rate, rate


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*batch d"]:
    """Return (x − mean)/√(var + eps) · scale + bias over the last axis, its moments in float32, shielded from fusion.

    `nnx.LayerNorm` is the plain form. The derivative is written so that it, too, can be kept apart; it goes with `_apart`.
    """

    def forward(x, scale, bias):
        return (_normalised(x, eps)[0] * scale + bias).astype(x.dtype)

    return _apart(forward, x, scale, bias)


def _layer_norm_forward(x, scale, bias, eps):
    return layer_norm(x, scale, bias, eps), (x, scale, bias)


def _layer_norm_backward(eps, saved, gradient):
    x, scale, bias = saved

    def to_x(gradient, x, scale):
        unit, rate = _normalised(x, eps)
        g = gradient.astype(jnp.float32) * scale
        along = (g * unit).mean(-1, keepdims=True)
        return (rate * (g - g.mean(-1, keepdims=True) - unit * along)).astype(x.dtype)

    batch = tuple(range(x.ndim - 1))
    to_scale = (gradient.astype(jnp.float32) * _normalised(x, eps)[0]).sum(batch)
    to_bias = gradient.astype(jnp.float32).sum(batch)
    return _apart(to_x, gradient, x, scale), to_scale.astype(scale.dtype), to_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x Φ(x) with the normal distribution function Φ, by erf as PyTorch has it.

    `jax.nn.gelu` is the plain form, which takes the slower erfc; once it takes erf, too, this one is of no use.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def _gelu_backward(x, gradient):
    phi = 0.5 * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
    return (gradient * (phi + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return a bijection of 32-bit words in which each bit of x flips about half of the result's bits (MurmurHash3's finaliser).

    Eight operations a word, against threefry's eighty, which in dropout cost as much to compile as the rest of a model.
    """
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


class DropoutKey(NamedTuple):
    """The source of dropout masks: a random word for each example of the batch.

    A mask depends on the step's key, the example's number and the place in the model, so that an example meets the same
    mask however the batch is cut into pieces, padded, or spread over devices.

    Attributes:
        word: of each example.
    """

    word: UInt32[Array, " batch"]

    @classmethod
    def of(cls, key: Array, example: Int[Array, " batch"]) -> DropoutKey:
        """Return the words of examples, from a key of `jax.random` and the numbers of the examples within the step."""
        data, example = jax.random.key_data(key), example.astype(jnp.uint32)
        return cls(threefry2x32((data[..., 0], data[..., 1]), (example, jnp.zeros_like(example)))[0])

    def at(self, place: int) -> DropoutKey:
        """Return the key of a position within the model."""
        return DropoutKey(_mixed(self.word + _mixed(jnp.uint32(place + 1))))


def _kept(dropout_key: DropoutKey, shape: tuple[int, ...], rate: float) -> Bool[Array, "batch ..."]:
    # The stride is odd and no length, so that padding does not change the mask of what follows; two entries of up to
    # 64 heads of 512 × 512 tokens, or 32 of 2048 × 2048, never share a number.
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(1, len(shape)):
        index = index * np.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    word = jnp.broadcast_to(dropout_key.word.reshape(-1, *(1,) * (len(shape) - 1)), shape)
    # Mixed twice: otherwise two examples whose words differ in a few bits would have the same mask in another order.
    return _mixed(word + _mixed(index)) >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x, dropout_key, rate):
    return jnp.where(_kept(dropout_key, x.shape, rate), x * np.asarray(1 / (1 - rate), x.dtype), 0)


# The gradient draws the mask again, which costs less than to write it to memory and read it back.
_drop.defvjp(
    lambda x, dropout_key, rate: (_drop(x, dropout_key, rate), dropout_key),
    lambda rate, dropout_key, g: (_drop(g, dropout_key, rate), None),
)


def dropout(
    x: Float[Array, "batch ..."], rate: float, dropout_key: DropoutKey | None, place: int
) -> Float[Array, "batch ..."]:
    """Return inverted dropout: zero with probability `rate`, x/(1 − rate) otherwise; x itself without a key.

    `nnx.Dropout` is the plain form. Its threefry costs ten times as many operations a word, which take as long to compile as
    the rest of a model; and its mask is kept for the gradient, where this one is drawn again. It would do if a generator of
    that cost were among JAX's, and masks could belong to examples.

    Args:
        x: an example in each row.
        rate: in [0, 1).
        dropout_key: the source of the masks; None is no dropout.
        place: a number of this call's own among all those that share the key.
    """
    return x if dropout_key is None or rate == 0 else _drop(x, dropout_key.at(place), rate)


def attention(
    query: Float[Array, "batch heads q d"],
    key: Float[Array, "batch heads k d"],
    value: Float[Array, "batch heads k d"],
    bias: Float[Array, "batch 1 1 k"] | None,
    rate: float = 0.0,
    dropout_key: DropoutKey | None = None,
    place: int = 0,
) -> Float[Array, "batch heads q d"]:
    """Return softmax(Q Kᵀ/√d + bias) V, the softmax in float32, its probabilities dropped with probability `rate`.

    `jax.nn.dot_product_attention` is the plain form, which has no dropout; it would do if it had, with masks from a `DropoutKey`.
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) * np.asarray(1 / math.sqrt(query.shape[-1]), query.dtype)
    scores = scores.astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(query.dtype), rate, dropout_key, place)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value)
