"""LoRA with orthonormal factors."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rmtjax.adapters.methods.base import Update
from rmtjax.adapters.params import OrthogonalParam

__all__ = ["OrthogonalLoRA"]


class OrthogonalLoRA(Update):
    """W + (a/r) B A with BᵀB = A Aᵀ = I (Intruder Dimensions, §V-B): all r singular values of the update are a/r.

    Both start uniform over such matrices, so the update is there from the start. `stiefel` keeps the constraint.
    """

    sides: Mapping[str, tuple[str | None, ...]] = {"A": ("inputs", None), "B": ("outputs", None)}

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array) -> None:
        inputs, outputs = kernel.shape

        def frame(key, n):
            return jnp.linalg.qr(jax.random.normal(key, (n, rank), jnp.float32))[0]

        for_a, for_b = jax.random.split(key)
        self.A = OrthogonalParam(frame(for_a, inputs))
        self.B = OrthogonalParam(frame(for_b, outputs))
        self.rank, self.scale = rank, scale

    def factors(self):
        return self.A[...], (self.scale / self.rank) * self.B[...].T
