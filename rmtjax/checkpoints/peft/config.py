"""The configuration of a PEFT adapter, and the names of PEFT's files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rmtjax._errors import InputError, pattern, shown

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "ALPHA",
    "DORA_EMBEDDING",
    "MERGED_ALPHA",
    "PREFIX",
    "SHARED",
    "lora_alpha_of",
    "matching_pattern",
    "read_adapter_config",
]

PREFIX = "base_model.model."
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ALPHA = "adapter_config.json", "adapter_model.safetensors", "alpha.safetensors"
MERGED_ALPHA = "merged_alpha.safetensors"
"""The file beside a base's weights with the α that they have been scaled by."""
SHARED = "shared"
DORA_EMBEDDING = "an embedding with DoRA, which is not supported"
_STARTS = (
    "gaussian",
    "eva",
    "orthogonal",
    "mica",
)  # every other start subtracts the adapter's initial update from the base
_LARGEST = float(np.finfo(np.float32).max)


def read_adapter_config(folder: Path, matrices_only: bool = False) -> dict[str, Any]:
    try:
        values = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"adapter = {folder}: holds no {ADAPTER_CONFIG}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"adapter = {folder}: {ADAPTER_CONFIG} cannot be read ({shown(str(error))})") from None
    merged = (
        "merge it into its base with PEFT (merge_and_unload, save_pretrained) and give the folder of the merged model"
    )
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else values
        raise InputError(f"adapter = {folder}: peft_type = {shown(kind)} is not supported; must be LORA, or {merged}")
    allowed = {
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_bias": False,
        "use_qalora": False,
        "layer_replication": None,
        "alora_invocation_tokens": None,
        "arrow_config": None,
        "kasa_config": None,
        "monteclora_config": None,
        "use_bdlora": None,
    }
    if matrices_only:
        allowed = {
            name: value for name, value in allowed.items() if name not in ("bias", "fan_in_fan_out", "lora_bias")
        }
    for name, value in allowed.items():
        if (values.get(name) or value) != value:
            raise InputError(
                f"adapter = {folder}: {name} = {shown(values[name])} is not supported; must be {value!r}, or {merged}"
            )
    for name in ("use_rslora", "use_dora"):
        if not isinstance(values.get(name) or False, bool):
            raise InputError(f"adapter = {folder}: {name} = {shown(values[name])}: must be true or false")
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = values.get(name) or {}
        if not isinstance(patterns, dict):
            raise InputError(f"adapter = {folder}: {name} = {shown(patterns)}: must map patterns to numbers")
        for text in patterns:
            pattern(text, f"adapter = {folder}: {name} has")
    targets = values.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InputError(f"adapter = {folder}: target_parameters = {shown(targets)}: must be a list of names")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _STARTS:
        raise InputError(
            f"adapter = {folder}: init_lora_weights = {shown(start)} also changes the base, which is not supported; let"
            " PEFT convert it to LoRA (path_initial_model_for_weight_conversion of its save_pretrained), or merge it into"
            " its base and give the folder of the merged model"
        )
    return values


def matching_pattern(path: str, patterns: Mapping[str, Any] | None) -> str | None:
    """Return the first of PEFT's patterns, regular expressions for the end of a path, that matches; None if none does."""
    return next((text for text in patterns or {} if re.match(rf"(.*\.)?({text})$", path)), None)


def lora_alpha_of(folder: Path, config: Mapping[str, Any], path: str) -> float:
    """Return PEFT's `lora_alpha` of a layer, by its own entry of `alpha_pattern` if there is one."""
    patterns = config.get("alpha_pattern") or {}
    text = matching_pattern(path, patterns)
    scale = config.get("lora_alpha", 8) if text is None else patterns[text]
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= _LARGEST:
        raise InputError(f"adapter = {folder}: lora_alpha = {shown(scale)}: must be a number in single precision")
    return scale
