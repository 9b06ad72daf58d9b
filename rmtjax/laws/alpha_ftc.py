r"""The α-fine-tuned classifier on a Gaussian mixture: every limit in closed form.

Source: *α-LoRA: Effective Fine-Tuning via Base Model Rescaling*, §3–4 and Appendices A–D, whose notation is kept:

.. math::
    \tilde X = \mu\tilde y^\top + \tilde Z \;(p\times N), \qquad
    X = \mu_\beta y^\top + Z \;(p\times n), \qquad \mu_\beta = \beta\mu + \mu^\perp, \\
    w_\alpha = w + \alpha\gamma Q\tilde w, \quad w = \tfrac1n QXy, \quad
    Q = (\tfrac1n XX^\top + \gamma)^{-1}, \quad
    \tilde w = \tfrac1N (\tfrac1N\tilde X\tilde X^\top + \tilde\gamma)^{-1}\tilde X\tilde y .

As :math:`p, n, N \to \infty` with :math:`\eta = p/n`, :math:`\tilde\eta = p/N` fixed, a fresh target point is classified
correctly with probability :math:`\Phi(m_\alpha/\sqrt{v_\alpha})`, :math:`m_\alpha = m_0 + \alpha m_1`,
:math:`v_\alpha = v_0 + 2\alpha v_1 + \alpha^2 v_2`. All five scalars follow from :math:`\delta(\gamma)` alone, because
:math:`Q^2 = -\mathrm dQ/\mathrm d\gamma` turns every second-order statistic into a γ-derivative.

Every function works elementwise on arrays that broadcast, runs in float64 and is differentiable in every argument.
Norms are Euclidean and noise has unit variance, so nothing carries a unit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from rmtjax._precision import float64

__all__ = [
    "MarginMoments",
    "SourceStatistics",
    "accuracy",
    "best_accuracy",
    "delta",
    "optimal_alpha",
    "optimal_mixture",
    "orthogonal_source",
    "resolvent_equivalent",
    "resolvent_forms",
    "ridge_source",
    "scalars",
    "tau",
    "training_margin",
    "worst_alpha",
]


class SourceStatistics(NamedTuple):
    r"""Statistics of the source classifiers that the target side needs.

    For one classifier :math:`\tilde w` both fields are elementwise arrays. For K classifiers, the columns of
    :math:`\tilde W` (p×K), they end in K axes.

    Attributes:
        gram: :math:`\|\tilde w\|^2`, shape ``(...)``; or :math:`\tilde W^\top\tilde W`, shape ``(..., K, K)``.
        alignment: :math:`b = \tilde w^\top\mu_\beta`, shape ``(...)``; or :math:`\tilde W^\top\mu_\beta`, ``(..., K)``.
    """

    gram: Float[Array, "..."]
    alignment: Float[Array, "..."]


class MarginMoments(NamedTuple):
    r"""Mean and variance of the decision function as polynomials in α.

    :math:`m_\alpha = m_0 + \alpha\cdot m_1` and :math:`v_\alpha = v_0 + 2\alpha\cdot v_1 + \alpha^\top V_2\,\alpha`. With
    K sources `m1` and `v1` end in an axis of length K and `v2` in two.
    """

    m0: Float[Array, "..."]
    m1: Float[Array, "..."]
    v0: Float[Array, "..."]
    v1: Float[Array, "..."]
    v2: Float[Array, "..."]


@float64
def delta(gamma: Float[Array, "..."], eta: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Return δ, the positive root of :math:`\gamma\delta^2 + (1 + \gamma - \eta)\delta - \eta = 0`.

    It is the limit of :math:`\frac1n\operatorname{tr}Q`. Source: α-LoRA, Lemma 3.5.

    Args:
        gamma: ridge parameter γ > 0.
        eta: aspect ratio η = p/n > 0.

    Examples:
        >>> float(delta(1.0, 2.0))
        1.4142135623730951
    """
    half = 1 + gamma - eta
    root = jnp.sqrt(half**2 + 4 * gamma * eta)
    # The textbook root cancels where half > 0; its conjugate cancels where half < 0.
    below = half > 0
    return jnp.where(below, 2 * eta / jnp.where(below, half + root, 1.0), (root - half) / (2 * gamma))


@float64
def tau(gamma: Float[Array, "..."], eta: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Return τ = γ + 1/(1+δ): the inverse of Q̄ in every direction orthogonal to :math:`\mu_\beta`."""
    return gamma + 1 / (1 + delta(gamma, eta))


@float64
def resolvent_equivalent(
    gamma: Float[Array, ""], eta: Float[Array, ""], mean: Float[Array, "p"]
) -> Float[Array, "p p"]:
    r"""Return the deterministic equivalent of Q.

    .. math::
        \bar Q = \Big(\frac{I + \mu_\beta\mu_\beta^\top}{1+\delta} + \gamma I\Big)^{-1}

    Source: α-LoRA, Lemma 3.5.

    Args:
        gamma: ridge parameter γ > 0.
        eta: aspect ratio η = p/n > 0.
        mean: the class mean :math:`\mu_\beta`, shape (p,).
    """
    d, t = delta(gamma, eta), tau(gamma, eta)
    rank_one = jnp.outer(mean, mean) / ((1 + d) * t + mean @ mean)
    return (jnp.eye(mean.size) - rank_one) / t


@float64
def training_margin(
    gamma: Float[Array, "..."], eta: Float[Array, "..."], mean_norm: Float[Array, "..."]
) -> Float[Array, "..."]:
    r"""Return the mean margin :math:`y_iw^\top x_i` on a training point, :math:`t(\gamma) = (m_0 + \delta)/(1 + \delta)`.

    Its γ-derivative is :math:`-\|w\|^2 = -v_0`.

    Args:
        gamma: ridge parameter γ > 0.
        eta: aspect ratio p/n > 0.
        mean_norm: :math:`\|\mu_\beta\|`.
    """
    d = delta(gamma, eta)
    s = mean_norm**2
    return (s / (1 + gamma * (1 + d) + s) + d) / (1 + d)


@float64
def resolvent_forms(
    gamma: Float[Array, "..."], eta: Float[Array, "..."], mean_norm: Float[Array, "..."]
) -> dict[str, Float[Array, "..."]]:
    r"""Return :math:`a^\top\bar Qa` of unit vectors along :math:`\mu_\beta`, :math:`(1+\delta)/D`, and across, :math:`1/\tau`."""
    d = delta(gamma, eta)
    s = mean_norm**2
    return {"along": (1 + d) / (1 + gamma * (1 + d) + s), "across": (1 + d) / (1 + gamma * (1 + d)) + 0 * s}


class _Common(NamedTuple):
    """Shared terms of the scalars, each a sum or product of positive terms."""

    delta: Float[Array, "..."]
    g: Float[Array, "..."]
    D: Float[Array, "..."]
    tau: Float[Array, "..."]
    S: Float[Array, "..."]


def _common(gamma, eta, s) -> _Common:
    d = delta(gamma, eta)
    g = gamma * (1 + d)
    return _Common(d, g, 1 + g + s, gamma + 1 / (1 + d), jnp.sqrt((1 + gamma - eta) ** 2 + 4 * gamma * eta))


def _variance(c: _Common, eta, s):
    return (s * c.tau / c.D + eta) / (c.D * c.S)


@float64
def ridge_source(
    gamma: Float[Array, "..."], eta: Float[Array, "..."], mu: Float[Array, "..."], beta: Float[Array, "..."]
) -> SourceStatistics:
    r"""Return the ridge classifier trained on the source.

    :math:`\|\tilde w\|^2 = -\tilde t'(\tilde\gamma)` and :math:`b = \beta\|\mu\|^2/\tilde D`.

    Source: α-LoRA, eq. (5) and Appendix B.

    Args:
        gamma: the source's ridge parameter γ̃ > 0.
        eta: the source's aspect ratio η̃ = p/N > 0.
        mu: :math:`\|\mu\|`.
        beta: alignment β of the target mean with the source mean.
    """
    gamma, eta, mu, beta = jnp.broadcast_arrays(gamma, eta, mu, beta)
    c = _common(gamma, eta, mu**2)
    return SourceStatistics(_variance(c, eta, mu**2), beta * mu**2 / c.D)


@float64
def orthogonal_source(norm: Float[Array, "..."]) -> SourceStatistics:
    r"""Return the uninformative source: a classifier of the given norm with :math:`\tilde w^\top\mu_\beta = 0`."""
    return SourceStatistics(norm**2, jnp.zeros_like(norm))


@float64
def scalars(
    gamma: Float[Array, "..."], eta: Float[Array, "..."], mean_norm: Float[Array, "..."], source: SourceStatistics
) -> MarginMoments:
    r"""Return the five scalars of Theorem 4.2 for any source: ridge, arbitrary (Appendix C), or K at once (Appendix D).

    With :math:`s = \|\mu_\beta\|^2`, :math:`g = \gamma(1+\delta)`, :math:`D = 1 + g + s` and
    :math:`S^2 = (1+\gamma-\eta)^2 + 4\gamma\eta`, the γ-derivatives work out (``docs/derivations.md``) to

    .. math::
        m_0 = \frac sD, \quad m_1 = \frac{gb}D, \quad v_0 = \frac{s\tau/D + \eta}{DS}, \quad
        v_1 = \frac{\gamma(1+g)}{D^2S}\,b, \quad
        v_2 = \frac{\gamma^2(1+g)}{\tau^2S}\Big[G - \frac{D+\tau}{D^2}bb^\top\Big].

    Args:
        gamma: target ridge parameter γ > 0.
        eta: target aspect ratio η = p/n > 0.
        mean_norm: :math:`\|\mu_\beta\|` > 0.
        source: Gram matrix and alignment of the source classifiers. Several sources are distinguished from one by
            ``source.gram`` having one axis more than ``source.alignment``.
    """
    gram, b = source
    several = gram.ndim == b.ndim + 1
    gamma, eta, mean_norm = jnp.broadcast_arrays(gamma, eta, mean_norm)
    if not several:
        gamma, eta, mean_norm, gram, b = jnp.broadcast_arrays(gamma, eta, mean_norm, gram, b)
    s = mean_norm**2
    c = _common(gamma, eta, s)
    if several:
        vector, matrix = (lambda x: x[..., None]), (lambda x: x[..., None, None])
        outer = b[..., :, None] * b[..., None, :]
    else:
        vector = matrix = lambda x: x
        outer = b**2
    v1 = gamma * (1 + c.g) / (c.D**2 * c.S)
    v2 = matrix(gamma**2 * (1 + c.g) / (c.tau**2 * c.S)) * (gram - matrix((c.D + c.tau) / c.D**2) * outer)
    return MarginMoments(s / c.D, vector(c.g / c.D) * b, _variance(c, eta, s), vector(v1) * b, v2)


def _several(law: MarginMoments) -> bool:
    return jnp.ndim(law.v2) == jnp.ndim(law.m1) + 1


@float64
def accuracy(law: MarginMoments, alpha: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Return the test accuracy :math:`\Phi(m_\alpha/\sqrt{v_\alpha})`. Source: α-LoRA, Proposition 4.3.

    Args:
        law: the five scalars.
        alpha: α, broadcast against them; with K sources it ends in an axis of length K.
    """
    if _several(law):
        m = law.m0 + jnp.einsum("...k,...k", law.m1, alpha)
        v = law.v0 + 2 * jnp.einsum("...k,...k", law.v1, alpha) + jnp.einsum("...j,...jk,...k", alpha, law.v2, alpha)
    else:
        m = law.m0 + alpha * law.m1
        v = law.v0 + 2 * alpha * law.v1 + alpha**2 * law.v2
    return ndtr(m / jnp.sqrt(v))


@float64
def optimal_alpha(law: MarginMoments) -> Float[Array, "..."]:
    r"""Return the α of highest accuracy, :math:`\alpha^\star = (m_1v_0 - m_0v_1)/(m_0v_2 - m_1v_1)`.

    With K sources the vector :math:`a_{1\dots K}/a_0`, :math:`a = M^{-1}m`. Both are maxima, never minima, because
    :math:`m_0v_2 - m_1v_1 > 0` for every admissible setting (proved in ``docs/derivations.md``), where the limit is
    found in closed form too, see `optimal_mixture`. Source: α-LoRA, Theorem 4.4 and Appendix D.3.
    """
    m0, m1, v0, v1, v2 = law
    if not _several(law):
        return (m1 * v0 - m0 * v1) / (m0 * v2 - m1 * v1)
    # Eliminating the first row keeps the system symmetric positive definite: V₂ − v₁v₁ᵀ/v₀ is a Schur complement.
    inner = jnp.linalg.solve(v2, jnp.stack([m1, v1], -1))
    a0 = m0 - jnp.einsum("...k,...k", v1, inner[..., 0])
    schur = v0 - jnp.einsum("...k,...k", v1, inner[..., 1])
    a0 = a0 / schur
    return (inner[..., 0] - a0[..., None] * inner[..., 1]) / a0[..., None]


@float64
def optimal_mixture(
    gamma: Float[Array, "..."], eta: Float[Array, "..."], mean_norm: Float[Array, "..."], source: SourceStatistics
) -> Float[Array, "..."]:
    r"""Return α* of the limit in closed form, without computing the scalars first.

    .. math::
        \alpha^\star = \frac{\eta\tau\,b}{\gamma\,[DsG - (s+\tau)b^2]}, \qquad
        \alpha^\star = \frac{\eta\tau}{\gamma}\,\frac{G^{-1}b}{Ds - (s+\tau)\,b^\top G^{-1}b} \in \mathbb R^K .

    The denominator is positive. At fixed :math:`s` and :math:`G` it increases with b: the paper's monotonicity, at fixed
    :math:`\|\mu_\beta\|`. Ours; derived in ``docs/derivations.md``.

    Args:
        gamma, eta, mean_norm, source: as in `scalars`.
    """
    gram, b = source
    s = mean_norm**2
    c = _common(gamma, eta, s)
    if gram.ndim == b.ndim + 1:
        direction = jnp.linalg.solve(gram, b[..., None])[..., 0]
        projection = jnp.einsum("...k,...k", b, direction)
        return (eta * c.tau / gamma / (c.D * s - (s + c.tau) * projection))[..., None] * direction
    return eta * c.tau * b / (gamma * (c.D * s * gram - (s + c.tau) * b**2))


@float64
def worst_alpha(law: MarginMoments) -> Float[Array, "..."]:
    r"""Return the α of accuracy ½, :math:`\bar\alpha = -m_0/m_1`; ±∞ for an uninformative source, for which there is none.

    Source: α-LoRA, Appendix B.3. Defined for one source; with K sources the worst α is a hyperplane.
    """
    return -law.m0 / law.m1


@float64
def best_accuracy(law: MarginMoments) -> Float[Array, "..."]:
    r"""Return the accuracy at :math:`\alpha^\star`, :math:`\Phi(\sqrt{m^\top M^{-1}m})`."""
    return accuracy(law, optimal_alpha(law))
