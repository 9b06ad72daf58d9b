"""Loading of the adapters of a PEFT folder onto a model."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array

from rmtjax._errors import InputError, listed
from rmtjax._random import key_of
from rmtjax.adapters.apply import check_plain
from rmtjax.adapters.layers import AdaptedLinear, check_dense, matrix_of, shard_update, sharded_like
from rmtjax.adapters.methods import DoRA, LoRA
from rmtjax.adapters.modules import dense_layers, dotted, exchange, module_paths, variable_places
from rmtjax.adapters.params import AdapterParam, AlphaParam, TrainedParam
from rmtjax.adapters.peft_io._torch import Names, from_torch, path_renaming, torch_weight
from rmtjax.adapters.selection import check_tied
from rmtjax.checkpoints.peft.config import ADAPTER_WEIGHTS, ALPHA
from rmtjax.checkpoints.peft.read import finite_tensor, read_peft

__all__ = ["load_peft"]


def load_peft(model: nnx.Module, folder: str | os.PathLike, *, names: Names | None = None) -> None:
    """Load the adapters of a PEFT folder (LoRA, rsLoRA, DoRA; and α from `alpha.safetensors`, if any) onto a model, in place.

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
    file, renamed = read_peft(folder), path_renaming(names)
    folder, tensors, own_keys = file.folder, file.tensors, file.whole
    check_plain(model)
    aliases = module_paths(model)
    layers: dict[str | None, tuple[tuple, Any]] = {}
    for path, layer in dense_layers(model).items():
        layers |= {renamed(dotted(alias)): (path, layer) for alias in aliases[id(layer)]}
    layers.pop(None, None)
    places = variable_places(model)
    variables = {
        torch_weight(place, name): (variable, place)
        for variable, held in places.values()
        if isinstance(variable, nnx.Param)
        for place in held
        for name in map(renamed, map(dotted, aliases[id(place.module)]))
        if name is not None
    }
    updated = [name for name, layer in file.layers.items() if layer.A is not None]
    stray = [name for name in updated if name not in layers] + [name for name in own_keys if name not in variables]
    if stray:
        raise InputError(
            f"adapter = {folder}: {ADAPTER_WEIGHTS} has {listed(stray)}, which the model does not have; is it an adapter for"
            " another base?"
        )
    lost = [name for name in file.layers if name not in layers]
    if lost:
        raise InputError(f"adapter = {folder}: {ALPHA} has {listed(lost)}, which the model does not have")
    adapted, vectors = {}, {}
    groups = {name: i for i, group in enumerate(file.shared) for name in group}
    for name, read in file.layers.items():
        path, layer = layers[name]
        check_dense(layer, f"adapter = {folder}: {name}")
        if path in adapted:
            raise InputError(f"adapter = {folder}: has {name} twice, under two names of the same layer of the model")
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
                        f"adapter = {folder}: {name}: {attribute} has shape {list(array.shape)}, the model needs"
                        f" {list(expected)}; is it an adapter for another base?"
                    )
                setattr(built, attribute, AdapterParam(array))
            built = shard_update(layer, built)
        vector = None
        if read.alpha is not None:
            outputs = matrix_of(layer).shape[1]
            if read.alpha.shape != (outputs,):
                raise InputError(
                    f"adapter = {folder}: {name}.alpha has shape {list(read.alpha.shape)}, the layer needs [{outputs}]"
                )
            group = groups.get(name, name)
            if group not in vectors:
                vectors[group] = sharded_like(layer, AlphaParam(read.alpha), ("outputs",))
            vector = vectors[group]
        adapted[path] = AdaptedLinear(layer, built, vector)
    replaced: dict[int, tuple[str, Array]] = {}
    named = set()
    for name, key in own_keys.items():
        variable, place = variables[name]
        value = from_torch(place, variable, finite_tensor(folder, tensors, key))
        if value is None:
            raise InputError(
                f"adapter = {folder}: {name} has shape {list(tensors.shape(key))}, unlike the model's; does the number of"
                " classes differ?"
            )
        before, same = replaced.setdefault(id(variable), (name, value))
        if not np.array_equal(same, value):
            raise InputError(f"adapter = {folder}: {before} and {name} differ, but are one weight in the model")
        named.add((id(place.module), place.name))
    for variable, held in (places[key] for key in replaced):
        left_out = [place for place in held if (id(place.module), place.name) not in named]
        if left_out:
            raise InputError(
                f"adapter = {folder}: has {replaced[id(variable)][0]} but not {left_out[0]}, which are one weight in the"
                " model; copy one of them first"
            )
    check_tied(model, adapted, lambda place: (id(place.module), place.name) in named, lambda place: False)
    exchange(model, adapted)
    for variable, held in (places[key] for key in replaced):
        new = TrainedParam.from_metadata(replaced[id(variable)][1], variable.get_metadata())
        for place in held:
            setattr(place.module, str(place.name), new)
