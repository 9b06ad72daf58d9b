"""An adapter as it is stored in PEFT's files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Array

from rmtjax.checkpoints.peft.config import lora_alpha_of
from rmtjax.checkpoints.tensors import TensorFile

__all__ = ["PeftFile", "PeftLayer"]


@dataclasses.dataclass(frozen=True)
class PeftLayer:
    """One layer's update as stored in the file, W + s B A with W (outputs, inputs), with magnitudes and α if there are any.

    Attributes:
        A, B: shapes (r, inputs) and (outputs, r); None where only α is. Of a stack of E experts, (E r, inputs) and
            (outputs, r E): see `expert`.
        scale: PEFT's `lora_alpha`, a.
        stabilised: whether s is a/√r, not a/r.
        magnitude: of DoRA, shape (outputs,).
        alpha: shape (outputs,).
        module: dotted path of the module that is updated.
        parameters: candidates for the updated parameter of the module; empty if the module is a layer with a weight.
        times: number of times that PEFT adds the update: twice to the `out_proj` of `nn.MultiheadAttention`, in the forward
            pass and in merging (https://github.com/huggingface/peft/pull/3774).
        embedding: whether it is of an embedding, to whose table (rows, outputs) PEFT adds the transpose of BA.
    """

    A: Array | None
    B: Array | None
    scale: float
    stabilised: bool
    magnitude: Array | None
    alpha: Array | None
    module: str = ""
    parameters: tuple[str, ...] = ()
    times: int = 1
    embedding: bool = False

    @property
    def of_layer(self) -> bool:
        """Whether BA is added to a layer's weight, (outputs, inputs), not to a tensor as it is stored in memory."""
        return not self.parameters and not self.embedding

    @property
    def strength(self) -> float:
        """The factor s, multiplied by the number of times that the update is added."""
        rank = 1 if self.A is None else self.A.shape[0]
        return self.times * self.scale / (math.sqrt(rank) if self.stabilised else rank)

    def expert(self, index: int, count: int) -> PeftLayer:
        """Return the update of one of `count` experts: PEFT stacks the A of all by rows and interleaves the columns of B."""
        a = self.A.reshape(count, -1, self.A.shape[-1])[index]
        b = self.B.reshape(self.B.shape[0], -1, count)[:, :, index]
        return dataclasses.replace(self, A=a, B=b)


@dataclasses.dataclass(frozen=True)
class PeftFile:
    """The content of a PEFT folder.

    Attributes:
        folder: its path.
        config: its `adapter_config.json`.
        layers: updates by the layers' dotted paths, without what wrappers put into them.
        keys: the tensors of each layer: lora_A, lora_B, lora_magnitude_vector → key.
        whole: weights of the model that the file also holds (`modules_to_save`): name → key.
        unread: layers that are none of these, and why.
        shared: paths of layers that share one α, group by group; empty with `matrices_only`.
        remarks: remarks for the user, for instance on patterns of the config that match no layer.
        tensors: all of them.
    """

    folder: Path
    config: Mapping[str, Any]
    layers: Mapping[str, PeftLayer]
    keys: Mapping[str, Mapping[str, str]]
    whole: Mapping[str, str]
    unread: Mapping[str, str]
    shared: Sequence[Sequence[str]]
    remarks: Sequence[str]
    tensors: TensorFile

    def with_parameter(self, name: str, parameter: str) -> PeftLayer:
        """Return a layer's update, given the parameter of its module that it updates, which PEFT's patterns can name."""
        layer = self.layers[name]
        scale = lora_alpha_of(self.folder, self.config, f"{layer.module}.{parameter}")
        return dataclasses.replace(layer, scale=scale, parameters=(parameter,))
