"""The types that mark what a fine-tuning trains. Selecting what trains is a filter on them, never on names."""

from __future__ import annotations

from flax import nnx

__all__ = ["TRAINABLE", "AdapterConstant", "AdapterParam", "AlphaParam", "OrthogonalParam", "TrainedParam"]


class AdapterParam(nnx.Param):
    """A weight that an adapter adds and trains."""


class OrthogonalParam(AdapterParam):
    """A weight of an adapter whose columns stay orthonormal (see `stiefel`)."""


class TrainedParam(nnx.Param):
    """A weight of the model itself that trains along: the head, or all of them in full fine-tuning."""


class AlphaParam(nnx.Param):
    """A vector α that scales the rows of frozen weights. It moves by its own updater (see `alpha_updater`)."""


class AdapterConstant(nnx.Variable):
    """State of an adapter that is not trained."""


TRAINABLE = nnx.Any(AdapterParam, TrainedParam)
"""The filter of what an optimizer trains, without α."""
