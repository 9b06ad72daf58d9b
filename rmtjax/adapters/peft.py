"""Adapters from and to the folders of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

PEFT has no α. `save_peft` writes it in two ways: as `alpha.safetensors`, one vector (outputs,) for each scaled layer under the
layer's dotted path plus ".alpha", which `load_peft` reads; and, where asked, merged into a copy of the base in the folder
`base`, on which PEFT with the adapter alone gives the same answers; α lies beside that, too, as `merged_alpha.safetensors`, so
that nobody scales it twice. Layers that share one α are listed in the file's metadata
under `shared`, a JSON list of lists of paths.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from rmtjax._errors import InputError, listed
from rmtjax._files import prepare_folder, write_bytes, write_json
from rmtjax.adapters.apply import check_plain, dense_layers, exchange, merged
from rmtjax.adapters.linear import AdaptedLinear, adapted_layers, matrix_of
from rmtjax.adapters.updates import Dense, DoRA, LoRA
from rmtjax.adapters.variables import AdapterParam, AlphaParam, TrainedParam
from rmtjax.checkpoints.peft import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ALPHA,
    MERGED_ALPHA,
    PREFIX,
    SHARED,
    finite_tensor,
    read_peft,
)
from rmtjax.models import SequenceClassifier, save_model
from rmtjax.models.checkpoint import weight_name

__all__ = ["load_peft", "save_peft"]


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
        tensors[f"{PREFIX}{path}.lora_A.weight"], tensors[f"{PREFIX}{path}.lora_B.weight"] = _host(a.T), _host(b.T)
        if isinstance(own, DoRA):
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = _host(own.magnitude[...])
    trained = {}
    for path, value in nnx.to_flat_state(nnx.state(model, TrainedParam)):
        array = value[...]
        trained[weight_name(path)] = _host(array.T if path[-1] == "kernel" else array)
    tensors |= {PREFIX + name: value for name, value in trained.items()}
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
        file = save(alphas, metadata={SHARED: json.dumps(shared)})
        write_bytes(target / ALPHA, file)
        if merge_alpha:
            scaled = save_model(_scaled_base(model), target / "base", tokenizer=base or None)
            write_bytes(scaled / MERGED_ALPHA, file)
            config["base_model_name_or_path"] = str(scaled.resolve())
    write_bytes(target / ADAPTER_WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(target / ADAPTER_CONFIG, config)
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
            f"adapter = {folder}: {ADAPTER_WEIGHTS} has {listed(stray)}, for which the model has no place; is it an adapter for"
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
            built = kind(matrix_of(layer), rank, read.scale, jax.random.key(0), read.stabilised)
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
        value = finite_tensor(folder, tensors, key)
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
