"""Double precision where it is needed, without touching the user's JAX settings."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, shown

__all__ = ["as_array", "double", "float64", "single"]

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Compute in float64, in this thread, within a `with` block or a function that this decorates.

    The user's flags that would round products to fewer digits, or forbid promotion of dtypes and ranks, have no effect there.
    """
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision(None),
    ):
        yield


@contextlib.contextmanager
def single() -> Iterator[None]:
    """Compute in float32 as JAX does by default. The precision of products is left to the user and the device."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def as_array(name: str, values: list | tuple) -> Any:
    """Return numbers, in lists or nested lists, as an array.

    Raises:
        InputError: naming the argument, if they are not numbers or the lists are ragged.
    """
    try:
        traced = any(isinstance(x, jax.Array) for x in jax.tree.leaves(values))
        array = jnp.asarray(values) if traced else np.asarray(values)
        if array.dtype.kind in "biufcV":  # V: bfloat16 and its like
            return array
    except (TypeError, ValueError):
        pass
    raise InputError(f"{name} = {shown(values)}: must be a number or an array of numbers")


def _converted(name: str, value: Any, is_tree: bool) -> Any:
    """Return an argument with every array in it in float64."""
    if type(value) in (list, tuple):
        try:
            value = as_array(name, value)
        except InputError:
            if not is_tree:
                raise
            return tuple(_converted(name, part, is_tree) for part in value)
    lists = lambda x: type(x) in (list, tuple)  # noqa: E731 - in the fields of a named tuple, for instance
    return jax.tree.map(lambda x: jnp.asarray(as_array(name, x) if lists(x) else x, jnp.float64), value, is_leaf=lists)


def float64(
    function: Callable[P, T] | None = None, *, keep: tuple[str, ...] = (), trees: tuple[str, ...] = ()
) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
    """Run `function` in float64, its array arguments converted first, whatever the caller's default precision is.

    Every array, number, or list of numbers among the arguments becomes a float64 array, in named tuples and dictionaries too,
    and the body runs inside `double()`. The global switch is never touched, so a program that works in float32 stays
    in it; `jit`, `grad` and `vmap` pass through. Gradients come back in the dtype of the argument that they belong to.

    Args:
        function: the function to run.
        keep: names of parameters that are handed on as they are, such as keys and counts.
        trees: names of parameters that may be a tuple of arrays of different shapes.
    """
    if function is None:
        return lambda f: float64(f, keep=keep, trees=trees)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        with double():
            for name, value in bound.arguments.items():
                if name not in keep:
                    bound.arguments[name] = _converted(name, value, name in trees)
            return function(*bound.args, **bound.kwargs)

    return wrapped
