r"""Random words, uniforms and normals for many trials at once, laid out for vectorisation over trials.

Every trial has its own key, so `vmap` of `jax.random.normal` over keys puts the few numbers of one trial side by side in
memory and leaves the vector units with loops of length ten. Here the batch of trials is the last axis instead: threefry
is evaluated at the counters (stream, index) under each trial's key, and the numbers of one trial lie a batch apart. What
a trial gets depends on its key, the stream and the index, never on the batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int, Key, UInt64

from rmtjax._precision import float64
from rmtjax._threefry import threefry2x32

__all__ = ["batch_last", "box_muller", "cos_turn", "fast_log", "normal", "unit", "words"]


def words(key_data: Array, stream: Int[Array, "..."], count: int, start=0) -> UInt64[Array, "count batch"]:
    """Return 64 random bits at indices start…start+count−1 of a stream under each of a batch of threefry keys (2, batch)."""
    shape = (count, key_data.shape[-1])
    stream = jnp.broadcast_to(jnp.asarray(stream).astype(jnp.uint32), shape)
    index = jnp.asarray(start).astype(jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    index = jnp.broadcast_to(index[:, None], shape)
    high, low = threefry2x32(tuple(key_data), (stream, index))
    return (high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)


def unit(bits: UInt64[Array, "..."]) -> Float[Array, "..."]:
    """Return uniform numbers on (0, 1] with 52 random bits: never 0, so that the logarithm is finite."""
    one_to_two = (bits >> np.uint64(12)) | np.uint64(0x3FF0000000000000)
    return 2.0 - jax.lax.bitcast_convert_type(one_to_two, jnp.float64)


def fast_log(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return log x of a positive normal float64 to a few units in the last place, as plain arithmetic (XLA's is a call)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint64)
    exponent = (bits - np.uint64(0x3FE6A09E667F3BCD)).astype(jnp.int64) >> 52  # mantissa in [1/√2, √2)
    mantissa = jax.lax.bitcast_convert_type(bits - (exponent.astype(jnp.uint64) << np.uint64(52)), jnp.float64)
    s = (mantissa - 1) / (mantissa + 1)
    z = s * s
    series = jnp.zeros_like(z)
    for k in range(21, 0, -2):  # log m = 2 artanh s; |s| ≤ 0.172, so the first term left out is below 1e-18
        series = series * z + 2.0 / k
    return exponent.astype(jnp.float64) * math.log(2) + s * series


def _cos_sin_turn(v: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return cos 2πv and sin 2πv for v in [0, 1], by a quarter-turn reduction and two Taylor polynomials."""
    quarter = jnp.round(4 * v)
    x = (math.pi / 2) * (4 * v - quarter)  # |x| ≤ π/4
    z = x * x
    cos = sin = jnp.zeros_like(z)
    for k in range(8, -1, -1):
        cos = cos * z + (-1) ** k / math.factorial(2 * k)
        sin = sin * z + (-1) ** k / math.factorial(2 * k + 1)
    sin = sin * x
    quadrant = quarter.astype(jnp.int32) & 3
    swap = (quadrant & 1) == 1
    c, s = jnp.where(swap, sin, cos), jnp.where(swap, cos, sin)
    return jnp.where((quadrant == 1) | (quadrant == 2), -c, c), jnp.where(quadrant >= 2, -s, s)


def box_muller(bits: UInt64[Array, "two_m ..."]) -> Float[Array, "two_m ..."]:
    """Return standard normals from twice as many words, the first half radii, the second angles; exact up to rounding."""
    radius, angle = unit(bits).reshape(2, bits.shape[0] // 2, *bits.shape[1:])
    r = jnp.sqrt(-2 * fast_log(radius))
    c, s = _cos_sin_turn(angle)
    return jnp.stack([r * c, r * s]).reshape(bits.shape)


def cos_turn(v: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return cos 2πv for v in [0, 1]."""
    return _cos_sin_turn(v)[0]


def batch_last(function: Callable[..., Array]) -> Callable[..., Array]:
    """Turn ``function(key_data (2, batch), *args (..., batch)) -> (m, batch)`` into one of a single typed key.

    Arguments beyond the key are arrays of float64 whose last axis the batch is appended to, either of length 1 (the same
    for every trial) or of the batch's length. Under `vmap` over keys the batched form runs once for the whole batch.
    """

    @custom_vmap
    def single(key_data, *args):
        return function(key_data[:, None], *(a[..., None] for a in args))[..., 0]

    @single.def_vmap
    def rule(size, batched, key_data, *args):
        key_batched, *args_batched = batched
        key_data = key_data.T if key_batched else jnp.broadcast_to(key_data[:, None], (2, size))
        args = (
            jnp.moveaxis(a, 0, -1) if b else jnp.asarray(a)[..., None] for a, b in zip(args, args_batched, strict=True)
        )
        return jnp.moveaxis(function(key_data, *args), -1, 0), True

    def of_key(key: Key[Array, ""], *args):
        data = jax.random.key_data(key)
        if data.size != 2:  # a key of another generator: hash it down to threefry's two words
            data = jax.random.bits(key, (2,), jnp.uint32)
        return single(data, *args)

    return of_key


@functools.cache
def _normal(count: int) -> Callable[..., Array]:
    even = count + count % 2
    return batch_last(lambda key_data, stream: box_muller(words(key_data, stream, even))[:count])


@float64(keep=("key", "count", "stream"))
def normal(key: Key[Array, ""], count: int, stream: Int[Array, ""] | int = 0) -> Float[Array, "count"]:
    """Draw `count` independent N(0, 1) in float64 from one stream of a key.

    Args:
        key: a typed PRNG key, used for nothing but the draws of this module.
        count: number of draws.
        stream: index of one of 2³² independent streams of the key.
    """
    return _normal(count)(key, jnp.asarray(stream))
