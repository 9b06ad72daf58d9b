"""Run a claim: draw its sampler over a grid and compare the result with the law.

The unit of work is a *tile*: one block of trials of one cell (or of a few cells, where a block is not full). Devices
take tiles from a queue, a few at a time, and finished tiles are gathered into *chunks*; a chunk is stored at once or not
at all. A tile is computed by a program for a single device, the same one on each, from inputs that depend on nothing
else. So its numbers are bit-identical on one device or eight, in a run of one piece or in one that was killed and
resumed. (A program partitioned over several devices by `shard_map` is compiled differently and differs in the last bits.)
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from rmtjax._errors import InputError, stopping
from rmtjax._progress import Report, Reporter
from rmtjax._provenance import draw_provenance
from rmtjax._random import GENERATOR
from rmtjax.montecarlo import distributed
from rmtjax.montecarlo.claim import Claim
from rmtjax.montecarlo.config import RunConfig
from rmtjax.montecarlo.grid import Grid
from rmtjax.montecarlo.keys import cell_keys
from rmtjax.montecarlo.plan import check_results_fit, make_plan
from rmtjax.montecarlo.program import computing
from rmtjax.montecarlo.programs import Programs
from rmtjax.montecarlo.resources import workers
from rmtjax.montecarlo.result import assemble
from rmtjax.montecarlo.rounds import Rounds
from rmtjax.montecarlo.scheduler import Scheduler
from rmtjax.montecarlo.store import Store

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Run", "run"]


class _Stopwatch:
    """Adds up the seconds spent in its `with` blocks, the present one included."""

    def __init__(self) -> None:
        self._total, self._began = 0.0, None

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._total, self._began = self.seconds, None

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return self._total + (0.0 if self._began is None else time.perf_counter() - self._began)


class Run:
    """A run in its three steps: planned and checked, compiled, executed.

    Compilation takes one core and execution all of them, so several runs are compiled side by side and executed one after
    the other.

    Args:
        claim: the claim to draw, with its law.
        grid: the cells to draw; the claim's default if None.
        config: the settings.
        settings: fields of `RunConfig` that differ from `config`.

    Raises:
        InputError: for anything that cannot be run.
    """

    def __init__(
        self, claim: Claim, grid: Grid | None = None, config: RunConfig | None = None, **settings: Any
    ) -> None:
        self._clock = _Stopwatch()
        with self._clock:
            self.claim, self.config = claim, (config or RunConfig()).replace(**settings)
            self.sampler, sampler = claim.sampler(self.config.sampler)
            self.options = sampler.choose(self.config.options)
            cells = claim.resolve(claim.grid if grid is None else grid)
            budget = self.config.budget
            self.law = claim.predict(cells)
            self.plan = make_plan(claim, sampler, cells, tuple(self.law), self.config)
            check_results_fit(self.plan, budget)
            devices = workers(self.config.devices, self.plan.groups * self.plan.blocks)
            stream = ":".join([claim.name, self.sampler, *(f"{k}={v}" for k, v in sorted(self.options.items()))])
            keys = cell_keys(self.config.seed, stream, self.plan.outer.cells())
            self._is_executed = False
            self.store, refusal = self._open_store()
            try:
                if distributed.count() > 1:
                    distributed.agree(refusal)
                self.programs = Programs(
                    claim, sampler, self.options, self.plan, keys, devices, budget, self.config.limits
                )
                self.scheduler = Scheduler(self.plan, self.programs, self.config.limits)
                self.rounds = Rounds(self.plan, self.store, budget)
                if self.store is not None:
                    self.store.say_if_lost(self.rounds.missing)
            except BaseException:
                self.discard()
                raise

    def _open_store(self) -> tuple[Store | None, InputError | None]:
        """Return the store, in the first process, and the reason if it cannot be used, which all processes must learn."""
        if self.config.store is None or distributed.index() > 0:
            return None, None
        specification = {
            "seed": self.config.seed, "method": self.sampler, "options": dict(self.options), "generator": GENERATOR
        }  # fmt: skip
        try:
            return Store.open(self.config.store, self.plan, specification, self.law), None
        except InputError as error:
            if distributed.count() == 1:
                raise
            return None, error

    def compile(self) -> None:
        """Compile the programs that are needed and not yet compiled.

        Raises:
            Stopped: at Ctrl-C.
        """
        # The result's library takes long to import; XLA compiles or loads meanwhile, and does not hold the interpreter. The
        # import ends before anything else begins: threadpoolctl walks the loaded libraries under the linker's lock, which an
        # import in another thread may hold, and the two can deadlock.
        imported = threading.Thread(target=importlib.import_module, args=("xarray",), daemon=True)
        imported.start()
        with self._clock, stopping(self._how_far):
            try:
                with computing():
                    self.programs.compile(self.rounds.missing_tiles)
            except BaseException:
                self.discard()
                raise
            finally:
                imported.join()

    def discard(self) -> None:
        """Release the store, and remove it if this run created it and wrote nothing to it."""
        if self.store is not None:
            self.store.discard()

    def _how_far(self) -> str:
        """Return a message on the progress of the stopped run and on how to resume it."""
        if self.store is None:
            is_silent = distributed.count() > 1 and distributed.index()
            return "stopped" if is_silent else "stopped: nothing is kept without a store"
        total, missing = self.rounds.trials, self.rounds.missing_trials
        if missing == total:
            return "stopped before anything was drawn"
        return f"stopped: {total - missing:,} of {total:,} trials are in {self.store.path}; run it again to resume"

    def execute(self, progress: Report = None) -> xr.Dataset:
        """Draw the missing trials, after `compile`, and return the whole result.

        Raises:
            InputError: if this run has already been executed, or runs out of memory.
            Stopped: at Ctrl-C.
        """
        if self._is_executed:
            raise InputError("this Run has already been executed; create a new Run to resume from the store")
        self._is_executed = True
        with self._clock, contextlib.nullcontext() if self.store is None else contextlib.closing(self.store):
            self._draw(progress)
            result = assemble(self.plan, self.law, *self.rounds.results)
            attributes = {
                "seed": self.config.seed,
                "method": self.sampler,
                **{f"option_{name}": value for name, value in self.options.items()},
                "trials_per_cell": int(result["trials"].max()),
                **draw_provenance(self.programs.devices),
                "wall_s": self._clock.seconds,
                "compile_s": self.programs.compile_s,
            }
            if distributed.count() > 1:
                attributes["processes"] = distributed.count()
            if self.store is not None:
                self.store.finish(result, attributes)
            return result.assign_attrs(attributes)

    def _draw(self, progress: Report) -> None:
        """Draw round after round until none is left."""
        # LAPACK's own threads and XLA's compete for cores; the scheduler's threads keep the cores busy.
        one_thread = threadpool_limits(1, user_api="blas")
        with stopping(self._how_far), computing(), one_thread, Reporter(1, self.claim.name, progress) as bar:
            try:
                with _Writer(self.store, self.config.limits.unwritten) as writer:
                    while self.rounds.tiles.size:
                        missing = self.rounds.missing
                        total = self.rounds.trials
                        bar.show(total - self.rounds.missing_trials, total)
                        if missing:
                            self.programs.compile(self.rounds.missing_tiles)
                            self._draw_chunks(missing, writer, bar.advance)
                        self.rounds.close()
            except InputError:
                self.discard()
                raise

    def _draw_chunks(self, missing: Mapping[int, np.ndarray], writer: _Writer, advance: Callable[[int], None]) -> None:
        def finished(chunk: int, values: dict[str, np.ndarray]) -> None:
            writer.write(chunk, values)
            self.rounds.keep(chunk, values)

        if distributed.count() == 1:
            self.scheduler.run(missing, finished, advance)
        else:

            def compute(chunks, done):
                self.scheduler.run({chunk: missing[chunk] for chunk in chunks}, done, lambda _: None)

            def arrived(chunk, values):
                finished(chunk, values)
                advance(int(self.plan.trials_in(missing[chunk]).sum()))

            distributed.share(sorted(missing), compute, arrived)
        writer.wait()


class _Writer:
    """Writes chunks into a store in a thread of its own, while the devices draw.

    Args:
        store: the store; None writes nothing.
        most: the largest number of chunks that wait for the disk.
    """

    def __init__(self, store: Store | None, most: int) -> None:
        self._store, self._most = store, most
        self._pool, self._pending = ThreadPoolExecutor(1), deque()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown()

    def write(self, chunk: int, values: dict[str, np.ndarray]) -> None:
        """Queue a chunk, first waiting for the oldest one if too many are queued."""
        if self._store is not None:
            self._pending.append(self._pool.submit(self._store.write, chunk, values))
            self.wait(self._most)

    def wait(self, most: int = 0) -> None:
        """Wait until at most the given number of chunks are pending."""
        while len(self._pending) > most:
            self._pending.popleft().result()


def run(
    claim: Claim,
    grid: Grid | None = None,
    config: RunConfig | None = None,
    *,
    progress: Report = None,
    **settings: Any,
) -> xr.Dataset:
    """Draw a claim's sampler on every cell of a grid and compare the result with the law.

    Args:
        claim: the claim to draw, with its law.
        grid: the cells to draw; the claim's default if None.
        config: the settings of the run.
        progress: True draws a bar on standard error, None (the default) on a terminal only; or a function of a `Progress`.
        settings: fields of `RunConfig` that differ from `config`, such as ``trials``, ``seed`` and ``store``.

    Returns:
        A dataset with dimension ``output`` and one for each axis of the grid, and the variables ``mean``, ``se``
        (standard error), ``law``, ``z`` = (mean − law)/se, ``variance``, ``min``, ``max``, ``trials``; if requested,
        ``covariance``, ``histogram``, ``samples``. Its attributes say what it is and how it was made.

    Raises:
        InputError: for anything that cannot be run, before anything is compiled or written.
    """
    planned = Run(claim, grid, config, **settings)
    with Reporter(1, f"{claim.name}: compiling", progress):
        planned.compile()
    return planned.execute(progress)
