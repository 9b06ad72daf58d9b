"""A dense layer with an adapter."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rmtjax.adapters.updates import Update
from rmtjax.adapters.variables import AdapterConstant, AlphaParam

__all__ = ["AdaptedLinear"]


def matrix_of(layer: nnx.Linear | nnx.LinearGeneral) -> Float[Array, "inputs outputs"]:
    """The kernel of a dense layer; those of an `nnx.LinearGeneral` flattened on both sides."""
    kernel = layer.kernel[...]
    return kernel.reshape(math.prod(layer.in_features), -1) if isinstance(layer, nnx.LinearGeneral) else kernel


class AdaptedLinear(nnx.Module):
    """`nnx.Linear` or `nnx.LinearGeneral` with its kernel frozen and updated: diag(α) W + ΔW (α-LoRA, eq. 10).

    The layer's own `precision`, `dot_general` and `preferred_element_type` are not used.

    Args:
        base: the layer itself.
        update: what is added; None adds nothing.
        alpha: the factor of each row of W, which several layers may share; None leaves W alone.
    """

    def __init__(
        self, base: nnx.Linear | nnx.LinearGeneral, update: Update | None = None, alpha: AlphaParam | None = None
    ) -> None:
        self.base = base
        self.update = nnx.data(update)
        self.alpha = nnx.data(alpha)
        self.merged = nnx.data(None)

    def _scaled(self, kernel: Array) -> Array:
        return kernel if self.alpha is None else kernel * self.alpha[...]

    def kernel(self) -> Float[Array, "inputs outputs"]:
        """The kernel that the layer now stands for, as a matrix in the base's dtype."""
        kernel = self._scaled(matrix_of(self.base).astype(jnp.float32))
        kernel = kernel if self.update is None else self.update.kernel(kernel)
        return kernel.astype(self.base.kernel.dtype)

    def merge(self) -> None:
        """Compute with one kernel from now on. The base stays as it is, so `unmerge` restores it exactly."""
        self.merged = nnx.data(AdapterConstant(self.kernel()))

    def unmerge(self) -> None:
        """Compute with base and update again."""
        self.merged = nnx.data(None)

    def plain(self) -> nnx.Linear | nnx.LinearGeneral:
        """A dense layer with the merged kernel."""
        layer = nnx.clone(self.base)
        layer.kernel = nnx.Param(self.kernel().reshape(layer.kernel.shape))
        return layer

    def __call__(
        self, inputs: Float[Array, "*batch inputs"], out_sharding: Any = None
    ) -> Float[Array, "*batch outputs"]:
        base, own = self.base, matrix_of(self.base)
        bias = None if base.bias is None else base.bias[...]
        x, _, bias = base.promote_dtype((inputs, own, bias), dtype=base.dtype)
        general = isinstance(base, nnx.LinearGeneral)
        if general:
            x = x.reshape(*x.shape[: x.ndim - len(base.axis)], len(own))
        if self.merged is not None or self.update is None:
            kernel = self._scaled(own) if self.merged is None else self.merged[...]
            y = x @ kernel.astype(x.dtype)
        else:
            # α meets the weights in their own precision: in half of it, most of its steps from 1 would be rounded away.
            y = self.update(x, own, None if self.alpha is None else self.alpha[...])
        if general:
            y = y.reshape(*y.shape[:-1], *base.out_features)
        y = y if bias is None else y + bias
        return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def adapted_layers(model: nnx.Module) -> dict[str, AdaptedLinear]:
    """The adapted layers of a model by their dotted paths."""
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, AdaptedLinear)
    }


def merge(model: nnx.Module) -> None:
    """Fold every adapter into one kernel, in place; `unmerge` takes it back to the bit."""
    for layer in adapted_layers(model).values():
        layer.merge()


def unmerge(model: nnx.Module) -> None:
    """Undo `merge`."""
    for layer in adapted_layers(model).values():
        layer.unmerge()
