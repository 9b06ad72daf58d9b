r"""The outliers of a Gaussian matrix with a spike of rank r, sampled exactly without forming the matrix.

The block form of `rmtjax.ensembles.outlier.rank_one`. Rotations that leave the span of the spike's directions alone reduce a
Gaussian matrix to a block tridiagonal one with independent blocks (block Householder; Edelman & Sutton 2005 for r = 1).
Its pivots, from the last block row up, obey

.. math::
    D_k(z) = z - A_k - C_k\,D_{k+1}(z)^{-1}\,C_k^*,

and the number of eigenvalues above z is that of the negative eigenvalues of all pivots together (Sylvester). Between
the eigenvalues of the later blocks :math:`D_1` grows, and an eigenvalue of the whole is where one of its own, ν, passes
zero; with the vector x of ν, the eigenvector of the whole has the part :math:`x/\sqrt{x^*D_1'x}` in the span of the
directions. Newton's method on ν and bisection of the count go together, so no eigenvalue is mistaken for another.
Singular values are eigenvalues of :math:`\begin{pmatrix}0&T\\T^*&0\end{pmatrix}`, whose blocks carry left and right
vectors side by side.

Directions enter through their *frame*, the coordinates of the unit vectors :math:`u_k` in an orthonormal basis of their span:
the triangular factor R of a QR decomposition of the matrix that has them as columns. Only the frame matters for the law,
whatever the directions are. Left out, it is the identity: orthogonal directions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from rmtjax._checks import is_traced
from rmtjax._errors import InputError, shown
from rmtjax._precision import float64
from rmtjax.ensembles._counter import batch_last
from rmtjax.ensembles.outlier._newton import PASSES
from rmtjax.ensembles.outlier.blocks import (
    adjoint,
    covariance_block,
    hermitian_eigh,
    hermitian_inverse,
    matmul,
    paired,
    rectangular_block,
    wigner_block,
)
from rmtjax.ensembles.outlier.rank_one import covariance_start, rectangular_growth, rectangular_start, wigner_start
from rmtjax.ensembles.outlier.recursion import TOLERANCE, outlier_depth
from rmtjax.linalg.roots import Trial, safeguarded_newton

__all__ = [
    "LARGEST_RANK",
    "Outliers",
    "RectangularOutliers",
    "covariance_outliers",
    "rectangular_outliers",
    "wigner_outliers",
]

_RESOLUTION = 1e-14
"""Relative size of the last Newton step."""

LARGEST_RANK = 8
"""Largest rank: beyond it a dense matrix is the better choice, since the cost of a block grows with the cube of the rank."""


class Outliers(NamedTuple):
    """The r largest eigenvalues, in descending order, and their eigenvectors' squared overlaps.

    Attributes:
        outlier: eigenvalues, shape (r,).
        overlap: of eigenvector k with direction j, shape (r, r).
    """

    outlier: Float[Array, "... r"]
    overlap: Float[Array, "... r r"]


class RectangularOutliers(NamedTuple):
    """The r largest singular values, in descending order, and their vectors' squared overlaps.

    Attributes:
        outlier: singular values, shape (r,).
        overlap_left: of left singular vector k with direction u_j, shape (r, r).
        overlap_right: of right singular vector k with direction v_j, shape (r, r).
    """

    outlier: Float[Array, "... r"]
    overlap_left: Float[Array, "... r r"]
    overlap_right: Float[Array, "... r r"]


def _first_pivot(blocks: Callable, first: Callable, z, levels):
    """Return the first pivot at z (r, batch), its derivative, and the number of eigenvalues of the later blocks above z.

    ``blocks(k)`` gives the diagonal block of row k, the one that couples it to row k + 1, both (s, s, batch), and which of
    its coordinates exist, (s, batch); `first` puts the spike into the first diagonal block.
    """
    shape = jax.eval_shape(lambda: blocks(0)[0])
    s, dtype = shape.shape[0], shape.dtype
    shape = (s, s, *z.shape)
    identity = jnp.broadcast_to(jnp.eye(s, dtype=dtype)[:, :, None, None], shape)

    def row(k, inverse, slope, change):
        A, C, exists = blocks(k)
        A, C = change(A)[:, :, None], C[:, :, None]
        # A coordinate that does not exist is decoupled, with an eigenvalue below all others.
        place = z + jnp.where(exists, 0.0, 1e3)[:, None]
        X = matmul(inverse, adjoint(C))
        return place[:, None] * identity - A - matmul(C, X), identity + matmul(adjoint(X), matmul(slope, X))

    def step(j, state):
        inverse, slope, negative = state
        D, slope = row(levels - 1 - j, inverse, slope, lambda A: A)
        inverse, below = hermitian_inverse(D)
        return inverse, slope, negative + below

    start = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(z.shape, jnp.int32)
    inverse, slope, negative = jax.lax.fori_loop(0, levels - 1, step, start)
    return *row(0, inverse, slope, first), negative


def _outliers(blocks, first, start, spread, levels):
    """Return the r largest eigenvalues (r, batch), and the part (s, r, batch) of their vectors in the first block row."""
    r = start.shape[0]
    rank = jnp.arange(r)[:, None]

    def at(z):
        D, slope, later = _first_pivot(blocks, first, z, levels)
        values, vectors = hermitian_eigh(D)
        # The eigenvalue that crosses zero where the count of negative pivots exceeds the rank, and its vector.
        place = rank - later
        chosen = jnp.arange(D.shape[0])[:, None, None] == place
        value, x = jnp.sum(jnp.where(chosen, values, 0.0), 0), jnp.sum(jnp.where(chosen[None], vectors, 0.0), 1)
        exists = (place >= 0) & (place < D.shape[0])
        rise = jnp.real(sum(jnp.conj(x[i]) * jnp.sum(slope[i] * x, 0) for i in range(x.shape[0])))
        return value, x, jnp.where(exists, rise, 1.0), exists, later + jnp.sum(values < 0, 0)

    def trial(z):
        value, x, rise, exists, above = at(z)
        move = -value / rise
        resolution = _RESOLUTION * jnp.maximum(jnp.abs(z), 1e-3)
        converged = exists & (jnp.abs(move) <= resolution)
        return Trial(above > rank, move, exists, converged, resolution, x / jnp.sqrt(rise))

    x = jax.eval_shape(at, start)[1]
    return safeguarded_newton(trial, start, spread, jnp.zeros(x.shape, x.dtype), PASSES)


def _descending(spike):
    """Return eigenvalues of Hermitian matrices (r, r, batch) in descending order."""
    return hermitian_eigh(spike)[0][::-1]


def _overlaps(frame, part):
    """Return the squared inner products (vector k, direction j, batch) of parts (r, k, batch) with the columns j of a frame."""
    return jnp.abs(matmul(jnp.swapaxes(part, 0, 1), jnp.conj(frame))) ** 2


def _flat(*outputs):
    return jnp.concatenate([o.reshape(-1, o.shape[-1]) for o in outputs])


def _levels(rate2, growth, sizes, r, tolerance):
    """Return the required number of block rows."""
    # The r-th eigenvalue at an edge lies deeper than the first by this factor (zeros of the Airy function).
    deeper = 4 * (growth / 4) ** (2 / 3) * (1.5 * np.pi * r) ** (2 / 3)
    rate2 = jnp.min(jnp.where(rate2 < 0, rate2 - deeper, rate2))
    return outlier_depth(rate2, jnp.max(r * growth), jnp.max(jnp.ceil(sizes / r)) + 1, jnp.min(tolerance))


@functools.cache
def _wigner(r: int, beta: int) -> Callable:
    def sample(key_data, N, theta, frame, tolerance):
        frame = frame[0] + 1j * frame[1] if beta == 2 else frame[0]
        spike = matmul(frame * theta, adjoint(frame))
        shape = jnp.broadcast_shapes(key_data.shape[-1:], spike.shape[-1:])
        strengths = jnp.broadcast_to(_descending(spike), (r, *shape))
        start, spread, rate2 = wigner_start(N, strengths, beta)
        levels = _levels(rate2, 4 / N, N, r, tolerance)
        blocks = lambda k: wigner_block(key_data, k, N, r, beta)  # noqa: E731
        outlier, part = _outliers(blocks, lambda A: A + spike, start, spread, levels)
        return _flat(outlier, _overlaps(frame, part))

    return batch_last(sample)


@functools.cache
def _rectangular(r: int) -> Callable:
    def sample(key_data, n, m, theta, left, right, tolerance):
        spike = matmul(left * theta, adjoint(right))
        shape = jnp.broadcast_shapes(key_data.shape[-1:], spike.shape[-1:])
        strengths = jnp.broadcast_to(jnp.sqrt(jnp.maximum(_descending(matmul(spike, adjoint(spike))), 0)), (r, *shape))
        start, spread, rate2 = rectangular_start(n, m, strengths)
        levels = _levels(rate2, rectangular_growth(n, m), jnp.minimum(n, m), r, tolerance)
        blocks = lambda k: rectangular_block(key_data, k, n, m, r)  # noqa: E731
        outlier, part = _outliers(blocks, lambda A: A + paired(spike, adjoint(spike)), start, spread, levels)
        return _flat(outlier, 2 * _overlaps(left, part[:r]), 2 * _overlaps(right, part[r:]))

    return batch_last(sample)


@functools.cache
def _covariance(r: int) -> Callable:
    def sample(key_data, p, n, ell, tolerance):
        shape = jnp.broadcast_shapes(key_data.shape[-1:], ell.shape[-1:])
        population = jnp.broadcast_to(jnp.sort(ell, 0)[::-1], (r, *shape))
        start, spread, rate2 = covariance_start(p, n, population, 1.0)
        start, spread = jnp.sqrt(start), spread / (2 * jnp.sqrt(start))
        levels = _levels(rate2, rectangular_growth(p, n), jnp.minimum(p, n), r, tolerance)
        blocks = lambda k: covariance_block(key_data, k, p, n, r)  # noqa: E731
        stretch = jnp.concatenate(jnp.broadcast_arrays(jnp.sqrt(ell), jnp.ones_like(ell)))
        outlier, part = _outliers(blocks, lambda A: stretch[:, None] * A * stretch[None], start, spread, levels)
        return _flat(outlier**2, 2 * jnp.abs(jnp.swapaxes(part[:r], 0, 1)) ** 2)

    return batch_last(sample)


def _strengths(name, value, *, low=-np.inf):
    value = jnp.asarray(value)
    if value.ndim != 1 or not 1 <= value.size <= LARGEST_RANK:
        raise InputError(f"{name} has shape {value.shape}: must be (r,), r from 1 to {LARGEST_RANK}")
    if not is_traced(value):
        values = np.asarray(value)
        bad = ~(np.isfinite(values) & (values > low))
        if bad.any():
            allowed = "finite" if low == -np.inf else f"finite and > {low:g}"
            raise InputError(f"{name} = {shown(float(values[bad][0]))}: must be {allowed}")
    return value


def _frame(name, value, r, beta=1):
    """Return real and imaginary part of a frame, (2, r, r)."""
    if value is None:
        value = jnp.eye(r)
    value = value if isinstance(value, jax.Array) else np.asarray(value)
    if value.shape != (r, r):
        raise InputError(f"{name} has shape {value.shape}: must be ({r}, {r}), a unit column for each strength")
    if value.dtype.kind not in ("iufc" if beta == 2 else "iuf"):
        raise InputError(f"{name} has dtype {value.dtype.name}: must be numbers, real for beta = 1")
    if not is_traced(value):
        norms = np.linalg.norm(np.asarray(value), axis=0)
        bad = ~(np.abs(norms - 1) <= 1e-6)
        if bad.any():
            raise InputError(f"{name}: column {np.argmax(bad)} has norm {norms[bad][0]:.7g}; must be 1")
    return jnp.stack([jnp.real(value), jnp.imag(value)]).astype(jnp.float64)


def _rank(r, **sizes):
    for name, value in sizes.items():
        if not is_traced(value) and float(value) < r:
            raise InputError(f"{name} = {shown(value)}: must be at least the rank, {r}")


def _outliers_of(drawn, r):
    """Return the flat output of a sampler in its original shapes."""
    square = [drawn[r + k * r * r : r + (k + 1) * r * r].reshape(r, r) for k in range((drawn.size - r) // (r * r))]
    return drawn[:r], *square


@float64(keep=("key", "frame", "beta"))
def wigner_outliers(
    key: Key[Array, ""],
    N: Float[Array, ""],
    theta: Float[Array, "r"],
    frame: ArrayLike | None = None,
    beta: int = 1,
    tolerance: Float[Array, ""] | float = TOLERANCE,
) -> Outliers:
    r"""Draw the r largest eigenvalues of :math:`W + \sum_k\theta_ku_ku_k^*` and :math:`|\langle u_j,\hat v_k\rangle|^2`.

    W is the GOE or the GUE of edge 2, as for `rmtjax.ensembles.outlier.rank_one.wigner_outlier`.

    Args:
        key: a typed PRNG key.
        N: dimension, a whole number ≥ r as a float.
        theta: strengths of either sign. Below the threshold, or negative, they leave eigenvalues at the edge among the r.
        frame: coordinates of the unit vectors u_k in an orthonormal basis of their span, columns of shape (r, r); None for
            orthogonal directions. Complex for β = 2, if need be.
        beta: 1 for the GOE, 2 for the GUE; static.
        tolerance: bound on what the blocks left out could do.

    Raises:
        InputError: for arguments that are not admissible. Values are looked at unless traced.
    """
    theta = _strengths("theta", theta)
    if beta not in (1, 2):
        raise InputError(f"beta = {shown(beta)}: must be 1 or 2")
    r = theta.size
    _rank(r, N=N)
    return Outliers(*_outliers_of(_wigner(r, int(beta))(key, N, theta, _frame("frame", frame, r, beta), tolerance), r))


@float64(keep=("key", "left", "right"))
def rectangular_outliers(
    key: Key[Array, ""],
    n: Float[Array, ""],
    m: Float[Array, ""],
    theta: Float[Array, "r"],
    left: ArrayLike | None = None,
    right: ArrayLike | None = None,
    tolerance: Float[Array, ""] | float = TOLERANCE,
) -> RectangularOutliers:
    r"""Draw the r largest singular values of :math:`W + \sum_k\theta_ku_kv_k^\top` and their vectors' squared overlaps.

    W is n×m with i.i.d. entries :math:`\mathcal N(0, 1/m)`: a weight matrix after LoRA of rank r.

    Args:
        key: a typed PRNG key.
        n, m: rows and columns, whole numbers ≥ r as floats.
        theta: strengths.
        left: coordinates of the unit vectors u_k in an orthonormal basis of their span, columns of shape (r, r); None for
            orthogonal directions.
        right: the same of the v_k.
        tolerance: bound on what the blocks left out could do.

    Raises:
        InputError: for arguments that are not admissible. Values are looked at unless traced.
    """
    theta = _strengths("theta", theta)
    r = theta.size
    _rank(r, n=n, m=m)
    u, v = (_frame(name, value, r)[0] for name, value in (("left", left), ("right", right)))
    return RectangularOutliers(*_outliers_of(_rectangular(r)(key, n, m, theta, u, v, tolerance), r))


@float64(keep=("key",))
def covariance_outliers(
    key: Key[Array, ""],
    p: Float[Array, ""],
    n: Float[Array, ""],
    ell: Float[Array, "r"],
    tolerance: Float[Array, ""] | float = TOLERANCE,
) -> Outliers:
    r"""Draw the r largest eigenvalues of a sample covariance matrix with r population spikes, and their overlaps.

    :math:`S = \frac1n\Sigma^{1/2}ZZ^\top\Sigma^{1/2}`, Z p×n standard Gaussian, :math:`\Sigma = I +
    \sum_k(\ell_k-1)u_ku_k^\top` with orthonormal :math:`u_k`.

    Args:
        key: a typed PRNG key.
        p, n: dimension and number of samples, whole numbers ≥ r as floats.
        ell: population eigenvalues ℓ > 0.
        tolerance: bound on what the blocks left out could do.

    Raises:
        InputError: for arguments that are not admissible. Values are looked at unless traced.
    """
    ell = _strengths("ell", ell, low=0)
    r = ell.size
    _rank(r, p=p, n=n)
    return Outliers(*_outliers_of(_covariance(r)(key, p, n, ell, tolerance), r))
