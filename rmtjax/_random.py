"""Random numbers that follow from seeds alone, whatever generator JAX's flags and environment variables choose.

`JAX_DEFAULT_PRNG_IMPL`, `JAX_THREEFRY_PARTITIONABLE` and `JAX_RANDOM_SEED_OFFSET` change what `jax.random.key(seed)` is or
what is drawn from it. Keys made here are not subject to the first and the last. The second is not a property of a key, so
whatever draws from such keys runs inside `pinned()`. A key that a user passes in keeps the user's generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

__all__ = ["GENERATOR", "fixed_normal", "key_of", "pinned", "wrapped"]

_IMPLEMENTATION = "threefry2x32"

GENERATOR = f"{_IMPLEMENTATION}, partitionable"
"""The name of the generator in stores and runs. JAX uses it by default since version 0.5."""


def wrapped(data: UInt32[Array, "... 2"]) -> Key[Array, "..."]:
    """Return the generator's typed keys with the given key data."""
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def key_of(seed: Int[Array, ""] | int) -> Key[Array, ""]:
    """Return the key data that `jax.random.key` makes of a seed by default: the high and the low half of its 64 bits.

    Of a traced seed only the low half counts.
    """
    if isinstance(seed, (int, np.integer)):
        return wrapped(jnp.asarray(np.array([int(seed) >> 32 & 0xFFFFFFFF, int(seed) & 0xFFFFFFFF], np.uint32)))
    low = jnp.asarray(seed).astype(jnp.uint32)
    return wrapped(jnp.stack([jnp.zeros_like(low), low]))


def fixed_normal(
    seed: Int[Array, ""] | int, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> Float[Array, "..."]:
    """Return an array of independent N(0, 1), always the same one for a seed."""
    with pinned():
        return jax.random.normal(key_of(seed), shape, dtype)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Draw as JAX does by default, in this thread, within a `with` block or a function that this decorates."""
    with jax.default_prng_impl(_IMPLEMENTATION), jax.threefry_partitionable(True):
        yield
