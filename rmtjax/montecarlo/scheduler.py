"""The scheduler: devices take tiles from a queue, a few at a time, and finished tiles become chunks."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import jax
import numpy as np

from rmtjax.montecarlo.limits import Limits
from rmtjax.montecarlo.plan import Plan
from rmtjax.montecarlo.program import computing
from rmtjax.montecarlo.programs import Programs

__all__ = ["Scheduler"]

Finished = Callable[[int, dict[str, np.ndarray]], None]

_SHORTEST_S = 1e-6


@dataclass
class _Part:
    """Tiles of one chunk with the same static parameters: (row in the chunk, first cell, block)."""

    chunk: int
    static: tuple
    tiles: list[tuple[int, int, int]]


@dataclass
class _Chunk:
    """A chunk with missing tiles."""

    missing: int
    arrays: dict[str, np.ndarray] = field(repr=False)


class Scheduler:
    """Computes chunks of tiles on all devices.

    Args:
        plan: the tiles.
        programs: the compiled programs that compute them.
        limits: the target duration of a call.

    Attributes:
        seconds_per_tile: measured duration of a tile, by static parameters.
    """

    def __init__(self, plan: Plan, programs: Programs, limits: Limits) -> None:
        self.plan, self.programs, self.limits = plan, programs, limits
        self.seconds_per_tile: dict[tuple, float] = {}

    def run(self, chunks: Mapping[int, np.ndarray], finished: Finished, advance: Callable[[int], None]) -> None:
        """Compute some chunks.

        Args:
            chunks: the tiles (group, block) of each chunk.
            finished: called once for each chunk, in no particular order, with a row for each of the plan's tiles of a chunk.
            advance: called with the number of trials whenever some tiles are done.
        """
        devices = self.programs.devices
        pass_ = _Pass(self, chunks, finished, advance)
        with ThreadPoolExecutor(len(devices)) as pool:
            futures = [pool.submit(pass_.work, device) for device in devices]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pass_.stop()
                raise


class _Pass:
    """One pass over several chunks, shared by the threads of all devices."""

    def __init__(
        self,
        scheduler: Scheduler,
        chunks: Mapping[int, np.ndarray],
        finished: Finished,
        advance: Callable[[int], None],
    ) -> None:
        self._plan, self._programs, self._limits = scheduler.plan, scheduler.programs, scheduler.limits
        self._seconds_per_tile = scheduler.seconds_per_tile
        self._chunks, self._finished, self._advance = chunks, finished, advance
        self._queue, self._remainders = self._parts(), []  # what is left, after parts that were taken partially
        self._open: dict[int, _Chunk] = {}
        self._lock = threading.Lock()

    def _parts(self) -> Iterator[_Part]:
        for chunk, tiles in self._chunks.items():
            placed = [
                (row, group * self._plan.cells_per_tile, block) for row, (group, block) in enumerate(tiles.tolist())
            ]
            for static, members in itertools.groupby(placed, key=lambda tile: self._programs.static_of(tile[1])):
                yield _Part(chunk, static, list(members))

    def work(self, device: jax.Device) -> None:
        """Compute tiles on a device until none is left."""
        with computing():
            while (part := self._take()) is not None:
                began = time.perf_counter()
                values = self._programs.compute(device, part.static, [tile[1:] for tile in part.tiles])
                seconds = (time.perf_counter() - began) / len(part.tiles)
                with self._lock:
                    self._seconds_per_tile[part.static] = max(seconds, _SHORTEST_S)
                    self._put(part, values)

    def stop(self) -> None:
        """Let the threads end after the tiles that they have taken."""
        with self._lock:
            self._queue.close()
            self._remainders.clear()

    def _take(self) -> _Part | None:
        with self._lock:
            part = self._remainders.pop() if self._remainders else next(self._queue, None)
            if part is None:
                return None
            call_s, share = self._limits.call_s, -(-len(part.tiles) // len(self._programs.devices))
            per_call = int(call_s / self._seconds_per_tile.get(part.static, call_s))
            count = max(1, min(self._programs[part.static].capacity, per_call, share))
            if len(part.tiles) > count:
                self._remainders.append(_Part(part.chunk, part.static, part.tiles[count:]))
            return _Part(part.chunk, part.static, part.tiles[:count])

    def _put(self, part: _Part, values: dict[str, np.ndarray]) -> None:
        tiles = self._chunks[part.chunk]
        if part.chunk not in self._open:
            size = max(self._plan.chunk, len(tiles))
            arrays = {name: np.zeros((size, *v.shape[1:]), v.dtype) for name, v in values.items()}
            self._open[part.chunk] = _Chunk(len(tiles), arrays)
        chunk = self._open[part.chunk]
        rows = [row for row, _, _ in part.tiles]
        for name, v in values.items():
            chunk.arrays[name][rows] = v
        chunk.missing -= len(rows)
        if not chunk.missing:
            del self._open[part.chunk]
            self._finished(part.chunk, chunk.arrays)
        self._advance(int(self._plan.trials_in(tiles[rows]).sum()))
