"""Helpers that tests of several packages share."""

import contextlib

import jax

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
