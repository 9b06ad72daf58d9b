"""Saddle points in two dimensions: the density of two sums of independent truncated variables."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from rmtjax.laws.intruders._spectrum import (
    LEGENDRE,
    TRUNCATED_POINTS,
)

__all__ = ["NEGLIGIBLE", "Sums", "centre", "log_density", "saddle", "truncated"]

_CENTRING, _DESCENT = 16, 60
"""Number of Newton steps to the best log Q, and largest number of steps to a saddle point."""

NEGLIGIBLE = -60.0
"""Logarithm of a density below which the density is negligible."""

_REST = (5.5, 20.0)
"""Points at which :math:`e^{-zs^2}` is negligible: √z s = 5.5 from its top at 0 (z > 0), −z(1 − s) = 20 from that at 1."""


def truncated(z: Float[Array, "J"], order: int) -> tuple[Float[Array, "J"], list[Float[Array, "J"]]]:
    r"""Return :math:`\log\int_0^1e^{-zs^2}\mathrm ds` and the first 2 or 4 cumulants of :math:`s^2` under that density."""
    x, w = LEGENDRE[TRUNCATED_POINTS]
    up, down = _REST
    fixed = stop_gradient(z)
    low = jnp.maximum(1 - down / jnp.maximum(-fixed, down), 0.0)[..., None]
    high = jnp.minimum(up / jnp.sqrt(jnp.maximum(fixed, up**2)), 1.0)[..., None]
    s2 = (low + (high - low) * (1 + x) / 2) ** 2
    shift = jnp.minimum(z, 0.0)
    density = w * (high - low) / 2 * jnp.exp(shift[..., None] - z[..., None] * s2)
    total = jnp.sum(density, -1)
    mean = jnp.sum(density * s2, -1) / total
    away = s2 - mean[..., None]
    central = [jnp.sum(density * away**k, -1) / total for k in range(2, order + 1)]
    if order == 4:
        central[2] = central[2] - 3 * central[0] ** 2
    return jnp.log(total) - shift, [mean, *central]


class Sums(NamedTuple):
    r"""All sums at one λ, in units in which the mean of Q is 1; :math:`\ell = \log Q`.

    Attributes:
        rate: :math:`r_j`: without the constraints :math:`y_j` has the density :math:`y^{-1/2}e^{-e^\ell r_jy/2}`.
        g: :math:`F = e^\ell\sum_jy_jg_j + \dots`
        weight: the number of j of each kind.
        mean, variance: of the rest of F, as in `Terms`.
        tolerance: ε².
    """

    rate: Float[Array, "J"]
    g: Float[Array, "J"]
    weight: Float[Array, "J"]
    mean: Float[Array, ""]
    variance: Float[Array, ""]
    tolerance: Float[Array, ""]


class _Potential(NamedTuple):
    """The exponent of the inverse Fourier transform at a real point (p, q), its gradient and Hessian there."""

    value: Float[Array, ""]
    by_p: Float[Array, ""]
    by_q: Float[Array, ""]
    pp: Float[Array, ""]
    pq: Float[Array, ""]
    qq: Float[Array, ""]
    cumulants: list[Float[Array, "J"]]  # of y, times the weights
    half: Float[Array, "J"]  # e^ℓ r/2
    mean: Float[Array, ""]
    variance: Float[Array, ""]

    def newton(self, by_p, by_q):
        """Return minus the inverse Hessian times a vector."""
        det = self.pp * self.qq - self.pq**2
        return (self.pq * by_q - self.qq * by_p) / det, (self.pq * by_p - self.pp * by_q) / det


def _potential(sums: Sums, p, q, ell, order: int = 2) -> _Potential:
    r"""Return a function convex in (p, q), with :math:`\kappa_j = e^\ell r_j/2 + pg_j + q`.

    .. math::
        \sum_j\log\Big[\sqrt{e^\ell r_j/2\pi}\int_0^{\varepsilon^2}y^{-1/2}e^{-\kappa_jy}\mathrm dy\Big] + q - p\bar F + p^2V .
    """
    e2, w, g = sums.tolerance, sums.weight, sums.g
    half = jnp.exp(ell) * sums.rate / 2
    log, c = truncated(e2 * (half + p * g + q), order)
    c = [w * e2 ** (k + 1) * x for k, x in enumerate(c)]
    mean, variance = sums.mean * jnp.exp(-ell), sums.variance * jnp.exp(-2 * ell)
    return _Potential(
        jnp.sum(w * (log + 0.5 * jnp.log(4 / jnp.pi * e2 * half))) + q - p * mean + p**2 * variance,
        2 * p * variance - mean - jnp.sum(c[0] * g),
        1 - jnp.sum(c[0]),
        2 * variance + jnp.sum(c[1] * g**2),
        jnp.sum(c[1] * g),
        jnp.sum(c[1]),
        c,
        half,
        mean,
        variance,
    )


def centre(sums: Sums):
    """Return the dominant ℓ, the saddle point there and its derivative, and the width in ℓ, by Newton in all three."""

    def step(_, state):
        p, q, ell, *_ = state
        at = _potential(sums, p, q, ell)
        c1, c2 = at.cumulants
        by_ell = jnp.sum(sums.weight / 2 - c1 * at.half) + p * at.mean - 2 * p**2 * at.variance
        ell_ell = jnp.sum(c2 * at.half**2 - c1 * at.half) - p * at.mean + 4 * p**2 * at.variance
        ell_p = jnp.sum(c2 * sums.g * at.half) + at.mean - 4 * p * at.variance
        ell_q = jnp.sum(c2 * at.half)
        turn_p, turn_q = at.newton(ell_p, ell_q)
        to_p, to_q = at.newton(at.by_p, at.by_q)
        curvature = jnp.minimum(ell_ell + ell_p * turn_p + ell_q * turn_q, -0.5)
        move = jnp.clip(-(by_ell + ell_p * to_p + ell_q * to_q) / curvature, -0.4, 0.4)
        decrement = -(at.by_p * to_p + at.by_q * to_q)
        damp = 1 / (1 + jnp.sqrt(jnp.maximum(decrement - 1, 0.0)))
        return (
            p + damp * to_p + turn_p * move,
            q + damp * to_q + turn_q * move,
            ell + move,
            turn_p,
            turn_q,
            1 / jnp.sqrt(-curvature),
        )

    zero = jnp.zeros(())
    return jax.lax.fori_loop(0, _CENTRING, step, (zero,) * 6)


def saddle(sums: Sums, p, q, ell):
    """Return the minimum of the potential in (p, q), and whether it was found; it need not be where the density is negligible."""

    def look(p, q):
        at = _potential(sums, p, q, ell)
        dp, dq = at.newton(at.by_p, at.by_q)
        return at.value, dp, dq, -(at.by_p * dp + at.by_q * dq)

    def step(state):
        count, p, q, *old = state
        new = look(p + old[1], q + old[2])
        better = new[0] <= old[0] + 1e-9
        shrunk = (old[0], old[1] / 4, old[2] / 4, old[3])
        picked = (jnp.where(better, x, y) for x, y in zip(new, shrunk, strict=True))
        return count + 1, jnp.where(better, p + old[1], p), jnp.where(better, q + old[2], q), *picked

    def unfinished(state):
        count, _, _, value, _, _, decrement = state
        return (count < _DESCENT) & (decrement > 1e-6) & (value > NEGLIGIBLE)

    zero, infinite = jnp.zeros_like(p), jnp.full_like(p, jnp.inf)
    _, p, q, _, _, _, decrement = jax.lax.while_loop(unfinished, step, (0, p, q, infinite, zero, zero, infinite))
    return p, q, decrement < 1e-2


def log_density(sums: Sums, p, q, ell, order: int = 2):
    r"""Return log h at the saddle point (p, q), corrected by :math:`\frac18\rho_4-\frac18\rho_{13}^2-\frac1{12}\rho_{23}^2`.

    McCullagh, *Tensor Methods in Statistics* (1987), §6.3. The correction stays in the exponent, which keeps h positive. A
    last Newton step from a constant makes the derivative that of the true saddle point. With `order` 1 both are left out.
    """
    at = _potential(sums, p, q, ell)
    if order == 1:
        return at.value - math.log(2 * math.pi) - jnp.log(at.pp * at.qq - at.pq**2) / 2
    dp, dq = at.newton(at.by_p, at.by_q)
    at = _potential(sums, p + dp, q + dq, ell, 4)
    _, _, c3, c4 = at.cumulants
    det = at.pp * at.qq - at.pq**2
    # Each y adds its cumulants along the vector (g, 1); in these coordinates the covariance is the identity.
    first = jnp.ones_like(sums.g) / jnp.sqrt(at.qq)
    second = (sums.g - at.pq / at.qq) * jnp.sqrt(at.qq / det)
    square = first**2 + second**2
    rho4 = jnp.sum(c4 * square**2)
    rho13 = jnp.sum(c3 * square * first) ** 2 + jnp.sum(c3 * square * second) ** 2
    rho23 = sum(times * jnp.sum(c3 * first ** (3 - k) * second**k) ** 2 for k, times in enumerate((1, 3, 3, 1)))
    return at.value - math.log(2 * math.pi) - jnp.log(det) / 2 + rho4 / 8 - rho13 / 8 - rho23 / 12
