"""The tensors of safetensors files, read one at a time.

The header is parsed here and not by the `safetensors` package, which refuses a whole file for one unknown type of numbers and
maps every page that it reads into memory. The format is an 8-byte little-endian length, a JSON object of that length (name →
dtype, shape, data_offsets), then the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, listed, shown
from rmtjax.checkpoints.quantized import quantized_tensors

__all__ = ["FLOATS", "INDEX", "WEIGHTS", "Tensor", "TensorFile", "read_header"]

WEIGHTS = "model.safetensors"
INDEX = ".index.json"
PICKLE = "pytorch_model.bin"
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""The floating-point types that weights are read from, by their names in safetensors."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16,
    "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors package."""
_LFS = b"version https://git-lfs.github.com/spec"


class Tensor(NamedTuple):
    """The location of a tensor.

    Attributes:
        file: path of its file.
        dtype: type of its numbers as safetensors names it, such as F32 or BF16.
        shape: its dimensions.
        start, stop: its bytes in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: with a reason that follows the file's name in a sentence, if the file is damaged or of another kind.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        beginning = file.read(len(_LFS))
        if beginning == _LFS:
            raise ValueError("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
        length = int.from_bytes(beginning[:8], "little")
        damaged = "is truncated or not a safetensors file"
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{damaged} ({size:,} bytes)")
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", None) or {}
            tensors = {name: _entry(path, entry, 8 + length) for name, entry in header.items()}
        except (
            UnicodeDecodeError,
            json.JSONDecodeError,
            RecursionError,
            AttributeError,
            TypeError,
            KeyError,
            ValueError,
        ):
            raise ValueError(f"{damaged} (its header cannot be read)") from None
    end = max((tensor.stop for tensor in tensors.values()), default=0)
    if end > size:
        raise ValueError(f"{damaged} ({size:,} of {end:,} bytes)")
    for name, tensor in tensors.items():
        bits = math.prod(tensor.shape) * _BITS.get(tensor.dtype, 0)
        if tensor.dtype in _BITS and (bits + 7) // 8 != tensor.stop - tensor.start:
            raise ValueError(
                f"{damaged} ({name} has {tensor.stop - tensor.start:,} bytes, its shape needs {bits // 8:,})"
            )
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _entry(path: Path, entry: Mapping[str, Any], data: int) -> Tensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    numbers = [*shape, begin, end]
    if any(isinstance(x, bool) or not isinstance(x, int) or x < 0 for x in numbers) or end < begin:
        raise ValueError
    if not isinstance(entry["dtype"], str):
        raise TypeError
    return Tensor(path, entry["dtype"], shape, data + begin, data + end)


def no_pickles(old: str, name: str) -> str:
    """Return the reason why a folder that holds only a pickle is refused."""
    return (
        f"holds {old} but no {name}; a pickle runs code when it is read, so it is refused: convert it with"
        " save_pretrained of the library that wrote it"
    )


class TensorFile(Mapping[str, jax.Array]):
    """The tensors of one safetensors file, or of several shards with an index, read on access.

    The index decides which shard holds a tensor: a copy in another shard, left over from an earlier save, is not read.

    Args:
        folder: folder of the files.
        argument: its name in error messages.
        name: the file's name. If there is no such file, its index `NAME.index.json` is read.
        given: the path of one file that the user named, which is then read and nothing else: a safetensors file or an index.
        parts: folders inside of this one that hold one file each (or its shards), by what the names of their tensors begin with;
            by default this folder alone.

    Attributes:
        folder: as given.
        files: the files' paths within the folder, those that the index names first.
        metadata: the metadata of all files.
        quantized: names of tensors that are quantised weights or belong to one, and the kind of each, worded to follow "is".
        quantized_modules: the same for the modules that these belong to.

    Raises:
        InputError: if a file is missing, damaged, a pickle, or lacks a tensor that the index promises.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        argument: str = "model",
        name: str = WEIGHTS,
        *,
        given: str | os.PathLike | None = None,
        parts: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self._argument, self._given = Path(folder), argument, given
        self.files: list[str] = []
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}
        for prefix, part in ({"": ""} if parts is None else parts).items():
            inner = self.folder / part
            if given is not None and Path(given).suffix == ".json":
                tensors = self._read_shards(Path(given))
            elif given is not None or (inner / name).is_file():
                tensors = self._read_file(inner / name)
            elif (index := inner / f"{name}{INDEX}").is_file():
                tensors = self._read_shards(index)
            else:
                old = PICKLE if name == WEIGHTS else f"{Path(name).stem}.bin"
                if (inner / old).exists() or (inner / f"{old}{INDEX}").exists():
                    raise self._error(no_pickles(old, name))
                raise self._error(f"holds neither {name} nor {name}{INDEX}")
            self._tensors |= {f"{prefix}{key}": tensor for key, tensor in tensors.items()}
        self.quantized, self.quantized_modules = quantized_tensors(
            {name: tensor.dtype for name, tensor in self._tensors.items()}
        )

    def _error(self, text: str, file: str = "") -> InputError:
        if self._given is not None and file in ("", Path(self._given).name):
            return InputError(f"{self._argument} = {self._given}: {text}")
        return InputError(f"{self._argument} = {self.folder}: {file}{' ' * bool(file)}{text}")

    def _read_shards(self, index: Path) -> dict[str, Tensor]:
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shard_of = {name: Path(file).name for name, file in weight_map.items()}
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise self._error(f"cannot be read ({shown(str(error))})", index.name) from None
        except (KeyError, AttributeError, TypeError) as error:
            raise self._error(
                f"cannot be read (no weight_map of names and files: {shown(str(error))})", index.name
            ) from None
        tensors, files = {}, []
        for file in dict.fromkeys(shard_of.values()):
            files.append(file)
            for name, tensor in self._read_file(index.parent / file).items():
                if shard_of.setdefault(name, file) == file:
                    tensors[name] = tensor
        for file in files:
            if lost := sorted(name for name, shard in shard_of.items() if shard == file and name not in tensors):
                raise self._error(f"lacks {listed(lost)}, which {index.name} promises", file)
        return tensors

    def _read_file(self, path: Path) -> dict[str, Tensor]:
        file = path.relative_to(self.folder).as_posix()
        if not path.is_file():
            raise self._error("is missing", file)
        try:
            tensors, metadata = read_header(path)
        except ValueError as error:
            raise self._error(str(error), file) from None
        except OSError as error:
            raise self._error(f"cannot be read ({shown(str(error))})", file) from None
        self.files.append(file)
        self.metadata |= metadata
        return tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def in_file(self, file: str) -> list[str]:
        """Return the names of the tensors that are read from one of the files."""
        return [name for name, tensor in self._tensors.items() if tensor.file == self.folder / file]

    def place(self, name: str) -> Tensor:
        """Return the location of a tensor."""
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """Return the type of a tensor as safetensors names it, such as F32 or BF16, without reading it."""
        return self._tensors[name].dtype

    def unreadable(self, name: str) -> str | None:
        """Return the reason why a tensor cannot be read as weights, worded to follow "is"; None if it can."""
        tensor = self._tensors[name]
        if name in self.quantized:
            return self.quantized[name]
        if tensor.dtype not in FLOATS:
            return f"of type {tensor.dtype}, which is not supported (supported: {', '.join(FLOATS)})"
        if math.prod(tensor.shape) == 0:
            return f"empty (shape {list(tensor.shape)}), as DeepSpeed's ZeRO-3 leaves a weight that it has not gathered"
        return None

    def check_readable(self, name: str) -> None:
        """Raise InputError for a tensor that cannot be read as weights."""
        if reason := self.unreadable(name):
            raise self._error(f"holds {name}, which is {reason}", self._tensors[name].file.name)

    def __getitem__(self, name: str) -> jax.Array:
        """Return a tensor of weights in its own type, as an array of JAX.

        Raises:
            InputError: if it is quantised or of integers, or the file has changed.
        """
        return jnp.asarray(self._read(name))

    def on_host(self, name: str) -> np.ndarray:
        """Return a tensor of weights in float32, copied so that no page of the file stays mapped.

        Raises:
            InputError: if it is quantised or of integers, or the file has changed.
        """
        return self._read(name).astype(np.float32, copy=False)

    def part_on_host(self, name: str, index: int | None) -> np.ndarray:
        """Return one slice along the first dimension in float32, such as one expert's matrix, without reading the others.

        Without an index it is the whole tensor.
        """
        return self._read(name, index).astype(np.float32, copy=False)

    def _read(self, name: str, index: int | None = None) -> np.ndarray:
        tensor = self._tensors[name]
        if name in self.quantized or tensor.dtype not in FLOATS:
            self.check_readable(name)
        shape = tensor.shape if index is None else tensor.shape[1:]
        count, dtype = math.prod(shape), np.dtype(FLOATS[tensor.dtype])
        start = tensor.start + (index or 0) * count * dtype.itemsize
        try:
            return np.fromfile(tensor.file, dtype, count, offset=start).reshape(shape)
        except (OSError, ValueError) as error:
            raise self._error(f"cannot be read: {name} ({shown(str(error))})", tensor.file.name) from None
