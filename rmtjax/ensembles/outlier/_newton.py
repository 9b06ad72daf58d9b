"""The largest root of increasing concave functions given by their Taylor series."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array

from rmtjax.ensembles.outlier._series import Series
from rmtjax.linalg.roots import Trial, safeguarded_newton

__all__ = ["PASSES", "largest_root"]

PASSES = 200
"""Largest number of passes, never reached: a pass at least halves the bracket, and a step does far better."""


def _step(f: Series) -> Array:
    r"""Return the step to the root of the [2/1] Padé approximant of f, the one to the right of its pole.

    :math:`g(z) = z - a - \sum_i r_i/(z - p_i)`, so with one pole that matters the approximant is g itself. Right of all
    poles :math:`f_1 > 0, f_2 \le 0, f_3 \ge 0` and :math:`f_1f_3 \ge f_2^2`.
    """
    newton = -f[0] / f[1]
    curved = f[2] * jnp.abs(newton) < -1e-10 * f[1]  # otherwise f₃/f₂ may be rounding, and Newton's step suffices
    b = jnp.where(curved, -f[3] / jnp.where(curved, f[2], 1.0), 0.0)
    a1, a2 = f[1] + b * f[0], f[2] + b * f[1]
    root = jnp.sqrt(jnp.maximum(a1 * a1 - 4 * f[0] * a2, 0.0))
    pade = jnp.where(a1 > 0, -2 * f[0] / (a1 + root), (root - a1) / (2 * jnp.where(a2 > 0, a2, 1.0)))
    return jnp.where(curved, pade, newton - f[2] / f[1] * newton**2)


def _at(f: Series, x: Array) -> Array:
    return f[0] + x * (f[1] + x * (f[2] + x * f[3]))


def largest_root(
    evaluate: Callable[[Array], tuple[Sequence[Series], Array]],
    start: Array,
    spread: Array,
    shape: tuple[int, ...],
    order: int = 3,
) -> tuple[Array, Array]:
    """Return the largest root of several increasing concave functions, and the slope at it of the function that vanishes there.

    ``evaluate(z)`` gives their series at z, to the given order, and whether z lies above their last pole; below it they
    may be anything.
    """
    start, spread = jnp.broadcast_to(start, shape), jnp.broadcast_to(spread, shape)

    def trial(z):
        all_f, above_pole = evaluate(z)
        f = all_f[0]
        for series in all_f[1:]:
            f = tuple(jnp.where(series[0] < all_f[0][0], b, a) for a, b in zip(f, series, strict=True))
        move = _step(f)
        # The approximant's error is of one order more than the series in move/(distance to the poles).
        ratio = jnp.abs(move) * (jnp.abs(f[2] / f[1]) + jnp.sqrt(jnp.abs(f[3] / f[1])))
        resolution = 2e-16 * jnp.maximum(jnp.abs(z), 1e-3)
        converged = above_pole & (jnp.abs(move) * ratio**order <= resolution) & (ratio < 1e-3)
        for series in all_f:
            converged &= _at(series, move) >= -4 * resolution * f[1]
        slope = jnp.where(converged, f[1] + move * (2 * f[2] + 3 * f[3] * move), f[1])
        return Trial(~(above_pole & (f[0] >= 0)), move, above_pole, converged, 4 * resolution, slope)

    return safeguarded_newton(trial, start, spread, jnp.ones(shape), PASSES, from_above=True)
