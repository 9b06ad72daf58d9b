r"""What a low-rank update must do to a given matrix, from the matrix's singular values and the update's alone.

For :math:`M = W + \sum_i\theta_ia_ib_i^\top` with directions that have nothing to do with W (n×m), let :math:`s_j` be the
singular values of W's bulk, 0 beyond min(n, m), and

.. math::
    \varphi(z) = \frac1n\sum_{j\le n}\frac z{z^2-s_j^2}, \qquad
    \tilde\varphi(z) = \frac1m\sum_{j\le m}\frac z{z^2-s_j^2}, \qquad D = \varphi\tilde\varphi.

An outlier is at :math:`D(z_i) = 1/\theta_i^2` if :math:`\theta_i > D(b^+)^{-1/2}` at the bulk's edge b; its singular vectors
overlap with the update's by (Benaych-Georges & Nadakuditi, *J. Multivariate Anal.* 111, 2012)

.. math::
    \langle a_i, \hat u_i\rangle^2 \to \frac{-2\varphi(z_i)}{\theta_i^2D'(z_i)}, \qquad
    \langle b_i, \hat v_i\rangle^2 \to \frac{-2\tilde\varphi(z_i)}{\theta_i^2D'(z_i)},

and with W's own by independent Gaussians of variance

.. math::
    p_{ij} = \frac{\theta_i^2}{(z_i^2-s_j^2)^2}
    \Big[\frac{z_i^2\langle b_i, \hat v_i\rangle^2}n + \frac{s_j^2\langle a_i, \hat u_i\rangle^2}m\Big].

With a bulk and nothing else the outlier is an intruder with probability
:math:`\prod_j\mathrm{erf}(\varepsilon/\sqrt{2p_{ij}})`. A trained matrix has spikes of its own, though, and an outlier that comes
near one repels it and mixes with it. So outliers and those spikes whose :math:`p_{ij}` is not small are taken as the states
of a small symmetric matrix: :math:`z_i` and :math:`s_j` on its diagonal, and between them couplings

.. math::
    \tfrac12\theta_i\big(\langle b_i,\hat v_i\rangle g + \langle a_i,\hat u_i\rangle g'\big), \qquad
    g \sim N(0, 1/n),\ g' \sim N(0, 1/m),

which to first order give :math:`p_{ij}` back. It is drawn and diagonalised.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import erf

__all__ = ["Prediction", "predict"]

_NEAR = 0.2
"""Root mean square of the cosine, in thresholds, from which a singular vector takes part in the mixing: five deviations."""
_STATES = 48
"""At most so many of them do."""


class Prediction(NamedTuple):
    """What an update of given strengths makes of a matrix.

    Attributes:
        threshold: least strength that makes an outlier.
        outliers: mean singular values, NaN for strengths that make none, shape (r,).
        overlaps: squared, of the left vectors with the update's, before any mixing, shape (r,).
        probabilities: of an intruder, 0 where there is no outlier, shape (r,).
    """

    threshold: float
    outliers: np.ndarray
    overlaps: np.ndarray
    probabilities: np.ndarray


class _Bulk(NamedTuple):
    """φ, φ̃ and their derivatives."""

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
        """D."""
        left, right, *_ = self.sums(z)
        return left * right


def _outliers(bulk: _Bulk, theta: np.ndarray, edge: float) -> np.ndarray:
    """Where D^{-1/2} = θ: Newton's method, which comes from the left since D^{-1/2} is concave, within a bracket."""
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


def predict(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    edge: float,
    threshold: float = 0.5,
    *,
    top: int | None = None,
    draws: int = 64,
    seed: int = 0,
) -> Prediction:
    """Outliers, overlaps and intruders that an update is bound to make.

    Args:
        strengths: singular values θ of the update, shape (r,).
        singular_values: of the base, all of them (or as many numbers of the same distribution), shape (min(n, m),).
        shape: (n, m).
        edge: of the base's bulk; values above it are spikes.
        threshold: ε.
        top: an outlier is an intruder only if it is among so many leading singular values.
        draws: of the mixing.
        seed: of the draws.
    """
    theta, s = np.asarray(strengths, float), np.asarray(singular_values, float)
    n, m = shape
    spikes = int((s > edge).sum())
    bulk = _Bulk(s[s <= edge], n - spikes, m - spikes)
    outliers, overlaps, chances = np.full_like(theta, np.nan), np.full_like(theta, np.nan), np.zeros_like(theta)
    if not bulk.values.any():  # nothing but spikes: every strength is an outlier of its own
        return Prediction(0.0, theta.copy(), np.ones_like(theta), (theta > 0).astype(float))
    least = float(1 / np.sqrt(bulk.transform(np.array(edge))))
    above = theta > least
    if not above.any():
        return Prediction(least, outliers, overlaps, chances)
    strong = theta[above]
    z = _outliers(bulk, strong, edge)
    left, right, to_left, to_right = bulk.sums(z)
    slope = to_left * right + left * to_right
    with_a, with_b = (np.clip(-2 * x / (strong**2 * slope), 0, 1) for x in (left, right))
    gap = np.maximum(np.abs(z[:, None] ** 2 - s**2), 1e-9 * s[0] ** 2)
    p = (strong[:, None] / gap) ** 2 * (z[:, None] ** 2 * with_b[:, None] / n + s**2 * with_a[:, None] / m)
    near = np.flatnonzero((p.max(0) > (_NEAR * threshold) ** 2) & (s > edge))
    near = near[np.argsort(-p[:, near].max(0))[:_STATES]]
    far = np.setdiff1d(np.arange(s.size), near)
    chance = np.prod(erf(threshold / np.sqrt(2 * p[:, far])), axis=1)
    if near.size:
        random = np.random.default_rng(seed)
        q = z.size
        matrix = np.zeros((draws, q + near.size, q + near.size))
        matrix[:, range(q + near.size), range(q + near.size)] = np.concatenate([z, s[near]])
        g, h = (random.standard_normal((draws, q, near.size)) / np.sqrt(side) for side in (n, m))
        coupling = strong[:, None] / 2 * (np.sqrt(with_b)[:, None] * g + np.sqrt(with_a)[:, None] * h)
        matrix[:, :q, q:], matrix[:, q:, :q] = coupling, coupling.transpose(0, 2, 1)
        values, vectors = np.linalg.eigh(matrix)
        own = np.argmax(np.abs(vectors[:, :q]), axis=2)  # the state that each outlier has become, (draws, q)
        mixed = np.abs(np.take_along_axis(vectors[:, q:], own[:, None, :], axis=2)).max(1)
        seen = mixed < threshold
        if top is not None:
            others = spikes - near.size  # the spikes far from all outliers, which stay where they are
            below = np.sort(np.setdiff1d(s[:spikes], s[near]))
            ahead = others - np.searchsorted(below, np.take_along_axis(values, own, axis=1))
            seen &= (values.shape[1] - 1 - own) + ahead < top
        chance *= seen.mean(0)
        z = np.take_along_axis(values, own, axis=1).mean(0)
    elif top is not None:
        chance[np.searchsorted(-s[:spikes], -z) + np.arange(z.size) >= top] = 0
    outliers[above], overlaps[above], chances[above] = z, with_a, chance
    return Prediction(least, outliers, overlaps, chances)
