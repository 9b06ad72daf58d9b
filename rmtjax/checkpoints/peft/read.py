"""Reading and checking of an adapter's files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, listed, shown
from rmtjax.checkpoints.peft.config import (
    ADAPTER_WEIGHTS,
    ALPHA,
    DORA_EMBEDDING,
    SHARED,
    lora_alpha_of,
    matching_pattern,
    read_adapter_config,
)
from rmtjax.checkpoints.peft.file import PeftFile, PeftLayer
from rmtjax.checkpoints.peft.keys import LayerKeys, parameters_of, sort_keys
from rmtjax.checkpoints.tensors import TensorFile

__all__ = ["finite_tensor", "read_peft"]


def read_peft(folder: str | os.PathLike, *, matrices_only: bool = False) -> PeftFile:
    """Return the content of a PEFT folder (LoRA, rsLoRA, DoRA; and α, where `alpha.safetensors` is) for any model.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        matrices_only: whether only updates of weight matrices matter. Biases are then ignored, and so is whether layers
            keep their weight transposed; layers that are not matrices or not finite are listed in `unread` without an error.

    Raises:
        InputError: if a file is missing or of another kind, its tensors do not fit one another, or it holds several adapters.
    """
    folder = Path(folder)
    config = read_adapter_config(folder, matrices_only)
    tensors = TensorFile(folder, "adapter", ADAPTER_WEIGHTS)
    layer_keys, own_keys, remarks = sort_keys(folder, config, tensors, matrices_only)
    if not layer_keys:
        raise InputError(
            f"adapter = {folder}: {ADAPTER_WEIGHTS} holds no LoRA weights; is it an adapter for another base?"
        )
    alphas = TensorFile(folder, "adapter", ALPHA) if (folder / ALPHA).is_file() else {}
    scaled = {name.removesuffix(".alpha"): name for name in alphas}
    dora, stabilised = bool(config.get("use_dora")), bool(config.get("use_rslora"))
    needed = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
    targets = config.get("target_parameters") or []
    layers, unread, paths = {}, {}, []
    for name in dict.fromkeys([*layer_keys, *scaled]):
        keys = layer_keys[name].keys if name in layer_keys else {}
        if matrices_only:
            reason = _no_matrices(tensors, keys.values())
            if reason is None and name in layer_keys and layer_keys[name].embedding and dora:
                reason = DORA_EMBEDDING
            if reason is None and name in scaled:
                reason = _no_matrices(alphas, [scaled[name]])
            if reason is not None:
                unread[name] = reason
                paths.append(layer_keys[name].module if name in layer_keys else name)
                continue
        value, scale, module, parameters = {}, 1.0, name, ()
        if name in layer_keys:
            module = layer_keys[name].module
            if set(keys) != needed:
                absent = listed(sorted(needed ^ set(keys)))
                raise InputError(
                    f"adapter = {folder}: {name}: {absent} is missing or does not belong to use_dora = {dora}"
                )
            value = {kind: finite_tensor(folder, tensors, key) for kind, key in keys.items()}
            a, b = value["lora_A"], value["lora_B"]
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
                raise InputError(
                    f"adapter = {folder}: {name}: A and B have shapes {list(a.shape)} and {list(b.shape)}; must be"
                    " [r, inputs] and [outputs, r]"
                )
            parameters = parameters_of(module, targets)
            named = len(parameters) == 1 and parameters[0] not in targets  # with its module
            path = f"{module}.{parameters[0]}" if named else module
            scale = lora_alpha_of(folder, config, path)
            _check_wrapper(folder, config, layer_keys[name], path, scale)
            paths += [module, *(f"{module}.{parameter}" for parameter in parameters)]
        magnitude = value["lora_magnitude_vector"].reshape(-1) if dora and value else None
        alpha = finite_tensor(folder, alphas, scaled[name]) if name in scaled else None
        a, b = value.get("lora_A"), value.get("lora_B")
        times, embedding = (layer_keys[name].times, layer_keys[name].embedding) if name in layer_keys else (1, False)
        layers[name] = PeftLayer(a, b, scale, stabilised, magnitude, alpha, module, parameters, times, embedding)
    for option in ("alpha_pattern", "rank_pattern"):
        patterns = config.get(option) or {}
        unused = [text for text in patterns if not any(matching_pattern(path, {text: 0}) for path in paths)]
        if unused:
            remarks.append(f"{option} has {listed(unused)}, which matches no layer of the adapter and has no effect")
    if twice := [name for name, layer in layers.items() if layer.times > 1]:
        remarks.append(f"PEFT adds the update of {listed(twice)} twice, forward and merged, and so it is counted")
    shared = _shared(folder, alphas, layers) if scaled and not matrices_only else []
    keys_of = {name: layer.keys for name, layer in layer_keys.items()}
    return PeftFile(folder, config, layers, keys_of, own_keys, unread, shared, remarks, tensors)


def _check_wrapper(folder: Path, config: Mapping[str, Any], layer: LayerKeys, path: str, scale: float) -> None:
    """Raise InputError if a layer's scale depends on whether a wrapper's name inside its own was present in training."""
    if layer.wrapped is None:
        return
    wrapper = layer.wrapped.split(" ")[0]
    first = path.split(".")
    possible = {lora_alpha_of(folder, config, ".".join([*first[:i], wrapper, *first[i:]])) for i in range(len(first))}
    if possible != {scale}:
        raise InputError(
            f"adapter = {folder}: {path} contains the name of the wrapper {layer.wrapped}, and alpha_pattern matches it only"
            " with that name or only without; rename the keys as PEFT saves them without the wrapper"
        )


def _no_matrices(tensors: TensorFile, keys: Iterable[str]) -> str | None:
    """Return the reason why the tensors under these keys cannot update a matrix; None if they can."""
    for key in keys:
        if reason := tensors.unreadable(key):
            return f"{reason}, in the adapter"
        if (sides := len(tensors.shape(key))) > 2:
            return f"of {sides} dimensions in the adapter"
        if not np.isfinite(tensors.on_host(key)).all():
            return "NaN or infinite in the adapter"
    return None


def _shared(folder: Path, alphas: TensorFile, layers: Mapping[str, PeftLayer]) -> list[list[str]]:
    """Return the groups of layers that share one α, all with equal values."""
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
