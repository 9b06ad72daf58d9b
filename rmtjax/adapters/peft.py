"""Adapters from and to the folders of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

PEFT has no α. `save_peft` writes it in two ways: as `alpha.safetensors`, one vector (outputs,) for each scaled layer under the
layer's dotted path plus ".alpha", which `load_peft` reads; and, where asked, merged into a copy of the base in the folder
`base`, on which PEFT with the adapter alone gives the same answers; α lies beside that, too, as `merged_alpha.safetensors`, so
that nobody scales it twice. Layers that share one α are listed in the file's metadata
under `shared`, a JSON list of lists of paths.
"""

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
from flax import nnx
from jaxtyping import Array

from rmtjax._errors import InputError, pattern, shown
from rmtjax._files import prepare_folder, write_bytes, write_json
from rmtjax._random import key_of
from rmtjax.adapters.apply import check_plain, dense_layers, exchange, merged
from rmtjax.adapters.linear import AdaptedLinear, adapted_layers, matrix_of
from rmtjax.adapters.updates import Dense, DoRA, LoRA
from rmtjax.adapters.variables import AdapterParam, AlphaParam, TrainedParam
from rmtjax.models import SequenceClassifier, save_model
from rmtjax.models.checkpoint import FLOATS, TensorFile, listed, weight_name

__all__ = ["ALPHA", "MERGED_ALPHA", "PeftFile", "PeftLayer", "load_peft", "read_peft", "save_peft"]

_PREFIX = "base_model.model."
_STARTS = ("gaussian", "eva", "orthogonal", "mica")  # other named ones subtract what they start with from the base
_CONFIG, _TENSORS, ALPHA = "adapter_config.json", "adapter_model.safetensors", "alpha.safetensors"
MERGED_ALPHA = "merged_alpha.safetensors"
"""Beside a base's weights: the α that they have been scaled by."""
_SHARED = "shared"
_LARGEST = float(np.finfo(np.float32).max)


def _host(value: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(value, np.float32))


def save_peft(
    model: nnx.Module, folder: str | os.PathLike, *, base: str | os.PathLike = "", merge_alpha: bool = False
) -> Path:
    """Write the adapters of a model, and its own weights that trained along, as PEFT does.

    LoRA, rsLoRA and DoRA are written as they are; orthogonal and spectral updates as the LoRA (a = r) that they equal.

    Args:
        model: with adapters.
        folder: to write into.
        base: what PEFT shall load the base from, a folder or hub id.
        merge_alpha: for a sequence classifier with α, also write a copy of the base with α merged into it, and name that, by
            its whole path, as the base.

    Raises:
        InputError: if the model holds no low-rank adapters, or updates of several kinds.
    """
    from safetensors.numpy import save

    layers = adapted_layers(model)
    updated = {path: layer.update for path, layer in layers.items() if layer.update is not None}
    if not updated or any(isinstance(u, Dense) for u in updated.values()):
        raise InputError("model: holds no low-rank adapters to write for PEFT; save the merged model")
    if len({(type(u), getattr(u, "stabilised", False)) for u in updated.values()}) > 1:
        raise InputError("model: holds adapters of several kinds, PEFT's file has one")
    tensors, ranks, scales = {}, {}, {}
    for path, own in updated.items():
        is_lora = isinstance(own, LoRA)
        a, b = (own.A[...], own.B[...]) if is_lora else own.factors()
        ranks[path] = a.shape[1]
        scales[path] = own.scale if is_lora else a.shape[1]
        tensors[f"{_PREFIX}{path}.lora_A.weight"], tensors[f"{_PREFIX}{path}.lora_B.weight"] = _host(a.T), _host(b.T)
        if isinstance(own, DoRA):
            tensors[f"{_PREFIX}{path}.lora_magnitude_vector"] = _host(own.magnitude[...])
    trained = {}
    for path, value in nnx.to_flat_state(nnx.state(model, TrainedParam)):
        array = value[...]
        trained[weight_name(path)] = _host(array.T if path[-1] == "kernel" else array)
    tensors |= {_PREFIX + name: value for name, value in trained.items()}
    rank, scale = max(ranks.values()), max(scales.values())
    sample = next(iter(updated.values()))
    modules = _whole(model)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if isinstance(model, SequenceClassifier) else None,
        "base_model_name_or_path": str(base),
        "r": rank,
        "rank_pattern": {f"^{re.escape(path)}": r for path, r in ranks.items() if r != rank},
        "lora_alpha": scale,
        "alpha_pattern": {f"^{re.escape(path)}": a for path, a in scales.items() if a != scale},
        "use_rslora": bool(isinstance(sample, LoRA) and sample.stabilised),
        "use_dora": isinstance(sample, DoRA),
        "target_modules": sorted(updated)
        if _ambiguous(model, updated)
        else sorted({p.split(".")[-1] for p in updated}),
        "modules_to_save": modules or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    if merge_alpha and not isinstance(model, SequenceClassifier):
        raise InputError(
            "merge_alpha: writes the base of a SequenceClassifier only; save `merged` of other models yourself"
        )
    target = prepare_folder("folder", folder)
    (target / ALPHA).unlink(missing_ok=True)  # of what was here before
    alphas = {f"{path}.alpha": _host(layer.alpha[...]) for path, layer in layers.items() if layer.alpha is not None}
    if alphas:
        owners: dict[int, list[str]] = {}
        for path, layer in layers.items():
            if layer.alpha is not None:
                owners.setdefault(id(layer.alpha), []).append(path)
        shared = [paths for paths in owners.values() if len(paths) > 1]
        file = save(alphas, metadata={_SHARED: json.dumps(shared)})
        write_bytes(target / ALPHA, file)
        if merge_alpha:
            scaled = save_model(_scaled_base(model), target / "base", tokenizer=base or None)
            write_bytes(scaled / MERGED_ALPHA, file)
            config["base_model_name_or_path"] = str(scaled.resolve())
    write_bytes(target / _TENSORS, save(tensors, metadata={"format": "pt"}))
    write_json(target / _CONFIG, config)
    return target


def _ambiguous(model: nnx.Module, updated: Mapping[str, Any]) -> bool:
    """Whether the last names of the updated layers also belong to layers that are not updated."""
    ends = {path.split(".")[-1] for path in updated}
    others = [".".join(map(str, path)).removesuffix(".base") for path in dense_layers(model)]
    return any(path.split(".")[-1] in ends and path not in updated for path in others)


def _whole(model: nnx.Module) -> list[str]:
    """The topmost modules all of whose weights trained."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    frozen = {path[:i] for path, value in state if type(value) is not TrainedParam for i in range(len(path))}
    found = set()
    for path, value in state:
        if type(value) is TrainedParam:
            depth = next((i for i in range(1, len(path)) if path[:i] not in frozen), len(path) - 1)
            found.add(".".join(map(str, path[:depth])))
    return sorted(found)


def _scaled_base(model: SequenceClassifier) -> SequenceClassifier:
    """The model with α merged and every update left out."""
    model = nnx.clone(model)
    for layer in adapted_layers(model).values():
        layer.update = nnx.data(None)
    return merged(model)


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
        values = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"adapter = {folder}: holds no {_CONFIG}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"adapter = {folder}: {_CONFIG} cannot be read ({shown(str(error))})") from None
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
    tensors = TensorFile(folder, "adapter", _TENSORS)
    kinds = "lora_A|lora_B|lora_magnitude_vector" + "|lora_embedding_[AB]" * matrices_only
    parts: dict[str, dict[str, str]] = {}
    own: dict[str, str] = {}
    for key in tensors:
        name = key.removeprefix(_PREFIX)
        if matrices_only and name.endswith(".bias"):
            continue
        found = re.fullmatch(rf"(.+)\.({kinds})(\.weight)?", name)
        if found:
            parts.setdefault(found[1], {})[found[2]] = key
        else:
            own[name.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")] = key
    if not parts:
        raise InputError(f"adapter = {folder}: {_TENSORS} holds no LoRA weights; is it an adapter for another base?")
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
            value = {kind: _read(folder, tensors, key) for kind, key in parts[name].items()}
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
        alpha = _read(folder, alphas, scaled[name]) if name in scaled else None
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
    text = alphas.metadata.get(_SHARED, "[]")
    try:
        groups = [[layers[path].alpha for path in group] for group in json.loads(text)]
        same = all(a is not None and np.array_equal(group[0], a) for group in groups for a in group)
    except (json.JSONDecodeError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"adapter = {folder}: {ALPHA}: shared = {shown(text)}: must list layers with the same α")
    return json.loads(text)


def load_peft(model: nnx.Module, folder: str | os.PathLike) -> nnx.Module:
    """Put the adapters of a PEFT folder (LoRA, rsLoRA, DoRA; and α, where `alpha.safetensors` is) on a model, in place.

    Weights of the model itself that are in the file (`modules_to_save`, such as the head) replace the model's.

    Raises:
        InputError: if a file is missing or of another kind, or a tensor has no place in the model or the wrong shape.
    """
    file = read_peft(folder)
    folder, tensors, own = file.folder, file.tensors, file.own
    layers = {".".join(map(str, path)): (path, layer) for path, layer in dense_layers(model).items()}
    check_plain(model)
    variables = {weight_name(path): path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    updated = [name for name, layer in file.layers.items() if layer.A is not None]
    stray = [name for name in updated if name not in layers] + [name for name in own if name not in variables]
    if stray:
        raise InputError(
            f"adapter = {folder}: {_TENSORS} has {listed(stray)}, for which the model has no place; is it an adapter for"
            " another base?"
        )
    lost = [name for name in file.layers if name not in layers]
    if lost:
        raise InputError(f"adapter = {folder}: {ALPHA} has {listed(lost)}, for which the model has no place")
    adapted, vectors = {}, {}
    groups = {name: i for i, group in enumerate(file.shared) for name in group}
    for name, read in file.layers.items():
        path, layer = layers[name]
        built = None
        if read.A is not None:
            kind = LoRA if read.magnitude is None else DoRA
            rank = read.A.shape[0]
            built = kind(matrix_of(layer), rank, read.scale, key_of(0), read.stabilised)
            new = {"A": read.A.T, "B": read.B.T}
            if read.magnitude is not None:
                new["magnitude"] = read.magnitude
            for attribute, array in new.items():
                expected = getattr(built, attribute).shape
                if array.shape != expected:
                    raise InputError(
                        f"adapter = {folder}: {name}: {attribute} has shape {list(array.shape)}, the model asks for"
                        f" {list(expected)}; is it an adapter for another base?"
                    )
                setattr(built, attribute, AdapterParam(array))
        vector = None if read.alpha is None else vectors.setdefault(groups.get(name, name), AlphaParam(read.alpha))
        outputs = matrix_of(layer).shape[1]
        if vector is not None and vector.shape != (outputs,):
            raise InputError(
                f"adapter = {folder}: {name}.alpha has shape {list(vector.shape)}, the layer asks for [{outputs}]"
            )
        adapted[path] = AdaptedLinear(layer, built, vector)
    replaced = {}
    for name, key in own.items():
        path = variables[name]
        value = _read(folder, tensors, key)
        value = value.T if path[-1] == "kernel" else value
        *modules, leaf = path
        parent = model
        for step in modules:
            parent = parent[step] if isinstance(step, int) else getattr(parent, step)
        if getattr(parent, leaf).shape != value.shape:
            raise InputError(
                f"adapter = {folder}: {name} has shape {list(tensors.shape(key))}, the model has another; does the number of"
                " classes differ?"
            )
        replaced[id(parent), leaf] = (parent, value)
    exchange(model, adapted)
    for (_, leaf), (parent, value) in replaced.items():
        setattr(parent, leaf, TrainedParam(value))
    return model


def _read(folder: Path, tensors: Mapping[str, jax.Array], name: str) -> jax.Array:
    value = tensors[name].astype(jnp.float32)
    if not bool(jnp.isfinite(value).all()):
        raise InputError(f"adapter = {folder}: {name} holds numbers that are not finite")
    return value
