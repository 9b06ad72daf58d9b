"""Selection of the algorithm that `auto` stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from rmtjax.linalg.svd._common import SINGLE

__all__ = ["LIMITS", "SelectionLimits", "fastest", "select_algorithm"]


@dataclasses.dataclass(frozen=True)
class SelectionLimits:
    """The sizes at which `auto` changes its algorithm.

    Those for processors were chosen from timings by `benchmarks/svd.py` on two cores of an AMD EPYC in float32, such as those in
    ``benchmarks/results/svd-float32-2-cores-of-amd-epyc.json``. Those for accelerators are guesses and were never measured.

    Attributes:
        tiny_side: smaller side up to which Jacobi beats LAPACK on a matrix for each core, of matrices that are not long.
        single_side: smaller side up to which a single matrix is left to one LAPACK call on the calling thread, which is faster
            than waking the pool.
        single_products: size of a batch, in products, up to which all of it is left to that thread.
        jacobi_products: size of a batch with sides up to twice `tiny_side`, in products of all sweeps, which Jacobi has done
            before the pool is awake.
        krylov_side: smaller side from which a Krylov space is faster than a whole decomposition.
        krylov_ratio: ratio of that side to k from which it is.
        gram_ratio: ratio of the sides from which the Gram matrix pays although vectors are wanted.
        accelerator_batch: number of matrices from which an accelerator does them by Jacobi.
        accelerator_side: smaller side up to which an accelerator does batches by Jacobi.
    """

    tiny_side: int = 8
    single_side: int = 64
    single_products: int = 10_000
    jacobi_products: int = 4_500_000
    krylov_side: int = 512
    krylov_ratio: int = 32
    gram_ratio: int = 2
    accelerator_batch: int = 16
    accelerator_side: int = 128


LIMITS = SelectionLimits()
"""The limits that `auto` uses."""


def select_algorithm(
    shape: tuple[int, ...],
    dtype: Any = np.float32,
    *,
    symmetric: bool = False,
    vectors: bool = True,
    k: int | None = None,
    precise: bool = True,
    platform: str | None = None,
    limits: SelectionLimits = LIMITS,
) -> str:
    """Return the name of the algorithm that `auto` stands for.

    Args:
        shape: shape of the batch, (..., n, m).
        dtype: dtype of its entries.
        symmetric: whether the algorithm is one of `eigh`, else of `svd`.
        vectors: whether vectors are wanted, too.
        k: number of the largest triplets that are wanted, None for all; `lanczos` is for known, real numbers only.
        precise: see `svd`.
        platform: "cpu", "gpu" or "tpu"; None for that of JAX's first device.
        limits: the sizes at which the choice changes.

    Examples:
        >>> select_algorithm((100, 40, 30), platform="cpu"), select_algorithm((100, 4, 4), platform="cpu")
        ('gram64', 'library')
    """
    platform = jax.default_backend() if platform is None else platform
    short, long = sorted(shape[-2:])
    if k is not None and short >= limits.krylov_side and k * limits.krylov_ratio <= short:
        if not precise:
            return "randomized"
        if not np.issubdtype(dtype, np.complexfloating):
            return "lanczos"
    batch = int(np.prod(shape[:-2]))
    if platform == "cpu":
        if (batch == 1 and short <= limits.single_side) or batch * short**2 * long <= limits.single_products:
            return "library"
        side = limits.tiny_side if vectors or not symmetric else limits.tiny_side - 2
        tiny = short <= side and short * long <= 2 * limits.tiny_side**2
        if tiny or (short <= 2 * limits.tiny_side and batch * short**3 * long <= limits.jacobi_products):
            return "jacobi"
        if not symmetric and np.dtype(dtype).name in SINGLE:
            return "gram64"
        if not symmetric and not precise and (not vectors or long >= limits.gram_ratio * short):
            return "gram"
        return "threads"
    if not symmetric and not precise and batch > 1:
        return "gram"
    return (
        "jacobi"
        if not symmetric and batch >= limits.accelerator_batch and short <= limits.accelerator_side
        else "library"
    )


def fastest(table: dict[str, Callable], a: Array, **options: Any) -> Any:
    """Run the fastest algorithm on the platform that the program is compiled for; under `vmap`, the one for the whole batch."""

    @custom_vmap
    def of_all(a):
        def on(platform):
            return table[select_algorithm(a.shape, a.dtype, platform=platform, **options)]

        return jax.lax.platform_dependent(a, cpu=on("cpu"), tpu=on("tpu"), default=on("gpu"))

    @of_all.def_vmap
    def _(_size, _is_batched, a):
        result = of_all(a)
        return result, jax.tree.map(lambda _: True, result)

    return of_all(a)
