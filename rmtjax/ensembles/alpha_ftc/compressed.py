r"""The α-fine-tuned classifier in compressed form: exact in law for Gaussian noise, at a cost independent of p.

Rotating the rows so that the first ones span the vectors that matter, and the columns so that the first one is
:math:`Xy/\sqrt n`, leaves a Gaussian matrix whose resolvent is needed only in a corner of 2 rows (source) or K + 2
rows (target): `rmtjax.ensembles.resolvent_corner` draws it. The first column comes back as a rank-one update.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rmtjax._precision import float64
from rmtjax.ensembles._counter import normal
from rmtjax.ensembles.chi import chi
from rmtjax.ensembles.resolvent_corner import depth, resolvent_corner
from rmtjax.laws.alpha_ftc import MarginMoments, SourceStatistics
from rmtjax.linalg import small
from rmtjax.linalg.small import quadratic

__all__ = ["TOLERANCE", "resolvent_forms", "ridge_source", "target_scalars", "training_margin"]

TOLERANCE = 1e-12
"""Default truncation error of the continued fraction, relative to the resolvent's largest possible value."""


@float64(keep=("key", "tolerance"))
def ridge_source(key: Key[Array, ""], p, N, gamma, mu, beta, mu_perp, tolerance: float = TOLERANCE) -> SourceStatistics:
    r"""Draw :math:`\|\tilde w\|^2` and :math:`\tilde w^\top\mu_\beta` of the source's ridge classifier (α-LoRA, eq. 5).

    Args:
        key: a typed PRNG key.
        p, N: dimension and number of source samples.
        gamma: the source's ridge parameter γ̃.
        mu, beta, mu_perp: :math:`\|\mu\|`, β and :math:`\|\mu^\perp\|` of :math:`\mu_\beta = \beta\mu + \mu^\perp`.
        tolerance: see `rmtjax.ensembles.resolvent_corner.depth`.
    """
    corner_key, normal_key, chi_key = jax.random.split(key, 3)
    along, direction = normal(normal_key, 2)
    off_mu, others = chi(chi_key, jnp.stack([p - 1, p - 2]))
    x = (jnp.sqrt(N) * mu + along, off_mu)
    h = resolvent_corner(corner_key, gamma, p, N - 1, N, 2, depth(gamma, p, N - 1, N, 2, tolerance))
    shrink = jnp.sqrt(N) * (1 + quadratic(h.resolvent, x, x) / N)
    on_mu = sum(a * b for a, b in zip(h.resolvent[0], x, strict=True)) / shrink
    norm2 = quadratic(h.square, x, x) / shrink**2
    # The part of w̃ orthogonal to μ points uniformly over the sphere, so its cosine with μ⊥ is g/√(g² + χ²_{p−2}).
    off = jnp.sqrt(jnp.maximum(norm2 - on_mu**2, 0.0))
    length = jnp.sqrt(direction**2 + others**2)
    return SourceStatistics(norm2, beta * mu * on_mu + mu_perp * off * direction / length)


@float64(keep=("key", "tolerance"))
def target_scalars(
    key: Key[Array, ""], p, n, gamma, mean_norm, source: SourceStatistics, tolerance: float = TOLERANCE
) -> MarginMoments:
    r"""Draw the five conditional scalars of :math:`w_\alpha` given any sources.

    Conditionally on the training data a fresh point is classified correctly with probability
    :math:`\Phi(m_\alpha/\sqrt{v_\alpha})`, :math:`m_\alpha = w_\alpha^\top\mu_\beta`, :math:`v_\alpha = \|w_\alpha\|^2`; the
    scalars are the coefficients of both in α.

    Args:
        key: a typed PRNG key.
        p, n: dimension and number of target samples.
        gamma: the target's ridge parameter γ.
        mean_norm: :math:`\|\mu_\beta\|` > 0.
        source: Gram matrix and alignment of one source (scalars) or of K (``(K, K)`` and ``(K,)``).
        tolerance: see `rmtjax.ensembles.resolvent_corner.depth`.
    """
    several = jnp.ndim(source.alignment) == 1
    b = jnp.atleast_1d(source.alignment)
    gram = jnp.reshape(source.gram, (b.size, b.size))
    count = b.size
    r = count + 2

    corner_key, normal_key, chi_key = jax.random.split(key, 3)
    entries = normal(normal_key, r - 1)
    remainder = chi(chi_key, (p - r + 1)[None])[0]
    zero = jnp.zeros_like(remainder)
    # Rows: μ̂_β, the sources' residuals orthogonalised one after another, and the rest of the first column.
    exists = [p > i for i in range(r - 1)]
    x = (
        jnp.sqrt(n) * mean_norm + entries[0],
        *(jnp.where(exists[i], entries[i], 0.0) for i in range(1, r - 1)),
        remainder,
    )
    mean = (mean_norm, *(zero for _ in range(r - 1)))
    on_mean = b / mean_norm
    residual = small.cholesky(small.from_array(gram - jnp.outer(on_mean, on_mean)))
    ws = [(on_mean[k], *(residual[k][j] if j <= k else zero for j in range(count)), zero) for k in range(count)]

    h = resolvent_corner(corner_key, gamma, p, n - 1, n, r, depth(gamma, p, n - 1, n, r, tolerance))
    H, H2 = h.resolvent, h.square
    root = jnp.sqrt(n)
    shrink = 1 + quadratic(H, x, x) / n
    m0 = quadratic(H, mean, x) / (root * shrink)
    v0 = quadratic(H2, x, x) / (n * shrink**2)
    coupling = [quadratic(H, x, w) / (root * shrink) for w in ws]
    # γQw̃ = γ(R₀w̃ − c R₀x/√n), with R₀ the resolvent without the first column.
    m1 = [gamma * (quadratic(H, mean, w) - c * quadratic(H, mean, x) / root) for w, c in zip(ws, coupling, strict=True)]
    xx, xw = quadratic(H2, x, x) / n, [quadratic(H2, x, w) / root for w in ws]
    v1 = [gamma / shrink * (xw[k] - coupling[k] * xx) for k in range(count)]
    v2 = [
        [
            gamma**2
            * (quadratic(H2, ws[j], ws[k]) - coupling[j] * xw[k] - coupling[k] * xw[j] + coupling[j] * coupling[k] * xx)
            for k in range(count)
        ]
        for j in range(count)
    ]
    if several:
        return MarginMoments(m0, jnp.stack(m1), v0, jnp.stack(v1), jnp.stack([jnp.stack(row) for row in v2]))
    return MarginMoments(m0, m1[0], v0, v1[0], v2[0][0])


@float64(keep=("key", "tolerance"))
def training_margin(key: Key[Array, ""], p, n, gamma, mean_norm, tolerance: float = TOLERANCE) -> Float[Array, ""]:
    r"""Draw the mean training margin :math:`\frac1n\sum_i y_iw^\top x_i` of the target's ridge classifier."""
    corner_key, normal_key, chi_key = jax.random.split(key, 3)
    x = (jnp.sqrt(n) * mean_norm + normal(normal_key, 1)[0], chi(chi_key, (p - 1)[None])[0])
    h = resolvent_corner(corner_key, gamma, p, n - 1, n, 2, depth(gamma, p, n - 1, n, 2, tolerance))
    q = quadratic(h.resolvent, x, x) / n
    return q / (1 + q)


@float64(keep=("key", "tolerance"))
def resolvent_forms(key: Key[Array, ""], p, n, gamma, mean_norm, tolerance: float = TOLERANCE) -> dict[str, Array]:
    r"""Draw :math:`a^\top Qa` for the unit vector `a` along :math:`\mu_\beta` and for one orthogonal to it (p ≥ 2)."""
    corner_key, normal_key, chi_key = jax.random.split(key, 3)
    entries = normal(normal_key, 2)
    zero = jnp.zeros_like(gamma)
    x = (jnp.sqrt(n) * mean_norm + entries[0], entries[1], chi(chi_key, (p - 2)[None])[0])
    h = resolvent_corner(corner_key, gamma, p, n - 1, n, 3, depth(gamma, p, n - 1, n, 3, tolerance)).resolvent
    shrink = n + quadratic(h, x, x)

    def form(a):
        return quadratic(h, a, a) - quadratic(h, a, x) ** 2 / shrink

    return {"along": form((zero + 1, zero, zero)), "across": form((zero, zero + 1, zero))}
