"""The programs of a run, by static parameters: cached in this process, loaded from disk, or compiled."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from rmtjax._errors import InputError
from rmtjax._random import wrapped
from rmtjax.montecarlo.claim import Claim, Sampler, whole_width
from rmtjax.montecarlo.limits import Limits
from rmtjax.montecarlo.plan import Plan
from rmtjax.montecarlo.program import Inputs, LoweredProgram, Program, checked_draw, tile_function
from rmtjax.montecarlo.program_files import ProgramFiles, jax_cache
from rmtjax.montecarlo.resources import needs

__all__ = ["PROGRAMS", "ProgramCache", "Programs"]


class ProgramCache:
    """Programs by key; a request for one that another thread is making waits for it.

    Args:
        size: the largest number of programs; the oldest are dropped.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._programs: dict[tuple, Future] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple, make: Callable[[], Any]) -> Any:
        """Return the program of a key, making it if it is missing."""
        with self._lock:
            future = self._programs.get(key)
            if is_mine := future is None:
                future = self._programs[key] = Future()
                while len(self._programs) > self._size:
                    del self._programs[next(iter(self._programs))]
        if is_mine:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._programs.pop(key, None)
                future.set_exception(error)
                raise
        return future.result()


PROGRAMS = ProgramCache(Limits().programs)
"""The programs that this process caches for all its runs."""


class Programs:
    """The programs of a run, and the inputs that they take.

    Args:
        claim: the claim to draw.
        sampler: its sampler.
        options: the sampler's options.
        plan: the tiles.
        keys: key data of every cell, shape (cells, 2).
        devices: one for each thread that calls programs.
        memory: bytes that all calls together may use.
        limits: size limits of one call.

    Attributes:
        compile_s: wall time of making programs so far, in seconds.
    """

    def __init__(
        self,
        claim: Claim,
        sampler: Sampler,
        options: Mapping[str, str],
        plan: Plan,
        keys: np.ndarray,
        devices: Sequence[jax.Device],
        memory: float,
        limits: Limits,
    ) -> None:
        self.memory, self.compile_s = memory, 0.0
        self._claim, self._sampler, self._options = claim, sampler, dict(options)
        self._plan, self._devices, self._limits = plan, tuple(devices), limits
        self._is_exclusive = False
        padding = plan.groups * plan.cells_per_tile - plan.outer.size
        self._columns = {name: np.pad(v, (0, padding), mode="edge") for name, v in plan.outer.cells().items()}
        self._keys = np.pad(keys, ((0, padding), (0, 0)), mode="edge")
        self._within = {name: v for axis in plan.within.axes for name, v in axis.values.items()}
        self._programs: dict[tuple, Program] = {}

    def __len__(self) -> int:
        return len(self._programs)

    def __getitem__(self, static: tuple) -> Program:
        return self._programs[static]

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices that call programs at the same time: only one if a program must run alone."""
        return self._devices[:1] if self._is_exclusive else self._devices

    @property
    def working_memory(self) -> int:
        """The total bytes of working memory of one call of each program."""
        return sum(program.memory() for program in self._programs.values())

    def static_of(self, cell: int) -> tuple:
        """Return the static parameters of a cell, as Python numbers."""
        pairs = ((name, self._columns[name][cell]) for name in self._sampler.static_argnames)
        return tuple(int(v) if self._claim.params[name].whole else float(v) for name, v in pairs)

    def compute(self, device: jax.Device, static: tuple, tiles: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        """Return the statistics of some tiles (first cell, block) of the same static parameters.

        Raises:
            InputError: if the device runs out of memory.
        """
        try:
            return self._programs[static](device, self._inputs(tiles), self._within, self._plan.trials)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise InputError(f"memory: {self._claim.name!r} ran out of memory on {device} ({reason})") from None

    def compile(self, tiles: np.ndarray) -> None:
        """Compile every program that the tiles (group, block) need.

        Raises:
            InputError: for anything that is wrong with the sampler, before anything runs.
        """
        first_cells = (np.unique(tiles[:, 0]) * self._plan.cells_per_tile).tolist()
        missing: dict[tuple, int] = {}
        for cell in first_cells:
            static = self.static_of(cell)
            if static not in self._programs:
                missing.setdefault(static, cell)
        if not missing:
            return
        began = time.perf_counter()
        for static, cell in missing.items():
            self._programs[static] = self._program(static, self._inputs([(cell, 0)]))
        self.compile_s += time.perf_counter() - began

    def _inputs(self, tiles: Sequence[tuple[int, int]]) -> Inputs:
        """Return the inputs of a program for tiles (first cell, block)."""
        tiles = np.asarray(tiles)
        cells = tiles[:, :1] + np.arange(self._plan.cells_per_tile)
        params = {n: v[cells] for n, v in self._columns.items() if n not in self._sampler.static_argnames}
        return params, self._keys[cells], tiles[:, 1] * self._plan.block

    def _program(self, static: tuple, inputs: Inputs) -> Program:
        """Return the program for given static parameters: a cached one that fits the memory, otherwise a new one."""
        program = PROGRAMS.get(self._key(static), lambda: self._stored(static, inputs))
        if program.memory() > self._reserve(program.alone):
            program = self._compiled(static, inputs)
        program.load(self.devices)
        return program

    def _key(self, static: tuple) -> tuple:
        """Return the key that distinguishes a program from others, the sampler's function first."""
        plan = self._plan
        shapes = tuple((name, v.shape) for name, v in self._within.items())
        made_of = self._sampler.draw, tuple(sorted(self._options.items())), static, shapes, tuple(self._columns)
        sizes = plan.block, plan.cells_per_tile, self._width(static), self._limits
        return (*made_of, plan.outputs, plan.statistics, sizes, self._devices[0].platform)

    def _width(self, static: tuple) -> int:
        """Return the number of trials that the sampler draws at once."""
        width = self._sampler.batch_size
        if callable(width):
            width = width(**self._named(static))
        return self._plan.block if width is None else min(width, self._plan.block)

    def _named(self, static: tuple) -> dict[str, float]:
        return dict(zip(self._sampler.static_argnames, static, strict=True))

    def _reserve(self, alone: bool) -> float:
        """Return the bytes that one call of a program may use; a program that must run alone has all of the budget."""
        if alone and self._devices[0].platform == "cpu":
            self._is_exclusive = True
        return self.memory / len(self.devices)

    def _stored(self, static: tuple, inputs: Inputs) -> Program:
        """Return the program that an earlier process stored, otherwise a new one, which is stored for the next process."""
        files = ProgramFiles.beside_jax(self._devices[0])
        name = files.name(self._key(static))
        program = Program.from_bytes(files.find(name), inputs, self._devices[0])
        return self._compiled(static, inputs, files, name) if program is None else program

    def _compiled(
        self, static: tuple, inputs: Inputs, files: ProgramFiles | None = None, name: str | None = None
    ) -> Program:
        """Return a compiled program that fits the memory, drawing fewer trials at once if necessary.

        Args:
            static: the static parameters.
            inputs: an example of its inputs.
            files: the stored programs of earlier processes.
            name: its name there; None if it is not kept.
        """
        plan, device = self._plan, self._devices[0]
        shape = tuple(axis.length for axis in plan.within.axes)
        options = {**self._options, **self._named(static)}
        draw = jax.jit(checked_draw(self._claim, self._sampler, plan.outputs, options, shape))
        example = jax.tree.map(lambda v: v[0, 0], inputs[:2])
        needed = needs(lambda p, k, w: draw(wrapped(k), {**p, **w}), *example, self._within)
        most = needed.at_once if device.platform == "cpu" else math.inf
        width = widest = whole_width(plan.block, min(self._width(static), most))
        budget = self._reserve(needed.pooled)
        self._check_memory(needed.bytes, budget, static)
        # The name is new to JAX's compilation cache if the executable is to be serialised: see `LoweredProgram`.
        own_name = "tiles" if name is None else f"tiles_{uuid.uuid4().hex}"
        while True:
            tile = tile_function(draw, plan, width, width * plan.cells_per_tile <= most)
            lowered = self._lowered(tile, inputs, own_name)
            content_name = None if name is None else files.content_name(lowered.text, needed.pooled)
            program = None if name is None else Program.from_bytes(files.find(content_name), inputs, device)
            if program is None:
                program = Program.compiled(lowered, needed.pooled, is_new=name is not None or not jax_cache())
            if program.memory() <= budget or width == 1:
                break
            width //= 2
        self._check_memory(program.memory(), budget, static)
        if name is not None and width == widest and program.to_bytes() is not None:
            files.write(name, content_name, program.to_bytes())
        return program

    def _lowered(self, tile: Callable, inputs: Inputs, name: str) -> LoweredProgram:
        device = self._devices[0]
        try:
            return LoweredProgram(tile, inputs, self._within, device, self._limits, name)
        except (
            NotImplementedError
        ) as error:  # a primitive that the platform lacks; `needs` has already traced the sampler
            reason = str(error).splitlines()[0]
            raise InputError(
                f"platform = {device.platform}: {self._claim.name!r} cannot be compiled for it ({reason})"
            ) from None

    def _check_memory(self, need: float, budget: float, static: tuple) -> None:
        if need > budget:
            at = ", ".join(f"{name} = {value:g}" for name, value in self._named(static).items())
            raise InputError(
                f"memory: {self._claim.name!r}{' at ' * bool(at)}{at} needs {need / 1e9:.3g} GB for one trial, more than the"
                f" {budget / 1e9:.3g} GB that a worker may use"
            )
