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
from rmtjax.checkpoints.names import plain_name, without_wrappers
from rmtjax.checkpoints.tensors import TensorFile

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "ALPHA",
    "DORA_EMBEDDING",
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
DORA_EMBEDDING = "an embedding with DoRA, which is not read here"
_STARTS = ("gaussian", "eva", "orthogonal", "mica")  # other named ones subtract what they start with from the base
_LARGEST = float(np.finfo(np.float32).max)
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B")
_REGISTERED = ("in_proj_weight", "weight", "gate_up_proj", "gate_proj", "w1", "v1", "w3", "up_proj", "down_proj", "w2")
"""Parameters in the order in which modules of transformers register them; PEFT wraps them in that order."""


@dataclasses.dataclass(frozen=True)
class PeftLayer:
    """One layer's update as its file has it, W + s B A with W (outputs, inputs), magnitudes and α where there are any.

    Attributes:
        A, B: shapes (r, inputs) and (outputs, r); None where only α is. Of a stack of E experts, (E r, inputs) and
            (outputs, r E): see `expert`.
        scale: PEFT's `lora_alpha`, a.
        stabilised: whether s is a/√r, not a/r.
        magnitude: of DoRA, shape (outputs,).
        alpha: shape (outputs,).
        module: dotted path of the module that is updated.
        parameters: which of its parameters it may be that is updated; empty if the module is a layer and it is its weight.
        times: how often PEFT adds the update: twice to the `out_proj` of `nn.MultiheadAttention`, forward and when it merges
            (https://github.com/huggingface/peft/pull/3774).
        embedding: whether it is of an embedding, to whose table (rows, outputs) PEFT adds the transposed of BA.
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
        """Whether BA is added to what a layer multiplies by, (outputs, inputs), not to a tensor as it lies in memory."""
        return not self.parameters and not self.embedding

    @property
    def strength(self) -> float:
        """The factor s, as often as it is added."""
        rank = 1 if self.A is None else self.A.shape[0]
        return self.times * self.scale / (math.sqrt(rank) if self.stabilised else rank)

    def expert(self, index: int, count: int) -> PeftLayer:
        """Return the update of one of `count` experts: PEFT keeps the A of all below one another, the B interleaved."""
        a = self.A.reshape(count, -1, self.A.shape[-1])[index]
        b = self.B.reshape(self.B.shape[0], -1, count)[:, :, index]
        return dataclasses.replace(self, A=a, B=b)


@dataclasses.dataclass(frozen=True)
class PeftFile:
    """A folder of PEFT, read.

    Attributes:
        folder: where it is.
        config: its `adapter_config.json`.
        layers: updates by the layers' dotted paths, without what wrappers put into them.
        keys: of each layer, the tensors it is made of: lora_A, lora_B, lora_magnitude_vector → key.
        own: weights of the model that the file holds besides (`modules_to_save`): name → key.
        unread: layers that are none of these, and why.
        shared: paths of layers that share one α, group by group; not told of `matrices_only`.
        remarks: what a user should know, such as patterns of the config that match no layer.
        tensors: all of them.
    """

    folder: Path
    config: Mapping[str, Any]
    layers: Mapping[str, PeftLayer]
    keys: Mapping[str, Mapping[str, str]]
    own: Mapping[str, str]
    unread: Mapping[str, str]
    shared: Sequence[Sequence[str]]
    remarks: Sequence[str]
    tensors: TensorFile

    def with_parameter(self, name: str, parameter: str) -> PeftLayer:
        """Return a layer's update where it is known which parameter of its module it is of, which PEFT's patterns can name."""
        layer = self.layers[name]
        scale = _scale(self.folder, self.config, f"{layer.module}.{parameter}")
        return dataclasses.replace(layer, scale=scale, parameters=(parameter,))


def _config(folder: Path, matrices_only: bool = False) -> dict[str, Any]:
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
        raise InputError(f"adapter = {folder}: peft_type = {shown(kind)} is not read here, must be LORA; {merged}")
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
                f"adapter = {folder}: {name} = {shown(values[name])} is not read here, must be {value!r}; {merged}"
            )
    for name in ("use_rslora", "use_dora"):
        if not isinstance(values.get(name) or False, bool):
            raise InputError(f"adapter = {folder}: {name} = {shown(values[name])}: must be true or false")
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = values.get(name) or {}
        if not isinstance(patterns, dict):
            raise InputError(
                f"adapter = {folder}: {name} = {shown(patterns)}: must be an object of patterns and numbers"
            )
        for text in patterns:
            pattern(text, f"adapter = {folder}: {name} has")
    targets = values.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InputError(f"adapter = {folder}: target_parameters = {shown(targets)}: must be a list of names")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _STARTS:
        raise InputError(
            f"adapter = {folder}: init_lora_weights = {shown(start)} changes the base as well, which is not read here; let"
            " PEFT convert it to LoRA (path_initial_model_for_weight_conversion of its save_pretrained), or merge it into"
            " its base and give the folder of the merged model"
        )
    return values


def _matching(path: str, patterns: Mapping[str, Any] | None) -> str | None:
    """Return the first of PEFT's patterns, regular expressions for the end of a path, that matches; None if none does."""
    return next((text for text in patterns or {} if re.match(rf"(.*\.)?({text})$", path)), None)


def _scale(folder: Path, config: Mapping[str, Any], path: str) -> float:
    """Return PEFT's `lora_alpha` of a layer, by its own entry of `alpha_pattern` if there is one."""
    patterns = config.get("alpha_pattern") or {}
    text = _matching(path, patterns)
    scale = config.get("lora_alpha", 8) if text is None else patterns[text]
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= _LARGEST:
        raise InputError(f"adapter = {folder}: lora_alpha = {shown(scale)}: must be a number of single precision")
    return scale


@dataclasses.dataclass
class _Found:
    """The tensors of one layer: its parts → key, and its name where wrappers left theirs in it."""

    module: str
    times: int
    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    wrapped: str | None = None
    embedding: bool = False


def _sorted_keys(
    folder: Path, config: Mapping[str, Any], tensors: TensorFile, matrices_only: bool
) -> tuple[dict[str, _Found], dict[str, str], list[str]]:
    """Return the tensors of updates by layer, those that are the model's own, and remarks.

    A key may still bear the name of its adapter (`lora_A.default.weight`). One adapter is read: that without a name, or the
    only one.
    """
    parts: dict[str, dict[tuple[str, str], list[str]]] = {}
    own: dict[str, dict[str, str]] = {}
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
            own.setdefault(plain_name(name), {})[saved[1] if saved else ""] = key
    names = {adapter for keys in parts.values() for _, adapter in keys}
    if len(names) > 1 and "" not in names:
        raise InputError(
            f"adapter = {folder}: holds the adapters {listed(sorted(names))} in one file; save one alone with PEFT's"
            " save_pretrained(selected_adapters=[...])"
        )
    layers: dict[str, _Found] = {}
    ignored: set[str] = set()
    for layer, keys in parts.items():
        of_layer = {adapter for _, adapter in keys}
        chosen = "" if "" in of_layer else "default" if "default" in of_layer else min(of_layer)
        if "" not in of_layer and chosen != "default" and len(names - {""}) > 1:
            raise InputError(
                f"adapter = {folder}: {layer} has the adapters {listed(sorted(of_layer))}, which of them is meant?"
            )
        ignored |= of_layer - {chosen}
        depth = len(re.search(r"(\.base_layer)*$", layer)[0]) // len(".base_layer")
        module = layer[: len(layer) - depth * len(".base_layer")].replace(".base_layer.", ".")
        name = module + ".base_layer" * depth
        twice = layer.endswith(".base_layer.out_proj") and _adds_twice(config)
        found = layers.setdefault(name, _Found(module, 2 if twice else 1, wrapped=wrapped.get(layer)))
        for (part, adapter), same in keys.items():
            if adapter == chosen:
                if part in found.keys or len(same) > 1:
                    raise InputError(f"adapter = {folder}: {name}: {part} is there twice, as {same[-1]}")
                found.keys[part] = same[0]
    for found in layers.values():  # biases do not touch the matrices
        for part in [part for part in found.keys if part.endswith(".bias")]:
            if not matrices_only:
                own[f"{found.module}.{part}"] = {"": found.keys[part]}
            del found.keys[part]
        if matrices_only and "lora_embedding_A" in found.keys:
            found.embedding = True
            found.keys = {part.replace("_embedding", ""): key for part, key in found.keys.items()}
    chosen_own = {}
    for name, keys in own.items():
        if matrices_only and name.endswith(".bias"):
            continue
        chosen_own[name] = keys.get("", keys.get("default", next(iter(keys.values()))))
    remarks = (
        [f"the adapter's file also holds the adapters {listed(sorted(ignored))}, which are not read"] if ignored else []
    )
    return layers, chosen_own, remarks


def _adds_twice(config: Mapping[str, Any]) -> bool:
    """Return whether the PEFT that wrote an adapter adds the update of an attention's `out_proj` twice: all that are known do."""
    version = re.match(r"(\d+)\.(\d+)\.(\d+)", str(config.get("peft_version") or "0.0.0"))
    return version is None or tuple(map(int, version.groups())) <= (0, 21, 2)


def _parameters(module: str, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the parameters of a module that an update may be of, by the config's `target_parameters`, in PEFT's order.

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


def read_peft(folder: str | os.PathLike, *, matrices_only: bool = False) -> PeftFile:
    """Read a PEFT folder (LoRA, rsLoRA, DoRA; and α, where `alpha.safetensors` is) for whatever model it is.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        matrices_only: for whoever asks what happens to weight matrices alone. Biases do not matter then, nor whether layers
            keep their weight transposed; layers that are no matrices or not finite are told of in `unread`, and no error.

    Raises:
        InputError: if a file is missing or of another kind, its tensors do not fit one another, or it holds several adapters.
    """
    folder = Path(folder)
    config = _config(folder, matrices_only)
    tensors = TensorFile(folder, "adapter", ADAPTER_WEIGHTS)
    found, own, remarks = _sorted_keys(folder, config, tensors, matrices_only)
    if not found:
        raise InputError(
            f"adapter = {folder}: {ADAPTER_WEIGHTS} holds no LoRA weights; is it an adapter for another base?"
        )
    alphas = TensorFile(folder, "adapter", ALPHA) if (folder / ALPHA).is_file() else {}
    scaled = {name.removesuffix(".alpha"): name for name in alphas}
    dora, stabilised = bool(config.get("use_dora")), bool(config.get("use_rslora"))
    needed = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
    targets = config.get("target_parameters") or []
    layers, unread, paths = {}, {}, []
    for name in dict.fromkeys([*found, *scaled]):
        keys = found[name].keys if name in found else {}
        if matrices_only:
            reason = _no_matrices(tensors, keys.values())
            if reason is None and name in found and found[name].embedding and dora:
                reason = DORA_EMBEDDING
            if reason is None and name in scaled:
                reason = _no_matrices(alphas, [scaled[name]])
            if reason is not None:
                unread[name] = reason
                paths.append(found[name].module if name in found else name)
                continue
        value, scale, module, parameters = {}, 1.0, name, ()
        if name in found:
            module = found[name].module
            if set(keys) != needed:
                absent = listed(sorted(needed ^ set(keys)))
                raise InputError(
                    f"adapter = {folder}: {name}: {absent} is missing or not called for by use_dora = {dora}"
                )
            value = {kind: finite_tensor(folder, tensors, key) for kind, key in keys.items()}
            a, b = value["lora_A"], value["lora_B"]
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
                raise InputError(
                    f"adapter = {folder}: {name}: A and B have shapes {list(a.shape)} and {list(b.shape)}, must be"
                    " [r, inputs] and [outputs, r]"
                )
            parameters = _parameters(module, targets)
            named = len(parameters) == 1 and parameters[0] not in targets  # with its module
            path = f"{module}.{parameters[0]}" if named else module
            scale = _scale(folder, config, path)
            _check_wrapper(folder, config, found[name], path, scale)
            paths += [module, *(f"{module}.{parameter}" for parameter in parameters)]
        magnitude = value["lora_magnitude_vector"].reshape(-1) if dora and value else None
        alpha = finite_tensor(folder, alphas, scaled[name]) if name in scaled else None
        a, b = value.get("lora_A"), value.get("lora_B")
        times, embedding = (found[name].times, found[name].embedding) if name in found else (1, False)
        layers[name] = PeftLayer(a, b, scale, stabilised, magnitude, alpha, module, parameters, times, embedding)
    for option in ("alpha_pattern", "rank_pattern"):
        patterns = config.get(option) or {}
        unused = [text for text in patterns if not any(_matching(path, {text: 0}) for path in paths)]
        if unused:
            remarks.append(
                f"{option} has {listed(unused)}, which matches no layer of the adapter and is without effect"
            )
    if twice := [name for name, layer in layers.items() if layer.times > 1]:
        remarks.append(f"PEFT adds the update of {listed(twice)} twice, forward and merged, and so it is counted")
    shared = _shared(folder, alphas, layers) if scaled and not matrices_only else []
    keys_of = {name: layer.keys for name, layer in found.items()}
    return PeftFile(folder, config, layers, keys_of, own, unread, shared, remarks, tensors)


def _check_wrapper(folder: Path, config: Mapping[str, Any], layer: _Found, path: str, scale: float) -> None:
    """Refuse a layer whose scale depends on whether a wrapper's name, which stands inside its own, was there in training."""
    if layer.wrapped is None:
        return
    wrapper = layer.wrapped.split(" ")[0]
    first = path.split(".")
    possible = {_scale(folder, config, ".".join([*first[:i], wrapper, *first[i:]])) for i in range(len(first))}
    if possible != {scale}:
        raise InputError(
            f"adapter = {folder}: {path} bears the name of the wrapper {layer.wrapped}, and alpha_pattern matches it with it"
            " or without it but not both; rename the keys as PEFT saves them without the wrapper"
        )


def _no_matrices(tensors: TensorFile, keys: Iterable[str]) -> str | None:
    """Return why the tensors under these keys cannot update a matrix; None if they can."""
    for key in keys:
        if reason := tensors.unreadable(key):
            return f"{reason}, in the adapter"
        if (sides := len(tensors.shape(key))) > 2:
            return f"of {sides} dimensions in the adapter"
        if not np.isfinite(tensors.on_host(key)).all():
            return "NaN or infinite in the adapter"
    return None


def _shared(folder: Path, alphas: TensorFile, layers: Mapping[str, PeftLayer]) -> list[list[str]]:
    """Return the groups of layers that share one α, each with the same numbers."""
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
