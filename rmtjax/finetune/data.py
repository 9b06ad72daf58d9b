"""Token sequences to batches in pieces, in an order that depends on nothing but seed and step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from rmtjax._errors import InputError
from rmtjax.finetune.step import Batch

__all__ = ["Batches", "Layout", "Sequences", "choose_lengths", "split_off"]


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
        """Tokens in each."""
        return np.array([len(x) for x in self.ids])

    def take(self, which: np.ndarray) -> Sequences:
        """Some of them."""
        return Sequences([self.ids[i] for i in which], [self.types[i] for i in which], self.labels[which])


def choose_lengths(lengths: np.ndarray, most: int = 4, step: int = 16, longest: int | None = None) -> tuple[int, ...]:
    """The few lengths that sequences are padded to: those with the least padding in all.

    Args:
        lengths: of the sequences.
        most: how many lengths may be used; each is compiled.
        step: all are multiples of it, but for `longest`.
        longest: what the model can take.
    """
    top = math.ceil(lengths.max() / step) * step
    grid = np.arange(step, top + step, step)
    if longest is not None:
        grid = np.unique(np.minimum(grid, longest))
    counts = np.histogram(lengths, bins=np.concatenate([[0], grid]) + 0.5)[0].cumsum()
    # best[j] after k rounds: the fewest tokens when all sequences up to grid[j] are held by k lengths, the last grid[j].
    best, back = grid * counts, [[()] * len(grid)]
    for _ in range(most - 1):
        cost = best[:, None] + grid[None, :] * (counts[None, :] - counts[:, None])
        cost = np.where(np.arange(len(grid))[:, None] < np.arange(len(grid))[None, :], cost, np.iinfo(np.int64).max)
        before, shorter = cost.argmin(0), np.minimum(best, cost.min(0))
        back.append(
            [
                back[-1][i] if b == s else (*back[-1][p], grid[p])
                for i, (p, b, s) in enumerate(zip(before, best, shorter))
            ]
        )
        best = shorter
    return tuple(int(x) for x in (*back[-1][-1], grid[-1]))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a batch is laid out in pieces.

    Attributes:
        lengths: what pieces are padded to.
        size: sequences in a piece.
        devices: pieces are dealt out to so many devices, alike in length.
        pad: token of padding.
    """

    lengths: tuple[int, ...]
    size: int
    devices: int
    pad: int

    def arrange(self, data: Sequences, which: np.ndarray) -> Batch:
        """The examples `which` as one batch: sorted by length, in pieces, dealt out to the devices."""
        rows = math.ceil(len(which) / (self.size * self.devices)) * self.devices
        lengths = np.array([len(data.ids[i]) for i in which])
        order = np.argsort(lengths, kind="stable")
        filled = np.full(rows * self.size, -1)
        filled[len(filled) - len(order) :] = order
        # Piece k of the sorted ones goes to device k mod devices, so that each gets short and long ones.
        filled = filled.reshape(rows // self.devices, self.devices, self.size).swapaxes(0, 1).reshape(rows, self.size)
        longest = self.lengths[-1]
        ids = np.full((rows, self.size, longest), self.pad, np.int32)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        labels = np.zeros((rows, self.size), data.labels.dtype)
        weight, number = np.zeros((rows, self.size), np.float32), np.zeros((rows, self.size), np.int32)
        for place in zip(*np.nonzero(filled >= 0), strict=True):
            k = filled[place]
            i = which[k]
            n = len(data.ids[i])
            ids[place][:n], mask[place][:n], types[place][:n] = data.ids[i], 1, data.types[i]
            labels[place], weight[place], number[place] = data.labels[i], 1, k
        held = mask.sum(-1).max(-1)
        return Batch(ids, mask, types, labels, weight, number, np.searchsorted(self.lengths, held).astype(np.int32))


def split_off(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the examples that adapters train on, and those that α moves on (Algorithm 1's `val_split`).

    A share of 1 gives all to both; below, the two are disjoint.

    Raises:
        InputError: if the share is outside (0, 1] or leaves one of them empty.
    """
    if not 0 < share <= 1:
        raise InputError(f"val_split = {share}: must be in (0, 1]")
    everything = np.arange(count)
    if share == 1:
        return everything, everything
    kept = round(share * count)
    if kept in (0, count):
        raise InputError(f"val_split = {share}: leaves {'α' if kept == 0 else 'the adapters'} none of {count} examples")
    order = np.random.default_rng([seed, 1]).permutation(count)
    return np.sort(order[kept:]), np.sort(order[:kept])


class Batches:
    """The batches of a run. Batch `step` can be asked for at any time, so a run goes on wherever it stopped.

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
        own, kept = (np.arange(len(data)), None) if alpha is None else split_off(len(data), alpha[2], seed)
        self._order = grain.MapDataset.source(own).seed(seed).shuffle().batch(batch_size, drop_remainder=False)
        if alpha is not None:
            size = min(alpha[0], len(kept))
            self._fresh = grain.MapDataset.source(kept).seed(seed + 1).shuffle().repeat().batch(size)
            self._idle = Batch(*map(np.zeros_like, self._fresh_batch(1)))  # of the right shape; nobody looks at it
        self._rows = math.ceil(batch_size / (layout.size * layout.devices)) * layout.devices
        self.steps_per_epoch = len(self._order)
        self.steps = self.steps_per_epoch * epochs

    def __getitem__(self, step: int) -> tuple[Batch, Batch | None]:
        """The batch of a step, counted from 0, and the one for α if it moves in that step (zeros if not)."""
        batch = self._filled(self._layout.arrange(self._data, np.asarray(self._order[step])))
        if self._alpha is None:
            return batch, None
        turn, waits = divmod(step + 1, self._alpha[1])
        return batch, self._idle if waits else self._fresh_batch(turn)

    def _fresh_batch(self, turn: int) -> Batch:
        return self._layout.arrange(self._data, np.asarray(self._fresh[turn - 1]))

    def _filled(self, batch: Batch) -> Batch:
        """The last batch of an epoch with empty pieces up to the size of the others: one program serves all."""
        devices = self._layout.devices
        lacking = (self._rows - len(batch.bucket)) // devices
        if not lacking:
            return batch

        def fill(x):
            x = x.reshape(devices, -1, *x.shape[1:])
            empty = np.zeros((devices, lacking, *x.shape[2:]), x.dtype)
            return np.concatenate([x, empty], axis=1).reshape(-1, *x.shape[2:])

        return Batch(*map(fill, batch))

    def iterate(self, start: int, stop: int) -> Iterator[tuple[Batch, Batch | None]]:
        """The batches of steps start…stop−1, made ahead by a thread of their own."""
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(grain.MapDataset.range(start, stop).map(self.__getitem__).to_iter_dataset(ahead))
