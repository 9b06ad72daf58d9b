"""Where a number comes from: code, packages and hardware."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

from rmtjax._machine import processor

__all__ = ["commit", "hardware", "versions"]


@functools.cache
def commit() -> str:
    """The commit of the checkout that the package runs from, with ``+`` if files differ; empty outside of one."""
    here = Path(__file__).parent
    ask = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    ours = ["git", "-C", str(here), "ls-files", "--error-unmatch", "__init__.py"]  # not a user's, whose .venv we are in
    try:
        subprocess.run(ours, capture_output=True, timeout=5, check=True)
        return subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def versions(*more: str) -> str:
    """The versions of the packages that results depend on, and of some more."""
    found = []
    for package in ("rmtjax", "jax", "jaxlib", "numpy", *more):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def hardware(devices: Sequence[jax.Device]) -> str:
    """How many devices, and which."""
    device = devices[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    return f"{len(devices)} × {name} ({device.platform})"
