"""Outliers of an update, and their mixing with the base's own spikes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import erf

from rmtjax.intruders.predict.edge import intruders_at_the_edge

__all__ = ["intruding_outliers"]

_NEAR = 0.1
"""Root mean square of the cosine from which a singular vector takes part in the mixing: a fifth of the default threshold."""
_KEPT = 0.5
"""Share of itself, squared, that an outlier must keep in the mixing to count; otherwise no singular value belongs to it."""
_STATES = 48
"""Largest number of vectors that take part."""


class _Bulk(NamedTuple):
    """φ, φ̃ and their derivatives, over the bulk."""

    values: np.ndarray
    n: int
    m: int

    def sums(self, z: np.ndarray) -> tuple[np.ndarray, ...]:
        square = z[..., None] ** 2
        gap = square - self.values**2
        common, slope = (z[..., None] / gap).sum(-1), (-(square + self.values**2) / gap**2).sum(-1)
        zeros = [side - self.values.size for side in (self.n, self.m)]
        left, right = ((common + k / z) / side for k, side in zip(zeros, (self.n, self.m), strict=True))
        to_left, to_right = ((slope - k / z**2) / side for k, side in zip(zeros, (self.n, self.m), strict=True))
        return left, right, to_left, to_right

    def transform(self, z: np.ndarray) -> np.ndarray:
        """Return the D-transform D(z) = φ(z) φ̃(z)."""
        left, right, *_ = self.sums(z)
        return left * right


def _outliers(bulk: _Bulk, theta: np.ndarray, edge: float) -> np.ndarray:
    """Return the z with D^{-1/2}(z) = θ by bracketed Newton, which converges from the left since D^{-1/2} is concave."""
    low, high = np.full_like(theta, edge), edge + theta  # Weyl: at most the sum of the norms
    z = low
    for _ in range(100):
        left, right, to_left, to_right = bulk.sums(z)
        root = np.sqrt(left * right)
        beyond = 1 / root > theta
        low, high = np.where(beyond, low, z), np.where(beyond, z, high)
        before, z = z, z - (theta - 1 / root) * 2 * root**3 / (to_left * right + left * to_right)
        z = np.where((z >= low) & (z <= high), z, (low + high) / 2)
        if np.all(np.abs(z - before) <= 1e-12 * z):
            break
    return z


def _states(bulk: _Bulk, theta: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return outliers and their squared overlaps, of the left vectors and of the right ones."""
    z = _outliers(bulk, theta, edge)
    left, right, to_left, to_right = bulk.sums(z)
    slope = to_left * right + left * to_right
    with_a, with_b = (np.clip(-2 * x / (theta**2 * slope), 0, 1) for x in (left, right))
    return z, with_a, with_b


def intruding_outliers(
    theta: np.ndarray,
    s: np.ndarray,
    shape: tuple[int, int],
    edge: float,
    threshold_epsilon: float,
    top_k: int | None,
    draws: int,
    seed: int,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    n, m = shape
    spikes = int((s > edge).sum())
    bulk = _Bulk(s[s <= edge], n - spikes, m - spikes)
    outliers, overlaps, chances = np.full_like(theta, np.nan), np.full_like(theta, np.nan), np.zeros_like(theta)
    if not bulk.values.any():  # nothing but spikes: every strength is an outlier by itself
        return 0.0, theta.copy(), np.ones_like(theta), (theta > 0).astype(float)
    least = float(1 / np.sqrt(bulk.transform(np.array(edge))))
    # In the limit D^{-1/2} leaves the edge as a square root: until single poles show, a parabola in it.
    last, limit = bulk.values[0], least
    away = last - bulk.values[min(10, bulk.values.size - 1)]
    if away > 0:
        one, two, three = 1 / np.sqrt(bulk.transform(last + away * np.array([1.0, 4.0, 9.0])))
        limit = float(np.clip(3 * (one - two) + three, 0, least))
    above = theta > least
    # Each outlier is larger than all those that weaker directions make.
    ahead = np.empty(theta.size, int)
    ahead[np.argsort(-theta, kind="stable")] = np.minimum(np.arange(theta.size), above.sum())
    room = None if top_k is None else np.maximum(top_k - ahead, 0)

    def at_the_edge(which):
        chances[which] = intruders_at_the_edge(
            theta[which], limit, s, shape, threshold_epsilon, None if room is None else room[which], draws, seed
        )

    if not above.any():
        at_the_edge(~above)
        return limit, outliers, overlaps, chances
    strong = theta[above]
    z, with_a, with_b = _states(bulk, strong, edge)
    gap = np.maximum(np.abs(z[:, None] ** 2 - s**2), 1e-9 * s[0] ** 2)
    p = (strong[:, None] / gap) ** 2 * (z[:, None] ** 2 * with_b[:, None] / n + s**2 * with_a[:, None] / m)
    attached = p[:, s <= edge].max(1) > (threshold_epsilon / 5) ** 2
    near = np.flatnonzero((p.max(0) > _NEAR**2) & (s > edge))
    near = near[np.argsort(-p[:, near].max(0))[:_STATES]]
    far = np.setdiff1d(np.arange(s.size), near)
    chance = np.prod(erf(threshold_epsilon / np.sqrt(2 * p[:, far])), axis=1)
    if near.size:
        random = np.random.default_rng(seed)
        q = z.size
        matrix = np.zeros((draws, q + near.size, q + near.size))
        matrix[:, range(q + near.size), range(q + near.size)] = np.concatenate([z, s[near]])
        g, h = (random.standard_normal((draws, q, near.size)) / np.sqrt(side) for side in (n, m))
        coupling = strong[:, None] / 2 * (np.sqrt(with_b)[:, None] * g + np.sqrt(with_a)[:, None] * h)
        matrix[:, :q, q:], matrix[:, q:, :q] = coupling, coupling.transpose(0, 2, 1)
        values, vectors = np.linalg.eigh(matrix)
        states = np.argmax(np.abs(vectors[:, :q]), axis=2)  # the state that each outlier has become, (draws, q)
        mixed = np.abs(np.take_along_axis(vectors[:, q:], states[:, None, :], axis=2)).max(1)
        is_intruder = mixed < threshold_epsilon
        if top_k is not None:
            others = spikes - near.size  # the spikes far from all outliers, which stay in place
            below = np.sort(np.setdiff1d(s[:spikes], s[near]))
            ahead = others - np.searchsorted(below, np.take_along_axis(values, states, axis=1))
            is_intruder &= (values.shape[1] - 1 - states) + ahead < top_k
        chance *= is_intruder.mean(0)
        components = np.take_along_axis(vectors[:, :q], states[:, None, :], axis=2)[:, range(q), range(q)]
        z = np.where((components**2).mean(0) >= _KEPT, np.take_along_axis(values, states, axis=1).mean(0), np.nan)
    elif top_k is not None:
        chance[np.searchsorted(-s[:spikes], -z) + np.arange(z.size) >= top_k] = 0
    # An outlier that has passed all spikes is moved by them as by a bulk.
    beyond, overlap, _ = _states(_Bulk(s, n, m), strong, s[0] * (1 + 1e-6))
    passed = overlap >= _KEPT
    z, with_a = np.where(passed, beyond, z), np.where(passed, overlap, with_a)
    outliers[above], overlaps[above], chances[above] = z, with_a, chance
    clear = np.zeros_like(above)
    clear[above] = ~attached  # not attached to states of the bulk
    at_the_edge(~clear)
    return limit, outliers, overlaps, chances
