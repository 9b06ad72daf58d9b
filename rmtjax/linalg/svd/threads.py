"""LAPACK on the cores of the host: a pool of threads shares out a batch of matrices while BLAS has one thread."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array
from threadpoolctl import ThreadpoolController

from rmtjax._machine import cores

__all__ = ["by_numpy", "one_blas_thread"]

_BLAS_ALONE = 1024
"""Order from which BLAS's own threads speed up a single matrix; below it they cost more than they save."""


class _OneThread:
    """A context in which BLAS has one thread; the limit is lifted when the last thread leaves it.

    A dedicated thread sets and lifts the limit, since threadpoolctl lets only the thread that has set a limit lift it.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="rmtjax-blas")
        self._limit = contextlib.ExitStack()

    def _set(self) -> None:
        self._limit.enter_context(_controller().limit(limits=1, user_api="blas"))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._keeper.submit(self._set).result()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._keeper.submit(self._limit.close).result()


one_blas_thread = _OneThread()


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg.cython_lapack  # noqa: F401 (the LAPACK that JAX calls; only what is loaded is seen)

    return ThreadpoolController()


def _spread(shape: tuple[int, ...]) -> bool:
    """Return whether a batch (B, n, m) is faster with one matrix for each core than with BLAS's own threads."""
    return shape[0] >= cores() or min(shape[1:]) < _BLAS_ALONE


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="rmtjax-lapack")


def by_numpy(function: Callable[[np.ndarray], Sequence[np.ndarray]], a: Array, *results: jax.ShapeDtypeStruct) -> Any:
    """Run a NumPy function of a batch, whose decompositions release the interpreter lock, with one matrix for each core.

    LAPACK has one thread meanwhile, unless there are fewer large matrices than cores: its threads would wait for one another.
    A matrix that LAPACK cannot decompose has NaN for results, as it has in JAX. (`jax.pure_callback` was seen to deadlock; a
    buffer callback is handed the memory itself.)
    """

    def call(_, out, matrices):
        matrices = np.asarray(matrices)
        batch = matrices.reshape(-1, *matrices.shape[-2:])
        core = matrices.ndim - 2
        filled = [np.asarray(x) for x in out]
        filled = [x.reshape(len(batch), *x.shape[core:]) for x in filled]

        def part(chunk: slice) -> None:
            try:
                parts = function(batch[chunk])
            except np.linalg.LinAlgError:
                if chunk.stop - chunk.start == 1:
                    parts = [np.nan] * len(filled)
                else:
                    for i in range(chunk.start, chunk.stop):
                        part(slice(i, i + 1))
                    return
            for x, computed in zip(filled, parts, strict=True):
                x[chunk] = computed

        if not _spread(batch.shape):
            part(slice(0, len(batch)))
            return
        with one_blas_thread():
            if len(batch) < 2 or cores() < 2:
                part(slice(0, len(batch)))
            else:
                ends = np.linspace(0, len(batch), min(len(batch), 4 * cores()) + 1).astype(int)
                list(_pool().map(part, map(slice, ends[:-1], ends[1:])))

    return buffer_callback(call, results, vmap_method="expand_dims")(a)
