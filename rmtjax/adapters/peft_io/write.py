"""Saving of a model's adapters in PEFT's format."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from rmtjax._errors import InputError, listed, shown
from rmtjax._files import prepare_folder, write_bytes, write_json
from rmtjax.adapters.layers import adapted_layers, matrix_of
from rmtjax.adapters.merging import merged_copy
from rmtjax.adapters.methods import DoRA, FullUpdate, LoRA
from rmtjax.adapters.modules import dense_layers, dotted, variable_places
from rmtjax.adapters.params import TrainedParam
from rmtjax.adapters.peft_io._torch import Names, on_host, required_renaming, to_torch, torch_weight
from rmtjax.checkpoints.folders import open_weights
from rmtjax.checkpoints.peft.config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ALPHA, MERGED_ALPHA, PREFIX, SHARED
from rmtjax.checkpoints.tensors import FLOATS

__all__ = ["save_peft"]


def _check_base(base: str | os.PathLike, shapes: Mapping[str, tuple[int, int]], is_renamed: bool) -> None:
    """Check the names of adapted layers against the weights in the base's folder, if it is one.

    Raises:
        InputError: if a layer has another shape there; or, unless the user gave `names`, if the layers have other names there.
    """
    folder = Path(base)
    if not base or not folder.is_dir() or not any(folder.glob("model*.safetensors")):
        return
    tensors = open_weights(folder, "base")
    stored_names = list(tensors)
    longer: dict[str, str] = {}
    fitting = 0
    for name, shape in shapes.items():
        weight = f"{name}.weight"
        if weight in tensors:
            fitting += 1
            theirs = tuple(tensors.shape(weight))
            if tensors.dtype(weight) in FLOATS and theirs not in (shape, shape[::-1]):
                raise InputError(
                    f"base = {folder}: {weight} has shape {list(theirs)}, the model's layer has {list(shape)}"
                )
        elif any(
            weight.endswith(f".{stored}") for stored in stored_names
        ):  # stored without the prefix of a model with a head
            fitting += 1
        else:
            behind = [stored for stored in stored_names if stored.endswith(f".{weight}")]
            if behind:
                longer[name] = behind[0]
    if longer:
        name, stored = next(iter(longer.items()))
        prefix = stored.removesuffix(f".{name}.weight")
        hint = f"it holds {stored}; names={{'': {prefix!r}}} adds the prefix, names={{'': ''}} keeps the paths"
    elif shapes and not fitting:
        name, hint = (
            next(iter(shapes)),
            "nor of any other layer of the adapter; names= maps paths to those of PyTorch",
        )
    else:
        return
    text = f"base = {folder}: holds no weight of {name}, so PEFT would silently ignore its adapter: {hint}"
    if not is_renamed:
        raise InputError(text)
    warnings.warn(text, stacklevel=3)


def save_peft(
    model: nnx.Module,
    folder: str | os.PathLike,
    *,
    base: str | os.PathLike = "",
    names: Names | None = None,
    task_type: str | None = None,
    save_base: Callable[[nnx.Module, Path], Any] | None = None,
) -> Path:
    """Save the adapters of a model, and its own trained weights, in PEFT's format.

    LoRA, rsLoRA and DoRA are written as they are; orthogonal and spectral updates as the LoRA (a = r) that they equal.

    PEFT finds a layer by its path in the PyTorch model, and skips what it does not find without an error. Where paths here
    differ, `names` maps them to PyTorch's; `load_peft` takes the same. Where `base` is a folder of weights, the paths are
    checked against them; otherwise they are not checked.

    Args:
        model: with adapters.
        folder: to write into.
        base: the folder or hub id that PEFT is to load the base from.
        names: from the dotted path of a module here to that in the PyTorch model: a function, or a mapping of beginnings
            of paths, of which the longest counts, such as {"": "model", "head": "lm_head"}.
        task_type: PEFT's, such as "SEQ_CLS", by which its `AutoPeftModel…` classes know the model.
        save_base: a function of a model and a folder that writes the model there so that PyTorch loads it, such as
            `rmtjax.models.save_model`. For a model with α it is called with the base into which α is merged, in single
            precision, and the folder `base` below `folder`, whose whole path then is the base of the adapter.

    Raises:
        InputError: if the model holds no low-rank adapters, or updates of several kinds; if `names` lacks a path or gives
            two the same; if the folder `base` calls the layers otherwise (a warning, if `names` is given) or holds them in
            other shapes; or if a weight that trained has no known form in PyTorch.

    Examples:
        A decoder whose blocks Hugging Face keeps below `model`:

        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from flax import nnx
        >>> from rmtjax.adapters import apply_adapters, save_peft
        >>> block = nnx.Dict(q_proj=nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
        >>> decoder = nnx.Dict(layers=nnx.List([block]))
        >>> apply_adapters(decoder, target_modules=["q_proj"], rank=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_peft(decoder, folder, names={"layers": "model.layers"})
        ...     json.loads((Path(folder) / "adapter_config.json").read_text())["target_modules"]
        ['model.layers.0.q_proj']
    """
    from safetensors.numpy import save

    if not (save_base is None or callable(save_base)):
        raise InputError(f"save_base = {shown(save_base)}: must be a function of a model and a folder")
    layers, renamed = adapted_layers(model), required_renaming(names)
    updated = {path: layer.update for path, layer in layers.items() if layer.update is not None}
    if not updated or any(isinstance(u, FullUpdate) for u in updated.values()):
        raise InputError("model: has no low-rank adapters that PEFT can store; save the merged model")
    if len({(type(u), getattr(u, "stabilised", False)) for u in updated.values()}) > 1:
        raise InputError("model: has adapters of several kinds, but a PEFT file holds only one")
    theirs = {path: renamed(path) for path in layers}
    twice = [path for path, name in theirs.items() if list(theirs.values()).count(name) > 1]
    if twice:
        raise InputError(f"names: {listed(twice)} are all mapped to {theirs[twice[0]]}")
    shapes = {theirs[path]: matrix_of(layers[path].base).shape[::-1] for path in updated}
    _check_base(base, shapes, names is not None)
    updated = {theirs[path]: update for path, update in updated.items()}
    tensors, ranks, scales = {}, {}, {}
    for path, update in updated.items():
        is_lora = isinstance(update, LoRA)
        a, b = (update.A[...], update.B[...]) if is_lora else update.factors()
        ranks[path] = a.shape[1]
        scales[path] = update.scale if is_lora else a.shape[1]
        tensors[f"{PREFIX}{path}.lora_A.weight"], tensors[f"{PREFIX}{path}.lora_B.weight"] = on_host(a.T), on_host(b.T)
        if isinstance(update, DoRA):
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = on_host(update.magnitude[...])
    trained = {}
    for variable, places in variable_places(model).values():
        for place in places if isinstance(variable, TrainedParam) else []:
            trained[torch_weight(place, renamed(dotted(place.path)))] = to_torch(place, variable[...])
    tensors |= {PREFIX + name: value for name, value in trained.items()}
    rank, scale = max(ranks.values()), max(scales.values())
    sample = next(iter(updated.values()))
    modules = _trained_modules(model, None if names is None else renamed)
    if "" in modules:
        modules.remove("")
        warnings.warn("model: PEFT stores modules, so weights held by the model itself are left out", stacklevel=2)
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": str(base),
        "r": rank,
        "rank_pattern": {f"^{re.escape(path)}": r for path, r in ranks.items() if r != rank},
        "lora_alpha": scale,
        "alpha_pattern": {f"^{re.escape(path)}": a for path, a in scales.items() if a != scale},
        "use_rslora": bool(isinstance(sample, LoRA) and sample.stabilised),
        "use_dora": isinstance(sample, DoRA),
        "target_modules": sorted(updated)
        if names is not None or _ambiguous(model, updated)
        else sorted({p.split(".")[-1] for p in updated}),
        "modules_to_save": modules or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    target = prepare_folder("folder", folder)
    (target / ALPHA).unlink(missing_ok=True)  # from an earlier save
    alphas = {f"{theirs[p]}.alpha": on_host(layer.alpha[...]) for p, layer in layers.items() if layer.alpha is not None}
    if alphas:
        owners: dict[int, list[str]] = {}
        for path, layer in layers.items():
            if layer.alpha is not None:
                owners.setdefault(id(layer.alpha), []).append(theirs[path])
        shared = [paths for paths in owners.values() if len(paths) > 1]
        file = save(alphas, metadata={SHARED: json.dumps(shared)})
        write_bytes(target / ALPHA, file)
        if save_base is not None:
            scaled = prepare_folder("folder", target / "base")
            save_base(_scaled_base(model), scaled)
            write_bytes(scaled / MERGED_ALPHA, file)
            config["base_model_name_or_path"] = str(scaled.resolve())
    write_bytes(target / ADAPTER_WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(target / ADAPTER_CONFIG, config)
    return target


def _ambiguous(model: nnx.Module, updated: Mapping[str, Any]) -> bool:
    """Return whether the last names of the updated layers also match layers that are not updated."""
    ends = {path.split(".")[-1] for path in updated}
    others = [".".join(map(str, path)).removesuffix(".base") for path in dense_layers(model)]
    return any(path.split(".")[-1] in ends and path not in updated for path in others)


def _trained_modules(model: nnx.Module, renamed: Callable[[str], str] | None) -> list[str]:
    """Return the topmost modules whose weights all trained; if names change, every module that holds a trained weight."""
    every = [
        (v, place) for v, places in variable_places(model).values() for place in places if isinstance(v, nnx.Param)
    ]
    if renamed is not None:
        return sorted({renamed(dotted(place.path)) for v, place in every if type(v) is TrainedParam})
    state = [((*place.path, place.name, *place.inner), v) for v, place in every]
    frozen = {path[:i] for path, value in state if type(value) is not TrainedParam for i in range(len(path))}
    modules = set()
    for path, value in state:
        if type(value) is TrainedParam:
            depth = next((i for i in range(1, len(path)) if path[:i] not in frozen), len(path) - 1)
            modules.add(dotted(path[:depth]))
    return sorted(modules)


def _scaled_base(model: nnx.Module) -> nnx.Module:
    """Return the model with α merged, in single precision, and every update left out."""
    model = nnx.clone(model)
    for layer in adapted_layers(model).values():
        layer.update = nnx.data(None)
    return merged_copy(model, dtype=jnp.float32)
