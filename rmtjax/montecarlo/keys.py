"""Keys: one per (seed, claim, cell, trial), whatever the grid around the cell and however the work is divided."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, shown
from rmtjax._random import key_of, wrapped

__all__ = ["cell_keys", "check_seed", "trial_keys"]


def check_seed(seed: int) -> int:
    """A seed as an int in [0, 2³²)."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise InputError(f"seed = {shown(seed)}: must be a whole number in [0, 2³²)")
    return int(seed)


def _words(name: str, values: Mapping[str, float]) -> np.ndarray:
    digest = hashlib.sha256(name.encode())
    for parameter in sorted(values):
        digest.update(parameter.encode() + b"=" + np.float64(values[parameter]).astype("<f8").tobytes())
    return np.frombuffer(digest.digest()[:8], "<u4")


def cell_keys(seed: int, stream: str, cells: Mapping[str, np.ndarray]) -> np.ndarray:
    """Key data, shape (cells, 2), of every cell: its seed, a stream's name and its *values* folded in.

    A cell has the same key in every grid that holds it, so a grid can grow and stores can be merged.
    """
    rows = zip(*cells.values(), strict=True) if cells else [()]
    words = np.stack([_words(stream, dict(zip(cells, row, strict=True))) for row in rows])
    base = jax.random.fold_in(key_of(seed), np.uint32(zlib.crc32(stream.encode())))
    return np.asarray(_fold(jax.random.key_data(base), jnp.asarray(words)))


@jax.jit
def _fold(base: jax.Array, words: jax.Array) -> jax.Array:
    def one(word):
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(wrapped(base), word[0]), word[1]))

    return jax.vmap(one)(words)


def trial_keys(cell: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """Typed keys of the trials first…first+count−1 of a cell, given the cell's key data."""
    of_cell = wrapped(cell)
    return jax.vmap(lambda trial: jax.random.fold_in(of_cell, trial))((first + jnp.arange(count)).astype(jnp.uint32))
