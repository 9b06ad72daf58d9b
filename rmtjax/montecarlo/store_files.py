"""The files of a store: atomic creation, digests against damage, and the provenance of their writers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtjax import _checks
from rmtjax._errors import InputError, shown
from rmtjax._files import settle, sync

if TYPE_CHECKING:
    import xarray as xr
    import zarr

__all__ = [
    "FORMAT",
    "appearing",
    "check_folder",
    "folder_digest",
    "folder_path",
    "intact",
    "is_free",
    "layout_digest",
    "read_root",
    "read_sessions",
    "signed",
    "write_dataset",
    "write_sessions",
    "writing",
]

FORMAT = "rmtjax run 3"
"""The version of the layout, in the attributes of the root."""


def folder_path(name: str, path: Any) -> Path:
    """Return the path of a folder.

    Raises:
        InputError: for an empty text, or anything that is not a path.
    """
    allowed = "the path of a folder"
    text = _checks.path(name, path, allowed)
    if text in ("", ".") or "\0" in text:
        raise InputError(f"{name} = {shown(path)}: must be {allowed}")
    return Path(text)


def is_free(path: Path) -> bool:
    """Return whether a path does not exist, or is an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextlib.contextmanager
def writing(target: str) -> Iterator[None]:
    """Translate errors of the file system into an InputError that names the argument."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def intact(path: Path, cure: str = "remove it and run again") -> Iterator[None]:
    """Translate reader errors that corrupted files cause into InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # for example a full disk; Zarr's own errors have no number
            raise
        if "start new thread" in str(error):
            raise MemoryError(str(error)) from None
        message = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputError(f"store {path} is damaged ({message}); {cure}") from None


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, which is renamed into place when complete, so that a kill never leaves half a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        yield unfinished
        settle(unfinished)
        unfinished.rename(path)
        sync(path.resolve().parent)


def folder_digest(folder: Path) -> str:
    """Return a digest of the files in a folder and their names, since Zarr silently reads zeros or NaN for a lost file."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            content = file.read_bytes()
            digest.update(f"{file.relative_to(folder).as_posix()} {len(content)} ".encode())
            digest.update(content)
    return digest.hexdigest()


def layout_digest(content: bytes) -> str:
    """Return a digest of an array's zarr.json without its attributes; it defines how bytes become numbers."""
    about = {key: value for key, value in json.loads(content).items() if key != "attributes"}
    return signed(about)["digest"]


def signed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with their digest, which reveals later changes."""
    text = json.dumps(attributes, sort_keys=True)
    return {**attributes, "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def is_signed(attributes: Mapping[str, Any]) -> bool:
    """Return whether attributes still match their digest."""
    return signed({key: value for key, value in attributes.items() if key != "digest"}) == attributes


def check_folder(path: Path, name: str, digest: str, cure: str = "") -> None:
    """Raise `InputError` if the files of a folder have changed since they were written."""
    if folder_digest(path / name) != digest:
        raise InputError(f"store {path} is damaged: its {name} has changed since it was written{cure}")


def write_sessions(path: Path, root: zarr.Group, sessions: Sequence[Mapping[str, Any]]) -> None:
    """Write the provenance of all sessions and the digest of the result's files, after everything else."""
    attributes = signed({"sessions": list(sessions), "result": folder_digest(path / "result")})
    root.require_group("provenance").attrs.put(attributes)
    settle(path / "provenance")


def read_sessions(path: Path, root: zarr.Group) -> tuple[list[dict[str, Any]], str] | None:
    """Return the provenance of the sessions of a finished run and its result's digest; None if it is not finished."""
    attributes = dict(root["provenance"].attrs) if "provenance" in root else {}
    if not attributes:
        return None
    if not is_signed(attributes):
        raise InputError(f"store {path} is damaged: its provenance has changed since it was written")
    return attributes["sessions"], attributes["result"]


def write_dataset(result: xr.Dataset, path: Path) -> None:
    """Write the finished dataset of a store."""
    texts = {name: c.astype(object) for name, c in result.coords.items() if c.dtype.kind == "U"}
    result.assign_coords(texts).to_zarr(path, group="result", mode="w", zarr_format=3, consolidated=False)


def read_root(path: Path) -> tuple[zarr.Group, dict[str, Any]]:
    """Return the root of a store and its attributes.

    Raises:
        InputError: for anything but an rmtjax store, or for a damaged one.
    """
    import zarr

    refusal = f"store {path} is not a run of rmtjax"
    if not path.is_dir():
        raise InputError(f"{refusal}: it is a file; choose a new folder or one that holds a run")
    try:
        root = zarr.open_group(path, mode="r", zarr_format=3)
        attributes = dict(root.attrs)
    except FileNotFoundError:
        raise InputError(f"{refusal}: it holds other files; choose another folder") from None
    except Exception as error:
        raise InputError(f"store {path} is damaged: its zarr.json cannot be read ({type(error).__name__})") from None
    if attributes.get("format") != FORMAT:
        raise InputError(f"{refusal}: its format is {shown(attributes.get('format'))}, here it is {FORMAT!r}")
    if not is_signed(attributes):
        raise InputError(f"store {path} is damaged: its zarr.json has changed since it was written")
    # Stores from before 0.1.0 have each axis as values by name, and under an empty name whether it is fixed.
    for i, axis in enumerate(attributes.get("grid", ())):
        if "" in axis:
            values = {name: v for name, v in axis.items() if name}
            attributes["grid"][i] = {"values": values, "fixed": axis[""]}
    return root, attributes
