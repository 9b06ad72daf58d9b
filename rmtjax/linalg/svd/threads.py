"""LAPACK on the cores of the host: a batch of matrices is dealt out to a pool of threads, BLAS having one thread meanwhile."""

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
"""Order from which BLAS's own threads speed a single matrix up; below it they cost more than they bring."""


class _OneThread:
    """BLAS on one thread while anyone is inside, put back when the last one leaves.

    A thread of its own turns the switch, since threadpoolctl lets only the thread that has set a limit take it back.
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
    """Whether a batch (B, n, m) is better off with a matrix for each core than with BLAS's own threads."""
    return shape[0] >= cores() or min(shape[1:]) < _BLAS_ALONE


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="rmtjax-lapack")


def by_numpy(function: Callable[[np.ndarray], Sequence[np.ndarray]], a: Array, *results: jax.ShapeDtypeStruct) -> Any:
    """A function of a batch by NumPy, whose decompositions let go of the interpreter, on a matrix for each core.

    LAPACK has one thread meanwhile, unless there are fewer large matrices than cores: its threads would wait for one another.
    What LAPACK cannot decompose is NaN in the results, as it is from JAX. (`jax.pure_callback` was seen to wait for ever; a
    buffer callback is handed the memory itself.)
    """

    def call(_, out, given):
        given = np.asarray(given)
        batch = given.reshape(-1, *given.shape[-2:])
        core = given.ndim - 2
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
            for x, found in zip(filled, parts, strict=True):
                x[chunk] = found

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
