"""The files of PEFT, read: `adapter_config.json` and `adapter_model.safetensors`, and α where there is any."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtjax._errors import InputError, listed, pattern, shown
from rmtjax.checkpoints.tensors import FLOATS, TensorFile

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "ALPHA",
    "MERGED_ALPHA",
    "PREFIX",
    "SHARED",
    "PeftFile",
    "PeftLayer",
    "finite_tensor",
    "read_peft",
]

PREFIX = "base_model.model."
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ALPHA = "adapter_config.json", "adapter_model.safetensors", "alpha.safetensors"
MERGED_ALPHA = "merged_alpha.safetensors"
"""Beside a base's weights: the α that they have been scaled by."""
SHARED = "shared"
_STARTS = ("gaussian", "eva", "orthogonal", "mica")  # other named ones subtract what they start with from the base
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class PeftLayer:
    """One layer's update as its file has it, W + s B A with W (outputs, inputs), magnitudes and α where there are any.

    Attributes:
        A, B: shapes (r, inputs) and (outputs, r); None where only α is.
        scale: PEFT's `lora_alpha`, a.
        stabilised: whether s is a/√r, not a/r.
        magnitude: of DoRA, shape (outputs,).
        alpha: shape (outputs,).
    """

    A: Array | None
    B: Array | None
    scale: float
    stabilised: bool
    magnitude: Array | None
    alpha: Array | None

    @property
    def strength(self) -> float:
        """The factor s."""
        rank = 1 if self.A is None else self.A.shape[0]
        return self.scale / (math.sqrt(rank) if self.stabilised else rank)


@dataclasses.dataclass(frozen=True)
class PeftFile:
    """A folder of PEFT, read.

    Attributes:
        folder: where it is.
        config: its `adapter_config.json`.
        layers: updates by the layers' dotted paths.
        keys: of each layer, the tensors it is made of: lora_A, lora_B, lora_magnitude_vector → key.
        own: weights of the model that the file holds besides (`modules_to_save`): name → key.
        unread: layers that are none of these, and why.
        shared: paths of layers that share one α, group by group; not told of `matrices_only`.
        tensors: all of them.
    """

    folder: Path
    config: Mapping[str, Any]
    layers: Mapping[str, PeftLayer]
    keys: Mapping[str, Mapping[str, str]]
    own: Mapping[str, str]
    unread: Mapping[str, str]
    shared: Sequence[Sequence[str]]
    tensors: TensorFile


def _config(folder: Path, matrices_only: bool = False) -> dict[str, Any]:
    try:
        values = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"adapter = {folder}: holds no {ADAPTER_CONFIG}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"adapter = {folder}: {ADAPTER_CONFIG} cannot be read ({shown(str(error))})") from None
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else values
        raise InputError(f"adapter = {folder}: peft_type = {shown(kind)} is not read here, must be LORA")
    allowed = {
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_bias": False,
        "use_qalora": False,
        "layer_replication": None,
        "alora_invocation_tokens": None,
        "arrow_config": None,
        "kasa_config": None,
        "use_bdlora": None,
    }
    if matrices_only:
        allowed = {
            name: value for name, value in allowed.items() if name not in ("bias", "fan_in_fan_out", "lora_bias")
        }
    for name, value in allowed.items():
        if (values.get(name) or value) != value:
            raise InputError(f"adapter = {folder}: {name} = {shown(values[name])} is not read here, must be {value!r}")
    for name in ("use_rslora", "use_dora"):
        if not isinstance(values.get(name) or False, bool):
            raise InputError(f"adapter = {folder}: {name} = {shown(values[name])}: must be true or false")
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise InputError(
            f"adapter = {folder}: alpha_pattern = {shown(patterns)}: must be an object of patterns and numbers"
        )
    for text in patterns:
        pattern(text, f"adapter = {folder}: alpha_pattern has")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _STARTS:
        raise InputError(
            f"adapter = {folder}: init_lora_weights = {shown(start)} changes the base as well, which is not read here; let"
            " PEFT convert it to LoRA (path_initial_model_for_weight_conversion of its save_pretrained)"
        )
    return values


def _for(path: str, patterns: Mapping[str, Any] | None, default: Any) -> Any:
    """A layer's own entry among PEFT's patterns: regular expressions for the end of its path."""
    for text, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({text})$", path):
            return value
    return default


def read_peft(folder: str | os.PathLike, *, matrices_only: bool = False) -> PeftFile:
    """Read a PEFT folder (LoRA, rsLoRA, DoRA; and α, where `alpha.safetensors` is) for whatever model it is.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        matrices_only: for whoever asks what happens to weight matrices alone. Biases do not matter then, nor whether layers
            keep their weight transposed; layers that are no matrices or not finite are told of in `unread`, and no error.

    Raises:
        InputError: if a file is missing or of another kind, or its tensors do not fit one another.
    """
    folder = Path(folder)
    config = _config(folder, matrices_only)
    tensors = TensorFile(folder, "adapter", ADAPTER_WEIGHTS)
    kinds = "lora_A|lora_B|lora_magnitude_vector" + "|lora_embedding_[AB]" * matrices_only
    parts: dict[str, dict[str, str]] = {}
    own: dict[str, str] = {}
    for key in tensors:
        name = key.removeprefix(PREFIX)
        if matrices_only and name.endswith(".bias"):
            continue
        found = re.fullmatch(rf"(.+)\.({kinds})(\.weight)?", name)
        if found:
            parts.setdefault(found[1], {})[found[2]] = key
        else:
            own[name.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")] = key
    if not parts:
        raise InputError(
            f"adapter = {folder}: {ADAPTER_WEIGHTS} holds no LoRA weights; is it an adapter for another base?"
        )
    alphas = TensorFile(folder, "adapter", ALPHA) if (folder / ALPHA).is_file() else {}
    scaled = {name.removesuffix(".alpha"): name for name in alphas}
    dora, stabilised = bool(config.get("use_dora")), bool(config.get("use_rslora"))
    needed = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
    layers, unread = {}, {}
    for name in dict.fromkeys([*parts, *scaled]):
        if matrices_only:
            reason = _no_matrices(tensors, parts.get(name, {}).values())
            if any(part.startswith("lora_embedding") for part in parts.get(name, {})):
                reason = "an embedding"
            if reason is None and name in scaled:
                reason = _no_matrices(alphas, [scaled[name]])
            if reason is not None:
                unread[name] = reason
                continue
        value, scale = {}, 1.0
        if name in parts:
            if set(parts[name]) != needed:
                absent = listed(sorted(needed ^ set(parts[name])))
                raise InputError(
                    f"adapter = {folder}: {name}: {absent} is missing or not called for by use_dora = {dora}"
                )
            value = {kind: finite_tensor(folder, tensors, key) for kind, key in parts[name].items()}
            a, b = value["lora_A"], value["lora_B"]
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
                raise InputError(
                    f"adapter = {folder}: {name}: A and B have shapes {list(a.shape)} and {list(b.shape)}, must be"
                    " [r, inputs] and [outputs, r]"
                )
            scale = _for(name, config.get("alpha_pattern"), config.get("lora_alpha", 8))
            if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= _LARGEST:
                raise InputError(
                    f"adapter = {folder}: lora_alpha = {shown(scale)}: must be a number of single precision"
                )
        magnitude = value["lora_magnitude_vector"].reshape(-1) if dora and value else None
        alpha = finite_tensor(folder, alphas, scaled[name]) if name in scaled else None
        layers[name] = PeftLayer(value.get("lora_A"), value.get("lora_B"), scale, stabilised, magnitude, alpha)
    shared = _shared(folder, alphas, layers) if scaled and not matrices_only else []
    return PeftFile(folder, config, layers, parts, own, unread, shared, tensors)


def _no_matrices(tensors: TensorFile, keys: Iterable[str]) -> str | None:
    """Why the tensors under these keys cannot update a matrix; None if they can."""
    for key in keys:
        sides, kind = len(tensors.shape(key)), tensors.dtype(key)
        if sides > 2:
            return f"of {sides} dimensions in the adapter"
        if kind not in FLOATS:
            return f"of type {kind} in the adapter"
        if not np.isfinite(tensors.on_host(key)).all():
            return "NaN or infinite in the adapter"
    return None


def _shared(folder: Path, alphas: TensorFile, layers: Mapping[str, PeftLayer]) -> list[list[str]]:
    """The groups of layers that share one α, each with the same numbers."""
    text = alphas.metadata.get(SHARED, "[]")
    try:
        groups = [[layers[path].alpha for path in group] for group in json.loads(text)]
        same = all(a is not None and np.array_equal(group[0], a) for group in groups for a in group)
    except (json.JSONDecodeError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"adapter = {folder}: {ALPHA}: shared = {shown(text)}: must list layers with the same α")
    return json.loads(text)


def finite_tensor(folder: Path, tensors: Mapping[str, jax.Array], name: str) -> jax.Array:
    value = tensors[name].astype(jnp.float32)
    if not bool(jnp.isfinite(value).all()):
        raise InputError(f"adapter = {folder}: {name} holds numbers that are not finite")
    return value
