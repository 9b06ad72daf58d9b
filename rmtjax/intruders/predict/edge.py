"""Intruders of one direction at the edge of the bulk, where single states decide."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["SINGLE_POLES", "intruders_at_the_edge", "lone_intruders", "shared_poles"]

SINGLE_POLES, _NODES = 12, 4
"""Further states whose vectors are followed at the edge; strengths at which intruders are drawn, with interpolation between."""
_HALVES = 20
"""Number of bisections, which narrow the gap between neighbours down to 10⁻⁶."""


def intruders_at_the_edge(
    theta: np.ndarray,
    limit: float,
    s: np.ndarray,
    shape: tuple[int, int],
    threshold_epsilon: float,
    room: np.ndarray | None,
    draws: int,
    seed: int,
) -> np.ndarray:
    """Return `lone_intruders`, at most 1, drawn at some strengths and interpolated between; `room` has the `top_k` of each."""
    chances = np.zeros_like(theta)
    which = np.flatnonzero(theta > limit / 2)  # far below the threshold the chance is 0
    if room is not None:
        which = which[room[which] > 0]
    if which.size:
        strengths = np.unique(theta[which])
        nodes = np.quantile(strengths, np.linspace(0, 1, _NODES)) if strengths.size > _NODES else strengths
        most = None if room is None else int(room[which].max())
        by_rank = np.cumsum(_by_rank(nodes, s, shape, threshold_epsilon, most, draws, seed), axis=1)
        rooms = np.full(which.size, by_rank.shape[1]) if room is None else np.minimum(room[which], by_rank.shape[1])
        for ranks in np.unique(rooms):
            members = which[rooms == ranks]
            chances[members] = np.minimum(np.interp(theta[members], nodes, by_rank[:, ranks - 1]), 1)
    return chances


def lone_intruders(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    threshold_epsilon: float = 0.5,
    *,
    top_k: int | None = None,
    draws: int = 64,
    seed: int = 0,
) -> np.ndarray:
    """Return the mean number of intruders among the leading vectors after an update in one Haar direction.

    Args:
        strengths: of the update, one at a time, with the same draws, shape (t,).
        singular_values, shape, threshold_epsilon: see `predict`.
        top_k: number of leading vectors to look at; by default those of the states that keep their own poles.
        draws: of the direction.
        seed: of the draws.

    Returns:
        Shape (t,).
    """
    return _by_rank(strengths, singular_values, shape, threshold_epsilon, top_k, draws, seed).sum(1)


def _by_rank(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    threshold_epsilon: float,
    top_k: int | None,
    draws: int,
    seed: int,
) -> np.ndarray:
    """Return the frequency of an intruder at each leading singular value, shape (t, ranks)."""
    theta, s = np.asarray(strengths, float), np.asarray(singular_values, float)
    random = np.random.default_rng(seed)
    single = min(s.size, SINGLE_POLES + (0 if top_k is None else top_k))
    shares = shared_poles(s[single:])
    sizes = [share.size for share in shares]
    poles = np.concatenate([s[:single], [np.sqrt(np.mean(share**2)) for share in shares]])
    weights = _direction(random, np.append(np.ones(single, int), np.array(sizes, int)), shape, s.size, draws)
    ranks = np.arange(min(s.size, SINGLE_POLES if top_k is None else top_k))
    return _count(theta, ranks, poles, single, weights, threshold_epsilon)


def shared_poles(s: np.ndarray) -> list[np.ndarray]:
    """Return values that may share a pole: two of one, then two of twice that, and so on."""
    ends: list[int] = []
    while sum(ends) < s.size:
        ends.append(min(2 ** (len(ends) // 2), s.size - sum(ends)))
    return np.split(s, np.cumsum(ends)[:-1]) if ends else []


class _Weights(NamedTuple):
    """Sums at each pole, (draws, poles), and over the rest, (draws,), of a Haar direction: Σa², Σb², Σab; a and b."""

    left: np.ndarray
    right: np.ndarray
    both: np.ndarray
    left_zero: np.ndarray
    right_zero: np.ndarray
    a: np.ndarray
    b: np.ndarray


def _direction(
    random: np.random.Generator, sizes: np.ndarray, shape: tuple[int, int], states: int, draws: int
) -> _Weights:
    # Turned so that a has one coordinate in each share, b is Gaussian along it and χ across.
    left = random.chisquare(sizes, (draws, sizes.size))
    a = np.sqrt(left)
    b = random.standard_normal((draws, sizes.size))
    across = np.where(sizes > 1, random.chisquare(np.maximum(sizes - 1, 1), (draws, sizes.size)), 0)
    right = b**2 + across
    outside = [random.chisquare(side - states, draws) if side > states else np.zeros(draws) for side in shape]
    norms = [(x.sum(1) + zero)[:, None] for x, zero in zip((left, right), outside, strict=True)]
    a, b, both = a / np.sqrt(norms[0]), b / np.sqrt(norms[1]), a * b / np.sqrt(norms[0] * norms[1])
    left_zero, right_zero = (zero / norm[:, 0] for zero, norm in zip(outside, norms, strict=True))
    return _Weights(left / norms[0], right / norms[1], both, left_zero, right_zero, a, b)


def _count(
    theta: np.ndarray, ranks: np.ndarray, poles: np.ndarray, single: int, weights: _Weights, threshold_epsilon: float
) -> np.ndarray:
    """Return the frequency of intruders at the singular values of these ranks, 0 being the largest, shape (t, ranks)."""
    square = poles**2
    stacked = np.stack([weights.left, weights.right, weights.both * poles], axis=2)
    strength = theta[:, None, None]

    def terms(z):
        inverse = 1 / (z[..., None] ** 2 - square)  # (t, draws, ranks, poles)
        a, b, c = np.moveaxis(inverse @ stacked, 3, 0)
        a, b = z * a + weights.left_zero[:, None] / z, z * b + weights.right_zero[:, None] / z
        return inverse, a, b, c - 1 / strength

    shape = theta.size, len(weights.left), ranks.size
    rising = poles[:single][::-1]
    low = np.broadcast_to(np.append(poles, 0)[ranks + 1], shape)
    high = np.broadcast_to(np.where(ranks > 0, poles[ranks - 1], poles[0] + strength), shape)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(_HALVES):
            z = low + 0.49 * (high - low)  # halves of round numbers may coincide with poles
            _, a, b, c = terms(z)
            positive = np.where(a * b < c**2, 1, np.where(a + b > 0, 2, 0))
            is_low = single - np.searchsorted(rising, z, side="right") + positive - 1 > ranks
            low, high = np.where(is_low, z, low), np.where(is_low, high, z)
        z = (low + high) / 2
        inverse, a, b, c = terms(z)
        first = np.abs(a) > np.abs(b)  # the null vector (x, y), from the better conditioned row
        x, y = (z * np.where(first, -c, b))[..., None], np.where(first, a, -c)[..., None]
        parts = x**2 * weights.left[:, None] + y**2 * (square * weights.right)[:, None]
        parts += 2 * x * y * (poles * weights.both)[:, None]
        norm = (inverse**2 * parts).sum(-1) + x[..., 0] ** 2 * weights.left_zero[:, None] / z**4
        vector = x * weights.a[:, None, :single] + y * (poles * weights.b)[:, None, :single]
        cosine = np.abs(inverse[..., :single] * vector).max(-1) / np.sqrt(norm)
        # Vectors in the null space of a low-rank base are not counted.
        real = z > 1e-6 * np.maximum(poles[0], strength)
        return ((cosine < threshold_epsilon) & real).mean(1)
