"""Updates of the leading singular vectors of a weight."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rmtjax.adapters.methods.base import Update
from rmtjax.adapters.params import AdapterConstant, AdapterParam

__all__ = ["SpectralAdditive", "SpectralRotational", "cayley"]


def _unsharded(x: Array) -> Array:
    """Return an array that is no longer sharded over a mesh, as decompositions require."""
    sharding = None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return jax.device_put(x, NamedSharding(sharding.mesh, PartitionSpec()))
    return x


class _Spectral(Update):
    """An update of the top r singular values and vectors U₁ S₁ V₁ᵀ of W (Zhang & Pilanci 2024)."""

    sides: Mapping[str, tuple[str | None, ...]] = {"U": ("outputs", None), "V": ("inputs", None)}

    def __init__(self, kernel: Array, rank: int) -> None:
        # The kernel is Wᵀ, so its left singular vectors are W's right ones.
        v, s, u = jnp.linalg.svd(_unsharded(kernel.astype(jnp.float32)), full_matrices=False)
        self.U, self.S, self.V = (AdapterConstant(x) for x in (u[:rank].T, s[:rank], v[:, :rank]))
        self.rank = rank


class SpectralAdditive(_Spectral):
    """[U₁ + A_U, U₂] S [V₁ + A_V, V₂]ᵀ: the top singular vectors are moved freely; both moves start at zero."""

    shrinks = ("AU", "AV")
    sides: Mapping[str, tuple[str | None, ...]] = {**_Spectral.sides, "AU": ("outputs", None), "AV": ("inputs", None)}

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array) -> None:
        super().__init__(kernel, rank)
        self.AU = AdapterParam(jnp.zeros(self.U.shape, jnp.float32))
        self.AV = AdapterParam(jnp.zeros(self.V.shape, jnp.float32))

    def factors(self):
        s, moved = self.S[...], self.U[...] + self.AU[...]
        a = jnp.concatenate([self.V[...] * s, self.AV[...] * s], axis=1)
        return a, jnp.concatenate([self.AU[...].T, moved.T])


def cayley(entries: Float[Array, " k"], rank: int) -> Float[Array, "rank rank"]:
    """Return the rotation (I − Q)(I + Q)⁻¹ of a skew Q, given by its r(r−1)/2 entries below the diagonal."""
    below = jnp.zeros((rank, rank), entries.dtype).at[jnp.tril_indices(rank, -1)].set(entries)
    skew, eye = below - below.T, jnp.eye(rank, dtype=entries.dtype)
    return jnp.linalg.solve(eye + skew, eye - skew)


class SpectralRotational(_Spectral):
    """[U₁ R_U, U₂] S [V₁ R_V, V₂]ᵀ with rotations R (Cayley) that start at the identity: no singular value changes."""

    shrinks = ("QU", "QV")

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array) -> None:
        super().__init__(kernel, rank)
        self.QU = AdapterParam(jnp.zeros(rank * (rank - 1) // 2, jnp.float32))
        self.QV = AdapterParam(jnp.zeros(rank * (rank - 1) // 2, jnp.float32))

    def factors(self):
        u, v = cayley(self.QU[...], self.rank), cayley(self.QV[...], self.rank)
        core = (v * self.S[...]) @ u.T - jnp.diag(self.S[...])
        return self.V[...] @ core, self.U[...].T
