"""The mean spectrum of a Gaussian base, its largest eigenvalues one by one, and a quadrature for the law of the first."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmtjax.laws import marchenko_pastur, semicircle
from rmtjax.laws.edge import tracy_widom

__all__ = [
    "BULK_POINTS",
    "LEGENDRE",
    "OUTLIER_POINTS",
    "TRUNCATED_POINTS",
    "Spectrum",
    "rectangular_spectrum",
    "top_law",
    "wigner_spectrum",
]

SINGLE_VALUES, BULK_POINTS, TOP_POINTS = 12, 20, 6
"""Number of eigenvalues treated one by one, and of Gauss points for the rest and for the largest eigenvalue."""

OUTLIER_POINTS = 16
"""Number of Gauss points for λ. Doubling it, or that of any other sum of the law, moves P by less than 0.002 for ε ≤ 0.7, and by
0.011 at 0.9."""

TRUNCATED_POINTS = 20
"""Number of Gauss points for a truncated variable: for z > 0, where up to 10⁹ of a kind add up, to 1e-13; for z < 0 to 1e-8."""


@functools.cache
def top_law() -> tuple[np.ndarray, np.ndarray]:
    """Return Gauss quadrature for the Tracy–Widom law of β = 1 (Stieltjes' procedure, then Golub and Welsch)."""
    x = np.linspace(-10, 8, 2001)
    with jax.ensure_compile_time_eval():
        p = np.asarray(tracy_widom.pdf(x, 1))
    p = p / p.sum()
    diagonal, beside = np.zeros(TOP_POINTS), np.zeros(TOP_POINTS)
    before, now, last = np.zeros_like(x), np.ones_like(x), 1.0
    for k in range(TOP_POINTS):
        norm = np.sum(p * now**2)
        diagonal[k], beside[k] = np.sum(p * x * now**2) / norm, norm / last
        before, now, last = now, (x - diagonal[k]) * now - (beside[k] * before if k else 0.0), norm
    off = np.sqrt(beside[1:])
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2


class Spectrum(NamedTuple):
    """The base's mean spectrum: `edge − below[i]` stands for `weight[i]` eigenvalues or singular values.

    `top` are the places of the largest one, again below the edge, that P is averaged over with the weights of `top_law`.
    """

    edge: Float[Array, ""]
    below: Float[Array, "J"]
    weight: Float[Array, "J"]
    top: Float[Array, "T"]


_INDEX = np.append(np.arange(1.0, SINGLE_VALUES + 1), SINGLE_VALUES + 0.5) - 0.75
"""Counts at the quantiles: for β = 1 the mean of the j-th eigenvalue from the top is where the mean count is j − ¾."""

LEGENDRE = {n: np.polynomial.legendre.leggauss(n) for n in (BULK_POINTS, OUTLIER_POINTS, TRUNCATED_POINTS)}


def _arc(start):
    """Return angles from `start` to π and their weights; the quarter of an eigenvalue of β = 1 that is left sits at π.

    Even in the logarithm: start is of the order of N^(−1/3), and so are the angles over which the sums change.
    """
    x, w = LEGENDRE[BULK_POINTS]
    half = jnp.log(jnp.pi / start) / 2
    angle = start * jnp.exp(half * (1 + x))
    return angle, half * w * angle


def wigner_spectrum(N) -> Spectrum:
    """Return the mean spectrum of a symmetric matrix of order N."""
    n = N - 0.5
    edge = 2 * jnp.sqrt(n / N)
    below = edge * (1 + semicircle.ppf(_INDEX / n) / 2)
    angle, step = _arc(2 * jnp.arcsin(jnp.sqrt(below[-1] / (2 * edge))))
    return Spectrum(
        edge,
        jnp.concatenate([below[:-1], 2 * edge * jnp.sin(angle / 2) ** 2, 2 * edge[None]]),
        jnp.concatenate([jnp.ones(SINGLE_VALUES), step * n * 2 / jnp.pi * jnp.sin(angle) ** 2, jnp.full(1, 0.25)]),
        -top_law()[0] * n ** (-1 / 6) / jnp.sqrt(N),
    )


def rectangular_spectrum(n, m) -> Spectrum:
    """Return the mean spectrum of singular values; the last entry is the null space of Wᵀ."""
    p, q = n - 0.5, m - 0.5
    c, root_p, root_q = p / q, jnp.sqrt(p), jnp.sqrt(q)
    edge = (root_p + root_q) / jnp.sqrt(m)
    s = jnp.sqrt(q / m) * marchenko_pastur.singular_ppf(1 - _INDEX / jnp.minimum(p, q), c)
    span = 4 * root_p * root_q / m  # s² = edge² − span·sin²(φ/2)
    angle, step = _arc(2 * jnp.arcsin(jnp.sqrt((edge - s[-1]) * (edge + s[-1]) / span)))
    weight = step * p * 2 / jnp.pi * jnp.sin(angle) ** 2 / (1 + c + 2 * jnp.sqrt(c) * jnp.cos(angle))
    bottom = jnp.abs(root_p - root_q) / jnp.sqrt(m)
    bulk = jnp.sqrt(bottom**2 + span * jnp.cos(angle / 2) ** 2)
    # Johnstone (Ann. Statist. 29, 2001) with the halves of Ma (Bernoulli 18, 2012).
    stretch = (root_p + root_q) * jnp.cbrt(1 / root_p + 1 / root_q) / m * top_law()[0]
    return Spectrum(
        edge,
        jnp.concatenate([edge - s[:-1], edge - bulk, (edge - bottom)[None], edge[None]]),
        jnp.concatenate([jnp.ones(SINGLE_VALUES), weight, jnp.full(1, 0.25), jnp.maximum(n - m, 0.0)[None]]),
        -stretch / (edge + jnp.sqrt(edge**2 + stretch)),
    )
