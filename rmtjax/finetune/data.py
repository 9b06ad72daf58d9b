"""Batches of token sequences in pieces, in an order that depends only on seed and step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Float, Int, Num

from rmtjax._checks import number
from rmtjax._errors import InputError

Array = np.ndarray | jax.Array

__all__ = ["Batch", "Batches", "Layout", "Sequences", "choose_lengths", "split_off"]


class Batch(NamedTuple):
    """A batch in pieces.

    Attributes:
        ids: tokens.
        mask: 1 for a token, 0 for padding.
        types: token types.
        labels: class, or value of a regression.
        weight: 1 for an example, 0 for one that fills up a piece.
        number: of the example within the batch, for its dropout masks.
        bucket: for each piece, 0 if it is empty, or 1 + which of the layout's lengths it is computed at.
    """

    ids: Int[Array, "pieces size length"]
    mask: Int[Array, "pieces size length"]
    types: Int[Array, "pieces size length"]
    labels: Num[Array, "pieces size"]
    weight: Float[Array, "pieces size"]
    number: Int[Array, "pieces size"]
    bucket: Int[Array, " pieces"]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Tokenised examples.

    Attributes:
        ids: tokens of each.
        types: token types of each.
        labels: int32 classes or float32 values.
    """

    ids: Sequence[np.ndarray]
    types: Sequence[np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each example."""
        return np.array([len(x) for x in self.ids])

    def take(self, which: np.ndarray) -> Sequences:
        """Return the examples of these numbers."""
        return Sequences([self.ids[i] for i in which], [self.types[i] for i in which], self.labels[which])


def choose_lengths(lengths: np.ndarray, most: int = 4, step: int = 16, longest: int | None = None) -> tuple[int, ...]:
    """Return the lengths that sequences are padded to, chosen for the least padding in total.

    Args:
        lengths: of the sequences.
        most: largest number of lengths; each is compiled.
        step: all are multiples of it, but for `longest`.
        longest: largest length that the model accepts.
    """
    top = math.ceil(lengths.max() / step) * step
    grid = np.arange(step, top + step, step)
    if longest is not None:
        grid = np.unique(np.minimum(grid, longest))
    counts = np.histogram(lengths, bins=np.concatenate([[0], grid]) + 0.5)[0].cumsum()
    # best[j] after k rounds: the fewest tokens if k lengths hold all sequences up to grid[j], the last length being grid[j].
    best, back = grid * counts, [[()] * len(grid)]
    for _ in range(most - 1):
        cost = best[:, None] + grid[None, :] * (counts[None, :] - counts[:, None])
        cost = np.where(np.arange(len(grid))[:, None] < np.arange(len(grid))[None, :], cost, np.iinfo(np.int64).max)
        before, shorter = cost.argmin(0), np.minimum(best, cost.min(0))
        is_unchanged = shorter == best
        back.append([back[-1][j] if is_unchanged[j] else (*back[-1][i], grid[i]) for j, i in enumerate(before)])
        best = shorter
    return tuple(int(x) for x in (*back[-1][-1], grid[-1]))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a batch in pieces.

    Attributes:
        lengths: lengths that pieces are padded to, in increasing order.
        size: sequences in a piece.
        devices: over which examples are dealt out, alike in length.
        pad: token of padding.
    """

    lengths: tuple[int, ...]
    size: int
    devices: int
    pad: int

    def pieces(self, count: int) -> int:
        """Return the largest number of pieces that a number of examples needs, on all devices."""
        return math.ceil(count / (self.size * self.devices)) * self.devices

    def arrange(self, data: Sequences, which: np.ndarray, pieces: int | None = None) -> Batch:
        """Return the examples `which` as one batch: dealt out to the devices, and packed into pieces there, longest first.

        Args:
            data: the examples.
            which: indices of those in the batch.
            pieces: number of pieces, at least what they need, so that batches of several sizes have one shape.
        """
        rows = self.pieces(len(which)) if pieces is None else pieces
        lengths = np.array([len(data.ids[i]) for i in which])
        order = np.argsort(-lengths, kind="stable")
        shape = (rows, self.size, self.lengths[-1])
        ids = np.full(shape, self.pad, np.int32)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        labels = np.zeros(shape[:2], data.labels.dtype)
        weight, number = np.zeros(shape[:2], np.float32), np.zeros(shape[:2], np.int32)
        bucket = np.zeros(rows, np.int32)
        for device in range(self.devices):
            mine, row = order[device :: self.devices], device * (rows // self.devices)
            while len(mine):
                held = int(np.searchsorted(self.lengths, lengths[mine[0]]))
                piece, mine = mine[: self.size], mine[self.size :]
                bucket[row] = held + 1
                for column, k in enumerate(piece):
                    i, n = which[k], lengths[k]
                    ids[row, column, :n], mask[row, column, :n], types[row, column, :n] = data.ids[i], 1, data.types[i]
                    labels[row, column], weight[row, column], number[row, column] = data.labels[i], 1, k
                row += 1
        return Batch(ids, mask, types, labels, weight, number, bucket)


def split_off(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the examples that train the adapters, and of those that train α (Algorithm 1's `val_split`).

    A share of 1 gives all to both; below, the two are disjoint.

    Raises:
        InputError: if the share is outside (0, 1] or leaves one of them empty.
    """
    number("val_split", share, 0, 1, open_low=True)
    everything = np.arange(count)
    if share == 1:
        return everything, everything
    alpha_count = round(share * count)
    if alpha_count in (0, count):
        raise InputError(
            f"val_split = {share}: leaves none of the {count} examples for {'α' if alpha_count == 0 else 'the adapters'}"
        )
    order = np.random.default_rng([seed, 1]).permutation(count)
    return np.sort(order[alpha_count:]), np.sort(order[:alpha_count])


class Batches:
    """The batches of a run. Batch `step` is available at any time, so a run can resume at any step.

    Args:
        data: the training set.
        layout: of batches.
        batch_size: examples in a batch; the last of an epoch may be smaller.
        epochs: passes over the data.
        seed: of the order, which is new in each epoch.
        alpha: examples in a batch for α, steps between two, and the share of the data that is kept for it; or None.
    """

    def __init__(
        self,
        data: Sequences,
        layout: Layout,
        batch_size: int,
        epochs: int,
        seed: int,
        alpha: tuple[int, int, float] | None = None,
    ) -> None:
        self._data, self._layout, self._alpha = data, layout, alpha
        own, of_alpha = (np.arange(len(data)), None) if alpha is None else split_off(len(data), alpha[2], seed)
        self._order = grain.MapDataset.source(own).seed(seed).shuffle().batch(batch_size, drop_remainder=False)
        if alpha is not None:
            size = min(alpha[0], len(of_alpha))
            self._fresh = grain.MapDataset.source(of_alpha).seed(seed + 1).shuffle().repeat().batch(size)
            self._idle = Batch(*map(np.zeros_like, self._fresh_batch(1)))  # of the right shape, but never read
        self._pieces = layout.pieces(min(batch_size, len(own)))
        self.steps_per_epoch = len(self._order)
        self.steps = self.steps_per_epoch * epochs

    def __getitem__(self, step: int) -> tuple[Batch, Batch | None]:
        """Return the batch of a step, counted from 0, and the one for α if α moves in that step (zeros otherwise)."""
        batch = self._layout.arrange(self._data, np.asarray(self._order[step]), self._pieces)
        if self._alpha is None:
            return batch, None
        turn, waits = divmod(step + 1, self._alpha[1])
        return batch, self._idle if waits else self._fresh_batch(turn)

    def _fresh_batch(self, turn: int) -> Batch:
        return self._layout.arrange(self._data, np.asarray(self._fresh[turn - 1]))

    def iterate(self, start: int, stop: int) -> Iterator[tuple[Batch, Batch | None]]:
        """Return the batches of steps start…stop−1, prepared ahead by a thread."""
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(grain.MapDataset.range(start, stop).map(self.__getitem__).to_iter_dataset(ahead))
