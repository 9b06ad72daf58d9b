"""Runs shared by several processes: each computes its share of the chunks, and all of them get all results.

The processes are those of `jax.distributed`. They exchange only arrays, packed into bytes, by collectives of JAX, so they need
no shared file system, and only process 0 touches a store.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rmtjax._errors import HostError, InputError

__all__ = ["agree", "broadcast", "count", "gather", "index", "share"]

Arrays = Mapping[str, np.ndarray]
Finished = Callable[[int, Arrays], None]


def count() -> int:
    """Return the number of processes."""
    return jax.process_count()


def index() -> int:
    """Return the index of this process."""
    return jax.process_index()


def _packed(arrays: Arrays) -> np.ndarray:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _unpacked(data: np.ndarray) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data.tobytes()), allow_pickle=False) as archive:
        return dict(archive)


class _Banner:
    """Keeps Gloo's banner, printed at its first use, off standard output, which carries results."""

    def __init__(self) -> None:
        self._is_printed = False

    @contextlib.contextmanager
    def redirected(self) -> Iterator[None]:
        """Redirect standard output to standard error in a `with` block, the first time that one succeeds."""
        if self._is_printed:
            yield
            return
        sys.stdout.flush()
        saved_stdout = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            os.dup2(saved_stdout, 1)
            os.close(saved_stdout)
        self._is_printed = True


_BANNER = _Banner()


def _exchanged(data: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, stacked."""
    from jax.experimental.multihost_utils import process_allgather

    try:
        with _BANNER.redirected():
            return np.asarray(process_allgather(data))
    except (ValueError, RuntimeError) as error:  # JAX's own errors are among these
        raise HostError(str(error).splitlines()[0]) from None


_PIECE = 2**26
"""The number of bytes that process 0 sends at a time."""


def _sizes(data: np.ndarray) -> list[int]:
    """Return the number of bytes of every process, each sent as two numbers, since JAX's integers have 32 bits."""
    return [(high << 30) + low for high, low in _exchanged(np.array(divmod(data.size, 1 << 30), np.int32)).tolist()]


def gather(arrays: Arrays) -> list[dict[str, np.ndarray]]:
    """Return the arrays of every process, by any names and of any shapes, in the order of the processes."""
    mine = _packed(arrays)
    sizes = _sizes(mine)
    every = _exchanged(np.pad(mine, (0, max(sizes) - mine.size)))
    return [_unpacked(data[:size]) for data, size in zip(every, sizes, strict=True)]


def broadcast(arrays: Arrays | None) -> dict[str, np.ndarray]:
    """Return the arrays of process 0 on all processes, sent in pieces; the other processes pass None."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    mine = _packed({} if arrays is None else arrays)
    size = _sizes(mine)[0]
    received = np.empty(size, np.uint8)
    for start in range(0, size, _PIECE):
        piece = received[start : start + _PIECE]
        if index() == 0:
            piece[:] = mine[start : start + _PIECE]
        try:
            piece[:] = np.asarray(broadcast_one_to_all(piece))
        except (ValueError, RuntimeError) as error:
            raise HostError(str(error).splitlines()[0]) from None
    return _unpacked(received)


def agree(error: Exception | None) -> None:
    """Raise this process's error, or name the process that failed, so that no process continues without the others."""
    failed = np.flatnonzero(_exchanged(np.array([error is not None], np.int32)).ravel())
    if error is not None:
        raise error
    if failed.size:
        raise InputError(f"process {failed[0]} could not start: see its message")


def share(order: Sequence[int], compute: Callable[[list[int], Finished], Any], finished: Finished) -> None:
    """Compute chunks together with the other processes.

    The i-th of n processes computes every n-th chunk, beginning with the i-th. A thread exchanges what is finished, in waves
    of a chunk from each, while the next ones are computed.

    Args:
        order: the chunks, the same on all processes.
        compute: ``compute(chunks, done)`` computes some chunks and calls ``done(chunk, arrays)`` once for each.
        finished: called on every process with every chunk, in order.
    """
    processes, rank = count(), index()
    mine = list(order[rank::processes])
    ready: dict[int, Arrays] = {}
    arrived = threading.Condition()
    failed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def done(chunk: int, arrays: Arrays) -> None:
        if not failed.empty():
            raise failed.get()
        with arrived:
            ready[chunk] = arrays
            arrived.notify()

    stopped = False

    def exchange() -> None:
        try:
            for wave in range(0, len(order), processes):
                chunk = order[wave + rank] if wave + rank < len(order) else None
                with arrived:
                    arrived.wait_for(lambda: stopped or chunk is None or chunk in ready)  # noqa: B023
                    if stopped and chunk is not None and chunk not in ready:
                        return
                    arrays = {} if chunk is None else ready.pop(chunk)
                for wave_chunk, chunk_arrays in zip(order[wave : wave + processes], gather(arrays), strict=False):
                    finished(wave_chunk, chunk_arrays)
        except BaseException as error:
            failed.put(error)

    thread = threading.Thread(target=exchange, name="exchange", daemon=True)
    thread.start()
    try:
        compute(mine, done)
    finally:
        with arrived:
            stopped = True
            arrived.notify()
    thread.join()
    if not failed.empty():
        raise failed.get()
