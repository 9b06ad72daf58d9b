"""Memory and devices: the available amounts, and the needs of a trial."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmtjax._errors import InputError, shown
from rmtjax._machine import cores

__all__ = ["Needs", "available_memory", "needs", "workers"]

_LAPACK = {
    **dict.fromkeys(("cholesky", "lu", "triangular_solve"), 1),
    **dict.fromkeys(
        ("eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "ormqr", "qr", "schur", "svd", "tridiagonal",
         "tridiagonal_solve"), 10
    ),
    "eig": 30,
    "ffi_call": math.inf,
}  # fmt: skip
"""Primitives that JAX leaves to LAPACK on processors, and what multiplies the entries of the largest operand times its longer
side to give at least as many products as JAX takes them to need."""

_ONE_THREAD = 1e5
"""Products up to which JAX does a batch on its current thread (2·10⁵ in jaxlib 0.10's `lapack_kernels.cc`). It deals larger
ones out to its pool of threads and waits for them on one of these. Other programs, and independent parts of the same program,
do so too: together they can occupy the whole pool and deadlock, on two cores at once."""


def _host_memory() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        free = float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:  # a container may have less than the machine
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
        chosen = jax.local_devices() if devices is None else list(devices)
    except TypeError:
        chosen = [devices]
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise InputError(f"devices = {shown(devices)}: must be a list of at least one JAX device")
    return chosen


def available_memory(devices: Sequence[jax.Device] | None = None) -> float:
    """Return the free bytes of all devices together; on processors, those of the host."""
    devices = _chosen(devices)
    if devices[0].platform == "cpu":
        return _host_memory()
    stats = [d.memory_stats() or {} for d in devices]
    return sum(float(s.get("bytes_limit", 8e9)) - float(s.get("bytes_in_use", 0)) for s in stats)


class Needs(NamedTuple):
    """Needs of a function that tracing reveals.

    Attributes:
        bytes: size of its largest intermediate array, a lower bound of its memory.
        products: number of products in its largest LAPACK call, 0 if there is none.
        pooled: whether it calls LAPACK on batches that JAX deals out, so that its programs must run one at a time on
            processors.
    """

    bytes: int = 0
    products: float = 0
    pooled: bool = False

    @property
    def at_once(self) -> float:
        """The largest batch of such functions on processors, at least 1."""
        return max(1.0, _ONE_THREAD / self.products) if self.products else math.inf

    def __or__(self, other: Needs) -> Needs:
        return Needs(*map(max, self, other))


def _lapack(equation) -> Needs:
    operand = max((v.aval for v in equation.invars), key=lambda a: math.prod(getattr(a, "shape", ())))
    complexity = 3 if jnp.issubdtype(operand.dtype, jnp.complexfloating) else 1
    weight = _LAPACK[equation.primitive.name] * complexity
    products = weight * math.prod(operand.shape) * max(operand.shape[-2:], default=1)
    return Needs(products=products, pooled=operand.ndim > 2 and products > _ONE_THREAD)


def _needs(jaxpr) -> Needs:
    total = Needs()
    for equation in jaxpr.eqns:
        if equation.primitive.name in _LAPACK:
            total |= _lapack(equation)
        for variable in equation.outvars:
            aval = variable.aval
            total |= Needs(math.prod(getattr(aval, "shape", ())) * getattr(aval.dtype, "itemsize", 1))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total |= _needs(inner)
    return total


def needs(function: Callable, *args) -> Needs:
    """Trace a function and return its needs, without compiling it."""
    return _needs(jax.make_jaxpr(function)(*args).jaxpr)


def workers(devices: Sequence[jax.Device] | None, tiles: int) -> list[jax.Device]:
    """Return the devices to use, one entry for each thread that calls programs on them.

    Those given have one thread each. By default all devices are used, and processors have a thread for each core, since a
    program mostly uses one core.
    """
    threads = _chosen(devices)
    if devices is None and threads[0].platform == "cpu":
        threads = threads * max(1, cores() // len(threads))
    return threads[: max(1, tiles)]
