"""Shared parts of the benchmarks: medians of alternating runs, and a dated file of results."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import jax

from rmtjax._machine import cores, processor
from rmtjax._provenance import versions_of

__all__ = ["PAUSE", "alternate", "hardware", "made", "ratio", "save", "save_part", "summary"]

PAUSE = 0.05
"""Seconds for which idle threads of the previous function keep spinning on cores that the next one needs."""


def hardware() -> str:
    """Return the name and number of cores of the processor, or the accelerator's name."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{len(jax.devices())} × {device.device_kind}"
    return f"{cores()} cores of {processor()}"


def alternate(repeats: int, **functions: Callable[[], object]) -> dict[str, dict[str, float]]:
    """Run functions alternately, A B C A B C …, after one uncounted round; return their times in seconds by name.

    A slow spell of a shared machine then hits all of them; `ratio` pairs them round by round. There is a `PAUSE` between
    two.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            function()
            if round_:
                times[name].append(time.perf_counter() - began)
    return {name: summary(t) for name, t in times.items()}


def summary(times: list[float]) -> dict[str, float | list[float]]:
    """Return median and least of times in seconds, and all of them."""
    return {"median_s": statistics.median(times), "min_s": min(times), "times_s": times}


def ratio(slow: dict, fast: dict) -> float:
    """Return the median of the ratios of two alternating timings; the ratio of medians if one took part in fewer rounds."""
    if len(slow["times_s"]) != len(fast["times_s"]):
        return slow["median_s"] / fast["median_s"]
    return statistics.median(a / b for a, b in zip(slow["times_s"], fast["times_s"], strict=True))


def made(name: str) -> dict[str, object]:
    """Return the header of a file of results: the benchmark, hardware, date and versions."""
    packages = ("rmtjax", "jax", "jaxlib", "numpy", "scipy", "torch", "cupy-cuda13x", "cupy-cuda12x", "cupy")
    return {
        "benchmark": name,
        "hardware": hardware(),
        "date": date.today().isoformat(),
        "versions": versions_of(packages),
        "python": platform.python_version(),
    }


def file_of(folder: Path, name: str) -> Path:
    """Return the file for the results of a benchmark on this hardware."""
    where = re.sub(r"[^A-Za-z0-9]+", "-", hardware()).strip("-").lower()
    return folder / f"{name}-{where}.json"


def save(folder: Path, name: str, content: dict) -> Path:
    """Write results into a folder under the benchmark's and the hardware's name; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = file_of(folder, name)
    file.write_text(json.dumps({**made(name), **content}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def save_part(folder: Path, name: str, part: str, content: dict) -> Path:
    """Write one part of the results, with its own date and versions; the file's other parts stay unchanged."""
    head = made(name)
    file = file_of(folder, name)
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    parts = {key: value for key, value in earlier.items() if key not in head}
    about = {key: head[key] for key in ("date", "versions", "python")}
    return save(folder, name, {**parts, part: {**content, **about}})
