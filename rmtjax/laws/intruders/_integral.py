"""The probability of an intruder for scalars: Gauss quadrature over λ, log Q and the largest eigenvalue."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array

from rmtjax.laws.intruders._saddle import NEGLIGIBLE, Sums, centre, log_density, saddle
from rmtjax.laws.intruders._secular import Terms, rectangular_terms, wigner_terms
from rmtjax.laws.intruders._spectrum import (
    LEGENDRE,
    OUTLIER_POINTS,
    Spectrum,
    rectangular_spectrum,
    top_law,
    wigner_spectrum,
)
from rmtjax.linalg.roots import bisect

__all__ = ["rectangular_law", "wigner_law"]

_NORM = 12
"""Number of Gauss points for log Q."""

_REACH = 5.0
"""Half-width of the integral over λ, in standard deviations of the outlier."""


def _given_top(spectrum: Spectrum, terms: Callable[..., Terms], theta, eps, order: int):
    """Return P(intruder) for one spectrum."""
    highest = jnp.maximum(-spectrum.below[0], -spectrum.below[1])

    def force(log_x):
        at = terms(highest + jnp.exp(log_x), spectrum)
        return jnp.sum(spectrum.weight * at.force) + at.mean

    # The outlier's position if F equalled its mean; in log λ, since it may be very close to the top.
    bracket = bisect(lambda x: force(x) > 0, jnp.full_like(theta, math.log(1e-12)), jnp.log(2 * theta + 2), 45)
    x0 = stop_gradient(jnp.exp((bracket[0] + bracket[1]) / 2))
    at = stop_gradient(terms(highest + x0, spectrum))
    scale = jnp.sum(spectrum.weight / at.distance**2)  # the mean of Q
    deviation = jnp.sqrt(2 * jnp.sum(spectrum.weight * at.force**2) + 2 * at.variance) / (at.slope * scale)
    low, high = jnp.maximum(x0 - _REACH * deviation, 0.0), x0 + _REACH * deviation
    nodes, weights = LEGENDRE[OUTLIER_POINTS]
    hermite_nodes, hermite_weights = np.polynomial.hermite_e.hermegauss(_NORM)

    def density(x):
        at = terms(highest + x, spectrum)
        d2 = at.distance**2
        sums = Sums(
            scale * d2,
            jnp.sqrt(scale) * at.force * d2,
            spectrum.weight,
            at.mean / jnp.sqrt(scale),
            at.variance / scale,
            eps**2,
        )
        fixed = stop_gradient(sums)
        p, q, ell, turn_p, turn_q, width = centre(fixed)

        def node(z, weight):
            move = width * z
            p_, q_, converged = saddle(fixed, p + turn_p * move, q + turn_q * move, ell + move)
            converged, p_, q_, ell_ = stop_gradient(
                (converged, jnp.where(converged, p_, 0.0), jnp.where(converged, q_, 0.0), ell + move)
            )
            log = jnp.where(converged, log_density(sums, p_, q_, ell_, order), NEGLIGIBLE)
            return weight * jnp.exp(log + z**2 / 2)

        # F = e^ℓ Σ y g in units of √scale.
        return (
            at.slope * jnp.sqrt(scale) * stop_gradient(width) * jnp.sum(jax.vmap(node)(hermite_nodes, hermite_weights))
        )

    values = jax.vmap(density)(low + (high - low) * (1 + nodes) / 2)
    return (high - low) / 2 * jnp.sum(weights * values)


def _averaged(spectrum: Spectrum, terms: Callable[..., Terms], theta, eps, order: int, has_random_edge: bool):
    """Return the mean of P over the largest eigenvalue, or P at the mean of that eigenvalue."""

    def for_top(top):
        return _given_top(spectrum._replace(below=spectrum.below.at[0].set(top)), terms, theta, eps, order)

    weights = top_law()[1]
    if not has_random_edge:
        return jnp.clip(for_top(jnp.sum(weights * spectrum.top)), 0.0, 1.0)
    return jnp.clip(jnp.sum(weights * jax.vmap(for_top)(spectrum.top)), 0.0, 1.0)


def by_partials(function):
    """Differentiate in forward mode at the point itself: few arguments, many steps, and nothing to store."""
    every = tuple(range(len(inspect.signature(function).parameters)))
    jacobian = jax.jit(jax.jacfwd(lambda *args: (function(*args),) * 2, every, has_aux=True))
    wrapped = jax.custom_jvp(jax.jit(function))

    @wrapped.defjvp
    def _(args, tangents):
        partials, value = jacobian(*args)
        return value, sum(p * t for p, t in zip(partials, tangents, strict=True))

    return wrapped


@functools.cache
def wigner_law(order: int = 2, has_random_edge: bool = True) -> Callable[..., Array]:
    """Return the law of a symmetric matrix as a function of scalars N, θ and ε."""

    @by_partials
    def law(N, theta, eps):
        spectrum = wigner_spectrum(N)
        return _averaged(spectrum, lambda x, s: wigner_terms(x, s, theta), theta, eps, order, has_random_edge)

    return law


@functools.cache
def rectangular_law(order: int = 2, has_random_edge: bool = True) -> Callable[..., Array]:
    """Return the law of a rectangular matrix as a function of scalars n, m, θ and ε."""

    @by_partials
    def law(n, m, theta, eps):
        spectrum = rectangular_spectrum(n, m)
        terms = lambda x, s: rectangular_terms(x, s, theta, n, m)  # noqa: E731
        return _averaged(spectrum, terms, theta, eps, order, has_random_edge)

    return law
