r"""The classifier on classes of any covariance.

The target is :math:`x = y\mu_\beta + \Sigma^{1/2}z`, the source :math:`\tilde x = \tilde y\mu + \tilde\Sigma^{1/2}\tilde z`, with
independent entries of variance 1 in z. A fresh target point is classified correctly with probability
:math:`\Phi(m_\alpha/\sqrt{v_\alpha})`, where :math:`m_\alpha = w_\alpha^\top\mu_\beta` and
:math:`v_\alpha = w_\alpha^\top\Sigma w_\alpha`.

A covariance acts through its effective ridge :math:`\kappa = \gamma(1+\delta)`, the root of
:math:`\kappa = \gamma + \frac\kappa n\operatorname{tr}\Sigma C`, :math:`C = (\Sigma + \kappa)^{-1}`. Let
:math:`d = \frac1n\operatorname{tr}(\Sigma C)^2`, which is below 1, and :math:`c = \mu_\beta^\top C\mu_\beta`. The mean of the
classifier, its margin and its spread are (``docs/derivations.md``)

.. math::
    \bar w_\alpha = \frac{C\mu_\beta}{1+c}
        + \alpha\kappa\Big(C - \frac{C\mu_\beta\mu_\beta^\top C}{1+c}\Big)\operatorname E\tilde w, \qquad
    m_\alpha = \mu_\beta^\top\bar w_\alpha, \\
    v_\alpha = \frac{\bar w_\alpha^\top\Sigma\bar w_\alpha + d\,(1 - m_\alpha)^2
        + \alpha^2\kappa^2\operatorname{tr}(C\Sigma C\operatorname{Cov}\tilde w)}{1 - d} .

The moments of a source classifier that ridge regression has learnt are

.. math::
    \operatorname E\tilde w = \frac{\tilde C\mu}{1+\tilde c}, \qquad
    \operatorname{Cov}\tilde w = \frac{1 + \mu^\top\tilde C\tilde\Sigma\tilde C\mu}{N(1+\tilde c)^2(1-\tilde d)}\,
        \tilde C\tilde\Sigma\tilde C .

A ridge parameter has the unit of a covariance, the square of a feature's; α has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rmtjax._checks import numbers
from rmtjax._errors import InputError
from rmtjax._precision import as_array, double
from rmtjax.laws.alpha_ftc._populations import At, Population, populations
from rmtjax.laws.alpha_ftc.forms import RepeatedEigenvalues, SpikedCovariance
from rmtjax.laws.alpha_ftc.margins import MarginMoments
from rmtjax.linalg.roots import bisect

__all__ = ["covariance_scalars", "covariance_scalars_for_coef"]

Numbers = ArrayLike | Sequence
Covariance = Numbers | SpikedCovariance | RepeatedEigenvalues

_STEPS = 60
"""Largest number of Newton steps."""

_ERROR = 1e-12
"""Relative error of κ that ends the search."""

_TINY = 1e-300


class _Ridge(NamedTuple):
    """Ridge regression on two classes: their covariance and mean, the number of samples and the ridge parameter."""

    population: Population
    mean: Float[Array, "q"]
    n: Array
    gamma: Array


class _Fit(NamedTuple):
    r"""The classifier that ridge regression finds.

    Attributes:
        kappa: κ.
        at: the covariance at κ.
        d: :math:`\frac1n\operatorname{tr}(\Sigma C)^2`.
        c: :math:`\mu^\top C\mu`.
        mean: :math:`C\mu/(1+c)`, a column.
    """

    kappa: Array
    at: At
    d: Array
    c: Array
    mean: Float[Array, "q 1"]


@double()
def covariance_scalars(
    sigma: Covariance,
    mean: Numbers,
    n: Numbers,
    gamma: Numbers,
    source_sigma: Covariance | Sequence[Covariance],
    source_mean: Numbers,
    N: Numbers,
    source_gamma: Numbers,
) -> MarginMoments:
    r"""Return the five scalars for ridge sources, where target and source have covariances of their own.

    Covariances are given as matrices (p, p); as eigenvalues (p,) in a basis common to both, in which the means' coordinates are
    given too; as `RepeatedEigenvalues` or `SpikedCovariance`, at a cost that does not depend on p; or as one number, the
    variance of every coordinate. The limit is :math:`p, n, N \to \infty` at fixed ratios, with an
    error of O(1/p).

    Args:
        sigma: the target's covariance Σ.
        mean: the target's mean :math:`\mu_\beta`, (p,).
        n: number of target samples.
        gamma: the target's ridge parameter γ > 0.
        source_sigma: the source's covariance :math:`\tilde\Sigma`; for K sources, one for all, or a list of K
            arrays or forms.
        source_mean: the source's mean μ, (p,); for K independent sources, (K, p).
        N: number of source samples; for K sources, one for all or K.
        source_gamma: the source's ridge parameter :math:`\tilde\gamma > 0`; for K sources, one for all or K.

    Returns:
        The scalars for `accuracy`, `optimal_alpha` and the like: numbers for one source, with axes of length K for K.

    Raises:
        InputError: a covariance is not symmetric, has a negative eigenvalue or another size than the means; a basis is not
            orthonormal; a size or a ridge parameter is not positive.

    Source:
        Ours: Theorem 4.2 of α-LoRA without its assumption that the noise is isotropic; derived in ``docs/derivations.md``.

    Examples:
        >>> law = covariance_scalars([2.0, 1.0, 1.0], [1.0, 0.0, 0.0], 3, 1.0, 1.0, [0.0, 1.0, 0.0], 3, 1.0)
        >>> print(f"{law.m0:.4f} {law.v0:.4f}")
        0.2113 0.2508
    """
    source_means, several = _rows("source_mean", source_mean)
    K = len(source_means)
    sigmas = source_sigma if _is_several(source_sigma) else (source_sigma,) * K
    if len(sigmas) != K:
        raise InputError(
            f"source_sigma holds {len(sigmas)} covariances: must be one for all or {K}, one for each source_mean"
        )
    N, source_gamma = _of_each("N", N, K), _of_each("source_gamma", source_gamma, K)
    labels = [f"[{k}]" if several else "" for k in range(K)]
    forms, vectors = populations(
        [("sigma", sigma), *((f"source_sigma{label}", one) for label, one in zip(labels, sigmas, strict=True))],
        [("mean", mean), *((f"source_mean{label}", one) for label, one in zip(labels, source_means, strict=True))],
    )
    learnt = [_Ridge(*one) for one in zip(forms[1:], vectors[1:], N, source_gamma, strict=True)]
    return _scalars(_Ridge(forms[0], vectors[0], _positive("n", n), _positive("gamma", gamma)), learnt, [], several)


@double()
def covariance_scalars_for_coef(
    sigma: Covariance, mean: Numbers, n: Numbers, gamma: Numbers, source_coef: Numbers
) -> MarginMoments:
    r"""Return the five scalars for source classifiers that are given, whatever they have been learnt from.

    Args:
        sigma: the target's covariance Σ, in a form of `covariance_scalars`.
        mean: the target's mean :math:`\mu_\beta`, (p,).
        n: number of target samples.
        gamma: the target's ridge parameter γ > 0.
        source_coef: the source classifier :math:`\tilde w`, (p,), or K of them as rows, (K, p).

    Returns:
        The scalars, as `covariance_scalars` does.

    Raises:
        InputError: as `covariance_scalars`.

    Source:
        Ours: α-LoRA, Appendices C and D, without the assumption that the noise is isotropic.

    Examples:
        >>> law = covariance_scalars_for_coef([2.0, 1.0, 1.0], [1.0, 0.0, 0.0], 3, 1.0, [0.0, 1.0, 0.0])
        >>> print(f"{law.m1:.4f} {law.v2:.4f}")
        0.0000 0.4932
    """
    coefs, several = _rows("source_coef", source_coef)
    labels = [f"source_coef[{k}]" if several else "source_coef" for k in range(len(coefs))]
    (form,), vectors = populations([("sigma", sigma)], [("mean", mean), *zip(labels, coefs, strict=True)])
    target = _Ridge(form, vectors[0], _positive("n", n), _positive("gamma", gamma))
    return _scalars(target, [], vectors[1:], several)


@partial(jax.jit, static_argnames="several")
def _scalars(target: _Ridge, learnt: list[_Ridge], given: list[Array], several: bool) -> MarginMoments:
    """Return the scalars; of the sources either those to be learnt or those that are given are none."""
    fits = [_fit(source) for source in learnt]
    kappa, at, d, c, omega = _fit(target)
    inner = target.population.inner
    mu, means = (
        target.mean[:, None],
        jnp.concatenate([*(fit.mean for fit in fits), *(one[:, None] for one in given)], 1),
    )
    solved = at.solve(means)
    pulled = kappa * (solved - omega * inner(mu, solved))
    m0, m1 = c / (1 + c), inner(mu, pulled)[0]
    spread = at.multiply(omega)
    v0 = inner(omega, spread)[0, 0] + d / (1 + c) ** 2
    v1 = inner(pulled, spread)[:, 0] - d * m1 / (1 + c)
    v2 = inner(pulled, at.multiply(pulled)) + d * m1[:, None] * m1
    # What a learnt source scatters along the few directions of the means is O(1/p) of the whole, as is the law's error.
    scatter = []
    for source, fit in zip(learnt, fits, strict=True):
        along = inner(fit.mean, fit.at.multiply(fit.mean))[0, 0]
        size = (1 / (1 + fit.c) ** 2 + along) / ((1 - fit.d) * source.n)
        scatter.append(size * kappa**2 * target.population.overlap(at.spread, fit.at.spread))
    v2 += jnp.eye(len(scatter)) * jnp.stack(scatter) if scatter else 0
    law = MarginMoments(m0, m1, v0 / (1 - d), v1 / (1 - d), v2 / (1 - d))
    return law if several else law._replace(m1=m1[0], v1=law.v1[0], v2=law.v2[0, 0])


def _fit(ridge: _Ridge) -> _Fit:
    population, mean, n, gamma = ridge
    kappa = _effective_ridge(population, n, gamma)
    at = population.at(kappa)
    solved = at.solve(mean[:, None])
    c = population.inner(mean[:, None], solved)[0, 0]
    return _Fit(kappa, at, at.df2 / n, c, solved / (1 + c))


def _effective_ridge(population: Population, n: Array, gamma: Array) -> Array:
    """Return κ; a derivative is that of the equation at its root, not of the search."""

    def excess(kappa):
        return kappa - gamma - kappa * population.degrees(kappa)[0] / n

    eigenvalue, eta = population.mean_eigenvalue(), population.size() / n
    half = eigenvalue * (1 - eta) - gamma
    root = jnp.sqrt(half**2 + 4 * gamma * eigenvalue)
    is_positive = half > 0
    # All eigenvalues equal to their mean: the root is then an upper bound, since tr ΣC is concave in the eigenvalues.
    highest = jnp.where(
        is_positive, 2 * gamma * eigenvalue / jnp.where(is_positive, half + root, 1.0), (root - half) / 2
    )

    def search(_, start):
        def step(state):
            count, kappa, _ = state
            first, second = population.degrees(kappa)
            slope = 1 - second / n
            # The function is convex. Where it falls, the root is to the right; from `highest` Newton's method cannot miss it.
            proposed = jnp.minimum(kappa - (kappa - gamma - kappa * first / n) / slope, highest)
            following = jnp.where(slope > 0, proposed, highest)
            # Its error is about the square of the step, and larger where the slope is small.
            error = jnp.where(slope > 0, (1 - following / kappa) ** 2 / slope, jnp.inf)
            return count + 1, following, error

        state = (0, start, jnp.inf)
        return jax.lax.while_loop(lambda s: (s[0] < _STEPS) & (s[2] > _ERROR), step, state)[1]

    spread = jnp.maximum(population.mean_square_eigenvalue() / jnp.maximum(eigenvalue, _TINY) ** 2 - 1, 0.0)
    start = _as_marchenko_pastur(eigenvalue, spread, eta, gamma, highest)
    return jax.lax.custom_root(excess, start, search, lambda g, y: y / g(jnp.ones_like(y)))


def _as_marchenko_pastur(eigenvalue, spread, eta, gamma, highest) -> Array:
    """Return the κ that a Marchenko–Pastur spectrum has, with the same mean and the same spread of its eigenvalues."""

    def is_below(kappa):
        ratio = kappa / jnp.maximum(eigenvalue, _TINY)
        total = 1 - spread + ratio
        share = 1 - 2 * ratio / (total + jnp.sqrt(total**2 + 4 * spread * ratio))
        return kappa - gamma - kappa * eta * share < 0

    low, high = bisect(is_below, gamma, highest, 30)
    return (low + high) / 2


def _rows(name: str, value: Any) -> tuple[list[Any], bool]:
    """Return vectors, and whether they were given as the rows of a matrix."""
    array = jnp.asarray(as_array(name, value) if type(value) in (list, tuple) else value, float)
    if array.ndim not in (1, 2) or not len(array):
        raise InputError(f"{name} has shape {array.shape}: must be (p,), or (K, p) for K sources")
    return (list(array), True) if array.ndim == 2 else ([array], False)


def _is_several(sigma: Any) -> bool:
    """Return whether a value is a list of covariances, and not a list of numbers or of lists of them, which is one covariance."""
    forms = (SpikedCovariance, RepeatedEigenvalues)
    return type(sigma) in (list, tuple) and any(isinstance(one, forms) or getattr(one, "ndim", 0) for one in sigma)


def _positive(name: str, value: Any) -> Array:
    value = as_array(name, value) if type(value) in (list, tuple) else value
    if jnp.ndim(value):
        raise InputError(f"{name} has shape {jnp.shape(value)}: must be a number")
    numbers(name, value, 0, open_low=True)
    return jnp.asarray(value, float)


def _of_each(name: str, value: Any, K: int) -> Array:
    value = as_array(name, value) if type(value) in (list, tuple) else value
    numbers(name, value, 0, open_low=True)
    if jnp.shape(value) not in ((), (K,)):
        raise InputError(f"{name} has shape {jnp.shape(value)}: must be a number, or {K}, one for each source")
    return jnp.broadcast_to(jnp.asarray(value, float), (K,))
