"""Intruders counted in an exact simulation of spiked matrices in the base's own eigenbasis, an oracle for the intruder laws.

Nothing of `rmtjax` is used. The spectrum is that of a tridiagonal matrix, the spike's directions are uniform in its eigenbasis,
the outlier solves the secular equation and the overlaps follow. Several directions share a spectrum, which makes them one
cluster in the standard errors.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

Shape = tuple[int, ...]
"""(N,) of a symmetric matrix, (n, m) with n ≤ m of a rectangular one; m×n is the same with its sides exchanged."""

TOLERANCES = np.array([0.3, 0.5, 0.7, 0.8, 0.9])
DIRECTIONS = 16


def bbp(shape: Shape) -> float:
    """Return the BBP threshold."""
    return 1.0 if len(shape) == 1 else (shape[0] / shape[1]) ** 0.25


def goe_spectrum(rng: np.random.Generator, N: int) -> np.ndarray:
    """Draw eigenvalues of the GOE of variance 1/N, descending (Dumitriu & Edelman 2002)."""
    diagonal, beside = rng.normal(0, np.sqrt(2 / N), N), np.sqrt(rng.chisquare(np.arange(N - 1, 0, -1)) / N)
    return eigvalsh_tridiagonal(diagonal, beside)[::-1]


def singular_spectrum(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Draw singular values of a Gaussian n×m matrix of variance 1/m, n ≤ m, descending."""
    a, b = np.sqrt(rng.chisquare(np.arange(m, m - n, -1)) / m), np.sqrt(rng.chisquare(np.arange(n - 1, 0, -1)) / m)
    square = eigvalsh_tridiagonal(a**2 + np.append(0, b**2), a[:-1] * b)
    return np.sqrt(np.maximum(square, 0))[::-1]


def unit(rng: np.random.Generator, count: int, n: int) -> np.ndarray:
    """Draw rows uniform on the sphere."""
    t = rng.normal(size=(count, n))
    return t / np.linalg.norm(t, axis=1, keepdims=True)


def wigner_overlaps(eigenvalues: np.ndarray, t: np.ndarray, theta: float) -> np.ndarray:
    """Return squared overlaps (T, N) of Λ + θ t tᵀ's top eigenvector; Newton rises to the root of the concave 1/Σ = θ."""
    share, below = t**2, eigenvalues[0] - eigenvalues
    x = theta * share[:, :1]
    for _ in range(200):
        inverse = 1 / (x + below)
        first, second = np.sum(share * inverse, 1, keepdims=True), np.sum(share * inverse**2, 1, keepdims=True)
        move = (theta * first - 1) * first / second
        x = x + move
        if np.all(np.abs(move) <= 1e-10 * x):
            break
    y = share / (x + below) ** 2
    return y / np.sum(y, 1, keepdims=True)


def rectangular_overlaps(s: np.ndarray, a: np.ndarray, b: np.ndarray, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return squared left and right overlaps (T, n) of S + θ a bᵀ, n ≤ m, with the singular vectors of S."""
    n = s.size
    free, a2, b2, ab = np.sum(b[:, n:] ** 2, 1), a**2, b[:, :n] ** 2, a * b[:, :n]

    def secular(x, rows=slice(None)):
        d = 1 / (x[:, None] ** 2 - s**2)
        return x * np.sum(a2[rows] * d, 1), x * np.sum(b2[rows] * d, 1) + free[rows] / x, (ab[rows] * d) @ s, d

    def residual(x):
        A, B, C, _ = secular(x)
        return 1 / (C + np.sqrt(A * B)) - theta

    # Right of s₁ the outlier is the root of an increasing concave function (docs/derivations.md, §3), which secants from
    # the left do not pass.
    before, x = (np.full(len(a), s[0] + small) for small in (1e-6, 2e-6))
    old, now = residual(before), residual(x)
    inside = now > 0
    for _ in range(100):
        rises = (now > old) & ~inside
        move = np.where(rises, -now * (x - before) / np.where(rises, now - old, 1.0), 0.0)
        before, x, old = x, x + move, now
        if np.all(np.abs(move) <= 1e-10 * (x - s[0])):
            break
        now = residual(x)
    if np.any(inside):  # between s₂ and s₁, or closer to s₁ than the secants begin
        low, high = np.full(inside.sum(), s[1]), np.full(inside.sum(), s[0] + 2e-6)
        for _ in range(50):
            middle = (low + high) / 2
            A, B, C, _ = secular(middle, inside)
            definite = (C - 1 / theta) ** 2 < A * B
            above = np.where(middle > s[0], definite & (A > 0), ~(definite & (A < 0)))
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        x[inside] = (low + high) / 2
    A, B, C, d = secular(x)
    C = C - 1 / theta
    first = np.abs(A) > np.abs(B)
    right_weight, left_weight = np.where(first, -C, B)[:, None], np.where(first, A, -C)[:, None]
    sigma = x[:, None]
    left = ((sigma * right_weight * a + s * left_weight * b[:, :n]) * d) ** 2
    right = ((sigma * left_weight * b[:, :n] + s * right_weight * a) * d) ** 2
    null = left_weight[:, 0] ** 2 * free / x**2
    return left / np.sum(left, 1, keepdims=True), right / (np.sum(right, 1) + null)[:, None]


def simulate(shape: Shape, spectra: int, seed: int, strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies of intruders and their standard errors, arrays (sides, ε, θ)."""
    rng = np.random.default_rng([seed, *shape])
    sides = len(shape)
    inside = np.empty((spectra, sides, TOLERANCES.size, strengths.size))
    for i in range(spectra):
        if sides == 1:
            spectrum, t = goe_spectrum(rng, *shape), unit(rng, DIRECTIONS, *shape)
        else:
            spectrum, t = singular_spectrum(rng, *shape), [unit(rng, DIRECTIONS, n) for n in shape]
        for k, theta in enumerate(strengths * bbp(shape)):
            y = [wigner_overlaps(spectrum, t, theta)] if sides == 1 else rectangular_overlaps(spectrum, *t, theta)
            largest = np.stack([v.max(1) for v in y])
            inside[i, :, :, k] = np.mean(largest[:, None] < TOLERANCES[:, None] ** 2, 2)
    return inside.mean(0), inside.std(0, ddof=1) / np.sqrt(spectra)
