"""The settings of a run, checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from rmtjax._checks import floats, number, one_of, whole
from rmtjax._errors import InputError, shown
from rmtjax.montecarlo.limits import Limits
from rmtjax.montecarlo.resources import available_memory
from rmtjax.montecarlo.statistics import Comoments, Histogram, Moments, Samples, Statistic

__all__ = ["RunConfig"]

_TRIALS, _MOST_TRIALS = 10_000, 2**32

_SHARE_OF_FREE_MEMORY = 0.6


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a run, independent of its claim and grid.

    Attributes:
        trials: independent draws per cell, 2 to 2³²; None for 10,000, or with `until_se` for 2³².
        until_se: draw in each cell until the estimated standard error of every output, or of those that are named, is at most
            this, and no more than `trials`. The number of trials N then depends on the draws, which biases the mean by about
            −skewness/√N of a standard error (N ≥ 256; 4096 where all draws are the same).
        seed: whole number in [0, 2³²). The trial t of a cell is a function of (seed, claim, sampler, cell, t) alone.
        sampler: name of the sampler; the claim's first if None.
        options: choices for the sampler's options, such as ``{"entries": "rademacher"}``.
        covariance: whether to keep the covariance of the outputs.
        histogram: increasing bin edges for a histogram of every output.
        keep_samples: whether to keep every sample.
        store: a folder for a Zarr store, written chunk by chunk. One that exists must hold this run, which then resumes.
        memory: bytes that the run may use; by default 60 % of the free memory.
        devices: the devices to use; by default all local ones.
        limits: sizes of chunks, calls and queues.

    Raises:
        InputError: for a value that is invalid for every run.
    """

    trials: int | None = None
    until_se: float | Mapping[str, float] | None = None
    seed: int = 0
    sampler: str | None = None
    options: Mapping[str, str] | None = None
    covariance: bool = False
    histogram: Sequence[float] | None = None
    keep_samples: bool = False
    store: str | os.PathLike | None = None
    memory: float | None = None
    devices: Sequence[jax.Device] | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.trials is not None:
            object.__setattr__(self, "trials", _checked_trials(self.trials))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0, 2**32 - 1))
        if self.histogram is not None:
            object.__setattr__(self, "histogram", _checked_edges(self.histogram))
        if self.memory is not None:
            number("memory", self.memory, 0, open_low=True)

    def replace(self, **settings: Any) -> RunConfig:
        """Return the settings with some fields replaced."""
        return replace(self, **settings)

    @property
    def most_trials(self) -> int:
        """The largest number of trials of a cell, which `until_se` may end earlier."""
        if self.trials is not None:
            return self.trials
        return _TRIALS if self.until_se is None else _MOST_TRIALS

    @property
    def budget(self) -> float:
        """The number of bytes that the run may use."""
        if self.memory is None:
            return available_memory(self.devices) * _SHARE_OF_FREE_MEMORY
        return float(self.memory)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The statistics that are kept of the draws."""
        statistics: list[Statistic] = [Moments()]
        if self.covariance:
            statistics.append(Comoments())
        if self.histogram is not None:
            statistics.append(Histogram(self.histogram))
        if self.keep_samples:
            statistics.append(Samples())
        return tuple(statistics)

    def targets(self, outputs: Sequence[str]) -> dict[str, float] | None:
        """Return the standard error that each output is to reach; None if the number of trials is given.

        Raises:
            InputError: for an output that the claim does not have, or an error that is not a number > 0.
        """
        if self.until_se is None:
            return None
        targets = self.until_se if isinstance(self.until_se, Mapping) else dict.fromkeys(outputs, self.until_se)
        for name, value in targets.items():
            one_of("until_se: output", name, outputs)
            number("until_se", value, 0, open_low=True)
        return {name: float(value) for name, value in targets.items()}


def _checked_trials(trials: Any) -> int:
    is_whole_float = isinstance(trials, (float, np.floating)) and trials == trials // 1
    return whole("trials", int(trials) if is_whole_float else trials, 2, _MOST_TRIALS)


def _checked_edges(histogram: Any) -> tuple[float, ...]:
    allowed = "at least two finite increasing bin edges"
    edges = floats("histogram", histogram, allowed)
    if edges.ndim != 1 or edges.size < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise InputError(f"histogram = {shown(histogram)}: must be {allowed}")
    return tuple(edges.tolist())
