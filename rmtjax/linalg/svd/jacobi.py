r"""One-sided Jacobi for batches of small matrices, as elementwise arithmetic over the batch.

Hestenes' method turns pairs of columns :math:`a_p, a_q` of A by plane rotations until all are orthogonal; they are then
:math:`\sigma_i u_i`, and the product of the rotations is V. With :math:`\gamma = a_p^*a_q`,

.. math::
    \zeta = \frac{\|a_q\|^2 - \|a_p\|^2}{2|\gamma|},\quad t = \frac{\operatorname{sign}\zeta}{|\zeta| + \sqrt{1+\zeta^2}},\quad
    c = \frac1{\sqrt{1+t^2}},\quad s = ct,

:math:`a_p, \tilde a_q \leftarrow ca_p - s\tilde a_q, sa_p + c\tilde a_q`, :math:`\tilde a_q = a_qe^{-i\arg\gamma}`. The pairs of
a round have no column in common, so that it is one pass over the whole batch; n − 1 rounds, a sweep, meet all pairs (a round
robin). Gaussian matrices of order 8 to 128 need 5 to 10 sweeps, those whose values fall to the precision more. Small singular
values are as precise, relative to themselves, as the columns allow.

Golub & Van Loan, *Matrix Computations*, §8.6.3; Demmel & Veselić, *SIAM J. Matrix Anal. Appl.* 13 (1992), for the precision.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rmtjax.linalg.svd._common import SVD, Eigh, adjoint, as_batch, diagonal, normalised, scale_of

__all__ = ["jacobi_eigh", "jacobi_svd", "jacobi_svdvals", "one_sided"]

_SWEEPS = 200
"""Largest number of sweeps, in case rounding keeps some pair from ever being orthogonal."""
_CACHE = 2**17
"""Bytes that a processor rotates at a time, so that they stay in cache and few matrices wait for the slowest one."""
_UNROLLED = 5
"""Rounds in one body of the loop, between which no copies are needed."""


def _angles(p: Array, q: Array) -> tuple[Array, Array, Array | None, Array, Array]:
    """Return c, s, the phase that makes a complex γ real, cosines and T of `_in_step`, for pairs of columns (pairs, rows, B)."""
    alpha, beta = (jnp.sum((x * x.conj()).real, 1) for x in (p, q))
    gamma = jnp.sum(p.conj() * q, 1)
    size, lengths = jnp.abs(gamma), jnp.sqrt(alpha) * jnp.sqrt(beta)
    info = jnp.finfo(p.dtype)
    cosine = size / jnp.maximum(lengths, info.tiny)
    turn = cosine > info.eps
    safe = jnp.where(turn, size, 1.0)
    zeta = (beta - alpha) / (2 * safe)
    tangent = jnp.where(zeta >= 0, 1.0, -1.0) / (jnp.abs(zeta) + jnp.sqrt(1 + zeta * zeta))
    tangent = jnp.where(turn, tangent, 0.0)
    c = jax.lax.rsqrt(1 + tangent * tangent)
    felt = jnp.abs(tangent) * jnp.where(turn, jnp.maximum(alpha, beta) / jnp.maximum(lengths, info.tiny), 0.0)
    if jnp.iscomplexobj(p):
        return c, c * tangent, jnp.where(turn, gamma.conj() / safe, 1.0), cosine, felt
    return c, jnp.where(gamma < 0, -1.0, 1.0) * c * tangent, None, cosine, felt


def _rotate(left: Array, right: Array) -> tuple[Array, Array]:
    """Return the next round of a round robin: the first of `left` stays, all others move on by one place."""
    if len(left) == 1:
        return left, right
    return jnp.concatenate([left[:1], right[:1], left[1:-1]]), jnp.concatenate([right[1:], left[-1:]])


def _in_step(a: Array, vectors: bool = True) -> tuple[Array, Array, Array | None]:
    """Sweep all matrices at once until all columns are orthogonal.

    Let W be the largest cosine in a sweep, when its pair was met, and T the largest tangent of a rotation times the ratio of the
    columns' lengths. Each cosine was zero then, and each of at most 2n later rotations of its columns has changed it by no more
    than T times a cosine: none is above 4nWT afterwards. That identifies the last sweep.
    """
    batch, m, n = a.shape
    real = jnp.finfo(a.dtype).dtype
    largest = jnp.max(jnp.abs(a), (1, 2), keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0).astype(real)
    columns = (a / scale).transpose(2, 1, 0)  # (n, m, B): the batch axis is contiguous
    parts = [columns]
    if vectors:
        parts.append(jnp.broadcast_to(jnp.eye(n, dtype=a.dtype)[:, :, None], (n, n, batch)))
    parts = [jnp.pad(x, ((0, n % 2), (0, 0), (0, 0))) for x in parts]  # a column of zeros is orthogonal to all
    half = parts[0].shape[0] // 2
    rounds = max(2 * half - 1, 1)
    tolerance = 4 * m**0.5 * jnp.finfo(real).eps

    def round_(_, state):
        pairs, worst, most = state
        c, s, phase, cosine, felt = _angles(*pairs[0])
        # Without the barrier the angles are recomputed wherever they are used.
        c, s, phase, worst, most = jax.lax.optimization_barrier(
            (c, s, phase, jnp.maximum(worst, cosine), jnp.maximum(most, felt))
        )
        c, s = c[:, None], s[:, None]
        turned = []
        for left, right in pairs:
            right = right if phase is None else right * phase[:, None]
            turned.append(_rotate(c * left - s * right, s * left + c * right))
        return tuple(turned), worst, most

    def sweep(state):
        pairs, _, sweeps = state
        none = jnp.zeros((half, batch), real)
        pairs, worst, most = jax.lax.fori_loop(0, rounds, round_, (pairs, none, none), unroll=min(_UNROLLED, rounds))
        worst, most = jnp.max(worst, initial=0.0), jnp.max(most, initial=0.0)
        return pairs, jnp.minimum(worst, 4 * n * worst * most), sweeps + 1

    def unfinished(state):
        return (state[1] > tolerance) & (state[2] < _SWEEPS)

    pairs = tuple((x[:half], x[half:]) for x in parts)
    pairs, *_ = jax.lax.while_loop(unfinished, sweep, (pairs, jnp.full((), 1.0 if n > 1 else 0.0, real), 0))
    parts = [jnp.concatenate(pair)[:n] for pair in pairs]  # after whole sweeps each column is in its place again
    norms = jnp.sqrt(jnp.sum((parts[0] * parts[0].conj()).real, 1))  # (n, B)
    order = jnp.argsort(-norms, axis=0, stable=True)
    norms = jnp.take_along_axis(norms, order, 0).T * scale[:, :, 0]
    av, *v = (jnp.take_along_axis(x, order[:, None], 0).transpose(2, 1, 0) for x in parts)
    return av * scale, norms, v[0] if vectors else None


@functools.partial(jax.jit, static_argnames="vectors")
def one_sided(a: Array, vectors: bool = True) -> tuple[Array, Array, Array | None]:
    """Return matrices with orthogonal columns from products with unitary ones.

    Args:
        a: shape (B, m, n), m ≥ n, finite.
        vectors: whether V is wanted.

    Returns:
        AV, whose columns are orthogonal, shape (B, m, n); their norms (B, n), descending; V (B, n, n) or None.
    """
    batch, m, n = a.shape
    each = (m + n * vectors) * n * a.dtype.itemsize
    block = max(_CACHE // each, 16)

    def on_processor(a):
        count = -(-batch // block)
        if count < 2:
            return _in_step(a, vectors)
        # Neighbours go to different blocks, so that each device of a sharded batch has its share of every block.
        blocks = jnp.pad(a, ((0, count * block - batch), (0, 0), (0, 0))).reshape(block, count, m, n).swapaxes(0, 1)
        decomposed = jax.lax.map(lambda part: _in_step(part, vectors), blocks)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:batch], decomposed)

    return jax.lax.platform_dependent(a, cpu=on_processor, default=lambda a: _in_step(a, vectors))


def jacobi_svd(a: Array) -> SVD:
    """Decompose by one-sided Jacobi."""
    av, norms, v = one_sided(as_batch(a))
    av, s, v = (x.reshape(*a.shape[:-2], *x.shape[1:]) for x in (av, norms, v))
    return SVD(normalised(av, s), s, adjoint(v))


def jacobi_svdvals(a: Array) -> Array:
    """Return singular values by one-sided Jacobi."""
    return one_sided(as_batch(a), vectors=False)[1].reshape(*a.shape[:-2], a.shape[-1])


def jacobi_eigh(a: Array) -> Eigh:
    """Decompose by the SVD of A + cI, positive definite with c = ‖A‖_F: an error of ε‖A‖_F."""
    lower = jnp.tril(a, -1)
    a = lower + adjoint(lower) + jnp.eye(a.shape[-1], dtype=a.dtype) * diagonal(a).real[..., None, :]
    scale = scale_of(a)
    shift = jnp.linalg.norm(a / scale, axis=(-2, -1), keepdims=True) * 1.25
    shifted = as_batch(a / scale + shift * jnp.eye(a.shape[-1], dtype=a.dtype))
    _, norms, v = one_sided(shifted)
    values = (norms.reshape(a.shape[:-1]) - shift[..., 0]) * scale[..., 0]
    return Eigh(values[..., ::-1], v.reshape(a.shape)[..., ::-1])
