r"""Mean, spread and accuracy of the decision function as functions of α, whatever the law of its five scalars."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from rmtjax._precision import float64

__all__ = ["MarginMoments", "accuracy", "best_accuracy", "optimal_alpha", "worst_alpha"]


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


def inner(x: Float[Array, "... k"], y: Float[Array, "... k"]) -> Float[Array, "..."]:
    """Return sums of products over the last axis, with derivatives in float64 where they are taken outside of it, too."""
    if x.ndim == 1 or y.ndim == 1:
        batch = ()
    else:
        x, y = jnp.broadcast_arrays(x, y)
        batch = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, (((x.ndim - 1,), (y.ndim - 1,)), (batch, batch)))


def _quadratic(matrix: Float[Array, "... k k"], x: Float[Array, "... k"]) -> Float[Array, "..."]:
    """Return the quadratic forms of vectors, of one matrix or of as many."""
    if matrix.ndim == 2:
        product = jnp.moveaxis(jax.lax.dot_general(matrix, x, (((0,), (x.ndim - 1,)), ((), ()))), 0, -1)
    else:
        product = inner(matrix.mT, x[..., None, :])
    return inner(x, product)


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
        m = law.m0 + inner(law.m1, alpha)
        v = law.v0 + 2 * inner(law.v1, alpha) + _quadratic(law.v2, alpha)
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
    solved = jnp.linalg.solve(v2, jnp.stack([m1, v1], -1))
    a0 = m0 - inner(v1, solved[..., 0])
    schur = v0 - inner(v1, solved[..., 1])
    a0 = a0 / schur
    return (solved[..., 0] - a0[..., None] * solved[..., 1]) / a0[..., None]


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
