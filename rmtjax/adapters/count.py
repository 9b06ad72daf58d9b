"""How many numbers of a model train."""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import nnx

from rmtjax.adapters.params import TRAINABLE, AlphaParam

__all__ = ["Count", "count_parameters"]


class Count(NamedTuple):
    """Numbers of parameters: those that train, α among them, and all."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} trainable of {self.total:,}"


def count_parameters(model: nnx.Module) -> Count:
    """Return how many numbers of a model train, and how many there are; shared ones count once, constants not at all."""

    def size(state) -> int:
        return sum(x.size for x in jax.tree.leaves(state))

    return Count(size(nnx.state(model, nnx.Any(TRAINABLE, AlphaParam))), size(nnx.state(model, nnx.Param)))
