"""Statistics of a stream of samples: computed per block on the device, merged on the host.

Everything about a statistic is in its class here, see `Statistic`; a new one is a new class in `STATISTICS`. Blocks are merged
as a binary tree in their order, so the result does not depend on how the work was divided. `Samples` alone reduce nothing and
are never merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "STATISTICS",
    "Comoments",
    "Histogram",
    "Moments",
    "Rows",
    "Samples",
    "Statistic",
    "Variable",
    "merge_tiles",
    "result_numbers",
]

State = Mapping[str, np.ndarray]
"""Arrays by name. All statistics of a set of trials share one state, in which `Moments` has the count and the mean."""


class Rows(NamedTuple):
    """Blocks, cell after cell: the cell and the block of each row, and the state of each."""

    cell: np.ndarray
    block: np.ndarray
    arrays: State


class Variable(NamedTuple):
    """A variable of a result.

    Attributes:
        values: shape (cells, outputs…, points, rest…), or (cells,) if all outputs share them.
        long_name: its description.
        lead: names of the axes of outputs.
        rest: names of the axes after the points.
    """

    values: np.ndarray
    long_name: str
    lead: tuple[str, ...] = ("output",)
    rest: tuple[str, ...] = ()


class Statistic(Protocol):
    """A statistic of samples.

    Attributes:
        name: its name in a plan.
        names: the arrays of the state that it keeps.
        is_reduced: whether blocks are merged; if not, `merge` is never called.
    """

    name: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    is_reduced: ClassVar[bool]

    def arrays(self, outputs: int, points: int, block: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of one cell and block that no other statistic keeps."""

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Reduce the samples of one block, shape (trials, outputs, points), of which only some trials are live."""

    def merge(self, a: State, b: State) -> dict[str, np.ndarray]:
        """Return the arrays of two disjoint sets of trials together (Chan, Golub & LeVeque 1979)."""

    def to_result(self, merged: State, rows: Rows | None) -> dict[str, Variable]:
        """Return the variables of a result, given the merged state of each cell, and all blocks where they are known."""

    def coordinates(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Return the coordinates of the axes of these variables."""

    @classmethod
    def of_result(cls, result: xr.Dataset) -> Statistic | None:
        """Return the statistic that a result has; None if it has none of this kind."""

    def from_result(self, values: Mapping[str, np.ndarray], count: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays from which `to_result` made these variables; those of a cell without trials are neutral."""


def _masked(x, live, fill):
    return jnp.where(live[:, None, None], x, fill)


def _like(count: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the count with as many axes as the values."""
    return count.reshape(count.shape + (1,) * (values.ndim - count.ndim))


def _per_degree(squares: np.ndarray, count: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return squares / (_like(count, squares) - 1)


def _squares(variance: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the sums of squares of a variance; 0 for a single trial, whose variance is unknown."""
    count = _like(count, variance)
    return np.where(count > 1, variance * (count - 1), 0.0)


def _merged_squares(name: str, a: State, b: State, step: np.ndarray) -> np.ndarray:
    """Return the sums of (products of) deviations of two sets of trials together.

    Args:
        name: of the sums in the states.
        a, b: the states.
        step: square of the difference of the means, or product of two of them.
    """
    na, nb = (_like(state["count"], step) for state in (a, b))
    return a[name] + b[name] + step * (na * nb / np.maximum(na + nb, 1.0))


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations, least and largest value of each output at each point."""

    name = "Moments"
    names = ("count", "mean", "m2", "min", "max")
    is_reduced = True

    def arrays(self, outputs: int, points: int, block: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of one cell and block."""
        return {"count": (), **dict.fromkeys(self.names[1:], (outputs, points))}

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Reduce a block to its moments."""
        count = jnp.sum(live).astype(x.dtype)
        mean = jnp.sum(_masked(x, live, 0.0), 0) / count
        return {
            "count": count,
            "mean": mean,
            "m2": jnp.sum(_masked((x - mean) ** 2, live, 0.0), 0),
            "min": jnp.min(_masked(x, live, jnp.inf), 0),
            "max": jnp.max(_masked(x, live, -jnp.inf), 0),
        }

    def merge(self, a: State, b: State) -> dict[str, np.ndarray]:
        """Return the moments of two sets of trials together."""
        na, nb = (_like(state["count"], state["mean"]) for state in (a, b))
        step = b["mean"] - a["mean"]
        return {
            "count": a["count"] + b["count"],
            "mean": a["mean"] + step * (nb / np.maximum(na + nb, 1.0)),
            "m2": _merged_squares("m2", a, b, step**2),
            "min": np.minimum(a["min"], b["min"]),
            "max": np.maximum(a["max"], b["max"]),
        }

    def to_result(self, merged: State, rows: Rows | None) -> dict[str, Variable]:
        """Return mean, standard error, variance, extremes and number of trials."""
        trials = np.broadcast_to(_like(merged["count"], merged["mean"]), merged["mean"].shape)
        variance = _per_degree(merged["m2"], merged["count"])
        with np.errstate(divide="ignore", invalid="ignore"):
            se = np.sqrt(variance / trials)
        return {
            "mean": Variable(merged["mean"], "Monte Carlo mean"),
            "se": Variable(se, "standard error of the mean"),
            "variance": Variable(variance, "variance of one trial"),
            "min": Variable(merged["min"], "least value drawn"),
            "max": Variable(merged["max"], "largest value drawn"),
            "trials": Variable(trials[:, 0, :], "trials drawn", lead=()),
        }

    def coordinates(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Return the names of the outputs."""
        return {"output": list(outputs)}

    @classmethod
    def of_result(cls, result: xr.Dataset) -> Moments | None:
        """Return the moments, which every result has."""
        return cls()

    def from_result(self, values: Mapping[str, np.ndarray], count: np.ndarray) -> dict[str, np.ndarray]:
        """Return the moments from which `to_result` made these variables."""
        is_drawn = _like(count, values["mean"]) > 0
        return {
            "count": count,
            "mean": np.where(is_drawn, values["mean"], 0.0),
            "m2": _squares(values["variance"], count),
            "min": np.where(is_drawn, values["min"], np.inf),
            "max": np.where(is_drawn, values["max"], -np.inf),
        }


@dataclass(frozen=True)
class Comoments:
    """Sums of products of deviations between outputs, at each point."""

    name = "Comoments"
    names = ("count", "mean", "comoment")
    is_reduced = True

    def arrays(self, outputs: int, points: int, block: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of one cell and block; count and mean are those of `Moments`."""
        return {"comoment": (outputs, outputs, points)}

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Reduce a block to sums of products of deviations."""
        mean = jnp.sum(_masked(x, live, 0.0), 0) / jnp.sum(live)
        centred = _masked(x - mean, live, 0.0)
        return {"comoment": jnp.einsum("tip,tjp->ijp", centred, centred)}

    def merge(self, a: State, b: State) -> dict[str, np.ndarray]:
        """Return the sums of two sets of trials together; the means and counts of `Moments` must be in the states."""
        step = b["mean"] - a["mean"]
        return {"comoment": _merged_squares("comoment", a, b, step[..., :, None, :] * step[..., None, :, :])}

    def to_result(self, merged: State, rows: Rows | None) -> dict[str, Variable]:
        """Return the covariance."""
        covariance = _per_degree(merged["comoment"], merged["count"])
        return {"covariance": Variable(covariance, "covariance of two outputs of one trial", lead=("output", "other"))}

    def coordinates(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Return the names of the outputs once more."""
        return {"other": list(outputs)}

    @classmethod
    def of_result(cls, result: xr.Dataset) -> Comoments | None:
        """Return the comoments if the result has a covariance."""
        return cls() if "covariance" in result else None

    def from_result(self, values: Mapping[str, np.ndarray], count: np.ndarray) -> dict[str, np.ndarray]:
        """Return the sums from which `to_result` made the covariance."""
        return {"comoment": _squares(values["covariance"], count)}


@dataclass(frozen=True)
class Histogram:
    """Counts of each output at each point between edges, and below and above them.

    Attributes:
        edges: increasing, shape (bins + 1,); a bin holds its left edge.
    """

    edges: tuple[float, ...]
    name = "Histogram"
    names = ("histogram",)
    is_reduced = True

    def arrays(self, outputs: int, points: int, block: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of the counts of one cell and block."""
        return {"histogram": (outputs, points, len(self.edges) + 1)}

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Count the samples of a block."""
        bins = len(self.edges) + 1
        place = jnp.searchsorted(jnp.asarray(self.edges), x, side="right")
        flat = x.shape[1] * x.shape[2]
        place = place.reshape(x.shape[0], flat) + bins * jnp.arange(flat)
        weight = jnp.broadcast_to(live[:, None], place.shape).astype(jnp.int64)
        counts = jnp.zeros(flat * bins, jnp.int64).at[place.ravel()].add(weight.ravel())
        return {"histogram": counts.reshape(x.shape[1], x.shape[2], bins)}

    def merge(self, a: State, b: State) -> dict[str, np.ndarray]:
        """Return the counts of two sets of trials together."""
        return {"histogram": a["histogram"] + b["histogram"]}

    def to_result(self, merged: State, rows: Rows | None) -> dict[str, Variable]:
        """Return the counts."""
        return {"histogram": Variable(merged["histogram"], "trials per bin, the outer two open", rest=("bin",))}

    def coordinates(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Return the left edges of the bins."""
        return {"left_edge": ("bin", np.array([-np.inf, *self.edges]))}

    @classmethod
    def of_result(cls, result: xr.Dataset) -> Histogram | None:
        """Return the histogram of a result, if it has one."""
        return cls(tuple(result["left_edge"].values[1:].tolist())) if "histogram" in result else None

    def from_result(self, values: Mapping[str, np.ndarray], count: np.ndarray) -> dict[str, np.ndarray]:
        """Return the counts."""
        return {"histogram": values["histogram"]}


@dataclass(frozen=True)
class Samples:
    """The samples themselves, 0 where a trial does not count. Nothing is reduced, so keep only as many as fit."""

    name = "Samples"
    names = ("samples",)
    is_reduced = False

    def arrays(self, outputs: int, points: int, block: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of the samples of one cell and block."""
        return {"samples": (block, outputs, points)}

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Keep a block."""
        return {"samples": _masked(x, live, 0.0)}

    def merge(self, a: State, b: State) -> dict[str, np.ndarray]:
        """Return nothing: samples are not merged."""
        raise NotImplementedError

    def to_result(self, merged: State, rows: Rows | None) -> dict[str, Variable]:
        """Return the samples of each cell in the order of its trials, NaN beyond the last one."""
        if rows is None:
            return {}
        drawn, count = rows.arrays["samples"], merged["count"]  # (rows, trials of a block, outputs, points)
        samples = np.full((count.size, int(rows.block.max()) + 1, *drawn.shape[1:]), np.nan)
        live = np.arange(drawn.shape[1]) < rows.arrays["count"][:, None]
        samples[rows.cell, rows.block] = np.where(live[:, :, None, None], drawn, np.nan)
        samples = samples.reshape(count.size, -1, *drawn.shape[2:])[:, : int(count.max())]
        return {"samples": Variable(np.moveaxis(samples, 1, -1), "samples", rest=("trial",))}

    def coordinates(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Return nothing: trials have no names."""
        return {}

    @classmethod
    def of_result(cls, result: xr.Dataset) -> Samples | None:
        """Return the samples, if the result has any."""
        return cls() if "samples" in result else None

    def from_result(self, values: Mapping[str, np.ndarray], count: np.ndarray) -> dict[str, np.ndarray]:
        """Return nothing: results concatenate their samples."""
        return {}


STATISTICS: dict[str, type] = {kind.name: kind for kind in (Moments, Comoments, Histogram, Samples)}
"""Every statistic by its name, in the order of their variables in a result."""


def result_numbers(statistics: Sequence[Statistic], outputs: int, points: int, block: int) -> int:
    """Return the number of values that are kept of one cell and block."""
    shapes = [shape for s in statistics for shape in s.arrays(outputs, points, block).values()]
    return sum(map(math.prod, shapes))


def merge_tiles(statistics: Sequence[Statistic], tiles: State, owner: np.ndarray) -> dict[str, np.ndarray]:
    """Merge the rows that belong together, neighbours first, in a binary tree.

    Args:
        statistics: the statistics of the rows; those that are not reduced are left out.
        tiles: arrays with a row for each block of trials.
        owner: owner of each row, ascending, shape (rows,); the rows of one owner are in the order of its blocks.

    Returns:
        Arrays with a row for each owner.
    """
    merged = [s for s in statistics if s.is_reduced]
    state = {name: tiles[name] for s in merged for name in s.names}
    while True:
        place = np.arange(owner.size) - np.searchsorted(owner, owner)
        even = place % 2 == 0
        left = np.flatnonzero(even[:-1] & (owner[1:] == owner[:-1]))
        if not left.size:
            return state
        a, b = ({name: v[i] for name, v in state.items()} for i in (left, left + 1))
        even_rows = np.flatnonzero(even)
        at = np.searchsorted(even_rows, left)
        both = {name: v for s in merged for name, v in s.merge(a, b).items()}
        state = {name: v[even_rows] for name, v in state.items()}
        for name, v in both.items():
            state[name][at] = v
        owner = owner[even_rows]
