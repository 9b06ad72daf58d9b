"""Shared parts of the experiments: their three arguments, and the figure and JSON file that each writes."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from rmtjax._provenance import draw_provenance
from rmtjax.montecarlo import to_records
from rmtjax.report.figures import save

HERE = Path(__file__).parent


def parse(argv: list[str] | None, file: str, doc: str, trials: int) -> argparse.Namespace:
    """Parse `--trials`, `--seed` and `--out`, and add the experiment's name, its subject and its start time.

    Args:
        argv: the arguments, those of the command line if None.
        file: the script.
        doc: the script's docstring, whose first line says what it reproduces.
        trials: default number of trials.
    """
    about = doc.splitlines()[0]
    parser = argparse.ArgumentParser(prog=Path(file).stem, description=about)
    parser.add_argument("--trials", type=int, default=trials, help="Monte Carlo trials per cell (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for figures/ and results/ (default: this one)")
    args = parser.parse_args(argv)
    if args.trials < 2:
        parser.error(f"--trials {args.trials}: must be at least 2")
    args.name, args.about, args.began = Path(file).stem, about, time.perf_counter()
    return args


def made_with(args: argparse.Namespace, devices: Sequence[jax.Device] | None = None) -> dict[str, Any]:
    """Return the provenance of a result: seed, trials, devices, versions, commit, time and seconds since the start."""
    return {
        "seed": args.seed,
        "trials_per_cell": args.trials,
        **draw_provenance(jax.local_devices() if devices is None else devices),
        "wall_s": round(time.perf_counter() - args.began, 2),
    }


def record(
    args: argparse.Namespace, figure: Any, numbers: Mapping[str, Any], results: Mapping[str, xr.Dataset]
) -> None:
    """Write ``figures/NAME.png`` and ``results/NAME.json``, and print the headline numbers.

    Args:
        args: from `parse`.
        figure: the figure.
        numbers: the headline, by name.
        results: the runs behind it, by name; their cells and provenance are kept.
    """
    compile_s = sum(run.attrs["compile_s"] for run in results.values())
    image = save(figure, args.out / "figures" / f"{args.name}.png")
    report = {
        "experiment": args.name,
        "reproduces": args.about,
        "provenance": {**made_with(args), "compile_s": compile_s},
        "numbers": numbers,
        "runs": {name: {"provenance": dict(run.attrs), "cells": to_records(run)} for name, run in results.items()},
    }
    table = args.out / "results" / f"{args.name}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    print(json.dumps(plain(numbers), indent=1, ensure_ascii=False))
    print(f"{image}\n{table}\n{report['provenance']['wall_s']} s")


def worst_z(result: xr.Dataset) -> float:
    """Return the largest |z| of a run."""
    return float(np.abs(result["z"]).max())


def plain(value: Any) -> Any:
    """Return arrays as lists, numbers at seven digits, and null for values that are not finite (a worst α may not exist)."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # from NumPy or JAX, a scalar or an array
        value = np.asarray(value).tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
