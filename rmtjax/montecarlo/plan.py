"""Plans: the division of a run into tiles and chunks, and the rounds in which they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmtjax._errors import InputError
from rmtjax.montecarlo.claim import Claim, Sampler
from rmtjax.montecarlo.config import RunConfig
from rmtjax.montecarlo.grid import Axis, Grid
from rmtjax.montecarlo.limits import Limits
from rmtjax.montecarlo.statistics import STATISTICS, Statistic, result_numbers

__all__ = ["Plan", "check_results_fit", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """The division of a run into tiles, which depends only on the claim, the grid, the trials and the statistics.

    A *cell* is a point of the grid. A *block* is a fixed number of consecutive trials of a cell. A *tile* is one block of a cell,
    or of a *group* of a few neighbouring cells. A *round* is a list of tiles, and a *chunk* is a fixed number of consecutive
    tiles of it. A run has one round, unless it is to reach a standard error: then each round follows from those before.

    Attributes:
        about: claim, equation, source, and what each parameter means.
        grid: the cells.
        outer, within: the grid of the other parameters, and that of the parameters evaluated within a draw.
        outputs: names.
        trials: trials of a cell; the largest number if `until` is given.
        block: trials in a tile.
        cells_per_tile: neighbouring cells in a tile.
        chunk: tiles that are stored at once.
        statistics: the statistics that are kept of a block.
        until: standard errors to be reached, by output; None for the same number of trials everywhere.
        limits: growth of the trials from round to round.
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
    limits: Limits = field(default_factory=Limits, compare=False)

    @property
    def groups(self) -> int:
        """The number of groups of cells that share tiles."""
        return -(-self.outer.size // self.cells_per_tile)

    @property
    def blocks(self) -> int:
        """The largest number of blocks of a cell."""
        return -(-self.trials // self.block)

    def first(self) -> np.ndarray:
        """Return the tiles (group, block) of the first round, shape (tiles, 2)."""
        blocks = self.blocks if self.until is None else min(self.blocks, -(-self.limits.first_trials // self.block))
        return _tiles(np.zeros(self.groups, int), np.full(self.groups, blocks))

    def next(self, done: np.ndarray, count: np.ndarray, m2: np.ndarray) -> np.ndarray:
        """Return the tiles of the next round, none if every cell is precise enough or has all its trials.

        Args:
            done: blocks of each cell so far.
            count: trials of each cell so far.
            m2: their sums of squared deviations, shape (cells, outputs, points).
        """
        if self.until is None:
            return np.empty((0, 2), int)
        needed = self.needed(count, m2)
        blocks = np.ceil(np.minimum(self.limits.spare * needed, self.trials) / self.block).astype(int)
        blocks = np.minimum(np.minimum(np.maximum(blocks, done + 1), self.limits.growth * done), self.blocks)
        return _tiles(done, np.where(needed > count, blocks, done))

    def needed(self, count: np.ndarray, m2: np.ndarray) -> np.ndarray:
        """Return the trials that each cell needs by the variance of its draws so far (arrays as for `next`).

        If all draws are the same, the event that makes them differ may be rare rather than impossible. By the rule of three
        its probability is at most 3/N at the level 0.05, so the standard error of an output of deviation d where it varies is
        below 2√3 d/N: such cells continue until that is enough, d being the largest deviation of any cell, and to
        `constant_trials`.
        """
        target = np.array([self.until.get(name, np.inf) for name in self.outputs])[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = m2 / (count[:, None, None] - 1)
            needed = variance / target**2
            largest = np.where(np.isfinite(variance), variance, 0).max((0, 2), initial=0)[:, None]
            unseen = np.where(
                np.isfinite(target), np.maximum(2 * np.sqrt(3 * largest) / target, self.limits.constant_trials), 0
            )
        needed = np.where(m2 == 0, unseen, needed).max((1, 2), initial=0)
        return np.where(
            np.isfinite(needed), needed, 0
        )  # no number of trials gives a mean of values that are not numbers

    def trials_in(self, tiles: np.ndarray) -> np.ndarray:
        """Return the number of live trials in each tile, over all its cells."""
        group, block = np.asarray(tiles).T
        cells = np.minimum((group + 1) * self.cells_per_tile, self.outer.size) - group * self.cells_per_tile
        return cells * (np.minimum((block + 1) * self.block, self.trials) - block * self.block)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-compatible values."""
        axes = [
            {"values": {name: v.tolist() for name, v in axis.values.items()}, "fixed": axis.fixed}
            for axis in self.grid.axes
        ]
        statistics = [{s.name: {k: list(v) for k, v in vars(s).items()}} for s in self.statistics]
        return {
            **self.about, "grid": axes, "within": list(self.within.names), "outputs": list(self.outputs),
            "trials": self.trials, "until": None if self.until is None else dict(self.until), "statistics": statistics,
            "block": self.block, "cells_per_tile": self.cells_per_tile, "chunk": self.chunk,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Return the plan from the values that `to_dict` returns."""
        axes = tuple(
            Axis({name: np.array(v, float) for name, v in axis["values"].items()}, bool(axis["fixed"]))
            for axis in values["grid"]
        )
        outer, within = Grid(axes).split(values["within"])
        statistics = tuple(
            STATISTICS[name](**{k: tuple(v) for k, v in fields.items()})
            for entry in values["statistics"]
            for name, fields in entry.items()
        )
        about = {name: values[name] for name in ("claim", "equation", "source", "meaning")}
        numbers = {name: int(values[name]) for name in ("trials", "block", "cells_per_tile", "chunk")}
        return cls(
            about, Grid(axes), outer, within, tuple(values["outputs"]), statistics=statistics, until=values["until"], **numbers
        )  # fmt: skip


def _tiles(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Return (i, start[i]) … (i, stop[i] − 1) for all i, one after another."""
    count = stop - start
    group = np.repeat(np.arange(start.size), count)
    place = np.arange(group.size) - np.repeat(np.cumsum(count) - count, count)
    return np.stack([group, start[group] + place], 1)


def make_plan(claim: Claim, sampler: Sampler, cells: Grid, outputs: Sequence[str], config: RunConfig) -> Plan:
    """Cut a run into tiles and chunks."""
    trials, limits, until = config.most_trials, config.limits, config.targets(outputs)
    outer, within = cells.split(claim.within)
    block = min(sampler.block, 1 << (trials - 1).bit_length())
    # Cells with small blocks share a tile; otherwise the loop over tiles would cost more than the draws.
    alone = sampler.static_argnames or until is not None
    cells_per_tile = 1 if alone else max(1, min(sampler.block // block, outer.size))
    groups = -(-outer.size // cells_per_tile)
    tiles = groups * -(-trials // block)
    # The number of trials that a standard error needs is not known in advance.
    chunk = block if until is not None else min(max(1, tiles // limits.chunks, block // limits.short), tiles)
    about = {
        "claim": claim.name, "equation": claim.equation, "source": claim.source,
        "meaning": {name: p.meaning for name, p in claim.params.items()},
    }  # fmt: skip
    return Plan(
        about,
        cells,
        outer,
        within,
        tuple(outputs),
        trials,
        block,
        cells_per_tile,
        chunk,
        config.statistics,
        until,
        limits,
    )


def result_bytes(plan: Plan, tiles: int | None = None) -> float:
    """Return the bytes needed to store the results of `tiles` tiles; by default of all tiles known so far."""
    points = math.prod(plan.within.shape)
    numbers = result_numbers(plan.statistics, len(plan.outputs), points, plan.block)
    if tiles is None:
        tiles = plan.groups * plan.blocks if plan.until is None else len(plan.first())
    return 8.0 * tiles * plan.cells_per_tile * numbers


def check_results_fit(plan: Plan, budget: float, tiles: int | None = None) -> None:
    """Raise `InputError` if the results of `tiles` tiles, by default of the first round, take more than `budget` bytes."""
    need = result_bytes(plan, tiles)
    if need > budget:
        trials = (
            f"{plan.trials} trials" if plan.until is None else f"the trials that until_se = {dict(plan.until)} requires"
        )
        raise InputError(
            f"memory: the results of {plan.grid.size} cells × {trials} take {need / 1e9:.3g} GB, more than the"
            f" {budget / 1e9:.3g} GB allowed; request fewer cells, trials or statistics"
        )
