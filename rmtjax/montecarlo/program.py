"""The program that computes tiles: the user's function over a block of trials, reduced, compiled for one device."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from rmtjax._errors import InputError, shown
from rmtjax._precision import double
from rmtjax._random import pinned
from rmtjax.montecarlo.claim import OUTPUT, Claim, Sampler, call_with
from rmtjax.montecarlo.keys import trial_keys
from rmtjax.montecarlo.plan import Plan

__all__ = ["Inputs", "Program", "checked_draw", "computing", "tile_function"]

_LOGGER = logging.getLogger(__name__)

_CAPACITY = 64
"""Most tiles in one call."""

_BUFFER = 64 << 20
"""Most bytes of results in one call."""

_OPTIONS = {"cpu": {"xla_cpu_use_fusion_emitters": False}}
"""Options of the compiler by platform, where it has them. XLA's older emitter for processors takes a quarter off the
compilation of these programs and up to a half off their running."""

Inputs = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]
"""Of some tiles: parameters (tiles, cells), key data (tiles, cells, 2) and first trials (tiles,)."""


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Compile and run programs in this thread as by JAX's defaults, in double precision, whatever flags the user has set."""
    with pinned(), double(), jax.disable_jit(False):
        yield


def checked_draw(
    claim: Claim, sampler: Sampler, outputs: Sequence[str], options: Mapping[str, Any], shape: tuple[int, ...]
):
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


def tile_function(draw: Callable, plan: Plan, width: int, together: bool = True) -> Callable:
    """``(params (G,), within, keys (G, 2), first, trials) -> statistics (G, …)`` of one tile.

    `width` trials of a cell are drawn at once, and where they are `together` those of all its cells.
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
        of_cell = lambda own: one_cell(own[0], within, own[1], first, trials)  # noqa: E731
        own = params, keys
        return jax.vmap(of_cell)(own) if together else jax.lax.map(of_cell, own)

    return tile


def _compiled(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    """The executable, with the options of the platform if its compiler knows them."""
    options = _OPTIONS.get(platform)
    if options:
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "option" not in str(error):
                raise
            _LOGGER.info("the compiler refuses %s: %s", options, error)
            _OPTIONS.pop(platform, None)
    return lowered.compile()


class Program:
    """A tile's function, taking up to `capacity` tiles a call, compiled for each device that asks.

    It is a program for one device with the number of tiles and of trials as inputs, so one compilation serves every run
    of the same shape. Where `alone` is true, no other may run at the same time on processors (see `resources`).
    """

    def __init__(self, tile: Callable, inputs: Inputs, within: Mapping[str, np.ndarray], alone: bool) -> None:
        self.alone = alone
        tile = jax.jit(tile)  # traced once for its shapes and for the program
        first = jax.tree.map(lambda v: v[0], inputs)
        shapes = jax.eval_shape(tile, first[0], within, *first[1:], np.int64(1))
        size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(shapes))
        capacity = self.capacity = int(max(1, min(_CAPACITY, _BUFFER // max(size, 1))))
        self._compiled: dict[jax.Device, Any] = {}
        self._lock = threading.Lock()
        self._blank = jax.tree.map(lambda v: np.zeros((capacity, *v.shape[1:]), v.dtype), inputs)
        self._within = within

        def several(count, params, keys, first, within, trials):
            def one_more(i, out):
                done = tile(jax.tree.map(lambda v: v[i], params), within, keys[i], first[i], trials)
                return jax.tree.map(lambda o, v: o.at[i].set(v), out, done)

            empty = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), shapes)
            return jax.lax.fori_loop(0, count, one_more, empty)

        self._function = several

    def on(self, device: jax.Device) -> Any:
        """The executable for a device."""
        with self._lock:
            if device not in self._compiled:
                place = SingleDeviceSharding(device)
                jitted = jax.jit(self._function, in_shardings=place, out_shardings=place)
                lowered = jitted.lower(np.int32(0), *self._blank, self._within, np.int64(1))
                self._compiled[device] = _compiled(lowered, device.platform)
            return self._compiled[device]

    def memory(self, device: jax.Device) -> int:
        """Bytes of working memory that a call takes."""
        analysis = self.on(device).memory_analysis()
        return 0 if analysis is None else int(analysis.temp_size_in_bytes)

    def __call__(
        self, device: jax.Device, inputs: Inputs, within: Mapping[str, np.ndarray], trials: int
    ) -> dict[str, np.ndarray]:
        """Statistics of some tiles, arrays (tiles, …)."""
        count = inputs[2].shape[0]

        def padded(v, blank):
            full = np.zeros_like(blank)
            full[:count] = v
            return full

        padded_inputs = jax.tree.map(padded, inputs, self._blank)
        arrays = self.on(device)(np.int32(count), *padded_inputs, within, np.int64(trials))
        return {name: np.asarray(v)[:count] for name, v in arrays.items()}
