"""Upper and lower bounds, from a Krylov space, on the cosines of vectors with every singular vector."""

from __future__ import annotations

import numpy as np

from rmtjax.linalg.krylov.block_lanczos import Ritz, angle_bounds

__all__ = ["cosine_lower_bounds", "cosine_upper_bounds"]

_SHARES, _LITTLE = (0.02, 0.1), 1e-2
"""τ, the share of the squared length of a singular vector that is granted to rounding: the second value where σ² is below the
second constant times the largest, since rounding weighs more there."""


def _christoffel(ritz: Ritz, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    r"""Return the bound at each x, shape (x, c).

    A singular vector of value x has coordinates y along the Ritz vectors, w in the next block and z in the rounding E of the
    process, with (θⱼ − x) yⱼ + ℓⱼᵀw + ηⱼzⱼ = 0: ℓⱼ is the Ritz pair's residual in the next block, ηⱼ the length of its
    rounding, and ‖y‖² + ‖w‖² ≤ 1, ‖z‖ ≤ 1. With ‖y‖² + ‖w‖² + τ²‖z‖² ≤ 1 + τ² in place of these, the largest (rᵀy)² is

    .. math::
        (1+\tau^2)\Big[\sum_j\frac{r_j^2\epsilon_j^2}{g_j^2+\epsilon_j^2} + v^\top\Big(1 + \sum_j
        \frac{\ell_j\ell_j^\top}{g_j^2+\epsilon_j^2}\Big)^{-1}v\Big],\qquad
        v = \sum_j\frac{g_jr_j\ell_j}{g_j^2+\epsilon_j^2},\quad g = \theta-x,\ \epsilon = \eta/\tau,

    and without rounding, ε = 0, the Christoffel function.
    """
    b, k = ritz.last.shape
    last, first = ritz.last.T, rows.T  # (k, b), (k, c)
    squares = (last[:, :, None] * last[:, None, :]).reshape(k, -1)
    mixed = (last[:, :, None] * first[:, None, :]).reshape(k, -1)
    bounds = np.empty((x.size, len(rows)))
    little = x <= _LITTLE * ritz.values[-1]
    for share, which in zip(_SHARES, (~little, little), strict=True):
        blur = np.maximum(ritz.noise / share, 1e-7 * ritz.residuals) ** 2
        which = np.flatnonzero(which)
        for part in np.array_split(which, max(1, which.size * k // 1_000_000)):
            gap = ritz.values - x[part, None]
            near = gap * gap
            near += blur
            np.divide(1, near, out=near)
            inner = (near @ squares).reshape(-1, b, b) + np.eye(b)
            rounding = near @ (blur[:, None] * first**2)
            seen = (np.multiply(gap, near, out=gap) @ mixed).reshape(-1, b, len(rows))
            bounds[part] = (1 + share**2) * (rounding + np.sum(seen * np.linalg.solve(inner, seen), axis=1))
    return bounds


def cosine_upper_bounds(
    ritz: Ritz, rows: np.ndarray, floor: float = 0.0, *, transposed: bool = False, enough: np.ndarray | float = np.inf
) -> np.ndarray:
    r"""Return upper bounds on the squared cosines of vectors in the start block with any one left singular vector.

    This is the second point of `rmtjax.linalg.krylov.block_lanczos`.

    As a function of x the bound has a peak of the width of the residual at each Ritz value that has begun to converge, and
    is smooth elsewhere. It is sampled accordingly, then more and more closely wherever it comes near its largest value, and
    three quarters of a per cent allow for what may lie between the samples.

    Args:
        ritz: of a space whose start block the vectors are in.
        rows: their coordinates along the Ritz vectors, shape (c, k); of a start vector itself a row of `ritz.first`.
        floor: singular vectors with σ² at or below it do not count.
        transposed: the space is that of Aᵀ, and the vectors in it are Aᵀ times those that are asked about: their inner
            products with right singular vectors are σ times the cosines.
        enough: bounds of at least this are not computed, and are returned as 1.

    Returns:
        Shape (c,).
    """
    upper = np.ones(len(rows))
    enough = np.broadcast_to(enough, upper.shape)
    theta, rho = ritz.values, ritz.residuals
    if theta[-1] <= floor:
        return 0 * upper
    low, high = min(floor, theta[0]), theta[-1] + max(theta[-1] - theta[-2], rho[-1])
    least = max(floor * (1 + 1e-9), 1e-30 * high)
    steps = np.diff(theta, prepend=low, append=high)
    narrow = rho < 4 * np.maximum(steps[:-1], steps[1:])
    weight = (lambda x: 1 / x) if transposed else np.ones_like

    def at(x):
        x = np.unique(x[x > floor])
        return x, _christoffel(ritz, rows, x) * weight(x)[:, None]

    def beside(which, near):
        return (theta[which, None] + rho[which, None] * np.concatenate([-near, near])).ravel()

    between = np.append(low, theta)[:, None] + steps[:, None] * np.array([0.1, 0.5, 0.9])
    # Towards zero the images of unit vectors vanish, and the bound's factor grows as 1/x.
    first = max(theta[theta > floor][0], least)
    small = np.geomspace(least, first, 8 + int(4 * np.log10(first / least)))
    x, bound = at(np.concatenate([beside(narrow, np.array([1e-5])), between.ravel(), small]))
    open_ = np.flatnonzero(bound.max(0) < enough)
    if not open_.size:
        return upper
    rows, enough, bound = rows[open_], enough[open_], bound[:, open_]
    # The rest of a peak only if it may be the highest.
    tall = np.zeros(theta.size, bool)
    tall[np.abs(theta - x[(bound > 0.5 * bound.max(0)).any(1), None]).argmin(1)] = True
    near = np.array([1e-4, 1e-3, 4e-3, 0.02, 0.1, 0.3, 0.8])
    near_peaks, beyond = at(beside(narrow & tall, near))
    order = np.argsort(np.concatenate([x, near_peaks]))
    x, bound = np.concatenate([x, near_peaks])[order], np.concatenate([bound, beyond])[order]
    best = bound.max(0)
    fenced = np.pad(bound, ((1, 1), (0, 0)))
    peak = (bound >= fenced[:-2]) & (bound >= fenced[2:]) & (bound >= 0.8 * best) & (best < enough)
    place, column = np.nonzero(peak)
    left, right = x[np.maximum(place - 1, 0)], x[np.minimum(place + 1, x.size - 1)]
    every = np.linspace(0, 1, 7)[1:-1]
    for _ in range(3 if place.size else 0):
        closer = left[:, None] + (right - left)[:, None] * every
        value = _christoffel(ritz, rows, closer.ravel()).reshape(*closer.shape, -1)
        value = value[np.arange(place.size), :, column] * weight(np.maximum(closer, floor))
        np.maximum.at(best, column, value.max(1))
        middle, step = closer[np.arange(place.size), value.argmax(1)], (right - left) / 6
        left, right = middle - step, middle + step
    upper[open_] = np.where(best < enough, np.minimum(1.0075 * best, 1.0), 1.0)
    return upper


_SETTLED = 0.05
"""Angle within which all leading Ritz vectors count as those of the largest singular values, with none missing."""


def cosine_lower_bounds(cosine: np.ndarray, ritz: Ritz, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the largest cosines with Ritz vectors, certain lower bounds, and lower bounds if no singular value hides another.

    `cosine` holds all cosines, shape (c, k); the results have shape (c,).

    A Ritz vector at cosine w from a start vector, and within angle φ of a singular vector, shows one at cosine
    w cos φ − √(1 − w²) sin φ or more. For φ the nearest other eigenvalue counts, and of n eigenvalues k Ritz values do not
    show all: between two of them a share k/n of the gap is taken for the distance to the nearest. Inside the spectrum there may
    be two much closer than that, and a vector made of both looks like one; from the largest down to the first Ritz vector that
    has not settled, the random columns of the start would have shown them.
    """
    cosine = np.minimum(np.abs(cosine), 1.0)
    angles = angle_bounds(ritz)
    settled = np.cumprod(angles[::-1] <= _SETTLED)[::-1] > 0
    sine = np.minimum(angles * max(1.0, n / ritz.values.size), 1.0)
    sure = np.maximum(cosine * np.sqrt(1 - sine**2) - np.sqrt(1 - cosine**2) * sine, 0.0)
    return cosine.max(axis=1), np.where(settled, sure, 0).max(axis=1), sure.max(axis=1)
