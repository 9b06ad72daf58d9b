"""Numbers of trained parameters and of all parameters of a model."""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import nnx

from rmtjax.adapters.params import TRAINABLE, AlphaParam

__all__ = ["Count", "count_parameters"]


class Count(NamedTuple):
    """Numbers of parameters: trained ones, α among them, and all."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} trainable of {self.total:,}"


def count_parameters(model: nnx.Module) -> Count:
    """Return the number of trained parameters and of all; shared ones count once, constants not at all."""

    def size(state) -> int:
        return sum(x.size for x in jax.tree.leaves(state))

    return Count(size(nnx.state(model, nnx.Any(TRAINABLE, AlphaParam))), size(nnx.state(model, nnx.Param)))
