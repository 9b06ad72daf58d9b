"""A copy of a model with its adapters folded in."""

from __future__ import annotations

from typing import TypeVar

import jax
from flax import nnx

from rmtjax.adapters.layers import AdaptedLinear, checked_dtype, warn_of_loss
from rmtjax.adapters.modules import dotted, exchange, retype, variable_places
from rmtjax.adapters.params import TrainedParam

__all__ = ["Model", "merged_copy"]

Model = TypeVar("Model", bound=nnx.Module)


def merged_copy(model: Model, *, dtype: jax.typing.DTypeLike | None = None) -> Model:
    """Return a copy of a model with every adapter folded into its dense layer and no weight marked as training.

    Layers stay of the type that they are, and tied weights stay tied, but for a kernel that an adapter changes in one place
    alone: that is a matrix of its own from then on.

    Args:
        model: with adapters; it stays as it is.
        dtype: of the merged kernels; by default each keeps that of its base, as in PEFT. Single precision keeps all of the
            update where the base is in half precision.

    Raises:
        InputError: if a merged kernel is too large for its dtype, or `dtype` is none of real numbers.

    Warns:
        UserWarning: if rounding loses more than 1 % of an update; the message says how much.

    Examples:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> from rmtjax.adapters import apply_adapters, merged_copy
        >>> model = nnx.Dict(fc=nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
        >>> apply_adapters(model, target_modules=["fc"], rank=1)
        >>> merged_copy(model).fc.kernel.dtype.name, merged_copy(model, dtype=jnp.float32).fc.kernel.dtype.name
        ('bfloat16', 'float32')
    """
    dtype = checked_dtype(dtype)
    model = nnx.clone(model)
    layers = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, AdaptedLinear)}
    warn_of_loss({dotted(path): layer for path, layer in layers.items()}, "merged_copy", dtype)
    if () in layers:
        model = layers[()]._plain(dtype)
    else:
        exchange(model, {path: layer._plain(dtype) for path, layer in layers.items()})
    retype([entry for entry in variable_places(model).values() if type(entry[0]) is TrainedParam], nnx.Param)
    return model
