r"""The α-fine-tuned classifier where coordinates fall into groups of equal variance: exact in law, whatever their number.

Within a group the noise is rotation invariant, so the few vectors that matter there span its first coordinates, and all others
enter through one Wishart matrix of the samples, :math:`Z^\top Z = TT^\top` with Bartlett's lower triangular T: normal numbers
below χ-distributed diagonal entries. The cost is that of some matrices of the order of the numbers of samples, n and N; it does
not depend on the dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rmtjax.ensembles.chi import chi
from rmtjax.laws.alpha_ftc import MarginMoments

__all__ = ["ridge_source", "target_scalars"]


def _bartlett(key: Key[Array, ""], n: int, dof: Float[Array, "g"]) -> Float[Array, "g n n"]:
    """Draw the triangular factors of n×n Wishart matrices; with fewer than n degrees of freedom, the last columns are 0."""
    normal_key, chi_key = jax.random.split(key)
    left = dof[:, None] - jnp.arange(n)
    below = jnp.tril(jax.random.normal(normal_key, (len(dof), n, n), jnp.float64), -1)
    diagonal = chi(chi_key, left.ravel()).reshape(len(dof), n)
    return jnp.where(left[:, None] > 0, below + diagonal[:, None] * jnp.eye(n), 0.0)


class _Sample(NamedTuple):
    r"""A data set, the labels multiplied into it.

    Attributes:
        leading: the first c coordinates of each group, shape (g, c, n).
        rest: T of the others, scaled by their standard deviation, shape (g, n, n).
        factor: the Cholesky factor of :math:`\frac1nX^\top X + \gamma`, (n, n).
    """

    leading: Float[Array, "g c n"]
    rest: Float[Array, "g n n"]
    factor: Float[Array, "n n"]

    def solve(self, rhs):
        return jax.scipy.linalg.cho_solve((self.factor, True), rhs)


def _sample(key, n, variances, counts, mean, gamma) -> _Sample:
    noise_key, rest_key = jax.random.split(key)
    g, c = mean.shape
    scale = jnp.sqrt(variances)
    leading = scale[:, None, None] * jax.random.normal(noise_key, (g, c, n), jnp.float64) + mean[:, :, None]
    rest = scale[:, None, None] * _bartlett(rest_key, n, counts - c)
    gram = jnp.einsum("gcn,gcm->nm", leading, leading) + jnp.einsum("gnk,gmk->nm", rest, rest)
    return _Sample(leading, rest, jnp.linalg.cholesky(gram / n + gamma * jnp.eye(n)))


def ridge_source(
    key: Key[Array, ""],
    N: int,
    variances: Float[Array, "g"],
    counts: Float[Array, "g"],
    mean: Float[Array, "g c"],
    gamma: Float[Array, ""],
) -> tuple[Float[Array, "g c"], Float[Array, "g"]]:
    r"""Draw the source's ridge classifier :math:`\tilde w` (α-LoRA, eq. 5).

    Args:
        key: a typed PRNG key.
        N: number of source samples.
        variances: of the noise in each group.
        counts: coordinates of each group, at least c.
        mean: the leading coordinates of μ in each group.
        gamma: the source's ridge parameter γ̃.

    Returns:
        The leading coordinates of :math:`\tilde w`, and the norm of all others in each group, which point anywhere.
    """
    drawn = _sample(key, N, variances, counts, mean, gamma)
    weights = drawn.solve(jnp.ones(N)) / N
    others = jnp.einsum("gnk,n->gk", drawn.rest, weights)
    return drawn.leading @ weights, jnp.linalg.norm(others, axis=1)


def target_scalars(
    key: Key[Array, ""],
    n: int,
    variances: Float[Array, "g"],
    counts: Float[Array, "g"],
    mean: Float[Array, "g c"],
    gamma: Float[Array, ""],
    sources: Float[Array, "K g c"],
) -> MarginMoments:
    r"""Draw the conditional scalars of :math:`w_\alpha`, where :math:`v_\alpha = w_\alpha^\top\Sigma w_\alpha`.

    Args:
        key: a typed PRNG key.
        n: number of target samples.
        variances: of the noise in each group.
        counts: coordinates of each group, at least c.
        mean: the leading coordinates of :math:`\mu_\beta` in each group.
        gamma: the target's ridge parameter γ.
        sources: the leading coordinates of K source classifiers, which have no others.

    Returns:
        The scalars with axes of length K.
    """
    drawn = _sample(key, n, variances, counts, mean, gamma)
    seen = jnp.einsum("gcn,kgc->nk", drawn.leading, sources)
    # w = Xk/n and γQw̃ = w̃ − X(XᵀX/n + γ)⁻¹Xᵀw̃/n: leading coordinates, and weights on the samples for all others.
    weights = drawn.solve(jnp.concatenate([jnp.ones((n, 1)), -seen], 1)) / n
    leading = jnp.einsum("gcn,nk->kgc", drawn.leading, weights).at[1:].add(sources)
    others = jnp.einsum("gnk,nj->jgk", drawn.rest, weights)
    margins = jnp.einsum("kgc,gc->k", leading, mean)
    spread = jnp.einsum("g,igc,jgc->ij", variances, leading, leading)
    spread += jnp.einsum("g,igk,jgk->ij", variances, others, others)
    return MarginMoments(margins[0], margins[1:], spread[0, 0], spread[0, 1:], spread[1:, 1:])
