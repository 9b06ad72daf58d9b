r"""The α-fine-tuned classifier on fully drawn matrices: the ground truth, for any law of the entries.

Every law offered is symmetric, so a label only flips the sign of a column and :math:`X\,\mathrm{diag}(y)` is drawn
instead of X. One factorisation a side gives every α.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rmtjax.ensembles.entries import entries as draw_entries
from rmtjax.laws.alpha_ftc import MarginMoments, SourceStatistics
from rmtjax.linalg.ridge import ridge_solve

__all__ = ["Classifiers", "conditional_scalars", "fit_source", "fit_target", "means", "source_moments"]


class Classifiers(NamedTuple):
    r"""The two parts of :math:`w_\alpha = w + \alpha\cdot u`.

    Attributes:
        w: the classifier learnt on the target alone, shape (p,).
        u: :math:`\gamma Q\tilde w` of each source, shape (p, K).
    """

    w: Float[Array, "p"]
    u: Float[Array, "p K"]


def means(p: int, mu, beta, mu_perp, dtype=jnp.float64) -> tuple[Float[Array, "p"], Float[Array, "p"]]:
    r"""Return :math:`\mu` and :math:`\mu_\beta = \beta\mu + \mu^\perp` with :math:`\mu \perp \mu^\perp`.

    Any two orthogonal directions suffice for Gaussian noise. These are spread over all coordinates, because the universality
    to be tested with other entries assumes delocalised means: 1/√p, and ±1/√p on the two halves.
    """
    one = jnp.full(p, p**-0.5, dtype)
    two = one * jnp.where(jnp.arange(p) < (p // 2), 1.0, -1.0).astype(dtype)
    two = two - one * (one @ two)
    two = two / jnp.maximum(jnp.linalg.norm(two), 1e-300) if p > 1 else jnp.zeros(p, dtype)
    return (mu * one).astype(dtype), (beta * mu * one + mu_perp * two).astype(dtype)


def fit_source(key: Key[Array, ""], N: int, mean: Float[Array, "p"], gamma, law: str) -> Float[Array, "p"]:
    r"""Draw a source data set and train its ridge classifier :math:`\tilde w` (α-LoRA, eq. 5)."""
    x = draw_entries(key, (mean.size, N), law, mean.dtype) + mean[:, None]
    return ridge_solve(x, gamma.astype(mean.dtype), x.sum(1, keepdims=True) / N)[:, 0]


def fit_target(
    key: Key[Array, ""], n: int, mean: Float[Array, "p"], gamma, sources: Float[Array, "p K"], law: str
) -> Classifiers:
    r"""Draw a target data set and train on it (α-LoRA, eq. α-FTC), for all α at once."""
    gamma = gamma.astype(mean.dtype)
    x = draw_entries(key, (mean.size, n), law, mean.dtype) + mean[:, None]
    rhs = jnp.concatenate([x.sum(1, keepdims=True) / n, gamma * sources], 1)
    solution = ridge_solve(x, gamma, rhs)
    return Classifiers(solution[:, 0], solution[:, 1:])


def conditional_scalars(fitted: Classifiers, mean: Float[Array, "p"], *, several: bool = False) -> MarginMoments:
    r"""Return the scalars of the conditional mean and variance of the decision function, in float64.

    Exact for Gaussian noise, where :math:`w_\alpha^\top x` is Gaussian given the training data.
    """
    w, u, mean = (a.astype(jnp.float64) for a in (*fitted, mean))
    law = MarginMoments(w @ mean, u.T @ mean, w @ w, u.T @ w, u.T @ u)
    return law if several else MarginMoments(law.m0, law.m1[0], law.v0, law.v1[0], law.v2[0, 0])


def source_moments(source: Float[Array, "p"], mean: Float[Array, "p"]) -> SourceStatistics:
    r"""Return :math:`\|\tilde w\|^2` and :math:`\tilde w^\top\mu_\beta` of a given classifier."""
    return SourceStatistics(source @ source, source @ mean)


def accuracy_on_points(
    key: Key[Array, ""], fitted: Classifiers, mean: Float[Array, "p"], alpha: Float[Array, "A"], size: int, law: str
) -> Float[Array, "A"]:
    """Return the accuracy on a fresh test set of `size` points, for one source and every α."""
    x = draw_entries(key, (mean.size, size), law, mean.dtype) + mean[:, None]
    margin = (fitted.w @ x)[None] + alpha[:, None].astype(mean.dtype) * (fitted.u[:, 0] @ x)[None]
    return jnp.mean(margin > 0, 1, dtype=jnp.float64)
