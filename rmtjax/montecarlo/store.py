"""A Zarr store that a run is written to chunk by chunk.

Layout: the root's attributes hold the run's specification; ``law/`` what is predicted; ``tiles/`` the statistics of the tiles,
a row each in the order of the rounds (`rmtjax.montecarlo.plan`), ``moments`` being mean, sum of squares, least and largest
value, with a checksum for each chunk; ``result/`` the finished dataset; ``provenance/`` how each session that worked on it
went, the only part that may differ between two runs of the same specification.

Every file appears under its name only when it is complete. The ``count`` of a chunk is written last, so a chunk whose
``count`` is there is there altogether.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from rmtjax._errors import InputError, shown
from rmtjax.montecarlo.plan import Plan
from rmtjax.montecarlo.result import assemble, rows_of
from rmtjax.montecarlo.statistics import Moments, merge_tiles

__all__ = ["Store", "joined", "open_result", "state", "write_result"]

_FORMAT = "rmtjax run 2"
_MOMENTS = ("mean", "m2", "min", "max")
_MOST = 1 << 40
"""Tiles that there is room for where their number is not known."""


class Store:
    """One run on disk. Get it from `Store.open`."""

    def __init__(self, path: Path, root: zarr.Group, plan: Plan, new: bool) -> None:
        self.path, self.plan, self._new = path, plan, new
        self._root = root
        self._group = root["tiles"]
        self._arrays = {name: array for name, array in self._group.arrays()}
        self._done = self._found()

    @classmethod
    def open(cls, path: str | os.PathLike, plan: Plan, made: Mapping[str, Any], law: Mapping[str, np.ndarray]) -> Store:
        """Open the store of this very run, or make it where there is nothing.

        Args:
            path: a folder.
            plan: of the run.
            made: seed, method and options.
            law: what is predicted, by output.

        Raises:
            InputError: where something else is there; it is left as it was.
        """
        path = Path(path)
        new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        wanted = {"format": _FORMAT, "claim": plan.about["claim"], **made, **plan.as_dict()}
        if not new:
            root, found = _read_root(path)
            for key, value in wanted.items():
                if found.get(key) != value:
                    raise InputError(
                        f"store {path} holds another run: its {key} is {shown(found.get(key))}, here it is {shown(value)};"
                        " give another folder or remove this one"
                    )
        else:
            try:
                root = _made(path, wanted, law)
            except OSError as error:
                raise InputError(f"store {path} cannot be made: {error.strerror or error}") from None
        return cls(path, root, plan, new)

    def discard(self) -> None:
        """Remove a store that this process made and that holds no chunk, so that a mended run can take its place."""
        if self._new and not self._done:
            shutil.rmtree(self.path)

    def _found(self) -> set[int]:
        """Which chunks are complete: those whose `count`, written last, is there."""
        folder = self.path / "tiles" / "count"
        if not folder.is_dir():
            return set()
        parts = (name.split(".") for name in os.listdir(folder))
        return {int(part[1]) for part in parts if part[0] == "c" and part[-1].isdigit()}

    def has(self, chunk: int) -> bool:
        """Whether a chunk is stored."""
        return chunk in self._done

    def write(self, chunk: int, values: Mapping[str, np.ndarray]) -> None:
        """Store a chunk, arrays (tiles of a chunk, …): all of it, `count` last."""
        size = self.plan.chunk
        values = {
            "moments": np.stack([values[name] for name in _MOMENTS], 1),
            **{name: v for name, v in values.items() if name not in (*_MOMENTS, "count")},
            "count": values["count"],
        }
        for name, v in values.items():
            if name not in self._arrays:
                self._arrays[name] = self._group.create_array(
                    name,
                    shape=(_MOST // size * size, *v.shape[1:]),
                    chunks=(size, *v.shape[1:]),
                    dtype=v.dtype,
                    compressors=[ZstdCodec(level=1), Crc32cCodec()],
                    chunk_key_encoding={"name": "default", "separator": "."},
                    fill_value=0,
                    config={"write_empty_chunks": True},
                )
            self._arrays[name][chunk * size : (chunk + 1) * size] = v
        self._done.add(chunk)

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The statistics of tiles start … stop − 1, zero where they are not stored.

        Raises:
            InputError: if a chunk is damaged.
        """
        found = {}
        for name, array in self._arrays.items():
            try:
                found[name] = np.asarray(array[start:stop])
            except Exception as error:
                raise InputError(
                    f"store {self.path} is damaged: a chunk of tiles/{name} cannot be read ({error}); remove the folder and"
                    " run again"
                ) from None
        moments = found.pop("moments")
        return {**{name: moments[:, i] for i, name in enumerate(_MOMENTS)}, **found}

    def so_far(self) -> xr.Dataset:
        """The dataset of the chunks that are there."""
        size, tiles = self.plan.chunk, self.plan.first()
        chosen, parts, start = [], [], 0
        while len(tiles):
            there = [i for i in range(-(-len(tiles) // size)) if self.has(start // size + i)]
            live = np.concatenate(
                [np.arange(i * size, min((i + 1) * size, len(tiles))) for i in there] or [np.empty(0, int)]
            )
            values = self.read(start, start + len(tiles)) if there else {}
            chosen.append(tiles[live])
            parts.append({name: v[live] for name, v in values.items()})
            if len(live) < len(tiles):
                break
            start += -(-len(tiles) // size) * size
            tiles = self.plan.next(*state(self.plan, np.concatenate(chosen), parts))
        if not any(len(c) for c in chosen):
            raise InputError(f"store {self.path} holds no chunk yet: wait until the run has written one")
        law = {name: np.asarray(array[...]) for name, array in self._root["law"].arrays()}
        parts = [part for part in parts if part]
        return assemble(self.plan, law, np.concatenate(chosen), joined(parts))

    def finish(self, result: xr.Dataset, made: Mapping[str, Any]) -> None:
        """Add the finished dataset and how this session went."""
        if "provenance" not in self._root:  # which comes last: where it is, the result is complete
            _write_dataset(result, self.path)
        log = self._root.require_group("provenance")
        log.attrs["sessions"] = [*log.attrs.get("sessions", []), dict(made)]


def _made(path: Path, attributes: Mapping[str, Any], law: Mapping[str, np.ndarray]) -> zarr.Group:
    """A new store. It takes its name when it is complete, so that no kill leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    root = zarr.create_group(unfinished, attributes=attributes, zarr_format=3)
    root.create_group("tiles")
    predicted = root.create_group("law")
    for name, values in law.items():
        predicted.create_array(name, data=np.ascontiguousarray(values), compressors=ZstdCodec(level=1))
    unfinished.rename(path)
    return zarr.open_group(path, mode="r+", zarr_format=3)


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Statistics of several lists of tiles as those of one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def state(plan: Plan, tiles: np.ndarray, parts: Sequence[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """What a plan decides its next round by: blocks, trials and sums of squares of each cell."""
    cell, _, rows = rows_of(plan, tiles, joined([{n: p[n] for n in ("count", *_MOMENTS)} for p in parts]))
    merged = merge_tiles((Moments(),), rows, cell)
    return np.bincount(cell, minlength=plan.outer.size), merged["count"], merged["m2"]


def _write_dataset(result: xr.Dataset, path: Path) -> None:
    texts = {name: c.astype(object) for name, c in result.coords.items() if c.dtype.kind == "U"}
    result.assign_coords(texts).to_zarr(path, group="result", mode="w", zarr_format=3, consolidated=False)


def write_result(path: str | os.PathLike, result: xr.Dataset) -> None:
    """Keep a result that is of no single run, such as several merged, where `open_result` finds it.

    Raises:
        InputError: if there is something already, or the place cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"out = {path}: exists already; give a folder that does not")
    unfinished = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        about = {name: result.attrs[name] for name in ("claim", "equation", "source")}
        root = zarr.create_group(unfinished, attributes={"format": _FORMAT, **about}, zarr_format=3)
        _write_dataset(result.drop_attrs(deep=False).assign_attrs(about), unfinished)
        root.create_group(
            "provenance", attributes={"sessions": [{k: v for k, v in result.attrs.items() if k not in about}]}
        )
        unfinished.rename(path)
    except OSError as error:
        raise InputError(f"out = {path}: cannot be written: {error.strerror or error}") from None


def _read_root(path: Path) -> tuple[zarr.Group, dict[str, Any]]:
    refusal = f"store {path} is not a run of rmtjax"
    if not path.is_dir():
        raise InputError(f"{refusal}: it is a file; give a folder that does not exist yet or that holds a run")
    try:
        root = zarr.open_group(path, mode="r+", zarr_format=3)
        found = dict(root.attrs)
    except FileNotFoundError:
        raise InputError(f"{refusal}: it holds other files; give another folder") from None
    except Exception as error:
        raise InputError(f"store {path} is damaged: its zarr.json cannot be read ({type(error).__name__})") from None
    if found.get("format") != _FORMAT:
        raise InputError(f"{refusal}: its format is {shown(found.get('format'))}, here it is {_FORMAT!r}")
    return root, found


def open_result(path: str | os.PathLike) -> xr.Dataset:
    """The dataset of a store, or of several that were merged, with the provenance of its last session.

    A run that is not finished, which may be writing just now, gives what it has: cells without a trial are NaN, and the
    attribute ``unfinished`` is 1.

    Raises:
        InputError: if the folder is not a store of ours, is damaged or holds no chunk yet.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"store {path} does not exist")
    root, found = _read_root(path)
    if "provenance" not in root:
        result = Store(path, root, Plan.from_dict(found), new=False).so_far()
        options = {f"option_{name}": value for name, value in found["options"].items()}
        return result.assign_attrs(
            seed=found["seed"], method=found["method"], **options, trials_per_cell=found["trials"], unfinished=1
        )  # fmt: skip
    try:
        result = xr.open_zarr(path, group="result", consolidated=False).load()
        sessions = root["provenance"].attrs["sessions"]
    except Exception as error:
        raise InputError(f"store {path} is damaged: its result cannot be read ({type(error).__name__})") from None
    return result.assign_attrs(sessions[-1])
