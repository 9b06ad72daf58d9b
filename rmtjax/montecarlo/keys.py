"""Random keys: one per (seed, claim, cell, trial), independent of the grid around the cell and of how work is divided."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._random import wrapped
from rmtjax._threefry import threefry2x32

__all__ = ["cell_keys", "trial_keys"]


def _words(name: str, values: Mapping[str, float]) -> np.ndarray:
    digest = hashlib.sha256(name.encode())
    for parameter in sorted(values):
        digest.update(parameter.encode() + b"=" + np.float64(values[parameter]).astype("<f8").tobytes())
    return np.frombuffer(digest.digest()[:8], "<u4")


def cell_keys(seed: int, stream: str, cells: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the key data of every cell, shape (cells, 2): a seed, a stream's name and the cell's *values* folded in.

    A cell has the same key in every grid that holds it, so a grid can grow and stores can be merged.
    """
    rows = zip(*cells.values(), strict=True) if cells else [()]
    words = np.stack([_words(stream, dict(zip(cells, row, strict=True))) for row in rows])
    base = _fold_in(np.array([0, seed], np.uint32), np.array([zlib.crc32(stream.encode())], np.uint32))
    return _fold_in(_fold_in(base, words[:, 0]), words[:, 1])


def _fold_in(key_data: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Fold each of several words into a key, or into the key beside it, as `jax.random.fold_in` does.

    NumPy does it immediately; JAX would compile four programs first.
    """
    high, low = threefry2x32((key_data[..., 0], key_data[..., 1]), (np.zeros_like(data), data))
    return np.stack([high, low], -1)


def trial_keys(cell: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """Return the typed keys of the trials first…first+count−1 of a cell, given the cell's key data."""
    of_cell = wrapped(cell)
    return jax.vmap(lambda trial: jax.random.fold_in(of_cell, trial))((first + jnp.arange(count)).astype(jnp.uint32))
