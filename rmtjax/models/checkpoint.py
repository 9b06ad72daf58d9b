"""Encoders loaded from and saved to the folders of Hugging Face's `transformers`, with every weight accounted for."""

from __future__ import annotations

import dataclasses
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmtjax._checks import whole
from rmtjax._errors import InputError, listed, shown
from rmtjax._random import key_of, pinned
from rmtjax.checkpoints.folders import PACKAGED, TOKENIZER_FILES, model_folder, weights_folder
from rmtjax.checkpoints.names import TORCH_LEAVES, weight_name
from rmtjax.checkpoints.tensors import WEIGHTS, TensorFile
from rmtjax.models.classifier import SequenceClassifier
from rmtjax.models.config import ARCHITECTURES, EncoderConfig
from rmtjax.models.encoder import Encoder

__all__ = ["LoadReport", "load_classifier", "load_encoder", "save_model"]

_OLD = {"gamma": "weight", "beta": "bias"}  # names of layer norms in files from TensorFlow
Model = TypeVar("Model", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Report of the weights that were loaded from a file.

    Attributes:
        loaded: number of weights loaded.
        new: names that the file lacks and the head needed; they start at random.
        unused: names that the model has no place for.
    """

    loaded: int
    new: tuple[str, ...]
    unused: tuple[str, ...]


def _modern(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_OLD[leaf]}" if leaf in _OLD else name


def _load(
    folder: Path, build: Callable[[nnx.Rngs], Model], head: str | None, config: EncoderConfig, seed: int
) -> tuple[Model, LoadReport]:
    """Return the model that `build` makes, filled from the file, which may lack names that begin with `head`."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    variables = dict(nnx.to_flat_state(state))
    tensors = TensorFile(folder)
    prefix = f"{config.architecture}."
    in_file = {_modern(name): name for name in tensors if not name.endswith(".position_ids")}
    with_prefix = any(name.startswith(prefix) for name in in_file)
    name_in_file: dict[str, str] = {}  # a name in the model → in the file
    for name, original in in_file.items():
        if head is None:
            name = name.removeprefix(prefix)
        elif not with_prefix and not name.startswith(head):
            name = prefix + name
        name_in_file[name] = original
    paths = {weight_name(path): path for path in variables}
    missing = [name for name in paths if name not in name_in_file]
    lost = [name for name in missing if head is None or not name.startswith(head)]
    if head is not None:
        # A pooler belongs to the head in all but name: checkpoints of masked language models have none.
        lost = [name for name in lost if not name.startswith(f"{prefix}pooler.")]
    if lost:
        raise InputError(f"model = {folder}: the file lacks {len(lost)} weights: {listed(lost)}")
    loaded, key = {}, key_of(seed % 2**32)
    for name, path in paths.items():
        variable = variables[path]
        shape, transpose = variable.shape, path[-1] == "kernel"
        if name in name_in_file:
            expected, file_shape = shape[::-1] if transpose else shape, tensors.shape(name_in_file[name])
            if file_shape != expected:
                asks = "num_labels" if head is not None and name.startswith(head) else "config.json"
                raise InputError(
                    f"model = {folder}: {name_in_file[name]} has shape {list(file_shape)}, {asks} needs {list(expected)}"
                )
            value = tensors[name_in_file[name]].astype(variable.dtype)
            value = value.T if transpose else value
        elif transpose:
            weight_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            with pinned():
                value = config.initializer_range * jax.random.normal(weight_key, shape, variable.dtype)
        else:
            value = jnp.zeros(shape, variable.dtype)
        loaded[path] = variable.replace(value)
    unused = tuple(sorted(original for name, original in name_in_file.items() if name not in paths))
    report = LoadReport(len(paths) - len(missing), tuple(missing), unused)
    return nnx.merge(graph, nnx.from_flat_state(loaded)), report


def load_classifier(
    model: str | os.PathLike = PACKAGED,
    num_labels: int = 2,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
    seed: int = 0,
) -> tuple[SequenceClassifier, LoadReport]:
    """Return a sequence classifier with the weights of a checkpoint.

    Args:
        model: folder or hub id of a BERT or RoBERTa (`config.json` and `model.safetensors`, or shards with their index);
            "minilm" is the packaged all-MiniLM-L6-v2.
        num_labels: classes, or 1 for a regression.
        dtype: of activations; weights are float32.
        remat: see `Encoder`.
        seed: of the weights that the checkpoint lacks: the head, and BERT's pooler in some.

    Returns:
        The model, and what became of the file's weights.

    Raises:
        InputError: if a file is missing, truncated, a pickle, of another architecture, or a weight of the encoder is
            missing or has the wrong shape.
    """
    whole("num_labels", num_labels)
    folder = weights_folder(model_folder(model))
    config = EncoderConfig.read(folder)

    def build(rngs):
        return SequenceClassifier(config, num_labels, dtype=dtype, remat=remat, rngs=rngs)

    return _load(folder, build, "classifier.", config, seed)


def load_encoder(
    model: str | os.PathLike = PACKAGED,
    *,
    pooler: bool = False,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
) -> tuple[Encoder, LoadReport]:
    """Return an encoder without a head. Arguments, result and errors as for `load_classifier`; the pooler must be in the file."""
    folder = weights_folder(model_folder(model))
    config = EncoderConfig.read(folder)

    def build(rngs):
        return Encoder(config, pooler=pooler, dtype=dtype, remat=remat, rngs=rngs)

    return _load(folder, build, None, config, 0)


_CLASSES = {
    "bert": ("BertModel", "BertForSequenceClassification"),
    "roberta": ("RobertaModel", "RobertaForSequenceClassification"),
    "camembert": ("CamembertModel", "CamembertForSequenceClassification"),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaForSequenceClassification"),
}
assert set(_CLASSES) == set(ARCHITECTURES)


def save_model(
    model: Encoder | SequenceClassifier,
    folder: str | os.PathLike,
    *,
    labels: Sequence[str] = (),
    tokenizer: str | os.PathLike | None = None,
) -> Path:
    """Save a model so that `transformers` loads it: `config.json` and `model.safetensors` (float32).

    Args:
        model: without adapters; merge them first (`rmtjax.adapters.merged_copy`).
        folder: to write into; files of these names are replaced, each at once.
        labels: names of the classes, one for each output.
        tokenizer: a folder whose tokeniser files are copied along.

    Raises:
        InputError: if the model holds adapters, the labels do not fit it, or the folder cannot be written.
    """
    from safetensors.numpy import save

    from rmtjax._files import prepare_folder, write_bytes, write_json

    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[-1] not in TORCH_LEAVES or type(variable) is not nnx.Param:
            raise InputError(
                f"model: {'.'.join(map(str, path))} is not a weight of a plain encoder; merge adapters first"
            )
        value = np.asarray(variable[...])
        tensors[weight_name(path)] = np.ascontiguousarray(value.T if path[-1] == "kernel" else value)
    classifier = isinstance(model, SequenceClassifier)
    if labels and (not classifier or len(labels) != model.num_labels or len(set(labels)) != len(labels)):
        allowed = (
            f"{model.num_labels} different names, one for each output"
            if classifier
            else "none, an encoder has no classes"
        )
        raise InputError(f"labels = {shown(list(labels))}: must be {allowed}")
    target = prepare_folder("folder", folder)
    config = model.config.to_dict()
    config["architectures"] = [_CLASSES[model.config.model_type][classifier]]
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    if classifier:
        names = list(labels) or [f"LABEL_{i}" for i in range(model.num_labels)]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
        config["problem_type"] = "regression" if model.num_labels == 1 else "single_label_classification"
    write_bytes(target / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(target / "config.json", config)
    if tokenizer is not None:
        for name in TOKENIZER_FILES:
            source = Path(tokenizer) / name
            if source.is_file() and source.resolve() != (target / name).resolve():
                shutil.copyfile(source, target / name)
    return target
