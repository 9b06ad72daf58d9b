"""How much memory there is, and how much a trial needs at least."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import jax

__all__ = ["available_memory", "largest_intermediate"]


def _host_memory() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        free = float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:  # a container may be allowed less than the machine has
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit, open(
            "/sys/fs/cgroup/memory.current", encoding="ascii"
        ) as used:
            free = min(free, float(limit.read()) - float(used.read()))
    except (OSError, ValueError):
        pass
    return free


def available_memory(devices: Sequence[jax.Device] | None = None) -> float:
    """Free bytes on the devices together: the host's where they are processor cores."""
    devices = jax.local_devices() if devices is None else devices
    if devices[0].platform == "cpu":
        return _host_memory()
    stats = [d.memory_stats() or {} for d in devices]
    return sum(float(s.get("bytes_limit", 8e9)) - float(s.get("bytes_in_use", 0)) for s in stats)


def _arrays(jaxpr) -> int:
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            aval = variable.aval
            largest = max(largest, math.prod(getattr(aval, "shape", ())) * getattr(aval.dtype, "itemsize", 1))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                largest = max(largest, _arrays(inner))
    return largest


def largest_intermediate(function: Callable, *args) -> int:
    """Bytes of the largest array that a function makes on the way, found by tracing: a lower bound of what it needs."""
    return _arrays(jax.make_jaxpr(function)(*args).jaxpr)
