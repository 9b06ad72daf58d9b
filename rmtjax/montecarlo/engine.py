"""The engine: draws a sampler over a grid and reduces what it draws. It knows nothing of what is drawn.

The unit of work is a *tile*: one block of trials of one cell (or of a few cells, where a block is not full). Devices
take tiles from a queue, a few at a time, and finished tiles are gathered into *chunks*; a chunk is stored at once or not
at all. A tile is computed by a program for a single device, the same one on each, from inputs that depend on nothing
else. So its numbers are the same to the bit on one device or eight, in a run of one piece or in one that was killed and
resumed. (A program partitioned over several devices by `shard_map` is compiled otherwise and differs in the last bits.)
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from rmtjax._errors import InputError, shown, stopping, unknown
from rmtjax._progress import Report, Reporter
from rmtjax._random import GENERATOR, wrapped
from rmtjax.montecarlo import distributed
from rmtjax.montecarlo.claim import Claim, whole_width
from rmtjax.montecarlo.grid import Grid
from rmtjax.montecarlo.keys import cell_keys, check_seed
from rmtjax.montecarlo.limits import Limits
from rmtjax.montecarlo.plan import Plan, check_results_fit, make_plan
from rmtjax.montecarlo.program import Inputs, LoweredProgram, Program, checked_draw, computing, tile_function
from rmtjax.montecarlo.program_files import ProgramCache, ProgramFiles, jax_cache
from rmtjax.montecarlo.provenance import provenance
from rmtjax.montecarlo.resources import available_memory, needs, workers
from rmtjax.montecarlo.result import assemble
from rmtjax.montecarlo.statistics import Comoments, Histogram, Moments, Samples, Statistic
from rmtjax.montecarlo.store import Store, intact, joined, state

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Run", "run"]

_DISPATCH_S = 0.2
"""Aim for one call of a program: long against its overhead, short against a watcher's patience."""

_UNWRITTEN = 8
"""Finished chunks that may wait for the disk."""

_PROGRAMS = ProgramCache(Limits().programs)


class _Engine:
    """Programs by static parameters, and the workers that take tiles from a queue."""

    def __init__(self, claim, sampler, plan: Plan, keys, options, crew: Sequence[jax.Device], memory: float):
        self.claim, self.sampler, self.plan, self.options = claim, sampler, plan, options
        self.workers, self.memory, self.limits = list(crew), memory, Limits()
        pad = plan.groups * plan.cells_per_tile - plan.outer.size
        self.columns = {name: np.pad(v, (0, pad), mode="edge") for name, v in plan.outer.cells().items()}
        self.keys = np.pad(keys, ((0, pad), (0, 0)), mode="edge")
        self.shape = tuple(axis.length for axis in plan.within.axes)
        self.within = {name: v for axis in plan.within.axes for name, v in axis.values.items()}
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
        """Return the program for some static parameters: one that is kept and fits the memory, else a new one."""
        if static not in self.programs:
            inputs = self.inputs([tile])
            program = _PROGRAMS.get(self.key(static), lambda: self.stored(static, inputs))
            if program.memory() > self.share(program.alone):
                program = self.compiled(static, inputs)
            program.load(self.workers)
            self.programs[static] = program
        return self.programs[static]

    def key(self, static: tuple) -> tuple:
        """Return what distinguishes a program from others, the sampler's function first."""
        plan = self.plan
        shapes = tuple((name, v.shape) for name, v in self.within.items())
        made_of = self.sampler.draw, tuple(sorted(self.options.items())), static, shapes, tuple(self.columns)
        sizes = plan.block, plan.cells_per_tile, self.width(static)
        return (*made_of, plan.outputs, sizes, plan.statistics, self.workers[0].platform, self.limits)

    def width(self, static: tuple) -> int:
        """Return the number of trials that the sampler wants to be drawn at once."""
        width = self.sampler.width
        if callable(width):
            width = width(**dict(zip(self.sampler.static, static, strict=True)))
        return self.plan.block if width is None else min(width, self.plan.block)

    def stored(self, static: tuple, inputs: Inputs) -> Program:
        """Return the program that an earlier process has left, else a new one, which is left for the next."""
        files = ProgramFiles.beside_jax(self.workers[0])
        name = files.name(self.key(static))
        program = Program.from_bytes(files.find(name), inputs, self.workers[0])
        return self.compiled(static, inputs, files, name) if program is None else program

    def lowered(self, draw: Callable, inputs: Inputs, width: int, together: bool, name: str) -> LoweredProgram:
        """Return the program that draws `width` trials at once, not yet compiled."""
        tile = tile_function(draw, self.plan, width, together)
        return LoweredProgram(tile, inputs, self.within, self.workers[0], self.limits, name)

    def share(self, alone: bool) -> float:
        """Bytes that a program may take; one that must run alone on processors may take all."""
        if alone and self.workers[0].platform == "cpu":
            del self.workers[1:]
        return self.memory / len(self.workers)

    def compiled(
        self, static: tuple, inputs: Inputs, files: ProgramFiles | None = None, name: str | None = None
    ) -> Program:
        """Compile a program that fits the memory, drawing fewer trials at once if it must.

        Args:
            static: the static parameters.
            inputs: an example of its inputs.
            files: where it is kept for the next process.
            name: its name there; None if it is not kept.
        """
        named = dict(zip(self.sampler.static, static, strict=True))
        draw = jax.jit(checked_draw(self.claim, self.sampler, self.plan.outputs, {**self.options, **named}, self.shape))
        one = jax.tree.map(lambda v: v[0, 0], inputs[:2])
        needed = needs(lambda p, k, w: draw(wrapped(k), {**p, **w}), *one, self.within)
        most = needed.at_once if self.workers[0].platform == "cpu" else math.inf
        width = widest = whole_width(self.plan.block, min(self.width(static), most))
        share = self.share(needed.pooled)

        def check(need):
            if need > share:
                at = f" at {', '.join(f'{k} = {v:g}' for k, v in named.items())}" if named else ""
                raise InputError(
                    f"memory: {self.claim.name!r}{at} needs {need / 1e9:.3g} GB for one trial, more than the"
                    f" {share / 1e9:.3g} GB that a worker may use"
                )

        check(needed.bytes)
        # A name that is new to JAX's compilation cache, where the executable is to become bytes: see `LoweredProgram`.
        own_name = "tiles" if name is None else f"tiles_{uuid.uuid4().hex}"
        while True:
            lowered = self.lowered(draw, inputs, width, width * self.plan.cells_per_tile <= most, own_name)
            content_name = None if name is None else files.content_name(lowered.text, needed.pooled)
            program = None if name is None else Program.from_bytes(files.find(content_name), inputs, lowered.device)
            if program is None:
                is_new = name is not None or not jax_cache()
                program = Program.compiled(lowered, needed.pooled, is_new=is_new)
            need = program.memory()
            if need <= share or width == 1:
                break
            width //= 2
        check(need)
        if name is not None and width == widest and program.to_bytes() is not None:
            files.write(name, content_name, program.to_bytes())
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

    def compile(self, tiles: np.ndarray) -> None:
        """Make every program that the tiles need: every error of the input shows before anything runs."""
        first_cells = (np.unique(tiles[:, 0]) * self.plan.cells_per_tile).tolist()
        needed = {
            static: cell for cell in reversed(first_cells) if (static := self.static_of(cell)) not in self.programs
        }
        began = time.perf_counter()
        for static, cell in reversed(needed.items()):
            self.program(static, (cell, 0))
        if needed:
            self.compile_s += time.perf_counter() - began

    def run(self, chunks: Mapping[int, np.ndarray], finished: Callable, advance: Callable[[int], None]) -> None:
        """Compute the tiles (group, block) of some chunks; call ``finished(chunk, statistics)`` once for each, in no
        particular order, with a row for each of the plan's tiles of a chunk.
        """
        plan = self.plan

        def parts():
            for chunk, tiles in chunks.items():
                placed = [
                    (row, group * plan.cells_per_tile, block) for row, (group, block) in enumerate(tiles.tolist())
                ]
                for static, members in itertools.groupby(placed, key=lambda tile: self.static_of(tile[1])):
                    yield chunk, static, list(members)

        queue, begun = parts(), []  # what is left, and before it what was taken in part
        open_chunks: dict[int, tuple[int, dict[str, np.ndarray]]] = {}

        def take():
            with self.lock:
                part = begun.pop() if begun else next(queue, None)
                if part is None:
                    return None
                index, static, members = part
                per_call = _DISPATCH_S / self.seconds_per_tile.get(static, _DISPATCH_S)
                count = max(
                    1, min(self.programs[static].capacity, int(per_call), -(-len(members) // len(self.workers)))
                )
                if len(members) > count:
                    begun.append((index, static, members[count:]))
                return index, static, members[:count]

        def put(index, part, values):
            if index not in open_chunks:
                size = max(plan.chunk, len(chunks[index]))
                whole = {name: np.zeros((size, *v.shape[1:]), v.dtype) for name, v in values.items()}
                open_chunks[index] = len(chunks[index]), whole
            left, whole = open_chunks[index]
            rows = [row for row, _, _ in part]
            for name, v in values.items():
                whole[name][rows] = v
            open_chunks[index] = left - len(part), whole
            if left == len(part):
                del open_chunks[index]
                finished(index, whole)
            advance(int(plan.trials_in(chunks[index][rows]).sum()))

        def work(device):
            with computing():
                while (taken := take()) is not None:
                    index, static, part = taken
                    began = time.perf_counter()
                    values = self.compute(device, static, [tile[1:] for tile in part])
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
                    queue.close()
                    begun.clear()
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
        trials: int | None = None,
        until_se: float | Mapping[str, float] | None = None,
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
        if trials is None:
            trials = 10_000 if until_se is None else 2**32
        self.trials = _whole("trials", trials, 2, 2**32)
        self.seed = check_seed(seed)
        self.method, sampler = claim.sampler(method)
        self.options = sampler.choose(options)
        cells = claim.resolve(claim.grid if cells is None else cells)
        statistics: tuple[Statistic, ...] = (Moments(),)
        if covariance:
            statistics += (Comoments(),)
        if histogram is not None:
            try:
                edges = np.asarray(histogram, np.float64)
            except (TypeError, ValueError):
                edges = np.empty(0)
            if edges.ndim != 1 or edges.size < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
                raise InputError(f"histogram = {shown(histogram)}: must be at least two finite increasing bin edges")
            statistics += (Histogram(tuple(edges.tolist())),)
        if keep_samples:
            statistics += (Samples(),)
        number = isinstance(memory, (int, float, np.number)) and not isinstance(memory, bool)
        budget = available_memory(devices) * 0.6 if memory is None else float(memory) if number else math.nan
        if not budget > 0:
            raise InputError(f"memory = {shown(memory)}: must be a number of bytes > 0")

        self.law = claim.predict(cells)
        until = None if until_se is None else _targets(until_se, tuple(self.law))
        plan = self.plan = make_plan(claim, sampler, cells, tuple(self.law), self.trials, statistics, until)
        check_results_fit(plan, budget)
        stream = ":".join([claim.name, self.method, *(f"{k}={v}" for k, v in sorted(self.options.items()))])
        crew = workers(devices, plan.groups * plan.blocks)
        keys = cell_keys(self.seed, stream, plan.outer.cells())
        made = {
            "seed": self.seed, "method": self.method, "options": dict(self.options), "generator": GENERATOR
        }  # fmt: skip
        self.together, self.store, self.executed = distributed.count() > 1, None, False
        refused = None
        if store is not None and distributed.index() == 0:
            try:
                self.store = Store.open(store, plan, made, self.law)
            except InputError as error:
                if not self.together:
                    raise
                refused = error
        self.past: list[np.ndarray] = []
        self.parts: list[dict[str, np.ndarray]] = []
        self.tiles, self.start, self.fresh = plan.first(), 0, {}
        try:
            if self.together:
                distributed.agree(refused)
            self.engine = _Engine(claim, sampler, plan, keys, self.options, crew, budget)
            self._recall()
            while self.tiles.size and not self.missing:
                self._close_round()
            if self.store is not None:
                self.store.say_if_lost(self.missing)
        except BaseException:
            self.discard()
            raise
        self.seconds += time.perf_counter()

    @property
    def missing(self) -> dict[int, np.ndarray]:
        """The tiles of each chunk of this round that is not done."""
        size = self.plan.chunk
        chunks = {(self.start + i) // size: self.tiles[i : i + size] for i in range(0, len(self.tiles), size)}
        done = self.fresh.__contains__ if self.store is None or self.together else self.store.has
        return {chunk: tiles for chunk, tiles in chunks.items() if not done(chunk)}

    def _recall(self) -> None:
        """Let all processes have what is stored of this round by the first."""
        if not self.together:
            return
        size, known = self.plan.chunk, None
        if distributed.index() == 0:
            last = self.start // size + -(-len(self.tiles) // size)
            chunks = range(self.start // size, last)
            if self.store is not None:
                self.store.forget_damaged(chunks)
            done = [c for c in chunks if self.store is not None and self.store.has(c)]
            parts = [self.store.read(c * size, (c + 1) * size) for c in done]
            known = {**(joined(parts) if parts else {}), "chunks": np.array(done, int)}
        known = distributed.broadcast(known)
        for i, chunk in enumerate(known.pop("chunks").tolist()):
            self.fresh[chunk] = {name: v[i * size : (i + 1) * size] for name, v in known.items()}

    def _close_round(self) -> None:
        """Take what a round has found, and decide on the next, unless some of it cannot be read and is to be drawn again."""
        count, size = len(self.tiles), self.plan.chunk
        if self.store is not None and not self.together:
            try:
                values = self.store.read(self.start, self.start + count)
            except InputError:
                if self.store.forget_damaged(range(self.start // size, self.start // size + -(-count // size))):
                    return  # with the round still open: those chunks are missing now
                raise
        else:
            values = {k: v[:count] for k, v in joined([self.fresh[c] for c in sorted(self.fresh)]).items()}
            self.fresh = {}
        past, parts, tiles = [*self.past, self.tiles], [*self.parts, values], self.tiles[:0]
        if self.plan.until is not None:
            with contextlib.nullcontext() if self.store is None else intact(self.store.path):
                tiles = self.plan.next(*state(self.plan, np.concatenate(past), parts))
        self.past, self.parts, self.tiles, self.start = past, parts, tiles, self.start + -(-count // size) * size
        if self.plan.until is not None:
            check_results_fit(self.plan, self.engine.memory, sum(map(len, (*self.past, self.tiles))))
        if self.tiles.size:
            self._recall()

    def compile(self) -> None:
        """Compile what is needed and not yet compiled.

        Raises:
            Stopped: at Ctrl-C.
        """
        began = time.perf_counter()
        # The result's library takes long to import; XLA compiles or loads meanwhile, and does not hold the interpreter.
        threading.Thread(target=importlib.import_module, args=("xarray",), daemon=True).start()
        with stopping(self._how_far):
            try:
                with computing():
                    self.engine.compile(np.concatenate([self.tiles[:0], *self.missing.values()]))
            except BaseException:
                self.discard()
                raise
        self.seconds += time.perf_counter() - began

    def discard(self) -> None:
        """Let go of the store, and remove it if this run has made it and put nothing into it."""
        if self.store is not None:
            self.store.discard()

    def _how_far(self) -> str:
        """What is done when it stops now, and how it goes on."""
        if self.store is None:
            return "stopped" if self.together and distributed.index() else "stopped: nothing is kept without a store"
        rounds = (*self.past, self.tiles)
        total = sum(int(self.plan.trials_in(tiles).sum()) for tiles in rounds)
        left = sum(int(self.plan.trials_in(tiles).sum()) for tiles in self.missing.values())
        if left == total:
            return "stopped before anything was drawn"
        return (
            f"stopped: {total - left:,} of {total:,} trials are in {self.store.path}; run it again to go on from there"
        )

    def execute(self, progress: Report = None) -> xr.Dataset:
        """Draw what is missing, after `compile`, and give the result of all.

        Raises:
            Stopped: at Ctrl-C.
        """
        if self.executed:
            raise InputError("run: is executed already; make a new one, which goes on with the store")
        self.executed = True
        with contextlib.nullcontext() if self.store is None else contextlib.closing(self.store):
            return self._executed(progress)

    def _executed(self, progress: Report) -> xr.Dataset:
        began = time.perf_counter()
        plan, opened = self.plan, self.store
        # Files are waited for in a thread of their own, while the workers draw.
        writer, unwritten = ThreadPoolExecutor(1), deque()

        def written(most: int) -> None:
            while len(unwritten) > most:
                unwritten.popleft().result()

        def finished(chunk: int, values: dict[str, np.ndarray]) -> None:
            if opened is not None:
                unwritten.append(writer.submit(opened.write, chunk, values))
                written(_UNWRITTEN)
            if opened is None or self.together:
                self.fresh[chunk] = values

        def draw(missing: Mapping[int, np.ndarray], advance: Callable[[int], None]) -> None:
            def compute(chunks, done):
                self.engine.run({chunk: missing[chunk] for chunk in chunks}, done, lambda _: None)

            def arrived(chunk, values):
                finished(chunk, values)
                advance(int(plan.trials_in(missing[chunk]).sum()))

            if self.together:
                distributed.share(sorted(missing), compute, arrived)
            else:
                self.engine.run(missing, finished, advance)
            written(0)

        # LAPACK's own threads and XLA's get in each other's way; the workers keep the cores busy.
        one_thread = threadpool_limits(1, user_api="blas")
        with (
            stopping(self._how_far),
            computing(),
            one_thread,
            Reporter(1, self.claim.name, progress) as bar,
        ):
            try:
                with writer:
                    while self.tiles.size:
                        missing = self.missing
                        total = sum(int(plan.trials_in(tiles).sum()) for tiles in (*self.past, self.tiles))
                        bar.show(total - sum(int(plan.trials_in(tiles).sum()) for tiles in missing.values()), total)
                        if missing:
                            self.engine.compile(np.concatenate(list(missing.values())))
                            draw(missing, bar.advance)
                        self._close_round()
            except InputError:
                self.discard()
                raise
        result = assemble(plan, self.law, np.concatenate(self.past), joined(self.parts))
        wall = self.seconds + time.perf_counter() - began
        crew, compile_s = self.engine.workers, self.engine.compile_s
        made = provenance(self.seed, self.method, self.options, int(result["trials"].max()), crew, wall, compile_s)
        if self.together:
            made["processes"] = distributed.count()
        if opened is not None:
            opened.finish(result, made)
        return result.assign_attrs(made)


def _targets(until_se: float | Mapping[str, float], outputs: Sequence[str]) -> dict[str, float]:
    """The standard error wanted of each output."""
    targets = until_se if isinstance(until_se, Mapping) else dict.fromkeys(outputs, until_se)
    for name, value in targets.items():
        if name not in outputs:
            raise unknown("until_se: output", name, outputs)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 < value < math.inf:
            raise InputError(f"until_se = {shown(value)}: must be a number > 0")
    return {name: float(value) for name, value in targets.items()}


def run(
    claim: Claim,
    cells: Grid | None = None,
    *,
    trials: int | None = None,
    until_se: float | Mapping[str, float] | None = None,
    seed: int = 0,
    method: str | None = None,
    options: Mapping[str, str] | None = None,
    covariance: bool = False,
    histogram: Sequence[float] | None = None,
    keep_samples: bool = False,
    store: str | os.PathLike | None = None,
    memory: float | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Report = None,
) -> xr.Dataset:
    """Draw a claim's sampler on every cell of a grid and set the result beside the law.

    Args:
        claim: what to draw and what to expect.
        cells: the grid; the claim's default if None.
        trials: independent draws per cell, 2 to 2³²; 10,000 by default.
        until_se: draw in each cell until the estimated standard error of every output, or of those that are named, is at most
            this, and no more than `trials` (by default 2³²). The number of trials N then depends on the draws, which biases
            the mean by about −skewness/√N of a standard error (N ≥ 256; 4096 where all draws are the same).
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
        progress: True draws a bar on standard error, None (the default) on a terminal only; or a function of a `Progress`.

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
        until_se=until_se,
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
    with Reporter(1, f"{claim.name}: compiling", progress):
        one.compile()
    return one.execute(progress)
