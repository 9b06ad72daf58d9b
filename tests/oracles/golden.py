"""Numbers of rmtjax for fixed seeds, recorded before the rebuild: python -m tests.oracles.golden [--write]

A move of a module, a new name of a function or a split of a file must not change a number. The record holds means and standard
errors of every claim and sampler, the scan of a fixed pair of checkpoints, and ten training steps with each adapter. Without
`--write` the script computes all of it again and lists what differs; on the processor that the record names, nothing may, not by
a bit. `make golden` compares in the tests, up to the rounding that differs between processors.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmtjax.claims import CLAIMS
from rmtjax.finetune import finetune
from rmtjax.intruders import scan
from rmtjax.montecarlo import run
from rmtjax.montecarlo.grid import Axis, Grid
from tests.finetune.helpers import settings, write_base, write_task
from tests.intruders.helpers import matrix, planted, write, write_adapter

RECORD = Path(__file__).with_name("golden.json")
TRIALS, LARGEST = 24, 200
ADAPTERS = ("lora", "rslora", "dora", "alpha-lora", "orthogonal", "spectral-additive", "spectral-rotational", "full")


_RECORDED_AS = {"algorithm": "method", "matched": "known"}
"""Words of a scan that have been renamed, with their names in the record."""


def _ends(grid: Grid, sizes: Sequence[str]) -> Grid:
    """Return the grid of the first and last values of each axis, where claims differ most, with sizes of matrices up to 200."""
    largest = max(
        (values.max() for axis in grid.axes for name, values in axis.values.items() if name in sizes), default=0
    )
    axes = []
    for axis in grid.axes:
        kept = slice(None) if axis.length == 1 else [0, axis.length - 1]
        values = {name: values[kept] for name, values in axis.values.items()}
        for name in values if largest > LARGEST else ():
            if name in sizes:
                values[name] = np.maximum(np.rint(values[name] * LARGEST / largest), np.minimum(values[name], 8))
        axes.append(Axis(values, axis.fixed))
    return Grid(tuple(axes))


def _hexadecimal(values: Any) -> list[str]:
    return [float(x).hex() for x in np.ravel(np.asarray(values, float))]


def of_sampler(claim: str, sampler: str) -> dict[str, list[str]]:
    """Return the law, means and standard errors of a small run of one sampler, over the corners of a grid of its claim."""
    chosen = CLAIMS[claim]
    cells = _ends(
        chosen.grid if chosen.comparison_grid is None else chosen.comparison_grid,
        chosen.samplers[sampler].static_argnames,
    )
    result = run(chosen, cells, sampler=sampler, trials=TRIALS, seed=11, progress=False)
    return {name: _hexadecimal(result[name].values) for name in ("law", "mean", "se")}


def of_scan() -> dict[str, Any]:
    """Return the scan of a small pair of checkpoints, and of an adapter, without times and paths."""
    with tempfile.TemporaryDirectory() as folder:
        base = write(Path(folder) / "base", {"a.0.weight": matrix(60, 40), "a.1.weight": matrix(500, 450, 1)})
        tuned = {
            "a.0.weight": planted(matrix(60, 40), 30.0, 3.0),
            "a.1.weight": planted(matrix(500, 450, 1), 12.0, 8.0),
        }
        factors = {f"a.{i}": (matrix(2, m, 5) / 4, matrix(n, 2, 6)) for i, (n, m) in enumerate([(60, 40), (500, 450)])}
        scans = {
            "checkpoint": scan(base, write(Path(folder) / "tuned", tuned)),
            "adapter": scan(base, write_adapter(Path(folder) / "adapter", factors)),
        }
    kept = {}
    for name, result in scans.items():
        layers = json.loads(json.dumps([layer.to_dict() for layer in result.layers], default=np.ndarray.tolist))
        for layer in layers:
            layer["verdicts"] = [_RECORDED_AS.get(verdict, verdict) for verdict in layer["verdicts"]]
        kept[name] = [
            {_RECORDED_AS.get(key, key): value for key, value in layer.items() if key != "seconds"} for layer in layers
        ]
    return kept


def of_training(adapter: str) -> dict[str, list[str]]:
    """Return the losses of ten training steps of a tiny BERT with one adapter, and its α afterwards."""
    losses = []

    def watch(training) -> None:
        step = training.trainer.step

        def noted(*arguments):
            state, loss = step(*arguments)
            losses.append(loss)
            return state, loss

        training.trainer.step = noted

    with tempfile.TemporaryDirectory() as folder:
        base, data = write_base(Path(folder) / "base"), write_task(Path(folder) / "data")
        chosen = settings(base, data, adapter=adapter)
        finetune(chosen, Path(folder) / "run", announce=watch, stop_after=10, progress=False, devices=jax.devices()[:1])
    return {"losses": _hexadecimal([float(loss) for loss in losses])}


def parts() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each recorded part: its name, and the function that computes it."""
    for name, claim in CLAIMS.items():
        for sampler in claim.samplers:
            yield f"{name}:{sampler}", lambda name=name, sampler=sampler: of_sampler(name, sampler)
    for adapter in ADAPTERS:
        yield f"train:{adapter}", lambda adapter=adapter: of_training(adapter)
    yield "scan", of_scan


def processor() -> str:
    """Return the name of the processor, which determines the last bits."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="record anew what is computed now")
    parser.add_argument("--only", default="", help="parts whose names contain this")
    options = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {"parts": {}}
    differing = []
    for name, compute in parts():
        if options.only not in name:
            continue
        value = compute()
        if options.write:
            record["parts"][name] = value
        elif value != record["parts"].get(name):
            differing.append(name)
            print(f"{name} differs", flush=True)
        jax.clear_caches()
    if options.write:
        record = {"processor": processor(), "jax": jax.__version__, "numpy": np.__version__, "parts": record["parts"]}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(differing)} of {len(record['parts'])} parts differ; recorded on {record['processor']}")


if __name__ == "__main__":
    main()
