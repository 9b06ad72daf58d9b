"""Statistics of a stream of samples: computed per block on the device, merged on the host.

A statistic is three pure functions: `block` reduces the samples of one block, ``x`` of shape (trials, outputs, points)
with a mask of the trials that count; `merge` adds two disjoint sets of trials (Chan, Golub & LeVeque 1979); `names` are
the arrays it keeps. Blocks are merged as a binary tree in their order, so the result knows nothing of how the work was
divided. `Samples` alone reduce nothing and are never merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Comoments", "Histogram", "Moments", "Samples", "merge_tiles"]

State = Mapping[str, np.ndarray]


def _masked(x, live, fill):
    return jnp.where(live[:, None, None], x, fill)


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations, least and largest value of each output at each point."""

    names = ("count", "mean", "m2", "min", "max")

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Reduce a block."""
        count = jnp.sum(live).astype(x.dtype)
        mean = jnp.sum(_masked(x, live, 0.0), 0) / count
        return {
            "count": count,
            "mean": mean,
            "m2": jnp.sum(_masked((x - mean) ** 2, live, 0.0), 0),
            "min": jnp.min(_masked(x, live, jnp.inf), 0),
            "max": jnp.max(_masked(x, live, -jnp.inf), 0),
        }

    @staticmethod
    def merge(a: State, b: State) -> dict[str, np.ndarray]:
        """Add two sets of blocks."""
        na, nb = a["count"][..., None, None], b["count"][..., None, None]
        total = np.maximum(na + nb, 1.0)
        step = b["mean"] - a["mean"]
        return {
            "count": a["count"] + b["count"],
            "mean": a["mean"] + step * (nb / total),
            "m2": a["m2"] + b["m2"] + step**2 * (na * nb / total),
            "min": np.minimum(a["min"], b["min"]),
            "max": np.maximum(a["max"], b["max"]),
        }


@dataclass(frozen=True)
class Comoments:
    """Sums of products of deviations between outputs, at each point."""

    names = ("count", "mean", "comoment")

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Reduce a block."""
        mean = jnp.sum(_masked(x, live, 0.0), 0) / jnp.sum(live)
        centred = _masked(x - mean, live, 0.0)
        return {"comoment": jnp.einsum("tip,tjp->ijp", centred, centred)}

    @staticmethod
    def merge(a: State, b: State) -> dict[str, np.ndarray]:
        """Add two sets of blocks; the means and counts of `Moments` must be in the states."""
        na, nb = a["count"][..., None, None, None], b["count"][..., None, None, None]
        step = b["mean"] - a["mean"]
        outer = step[..., :, None, :] * step[..., None, :, :]
        return {"comoment": a["comoment"] + b["comoment"] + outer * (na * nb / np.maximum(na + nb, 1.0))}


@dataclass(frozen=True)
class Histogram:
    """Counts of each output at each point between edges, and below and above them.

    Attributes:
        edges: increasing, shape (bins + 1,); a bin holds its left edge.
    """

    edges: tuple[float, ...]
    names = ("histogram",)

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Reduce a block."""
        bins = len(self.edges) + 1
        place = jnp.searchsorted(jnp.asarray(self.edges), x, side="right")
        flat = x.shape[1] * x.shape[2]
        place = place.reshape(x.shape[0], flat) + bins * jnp.arange(flat)
        weight = jnp.broadcast_to(live[:, None], place.shape).astype(jnp.int64)
        counts = jnp.zeros(flat * bins, jnp.int64).at[place.ravel()].add(weight.ravel())
        return {"histogram": counts.reshape(x.shape[1], x.shape[2], bins)}

    @staticmethod
    def merge(a: State, b: State) -> dict[str, np.ndarray]:
        """Add two sets of blocks."""
        return {"histogram": a["histogram"] + b["histogram"]}


@dataclass(frozen=True)
class Samples:
    """The samples themselves, 0 where a trial does not count. Nothing is reduced: keep only what fits."""

    names = ("samples",)

    def block(self, x: jax.Array, live: jax.Array) -> dict[str, jax.Array]:
        """Keep a block."""
        return {"samples": _masked(x, live, 0.0)}


Statistic = Moments | Comoments | Histogram | Samples


def merge_tiles(statistics: tuple[Statistic, ...], tiles: State, owner: np.ndarray) -> dict[str, np.ndarray]:
    """Merge the rows that belong together, neighbours first, in a binary tree.

    Args:
        statistics: what the rows hold; `Samples` are left out.
        tiles: arrays with a row for each block of trials.
        owner: whom each row belongs to, ascending, shape (rows,); the rows of one stand in the order of its blocks.

    Returns:
        Arrays with a row for each owner.
    """
    merged = [s for s in statistics if not isinstance(s, Samples)]
    state = {name: tiles[name] for s in merged for name in s.names}
    while True:
        place = np.arange(owner.size) - np.searchsorted(owner, owner)
        even = place % 2 == 0
        left = np.flatnonzero(even[:-1] & (owner[1:] == owner[:-1]))
        if not left.size:
            return state
        a, b = ({name: v[i] for name, v in state.items()} for i in (left, left + 1))
        kept = np.flatnonzero(even)
        at = np.searchsorted(kept, left)
        both = {name: v for s in merged for name, v in s.merge(a, b).items()}
        state = {name: v[kept] for name, v in state.items()}
        for name, v in both.items():
            state[name][at] = v
        owner = owner[kept]
