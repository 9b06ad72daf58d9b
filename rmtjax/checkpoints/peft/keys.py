"""Assignment of the tensors in an adapter's file to layers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtjax._errors import InputError, listed
from rmtjax.checkpoints.names import plain_name, without_wrappers
from rmtjax.checkpoints.tensors import TensorFile

__all__ = ["LayerKeys", "parameters_of", "sort_keys"]

_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B")
_REGISTERED = ("in_proj_weight", "weight", "gate_up_proj", "gate_proj", "w1", "v1", "w3", "up_proj", "down_proj", "w2")
"""Parameters in the order in which the modules of transformers register them, which is the order in which PEFT wraps them."""


@dataclasses.dataclass
class LayerKeys:
    """The tensors of one layer: part → key, and its name with the wrappers that left theirs in it."""

    module: str
    times: int
    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    wrapped: str | None = None
    embedding: bool = False


def sort_keys(
    folder: Path, config: Mapping[str, Any], tensors: TensorFile, matrices_only: bool
) -> tuple[dict[str, LayerKeys], dict[str, str], list[str]]:
    """Return the tensors of updates by layer, the model's own weights, and remarks.

    A key may contain the name of its adapter (`lora_A.default.weight`). One adapter is read: the one without a name, or the
    only one.
    """
    parts: dict[str, dict[tuple[str, str], list[str]]] = {}
    own_keys: dict[str, dict[str, str]] = {}
    wrapped = {}
    for key in tensors:
        name, inside = without_wrappers(key)
        match = re.fullmatch(rf"(.+?)\.({'|'.join(_PARTS)})(?:\.(?!weight$|bias$)([^.]+))?(\.weight|\.bias)?", name)
        if match:
            layer, part, adapter, end = match[1], match[2], match[3] or "", match[4]
            if end == ".bias":
                part += ".bias"
            parts.setdefault(layer, {}).setdefault((part, adapter), []).append(key)
            if inside:
                wrapped[layer] = f"{inside[0]} (in {key})"
        elif ".original_module." not in name:
            saved = re.search(r"\.modules_to_save\.([^.]+)\.", name)
            own_keys.setdefault(plain_name(name), {})[saved[1] if saved else ""] = key
    names = {adapter for keys in parts.values() for _, adapter in keys}
    if len(names) > 1 and "" not in names:
        raise InputError(
            f"adapter = {folder}: holds several adapters, {listed(sorted(names))}; save a single one with PEFT's"
            " save_pretrained(selected_adapters=[...])"
        )
    layers: dict[str, LayerKeys] = {}
    ignored: set[str] = set()
    for layer, keys in parts.items():
        of_layer = {adapter for _, adapter in keys}
        chosen = "" if "" in of_layer else "default" if "default" in of_layer else min(of_layer)
        if "" not in of_layer and chosen != "default" and len(names - {""}) > 1:
            raise InputError(
                f"adapter = {folder}: {layer} has several adapters, {listed(sorted(of_layer))}; must have one"
            )
        ignored |= of_layer - {chosen}
        depth = len(re.search(r"(\.base_layer)*$", layer)[0]) // len(".base_layer")
        module = layer[: len(layer) - depth * len(".base_layer")].replace(".base_layer.", ".")
        name = module + ".base_layer" * depth
        twice = layer.endswith(".base_layer.out_proj") and _adds_twice(config)
        layer_keys = layers.setdefault(name, LayerKeys(module, 2 if twice else 1, wrapped=wrapped.get(layer)))
        for (part, adapter), same in keys.items():
            if adapter == chosen:
                if part in layer_keys.keys or len(same) > 1:
                    raise InputError(f"adapter = {folder}: {name}: has {part} twice, again as {same[-1]}")
                layer_keys.keys[part] = same[0]
    for layer_keys in layers.values():  # biases do not touch the matrices
        for part in [part for part in layer_keys.keys if part.endswith(".bias")]:
            if not matrices_only:
                own_keys[f"{layer_keys.module}.{part}"] = {"": layer_keys.keys[part]}
            del layer_keys.keys[part]
        if matrices_only and "lora_embedding_A" in layer_keys.keys:
            layer_keys.embedding = True
            layer_keys.keys = {part.replace("_embedding", ""): key for part, key in layer_keys.keys.items()}
    chosen_own = {}
    for name, keys in own_keys.items():
        if matrices_only and name.endswith(".bias"):
            continue
        chosen_own[name] = keys.get("", keys.get("default", next(iter(keys.values()))))
    remarks = (
        [f"the adapter's file also holds the adapters {listed(sorted(ignored))}, which are not read"] if ignored else []
    )
    return layers, chosen_own, remarks


def _adds_twice(config: Mapping[str, Any]) -> bool:
    """Return whether the PEFT that wrote an adapter adds the update of an attention's `out_proj` twice; all known versions do."""
    version = re.match(r"(\d+)\.(\d+)\.(\d+)", str(config.get("peft_version") or "0.0.0"))
    return version is None or tuple(map(int, version.groups())) <= (0, 21, 2)


def parameters_of(module: str, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the parameters of a module that an update may apply to, by the config's `target_parameters`, in PEFT's order.

    PEFT wraps a module once for each of its parameters, in the order in which they were registered; the first is innermost. A
    target that names no module, such as `down_proj`, may be one of any module that has such a parameter.
    """
    names = set()
    for target in targets:
        owner, _, parameter = target.rpartition(".")
        if owner == "" or module == owner or module.endswith(f".{owner}"):
            names.add(parameter)
    order = sorted(names, key=lambda name: (_REGISTERED.index(name) if name in _REGISTERED else len(_REGISTERED), name))
    return tuple(order)
