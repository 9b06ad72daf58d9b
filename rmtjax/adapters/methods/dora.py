"""DoRA, and column norms that neither underflow nor overflow."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax.adapters.methods.base import scaled_by
from rmtjax.adapters.methods.lora import LoRA
from rmtjax.adapters.params import AdapterParam

__all__ = ["DoRA", "column_norms"]


def _exponents(x: Float[Array, "inputs outputs"]) -> Float[Array, " outputs"]:
    """Return a power of two near the largest entry of each column, 1 for a column of zeros; no derivative passes through it."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=0))
    power = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1] - 1)
    return jnp.where((largest > 0) & jnp.isfinite(largest), power, 1)


def column_norms(x: Float[Array, "inputs outputs"]) -> tuple[Float[Array, " outputs"], Float[Array, " outputs"]]:
    """Return the column norms as (power of two, norm over that power), whose squares neither underflow nor overflow.

    Scaling by a power of two is exact. The second factor is 0 for a column of zeros, and its derivative is 0 there.
    """
    power = _exponents(x)
    scaled = x / power
    squares = jnp.sum(scaled * scaled, axis=0)
    is_zero = squares == 0
    return power, jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


class DoRA(LoRA):
    """m (W + s B A)/‖W + s B A‖ by rows (Liu et al. 2024); the norm counts as a constant for the gradient of A and B.

    The magnitudes m start at the norms of W's rows. For α, which scales W inside the norm, the norm is not constant: where B A
    = 0 nothing depends on α, and beside B A it is W's share in the direction of the row.

    A row of W + s B A that is zero has no direction. It stays zero, its m/‖·‖ counts as 1 and its m gets no gradient, so
    that A and B learn as LoRA's do until the row has a direction; that is what ever smaller rows tend to at the start.
    PEFT divides by zero there.
    """

    sides: Mapping[str, tuple[str | None, ...]] = {**LoRA.sides, "magnitude": ("outputs",)}

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array, stabilised: bool = False) -> None:
        super().__init__(kernel, rank, scale, key, stabilised)
        power, norms = column_norms(kernel.astype(jnp.float32))
        self.magnitude = AdapterParam(power * norms)

    def rates(self, kernel):
        a, b = jax.lax.stop_gradient(self.factors())
        power, norms = column_norms(kernel.astype(jnp.float32) + a @ b)
        is_zero = norms == 0
        return jnp.where(is_zero, 1, self.magnitude[...] / power / jnp.where(is_zero, 1, norms))

    def kernel(self, kernel):
        return super().kernel(kernel) * self.rates(kernel)

    def __call__(self, x, kernel, alpha=None):
        return super().__call__(x, kernel, alpha) * self.rates(scaled_by(kernel, alpha)).astype(x.dtype)
