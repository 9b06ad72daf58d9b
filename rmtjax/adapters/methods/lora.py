"""LoRA and its rank-stabilised form."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rmtjax.adapters.methods.base import Update, norm_of_product
from rmtjax.adapters.params import AdapterParam

__all__ = ["LoRA"]


class LoRA(Update):
    """W + s B A (Hu et al. 2022), s = a/r; or s = a/√r, rank-stabilised (Kalajdzievski 2023).

    A starts uniform on ±1/√inputs and B at zero, as in PEFT.
    """

    sides: Mapping[str, tuple[str | None, ...]] = {"A": ("inputs", None), "B": (None, "outputs")}

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array, stabilised: bool = False) -> None:
        inputs, outputs = kernel.shape
        bound = 1 / math.sqrt(inputs)
        self.A = AdapterParam(jax.random.uniform(key, (inputs, rank), jnp.float32, -bound, bound))
        self.B = AdapterParam(jnp.zeros((rank, outputs), jnp.float32))
        self.rank, self.scale, self.stabilised = rank, scale, stabilised

    @property
    def strength(self) -> float:
        """The factor s."""
        return self.scale / (math.sqrt(self.rank) if self.stabilised else self.rank)

    def factors(self):
        return self.A[...], self.strength * self.B[...]

    def bounded(self, limit):
        # Only the singular values that are too large are clipped, which gives the nearest matrix.
        a, b = self.A[...], self.B[...]
        right_a, (left_b, right_b) = jnp.linalg.qr(a, mode="r"), jnp.linalg.qr(b.T)
        u, values, vh = jnp.linalg.svd(right_a @ right_b.T)
        if self.strength == 0:
            return {"B": b}
        limit = limit / abs(self.strength)
        too_much = (u * jnp.maximum(values - limit, 0)) @ vh
        b = b - jnp.linalg.pinv(right_a, rtol=1e-6) @ too_much @ left_b.T
        # The part of B that A nearly annihilates cannot be recovered from the product to the last digit.
        return {"B": b * jnp.minimum(1.0, limit / jnp.maximum(norm_of_product(a, b), 1e-30))}
