"""How a run is cut into tiles, blocks and chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rmtjax._errors import InputError
from rmtjax.montecarlo.claim import Claim, Sampler
from rmtjax.montecarlo.grid import Grid
from rmtjax.montecarlo.statistics import Comoments, Histogram, Samples, Statistic

__all__ = ["Plan", "make_plan"]

_CHUNKS = 256
"""A run is stored in about this many chunks, so a kill costs at most this share of it."""


@dataclass(frozen=True)
class Plan:
    """How a run is cut up. Depends on the claim, the grid, the trials and what is kept, on nothing else."""

    grid: Grid
    outer: Grid
    points: int
    outputs: tuple[str, ...]
    trials: int
    block: int
    cells_per_tile: int
    chunk: tuple[int, int]
    statistics: tuple[Statistic, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells (padded to whole tiles) and blocks."""
        return -(-self.outer.size // self.cells_per_tile) * self.cells_per_tile, -(-self.trials // self.block)

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """The rectangles of (cell, block) that are stored at once."""
        cells, blocks = self.shape
        for c, b in itertools.product(range(0, cells, self.chunk[0]), range(0, blocks, self.chunk[1])):
            yield slice(c, min(c + self.chunk[0], cells)), slice(b, min(b + self.chunk[1], blocks))

    def live(self, cells: slice, blocks: slice) -> int:
        """Trials in a chunk."""
        last = min(blocks.stop * self.block, self.trials) - blocks.start * self.block
        return (min(cells.stop, self.outer.size) - cells.start) * last


def make_plan(
    claim: Claim, sampler: Sampler, cells: Grid, outputs: Sequence[str], trials: int, statistics: tuple[Statistic, ...]
) -> Plan:
    """Cut a run into tiles and chunks."""
    outer, within = cells.split(claim.within)
    block = min(sampler.block, 1 << (trials - 1).bit_length())
    # Cells whose block is small share a tile, or the loop over tiles would cost more than what is in them.
    cells_per_tile = 1 if sampler.static else max(1, min(sampler.block // block, outer.size))
    blocks = -(-trials // block)
    tiles = -(-outer.size // cells_per_tile) * blocks
    per_chunk = max(1, tiles // _CHUNKS)
    chunk = (cells_per_tile * max(1, per_chunk // blocks), min(per_chunk, blocks))
    return Plan(cells, outer, within.size, tuple(outputs), trials, block, cells_per_tile, chunk, statistics)


def check_results_fit(plan: Plan, budget: float) -> None:
    """Raise `InputError` if what a run keeps takes more than `budget` bytes."""
    cells, blocks = plan.shape
    numbers = 5
    for statistic in plan.statistics:
        if isinstance(statistic, Comoments):
            numbers += len(plan.outputs)
        elif isinstance(statistic, Histogram):
            numbers += len(statistic.edges) + 1
        elif isinstance(statistic, Samples):
            numbers += plan.block
    need = 8.0 * cells * blocks * len(plan.outputs) * plan.points * numbers
    if need > budget:
        raise InputError(
            f"memory: the results of {plan.grid.size} cells × {plan.trials} trials take {need / 1e9:.3g} GB, more than the"
            f" {budget / 1e9:.3g} GB allowed; ask for fewer cells, trials or statistics"
        )
