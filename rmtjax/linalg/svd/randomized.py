"""The largest singular triplets by a randomized range finder with power iterations (Halko, Martinsson & Tropp 2011)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rmtjax._random import pinned
from rmtjax.linalg.svd._common import (
    SVD,
    adjoint,
)
from rmtjax.linalg.svd.derivatives import differentiable_svd

__all__ = ["randomized_svd"]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _range_finder(a: Array, k: int, iterations: int, oversampling: int, key: Array) -> SVD:
    """Return the triplets by algorithm 4.4 of Halko, Martinsson & Tropp, followed by an SVD of the small factor."""
    n, m = a.shape[-2:]
    if n < m:
        u, s, vh = _range_finder(adjoint(a), k, iterations, oversampling, key)
        return SVD(adjoint(vh), s, adjoint(u))
    width = min(k + oversampling, m)
    with jax.default_matmul_precision("highest"):
        with pinned():
            start = jax.random.normal(key, (m, width), jnp.finfo(a.dtype).dtype).astype(a.dtype)
        q = jnp.linalg.qr(a @ start)[0]
        for _ in range(iterations):
            q = jnp.linalg.qr(a @ jnp.linalg.qr(adjoint(a) @ q)[0])[0]
        right, small = jnp.linalg.qr(adjoint(a) @ q)  # A ≈ q (right small)* = q small* right*
        u, s, vh = differentiable_svd(adjoint(small), "auto", True)
        return SVD((q @ u)[..., :k], s[..., :k], (vh @ adjoint(right))[..., :k, :])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def randomized_svd(a: Array, k: int, iterations: int, oversampling: int, key: Array) -> SVD:
    """Return the k largest singular triplets by a randomized range finder."""
    return _range_finder(a, k, iterations, oversampling, key)


@randomized_svd.defjvp
def _randomized_jvp(k, iterations, oversampling, primals, tangents):
    """Return the derivatives of the exact triplets: those of the range finder are noise if the rank is lower than the range."""
    approximate = randomized_svd(primals[0], k, iterations, oversampling, primals[1])
    exact, rates = jax.jvp(lambda a: differentiable_svd(a, "auto", True), primals[:1], tangents[:1])
    match = jax.lax.stop_gradient(jnp.sum(exact.U[..., :k].conj() * approximate.U, -2))
    size = jnp.abs(match)
    phase = jnp.where(size > 0, match / jnp.where(size > 0, size, 1.0), 1.0)
    left, right = rates.U[..., :k] * phase[..., None, :], phase.conj()[..., :, None] * rates.Vh[..., :k, :]
    return approximate, SVD(left, rates.S[..., :k], right)
