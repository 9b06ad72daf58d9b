"""Estimates of a run's cost, from drawing a small part of it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from rmtjax.montecarlo.plan import result_bytes
from rmtjax.montecarlo.program import computing
from rmtjax.montecarlo.run import Run
from rmtjax.montecarlo.store import state

__all__ = ["Estimate", "estimate"]

_DATASET, _DESCRIBED = 72, 1 << 14
"""Bytes of a store besides its tiles: for each value of law and dataset, and for their description."""
_PILOT = 64
"""The number of cells whose variance represents all cells."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run.

    Attributes:
        cells: cells of the grid, without the parameters that are evaluated within a draw.
        trials: trials in all cells together.
        done: trials that are already stored.
        programs: programs to compile.
        compile_s: seconds that compilation took.
        seconds: seconds that drawing the missing trials would take.
        memory: bytes of the programs and of the results.
        stored: bytes that a store would take, file overhead included.
        workers: threads that draw.
    """

    cells: int
    trials: int
    done: int
    programs: int
    compile_s: float
    seconds: float
    memory: float
    stored: float
    workers: int

    def to_dict(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)


def estimate(run: Run, seconds: float = 3.0) -> Estimate:
    """Return the estimated cost of a run, extrapolated from a few draws of each compiled program. Nothing is stored.

    Args:
        run: a run that is not yet executed.
        seconds: time to spend on drawing.
    """
    run.compile()
    programs, plan = run.programs, run.plan
    random = np.random.default_rng(0)
    missing = run.rounds.missing_tiles
    kinds: dict[tuple, list[int]] = {}
    for i, group in enumerate(missing[:, 0].tolist()):
        kinds.setdefault(programs.static_of(group * plan.cells_per_tile), []).append(i)

    def draw(tiles: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        drawn: dict[str, np.ndarray] = {}
        began = time.perf_counter()
        run.scheduler.run({0: tiles}, lambda _, values: drawn.update(values), lambda _: None)
        return time.perf_counter() - began, {name: v[: len(tiles)] for name, v in drawn.items()}

    with computing(), threadpool_limits(1, user_api="blas"):
        trials = 0
        if plan.until is not None and missing.size:
            cells = np.sort(random.permutation(plan.outer.size)[:_PILOT])
            first = plan.first()
            tiles = first[np.isin(first[:, 0], cells)]
            programs.compile(tiles)
            _, values = draw(tiles)
            _, drawn, m2 = state(plan, tiles, [values])
            enough = np.clip(1.02 * plan.needed(drawn, m2), drawn, plan.trials)
            trials = int(plan.outer.size * enough.mean())
        left = 0.0
        for members in kinds.values():
            spent, count = 0.0, 1
            while True:  # the first call warms up, and each later one doubles the number of tiles
                tiles = missing[random.choice(members, min(count, len(members)), replace=False)]
                spent, _ = draw(tiles)
                if spent >= seconds / len(kinds) / 2 or count >= len(members):
                    break
                count = max(2 * count, int(count * seconds / len(kinds) / max(spent, 1e-3)))
            left += spent * len(members) / len(tiles)
    planned, missing_trials = run.rounds.trials, run.rounds.missing_trials
    done, trials = planned - missing_trials, max(trials, planned)
    left *= (trials - done) / max(missing_trials, 1)
    result_size = result_bytes(plan) / plan.trials_in(plan.first()).sum() * trials
    threads = len(programs.devices)
    values = plan.outer.size * len(plan.outputs) * math.prod(plan.within.shape)
    return Estimate(
        cells=plan.outer.size,
        trials=trials,
        done=done,
        programs=len(programs),
        compile_s=programs.compile_s,
        seconds=left,
        memory=result_size + programs.working_memory * threads,
        stored=result_size + _DATASET * values + _DESCRIBED,
        workers=threads,
    )
