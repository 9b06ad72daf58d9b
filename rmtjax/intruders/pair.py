"""One weight matrix before and after fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax.linalg.krylov import LowRankUpdated, Matrix

__all__ = ["Pair", "Skipped", "largest"]

_PLAIN = 30
"""Power of two from which on the squares of numbers, and their sums, may overflow or underflow single precision."""


def largest(x: Matrix) -> float:
    """Return the largest magnitude, NaN if there is one, without a copy of the array."""
    return float(max(x.max(initial=0), -x.min(initial=0)))


class Pair(NamedTuple):
    """One weight matrix before and after, (outputs, inputs), in float32.

    Attributes:
        name: in the base.
        base: W, shape (n, m); of NumPy on processors, of JAX on an accelerator.
        tuned: the matrix afterwards.
        factors: B (n, r) and A (r, m) of an update that is BA and nothing else; otherwise None.
        rounding: unit roundoff of the type that the base is stored in.
    """

    name: str
    base: Matrix
    tuned: LowRankUpdated
    factors: tuple[Matrix, Matrix] | None
    rounding: float = 2.0**-24

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.base.shape

    def update(self) -> Matrix:
        """Return the update as a dense matrix: tuned − base."""
        if self.factors is not None:
            with jax.default_matmul_precision("highest"):
                return self.factors[0] @ self.factors[1]
        return self.tuned.dense() - self.base

    def plain(self) -> tuple[Pair, float]:
        """Return the pair in units in which single precision holds the squares of its numbers, and the unit, a power of two."""
        tuned = self.tuned
        weights = (self.base,) if tuned.weight is self.base else (self.base, tuned.weight)
        exponent = math.frexp(max(map(largest, weights)))[1]
        if abs(exponent) <= _PLAIN:
            return self, 1.0
        xp = np if isinstance(self.base, np.ndarray) else jnp
        base = xp.ldexp(self.base, -exponent)
        weight = base if tuned.weight is self.base else xp.ldexp(tuned.weight, -exponent)
        left = None if tuned.left is None else xp.ldexp(tuned.left, -exponent)
        factors = None if self.factors is None else (left, self.factors[1])
        pair = self._replace(base=base, tuned=dataclasses.replace(tuned, weight=weight, left=left), factors=factors)
        return pair, math.ldexp(1.0, exponent)

    def on_device(self, device: jax.Device | None = None) -> Pair:
        """Return the pair in the memory of one of JAX's devices, the first by default."""
        device = jax.devices()[0] if device is None else device
        base, tuned = jax.device_put((self.base, self.tuned), device)
        # An update beside the base shares the base's array, on the device too.
        return self._replace(
            base=base, tuned=dataclasses.replace(tuned, weight=base) if self.tuned.weight is self.base else tuned
        )


class Skipped(NamedTuple):
    """A tensor that was not compared, and the reason."""

    name: str
    reason: str
