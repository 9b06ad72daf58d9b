r"""Eigenvalue counts, and resolvents off the axis, of β-ensembles that are never formed or stored.

The pivots of :math:`x - T` for the tridiagonal model T are, by Sylvester's law of inertia, negative as often as T has
eigenvalues above x. Drawing the rows one after the other and eliminating them at many points x at once gives the
empirical distribution function there in O(N · points) operations and O(points) memory (Albrecht, Chan & Edelman 2009).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Key

from rmtjax._precision import float64
from rmtjax.ensembles._counter import batch_last
from rmtjax.ensembles.outlier.rank_one import covariance_rows, wigner_rows
from rmtjax.ensembles.outlier.recursion import GROUP, TOLERANCE, Number, outlier_depth

__all__ = ["hermite_cdf", "laguerre_cdf", "spectral_measure"]

_SMALLEST = 1e-290
"""The number that replaces a pivot of 0, as if the point had been moved by less than rounding."""


def _groups(rows):
    return ((rows + GROUP - 1) // GROUP).astype(jnp.int32)


def _hermite(key_data, N, points, beta):
    N = jnp.max(N)  # one size for the whole batch, since it determines the length of the loop
    groups = _groups(N)
    shape = jnp.broadcast_shapes(points.shape, key_data.shape[-1:])

    def group(j, state):
        pivot, above = state
        diagonal, off2 = wigner_rows(key_data, groups - 1 - j, N, beta)
        for i in reversed(range(GROUP)):
            exists = (groups - 1 - j) * GROUP + i + 1 <= N
            new = points - diagonal[i] - off2[i] / pivot
            new = jnp.where(jnp.abs(new) < _SMALLEST, -_SMALLEST, new)
            pivot = jnp.where(exists, new, 1.0)
            above = above + (exists & (pivot < 0))
        return pivot, above

    _, above = jax.lax.fori_loop(0, groups, group, (jnp.ones(shape), jnp.zeros(shape)))
    return (N - above) / N


_hermite_batched = batch_last(_hermite)


@float64(keep=("key",))
def hermite_cdf(
    key: Key[Array, ""], N: Float[Array, ""], points: Float[Array, "m"], beta: Number = 1.0
) -> Float[Array, "m"]:
    r"""Draw the share of eigenvalues at or below each point, of the Gaussian β-ensemble with edge 2.

    Args:
        key: a typed PRNG key.
        N: dimension, a whole number ≥ 1 as a float.
        points: points at which to count, (m,).
        beta: 1 for the GOE, 2 for the GUE, 4 for the GSE; any β > 0.
    """
    return _hermite_batched(key, N, points, beta)


def _laguerre(key_data, p, n, points, beta):
    p, n = jnp.max(p), jnp.max(n)
    rows = jnp.minimum(p, n)
    groups = _groups(rows)
    shape = jnp.broadcast_shapes(points.shape, key_data.shape[-1:])

    def group(j, state):
        q, above = state
        diagonal2, below = covariance_rows(key_data, groups - 1 - j, p, n, beta)
        for i in reversed(range(GROUP)):
            pivot = points - below[i] - q
            pivot = jnp.where(jnp.abs(pivot) < _SMALLEST, -_SMALLEST, pivot)
            exists = (groups - 1 - j) * GROUP + i + 1 <= rows
            # The pivot is that of the next row, which exists unless p ≤ n and this is the last row.
            above = above + (exists & (pivot < 0) & ((groups - 1 - j) * GROUP + i + 2 <= p))
            q = jnp.where(exists, diagonal2[i] * (1 + below[i] / pivot), 0.0)
        return q, above

    q, above = jax.lax.fori_loop(0, groups, group, (jnp.zeros(shape), jnp.zeros(shape)))
    above = above + (points - q < 0)
    return jnp.where(points < 0, 0.0, (p - above) / p)


_laguerre_batched = batch_last(_laguerre)


@float64(keep=("key",))
def laguerre_cdf(
    key: Key[Array, ""], p: Float[Array, ""], n: Float[Array, ""], points: Float[Array, "m"], beta: Number = 1.0
) -> Float[Array, "m"]:
    r"""Draw the share of eigenvalues of :math:`XX^\top/n` at or below each point, X p×n standard Gaussian.

    Args:
        key: a typed PRNG key.
        p, n: sizes, whole numbers ≥ 1 as floats. Where p > n the p − n zeros are counted too.
        points: points at which to count, (m,).
        beta: 1 for real, 2 for complex data; any β > 0.
    """
    return _laguerre_batched(key, p, n, points, beta)


def _measure(key_data, N, theta, x, y, beta, tolerance):
    # In the limit a row damps the contribution of later rows by |m(z)|² < 1.
    z = x + 1j * y
    m = 2 / (z * (1 + jnp.sqrt(1 - 4 / z**2)))
    rate2 = jnp.min((2 * jnp.log(jnp.abs(m))) ** 2)
    levels = outlier_depth(0.25 * rate2, jnp.max(1e-3 / N), jnp.max(N), jnp.min(tolerance))
    groups = (levels + GROUP - 1) // GROUP
    shape = jnp.broadcast_shapes(x.shape, theta.shape, key_data.shape[-1:])

    def group(j, state):
        re, im = state
        diagonal, off2 = wigner_rows(key_data, groups - 1 - j, N, beta)
        for i in reversed(range(GROUP)):
            exists = (groups - 1 - j) * GROUP + i + 1 <= N
            damp = off2[i] / (re * re + im * im)
            re, im = jnp.where(exists, x - diagonal[i] - damp * re, 1.0), jnp.where(exists, y + damp * im, 0.0)
        return re, im

    re, im = jax.lax.fori_loop(0, groups, group, (jnp.full(shape, 1e100), jnp.zeros(shape)))
    re = re - theta
    size = re * re + im * im
    return jnp.stack([re / size, -im / size])


_measure_batched = batch_last(_measure)


@float64(keep=("key",))
def spectral_measure(
    key: Key[Array, ""],
    N: Float[Array, ""],
    theta: Float[Array, ""],
    x: Float[Array, ""],
    y: Float[Array, ""],
    beta: Number = 1.0,
    tolerance: Number = TOLERANCE,
) -> Complex[Array, ""]:
    r"""Draw :math:`u^\top(z - W - \theta uu^\top)^{-1}u` at :math:`z = x + \mathrm iy`.

    That is the transform of the spectral measure at the spike. Its continued fraction forgets what is deep in the matrix
    at a rate that depends on z alone; half of the limiting rate is counted on.

    Args:
        key: a typed PRNG key.
        N: dimension, a whole number ≥ 1 as a float.
        theta: strength, of either sign or 0.
        x, y: real and imaginary part of z, y > 0.
        beta: 1 for the GOE, 2 for the GUE, 4 for the GSE; any β > 0.
        tolerance: bound on what the rows left out could do.
    """
    real, imaginary = _measure_batched(key, N, theta, x, y, beta, tolerance)
    return jax.lax.complex(real, imaginary)
