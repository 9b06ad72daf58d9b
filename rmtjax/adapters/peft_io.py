"""Adapters from and to the folders of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

PEFT has no α. `save_peft` writes it in two ways: as `alpha.safetensors`, one vector (outputs,) for each scaled layer under the
layer's dotted path plus ".alpha", which `load_peft` reads; and, where asked, merged into a copy of the base in the folder
`base`, on which PEFT with the adapter alone gives the same answers; α lies beside that, too, as `merged_alpha.safetensors`, so
that nobody scales it twice. Layers that share one α are listed in the file's metadata
under `shared`, a JSON list of lists of paths.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from rmtjax._errors import InputError, listed, shown
from rmtjax._files import prepare_folder, write_bytes, write_json
from rmtjax._random import key_of
from rmtjax.adapters.apply import (
    Place,
    check_plain,
    check_tied,
    dense_layers,
    dotted,
    exchange,
    merged,
    module_paths,
    variable_places,
)
from rmtjax.adapters.layers import AdaptedLinear, adapted_layers, check_dense, matrix_of, shard_update, sharded_like
from rmtjax.adapters.methods import Dense, DoRA, LoRA
from rmtjax.adapters.params import AdapterParam, AlphaParam, TrainedParam
from rmtjax.checkpoints.folders import open_weights
from rmtjax.checkpoints.names import weight_name
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
from rmtjax.checkpoints.tensors import FLOATS

__all__ = ["load_peft", "save_peft"]


def _host(value: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(value, np.float32))


Names = Mapping[str, str] | Callable[[str], str]


def _renaming(names: Names | None) -> Callable[[str], str | None]:
    """A function from a path here to the path in the PyTorch model; None for one that a mapping says nothing of."""
    if names is None:
        return lambda path: path
    if isinstance(names, Mapping):
        for before, after in names.items():
            if not (isinstance(before, str) and isinstance(after, str)):
                raise InputError(
                    f"names = {shown(names)}: must map paths to paths, not {shown(before)} to {shown(after)}"
                )

        def renamed(path: str) -> str | None:
            steps = path.split(".") if path else []
            for i in range(len(steps), -1, -1):  # the longest beginning counts
                beginning = ".".join(steps[:i])
                if beginning in names:
                    return ".".join([*filter(None, [names[beginning]]), *steps[i:]])
            return None

        return renamed
    if not callable(names):
        raise InputError(f"names = {shown(names)}: must be a mapping of paths, or a function of one")

    def called(path: str) -> str:
        result = names(path)
        if not isinstance(result, str):
            raise InputError(f"names: {shown(path)} becomes {shown(result)}, must be a path")
        return result

    return called


def _required(names: Names | None) -> Callable[[str], str]:
    """As `_renaming`, with InputError for a path that a mapping says nothing of."""
    renaming = _renaming(names)

    def renamed(path: str) -> str:
        name = renaming(path)
        if name is None:
            raise InputError(
                f"names = {shown(names)}: says nothing of {path}; the key '' is the beginning of every path"
            )
        return name

    return renamed


def _torch_weight(place: Place, module: str) -> str:
    """The name in the PyTorch model of a variable, from that of its module."""
    return ".".join(filter(None, [module, weight_name((place.name, *place.inner))]))


def _torch_axes(place: Place, array: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape in which PyTorch keeps a variable with its axes in the order given by what is returned beside it.

    Raises:
        InputError: for a kernel whose order of axes in PyTorch is not known.
    """
    module, shape = place.module, tuple(array.shape)
    if isinstance(module, nnx.LinearGeneral):
        check_dense(module, f"model: {dotted(place.path)}")
        flat = (math.prod(module.in_features), math.prod(module.out_features))
        return (flat, (1, 0)) if place.name == "kernel" else ((flat[1],), (0,))
    if place.name != "kernel" or len(shape) < 2:
        return shape, tuple(range(len(shape)))
    if len(shape) == 2:
        return shape, (1, 0)
    if isinstance(module, nnx.Conv):
        return shape, (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
    raise InputError(
        f"model: {place} of {type(module).__name__} has shape {shape}, whose order of axes in PyTorch is not known"
    )


def _to_torch(place: Place, array: Array) -> np.ndarray:
    flat, order = _torch_axes(place, array)
    return _host(array.reshape(flat).transpose(order))


def _from_torch(place: Place, array: Array, value: Array) -> Array | None:
    """A variable's value from PyTorch's; None if the shapes do not fit."""
    flat, order = _torch_axes(place, array)
    if value.shape != tuple(flat[i] for i in order):
        return None
    return value.transpose(np.argsort(order)).reshape(array.shape)


def _check_base(base: str | os.PathLike, shapes: Mapping[str, tuple[int, int]], given: bool) -> None:
    """Check names of adapted layers against the weights in the folder of the base, if it is one.

    Raises:
        InputError: if a layer has another shape there; or, unless the names were `given`, if the layers are called otherwise.
    """
    folder = Path(base)
    if not base or not folder.is_dir() or not any(folder.glob("model*.safetensors")):
        return
    tensors = open_weights(folder, "base")
    known = list(tensors)
    longer: dict[str, str] = {}
    fitting = 0
    for name, shape in shapes.items():
        weight = f"{name}.weight"
        if weight in tensors:
            fitting += 1
            theirs = tuple(tensors.shape(weight))
            if tensors.dtype(weight) in FLOATS and theirs not in (shape, shape[::-1]):
                raise InputError(f"base = {folder}: {weight} has shape {list(theirs)}, the model's layer {list(shape)}")
        elif any(weight.endswith(f".{other}") for other in known):  # without the prefix that a model with a head puts
            fitting += 1
        else:
            behind = [other for other in known if other.endswith(f".{weight}")]
            if behind:
                longer[name] = behind[0]
    if longer:
        name, other = next(iter(longer.items()))
        prefix = other.removesuffix(f".{name}.weight")
        hint = (
            f"there is {other}; names={{'': {prefix!r}}} puts the prefix, names={{'': ''}} keeps the paths as they are"
        )
    elif shapes and not fitting:
        name, hint = (
            next(iter(shapes)),
            "and no other layer of the adapter either; names= maps paths to those of PyTorch",
        )
    else:
        return
    text = f"base = {folder}: holds no weight of {name}, so that PEFT would load its adapter as nothing: {hint}"
    if not given:
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
    """Write the adapters of a model, and its own weights that trained along, as PEFT does.

    LoRA, rsLoRA and DoRA are written as they are; orthogonal and spectral updates as the LoRA (a = r) that they equal.

    PEFT finds a layer by its path in the PyTorch model, and leaves out without an error what it does not find. Where paths
    here are others, `names` says how they read there; `load_peft` takes the same. Where `base` is a folder of weights,
    the paths are checked against them; otherwise nobody can tell.

    Args:
        model: with adapters.
        folder: to write into.
        base: what PEFT shall load the base from, a folder or hub id.
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
        >>> from rmtjax.adapters import adapt
        >>> block = nnx.Dict(q_proj=nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
        >>> decoder = adapt(nnx.Dict(layers=nnx.List([block])), target=["q_proj"], rank=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_peft(decoder, folder, names={"layers": "model.layers"})
        ...     json.loads((Path(folder) / "adapter_config.json").read_text())["target_modules"]
        ['model.layers.0.q_proj']
    """
    from safetensors.numpy import save

    if not (save_base is None or callable(save_base)):
        raise InputError(f"save_base = {shown(save_base)}: must be a function of a model and a folder")
    layers, renamed = adapted_layers(model), _required(names)
    updated = {path: layer.update for path, layer in layers.items() if layer.update is not None}
    if not updated or any(isinstance(u, Dense) for u in updated.values()):
        raise InputError("model: holds no low-rank adapters to write for PEFT; save the merged model")
    if len({(type(u), getattr(u, "stabilised", False)) for u in updated.values()}) > 1:
        raise InputError("model: holds adapters of several kinds, PEFT's file has one")
    theirs = {path: renamed(path) for path in layers}
    twice = [path for path, name in theirs.items() if list(theirs.values()).count(name) > 1]
    if twice:
        raise InputError(f"names: {listed(twice)} all become {theirs[twice[0]]}")
    shapes = {theirs[path]: matrix_of(layers[path].base).shape[::-1] for path in updated}
    _check_base(base, shapes, names is not None)
    updated = {theirs[path]: own for path, own in updated.items()}
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
    for variable, places in variable_places(model).values():
        for place in places if isinstance(variable, TrainedParam) else []:
            trained[_torch_weight(place, renamed(dotted(place.path)))] = _to_torch(place, variable[...])
    tensors |= {PREFIX + name: value for name, value in trained.items()}
    rank, scale = max(ranks.values()), max(scales.values())
    sample = next(iter(updated.values()))
    modules = _whole(model, None if names is None else renamed)
    if "" in modules:
        modules.remove("")
        warnings.warn(
            "model: PEFT keeps modules, and leaves weights out that are held by the model itself", stacklevel=2
        )
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
    (target / ALPHA).unlink(missing_ok=True)  # of what was here before
    alphas = {f"{theirs[p]}.alpha": _host(layer.alpha[...]) for p, layer in layers.items() if layer.alpha is not None}
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
    """Whether the last names of the updated layers also belong to layers that are not updated."""
    ends = {path.split(".")[-1] for path in updated}
    others = [".".join(map(str, path)).removesuffix(".base") for path in dense_layers(model)]
    return any(path.split(".")[-1] in ends and path not in updated for path in others)


def _whole(model: nnx.Module, renamed: Callable[[str], str] | None) -> list[str]:
    """The topmost modules all of whose weights trained; with other names than here, those that hold such weights."""
    every = [
        (v, place) for v, places in variable_places(model).values() for place in places if isinstance(v, nnx.Param)
    ]
    if renamed is not None:
        return sorted({renamed(dotted(place.path)) for v, place in every if type(v) is TrainedParam})
    state = [((*place.path, place.name, *place.inner), v) for v, place in every]
    frozen = {path[:i] for path, value in state if type(value) is not TrainedParam for i in range(len(path))}
    whole = set()
    for path, value in state:
        if type(value) is TrainedParam:
            depth = next((i for i in range(1, len(path)) if path[:i] not in frozen), len(path) - 1)
            whole.add(dotted(path[:depth]))
    return sorted(whole)


def _scaled_base(model: nnx.Module) -> nnx.Module:
    """Return the model with α merged, in single precision, and every update left out."""
    model = nnx.clone(model)
    for layer in adapted_layers(model).values():
        layer.update = nnx.data(None)
    return merged(model, dtype=jnp.float32)


def load_peft(model: nnx.Module, folder: str | os.PathLike, *, names: Names | None = None) -> nnx.Module:
    """Put the adapters of a PEFT folder (LoRA, rsLoRA, DoRA; and α, where `alpha.safetensors` is) on a model, in place.

    Weights of the model itself that are in the file (`modules_to_save`, such as the head) replace the model's, wherever the
    model holds them.

    Args:
        model: without adapters.
        folder: of PEFT.
        names: from paths here to those in the PyTorch model, as for `save_peft`.

    Raises:
        InputError: if a file is missing or of another kind; if a tensor has no place in the model or the wrong shape; or if
            the file treats a tied weight in one of its places otherwise than in another.
    """
    file, renamed = read_peft(folder), _renaming(names)
    folder, tensors, own = file.folder, file.tensors, file.own
    check_plain(model)
    aliases = module_paths(model)
    layers: dict[str | None, tuple[tuple, Any]] = {}
    for path, layer in dense_layers(model).items():
        layers |= {renamed(dotted(alias)): (path, layer) for alias in aliases[id(layer)]}
    layers.pop(None, None)
    places = variable_places(model)
    variables = {
        _torch_weight(place, name): (variable, place)
        for variable, held in places.values()
        if isinstance(variable, nnx.Param)
        for place in held
        for name in map(renamed, map(dotted, aliases[id(place.module)]))
        if name is not None
    }
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
        check_dense(layer, f"adapter = {folder}: {name}")
        if path in adapted:
            raise InputError(f"adapter = {folder}: has {name} twice, under two names of one layer of the model")
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
            built = shard_update(layer, built)
        vector = None
        if read.alpha is not None:
            outputs = matrix_of(layer).shape[1]
            if read.alpha.shape != (outputs,):
                raise InputError(
                    f"adapter = {folder}: {name}.alpha has shape {list(read.alpha.shape)}, the layer asks for [{outputs}]"
                )
            group = groups.get(name, name)
            if group not in vectors:
                vectors[group] = sharded_like(layer, AlphaParam(read.alpha), ("outputs",))
            vector = vectors[group]
        adapted[path] = AdaptedLinear(layer, built, vector)
    replaced: dict[int, tuple[str, Array]] = {}
    named = set()
    for name, key in own.items():
        variable, place = variables[name]
        value = _from_torch(place, variable, finite_tensor(folder, tensors, key))
        if value is None:
            raise InputError(
                f"adapter = {folder}: {name} has shape {list(tensors.shape(key))}, the model has another; does the number of"
                " classes differ?"
            )
        before, same = replaced.setdefault(id(variable), (name, value))
        if not np.array_equal(same, value):
            raise InputError(f"adapter = {folder}: {before} and {name} differ, and are one weight in the model")
        named.add((id(place.module), place.name))
    for variable, held in (places[key] for key in replaced):
        left_out = [place for place in held if (id(place.module), place.name) not in named]
        if left_out:
            raise InputError(
                f"adapter = {folder}: has {replaced[id(variable)][0]} and not {left_out[0]}, which are one weight in the"
                " model; give one a copy first"
            )
    check_tied(model, adapted, lambda place: (id(place.module), place.name) in named, lambda place: False)
    exchange(model, adapted)
    for variable, held in (places[key] for key in replaced):
        new = TrainedParam.from_metadata(replaced[id(variable)][1], variable.get_metadata())
        for place in held:
            setattr(place.module, str(place.name), new)
    return model
