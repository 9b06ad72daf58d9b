"""A Zarr store that a run is written to chunk by chunk.

Layout: the root's attributes hold the run's specification; ``blocks/`` one array for each statistic, (cell, block, …),
a stored chunk of each being one chunk of the run, with a checksum; ``result/`` the finished dataset; ``provenance/`` how
each session that worked on it went, the only part that may differ between two runs of the same specification.

Every file appears under its name only when it is complete. The ``count`` of a chunk is written last, so a chunk whose
``count`` is there is there altogether.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from rmtjax._errors import InputError, shown
from rmtjax.montecarlo.claim import Claim

if TYPE_CHECKING:
    from rmtjax.montecarlo.plan import Plan

__all__ = ["Store", "open_result"]

_FORMAT = "rmtjax run 1"
Chunk = tuple[slice, slice]


def _specification(claim: Claim, method: str, options: Mapping[str, str], seed: int, plan: Plan) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "claim": claim.name,
        "equation": claim.equation,
        "source": claim.source,
        "method": method,
        "options": dict(options),
        "seed": seed,
        "trials": plan.trials,
        "grid": [{name: v.tolist() for name, v in axis.values.items()} | {"": axis.fixed} for axis in plan.grid.axes],
        "outputs": list(plan.outputs),
        "statistics": [json.loads(json.dumps({type(s).__name__: vars(s)})) for s in plan.statistics],
        "block": plan.block,
        "cells_per_tile": plan.cells_per_tile,
        "chunk": list(plan.chunk),
    }


class Store:
    """One run on disk. Get it from `Store.open`."""

    def __init__(self, path: Path, root: zarr.Group, plan: Plan, new: bool) -> None:
        self.path, self.plan, self._new = path, plan, new
        self._root = root
        self._blocks = root.require_group("blocks")
        self._arrays = {name: array for name, array in self._blocks.arrays()}
        self._done = self._found()

    @classmethod
    def open(
        cls, path: str | os.PathLike, claim: Claim, method: str, options: Mapping[str, str], seed: int, plan: Plan
    ) -> Store:
        """Open the store of this very run, or make it where there is nothing.

        Raises:
            InputError: where something else is there; it is left as it was.
        """
        path = Path(path)
        new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        wanted = _specification(claim, method, options, seed, plan)
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
                path.mkdir(parents=True, exist_ok=True)
                root = zarr.create_group(path, attributes=wanted, zarr_format=3)
            except OSError as error:
                raise InputError(f"store {path} cannot be made: {error.strerror or error}") from None
        return cls(path, root, plan, new)

    def discard(self) -> None:
        """Remove a store that this process made and that holds no chunk, so that a mended run can take its place."""
        if self._new and not self._done:
            shutil.rmtree(self.path)

    def _found(self) -> set[tuple[int, int]]:
        """Which chunks are complete: those whose `count`, written last, is there."""
        folder = self.path / "blocks" / "count" / "c"
        found = set()
        for row in folder.iterdir() if folder.is_dir() else ():
            found |= {(int(row.name), int(f.name)) for f in row.iterdir() if f.name.isdigit()}
        return found

    def _index(self, chunk: Chunk) -> tuple[int, int]:
        return chunk[0].start // self.plan.chunk[0], chunk[1].start // self.plan.chunk[1]

    def has(self, chunk: Chunk) -> bool:
        """Whether a chunk is stored."""
        return self._index(chunk) in self._done

    def write(self, chunk: Chunk, values: Mapping[str, np.ndarray]) -> None:
        """Store a chunk: all of it, `count` last."""
        for name in sorted(values, key=lambda name: name == "count"):
            if name not in self._arrays:
                v = values[name]
                self._arrays[name] = self._blocks.create_array(
                    name,
                    shape=(*self.plan.shape, *v.shape[2:]),
                    chunks=(*self.plan.chunk, *v.shape[2:]),
                    dtype=v.dtype,
                    compressors=[ZstdCodec(level=1), Crc32cCodec()],
                    fill_value=0,
                    config={"write_empty_chunks": True},
                )
            self._arrays[name][chunk] = values[name]
        self._done.add(self._index(chunk))

    def read(self) -> dict[str, np.ndarray]:
        """All blocks, arrays (cells, blocks, …).

        Raises:
            InputError: if a chunk is damaged.
        """
        return _read_blocks(self.path, self._arrays)

    def finish(self, result: xr.Dataset, made: Mapping[str, Any]) -> None:
        """Add the finished dataset and how this session went."""
        result = result.assign_coords({n: c.astype(object) for n, c in result.coords.items() if c.dtype.kind == "U"})
        result.to_zarr(self.path, group="result", mode="w", zarr_format=3, consolidated=False)
        log = self._root.require_group("provenance")
        log.attrs["sessions"] = [*log.attrs.get("sessions", []), dict(made)]


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


def _read_blocks(path: Path, arrays: Mapping[str, zarr.Array]) -> dict[str, np.ndarray]:
    blocks = {}
    for name, array in arrays.items():
        try:
            blocks[name] = np.asarray(array[:])
        except Exception as error:
            raise InputError(
                f"store {path} is damaged: a chunk of blocks/{name} cannot be read ({error}); remove the folder and run again"
            ) from None
    return blocks


def open_result(path: str | os.PathLike) -> xr.Dataset:
    """The finished dataset of a store, with the provenance of its last session.

    Raises:
        InputError: if the folder is not a store of ours, is damaged or is not finished.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"store {path} does not exist")
    root, _ = _read_root(path)
    if "result" not in root:
        raise InputError(f"store {path} is not finished: run the same sweep with it again and it goes on")
    try:
        result = xr.open_zarr(path, group="result", consolidated=False).load()
        sessions = root["provenance"].attrs["sessions"]
    except Exception as error:
        raise InputError(f"store {path} is damaged: its result cannot be read ({type(error).__name__})") from None
    return result.assign_attrs(sessions[-1])
