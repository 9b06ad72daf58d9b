"""The provenance of a result: code, packages and hardware."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

from rmtjax._machine import processor
from rmtjax._random import GENERATOR

__all__ = ["commit", "draw_provenance", "hardware", "provenance", "versions", "versions_of"]

_PACKAGES = ("rmtjax", "jax", "jaxlib", "numpy")


@functools.cache
def commit() -> str:
    """Return the commit of the checkout that the package runs from, with ``+`` if files differ; empty outside of one."""
    package = Path(__file__).parent
    ask = ["git", "-C", str(package), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    # The checkout must be the package's own, not that of a user whose .venv contains the package.
    ours = ["git", "-C", str(package), "ls-files", "--error-unmatch", "__init__.py"]
    try:
        subprocess.run(ours, capture_output=True, timeout=5, check=True)
        return subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the given packages that are installed."""
    installed = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


@functools.cache
def versions(*more: str) -> str:
    """Return the versions of the packages that every result depends on, and of further ones, as one text."""
    return ", ".join(f"{name} {number}" for name, number in versions_of((*_PACKAGES, *more)).items())


def hardware(devices: Sequence[jax.Device]) -> str:
    """Return the number and the kind of the devices."""
    device = devices[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    return f"{len(devices)} × {name} ({device.platform})"


def provenance(devices: Sequence[jax.Device], *packages: str) -> dict[str, str]:
    """Return the devices, versions and commit behind a result; `packages` names further packages whose versions matter."""
    return {"device": hardware(devices), "versions": versions(*packages), "git_commit": commit()}


def draw_provenance(devices: Sequence[jax.Device]) -> dict[str, str]:
    """Return the provenance of draws that end now: devices, versions, commit, generator and time."""
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return {**provenance(devices), "generator": GENERATOR, "finished": finished}
