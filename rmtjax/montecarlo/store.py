"""A Zarr store to which a run is written chunk by chunk.

Layout: the root's attributes hold the run's specification; ``law/`` the predictions; ``tiles/`` the statistics of the tiles,
a row each in the order of the rounds (`rmtjax.montecarlo.plan`), ``moments`` being mean, sum of squares, least and largest
value, with a checksum for each chunk; ``result/`` the finished dataset; ``provenance/`` a record of the session
that finished it, the only part that may differ between two runs of the same specification.

Every file appears under its name only when it is complete. The ``count`` of a chunk is written last, so a chunk whose
``count`` exists is complete. Whoever writes holds a lock on the folder, which the system releases when the process ends.
Digests reveal changed files before their bytes are decoded. A run draws a chunk that is
damaged or lost again, and writes a damaged result again; it cannot restore its own description.
Everything is on disk before the provenance says that the run is finished.
"""

from __future__ import annotations

import logging
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtjax._errors import InputError, shown
from rmtjax._files import LOCK, lock_folder, settle
from rmtjax._random import GENERATOR
from rmtjax.montecarlo.plan import Plan
from rmtjax.montecarlo.result import assemble, rows_of, same_law
from rmtjax.montecarlo.statistics import Moments, merge_tiles
from rmtjax.montecarlo.store_files import (
    FORMAT,
    appearing,
    check_folder,
    folder_digest,
    folder_path,
    intact,
    is_free,
    layout_digest,
    read_root,
    read_sessions,
    signed,
    write_dataset,
    write_sessions,
    writing,
)

if TYPE_CHECKING:
    import xarray as xr
    import zarr

__all__ = ["Store", "joined", "open_result", "state", "write_result"]

_LOGGER = logging.getLogger(__name__)

_MOMENTS = ("mean", "m2", "min", "max")
_MOST = 1 << 40
"""Capacity of a store, in tiles, if the number of tiles depends on the draws."""


class Store:
    """One run on disk. Get it from `Store.open`."""

    def __init__(self, path: Path, root: zarr.Group, plan: Plan) -> None:
        self.path, self.plan, self._root = path, plan, root
        self._new, self._folder_was_there = False, False
        self._release: Callable[[], None] | None = None
        self._group = root["tiles"]
        self._arrays = {name: array for name, array in self._group.arrays()}
        self._done, self._lost = self._stored()
        self._redrawn: set[int] = set()

    @classmethod
    def open(
        cls, path: str | os.PathLike, plan: Plan, settings: Mapping[str, Any], law: Mapping[str, np.ndarray]
    ) -> Store:
        """Return the store of this run, creating it if nothing exists.

        Args:
            path: a folder.
            plan: of the run.
            settings: seed, method, options and generator.
            law: the predictions, by output.

        Raises:
            InputError: if the path holds something else, which is left untouched; if another process is writing; if nothing can
                be written.
        """
        import zarr
        from zarr.codecs import ZstdCodec

        path = folder_path("store", path)
        new, empty = is_free(path), path.is_dir()
        expected = {"format": FORMAT, "claim": plan.about["claim"], **settings, **plan.to_dict()}
        if new:
            with writing(f"store {path}"), appearing(path) as unfinished:
                root = zarr.create_group(unfinished, zarr_format=3)
                root.create_group("tiles")
                predicted = root.create_group("law")
                for name, values in law.items():
                    predicted.create_array(name, data=np.ascontiguousarray(values), compressors=ZstdCodec(level=1))
                root.attrs.put(signed({**expected, "law": folder_digest(unfinished / "law")}))
        else:
            root, attributes = read_root(path)
            if "generator" not in attributes:
                _LOGGER.warning(
                    "store %s does not say which generator it was drawn with; it is taken to be %s, JAX's default",
                    path, GENERATOR,
                )  # fmt: skip
            attributes = {"generator": GENERATOR} | attributes
            for key, value in expected.items():
                if attributes.get(key) != value:
                    entry, stored, wanted = _difference(key, attributes.get(key), value)
                    raise InputError(
                        f"store {path} holds a different run: its {entry} is {shown(stored)}, here it is {shown(wanted)};"
                        " choose another folder or remove this one"
                    )
            check_folder(path, "law", attributes["law"])
            with intact(path):
                before = {name: np.asarray(array[...]) for name, array in root["law"].arrays()}
            for name, values in law.items():
                if not same_law(
                    before[name].ravel(), np.ravel(values)
                ):  # that of a single cell is stored with one axis
                    raise InputError(
                        f"store {path} holds a different run: its law of {name} has different values; choose another folder"
                        " or remove this one"
                    )
        release = lock_folder("store", path)
        try:
            with intact(path):
                store = cls(path, zarr.open_group(path, mode="r+", zarr_format=3), plan)
                read_sessions(path, store._root)
            if store._lost:
                store._say_redrawn(store._lost, "a file is missing")
        except BaseException:
            release()
            raise
        store._release = weakref.finalize(store, release)  # released at the latest when the store is garbage-collected
        store._new, store._folder_was_there = new, empty
        return store

    def discard(self) -> None:
        """Close the store; remove it if this process created it and it holds no chunk, so that another run can take its place."""
        unused = self._new and not self._done
        if unused:
            for entry in self.path.iterdir():
                if entry.name != LOCK:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.close()
        if unused:  # the lock's file last: some systems cannot remove a locked file
            (self.path / LOCK).unlink(missing_ok=True)
            if not self._folder_was_there:
                self.path.rmdir()

    def close(self) -> None:
        """Release the lock, so that another process may write."""
        if self._release is not None:
            self._release()

    def _stored(self) -> tuple[set[int], set[int]]:
        """Return the complete chunks, and those that have since lost a file; `count` is written last."""
        names = {name for statistic in self.plan.statistics for name in statistic.names} - set(_MOMENTS)
        stored = {name: set() for name in sorted(names | {"moments", "count"})}
        for name in stored:
            folder = self.path / "tiles" / name
            if name not in self._arrays or not folder.is_dir():
                continue
            if self._arrays[name].attrs.get("digest") != layout_digest((folder / "zarr.json").read_bytes()):
                raise InputError(
                    f"store {self.path} is damaged: tiles/{name}/zarr.json has changed since it was written"
                )
            parts = (file.split(".") for file in os.listdir(folder))
            stored[name] = {int(part[1]) for part in parts if part[0] == "c" and part[-1].isdigit()}
        complete = set.intersection(*stored.values())
        return complete, stored["count"] - complete

    def _say(self, damage: str) -> None:
        _LOGGER.warning("store %s is damaged: %s", self.path, damage)

    def _say_redrawn(self, chunks: Iterable[int], why: str) -> None:
        self._say(f"{why} of chunks {shown(sorted(chunks))}; the run draws them again")

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return "provenance" in self._root and bool(dict(self._root["provenance"].attrs))

    def forget_damaged(self, chunks: Iterable[int]) -> set[int]:
        """Mark the damaged ones among the given chunks as missing, with a warning, so that they are drawn again.

        Returns:
            The damaged chunks, without those already drawn again once, since a bad disk would keep a run from ending.
        """
        damaged = set()
        for chunk in chunks:
            if self.has(chunk) and chunk not in self._redrawn:
                try:
                    self.read(chunk * self.plan.chunk, (chunk + 1) * self.plan.chunk)
                except InputError:
                    damaged.add(chunk)
        if damaged:
            self._done -= damaged
            self._redrawn |= damaged
            self._say_redrawn(damaged, "a file cannot be read")
        return damaged

    def say_if_lost(self, missing: Iterable[int]) -> None:
        """Warn that chunks are missing, once, if the run was finished."""
        lost = set(missing) - self._redrawn - self._lost
        if lost and self.finished:
            self._say_redrawn(lost, "a file is missing")

    def has(self, chunk: int) -> bool:
        """Return whether a chunk is stored."""
        return chunk in self._done

    def write(self, chunk: int, values: Mapping[str, np.ndarray]) -> None:
        """Write a chunk, arrays (tiles of a chunk, …), `count` last."""
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        size = self.plan.chunk
        most = _MOST if self.plan.until else self.plan.groups * self.plan.blocks
        values = {
            "moments": np.stack([values[name] for name in _MOMENTS], 1),
            **{name: v for name, v in values.items() if name not in (*_MOMENTS, "count")},
            "count": values["count"],
        }
        for name, v in values.items():
            with intact(self.path):
                if name not in self._arrays:
                    layout = dict(
                        shape=(-(-most // size) * size, *v.shape[1:]),
                        chunks=(size, *v.shape[1:]),
                        dtype=v.dtype,
                        compressors=[ZstdCodec(level=1), Crc32cCodec()],
                        chunk_key_encoding={"name": "default", "separator": "."},
                        fill_value=0,
                        config={"write_empty_chunks": True},
                    )
                    draft: dict[str, Any] = {}
                    zarr.create_array(draft, **layout)
                    attributes = {"digest": layout_digest(draft["zarr.json"].to_bytes())}
                    self._arrays[name] = self._group.create_array(name, **layout, attributes=attributes)
                self._arrays[name][chunk * size : (chunk + 1) * size] = v
        self._done.add(chunk)

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the statistics of tiles start … stop − 1, zero if they are not stored.

        Raises:
            InputError: if a chunk is damaged.
        """
        with intact(self.path, "run it again, which draws its damaged chunks again"):
            arrays = {name: np.asarray(array[start:stop]) for name, array in self._arrays.items()}
        moments = arrays.pop("moments")
        return {**{name: moments[:, i] for i, name in enumerate(_MOMENTS)}, **arrays}

    def so_far(self) -> xr.Dataset:
        """Return the dataset of the chunks that are stored."""
        size, tiles = self.plan.chunk, self.plan.first()
        chosen, parts, start = [], [], 0
        while len(tiles):
            stored = [i for i in range(-(-len(tiles) // size)) if self.has(start // size + i)]
            live = np.concatenate(
                [np.arange(i * size, min((i + 1) * size, len(tiles))) for i in stored] or [np.empty(0, int)]
            )
            values = self.read(start, start + len(tiles)) if stored else {}
            chosen.append(tiles[live])
            parts.append({name: v[live] for name, v in values.items()})
            if len(live) < len(tiles):
                break
            start += -(-len(tiles) // size) * size
            tiles = self.plan.next(*state(self.plan, np.concatenate(chosen), parts))
        if not any(len(c) for c in chosen):
            raise InputError(f"store {self.path} holds no chunk yet: wait until the run has written one")
        check_folder(self.path, "law", self._root.attrs["law"])
        law = {name: np.asarray(array[...]) for name, array in self._root["law"].arrays()}
        parts = [part for part in parts if part]
        return assemble(self.plan, law, np.concatenate(chosen), joined(parts))

    def finish(self, result: xr.Dataset, provenance: Mapping[str, Any]) -> None:
        """Add the finished dataset, and the provenance of the session that finished it.

        A store that is already finished keeps them; a damaged dataset is written again.
        """
        with intact(self.path):
            recorded = read_sessions(self.path, self._root)
            sessions, digest = recorded or ([dict(provenance)], None)
            if digest is not None and folder_digest(self.path / "result") != digest:
                self._say("its result has changed since it was written; it is written again")
                recorded = None
            if recorded is None:
                write_dataset(result, self.path)
                settle(self.path)
                if folder_digest(self.path / "result") != digest:
                    write_sessions(self.path, self._root, sessions)
            elif self._redrawn or self._lost:
                settle(self.path)


def _difference(key: str, stored: Any, expected: Any) -> tuple[str, Any, Any]:
    """Return the first difference in an entry of two specifications, and both values."""
    if (
        key == "grid"
        and stored is not None
        and [list(a["values"]) for a in stored] == [list(a["values"]) for a in expected]
    ):
        for axis, expected_axis in zip(stored, expected, strict=True):
            for name, values in axis["values"].items():
                expected_values = expected_axis["values"][name]
                if len(values) == len(expected_values) and values != expected_values:
                    i = next(i for i, (x, y) in enumerate(zip(values, expected_values, strict=True)) if x != y)
                    return f"{name}[{i}]", values[i], expected_values[i]
    return key, stored, expected


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the statistics of several lists of tiles concatenated."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def state(plan: Plan, tiles: np.ndarray, parts: Sequence[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Return the state that decides a plan's next round: blocks, trials and sums of squares of each cell."""
    cell, _, rows = rows_of(plan, tiles, joined([{n: p[n] for n in ("count", *_MOMENTS)} for p in parts]))
    merged = merge_tiles((Moments(),), rows, cell)
    return np.bincount(cell, minlength=plan.outer.size), merged["count"], merged["m2"]


def write_result(path: str | os.PathLike, result: xr.Dataset) -> None:
    """Write a result of no single run, such as a merged one, so that `open_result` reads it.

    Raises:
        InputError: if the path already exists or cannot be written.
    """
    import zarr

    path = folder_path("out", path)
    if not is_free(path):
        raise InputError(f"out = {path}: already exists; choose a new folder")
    about = {name: result.attrs[name] for name in ("claim", "equation", "source")}
    with writing(f"out = {path}"), appearing(path) as unfinished:
        root = zarr.create_group(unfinished, attributes=signed({"format": FORMAT, **about}), zarr_format=3)
        write_dataset(result.drop_attrs(deep=False).assign_attrs(about), unfinished)
        write_sessions(unfinished, root, [{k: v for k, v in result.attrs.items() if k not in about}])


def open_result(path: str | os.PathLike) -> xr.Dataset:
    """Return the dataset of a store, of one run or merged, with the provenance of the session that finished it.

    An unfinished run, which may still be writing, gives its results so far: cells without a trial are NaN, and the
    attribute ``unfinished`` is 1.

    Raises:
        InputError: if the folder is not an rmtjax store, is damaged or holds no chunk yet.
    """
    import xarray as xr

    path = folder_path("store", path)
    if not path.exists():
        raise InputError(f"store {path} does not exist")
    root, attributes = read_root(path)
    with intact(path):
        recorded = read_sessions(path, root)
        if recorded is not None:
            sessions, digest = recorded
            redo = "; run it again, which writes it again" if (path / "tiles").is_dir() else ""
            check_folder(path, "result", digest, redo)
            return xr.open_zarr(path, group="result", consolidated=False).load().assign_attrs(sessions[-1])
        result = Store(path, root, Plan.from_dict(attributes)).so_far()
        options = {f"option_{name}": value for name, value in attributes["options"].items()}
        return result.assign_attrs(
            seed=attributes["seed"],
            method=attributes["method"],
            **options,
            trials_per_cell=attributes["trials"],
            unfinished=1,
        )
