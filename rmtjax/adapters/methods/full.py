"""Full fine-tuning of one weight: an update with every entry trained."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from rmtjax._random import fixed_normal
from rmtjax.adapters.methods.base import Update, scaled_by
from rmtjax.adapters.params import AdapterParam

__all__ = ["FullUpdate"]


class FullUpdate(Update):
    """W + Δ with all of Δ trained, from zero: full fine-tuning of one weight beside its frozen copy."""

    sides: Mapping[str, tuple[str | None, ...]] = {"delta": ("inputs", "outputs")}

    def __init__(self, kernel: Array) -> None:
        self.delta = AdapterParam(jnp.zeros(kernel.shape, jnp.float32))
        self.rank = min(kernel.shape)

    def norm(self):
        # Subspace iteration from a fixed block, a lower bound: too small by a few per mille if singular values are close.
        delta = self.delta[...]
        block = fixed_normal(0, (delta.shape[1], 8), delta.dtype)
        for _ in range(4):
            block = jnp.linalg.qr(delta.T @ (delta @ block))[0]
        return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh((delta @ block).T @ (delta @ block))[-1], 0))

    def bounded(self, limit):
        return {"delta": self.delta[...] * jnp.minimum(1.0, limit / jnp.maximum(self.norm(), 1e-30))}

    def kernel(self, kernel):
        # The sum is taken in single precision: in a half-precision kernel's own, small Δ would be rounded away.
        return kernel + self.delta[...]

    def __call__(self, x, kernel, alpha=None):
        return x @ self.kernel(scaled_by(kernel, alpha)).astype(x.dtype)
