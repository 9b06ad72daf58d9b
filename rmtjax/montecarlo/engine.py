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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import jax
import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from rmtjax._errors import InputError, shown
from rmtjax._progress import Progress
from rmtjax.montecarlo.claim import Claim, whole_width
from rmtjax.montecarlo.grid import Grid
from rmtjax.montecarlo.keys import cell_keys, check_seed
from rmtjax.montecarlo.plan import Plan, check_results_fit, make_plan
from rmtjax.montecarlo.program import Program, checked_draw, tile_function
from rmtjax.montecarlo.provenance import provenance
from rmtjax.montecarlo.resources import available_memory, needs, workers
from rmtjax.montecarlo.result import assemble
from rmtjax.montecarlo.statistics import Comoments, Histogram, Moments, Samples, Statistic
from rmtjax.montecarlo.store import Store

__all__ = ["Run", "run"]

_DISPATCH_S = 0.2
"""Aim for one call of a program: long against its overhead, short against a watcher's patience."""

_KEPT = 64
"""Compiled programs that a process keeps."""

_PROGRAMS: dict[tuple, Future[Program]] = {}
_PROGRAMS_LOCK = threading.Lock()


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
        self.programs: dict[tuple, Program] = {}
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

    def program(self, static: tuple, tile: tuple[int, int]) -> Program:
        """The program for these static parameters: one that this process has and that fits, else a new one."""
        if static in self.programs:
            return self.programs[static]
        plan = self.plan
        shapes = tuple((name, v.shape) for name, v in self.within.items())
        made_of = self.sampler.draw, tuple(sorted(self.options.items())), static, shapes, tuple(self.columns)
        key = (*made_of, plan.outputs, plan.block, plan.cells_per_tile, plan.statistics)
        with _PROGRAMS_LOCK:
            shared = _PROGRAMS.get(key)
            if mine := shared is None:
                shared = _PROGRAMS[key] = Future()
                while len(_PROGRAMS) > _KEPT:
                    del _PROGRAMS[next(iter(_PROGRAMS))]
        if mine:
            try:
                shared.set_result(self.timed(static, tile))
            except BaseException as error:
                _PROGRAMS.pop(key, None)
                shared.set_exception(error)
                raise
        program = shared.result()  # of another thread, perhaps, that is compiling it just now
        if program.memory(self.workers[0]) > self.share(program.alone):
            program = self.timed(static, tile)
        self.programs[static] = program
        return program

    def timed(self, static: tuple, tile: tuple[int, int]) -> Program:
        """A new program, its compilation timed."""
        began = time.perf_counter()
        program = self.compiled(static, self.inputs([tile]))
        self.compile_s += time.perf_counter() - began
        return program

    def share(self, alone: bool) -> float:
        """Bytes that a program may take; one that must run alone on processors may take all."""
        if alone and self.workers[0].platform == "cpu":
            del self.workers[1:]
        return self.memory / len(self.workers)

    def compiled(self, static: tuple, inputs: Inputs) -> Program:
        """Compile a program that fits the memory, drawing fewer trials at once if it must."""
        named = dict(zip(self.sampler.static, static, strict=True))
        draw = jax.jit(checked_draw(self.claim, self.sampler, self.plan.outputs, {**self.options, **named}, self.shape))
        width = self.sampler.width
        width = self.plan.block if width is None else width(**named) if callable(width) else width
        width = whole_width(self.plan.block, min(width, self.plan.block))
        one = jax.tree.map(lambda v: v[0, 0], inputs[:2])
        needed = needs(lambda p, k, w: draw(jax.random.wrap_key_data(k), {**p, **w}), *one, self.within)
        alone = needed.batched or (needed.pooled and width > 1)
        share = self.share(alone)

        def check(need):
            if need > share:
                at = f" at {', '.join(f'{k} = {v:g}' for k, v in named.items())}" if named else ""
                raise InputError(
                    f"memory: {self.claim.name!r}{at} needs {need / 1e9:.3g} GB for one trial, more than the"
                    f" {share / 1e9:.3g} GB that a worker may use"
                )

        check(needed.bytes)
        while True:
            program = Program(tile_function(draw, self.plan, width), inputs, self.within, alone)
            need = program.memory(self.workers[0])
            if need <= share or width == 1:
                break
            width //= 2
        check(need)
        return program

    def compute(self, device: jax.Device, static: tuple, part: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        """Statistics of some tiles with the same static parameters."""
        try:
            return self.programs[static](device, self.inputs(part), self.within, self.plan.trials)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise InputError(f"memory: {self.claim.name!r} ran out of memory on {device} ({reason})") from None

    def compile(self, chunks: Sequence[tuple[slice, slice]]) -> None:
        """Make every program that the chunks need: every error of the input shows before anything runs."""
        group = self.plan.cells_per_tile
        for cell in sorted({cell for cells, _ in chunks for cell in range(cells.start, cells.stop, group)}):
            self.program(self.static_of(cell), (cell, 0))

    def run(self, chunks: Sequence[tuple[slice, slice]], finished: Callable, advance: Callable[[int], None]) -> None:
        """Compute chunks; call ``finished(chunk, statistics)`` for each once, in no particular order."""
        plan, group = self.plan, self.plan.cells_per_tile
        queue: deque[tuple[int, tuple, list]] = deque()
        for index, (cells, blocks) in enumerate(chunks):
            tiles = [(c, b) for c in range(cells.start, cells.stop, group) for b in range(blocks.start, blocks.stop)]
            for static, members in itertools.groupby(tiles, key=lambda tile: self.static_of(tile[0])):
                queue.append((index, static, list(members)))
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
                    values = self.compute(device, static, part)
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
    whole = isinstance(value, (int, float, np.integer)) and not isinstance(value, bool) and value == value // 1
    if not whole or not low <= value <= high:
        raise InputError(f"{name} = {shown(value)}: must be a whole number in [{low}, {high}]")
    return int(value)


class Run:
    """A run in its three steps: made and checked, compiled, executed. The arguments are those of `run`.

    Compilation takes one core and execution all of them, so whoever has several runs compiles them side by side and
    executes one after the other.
    """

    def __init__(
        self,
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
    ) -> None:
        self.seconds = -time.perf_counter()
        self.claim = claim
        self.trials = _whole("trials", trials, 2, 2**32)
        self.seed = check_seed(seed)
        self.method, sampler = claim.sampler(method)
        self.options = sampler.choose(options)
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

        self.law = claim.predict(cells)
        plan = self.plan = make_plan(claim, sampler, cells, tuple(self.law), self.trials, statistics)
        check_results_fit(plan, budget)
        stream = ":".join([claim.name, self.method, *(f"{k}={v}" for k, v in sorted(self.options.items()))])
        crew = workers(devices, plan.shape[0] // plan.cells_per_tile * plan.shape[1])
        keys = cell_keys(self.seed, stream, plan.outer.cells())
        self.store = None if store is None else Store.open(store, claim, self.method, self.options, self.seed, plan)
        self.engine = _Engine(claim, sampler, plan, keys, self.options, crew, budget)
        self.missing = [chunk for chunk in plan.chunks() if self.store is None or not self.store.has(chunk)]
        self.seconds += time.perf_counter()

    def compile(self) -> None:
        """Compile what is needed and not yet compiled."""
        began = time.perf_counter()
        try:
            with jax.enable_x64(True):
                self.engine.compile(self.missing)
        except InputError:
            if self.store is not None:
                self.store.discard()
            raise
        self.seconds += time.perf_counter() - began

    def execute(self, progress: bool | None = None) -> xr.Dataset:
        """Draw what is missing, after `compile`, and give the result of all."""
        began = time.perf_counter()
        plan, opened = self.plan, self.store
        total = plan.outer.size * self.trials
        blocks: dict[str, np.ndarray] = {}

        def finished(chunk: tuple[slice, slice], values: Mapping[str, np.ndarray]) -> None:
            if opened is not None:
                opened.write(chunk, values)
                return
            for name, v in values.items():
                blocks.setdefault(name, np.empty((*plan.shape, *v.shape[2:]), v.dtype))[chunk] = v

        # LAPACK's own threads and XLA's get in each other's way; the workers keep the cores busy.
        one_thread = threadpool_limits(1, user_api="blas")
        with jax.enable_x64(True), one_thread, Progress(total, self.claim.name, progress) as bar:
            bar.advance(total - sum(plan.live(*chunk) for chunk in self.missing))
            try:
                self.engine.run(self.missing, finished, bar.advance)
            except InputError:
                if opened is not None:
                    opened.discard()
                raise
        result = assemble(self.claim, plan, self.law, blocks if opened is None else opened.read())
        wall = self.seconds + time.perf_counter() - began
        crew, compile_s = self.engine.workers, self.engine.compile_s
        made = provenance(self.seed, self.method, self.options, self.trials, crew, wall, compile_s)
        if opened is not None:
            opened.finish(result, made)
        return result.assign_attrs(made)


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
    one = Run(
        claim,
        cells,
        trials=trials,
        seed=seed,
        method=method,
        options=options,
        covariance=covariance,
        histogram=histogram,
        keep_samples=keep_samples,
        store=store,
        memory=memory,
        devices=devices,
    )
    with Progress(1, f"{claim.name}: compiling", progress):
        one.compile()
    return one.execute(progress)
