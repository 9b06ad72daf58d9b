"""Report devices, memory and versions, diagnose problems and suggest fixes."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from rmtjax._machine import cores, processor

__all__ = ["Diagnosis", "Problem", "examine"]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "xarray", "zarr", "tokenizers")
_SMALL_MEMORY, _SMALL_DISK = 2e9, 1e9
"""Bytes of memory and of disk below which a warning is given."""


@dataclass(frozen=True)
class Problem:
    """A problem of the installation.

    Attributes:
        what: description of the problem.
        cure: suggested fix.
    """

    what: str
    cure: str


@dataclass(frozen=True)
class Diagnosis:
    """Facts about the machine and the problems found.

    Attributes:
        facts: texts about the machine, the packages and the devices, by name.
        problems: the problems found.
    """

    facts: dict[str, str]
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values."""
        return asdict(self)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _outdated() -> list[Problem]:
    """Return a problem for each package whose version rmtjax does not support."""
    from packaging.requirements import Requirement

    try:
        needs = [Requirement(text) for text in requires("rmtjax") or ()]
    except PackageNotFoundError:
        return []
    installed = [(need, _version(need.name)) for need in needs if need.marker is None]  # those with a marker are extras
    return [
        Problem(f"{need.name} {have} is installed, but rmtjax needs {need}", f"pip install '{need}'")
        for need, have in installed
        if have is not None and not need.specifier.contains(have, prereleases=True)
    ]


def _hardware(kinds: list[str], root: Path) -> list[Problem]:
    """Return a problem for each accelerator that the machine reports and JAX does not use."""
    problems = []
    nvidia = any((root / name).exists() for name in ("proc/driver/nvidia/version", "dev/nvidia0"))
    if nvidia and not {"gpu", "cuda"} & set(kinds):
        plugin = next((p for p in ("jax-cuda13-plugin", "jax-cuda12-plugin") if _version(p)), None)
        cure = "pip install 'rmtjax[cuda]'"
        if os.environ.get("JAX_PLATFORMS"):
            cure = f"unset JAX_PLATFORMS, which is {os.environ['JAX_PLATFORMS']}"
        elif plugin:
            cure = f"{plugin} is installed but does not start: python -c 'import jax; jax.devices(\"cuda\")' says why"
        problems.append(Problem("there is an NVIDIA GPU, but JAX does not use it", cure))
    if (root / "dev/accel0").exists() and "tpu" not in kinds:
        problems.append(Problem("there is a TPU, but JAX does not use it", "pip install 'rmtjax[tpu]'"))
    return problems


def _amount(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _precision() -> Problem | None:
    """Return a problem if products in scoped double precision are not exact to double precision."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    with jax.enable_x64(True):
        x = np.linspace(0, 1, 64 * 64).reshape(64, 64)
        off = np.abs(np.asarray(jnp.asarray(x) @ x, np.float64) - x @ x).max()
    if off > 1e-10:
        return Problem(
            f"products in float64 are off by {off:.1g}", "JAX_DEFAULT_MATMUL_PRECISION=highest, or another jaxlib"
        )
    return None


def examine(root: str | os.PathLike = "/") -> Diagnosis:
    """Return a diagnosis of the machine, the packages and the devices, which a small product tries out.

    Args:
        root: folder that contains /proc and /dev.
    """
    import jax

    from rmtjax._startup import cache_folder
    from rmtjax.montecarlo.resources import available_memory

    root, problems, facts = Path(root), [], {}
    facts["rmtjax"] = _version("rmtjax") or "not installed, run from its folder"
    facts["Python"] = f"{platform.python_version()} at {sys.executable}"
    facts["packages"] = ", ".join(f"{p} {_version(p) or '—'}" for p in _PACKAGES)
    ours, lib = _version("jax"), _version("jaxlib")
    if ours and lib and ours.split(".")[:2] != lib.split(".")[:2]:
        problems.append(
            Problem(f"jax {ours} and jaxlib {lib} are incompatible", f"pip install jax=={ours} jaxlib=={ours}")
        )

    problems += _outdated()

    total = os.cpu_count() or 1
    limits = {
        name: os.environ[name]
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        if name in os.environ
    }
    threads = "".join(f", {name}={value}" for name, value in limits.items())
    facts["processor"] = f"{processor()}, {cores()} of {total} cores{threads}"

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a backend exists
        reason = (str(error).splitlines() or ["no platform starts"])[0]
        chosen = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms
        cure = f"unset JAX_PLATFORMS, which is {chosen}" if chosen else "pip install --force-reinstall jax jaxlib"
        problems.append(Problem(f"JAX finds no device: {reason}", cure))
        return Diagnosis(facts, tuple(problems))
    kinds = sorted({d.platform for d in devices})
    local = jax.local_devices()
    facts["devices"] = f"{len(devices)} × {devices[0].device_kind} ({', '.join(kinds)})"
    if jax.process_count() > 1:
        facts["devices"] += f", {len(local)} of them here, process {jax.process_index()} of {jax.process_count()}"
    memory = available_memory(local)
    facts["memory"] = f"{_amount(memory)} free" + (
        "" if local[0].platform == "cpu" else " on the devices here together"
    )
    if memory < _SMALL_MEMORY:
        cure = "stop what uses it"
        if local[0].platform == "gpu":
            cure = (
                "nvidia-smi shows what holds it; XLA_PYTHON_CLIENT_PREALLOCATE=false keeps JAX from taking all at once"
            )
        problems.append(Problem(f"only {_amount(memory)} of memory is free", cure))
    problems += _hardware(kinds, root)
    if (wrong := _precision()) is not None:
        problems.append(wrong)
    facts["precision"] = "float64 in laws and compressions; float32 elsewhere by default" + (
        ", JAX_ENABLE_X64 makes it float64" if jax.config.jax_enable_x64 else ""
    )

    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_folder())
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    facts["compiled programs"] = f"kept in {cache}"
    if not _can_be_written(existing):
        problems.append(Problem(f"{cache} cannot be written", "JAX_COMPILATION_CACHE_DIR=FOLDER names another"))
    free = shutil.disk_usage(".").free
    facts["disk"] = f"{_amount(free)} free here"
    if free < _SMALL_DISK:
        problems.append(
            Problem(f"only {_amount(free)} of disk space is free here", "stores grow as they are written: make room")
        )
    return Diagnosis(facts, tuple(problems))


def _can_be_written(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
