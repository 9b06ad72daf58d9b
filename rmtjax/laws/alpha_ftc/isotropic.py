r"""The classifier on a mixture of two isotropic Gaussians: the five scalars, and α* of the limit, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax._precision import float64
from rmtjax.laws.alpha_ftc.margins import MarginMoments, inner

__all__ = [
    "SourceStatistics",
    "delta",
    "optimal_mixture",
    "orthogonal_source",
    "resolvent_equivalent",
    "resolvent_forms",
    "ridge_source",
    "scalars",
    "tau",
    "training_margin",
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
    rank_one = jnp.outer(mean, mean) / ((1 + d) * t + inner(mean, mean))
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
        projection = inner(b, direction)
        return (eta * c.tau / gamma / (c.D * s - (s + c.tau) * projection))[..., None] * direction
    return eta * c.tau * b / (gamma * (c.D * s * gram - (s + c.tau) * b**2))
