"""The tensors of safetensors files, one at a time in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, listed, shown

__all__ = ["FLOATS", "TensorFile"]

WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""Types of floating-point numbers by the names that safetensors has for them."""


def no_pickles(old: str, name: str) -> str:
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

    def __init__(self, folder: str | os.PathLike, argument: str = "model", name: str = WEIGHTS) -> None:
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
            old = PICKLE if name == WEIGHTS else f"{Path(name).stem}.bin"
            if (self.folder / old).exists() or (self.folder / f"{old}.index.json").exists():
                raise self._error(no_pickles(old, name))
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
