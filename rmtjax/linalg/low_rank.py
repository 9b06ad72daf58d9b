r"""Resolvents and eigenvalues of a matrix after an update of low rank.

With :math:`G(z) = (z - W)^{-1}`, the papers' sign, and an update :math:`U\Theta V^\top` of rank r, Woodbury's identity reads

.. math::
    (z - W - U\Theta V^\top)^{-1} = G + GU\,\Theta\,(I - V^\top GU\,\Theta)^{-1}V^\top G ,

for one spike Sherman & Morrison's :math:`G + \theta\,Gu\,v^\top G/(1 - \theta\,v^\top Gu)`: a plus sign before the correction and
a minus in the denominator. *Intruder Dimensions*, eq. (3), prints both the other way round, and then no θ > 0 has an outlier.
The new eigenvalues are where :math:`\det(I - \Theta V^\top G(z)U)` vanishes.

For a diagonal matrix and a symmetric update these roots interlace, and `update_eigenvalues` finds all of them, each with the
relative accuracy that its distance from the nearest old eigenvalue allows (Bunch, Nielsen & Sorensen, *Numer. Math.* 31, 1978;
LAPACK's ``dlaed4``).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from rmtjax._checks import finite, is_traced
from rmtjax._errors import InputError, shown
from rmtjax._precision import float64
from rmtjax.linalg.roots import bisect

__all__ = [
    "UpdatedEigh",
    "resolvent",
    "secular_matrix",
    "update_eigenvalues",
    "update_eigh",
    "woodbury_resolvent",
]


def _double(name: str, x: Any) -> Array:
    """Return an array as float64 or complex128, inside `jax.enable_x64(True)`."""
    if not is_traced(x):
        x = np.asarray(x)
        if x.dtype.kind in "fc":
            finite(name, x)
    return jnp.asarray(x, jnp.complex128 if jnp.iscomplexobj(x) else jnp.float64)


def _square(name: str, a: Array) -> int:
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise InputError(f"{name} has shape {a.shape}: must be (..., N, N) with N at least 1")
    return a.shape[-1]


def _columns(name: str, x: Array, n: int) -> Array:
    """Return directions as columns; a vector becomes one column."""
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.shape[0] != n:
        raise InputError(f"{name} has shape {x.shape}: must be ({n},) or ({n}, r)")
    return x


def _update(n: int, U: Any, theta: Any, V: Any) -> tuple[Array, Array, Array]:
    U, V, theta = _columns("U", _double("U", U), n), _columns("V", _double("V", V), n), _double("theta", theta)
    theta = jnp.broadcast_to(theta, (U.shape[1],)) if theta.ndim == 0 else theta
    if not (U.shape == V.shape and theta.shape == U.shape[1:]):
        raise InputError(
            f"U, theta and V have shapes {U.shape}, {theta.shape} and {V.shape}: must be (N, r), (r,) and (N, r)"
        )
    return U, theta, V


def resolvent(W: Num[ArrayLike, "..."], z: Num[ArrayLike, "..."]) -> Num[Array, "..."]:
    r"""Return the resolvent :math:`G(z) = (zI - W)^{-1}`, in double precision.

    Args:
        W: shape (..., N, N).
        z: points outside the spectrum, real or complex; leading axes broadcast with those of W.

    Returns:
        Shape (..., N, N).

    Raises:
        InputError: for matrices that are not square, empty or not finite, or z not finite.
    """
    with jax.enable_x64(True):
        W, z = _double("W", W), _double("z", z)
        n = _square("W", W)
        return jnp.linalg.inv(z[..., None, None] * jnp.eye(n) - W)


def woodbury_resolvent(
    G: Num[ArrayLike, "..."], U: Num[ArrayLike, "..."], theta: Num[ArrayLike, "..."], V: Num[ArrayLike, "..."]
) -> Num[Array, "..."]:
    r"""Return the resolvent of :math:`W + U\,\mathrm{diag}(\theta)V^\top` from that of W, in double precision.

    .. math::
        G + GU\Theta(I - V^\top GU\Theta)^{-1}V^\top G = G + GU(\Theta^{-1} - V^\top GU)^{-1}V^\top G ,

    the first form, which has no pole at θ = 0. V is transposed, not conjugated.

    Args:
        G: :math:`(z - W)^{-1}`, shape (..., N, N).
        U, V: shape (N, r), or (N,) for one direction; neither need be orthonormal.
        theta: strengths, shape (r,), or one number for all.

    Raises:
        InputError: for shapes that do not fit or entries that are not finite.

    Examples:
        >>> G = resolvent(np.zeros((2, 2)), 4.0)  # of W = 0 at z = 4; uuᵀ moves one eigenvalue from 0 to 3
        >>> u = np.array([1.0, 0.0])
        >>> [float(x) for x in np.diagonal(woodbury_resolvent(G, u, 3.0, u))]
        [1.0, 0.25]
    """
    with jax.enable_x64(True):
        G = _double("G", G)
        U, theta, V = _update(_square("G", G), U, theta, V)
        right = G @ (U * theta)
        inner = jnp.eye(theta.size) - V.T @ right
        return G + right @ jnp.linalg.solve(inner, V.T @ G)


def secular_matrix(
    base: Num[ArrayLike, "..."] | tuple[Num[ArrayLike, "..."], Num[ArrayLike, "..."]],
    U: Num[ArrayLike, "..."],
    theta: Num[ArrayLike, "..."],
    V: Num[ArrayLike, "..."],
    z: Num[ArrayLike, "..."] | None = None,
) -> Num[Array, "..."]:
    r"""Return the r×r matrix :math:`I - \Theta V^\top G(z)U`, singular where the update has an eigenvalue that W has not.

    Its determinant is :math:`\det(z - W - U\Theta V^\top)/\det(z - W)`.

    Args:
        base: either G(z) itself, shape (..., N, N), and no `z`; or the eigenvalues (N,) and orthonormal eigenvectors (N, N),
            as columns, of a symmetric W.
        U, V: shape (N, r), or (N,) for one direction.
        theta: strengths, shape (r,), or one number for all.
        z: any number of points, for a base of eigenvalues and eigenvectors; each costs N r².

    Returns:
        Shape (..., r, r), the leading axes those of `base` or of `z`.

    Raises:
        InputError: for shapes that do not fit, entries that are not finite, or `z` given or missing where it must not be.

    Examples:
        >>> u = np.array([1.0, 0.0])
        >>> secular_matrix(resolvent(np.zeros((2, 2)), 3.0), u, 3.0, u).item()  # 3 is an eigenvalue of 3uuᵀ
        0.0
    """
    with jax.enable_x64(True):
        if isinstance(base, tuple):
            if z is None or len(base) != 2:
                raise InputError("z is not given: must be given if base is eigenvalues and eigenvectors")
            values, vectors, z = _double("values", base[0]), _double("vectors", base[1]), _double("z", z)
            n = _square("vectors", vectors)
            if values.shape != (n,):
                raise InputError(f"values has shape {values.shape}: must be ({n},)")
            U, theta, V = _update(n, U, theta, V)
            form = jnp.einsum("ik,...i,il->...kl", vectors.T @ V, 1 / (z[..., None] - values), vectors.conj().T @ U)
        else:
            if z is not None:
                raise InputError("z is given: must be None if base is the resolvent G(z)")
            G = _double("G", base)
            U, theta, V = _update(_square("G", G), U, theta, V)
            form = V.T @ (G @ U)
        return jnp.eye(theta.size) - theta[:, None] * form


# -- all eigenvalues of a diagonal matrix and a symmetric update -------------------------------------------------------


class UpdatedEigh(NamedTuple):
    r"""A diagonal matrix after a symmetric update of low rank.

    Attributes:
        eigenvalues: the eigenvalues :math:`\lambda_k`, ascending, shape (N,).
        eigenvectors: the eigenvectors as columns, shape (N, N). In the eigenbasis of the matrix before, entry (j, k) is the
            overlap of its eigenvector j with the new k.
        shifts: :math:`\lambda_k - d_k`, shape (N,); of an update of rank one with all the digits that the difference has.
    """

    eigenvalues: Float[Array, "N"]
    eigenvectors: Float[Array, "N N"]
    shifts: Float[Array, "N"]


def _secular(gap, weight):
    """Return 1 + Σ w/gap and its derivative in a common shift of the gaps, (roots, N) -> (roots,). A gap of 0 is omitted."""
    pole = gap == 0
    safe = jnp.where(pole, 1.0, gap)
    term = jnp.where(pole, 0.0, weight / safe)
    return 1 + jnp.sum(term, 1), jnp.sum(jnp.where(pole, 0.0, term / safe), 1)


def _roots_above(d, weight):
    r"""Return eigenvalues of :math:`\mathrm{diag}(d) + uu^\top`, d ascending, as an entry of d plus an offset.

    Root k lies in :math:`[d_k, d_{k+1}]`, the last one up to :math:`d_N + \|u\|^2`. Inside, as many eigenvalues as k, and one
    more if :math:`1 + \sum_ju_j^2/(d_j - \lambda) > 0`, are below λ (Sylvester). So bisection holds for vanishing entries of u
    and equal ones of d, too. It halves the list of floats from 0 to the middle of the interval, as distances from the
    nearer end: 63 evaluations of all roots at once.

    Args:
        d: shape (N,).
        weight: :math:`u_j^2`.

    Returns:
        Indices of the entries and what is added, each of shape (N,).
    """
    n = d.size
    reach, index = jnp.append(jnp.diff(d), jnp.sum(weight)), jnp.arange(n)
    below_middle = _secular((d - d[:, None]) - reach[:, None] / 2, weight)[0] > 0
    left = below_middle | (index == n - 1)
    origin = jnp.where(left, index, index + 1)
    delta = d - d[origin][:, None]
    sign, limit = jnp.where(left, 1.0, -1.0), jnp.where(index == n - 1, reach, reach / 2)

    def as_float(key):
        return lax.bitcast_convert_type(key, jnp.float64)

    def is_below(key):
        positive = _secular(delta - (sign * as_float(key))[:, None], weight)[0] > 0
        return positive != left

    largest = lax.bitcast_convert_type(limit, jnp.int64) + 1
    _, high = bisect(is_below, jnp.zeros(n, jnp.int64), largest, 63, lambda low, high: low + (high - low) // 2)
    # If the root is at the pole itself, the bisection ends at the smallest float.
    return origin, sign * jnp.where(high <= 1, 0.0, jnp.minimum(as_float(high), limit))


def _rank_one(d, u, theta) -> tuple[Array, Array, Array]:
    """Return new eigenvalues λ, their shifts from d and the gaps d_j − λ_k (k, j), differentiable."""
    down = theta < 0  # −(−D + |θ|uuᵀ), turned round
    e = jnp.where(down, -d[::-1], d)
    weight = jnp.abs(theta) * jnp.where(down, u[::-1], u) ** 2
    origin, offset = _roots_above(lax.stop_gradient(e), lax.stop_gradient(weight))
    # One step of Newton's at the root is 0 but has the root's derivative. A root on a pole stays there to first order.
    on_pole = offset == 0
    delta = e - e[origin][:, None]
    value, slope = _secular(delta - offset[:, None], weight)
    step = -value / jnp.where(on_pole, 1.0, lax.stop_gradient(slope))
    offset = offset + jnp.where(on_pole, 0.0, step - lax.stop_gradient(step))
    gap = delta - offset[:, None]
    values = e[origin] + offset
    shifts = (e[origin] - e) + offset
    values, shifts = (jnp.where(down, -x[::-1], x) for x in (values, shifts))
    return values, shifts, jnp.where(down, -gap[::-1, ::-1], gap)


def _vectors(u, gap) -> Array:
    """Return eigenvectors as columns: u_j/(d_j − λ_k), and a unit vector where the root is on a pole."""
    pole = gap == 0
    raw = jnp.where(pole, 0.0, u / jnp.where(pole, 1.0, gap))
    top = lax.stop_gradient(jnp.max(jnp.abs(raw), 1, keepdims=True))
    raw = raw / jnp.where(top > 0, top, 1.0)
    stays = jnp.any(pole, 1, keepdims=True)
    length = jnp.sqrt(jnp.where(stays, 1.0, jnp.sum(raw * raw, 1, keepdims=True)))
    return jnp.where(stays, pole.astype(raw.dtype), raw / length).T


@functools.partial(jax.jit, static_argnames="vectors")
def _updated(values, U, theta, vectors: bool):
    if theta.size == 1:
        new, shifts, gap = _rank_one(values, U[:, 0], theta[0])
        return new, _vectors(U[:, 0], gap) if vectors else None, shifts

    def one_more(state, k):
        d, U, rotation = state
        new, shift, gap = _rank_one(d, U[:, k], theta[k])
        turn = _vectors(U[:, k], gap)
        return (new, turn.T @ U, rotation @ turn if vectors else None), shift

    start = values, U, jnp.eye(values.size) if vectors else None
    (new, _, rotation), shifts = lax.scan(one_more, start, jnp.arange(theta.size))
    return new, rotation, jnp.sum(shifts, 0)


def _diagonal_update(values: Array, U: Array, theta: Array, distinct: bool) -> tuple[Array, Array, Array]:
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"values has shape {values.shape}: must be (N,) with N at least 1")
    U = _columns("U", U, values.size)
    theta = jnp.broadcast_to(theta, (U.shape[1],)) if theta.ndim == 0 else theta
    if theta.shape != U.shape[1:] or theta.size == 0:
        raise InputError(f"theta has shape {theta.shape}: must be {U.shape[1:]}, one for each column of U")
    for name, x in (("values", values), ("U", U), ("theta", theta)):
        finite(name, x)
    if not is_traced(values):
        steps = np.diff(np.asarray(values))
        if np.any(steps < 0):
            raise InputError(f"values = {shown(np.asarray(values))}: must ascend")
        if (distinct or theta.size > 1) and np.any(steps == 0):
            raise InputError(
                "values has equal entries: must be distinct for eigenvectors, and for more than one update"
            )
    return values, U, theta


@float64
def update_eigenvalues(
    values: Float[Array, "N"], U: Float[Array, "..."], theta: Float[Array, "..."]
) -> Float[Array, "N"]:
    r"""Return all eigenvalues of :math:`\mathrm{diag}(d) + \sum_k\theta_ku_ku_k^\top`, ascending.

    Of :math:`W + \sum_k\theta_ku_ku_k^\top` with :math:`W = V\,\mathrm{diag}(d)V^\top` the directions are :math:`V^\top u_k`. One
    update after the other, each from its secular equation, at a cost of :math:`63N^2` divisions. Differentiable.

    Args:
        values: d, ascending, shape (N,).
        U: directions as columns, shape (N, r), or (N,) for one; of any length and at any angle.
        theta: strengths of either sign, shape (r,), or one number for all.

    Raises:
        InputError: for shapes that do not fit, entries that are not finite, values that do not ascend, or equal values with
            more than one direction.

    Examples:
        >>> [round(float(x), 6) for x in update_eigenvalues([0.0, 0.0], [0.6, 0.8], 3.0)]
        [0.0, 3.0]
    """
    return _updated(*_diagonal_update(values, U, theta, False), False)[0]


@float64
def update_eigh(values: Float[Array, "N"], U: Float[Array, "..."], theta: Float[Array, "..."]) -> UpdatedEigh:
    r"""Return eigenvalues and eigenvectors of :math:`\mathrm{diag}(d) + \sum_k\theta_ku_ku_k^\top`.

    The eigenvector of λ after one update is :math:`u_j/(d_j - \lambda)` over its norm, whose denominators are known to full
    relative accuracy. See `update_eigenvalues`.

    Args:
        values: d, strictly ascending, shape (N,).
        U: directions as columns, shape (N, r), or (N,) for one.
        theta: strengths of either sign, shape (r,), or one number for all.

    Raises:
        InputError: as `update_eigenvalues`, and for equal values.
    """
    new, vectors, shifts = _updated(*_diagonal_update(values, U, theta, True), True)
    return UpdatedEigh(new, vectors, shifts)
