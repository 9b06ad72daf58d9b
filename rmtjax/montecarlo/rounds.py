"""The rounds of a run: finished tiles, missing tiles and the tiles that come next."""

from __future__ import annotations

import contextlib

import numpy as np

from rmtjax._errors import InputError
from rmtjax.montecarlo import distributed
from rmtjax.montecarlo.plan import Plan, check_results_fit
from rmtjax.montecarlo.store import Store, joined, state
from rmtjax.montecarlo.store_files import intact

__all__ = ["Rounds"]

Arrays = dict[str, np.ndarray]


class Rounds:
    """The rounds of a run and their results, in memory or in a store, in one process or in several.

    Args:
        plan: cuts the run into tiles and decides on each round.
        store: store of finished chunks; None keeps them in memory. Of several processes only the first has one.
        budget: bytes that the results may take.

    Attributes:
        tiles: those of the present round, (group, block); none when the run is done.
    """

    def __init__(self, plan: Plan, store: Store | None, budget: float) -> None:
        self._plan, self._store, self._budget = plan, store, budget
        self._is_shared = distributed.count() > 1
        self._closed: list[np.ndarray] = []
        self._parts: list[Arrays] = []
        self.tiles, self._first_chunk = plan.first(), 0
        self._fresh: dict[int, Arrays] = {}
        self._recall()
        while self.tiles.size and not self.missing:
            self.close()

    @property
    def missing(self) -> dict[int, np.ndarray]:
        """The tiles of each unfinished chunk of this round."""
        size = self._plan.chunk
        chunks = {self._first_chunk + i // size: self.tiles[i : i + size] for i in range(0, len(self.tiles), size)}
        is_stored = self._fresh.__contains__ if self._store is None or self._is_shared else self._store.has
        return {chunk: tiles for chunk, tiles in chunks.items() if not is_stored(chunk)}

    @property
    def missing_tiles(self) -> np.ndarray:
        """The tiles of all unfinished chunks of this round."""
        return np.concatenate([self.tiles[:0], *self.missing.values()])

    @property
    def trials(self) -> int:
        """The trials of all rounds so far, this one included."""
        return sum(int(self._plan.trials_in(tiles).sum()) for tiles in (*self._closed, self.tiles))

    @property
    def missing_trials(self) -> int:
        """The unfinished trials of this round."""
        return int(self._plan.trials_in(self.missing_tiles).sum())

    @property
    def results(self) -> tuple[np.ndarray, Arrays]:
        """The tiles of all closed rounds and their statistics."""
        return np.concatenate(self._closed), joined(self._parts)

    def keep(self, chunk: int, values: Arrays) -> None:
        """Keep a finished chunk in memory, unless the store of a single process has it."""
        if self._store is None or self._is_shared:
            self._fresh[chunk] = values

    def close(self) -> None:
        """Close the round and choose the next from its results; a damaged part leaves the round open."""
        size = self._plan.chunk
        chunks = range(self._first_chunk, self._first_chunk + -(-len(self.tiles) // size))
        values = self._read(chunks)
        if values is None:
            return
        closed, parts, tiles = [*self._closed, self.tiles], [*self._parts, values], self.tiles[:0]
        if self._plan.until is not None:
            with contextlib.nullcontext() if self._store is None else intact(self._store.path):
                tiles = self._plan.next(*state(self._plan, np.concatenate(closed), parts))
        self._closed, self._parts, self.tiles, self._first_chunk = closed, parts, tiles, chunks.stop
        if self._plan.until is not None:
            check_results_fit(self._plan, self._budget, sum(map(len, (*self._closed, self.tiles))))
        if self.tiles.size:
            self._recall()

    def _read(self, chunks: range) -> Arrays | None:
        """Return the statistics of this round's tiles; None if some are damaged and have to be drawn again."""
        count, first = len(self.tiles), chunks.start * self._plan.chunk
        if self._store is None or self._is_shared:
            values = {k: v[:count] for k, v in joined([self._fresh[c] for c in sorted(self._fresh)]).items()}
            self._fresh = {}
            return values
        try:
            return self._store.read(first, first + count)
        except InputError:
            if self._store.forget_damaged(chunks):
                return None
            raise

    def _recall(self) -> None:
        """Broadcast to all processes what the first one has stored of this round."""
        if not self._is_shared:
            return
        size, stored = self._plan.chunk, None
        if distributed.index() == 0:
            chunks = range(self._first_chunk, self._first_chunk + -(-len(self.tiles) // size))
            if self._store is not None:
                self._store.forget_damaged(chunks)
            chunks_stored = [c for c in chunks if self._store is not None and self._store.has(c)]
            parts = [self._store.read(c * size, (c + 1) * size) for c in chunks_stored]
            stored = {**(joined(parts) if parts else {}), "chunks": np.array(chunks_stored, int)}
        stored = distributed.broadcast(stored)
        for i, chunk in enumerate(stored.pop("chunks").tolist()):
            self._fresh[chunk] = {name: v[i * size : (i + 1) * size] for name, v in stored.items()}
