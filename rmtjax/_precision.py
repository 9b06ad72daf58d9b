"""Double precision where it is needed, without touching the user's JAX settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp

P = ParamSpec("P")
T = TypeVar("T")


def float64(
    function: Callable[P, T] | None = None, *, keep: tuple[str, ...] = ()
) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
    """Run `function` in float64, its array arguments converted first, whatever the caller's default precision is.

    Every leaf of the arguments becomes a float64 array and the body runs inside `jax.enable_x64(True)`. The global
    switch is never touched, so a program that works in float32 goes on doing so; `jit`, `grad` and `vmap` pass
    through. Gradients come back in the dtype of the argument that they belong to.

    Args:
        function: what to run.
        keep: names of parameters that are handed on as they are, such as keys and counts.
    """
    if function is None:
        return lambda f: float64(f, keep=keep)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        with jax.enable_x64(True):
            for name, value in given.arguments.items():
                if name not in keep:
                    given.arguments[name] = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), value)
            return function(*given.args, **given.kwargs)

    return wrapped
