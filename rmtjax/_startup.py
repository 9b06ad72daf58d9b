"""What a program sets before JAX starts. A library leaves this to its user; the command line and the scripts are users."""

from __future__ import annotations

import os
import platform
import zlib

__all__ = ["device_for_each_core", "keep_programs"]


def device_for_each_core() -> None:
    """Let JAX see each processor core as a device, unless the user has said how many it should see.

    A core with a share of the batch of its own is faster than all cores together on one product after the other.
    """
    import jax

    if (
        "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
        and jax.config.jax_num_cpu_devices < 1
    ):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)


def keep_programs() -> None:
    """Let JAX keep what it compiles for the next command, unless the user has said where it should.

    A program is only good for the processor it was compiled for, and a home folder may be shared between several.
    """
    from platformdirs import user_cache_dir

    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    kind = f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(user_cache_dir("rmtjax"), "xla", kind))
