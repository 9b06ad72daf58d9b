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

which to first order give :math:`p_{ij}` back. It is drawn and diagonalised. An outlier that keeps less than half of itself in
that is nowhere: among many spikes it dissolves. One that has passed all of them is moved by them as by a bulk, and D is then
taken over all :math:`s_j`.

At the edge of the bulk all this fails: whether there is an outlier, and which of the last bulk states it has mixed with, is a
matter of single states within :math:`N^{-1/3}` of the threshold. There, for one direction at a time, nothing is approximated
but the far end of the bulk: in the base's own singular vectors a Haar direction has Gaussian coordinates :math:`a_j, b_j`, and
the singular values z of the sum are the zeros of

.. math::
    \det\begin{pmatrix}A & C - 1/\theta\\ C - 1/\theta & B\end{pmatrix}, \quad
    A = \sum_j\frac{za_j^2}{z^2-s_j^2},\ B = \sum_j\frac{zb_j^2}{z^2-s_j^2},\ C = \sum_j\frac{s_ja_jb_j}{z^2-s_j^2}.

By the inertia of a Schur complement, beyond z lie as many of them as there are :math:`s_j` and positive eigenvalues of that
matrix, less one; so they are found by bisection. The largest :math:`s_j` are states of their own, the others share poles, with
:math:`\chi^2` weights.

All that counts outliers. At a high threshold, or among many leading vectors, most intruders are none, but base vectors that an
update has only mixed with one another; these are counted by `drawn_intruders`.
"""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import numpy as np
from scipy.special import erf

from rmtjax._errors import InputError, shown
from rmtjax.spectra.bulk_fit import BulkFit

__all__ = ["Prediction", "bulk_edge", "check_question", "drawn_intruders", "lone_intruders", "predict"]

_NEAR = 0.1
"""Root mean square of the cosine from which a singular vector takes part in the mixing: a fifth of the usual threshold."""
_KEPT = 0.5
"""Share of itself, squared, that an outlier must keep in the mixing to be one; else no singular value is its."""
_FEW, _LOW = 16, 0.5
"""Leading vectors and threshold up to which intruders are outliers' doing; beyond, base vectors that have only mixed with one
another are many of them, and all is drawn. So it is of more directions than that, each of them somewhat below the threshold."""
_DENSE = 800
"""Largest matrix that is decomposed for that."""
_STATES = 48
"""At most so many of them do."""
_SINGLE, _NODES = 12, 4
"""States beside those looked at whose vectors are followed at the edge; strengths at which that is drawn, others lie between."""
_HALVES = 20
"""Bisections, to 10⁻⁶ of what is between neighbours."""


def check_question(top: Any, threshold: Any) -> None:
    """Raise InputError unless `top` is a number of leading vectors and `threshold` a cosine between 0 and 1."""
    if isinstance(top, bool) or not isinstance(top, numbers.Integral) or top < 1:
        raise InputError(f"top = {shown(top)}: must be a whole number, 1 or more")
    if not (isinstance(threshold, numbers.Real) and 0 < threshold < 1):
        raise InputError(f"threshold = {shown(threshold)}: must be between 0 and 1")


def bulk_edge(singular_values: np.ndarray, fit: BulkFit) -> float:
    """Where the bulk ends, one spacing beyond its last value, which is a pole of the sums over it."""
    last = singular_values[fit.count : fit.count + 9]
    return max(fit.threshold, float(last[0] + (last[0] - last[-1]) / 8))


class Prediction(NamedTuple):
    """What an update of given strengths makes of a matrix.

    Attributes:
        threshold: least strength that makes an outlier, in the limit.
        outliers: mean singular values, NaN for strengths that make none, or none that keeps half of itself among the base's own
            spikes, shape (r,).
        overlaps: squared, of the left vectors with the update's, shape (r,); of outliers among spikes, before any mixing.
        probabilities: of an intruder, shape (r,); near the threshold there may be one without a clear outlier.
        intruders: mean number among the leading vectors. The sum of the probabilities, as long as ε ≤ 0.5 and there are no more
            than 16 leading vectors, nor directions between half the threshold and it, which are more together than one by one;
            beyond that from `drawn_intruders`. Where that takes too long, the sum in the last case, in the others NaN.
    """

    threshold: float
    outliers: np.ndarray
    overlaps: np.ndarray
    probabilities: np.ndarray
    intruders: float


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


def _states(bulk: _Bulk, theta: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outliers and their squared overlaps, of the left vectors and of the right ones."""
    z = _outliers(bulk, theta, edge)
    left, right, to_left, to_right = bulk.sums(z)
    slope = to_left * right + left * to_right
    with_a, with_b = (np.clip(-2 * x / (theta**2 * slope), 0, 1) for x in (left, right))
    return z, with_a, with_b


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
    r"""Outliers, overlaps and intruders that an update is bound to make.

    :math:`D(z_i) = 1/\theta_i^2` for the outliers (Benaych-Georges & Nadakuditi 2012); the rest is the module's, and in
    docs/derivations.md, §6.

    Args:
        strengths: singular values θ of the update, shape (r,).
        singular_values: of the base, all of them (or as many numbers of the same distribution), shape (min(n, m),).
        shape: (n, m).
        edge: of the base's bulk; values above it are spikes.
        threshold: ε.
        top: an outlier is an intruder only if it is among so many leading singular values.
        draws: of the mixing.
        seed: of the draws.

    Returns:
        `Prediction`.
    """
    theta, s = np.asarray(strengths, float), np.asarray(singular_values, float)
    limit, outliers, overlaps, chances = _of_outliers(theta, s, shape, edge, threshold, top, draws, seed)
    one_by_one = threshold <= _LOW and (top is None or top <= _FEW)
    many = float("nan")
    if not one_by_one or ((theta > limit / 2) & (theta <= limit)).sum() > _FEW:
        many = drawn_intruders(theta[theta > limit / 8], s, shape, threshold, top=top, seed=seed)
    if one_by_one and np.isnan(many):
        many = float(chances.sum() if top is None else min(chances.sum(), top))
    return Prediction(limit, outliers, overlaps, chances, many)


def _of_outliers(
    theta: np.ndarray,
    s: np.ndarray,
    shape: tuple[int, int],
    edge: float,
    threshold: float,
    top: int | None,
    draws: int,
    seed: int,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    n, m = shape
    spikes = int((s > edge).sum())
    bulk = _Bulk(s[s <= edge], n - spikes, m - spikes)
    outliers, overlaps, chances = np.full_like(theta, np.nan), np.full_like(theta, np.nan), np.zeros_like(theta)
    if not bulk.values.any():  # nothing but spikes: every strength is an outlier of its own
        return 0.0, theta.copy(), np.ones_like(theta), (theta > 0).astype(float)
    least = float(1 / np.sqrt(bulk.transform(np.array(edge))))
    # In the limit D^{-1/2} leaves the edge as a square root: from where single poles do not show, a parabola in it.
    last, limit = bulk.values[0], least
    away = last - bulk.values[min(10, bulk.values.size - 1)]
    if away > 0:
        one, two, three = 1 / np.sqrt(bulk.transform(last + away * np.array([1.0, 4.0, 9.0])))
        limit = float(np.clip(3 * (one - two) + three, 0, least))
    above = theta > least
    # Each outlier is ahead of all that weaker directions make.
    ahead = np.empty(theta.size, int)
    ahead[np.argsort(-theta, kind="stable")] = np.minimum(np.arange(theta.size), above.sum())
    room = None if top is None else np.maximum(top - ahead, 0)

    def at_the_edge(which):
        chances[which] = _at_the_edge(
            theta[which], limit, s, shape, threshold, None if room is None else room[which], draws, seed
        )

    if not above.any():
        at_the_edge(~above)
        return limit, outliers, overlaps, chances
    strong = theta[above]
    z, with_a, with_b = _states(bulk, strong, edge)
    gap = np.maximum(np.abs(z[:, None] ** 2 - s**2), 1e-9 * s[0] ** 2)
    p = (strong[:, None] / gap) ** 2 * (z[:, None] ** 2 * with_b[:, None] / n + s**2 * with_a[:, None] / m)
    attached = p[:, s <= edge].max(1) > (threshold / 5) ** 2
    near = np.flatnonzero((p.max(0) > _NEAR**2) & (s > edge))
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
        kept = np.take_along_axis(vectors[:, :q], own[:, None, :], axis=2)[:, range(q), range(q)]
        z = np.where((kept**2).mean(0) >= _KEPT, np.take_along_axis(values, own, axis=1).mean(0), np.nan)
    elif top is not None:
        chance[np.searchsorted(-s[:spikes], -z) + np.arange(z.size) >= top] = 0
    # What has passed all spikes is moved by them as by a bulk.
    beyond, overlap, _ = _states(_Bulk(s, n, m), strong, s[0] * (1 + 1e-6))
    passed = overlap >= _KEPT
    z, with_a = np.where(passed, beyond, z), np.where(passed, overlap, with_a)
    outliers[above], overlaps[above], chances[above] = z, with_a, chance
    clear = np.zeros_like(above)
    clear[above] = ~attached  # of the bulk's states, and ahead of those that are not
    at_the_edge(~clear)
    return limit, outliers, overlaps, chances


def _at_the_edge(
    theta: np.ndarray,
    limit: float,
    s: np.ndarray,
    shape: tuple[int, int],
    threshold: float,
    room: np.ndarray | None,
    draws: int,
    seed: int,
) -> np.ndarray:
    """`lone_intruders` at some of the strengths, at most 1, and what lies between; room is each one's own `top`."""
    chances = np.zeros_like(theta)
    which = np.flatnonzero(theta > limit / 2)  # far below there is none
    if room is not None:
        which = which[room[which] > 0]
    if which.size:
        wanted = np.unique(theta[which])
        nodes = np.quantile(wanted, np.linspace(0, 1, _NODES)) if wanted.size > _NODES else wanted
        most = None if room is None else int(room[which].max())
        found = np.cumsum(_by_rank(nodes, s, shape, threshold, most, draws, seed), axis=1)
        rooms = np.full(which.size, found.shape[1]) if room is None else np.minimum(room[which], found.shape[1])
        for ranks in np.unique(rooms):
            these = which[rooms == ranks]
            chances[these] = np.minimum(np.interp(theta[these], nodes, found[:, ranks - 1]), 1)
    return chances


def lone_intruders(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    threshold: float = 0.5,
    *,
    top: int | None = None,
    draws: int = 64,
    seed: int = 0,
) -> np.ndarray:
    """Mean number of intruders among the leading vectors after an update in one Haar direction (the module's last formula).

    Args:
        strengths: of the update, one at a time, with the same draws, shape (t,).
        singular_values, shape, threshold: see `predict`.
        top: how many leading vectors are looked at; by default those of the states that keep their own poles.
        draws: of the direction.
        seed: of the draws.

    Returns:
        Shape (t,).
    """
    return _by_rank(strengths, singular_values, shape, threshold, top, draws, seed).sum(1)


def _by_rank(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    threshold: float,
    top: int | None,
    draws: int,
    seed: int,
) -> np.ndarray:
    """How often the vector of each leading singular value is an intruder, shape (t, ranks)."""
    theta, s = np.asarray(strengths, float), np.asarray(singular_values, float)
    random = np.random.default_rng(seed)
    single = min(s.size, _SINGLE + (0 if top is None else top))
    shares = _shares(s[single:])
    sizes = [share.size for share in shares]
    poles = np.concatenate([s[:single], [np.sqrt(np.mean(share**2)) for share in shares]])
    weights = _direction(random, np.append(np.ones(single, int), np.array(sizes, int)), shape, s.size, draws)
    ranks = np.arange(min(s.size, _SINGLE if top is None else top))
    return _count(theta, ranks, poles, single, weights, threshold)


def _shares(s: np.ndarray) -> list[np.ndarray]:
    """Values that may share a pole: two of one, then two of twice that, and so on."""
    ends: list[int] = []
    while sum(ends) < s.size:
        ends.append(min(2 ** (len(ends) // 2), s.size - sum(ends)))
    return np.split(s, np.cumsum(ends)[:-1]) if ends else []


class _Weights(NamedTuple):
    """Of a Haar direction at each pole, (draws, poles), and outside of all, (draws,): Σa², Σb², Σab; a and b themselves."""

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
    theta: np.ndarray, ranks: np.ndarray, poles: np.ndarray, single: int, weights: _Weights, threshold: float
) -> np.ndarray:
    """How often, for strengths (t,), the singular values of these ranks, 0 being the largest, have intruders, (t, ranks)."""
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
            z = low + 0.49 * (high - low)  # halves of round numbers may be poles
            _, a, b, c = terms(z)
            positive = np.where(a * b < c**2, 1, np.where(a + b > 0, 2, 0))
            more = single - np.searchsorted(rising, z, side="right") + positive - 1 > ranks
            low, high = np.where(more, z, low), np.where(more, high, z)
        z = (low + high) / 2
        inverse, a, b, c = terms(z)
        first = np.abs(a) > np.abs(b)  # the null vector (x, y), from the row that is safer
        x, y = (z * np.where(first, -c, b))[..., None], np.where(first, a, -c)[..., None]
        parts = x**2 * weights.left[:, None] + y**2 * (square * weights.right)[:, None]
        parts += 2 * x * y * (poles * weights.both)[:, None]
        norm = (inverse**2 * parts).sum(-1) + x[..., 0] ** 2 * weights.left_zero[:, None] / z**4
        vector = x * weights.a[:, None, :single] + y * (poles * weights.b)[:, None, :single]
        cosine = np.abs(inverse[..., :single] * vector).max(-1) / np.sqrt(norm)
        # Of a base of small rank, what is left of its null space is nobody's.
        real = z > 1e-6 * np.maximum(poles[0], strength)
        return ((cosine < threshold) & real).mean(1)


def drawn_intruders(
    strengths: np.ndarray,
    singular_values: np.ndarray,
    shape: tuple[int, int],
    threshold: float = 0.5,
    *,
    top: int | None = None,
    draws: int = 16,
    seed: int = 0,
) -> float:
    r"""Mean number of intruders among the leading vectors after an update in Haar directions, all of them together.

    In the base's singular vectors the sum is :math:`\mathrm{diag}(s) + A\Theta B^\top`. Where k of the :math:`s_j` share a pole,
    the r columns of A and of B there span 2r dimensions at most, and nothing is changed in the others; so a matrix of the
    leading states and of 2r for each share stands for the whole, and is drawn and decomposed.

    Args:
        strengths: of the update, shape (r,).
        singular_values, shape, threshold: see `predict`.
        top: how many leading vectors are looked at; by default 12.
        draws: of the directions.
        seed: of the draws.

    Returns:
        The mean; NaN where that matrix would have more than 800 rows or columns.
    """
    theta, s = np.asarray(strengths, float), np.asarray(singular_values, float)
    r, random, top = theta.size, np.random.default_rng(seed), min(s.size, _SINGLE if top is None else top)
    if r == 0:
        return 0.0
    single = min(s.size, top + _SINGLE)
    shares = _shares(s[single:])
    wide = [share for share in shares if share.size > 2 * r]
    single = s.size - sum(share.size for share in wide)
    poles = np.concatenate([s[:single], *(np.full(2 * r, np.sqrt(np.mean(share**2))) for share in wide)])
    outside = [min(side - s.size, r) for side in shape]
    rows, columns = (poles.size + more for more in outside)
    if max(rows, columns) > _DENSE:
        return float("nan")
    base = np.zeros((rows, columns))
    base[range(poles.size), range(poles.size)] = poles
    counts = []
    for _ in range(draws):
        turns, parts = [], [random.standard_normal((single, 2 * r))]
        for share in wide:
            turn, part = np.linalg.qr(random.standard_normal((share.size, 2 * r)))
            turns.append(turn)
            parts.append(part)
        both = np.concatenate(parts)
        sides = []
        for half, side, rest in ((both[:, :r], shape[0], outside[0]), (both[:, r:], shape[1], outside[1])):
            beyond = random.standard_normal((side - s.size, r))
            beyond = np.linalg.qr(beyond)[1] if len(beyond) > r else beyond
            whole = np.concatenate([half, beyond[:rest]])
            sides.append(np.linalg.solve(np.linalg.cholesky(whole.T @ whole), whole.T).T)  # orthonormal columns
        vectors, values, _ = np.linalg.svd(base + (sides[0] * theta) @ sides[1].T, full_matrices=False)
        vectors = vectors[:, :top]
        cosines = np.abs(vectors[:single]).max(0)
        for i, turn in enumerate(turns):
            place = single + 2 * r * i
            cosines = np.maximum(cosines, np.abs(turn @ vectors[place : place + 2 * r]).max(0))
        counts.append(((cosines < threshold) & (values[:top] > 1e-6 * values[0])).sum())
    return float(np.mean(counts))
