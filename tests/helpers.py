"""Helpers that tests of several packages share."""

import contextlib
import types

import jax
import numpy as np

HOSTILE = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "BF16_BF16_F32",
    "jax_debug_key_reuse": True,
    "jax_disable_jit": True,
}
"""Flags of JAX that a user may have set, each with a value that changes numbers or refuses default operations."""

GENERATORS = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset")
"""Those of them that change the draws of a seed."""


@contextlib.contextmanager
def flags(values):
    """Set flags of JAX for all threads, as a user does, and restore them."""
    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def array(values, dtype=np.float32) -> jax.Array:
    """An array of JAX with numbers of NumPy, which are only copied: `jnp.asarray` compiles a program for each shape."""
    return jax.device_put(np.asarray(values, dtype))


def compiled(function, **options):
    """A function as one program in double precision that gives NumPy's arrays.

    Called as it is, each of its operations would be a program of its own, and take XLA as long to compile.
    """
    program = jax.jit(function, **options)

    def call(*args, **kwargs):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, program(*args, **kwargs))

    return call


def programs_of(module, *names, **options):
    """Functions of a module, each as `compiled` gives it."""
    return types.SimpleNamespace(**{name: compiled(getattr(module, name), **options) for name in names})
