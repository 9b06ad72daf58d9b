"""Double precision where it is needed, without touching the user's JAX settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp

P = ParamSpec("P")
T = TypeVar("T")


def float64(function: Callable[P, T]) -> Callable[P, T]:
    """Run `function` in float64, its array arguments converted first, whatever the caller's default precision is.

    Every leaf of the arguments becomes a float64 array and the body runs inside `jax.enable_x64(True)`. The global
    switch is never touched, so a program that works in float32 goes on doing so; `jit`, `grad` and `vmap` pass
    through. Gradients come back in the dtype of the argument that they belong to.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.enable_x64(True):
            args, kwargs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (args, kwargs))
            return function(*args, **kwargs)

    return wrapped
