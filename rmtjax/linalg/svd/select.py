"""Which algorithm `auto` stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from rmtjax.linalg.svd._common import (
    SINGLE,
)

__all__ = ["fastest", "select_algorithm"]

_TINY = 8
"""Smaller side up to which Jacobi in step beats LAPACK on each core, of matrices that are not long."""

_ALONE, _AT_ONCE, _SOON = 64, 10_000, 4_500_000
"""Smaller side up to which a single matrix, and size of a batch (in products) up to which all of it, is done by LAPACK before
the host's threads have been woken, JAX doing both on the thread that it is on; and size of a batch of
sides up to twice `_TINY` (in products of all sweeps) that Jacobi is done with by then."""

_IN_STEP = 16
"""Number of matrices from which an accelerator does them by Jacobi."""

_KRYLOV, _SHARE = 512, 32
"""Smaller side from which, and its ratio to k from which, Krylov spaces are faster than a whole SVD."""

_LONG = 2
"""Ratio of the sides from which the Gram matrix pays although vectors are wanted."""

_ACCELERATED = 128
"""Smaller side up to which an accelerator does batches by Jacobi."""


def select_algorithm(
    shape: tuple[int, ...],
    dtype: Any = np.float32,
    *,
    symmetric: bool = False,
    vectors: bool = True,
    k: int | None = None,
    precise: bool = True,
    platform: str | None = None,
) -> str:
    """What `auto` stands for.

    Args:
        shape: of the batch, (..., n, m).
        dtype: of its entries.
        symmetric: for `eigh`, else for `svd`.
        vectors: whether they are wanted.
        k: how many, None for all; `lanczos` only where the numbers are known and real.
        precise: see `svd`.
        platform: "cpu", "gpu" or "tpu"; None for that of JAX's first device.
    """
    platform = jax.default_backend() if platform is None else platform
    short, long = sorted(shape[-2:])
    if k is not None and short >= _KRYLOV and k * _SHARE <= short:
        if not precise:
            return "randomized"
        if not np.issubdtype(dtype, np.complexfloating):
            return "lanczos"
    batch = int(np.prod(shape[:-2]))
    if platform == "cpu":
        if (batch == 1 and short <= _ALONE) or batch * short**2 * long <= _AT_ONCE:
            return "library"
        tiny = short <= (_TINY if vectors or not symmetric else _TINY - 2) and short * long <= 2 * _TINY**2
        if tiny or (short <= 2 * _TINY and batch * short**3 * long <= _SOON):
            return "jacobi"
        if not symmetric and np.dtype(dtype).name in SINGLE:
            return "gram64"
        if not symmetric and not precise and (not vectors or long >= _LONG * short):
            return "gram"
        return "threads"
    if not symmetric and not precise and batch > 1:
        return "gram"
    return "jacobi" if not symmetric and batch >= _IN_STEP and short <= _ACCELERATED else "library"


def fastest(table: dict[str, Callable], a: Array, **options: Any) -> Any:
    """The algorithm of choice, for whatever platform the program is compiled; under `vmap`, that for the whole batch."""

    @custom_vmap
    def of_all(a):
        def on(platform):
            return table[select_algorithm(a.shape, a.dtype, platform=platform, **options)]

        return jax.lax.platform_dependent(a, cpu=on("cpu"), tpu=on("tpu"), default=on("gpu"))

    @of_all.def_vmap
    def _(_size, as_batch, a):
        found = of_all(a)
        return found, jax.tree.map(lambda _: True, found)

    return of_all(a)
