"""The functions between the matrix products of an encoder: those written for processors, or the plain ones.

The fast ones are derivatives and masks written by hand, which a compiler may make superfluous; `plain_functions` shows whether it
has, and `python -m benchmarks.train_step` measures a step both ways.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from rmtjax._checks import one_of
from rmtjax.models import _fast_cpu, _plain

__all__ = ["ACTIVATIONS", "activation", "attention", "dropout", "gelu", "layer_norm", "plain_functions"]

_plain_chosen = contextvars.ContextVar("plain functions", default=False)


@contextlib.contextmanager
def plain_functions() -> Iterator[None]:
    """Use the plain functions of JAX and Flax, not those for processors, in models that are traced within.

    >>> import jax
    >>> from rmtjax.models.functions import gelu, plain_functions
    >>> with plain_functions():
    ...     print(jax.jit(gelu)(1.0))
    0.8413448
    """
    token = _plain_chosen.set(True)
    try:
        yield
    finally:
        _plain_chosen.reset(token)


def _chosen(name: str) -> Callable:
    """Return a function that calls the chosen implementation of that name, which is chosen at trace time."""
    fast = getattr(_fast_cpu, name)

    @functools.wraps(fast)
    def call(*arguments, **options):
        return getattr(_plain if _plain_chosen.get() else _fast_cpu, name)(*arguments, **options)

    return call


layer_norm, gelu, dropout, attention = map(_chosen, ("layer_norm", "gelu", "dropout", "attention"))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""`hidden_act` of a Hugging Face configuration → function."""


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the function that a configuration calls `name`."""
    one_of("hidden_act", name, ACTIVATIONS)
    return ACTIVATIONS[name]
