"""Settings made before JAX starts. A library leaves them to its user; the command line and the scripts are such users."""

from __future__ import annotations

import gc
import os
import platform
import sys
import zlib

from rmtjax._errors import InputError
from rmtjax._machine import cores, processor_features

__all__ = [
    "cache_folder",
    "choose_platform",
    "chosen_devices",
    "collect_garbage_less_often",
    "device_for_each_core",
    "join_hosts",
    "keep_programs",
    "leave",
]


def device_for_each_core() -> None:
    """Make every processor core a JAX device, unless the user has set the number of devices.

    One share of the batch on each core is faster than all cores together on one product after another.
    """
    import jax

    if (
        "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
        and jax.config.jax_num_cpu_devices < 1
    ):
        jax.config.update("jax_num_cpu_devices", cores())


def cache_folder() -> str:
    """Return the folder of compiled programs: one for each kind of processor, since several kinds may share a home folder."""
    from platformdirs import user_cache_dir

    features = zlib.crc32(processor_features().encode())
    return os.path.join(user_cache_dir("rmtjax"), "xla", f"{platform.machine()}-{features:08x}")


def keep_programs() -> None:
    """Let JAX keep compiled programs for the next command, unless the user has chosen a folder."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache_folder())
    # A law is many small programs, each of which takes longer to compile than to load.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def collect_garbage_less_often() -> None:
    """Let Python look for garbage after 100,000 new objects, not 700.

    Importing JAX and loading programs makes objects that stay, among which a search finds nothing.
    """
    gc.set_threshold(100_000, 10, 10)


_PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")


def choose_platform(platform: str | None, devices: int | None) -> None:
    """Choose the devices that JAX will start; call it before JAX starts.

    Args:
        platform: cpu, gpu, cuda, rocm or tpu; None for what JAX prefers.
        devices: number of devices to use; on a processor that many cores become devices.

    Raises:
        InputError: for a platform that does not exist or a number below 1.
    """
    if platform is not None and platform not in _PLATFORMS:
        raise InputError(f"platform = {platform!r}: must be one of {', '.join(_PLATFORMS)}")
    if devices is not None and devices < 1:
        raise InputError(f"devices = {devices}: must be at least 1")
    if platform is None and devices is None:
        return
    import jax

    if platform is not None:
        jax.config.update("jax_platforms", platform)
    if devices is not None:
        jax.config.update("jax_num_cpu_devices", devices)


def chosen_devices(platform: str | None, devices: int | None) -> list | None:
    """Return the local devices that were chosen, or None for all.

    Raises:
        InputError: if there are none, or fewer.
    """
    if platform is None and devices is None:
        return None
    import jax

    try:
        local = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a backend exists
        reason = (str(error).splitlines() or ["it does not start"])[0]
        raise InputError(f"platform = {platform!r}: JAX cannot use it here ({reason})") from None
    if devices is not None and devices > len(local):
        raise InputError(
            f"devices = {devices}: must be at most {len(local)}, the number of {local[0].platform} devices"
        )
    return local[:devices]


_HEARTBEAT_S = 30
"""A process that is silent for longer counts as dead, and JAX ends the others."""


def join_hosts(coordinator: str | None, num_processes: int | None, process_id: int | None) -> bool:
    """Join this process to the others of a run; return whether it is the first process, which writes and prints.

    Args:
        coordinator: host:port where process 0 listens; "auto" where JAX finds it by itself (SLURM, Open MPI, Kubernetes, TPU
            pods); None for a process of its own.
        num_processes, process_id: needed where JAX does not find them by itself.

    Raises:
        InputError: for arguments that do not fit together, or if the others cannot be reached.
    """
    numbers = {"num-processes": num_processes, "process-id": process_id}
    if coordinator is None:
        for name, value in numbers.items():
            if value is not None:
                raise InputError(f"{name} = {value}: needs --coordinator HOST:PORT, or auto")
        return True
    if coordinator == "auto":
        address = None
    else:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(f"coordinator = {coordinator!r}: must be HOST:PORT, or auto")
        address = coordinator
        for name, value in numbers.items():
            if value is None:
                raise InputError(f"{name} is missing: --coordinator {coordinator} needs it")
    if num_processes is not None and num_processes < 1:
        raise InputError(f"num-processes = {num_processes}: must be at least 1")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        raise InputError(f"process-id = {process_id}: must be from 0 to {num_processes - 1}, below --num-processes")
    import jax

    try:
        jax.distributed.initialize(address, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_S)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"coordinator = {coordinator}: {str(error).splitlines()[0]}") from None
    return jax.process_index() == 0


def leave(status: int) -> None:
    """End this process without waiting for the other processes of its run."""
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized() and status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
