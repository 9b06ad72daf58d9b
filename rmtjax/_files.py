"""Files that a run writes: whole or not at all, and on disk before the run reports success."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rmtjax._errors import InputError
from rmtjax._text import ascii_json, visible_json

__all__ = [
    "LOCK",
    "lock_folder",
    "prepare_file",
    "prepare_folder",
    "settle",
    "sync",
    "write_bytes",
    "write_json",
    "write_text",
    "write_with",
]

_LOGGER = logging.getLogger(__name__)

LOCK = ".lock"
"""The lock file of the run that writes to a folder. It stays behind, empty."""


def prepare_folder(name: str, path: str | os.PathLike) -> Path:
    """Return a folder to write into, created before anything is computed.

    Raises:
        InputError: naming the argument, if it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{name} = {path}: cannot be used as an output folder ({error.strerror})") from None
    if not os.access(path, os.W_OK):
        raise InputError(f"{name} = {path}: the folder cannot be written to")
    return path


def lock_folder(name: str, path: Path) -> Callable[[], None]:
    """Lock a folder for writing until the returned function is called or the process ends, however it ends.

    Where the file system has no locks, a warning says so, and other processes are not kept out.

    Raises:
        InputError: if another process writes it, or if it cannot be written to.
    """
    from filelock import FileLock, Timeout

    if not os.access(path, os.W_OK):
        raise InputError(f"{name} = {path}: the folder cannot be written to")
    lock = FileLock(path / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{name} = {path}: another run is writing to it; wait until it ends or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        _LOGGER.warning(
            "%s = %s: the file system has no locks (%s); make sure that no other run writes this folder",
            name,
            path,
            error,
        )
        return lambda: None
    return functools.partial(lock.release, force=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk."""
    windows, folder = os.name == "nt", path.is_dir()
    if windows and folder:  # Windows syncs names with the files
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # some file systems cannot sync a folder
    finally:
        os.close(descriptor)


def settle(folder: Path) -> None:
    """Wait until a folder and everything below it are on disk, so that they survive a power failure."""
    for place, _, files in os.walk(folder):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))
    sync(folder.resolve().parent)


def prepare_file(name: str, path: str) -> str:
    """Check that a file can be written (``-`` is standard output) before any work is done."""
    if path != "-":
        if Path(path).is_dir():
            raise InputError(f"{name} = {path}: is a folder; must be a file, or - for standard output")
        prepare_folder(name, Path(path).resolve().parent)
    return path


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically, so that a reader sees either the old one or the new one; ``-`` is standard output."""
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a binary file atomically, so that a reader sees either the old one or the new one."""
    write_with(path, lambda file: file.write(content))


def write_with(path: str | os.PathLike, fill: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically with a function that writes into an open file."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _finite(value: Any) -> Any:
    # JSON has no NaN or infinity; a consumer gets null.
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON (NaN and ±∞ as null) with `write_text`.

    Characters that do not print are escapes in it, and so is what standard output cannot encode.
    """
    plain = json.loads(json.dumps(content, default=_plain))
    text = visible_json(json.dumps(_finite(plain), indent=1, ensure_ascii=False, allow_nan=False)) + "\n"
    if str(path) == "-":
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            text = ascii_json(text)
    write_text(path, text)
