"""Detection of weights that a file stores as (inputs, outputs), the transpose of a PyTorch layer's weight."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rmtjax.checkpoints.matrices import Checkpoint
from rmtjax.checkpoints.peft import PeftLayer
from rmtjax.checkpoints.shares import Share

__all__ = ["is_named_conv1d", "kept_transposed"]

_CONV1D = ("gpt2", "openai-gpt", "decision_transformer", "imagegpt")
"""Architectures of transformers that store the transposed weight, (inputs, outputs), in dense layers of these names:"""
_CONV1D_LAYER = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")


def is_named_conv1d(name: str) -> bool:
    """Return whether a weight has a name that some architectures use for transposed weights."""
    return _CONV1D_LAYER.search(name) is not None


def kept_transposed(
    base: Checkpoint,
    names: Sequence[str],
    shares: Mapping[str, Sequence[Share]],
    layers: Mapping[str, PeftLayer],
    fan_in_fan_out: bool,
) -> frozenset[str]:
    """Return the weights that the file of a base stores as (inputs, outputs).

    The shape of a weight's update or the length of its bias decides; for a square weight its neighbours do, if they all agree.
    Otherwise the config's architectures decide, and without a config the adapter's own statement. For a stack of experts the
    shapes of its projections decide.

    Args:
        base: the checkpoint.
        names: the weights in question.
        shares, layers: an adapter's effect on them.
        fan_in_fan_out: whether the adapter says that layers are stored so.
    """
    neighbours: dict[tuple[str, bool], set[bool]] = {}
    for name in base.matrices:
        if (fits := _by_fit(base, name, shares, layers)) is not None:
            neighbours.setdefault(_neighbourhood(name), set()).add(fits)
    kinds = _architectures(base.config)
    transposed = set()
    for name in names:
        matrix = base.matrices[name]
        if matrix.expert is not None:
            is_transposed = base.stack_is_transposed(matrix.tensor)
        elif (is_transposed := _by_fit(base, name, shares, layers)) is None and (
            is_named_conv1d(name) or fan_in_fan_out
        ):
            near = neighbours.get(_neighbourhood(name), set())
            by_config = fan_in_fan_out if kinds is None else is_named_conv1d(name) and not kinds.isdisjoint(_CONV1D)
            is_transposed = True in near if len(near) == 1 else by_config
        if is_transposed:
            transposed.add(name)
    return frozenset(transposed)


def _by_fit(
    base: Checkpoint, name: str, shares: Mapping[str, Sequence[Share]], layers: Mapping[str, PeftLayer]
) -> bool | None:
    """Return whether the file stores the transpose of a weight, by the shape of its update or the length of its bias.

    Neither decides for a square weight; then the result is None.
    """
    matrix = base.matrices[name]
    n, m = matrix.stored
    if n == m or matrix.expert is not None:
        return None
    of_weight = shares.get(name, [])
    layer = layers[of_weight[0].layer] if len(of_weight) == 1 else None
    if layer is not None and layer.A is not None and layer.of_layer:
        return of_weight[0].turned
    bias = matrix.tensor.removesuffix("weight") + "bias"
    return {(n,): False, (m,): True}.get(base.tensors.shape(bias)) if bias in base.tensors else None


def _neighbourhood(name: str) -> tuple[str, bool]:
    """Return the path to a weight's stack of layers, all before the first number, and `is_named_conv1d` of the weight."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0], is_named_conv1d(name)


def _architectures(config: Mapping[str, Any] | None) -> set[str] | None:
    """Return the model types of a model and its parts, by its config; None if there is no config or it does not say."""
    parts = [] if config is None else [config, *(part for part in config.values() if isinstance(part, dict))]
    kinds = {kind for part in parts if isinstance(kind := part.get("model_type"), str)}
    return kinds or None
