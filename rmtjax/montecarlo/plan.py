"""How a run is cut into tiles and chunks, and in which rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtjax._errors import InputError
from rmtjax.montecarlo.claim import Claim, Sampler
from rmtjax.montecarlo.grid import Axis, Grid
from rmtjax.montecarlo.statistics import Comoments, Histogram, Moments, Samples, Statistic

__all__ = ["Plan", "check_results_fit", "make_plan"]

_CHUNKS = 256
"""A run is stored in about this many chunks, so a kill costs at most this share of it."""

_SHORT = 16
"""… unless a chunk had fewer tiles than a sixteenth of the trials in one, of which those have few that take long."""

_FIRST = 256
"""Trials of every cell before its variance is believed."""

_GROWTH = 4
"""Most that a cell's trials grow from one round to the next, however large its variance seems."""

_SAME = 4096
"""Trials of every cell before it is believed that nothing varies there."""

_SPARE = 1.02
"""What is drawn beyond what the variance so far asks for."""

_STATISTICS = {kind.__name__: kind for kind in (Moments, Comoments, Histogram, Samples)}


@dataclass(frozen=True)
class Plan:
    """How a run is cut up. Depends on the claim, the grid, the trials and what is kept, on nothing else.

    A *tile* is a block of trials of a cell, or of a few neighbours. A *round* is a list of tiles, and a *chunk* so many of
    them in order. A run has one round, unless it is to reach a standard error: then each round is decided by the one before.

    Attributes:
        about: claim, equation, source, and what each parameter means.
        grid: the cells.
        outer, within: the grid without and of the parameters that are evaluated within a draw.
        outputs: names.
        trials: of a cell, at most if `until` is given.
        block: trials in a tile.
        cells_per_tile: neighbouring cells in a tile.
        chunk: tiles that are stored at once.
        statistics: what is kept of a block.
        until: standard errors to be reached, by output; None for as many trials everywhere.
    """

    about: Mapping[str, Any]
    grid: Grid
    outer: Grid
    within: Grid
    outputs: tuple[str, ...]
    trials: int
    block: int
    cells_per_tile: int
    chunk: int
    statistics: tuple[Statistic, ...]
    until: Mapping[str, float] | None = None

    @property
    def groups(self) -> int:
        """Groups of cells that share tiles."""
        return -(-self.outer.size // self.cells_per_tile)

    @property
    def blocks(self) -> int:
        """Blocks of a cell, at most."""
        return -(-self.trials // self.block)

    def first(self) -> np.ndarray:
        """The tiles (group, block) of the first round, shape (tiles, 2)."""
        blocks = self.blocks if self.until is None else min(self.blocks, -(-_FIRST // self.block))
        return _tiles(np.zeros(self.groups, int), np.full(self.groups, blocks))

    def next(self, done: np.ndarray, count: np.ndarray, m2: np.ndarray) -> np.ndarray:
        """The tiles of the next round, none if every cell is as precise as it should be or has all its trials.

        Args:
            done: blocks of each cell so far.
            count: trials of each cell so far.
            m2: their sums of squared deviations, shape (cells, outputs, points).
        """
        if self.until is None:
            return np.empty((0, 2), int)
        needed = self.needed(count, m2)
        wanted = np.ceil(np.minimum(_SPARE * needed, self.trials) / self.block).astype(int)
        wanted = np.minimum(np.minimum(np.maximum(wanted, done + 1), _GROWTH * done), self.blocks)
        return _tiles(done, np.where(needed > count, wanted, done))

    def needed(self, count: np.ndarray, m2: np.ndarray) -> np.ndarray:
        """Trials that each cell needs, to what its draws so far say of its variance (arrays as for `next`).

        Where all draws are the same the event that makes them differ may be rare rather than impossible. By the rule of three
        its probability is at most 3/N at the level 0.05, so the standard error of an output of deviation d where it varies is
        below 2√3 d/N: such cells go on until that is enough, d being the largest deviation of any cell, and to `_SAME` trials.
        """
        target = np.array([self.until.get(name, np.inf) for name in self.outputs])[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = m2 / (count[:, None, None] - 1)
            needed = variance / target**2
            largest = np.where(np.isfinite(variance), variance, 0).max((0, 2), initial=0)[:, None]
            unseen = np.where(np.isfinite(target), np.maximum(2 * np.sqrt(3 * largest) / target, _SAME), 0)
        needed = np.where(m2 == 0, unseen, needed).max((1, 2), initial=0)
        return np.where(np.isfinite(needed), needed, 0)  # no number of trials makes a mean of what is no number

    def trials_in(self, tiles: np.ndarray) -> np.ndarray:
        """Trials that count in each tile, over all its cells."""
        group, block = np.asarray(tiles).T
        cells = np.minimum((group + 1) * self.cells_per_tile, self.outer.size) - group * self.cells_per_tile
        return cells * (np.minimum((block + 1) * self.block, self.trials) - block * self.block)

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values."""
        axes = [{name: v.tolist() for name, v in axis.values.items()} | {"": axis.fixed} for axis in self.grid.axes]
        kept = [{type(s).__name__: {k: list(v) for k, v in vars(s).items()}} for s in self.statistics]
        return {
            **self.about, "grid": axes, "within": list(self.within.names), "outputs": list(self.outputs),
            "trials": self.trials, "until": None if self.until is None else dict(self.until), "statistics": kept,
            "block": self.block, "cells_per_tile": self.cells_per_tile, "chunk": self.chunk,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Plan:
        """The plan that `as_dict` made this of."""
        axes = tuple(Axis({k: np.array(v, float) for k, v in a.items() if k}, bool(a[""])) for a in found["grid"])
        outer, within = Grid(axes).split(found["within"])
        statistics = tuple(
            _STATISTICS[name](**{k: tuple(v) for k, v in one.items()})
            for kept in found["statistics"]
            for name, one in kept.items()
        )
        about = {name: found[name] for name in ("claim", "equation", "source", "meaning")}
        numbers = {name: int(found[name]) for name in ("trials", "block", "cells_per_tile", "chunk")}
        return cls(
            about, Grid(axes), outer, within, tuple(found["outputs"]), statistics=statistics, until=found["until"], **numbers
        )  # fmt: skip


def _tiles(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """(i, start[i]) … (i, stop[i] − 1) for all i in turn."""
    count = stop - start
    group = np.repeat(np.arange(start.size), count)
    place = np.arange(group.size) - np.repeat(np.cumsum(count) - count, count)
    return np.stack([group, start[group] + place], 1)


def make_plan(
    claim: Claim,
    sampler: Sampler,
    cells: Grid,
    outputs: Sequence[str],
    trials: int,
    statistics: tuple[Statistic, ...],
    until: Mapping[str, float] | None = None,
) -> Plan:
    """Cut a run into tiles and chunks."""
    outer, within = cells.split(claim.within)
    block = min(sampler.block, 1 << (trials - 1).bit_length())
    # Cells whose block is small share a tile, or the loop over tiles would cost more than what is in them.
    alone = sampler.static or until is not None
    cells_per_tile = 1 if alone else max(1, min(sampler.block // block, outer.size))
    groups = -(-outer.size // cells_per_tile)
    tiles = groups * -(-trials // block)
    # How many trials a standard error takes is not known before.
    chunk = block if until is not None else min(max(1, tiles // _CHUNKS, block // _SHORT), tiles)
    about = {
        "claim": claim.name, "equation": claim.equation, "source": claim.source,
        "meaning": {name: p.meaning for name, p in claim.params.items()},
    }  # fmt: skip
    return Plan(
        about, cells, outer, within, tuple(outputs), trials, block, cells_per_tile, chunk, statistics, until
    )  # fmt: skip


def result_bytes(plan: Plan, tiles: int | None = None) -> float:
    """Bytes of what is kept of so many tiles; by default of those that are known to come."""
    numbers = 5
    for statistic in plan.statistics:
        if isinstance(statistic, Comoments):
            numbers += len(plan.outputs)
        elif isinstance(statistic, Histogram):
            numbers += len(statistic.edges) + 1
        elif isinstance(statistic, Samples):
            numbers += plan.block
    if tiles is None:
        tiles = plan.groups * plan.blocks if plan.until is None else len(plan.first())
    return 8.0 * tiles * plan.cells_per_tile * len(plan.outputs) * math.prod(plan.within.shape) * numbers


def check_results_fit(plan: Plan, budget: float, tiles: int | None = None) -> None:
    """Raise `InputError` if what a run keeps of so many tiles, by default the first round's, takes more than `budget` bytes."""
    need = result_bytes(plan, tiles)
    if need > budget:
        what = (
            f"{plan.trials} trials" if plan.until is None else f"the trials that until_se = {dict(plan.until)} asks for"
        )
        raise InputError(
            f"memory: the results of {plan.grid.size} cells × {what} take {need / 1e9:.3g} GB, more than the"
            f" {budget / 1e9:.3g} GB allowed; ask for fewer cells, trials or statistics"
        )
