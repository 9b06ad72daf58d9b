"""Variable types that mark the trained parameters. Filters on these types select what trains, never names."""

from __future__ import annotations

from flax import nnx

__all__ = ["TRAINABLE", "AdapterConstant", "AdapterParam", "AlphaParam", "OrthogonalParam", "TrainedParam"]


class AdapterParam(nnx.Param):
    """A weight that an adapter adds and trains."""


class OrthogonalParam(AdapterParam):
    """A weight of an adapter whose columns stay orthonormal (see `stiefel`)."""


class TrainedParam(nnx.Param):
    """A weight of the model itself that is trained too: the head, or all of them in full fine-tuning."""


class AlphaParam(nnx.Param):
    """A vector α that scales the rows of frozen weights. It moves by its own updater (see `alpha_updater`)."""


class AdapterConstant(nnx.Variable):
    """State of an adapter that is not trained."""


TRAINABLE = nnx.Any(AdapterParam, TrainedParam)
"""The filter of the variables that an optimizer trains, without α."""
