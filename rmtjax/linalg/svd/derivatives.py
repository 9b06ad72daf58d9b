r"""Decompositions with derivatives, which are NaN where they do not exist.

Townsend, *Differentiating the singular value decomposition* (2016), with denominators that keep their digits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtjax.linalg.svd._common import (
    SVD,
    Eigh,
    adjoint,
    diagonal,
)
from rmtjax.linalg.svd.dispatch import SVD_TABLE, SVDVALS_TABLE, run_svd
from rmtjax.linalg.svd.eigen import EIGH_TABLE, EIGVALSH_TABLE, run_eigh

__all__ = ["differentiable_eigh", "differentiable_eigvalsh", "differentiable_svd", "differentiable_svdvals"]

_TIE = 32
"""Multiple of ε σ₁ up to which two singular values, or two eigenvalues, count as equal: LAPACK, Jacobi and QDWH put gaps of
up to 5 ε σ₁ between values that are equal, whatever the order (measured up to 256)."""


def _divided(numerator: Array, denominator: Array, tie: Array) -> Array:
    return numerator / jnp.where(tie, 1.0, denominator).astype(numerator.dtype)


def _undefined_as_nan(
    vectors: tuple[Array, ...], values: Array, rates: Array, undivided: Sequence[tuple[Array, Array]]
) -> tuple[tuple[Array, ...], Array]:
    """Return the tangents of vectors, NaN in the columns that have no derivative, and those of values unchanged.

    A column has none where a numerator is not 0 and its denominator counts as 0. Backwards, numerators cannot be known: there a
    column has none if anything depends on it. Its cotangent shows whether anything does; but a function such as U diag(s) V*,
    which multiplies the column by a value of exactly 0, hides it, and is recognised because it depends on that value as well as
    on vectors.

    Args:
        vectors: tangents of vectors as columns, each of shape (..., n, k), from quotients of denominators that are not 0.
        values: shape (..., k).
        rates: their tangents.
        undivided: pairs of a mask (..., i, k), true where a denominator counts as 0, and the numerators there.
    """
    masks = [jax.lax.stop_gradient(mask) for mask, _ in undivided]
    bad = functools.reduce(jnp.logical_or, [jnp.any(mask, -2) for mask in masks])
    values = jax.lax.stop_gradient(values)
    parts = [*vectors, rates[..., None, :].astype(vectors[0].dtype), *(x for _, x in undivided)]
    ends = np.cumsum([x.shape[-2] for x in parts])[:-1].tolist()

    def gone(stacked, lost):
        rows = np.arange(stacked.shape[-2])[:, None] < sum(x.shape[-2] for x in vectors)
        return jnp.where(rows & lost[..., None, :], jnp.asarray(jnp.nan, stacked.dtype), stacked)

    def forwards(_, stacked):
        numerators = jnp.split(stacked, ends, -2)[len(vectors) + 1 :]
        lost = [jnp.any(mask & (x != 0), -2) for mask, x in zip(masks, numerators, strict=True)]
        return gone(stacked, functools.reduce(jnp.logical_or, lost))

    def backwards(_, stacked):
        *columns, rates = jnp.split(stacked, ends, -2)[: len(vectors) + 1]
        used = functools.reduce(jnp.logical_or, [jnp.any(x != 0, -2) for x in columns])
        every = jnp.any(used, -1, keepdims=True) | jnp.all(values == 0, -1, keepdims=True)
        return gone(stacked, bad & (used | (every & (values == 0) & (rates[..., 0, :] != 0))))

    # For JAX this is a linear function, which can be transposed, batched and differentiated again. It has one array argument,
    # since JAX fails to differentiate linear functions of several arrays of which some are constant.
    stacked = jax.lax.custom_linear_solve(lambda x: x, jnp.concatenate(parts, -2), forwards, backwards)
    *columns, rates = jnp.split(stacked, ends, -2)[: len(vectors) + 1]
    return tuple(columns), rates[..., 0, :].real


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def differentiable_svd(a: Array, algorithm: str, precise: bool) -> SVD:
    """Return singular values and vectors by an algorithm, differentiable in the matrix."""
    return run_svd(SVD_TABLE, algorithm, a, precise, True)


@differentiable_svd.defjvp
def _svd_jvp(algorithm, precise, primals, tangents):
    r"""Differentiate as Townsend, *Differentiating the singular value decomposition* (2016); the phase is JAX's.

    With :math:`U^*dA\,V = H + K`, H Hermitian and K its contrary, :math:`U^*dU = \Omega + \Psi` and
    :math:`V^*dV = \Omega - \Psi` with :math:`\Omega_{ij} = H_{ij}/(s_j - s_i)`, :math:`\Psi_{ij} = K_{ij}/(s_j + s_i)`:
    no squares, which would leave the range of numbers, and no difference of products, which the compiler may round once only.
    """
    (a,), (da,) = primals, tangents
    u, s, vh = differentiable_svd(a, algorithm, precise)
    v = adjoint(vh)
    n, m, k = *a.shape[-2:], s.shape[-1]
    scale = jax.lax.stop_gradient(jnp.where(s[..., :1] > 0, s[..., :1], 1.0))
    s_ = s / scale
    gap, total = s_[..., None, :] - s_[..., :, None], s_[..., None, :] + s_[..., :, None]
    close = far = _TIE * float(jnp.finfo(s.dtype).eps)
    if algorithm == "gram" or (algorithm == "auto" and not precise):  # its errors are those of the squares
        close, far = 2 * close / jnp.maximum(total, close), close**0.5
    itself = jnp.eye(k, dtype=bool)
    tie, nothing = (jnp.abs(gap) <= close) & ~itself, total <= far
    with jax.default_matmul_precision("highest"):
        da_v, da_u = da @ v, adjoint(da) @ u
        inner = adjoint(u) @ da_v
        rates = diagonal(inner).real.astype(s.dtype)
        part = inner / scale[..., None]
        hermitian, skew = (part + adjoint(part)) / 2, (part - adjoint(part)) / 2
        hermitian = jnp.where(itself, 0.0, hermitian)
        psi = _divided(skew, total, nothing)
        omega = _divided(hermitian, gap, tie | itself) + jnp.where(itself, psi, 0.0)  # the whole phase is in u
        du, dv = u @ (omega + psi), v @ (omega - psi)
        undivided = [(tie, hermitian), (nothing, skew)]
        none = (s_ <= far)[..., None, :]
        if n > k:
            outside = (da_v - u @ inner) / scale[..., None]
            du = du + _divided(outside, s_[..., None, :], none)
            undivided.append((none, outside))
        if m > k:
            outside = (da_u - v @ adjoint(inner)) / scale[..., None]
            dv = dv + _divided(outside, s_[..., None, :], none)
            undivided.append((none, outside))
    if not jnp.iscomplexobj(a):
        undivided[1] = nothing & ~itself, skew  # on the diagonal there is nothing to divide
    (du, dv), rates = _undefined_as_nan((du, dv), s, rates, undivided)
    return SVD(u, s, vh), SVD(du, rates, adjoint(dv))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def differentiable_svdvals(a: Array, algorithm: str, precise: bool) -> Array:
    """Return singular values by an algorithm, differentiable in the matrix."""
    return run_svd(SVDVALS_TABLE, algorithm, a, precise, False)


@differentiable_svdvals.defjvp
def _svdvals_jvp(algorithm, precise, primals, tangents):
    u, s, vh = differentiable_svd(primals[0], algorithm, precise)
    with jax.default_matmul_precision("highest"):
        return s, jnp.sum(u.conj() * (tangents[0] @ adjoint(vh)), -2).real


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def differentiable_eigh(a: Array, algorithm: str) -> Eigh:
    """Return eigenvalues and eigenvectors by an algorithm, differentiable in the matrix."""
    return run_eigh(EIGH_TABLE, algorithm, a, True)


@differentiable_eigh.defjvp
def _eigh_jvp(algorithm, primals, tangents):
    values, v = differentiable_eigh(primals[0], algorithm)
    largest = jnp.max(jnp.abs(values), -1, keepdims=True)
    scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    scaled = values / scale
    gap = scaled[..., None, :] - scaled[..., :, None]
    itself = jnp.eye(values.shape[-1], dtype=bool)
    tie = (jnp.abs(gap) <= _TIE * float(jnp.finfo(values.dtype).eps)) & ~itself
    with jax.default_matmul_precision("highest"):
        inner = adjoint(v) @ _lower(tangents[0]) @ v
        rates = diagonal(inner).real
        between = jnp.where(itself, 0.0, inner / scale[..., None])
        dv = v @ _divided(between, gap, tie | itself)
    (dv,), rates = _undefined_as_nan((dv,), values, rates, [(tie, between)])
    return Eigh(values, v), Eigh(rates, dv)


def _lower(a: Array) -> Array:
    """Return the Hermitian matrix with a given lower triangle, the only part that is read."""
    lower = jnp.tril(a, -1)
    return lower + adjoint(lower) + jnp.where(jnp.eye(a.shape[-1], dtype=bool), a.real, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def differentiable_eigvalsh(a: Array, algorithm: str) -> Array:
    """Return eigenvalues by an algorithm, differentiable in the matrix."""
    return run_eigh(EIGVALSH_TABLE, algorithm, a, False)


@differentiable_eigvalsh.defjvp
def _eigvalsh_jvp(algorithm, primals, tangents):
    values, v = differentiable_eigh(primals[0], algorithm)
    with jax.default_matmul_precision("highest"):
        return values, jnp.sum(v.conj() * (_lower(tangents[0]) @ v), -2).real
