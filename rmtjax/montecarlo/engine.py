"""The engine: draws a sampler over a grid and reduces what it draws. It knows nothing of what is drawn.

The unit of work is a *tile*: one block of trials of one cell (or of a few cells, where a block is not full). Devices
take tiles from a queue, a few at a time, and finished tiles are gathered into *chunks*; a chunk is stored at once or not
at all. A tile is computed by a program for a single device, the same one on each, from inputs that depend on nothing
else. So its numbers are the same to the bit on one device or eight, in a run of one piece or in one that was killed and
resumed. (A program partitioned over several devices by `shard_map` is compiled otherwise and differs in the last bits.)
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import SingleDeviceSharding

from rmtjax._errors import InputError, shown
from rmtjax.montecarlo.claim import OUTPUT, Claim, Sampler, call_with, whole_width
from rmtjax.montecarlo.grid import Grid
from rmtjax.montecarlo.keys import cell_keys, check_seed, trial_keys
from rmtjax.montecarlo.progress import Progress
from rmtjax.montecarlo.provenance import provenance
from rmtjax.montecarlo.resources import available_memory, needs, workers
from rmtjax.montecarlo.result import assemble
from rmtjax.montecarlo.statistics import Comoments, Histogram, Moments, Samples, Statistic
from rmtjax.montecarlo.store import Store

__all__ = ["run"]

_CHUNKS = 256
"""A run is stored in about this many chunks, so a kill costs at most this share of it."""

_DISPATCH_S = 0.2
"""Aim for one call of a program: long against its overhead, short against a watcher's patience."""

_CAPACITY = 64
"""Most tiles a device takes in one call."""

_BUFFER = 64 << 20
"""Most bytes of results in one call, per device."""


@dataclass(frozen=True)
class Plan:
    """How a run is cut up. Depends on the claim, the grid, the trials and what is kept, on nothing else."""

    grid: Grid
    outer: Grid
    points: int
    outputs: tuple[str, ...]
    trials: int
    block: int
    cells_per_tile: int
    chunk: tuple[int, int]
    statistics: tuple[Statistic, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells (padded to whole tiles) and blocks."""
        return -(-self.outer.size // self.cells_per_tile) * self.cells_per_tile, -(-self.trials // self.block)

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """The rectangles of (cell, block) that are stored at once."""
        cells, blocks = self.shape
        for c, b in itertools.product(range(0, cells, self.chunk[0]), range(0, blocks, self.chunk[1])):
            yield slice(c, min(c + self.chunk[0], cells)), slice(b, min(b + self.chunk[1], blocks))

    def live(self, cells: slice, blocks: slice) -> int:
        """Trials in a chunk."""
        last = min(blocks.stop * self.block, self.trials) - blocks.start * self.block
        return (min(cells.stop, self.outer.size) - cells.start) * last


def make_plan(
    claim: Claim, sampler: Sampler, cells: Grid, outputs: Sequence[str], trials: int, statistics: tuple[Statistic, ...]
) -> Plan:
    """Cut a run into tiles and chunks."""
    outer, within = cells.split(claim.within)
    block = min(sampler.block, 1 << (trials - 1).bit_length())
    # Cells whose block is small share a tile, or the loop over tiles would cost more than what is in them.
    cells_per_tile = 1 if sampler.static else max(1, min(sampler.block // block, outer.size))
    blocks = -(-trials // block)
    tiles = -(-outer.size // cells_per_tile) * blocks
    per_chunk = max(1, tiles // _CHUNKS)
    if per_chunk < blocks:
        chunk = (cells_per_tile, per_chunk)
    else:
        chunk = (cells_per_tile * (per_chunk // blocks), blocks)
    return Plan(cells, outer, within.size, tuple(outputs), trials, block, cells_per_tile, chunk, statistics)


def _draw(claim: Claim, sampler: Sampler, outputs: Sequence[str], options: Mapping[str, Any], shape: tuple[int, ...]):
    """``(key, traced params) -> (outputs, points)`` from the user's function, its answer checked."""

    def draw(key: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        answer = call_with(sampler.draw, key, skip=1, **params, **options)
        answer = answer if isinstance(answer, Mapping) else {OUTPUT: answer}
        if set(answer) != set(outputs):
            raise InputError(
                f"claim {claim.name!r}: the sampler returns {shown(sorted(answer))}, the law predicts {shown(sorted(outputs))}"
            )
        for name, value in answer.items():
            if jnp.shape(value) != shape:
                raise InputError(
                    f"claim {claim.name!r}: output {name} has shape {jnp.shape(value)}: must be {shape}"
                    + (f", one entry for each value of {', '.join(claim.within)}" if shape else ", one number a trial")
                )
        return jnp.stack([jnp.asarray(answer[name], jnp.float64).reshape(math.prod(shape)) for name in outputs])

    return draw


def _tile(draw: Callable, plan: Plan, width: int) -> Callable:
    """``(params (G,), within, keys (G, 2), first) -> statistics (G, …)`` of one tile."""

    def one_cell(params, within, key, first):
        keys = trial_keys(key, first, plan.block)
        of_key = lambda k: draw(k, {**params, **within})  # noqa: E731
        if width == plan.block:
            x = jax.vmap(of_key)(keys)
        else:
            x = jax.lax.map(of_key, keys, batch_size=width if width > 1 else None)
        live = first + jnp.arange(plan.block) < plan.trials
        return {name: v for s in plan.statistics for name, v in s.block(x, live).items()}

    def tile(params, within, keys, first):
        if plan.cells_per_tile == 1:
            result = one_cell({k: v[0] for k, v in params.items()}, within, keys[0], first)
            return jax.tree.map(lambda v: v[None], result)
        return jax.vmap(one_cell, in_axes=(0, None, 0, None))(params, within, keys, first)

    return tile


class _Program:
    """A tile's function compiled for a device, taking up to `capacity` tiles a call."""

    def __init__(self, tile: Callable, inputs: tuple, within: Mapping[str, np.ndarray], capacity: int):
        self.capacity = capacity
        self._within = within
        self._compiled: dict[jax.Device, Any] = {}
        self._lock = threading.Lock()
        self._blank = jax.tree.map(lambda v: np.zeros((capacity, *v.shape[1:]), v.dtype), inputs)

        def several(count, params, keys, first, within):
            def at(i):
                return tile(jax.tree.map(lambda v: v[i], params), within, keys[i], first[i])

            empty = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), jax.eval_shape(at, 0))
            return jax.lax.fori_loop(
                0, count, lambda i, out: jax.tree.map(lambda o, v: o.at[i].set(v), out, at(i)), empty
            )

        self._function = several

    def on(self, device: jax.Device):
        """The executable for a device, compiled when first asked for."""
        with self._lock:
            if device not in self._compiled:
                place = SingleDeviceSharding(device)
                jitted = jax.jit(self._function, in_shardings=place, out_shardings=place)
                self._compiled[device] = jitted.lower(np.int32(0), *self._blank, self._within).compile()
            return self._compiled[device]

    def memory(self, device: jax.Device) -> int:
        """Bytes of working memory that a call takes."""
        analysis = self.on(device).memory_analysis()
        return 0 if analysis is None else int(analysis.temp_size_in_bytes)

    def __call__(self, device: jax.Device, inputs: tuple) -> dict[str, np.ndarray]:
        """Statistics of some tiles, arrays (tiles, …)."""
        count = inputs[2].shape[0]

        def padded(v, blank):
            full = np.zeros_like(blank)
            full[:count] = v
            return full

        arrays = self.on(device)(np.int32(count), *jax.tree.map(padded, inputs, self._blank), self._within)
        return {name: np.asarray(v)[:count] for name, v in arrays.items()}


class _Engine:
    """Programs by static parameters, and the workers that take tiles from a queue."""

    def __init__(self, claim, sampler, plan: Plan, keys, options, crew: Sequence[jax.Device], memory: float):
        self.claim, self.sampler, self.plan, self.options = claim, sampler, plan, options
        self.workers, self.memory = list(crew), memory
        pad = plan.shape[0] - plan.outer.size
        self.columns = {name: np.pad(v, (0, pad), mode="edge") for name, v in plan.outer.cells().items()}
        self.keys = np.pad(keys, ((0, pad), (0, 0)), mode="edge")
        inner = plan.grid.split(claim.within)[1]
        self.shape = tuple(axis.length for axis in inner.axes)
        self.within = {name: v for axis in inner.axes for name, v in axis.values.items()}
        self.programs: dict[tuple, _Program] = {}
        self.seconds_per_tile: dict[tuple, float] = {}
        self.compile_s = 0.0
        self.lock = threading.Lock()

    def static_of(self, cell: int) -> tuple:
        """The static parameters of a cell, as Python numbers."""
        pairs = ((name, self.columns[name][cell]) for name in self.sampler.static)
        return tuple(int(v) if self.claim.params[name].whole else float(v) for name, v in pairs)

    def inputs(self, tiles: Sequence[tuple[int, int]]) -> tuple:
        """Arguments of the program for tiles (first cell, block)."""
        tiles = np.asarray(tiles)
        cells = tiles[:, :1] + np.arange(self.plan.cells_per_tile)
        params = {n: v[cells] for n, v in self.columns.items() if n not in self.sampler.static}
        return params, self.keys[cells], tiles[:, 1] * self.plan.block

    def program(self, static: tuple, tile: tuple[int, int]) -> _Program:
        """The program for these static parameters, compiled to fit the memory."""
        if static in self.programs:
            return self.programs[static]
        began = time.perf_counter()
        inputs = self.inputs([tile])
        named = dict(zip(self.sampler.static, static, strict=True))
        draw = _draw(self.claim, self.sampler, self.plan.outputs, {**self.options, **named}, self.shape)
        width = self.sampler.width
        width = self.plan.block if width is None else width(**named) if callable(width) else width
        width = whole_width(self.plan.block, min(width, self.plan.block))
        at = f" at {', '.join(f'{k} = {v:g}' for k, v in named.items())}" if named else ""

        def check(need):
            share = self.memory / len(self.workers)
            if need > share:
                raise InputError(
                    f"memory: {self.claim.name!r}{at} needs {need / 1e9:.3g} GB for one trial, more than the"
                    f" {share / 1e9:.3g} GB that a worker may use"
                )

        one = jax.tree.map(lambda v: v[0, 0], inputs[:2])
        needed = needs(lambda p, k, w: draw(jax.random.wrap_key_data(k), {**p, **w}), *one, self.within)
        if needed.alone and self.workers[0].platform == "cpu":
            del self.workers[1:]
        check(needed.bytes)
        first = jax.tree.map(lambda v: v[0], inputs)
        while True:
            tile_function = _tile(draw, self.plan, width)
            shapes = jax.eval_shape(tile_function, first[0], self.within, *first[1:])
            size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(shapes))
            program = _Program(tile_function, inputs, self.within, int(max(1, min(_CAPACITY, _BUFFER // size))))
            need = program.memory(self.workers[0])
            if need <= self.memory / len(self.workers) or width == 1:
                break
            width //= 2
        check(need)
        self.compile_s += time.perf_counter() - began
        self.programs[static] = program
        return program

    def run(self, chunks: Sequence[tuple[slice, slice]], finished: Callable, advance: Callable[[int], None]) -> None:
        """Compute chunks; call ``finished(chunk, statistics)`` for each once, in no particular order."""
        plan, group = self.plan, self.plan.cells_per_tile
        queue: deque[tuple[int, tuple, list]] = deque()
        for index, (cells, blocks) in enumerate(chunks):
            tiles = [(c, b) for c in range(cells.start, cells.stop, group) for b in range(blocks.start, blocks.stop)]
            for static, members in itertools.groupby(tiles, key=lambda tile: self.static_of(tile[0])):
                queue.append((index, static, list(members)))
        for _, static, members in queue:
            self.program(static, members[0])  # every error of the input shows before anything runs
        open_chunks: dict[int, tuple[int, dict[str, np.ndarray]]] = {}

        def take():
            with self.lock:
                if not queue:
                    return None
                index, static, members = queue.popleft()
                per_call = _DISPATCH_S / self.seconds_per_tile.get(static, _DISPATCH_S)
                count = max(
                    1, min(self.programs[static].capacity, int(per_call), -(-len(members) // len(self.workers)))
                )
                if len(members) > count:
                    queue.appendleft((index, static, members[count:]))
                return index, static, members[:count]

        def put(index, part, values):
            cells, blocks = chunks[index]
            if index not in open_chunks:
                shape = cells.stop - cells.start, blocks.stop - blocks.start
                whole = {name: np.empty((*shape, *v.shape[2:]), v.dtype) for name, v in values.items()}
                open_chunks[index] = math.prod(shape) // group, whole
            left, whole = open_chunks[index]
            for i, (c, b) in enumerate(part):
                for name, v in values.items():
                    whole[name][c - cells.start : c - cells.start + group, b - blocks.start] = v[i]
            open_chunks[index] = left - len(part), whole
            if left == len(part):
                del open_chunks[index]
                finished(chunks[index], whole)
            advance(sum(plan.live(slice(c, c + group), slice(b, b + 1)) for c, b in part))

        def work(device):
            with jax.enable_x64(True):
                while (taken := take()) is not None:
                    index, static, part = taken
                    began = time.perf_counter()
                    values = self.programs[static](device, self.inputs(part))
                    with self.lock:
                        self.seconds_per_tile[static] = max((time.perf_counter() - began) / len(part), 1e-6)
                        put(index, part, values)

        with ThreadPoolExecutor(len(self.workers)) as pool:
            futures = [pool.submit(work, device) for device in self.workers]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                with self.lock:
                    queue.clear()
                raise


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer, float)) or value != math.floor(value):
        raise InputError(f"{name} = {shown(value)}: must be a whole number in [{low}, {high}]")
    if not low <= value <= high:
        raise InputError(f"{name} = {shown(value)}: must be a whole number in [{low}, {high}]")
    return int(value)


def run(
    claim: Claim,
    cells: Grid | None = None,
    *,
    trials: int = 10_000,
    seed: int = 0,
    method: str | None = None,
    options: Mapping[str, str] | None = None,
    covariance: bool = False,
    histogram: Sequence[float] | None = None,
    keep_samples: bool = False,
    store: str | os.PathLike | None = None,
    memory: float | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Draw a claim's sampler on every cell of a grid and set the result beside the law.

    Args:
        claim: what to draw and what to expect.
        cells: the grid; the claim's default if None.
        trials: independent draws per cell, 2 to 2³².
        seed: whole number in [0, 2³²). The trial t of a cell is a function of (seed, claim, method, cell, t) alone.
        method: name of the sampler; the claim's first if None.
        options: choices for the sampler's options, such as ``{"entries": "rademacher"}``.
        covariance: also keep the covariance of the outputs.
        histogram: increasing bin edges; also count every output in them.
        keep_samples: also keep every sample.
        store: a folder for a Zarr store, written chunk by chunk. One that exists must hold this very run, which then goes
            on where it stopped.
        memory: bytes that the run may use; by default 60 % of what is free.
        devices: the devices to use; by default all local ones.
        progress: whether to draw a progress bar on standard error; by default on a terminal only.

    Returns:
        A dataset with dimension ``output`` and one for each axis of the grid, and the variables ``mean``, ``se``
        (standard error), ``law``, ``z`` = (mean − law)/se, ``variance``, ``min``, ``max``, ``trials``; where asked for,
        ``covariance``, ``histogram``, ``samples``. Its attributes say what it is and how it was made.

    Raises:
        InputError: for anything that cannot be run, before anything is compiled or written.
    """
    began = time.perf_counter()
    trials = _whole("trials", trials, 2, 2**32)
    seed = check_seed(seed)
    method, sampler = claim.sampler(method)
    chosen = sampler.choose(options)
    cells = claim.resolve(claim.grid if cells is None else cells)
    statistics: tuple[Statistic, ...] = (Moments(),)
    if covariance:
        statistics += (Comoments(),)
    if histogram is not None:
        edges = np.asarray(histogram, np.float64)
        if edges.ndim != 1 or edges.size < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise InputError(f"histogram = {shown(histogram)}: must be at least two finite increasing bin edges")
        statistics += (Histogram(tuple(edges.tolist())),)
    if keep_samples:
        statistics += (Samples(),)
    budget = available_memory(devices) * 0.6 if memory is None else float(memory)
    if not budget > 0:
        raise InputError(f"memory = {shown(memory)}: must be a number of bytes > 0")

    law = claim.predict(cells)
    plan = make_plan(claim, sampler, cells, tuple(law), trials, statistics)
    _check_results_fit(plan, budget)
    stream = ":".join([claim.name, method, *(f"{k}={v}" for k, v in sorted(chosen.items()))])
    crew = workers(devices, plan.shape[0] // plan.cells_per_tile * plan.shape[1])
    opened = None if store is None else Store.open(store, claim, method, chosen, seed, plan)

    blocks: dict[str, np.ndarray] = {}

    def finished(chunk: tuple[slice, slice], values: Mapping[str, np.ndarray]) -> None:
        if opened is not None:
            opened.write(chunk, values)
            return
        for name, v in values.items():
            blocks.setdefault(name, np.empty((*plan.shape, *v.shape[2:]), v.dtype))[chunk] = v

    with jax.enable_x64(True), Progress(plan.outer.size * trials, claim.name, progress) as bar:
        engine = _Engine(claim, sampler, plan, cell_keys(seed, stream, plan.outer.cells()), chosen, crew, budget)
        missing = [chunk for chunk in plan.chunks() if opened is None or not opened.has(chunk)]
        bar.advance(plan.outer.size * trials - sum(plan.live(*chunk) for chunk in missing))
        engine.run(missing, finished, bar.advance)
    if opened is not None:
        blocks = opened.read()
    result = assemble(claim, plan, law, blocks)
    wall = time.perf_counter() - began
    made = provenance(seed, method, chosen, trials, engine.workers, wall, engine.compile_s)
    if opened is not None:
        opened.finish(result, made)
    return result.assign_attrs(made)


def _check_results_fit(plan: Plan, budget: float) -> None:
    cells, blocks = plan.shape
    numbers = 5
    for statistic in plan.statistics:
        if isinstance(statistic, Comoments):
            numbers += len(plan.outputs)
        elif isinstance(statistic, Histogram):
            numbers += len(statistic.edges) + 1
        elif isinstance(statistic, Samples):
            numbers += plan.block
    need = 8.0 * cells * blocks * len(plan.outputs) * plan.points * numbers
    if need > budget:
        raise InputError(
            f"memory: the results of {plan.grid.size} cells × {plan.trials} trials take {need / 1e9:.3g} GB, more than the"
            f" {budget / 1e9:.3g} GB allowed; ask for fewer cells, trials or statistics"
        )
