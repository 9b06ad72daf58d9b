"""Shared parts of the GLUE experiments: the files of `glue_runs.py`, and the figure and JSON file that each writes."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments._common import HERE, plain
from rmtjax.report.figures import save

NAMES = {"mrpc": "MRPC", "rte": "RTE", "cola": "CoLA", "qnli": "QNLI", "sst2": "SST-2", "mnli": "MNLI", "qqp": "QQP"}
METRICS = {"accuracy": "accuracy", "matthews": "Matthews correlation", "pearson": "Pearson correlation"}


def parse(argv: list[str] | None, file: str, doc: str) -> argparse.Namespace:
    """Parse `--runs`, the folder that `glue_runs.py` filled, and `--out`."""
    parser = argparse.ArgumentParser(prog=Path(file).stem, description=doc.splitlines()[0])
    parser.add_argument(
        "--runs", type=Path, default=HERE / "results" / "glue", help="files of runs (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder for figures/ and results/ (default: this one)")
    args = parser.parse_args(argv)
    args.name, args.about = Path(file).stem, doc.splitlines()[0]
    return args


def runs(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Return results by name (`mrpc-alpha-lora`) and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for file in sorted(folder.glob("*.json")):
        name, _, seed = file.stem.rpartition("-")
        found[name][int(seed)] = json.loads(file.read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{folder} holds no results: run glue_runs.py first")
    return dict(found)


def scores(of: Mapping[int, Mapping[str, Any]], which: str = "last") -> dict[int, float]:
    """Return the score in per cent by seed: of the last epoch, or the best."""
    return {seed: 100 * result[which] for seed, result in sorted(of.items())}


def mean_se(values: Any) -> tuple[float, float]:
    """Return the mean and its standard error; NaN if there are too few values."""
    values = np.asarray(list(values), float)
    if not len(values):
        return float("nan"), float("nan")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def record(args: argparse.Namespace, figure: Any, numbers: Mapping[str, Any], used: Mapping[str, Any]) -> None:
    """Write ``figures/NAME.png`` and ``results/NAME.json``, with the provenance of its runs."""
    made = sorted({json.dumps(r["made_with"], sort_keys=True) for group in used.values() for r in group.values()})
    report = {
        "experiment": args.name,
        "reproduces": args.about,
        "made_with": [json.loads(m) for m in made],
        "numbers": numbers,
    }
    if figure is not None:
        print(save(figure, args.out / "figures" / f"{args.name}.png"))
    table = args.out / "results" / f"{args.name}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    print(table)
