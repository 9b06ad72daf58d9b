"""Programs: the user's function over blocks of trials, reduced to statistics and compiled for one device."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from rmtjax._errors import InputError, shown
from rmtjax._precision import double
from rmtjax._random import pinned
from rmtjax.montecarlo.claim import OUTPUT, Claim, Sampler, call_with
from rmtjax.montecarlo.executable import Compiler, pack, unpack
from rmtjax.montecarlo.keys import trial_keys
from rmtjax.montecarlo.limits import Limits
from rmtjax.montecarlo.plan import Plan

__all__ = ["COMPILER", "Inputs", "LoweredProgram", "Program", "checked_draw", "computing", "tile_function"]

COMPILER = Compiler({"cpu": {"xla_cpu_use_fusion_emitters": False}})
"""The compiler of all programs. XLA's older emitter for processors takes a quarter off the compilation of these programs and
up to a half off their running."""

Inputs = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]
"""The inputs for some tiles: parameters (tiles, cells), key data (tiles, cells, 2) and first trials (tiles,)."""


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Compile and run programs in this thread with JAX's defaults and in double precision, regardless of the user's flags."""
    with pinned(), double(), jax.disable_jit(False):
        yield


def checked_draw(
    claim: Claim, sampler: Sampler, outputs: Sequence[str], options: Mapping[str, Any], shape: tuple[int, ...]
):
    """Return ``(key, traced params) -> (outputs, points)``, the user's function with its return value checked."""

    def draw(key: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        answer = call_with(sampler.draw, key, skip=1, **params, **options)
        answer = answer if isinstance(answer, Mapping) else {OUTPUT: answer}
        if set(answer) != set(outputs):
            raise InputError(
                f"claim {claim.name!r}: the sampler returns {shown(sorted(answer))}, but the law predicts"
                f" {shown(sorted(outputs))}"
            )
        for name, value in answer.items():
            if jnp.shape(value) != shape:
                raise InputError(
                    f"claim {claim.name!r}: output {name} has shape {jnp.shape(value)}: must be {shape}"
                    + (
                        f", one entry for each value of {', '.join(claim.within)}"
                        if shape
                        else ", one number per trial"
                    )
                )
        return jnp.stack([jnp.asarray(answer[name], jnp.float64).reshape(math.prod(shape)) for name in outputs])

    return draw


def tile_function(draw: Callable, plan: Plan, width: int, together: bool = True) -> Callable:
    """Return ``(params (G,), within, keys (G, 2), first, trials) -> statistics (G, …)``, the function of one tile.

    It draws `width` trials of a cell at once; where `together` is true, those of all its cells.
    """

    def one_cell(params, within, key, first, trials):
        keys = trial_keys(key, first, plan.block)
        of_key = lambda k: draw(k, {**params, **within})  # noqa: E731
        at_once = None if width == 1 else width
        x = jax.vmap(of_key)(keys) if width == plan.block else jax.lax.map(of_key, keys, batch_size=at_once)
        live = first + jnp.arange(plan.block) < trials
        return {name: v for s in plan.statistics for name, v in s.block(x, live).items()}

    def tile(params, within, keys, first, trials):
        if plan.cells_per_tile == 1:
            result = one_cell({k: v[0] for k, v in params.items()}, within, keys[0], first, trials)
            return jax.tree.map(lambda v: v[None], result)
        of_cell = lambda cells: one_cell(cells[0], within, cells[1], first, trials)  # noqa: E731
        cells = params, keys
        return jax.vmap(of_cell)(cells) if together else jax.lax.map(of_cell, cells)

    return tile


class LoweredProgram:
    """A tile's function as a loop over up to `capacity` tiles, traced and lowered once, but not compiled.

    It is a program for one device with the number of tiles and of trials as inputs, so one compilation serves every run
    of the same shape.

    Args:
        tile: the function, from `tile_function`.
        inputs: an example of its inputs.
        within: the parameters that are evaluated within a draw.
        device: the device to compile for.
        limits: size limits of one call.
        name: of the function in XLA. JAX's compilation cache distinguishes programs by name, so that a new name forces a new
            compilation; this matters because XLA cannot serialise an executable loaded from that cache.
    """

    def __init__(
        self,
        tile: Callable,
        inputs: Inputs,
        within: Mapping[str, np.ndarray],
        device: jax.Device,
        limits: Limits,
        name: str = "tiles",
    ) -> None:
        tile = jax.jit(tile)  # traced once, for its shapes and for the program
        first = jax.tree.map(lambda v: v[0], inputs)
        shapes = jax.eval_shape(tile, first[0], within, *first[1:], np.int64(1))
        size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(shapes))
        capacity = int(max(1, min(limits.tiles_per_call, limits.call_bytes // max(size, 1))))

        def several(count, params, keys, first, within, trials):
            def one_more(i, out):
                drawn = tile(jax.tree.map(lambda v: v[i], params), within, keys[i], first[i], trials)
                return jax.tree.map(lambda o, v: o.at[i].set(v), out, drawn)

            empty = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), shapes)
            return jax.lax.fori_loop(0, count, one_more, empty)

        several.__name__ = several.__qualname__ = self._name = name
        self._function, self._within = several, within
        self.device, self.blank = device, _blank(inputs, capacity)
        self._lowered = self._lower(device)

    def _lower(self, device: jax.Device) -> jax.stages.Lowered:
        place = SingleDeviceSharding(device)
        jitted = jax.jit(self._function, in_shardings=place, out_shardings=place)
        return jitted.lower(np.int32(0), *self.blank, self._within, np.int64(1))

    @property
    def text(self) -> str:
        """The program in StableHLO, without its name."""
        return self._lowered.as_text().replace(self._name, "tiles")

    def compile(self, device: jax.Device | None = None) -> jax.stages.Compiled:
        """Return the executable, for another device after another lowering."""
        lowered = self._lowered if device in (None, self.device) else self._lower(device)
        return COMPILER.compile(lowered, self.device.platform)


class Program:
    """A compiled program that computes up to `capacity` tiles a call, on any device of one kind.

    On processors, JAX's devices are shares of one and the same machine, so all of them run one executable. Other devices load
    the bytes of the first one's executable, or compile their own if there are none.

    Args:
        compiled: the executable of one device.
        device: that device.
        blank: zeros of the shapes of a call's inputs.
        alone: as the attribute.
        data: the bytes of the executable, from `to_bytes`.
        compile_on: compiles the program for a device that cannot load the bytes; None if every device can.
        shared: whether all devices run one executable; None for the platform's default.

    Attributes:
        alone: whether no other program may run at the same time on processors (see `resources`).
        capacity: the largest number of tiles in a call.
    """

    def __init__(
        self,
        compiled: jax.stages.Compiled,
        device: jax.Device,
        blank: Inputs,
        alone: bool,
        *,
        data: bytes | None = None,
        compile_on: Callable[[jax.Device], jax.stages.Compiled] | None = None,
        shared: bool | None = None,
    ) -> None:
        self.alone, self.capacity = alone, blank[2].shape[0]
        self._home, self._blank, self._data, self._compile_on = device, blank, data, compile_on
        self._shared = device.platform == "cpu" if shared is None else shared
        self._loaded = {device: compiled}

    @classmethod
    def compiled(cls, lowered: LoweredProgram, alone: bool, *, is_new: bool, shared: bool | None = None) -> Program:
        """Compile a program.

        Args:
            lowered: the program to compile.
            alone: as the attribute.
            is_new: whether JAX's compilation cache cannot contain it, so that the executable can be serialised.
            shared: as in the class.
        """
        executable = lowered.compile()
        data = pack(executable, capacity=lowered.blank[2].shape[0], alone=alone) if is_new else None
        return cls(
            executable, lowered.device, lowered.blank, alone, data=data, compile_on=lowered.compile, shared=shared
        )

    @classmethod
    def from_bytes(cls, data: bytes | None, inputs: Inputs, device: jax.Device) -> Program | None:
        """Return the program from the bytes of `to_bytes`; None if these cannot be used here."""
        loaded = None if data is None else unpack(data, device)
        if loaded is None:
            return None
        compiled, about = loaded
        return cls(compiled, device, _blank(inputs, about["capacity"]), about["alone"], data=data)

    def to_bytes(self) -> bytes | None:
        """Return the program as bytes; None if it cannot be serialised."""
        return self._data

    def on(self, device: jax.Device) -> jax.stages.Compiled:
        """Return the executable for a device."""
        if self._shared:
            return self._loaded[self._home]
        if device not in self._loaded:
            loaded = None if self._data is None else unpack(self._data, device)
            with computing():
                self._loaded[device] = self._compile_on(device) if loaded is None else loaded[0]
        return self._loaded[device]

    def load(self, devices: Iterable[jax.Device]) -> None:
        """Load the executable on several devices, in parallel."""
        missing = [] if self._shared else [device for device in dict.fromkeys(devices) if device not in self._loaded]
        if missing:
            with ThreadPoolExecutor(len(missing)) as pool:
                list(pool.map(self.on, missing))

    def memory(self) -> int:
        """Return the bytes of working memory that a call needs."""
        analysis = self._loaded[self._home].memory_analysis()
        return 0 if analysis is None else int(analysis.temp_size_in_bytes)

    def __call__(
        self, device: jax.Device, inputs: Inputs, within: Mapping[str, np.ndarray], trials: int
    ) -> dict[str, np.ndarray]:
        """Return the statistics of some tiles, arrays (tiles, …)."""
        count = inputs[2].shape[0]

        def padded(v, blank):
            full = np.zeros_like(blank)
            full[:count] = v
            return full

        padded_inputs = jax.tree.map(padded, inputs, self._blank)
        arrays = self.on(device)(np.int32(count), *padded_inputs, within, np.int64(trials))
        return {name: np.asarray(v)[:count] for name, v in arrays.items()}


def _blank(inputs: Inputs, capacity: int) -> Inputs:
    """Return zeros of the shapes of a call's inputs, given an example for any number of tiles."""
    return jax.tree.map(lambda v: np.zeros((capacity, *v.shape[1:]), v.dtype), inputs)
