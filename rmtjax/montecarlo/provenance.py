"""Where a result comes from."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

__all__ = ["provenance"]


@functools.cache
def _commit() -> str:
    """The commit of the checkout that the package runs from, with ``+`` if files differ; empty outside of one."""
    here = Path(__file__).parent
    ask = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def _versions() -> str:
    found = []
    for package in ("rmtjax", "jax", "jaxlib", "numpy"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _hardware(workers: Sequence[jax.Device]) -> str:
    device = workers[0]
    name = device.device_kind
    if device.platform == "cpu":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as lines:
                name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
    return f"{len(workers)} × {name} ({device.platform})"


def provenance(
    seed: int,
    method: str,
    options: Mapping[str, str],
    trials: int,
    workers: Sequence[jax.Device],
    wall_s: float,
    compile_s: float,
) -> dict[str, Any]:
    """How a run was made, as plain values for a dataset's attributes."""
    return {
        "seed": seed,
        "method": method,
        **{f"option_{name}": value for name, value in options.items()},
        "trials_per_cell": trials,
        "device": _hardware(workers),
        "versions": _versions(),
        "git_commit": _commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": wall_s,
        "compile_s": compile_s,
    }
