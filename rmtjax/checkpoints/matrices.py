"""The weight matrices of a checkpoint, by their names in the file and in memory, read one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmtjax._errors import InputError, shown
from rmtjax.checkpoints.names import Conversion, InMemory, Names, plain_name
from rmtjax.checkpoints.tensors import TensorFile

__all__ = ["NO_MATRIX", "Checkpoint", "Matrix", "names_no_matrix", "natural_order", "read_config"]

_STACK = re.compile(
    r"(^|\.)((\w*experts?|moe|block_sparse_moe)(\.|$)|(\w*gate_up_proj|\w*gate_proj|\w*up_proj|\w*down_proj|input_linear|output_linear)(\.weight)?$)"
)
"""A tensor of three dimensions with such a name is one matrix for each expert."""
_NO_STACK = re.compile(r"conv")
_TRANSPOSED_STACKS = ("gpt_oss", "openai_privacy_filter", "aria", "aria_text", "llama4", "llama4_text")
"""Types of models of transformers that keep experts as (experts, inputs, outputs)."""
_ADDS_TRANSPOSED = ("gpt_oss", "openai_privacy_filter", "aria", "aria_text")
"""The types among these that have `is_transposed` in memory, so that PEFT adds the transpose of BA."""
_NO_MATRIX = re.compile(
    r"(^|\.)(\w*A_log|\w*A_logs|\w*bias_table|pos_embed\w*|position_embeddings?|\w*position_bias|\w*_tokens?|\w*query_tokens|"
    r"\w*latents?|\w*_bias|\w*time_decay|\w*time_faaaa|absolute_pos_embed)$"
)
"""Two-dimensional parameters that are not linear maps: Mamba's state matrix, tables of positions, learned tokens."""


NO_MATRIX = "a parameter that is no matrix of a layer"
_FACTORS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
"""The two factors of PyTorch's weight norm, W = g v/‖v‖, under its older and its newer names."""


def names_no_matrix(name: str) -> bool:
    """Return whether a two-dimensional parameter is not a linear map by its name, such as `A_log` or a table of positions."""
    return _NO_MATRIX.search(name) is not None


class Matrix(NamedTuple):
    """One weight matrix of a checkpoint.

    Attributes:
        name: of the tensor, with the expert's number if the tensor is a stack: `mlp.experts.down_proj[3]`.
        tensor: name of the tensor in the file.
        expert: index of the matrix in the stack; None if the tensor is the matrix.
        stored: the shape in the file, which may be (outputs, inputs) or (inputs, outputs).
    """

    name: str
    tensor: str
    expert: int | None
    stored: tuple[int, int]


def natural_order(name: str) -> list:
    """Return a sort key for names that puts layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def read_config(folder: Path, argument: str) -> dict[str, Any] | None:
    """Return the content of a model's `config.json`; None without one.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{argument} = {folder}: config.json cannot be read ({shown(str(error))})") from None
    if not isinstance(config, dict):
        raise InputError(f"{argument} = {folder}: config.json cannot be read (must be an object)")
    return config


class Checkpoint:
    """The weight matrices of a file or folder.

    Args:
        tensors: its tensors.
        config: the content of its `config.json`; None if there is none.
        class_name: the class that an adapter was made for, where that is known.

    Attributes:
        tensors, config: as given.
        conversion: the names of its tensors in memory.
        matrices: every matrix by its name.
        skipped: tensors that are not matrices, or cannot be read, and why.
        quantized: the quantised weights among these, by the name that the plain weight would have.
        memory: name in memory → the matrices of the file that it is made of, each with its place.
    """

    def __init__(self, tensors: TensorFile, config: Mapping[str, Any] | None, class_name: str | None = None) -> None:
        self.tensors, self.config = tensors, config
        self.conversion = Conversion(config, class_name)
        self.matrices: dict[str, Matrix] = {}
        self.skipped: dict[str, str] = {}
        self.quantized = {f"{module}.weight": reason for module, reason in tensors.quantized_modules.items()}
        self.memory: dict[str, list[tuple[Matrix, InMemory]]] = {}
        for name in tensors:
            for matrix in self._matrices_of(name):
                if matrix.name in self.matrices:
                    raise InputError(
                        f"{tensors.folder}: holds a tensor {matrix.name} and a stack with a matrix of the same name"
                    )
                self.matrices[matrix.name] = matrix
                place = self.conversion.memory(plain_name(name))
                for memory_name in place.split or (place.name,):
                    self.memory.setdefault(memory_name, []).append((matrix, place))

    def _matrices_of(self, name: str) -> list[Matrix]:
        shape, reason = self.tensors.shape(name), self.tensors.unreadable(name)
        if name in self.tensors.quantized:
            self.skipped[name] = reason
            return []
        if len(shape) < 2:
            if len(shape) == 1 and shape[0] == 0 and name.endswith("weight"):
                self.skipped[name] = reason
            return []
        if reason is not None:
            if not self.tensors.dtype(name).startswith(("I", "U", "BOOL")) or name.endswith("weight"):
                self.skipped[name] = reason
            return []
        plain = plain_name(name)
        if len(shape) == 2 and names_no_matrix(plain):
            self.skipped[name] = NO_MATRIX
            return []
        if self._is_factor(name):
            self.skipped[name] = (
                "a factor of a weight that is normalised (weight norm), which is not multiplied out here"
            )
            return []
        if len(shape) == 2:
            return [Matrix(name, name, None, shape)]
        if len(shape) == 3 and _STACK.search(plain) and not _NO_STACK.search(plain):
            return [Matrix(f"{name}[{i}]", name, i, shape[1:]) for i in range(shape[0])]
        self.skipped[name] = f"of {len(shape)} dimensions"
        return []

    def _is_factor(self, name: str) -> bool:
        for factors in _FACTORS:
            for factor in factors:
                if name.endswith(factor):
                    return all(f"{name.removesuffix(factor)}{sibling}" in self.tensors for sibling in factors)
        return False

    def names(self, name: str) -> Names:
        """Return the names of a weight of this model."""
        plain = plain_name(name)
        return Names(name, plain, self.conversion.memory(plain).name)

    def read(self, name: str) -> np.ndarray:
        """Return a matrix as it is stored, in float32."""
        matrix = self.matrices[name]
        return self.tensors.part_on_host(matrix.tensor, matrix.expert)

    def stack_is_transposed(self, tensor: str) -> bool:
        """Return whether a stack of experts' matrices is kept as (experts, inputs, outputs).

        The shapes of the same experts' up and down projections decide, since one's output is the other's input; if they fit
        both ways, or one is missing, the model's type decides.
        """
        for up, down in (("gate_up_proj", "down_proj"), ("up_proj", "down_proj"), ("input_linear", "output_linear")):
            names = [re.sub(rf"(^|\.)({up}|{down})(?=\.weight$|$)", rf"\g<1>{which}", tensor) for which in (up, down)]
            if tensor not in names or any(name not in self.tensors for name in names):
                continue
            (a, b), (c, e) = (self.tensors.shape(name)[-2:] for name in names)
            plain = a in (e, 2 * e) and b == c
            turned = b in (c, 2 * c) and a == e
            if plain != turned:
                return turned
        return self._is_one_of(_TRANSPOSED_STACKS)

    @property
    def adds_transposed(self) -> bool:
        """Whether PEFT adds the transpose of BA to a stack of experts' matrices if shapes do not decide."""
        return self._is_one_of(_ADDS_TRANSPOSED)

    def _is_one_of(self, kinds: tuple[str, ...]) -> bool:
        parts = [self.config, *self.config.values()] if self.config is not None else []
        return any(isinstance(part, dict) and part.get("model_type") in kinds for part in parts)
