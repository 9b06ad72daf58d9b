"""Threefry written out in JAX: the bits of `jax.random`, in a form that XLA fuses with their consumers."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import UInt32

__all__ = ["threefry2x32"]


def threefry2x32(
    key_data: tuple[UInt32[jax.Array, "..."], UInt32[jax.Array, "..."]],
    counter: tuple[UInt32[jax.Array, "..."], UInt32[jax.Array, "..."]],
) -> tuple[UInt32[jax.Array, "..."], UInt32[jax.Array, "..."]]:
    """Return the words of Threefry-2x32 with 20 rounds (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC11).

    The bits of JAX's own primitive, which on processors is a nest of loops and takes four times as long to compile.
    """
    schedule = *key_data, key_data[0] ^ key_data[1] ^ np.uint32(0x1BD11BDA)
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn)))
        x, y = x + schedule[(group + 1) % 3], y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y
