"""What there is, memory and workers, and what a trial needs of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from rmtjax._errors import InputError, shown
from rmtjax._machine import cores

__all__ = ["Needs", "available_memory", "needs", "workers"]

_POOLED = {
    "cholesky", "eig", "eigh", "ffi_call", "geqrf", "hessenberg", "householder_product", "lu", "qr", "schur", "svd",
    "triangular_solve", "tridiagonal", "tridiagonal_solve",
}  # fmt: skip
"""Primitives whose batches XLA's CPU client spreads over its thread pool and waits for. A program runs on a thread of the
same pool, so two programs at once can use up the pool waiting for each other (seen with jaxlib 0.10)."""


def _host_memory() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        free = float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:  # a container may be allowed less than the machine has
        with (
            open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit,
            open("/sys/fs/cgroup/memory.current", encoding="ascii") as used,
        ):
            free = min(free, float(limit.read()) - float(used.read()))
    except (OSError, ValueError):
        pass
    return free


def _chosen(devices: Sequence[jax.Device] | None) -> list[jax.Device]:
    try:
        found = jax.local_devices() if devices is None else list(devices)
    except TypeError:
        found = [devices]
    if not found or not all(isinstance(device, jax.Device) for device in found):
        raise InputError(f"devices = {shown(devices)}: must be a list of devices of JAX, at least one")
    return found


def available_memory(devices: Sequence[jax.Device] | None = None) -> float:
    """Free bytes on the devices together: the host's where they are processor cores."""
    devices = _chosen(devices)
    if devices[0].platform == "cpu":
        return _host_memory()
    stats = [d.memory_stats() or {} for d in devices]
    return sum(float(s.get("bytes_limit", 8e9)) - float(s.get("bytes_in_use", 0)) for s in stats)


class Needs(NamedTuple):
    """What tracing tells of a function.

    Attributes:
        bytes: of the largest array that it makes on the way: a lower bound of the memory it needs.
        pooled: whether it calls primitives of `_POOLED`.
        batched: whether it calls them on batches, so that its programs must run one at a time on processors.
    """

    bytes: int
    pooled: bool
    batched: bool


def _needs(jaxpr) -> Needs:
    largest, pooled, batched = 0, False, False
    for equation in jaxpr.eqns:
        if equation.primitive.name in _POOLED:
            pooled = True
            batched |= any(len(getattr(v.aval, "shape", ())) > 2 for v in equation.invars)
        for variable in equation.outvars:
            aval = variable.aval
            largest = max(largest, math.prod(getattr(aval, "shape", ())) * getattr(aval.dtype, "itemsize", 1))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                below = _needs(inner)
                largest, pooled, batched = max(largest, below.bytes), pooled | below.pooled, batched | below.batched
    return Needs(largest, pooled, batched)


def needs(function: Callable, *args) -> Needs:
    """Trace a function and say what it needs, without compiling it."""
    return _needs(jax.make_jaxpr(function)(*args).jaxpr)


def workers(devices: Sequence[jax.Device] | None, tiles: int) -> list[jax.Device]:
    """Devices, one entry for each thread that feeds it: each of those given, or all, with a thread for each processor core,
    since a program mostly uses one.
    """
    found = _chosen(devices)
    if devices is None and found[0].platform == "cpu":
        found = found * max(1, cores() // len(found))
    return found[: max(1, tiles)]
