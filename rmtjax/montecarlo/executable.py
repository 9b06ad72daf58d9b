"""Serialised compiled programs, for the other devices of a process and for the next process.

An executable is XLA's compilation of a program for one device. Its bytes load on another device of the same kind without a
trace, a lowering or a compilation, and they give the same bits, because the machine code is the same.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import pickle
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

__all__ = ["Compiler", "pack", "unpack"]

_LOGGER = logging.getLogger(__name__)

_MAGIC = b"rmtjax program 1\n"


class Compiler:
    """Compiles lowered programs with the options of their platform, dropping options that the compiler does not know.

    Attributes:
        options: compiler options by platform. An option that the compiler refuses is dropped for good.
    """

    def __init__(self, options: dict[str, dict[str, Any]]) -> None:
        self.options = options

    def compile(self, lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
        """Return the executable of a lowered program."""
        options = self.options.get(platform)
        if options:
            try:
                return lowered.compile(compiler_options=options)
            except jax.errors.JaxRuntimeError as error:
                if "option" not in str(error):
                    raise
                _LOGGER.info("the compiler refuses %s: %s", options, error)
                self.options.pop(platform, None)
        return lowered.compile()


def pack(compiled: jax.stages.Compiled, **about: Any) -> bytes | None:
    """Return an executable for one device, and metadata about it, as bytes with a checksum.

    Returns None if the platform cannot serialise executables.
    """
    try:
        content = pickle.dumps((about, serialize_executable.serialize(compiled)))
    except Exception as error:  # each platform has its own error for this
        _LOGGER.info("this executable cannot be serialised: %s", error)
        return None
    content = zlib.compress(content, 1)
    return _MAGIC + hashlib.sha256(content).digest() + content


def unpack(data: bytes, device: jax.Device) -> tuple[jax.stages.Compiled, dict[str, Any]] | None:
    """Return the executable from the bytes of `pack`, loaded on a device, and its metadata.

    Returns None for bytes that are damaged or that this version of JAX cannot load. Whoever can write these bytes can run
    code here, as with JAX's own compilation cache.
    """
    digest, content = data[len(_MAGIC) : len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
    if not data.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
        return None
    try:
        about, (payload, in_tree, out_tree) = pickle.loads(zlib.decompress(content))
        if b"lapack_" in payload:
            _initialize_lapack()
        executable, arguments, no_kwargs = _unpickler(payload, device).load()
        loaded = jax.stages.Compiled(executable.load(), [], in_tree.unflatten(arguments), out_tree, no_kwargs=no_kwargs)
    except Exception as error:  # another version of JAX, or another processor
        _LOGGER.info("this executable cannot be loaded: %s", error)
        return None
    return loaded, about


@functools.cache
def _initialize_lapack() -> None:
    """Let JAX look up the addresses of LAPACK's routines.

    It does so when it lowers a program that calls one. A loaded program is never lowered, and would call address 0.
    """
    jax.jit(jax.lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), np.float32))


def _unpickler(payload: bytes, device: jax.Device) -> pickle.Unpickler:
    """Return a deserialiser that loads an executable on a device.

    JAX's own, in `deserialize_and_load`, insists on the device that the executable was compiled for.
    """
    from jax._src import compiler  # not a public API: if it has changed, `unpack` does without it

    options = compiler.get_compile_options(1, 1, device_assignment=np.array([[device.id]]))

    class Unpickler(serialize_executable._JaxPjrtUnpickler):
        def persistent_load(self, pid):
            kind, *content = pid
            if kind == "exec":
                return self.backend.deserialize_executable(content[0], self.execution_devices, options)
            return device if kind == "device" else super().persistent_load(pid)

    return Unpickler(io.BytesIO(payload), device.client, [device])
