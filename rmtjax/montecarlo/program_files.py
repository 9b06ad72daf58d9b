"""Compiled programs kept on disk for the next process.

They lie beside those of JAX's compilation cache, in its subfolder `rmtjax-programs`, if that cache is on. JAX's cache
saves the compilation; this one saves the trace and the lowering, too, which take longer than a short run. The name of an
entry is a hash of everything that decides what the program computes: the source of this package, the versions of the packages
below it, the sampler, the shapes, JAX's configuration, the compiler and the processor. A sampler that is not made of
functions of this package alone has no such hash, and its programs are never written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import logging
import os
import re
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rmtjax
from rmtjax._files import write_bytes
from rmtjax._machine import processor_features
from rmtjax._provenance import versions

__all__ = ["ProgramFiles", "Unknown", "fingerprint", "jax_cache"]

_LOGGER = logging.getLogger(__name__)

_PACKAGE = Path(rmtjax.__file__).resolve().parent

_STARTED = time.time()

_SETTLED_S = 5.0
"""A source file that changed less than this before the import, in seconds, may differ from the imported code."""

_FOLDER = "rmtjax-programs"

_VERSIONS = 3
"""Number of versions of the source whose programs stay on disk."""

_UNUSED_S = 60 * 86400.0
"""An executable that is unused for longer is dropped, in seconds."""

_IRRELEVANT = (
    "cache",
    "cpu_devices",
    "platforms",
    "traceback",
    "log",
    "profile",
    "distributed",
    "explain",
    "check_tracer",
)
"""Parts of the names of JAX's options that do not change what a program computes."""


class Unknown(Exception):
    """Raised for a sampler with parts that cannot be identified well enough to name its programs."""


def fingerprint(value: Any) -> str:
    """Return a text that two values share only if they compute the same, given the source of this package.

    Raises:
        Unknown: for a function whose code is not this package's, or a value of an unusual type.
    """
    digest = hashlib.sha256()
    _feed(value, digest, [])
    return digest.hexdigest()


def _feed(value: Any, digest: Any, parents: list[int]) -> None:
    digest.update(f"|{type(value).__module__}.{type(value).__qualname__}:".encode())
    if id(value) in parents:
        digest.update(b"itself")
        return
    parents = [*parents, id(value)]
    if (
        value is None
        or value is Ellipsis
        or isinstance(value, (bool, int, float, complex, str, bytes, inspect.Signature))
    ):
        digest.update(repr(value).encode())
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        digest.update(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, (tuple, list)):
        digest.update(f"{len(value)}".encode())
        for part in value:
            _feed(part, digest, parents)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            _feed(key, digest, parents)
            _feed(value[key], digest, parents)
    elif isinstance(value, functools.partial):
        _feed((value.func, value.args, dict(value.keywords)), digest, parents)
    elif isinstance(value, types.FunctionType):
        _feed_function(value, digest, parents)
    elif dataclasses.is_dataclass(type(value)) and _is_ours(type(value)):
        _feed(vars(value), digest, parents)
    elif _is_ours(value):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
        _feed(getattr(value, "__wrapped__", None), digest, parents)
    else:
        raise Unknown(f"{value!r} is neither a plain value nor a function of this package")


def _feed_function(function: types.FunctionType, digest: Any, parents: list[int]) -> None:
    code = function.__code__
    if not Path(code.co_filename).resolve().is_relative_to(_PACKAGE):
        raise Unknown(f"{function.__qualname__} is defined in {code.co_filename}")
    digest.update(f"{function.__module__}.{function.__qualname__}:{code.co_firstlineno}:".encode())
    digest.update(code.co_code + repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    # Two lambdas in one line differ in their constants, of which those that are code have no text of their own.
    digest.update(repr([c for c in code.co_consts if not isinstance(c, types.CodeType)]).encode())
    _feed((function.__defaults__, function.__kwdefaults__), digest, parents)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        digest.update(name.encode())
        try:
            content = cell.cell_contents
        except ValueError:
            raise Unknown(f"{name} of {function.__qualname__} has no value yet") from None
        _feed(content, digest, parents)


def _is_ours(value: Any) -> bool:
    """Return whether a value is what the source of this package, of JAX or of NumPy binds to its name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)):
        return False
    if module.partition(".")[0] not in ("rmtjax", "jax", "numpy"):
        return False
    bound = sys.modules.get(module)
    for part in name.split("."):
        bound = getattr(bound, part, None)
    return bound is value


@functools.cache
def _source() -> str | None:
    """Return a hash of the package's source; None if a file may have changed since it was imported."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        try:
            if path.stat().st_mtime > _STARTED - _SETTLED_S:
                return None
            digest.update(f"{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes())
        except OSError:
            return None
    return digest.hexdigest()


def _circumstances(device: jax.Device) -> dict[str, Any]:
    """Return everything besides source and shapes that determines a program."""
    config = {name: repr(value) for name, value in jax.config.values.items()}
    return {
        "config": {n: v for n, v in config.items() if not any(part in n for part in _IRRELEVANT)},
        "environment": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
        "platform": (device.platform, device.device_kind, device.client.platform_version),
        "processor": processor_features() if device.platform == "cpu" else "",
    }


class ProgramFiles:
    """The programs in a folder, for one device.

    A program's file is named by the hash of its lowered text, by which it is found after a lowering. Without a lowering it is
    found through a small file that holds this name and is itself named by a hash of the program's parts. Thus a new version of
    this package compiles only the programs that it changed.

    Args:
        folder: folder of the files; None keeps nothing.
        device: device of the programs.
    """

    def __init__(self, folder: Path | None, device: jax.Device) -> None:
        self._folder = folder
        self._circumstances = {} if folder is None else _circumstances(device)

    @classmethod
    def beside_jax(cls, device: jax.Device) -> ProgramFiles:
        """Return the programs beside JAX's compilation cache, none if that is off or not on a disk."""
        folder = jax_cache()
        return cls(None if folder is None or "://" in folder else Path(folder) / _FOLDER, device)

    def name(self, parts: Any) -> str | None:
        """Return the name of the program made from these parts; None if it must not be kept."""
        source = None if self._folder is None else _source()
        if source is None:
            return None
        try:
            name = fingerprint((parts, self._circumstances))
        except Unknown as reason:
            _LOGGER.info("the program is not kept: %s", reason)
            return None
        version = hashlib.sha256(f"{source} {_versions()}".encode()).hexdigest()[:16]
        return f"source-{version}/{name}"

    def content_name(self, text: str, alone: bool) -> str:
        """Return the name of the program with a given lowered text."""
        return f"executables/{fingerprint((text, alone, _versions(), self._circumstances))}"

    def find(self, name: str | None) -> bytes | None:
        """Return the content of the file of either name; None if it cannot be read."""
        if name is None or self._folder is None:
            return None
        try:
            if not name.startswith("executables/"):
                name = (self._folder / name).read_text("ascii")
                if not re.fullmatch("executables/[0-9a-f]{64}", name):
                    return None
            path = self._folder / name
            data = path.read_bytes()
            os.utime(path)  # a file that is used does not age
            return data
        except (OSError, ValueError):
            return None

    def write(self, name: str, content_name: str, data: bytes) -> None:
        """Write a program under both its names, if the folder is writable, and drop unused ones."""
        try:
            for file, content in ((content_name, data), (name, content_name.encode("ascii"))):
                path = self._folder / file
                is_first = not path.parent.is_dir()
                path.parent.mkdir(parents=True, exist_ok=True)
                if file != content_name or not path.is_file() or path.read_bytes() != data:
                    write_bytes(path, content)
                if is_first:
                    self._clean()
        except OSError as error:
            _LOGGER.info("the program cannot be kept in %s: %s", self._folder, error)

    def _clean(self) -> None:
        """Drop the names of old versions and unused executables; files with other names stay."""
        versions = [path for path in self._folder.iterdir() if re.fullmatch("source-[0-9a-f]{16}", path.name)]
        old = [file for path in sorted(versions, key=_age)[_VERSIONS:] for file in path.iterdir()]
        unused = [file for file in (self._folder / "executables").iterdir() if _age(file) > _UNUSED_S]
        for file in (*old, *unused):
            if re.fullmatch("[0-9a-f]{64}", file.name):
                file.unlink(missing_ok=True)
        for path in versions:
            with contextlib.suppress(OSError):
                path.rmdir()  # only if it is empty


def jax_cache() -> str | None:
    """Return the folder of JAX's compilation cache; None if that is off."""
    folder = jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
    return folder or None  # an empty path also means off, not the current folder


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _versions() -> str:
    return versions("scipy", "ml_dtypes")
