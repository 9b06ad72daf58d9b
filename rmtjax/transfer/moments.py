r"""The moments of real data that the α-FTC laws need, estimated from samples.

The model is :math:`x_i = y_i\mu + z_i` with noise :math:`z_i` of mean 0 and covariance Σ; the laws take
:math:`\Sigma = \sigma^2I`. The obvious estimate :math:`\|\frac1n\sum_iy_ix_i\|^2` of :math:`\|\mu\|^2` is too large by
:math:`\operatorname{tr}\Sigma/n`, which at p ≫ n is most of it. Here products are taken between different samples only,
so every estimate of a square is unbiased, whatever Σ is, at the price that it can be negative.

Samples are rows, labels are ±1, and all lengths are in the units of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from rmtjax._checks import finite, floats
from rmtjax._errors import InputError, shown
from rmtjax.laws import alpha_ftc
from rmtjax.laws.alpha_ftc import MarginMoments, SourceStatistics

__all__ = [
    "TargetMoments",
    "alignment",
    "beta",
    "law_accuracy",
    "law_alpha",
    "law_scalars",
    "mean_norm",
    "mean_norm2",
    "mean_norm2_error",
    "mean_product",
    "noise_variance",
    "shrunk_mean_norm2",
    "target_moments",
]

_TINY = 1e-9
"""The smallest noise variance and the smallest ridge on the source Gram matrix, as a share of the data's own scale."""


class TargetMoments(NamedTuple):
    r"""Statistics of a target sample and its K source classifiers; leading batch axes are allowed in every field.

    Attributes:
        eta: aspect ratio p/n.
        noise: σ², noise variance per feature.
        mean_norm2: :math:`\|\mu_\beta\|^2` for the law: the unbiased estimate, shrunk (`shrunk_mean_norm2`).
        mean_norm2_unbiased: the estimate before shrinkage.
        mean_norm2_error: its standard error.
        mean_norm2_floor: :math:`b^\top G^{+}b`, a lower bound of :math:`\|\mu_\beta\|^2` from the sources alone.
        alignment: :math:`b = \tilde W\mu_\beta`, shape (K,); the source classifiers are the rows of :math:`\tilde W`.
        gram: :math:`G = \tilde W\tilde W^\top`, shape (K, K).
    """

    eta: Float[Array, "..."]
    noise: Float[Array, "..."]
    mean_norm2: Float[Array, "..."]
    mean_norm2_unbiased: Float[Array, "..."]
    mean_norm2_error: Float[Array, "..."]
    mean_norm2_floor: Float[Array, "..."]
    alignment: Float[Array, "... K"]
    gram: Float[Array, "... K K"]


def mean_norm2(X: Float[Array, "n p"], y: Float[Array, "n"]) -> float:
    r"""Return the squared norm of the mean, unbiased.

    .. math::
        \widehat{\|\mu\|^2} = \frac1{n(n-1)}\sum_{i\ne j}y_iy_jx_i^\top x_j = \frac{\|X^\top y\|^2-\sum_i\|x_i\|^2}{n(n-1)}

    Its standard error is `mean_norm2_error`. It may be negative if noise dominates the mean.

    Args:
        X: samples, finite, n ≥ 2.
        y: labels, ±1.

    Raises:
        InputError: shapes disagree, n < 2, or an entry is not finite or not ±1.
    """
    X, y = checked_sample(X, y)
    return _mean_norm2(X, y)


def mean_norm(X: Float[Array, "n p"], y: Float[Array, "n"]) -> float:
    r"""Return :math:`\|\mu\|`, the root of `mean_norm2`, 0 where that is negative. Consistent, though a root is never unbiased.

    Args:
        X: samples, finite, n ≥ 2.
        y: labels, ±1.

    Raises:
        InputError: as `mean_norm2`.
    """
    return max(mean_norm2(X, y), 0.0) ** 0.5


def mean_norm2_error(X: Float[Array, "n p"], y: Float[Array, "n"]) -> float:
    r"""Return the standard error of `mean_norm2`.

    .. math::
        \epsilon^2 = \frac{4\sigma^2\|\mu\|^2}n + \frac{2\operatorname{tr}S^2}{n^2}, \qquad S = \Sigma + \mu\mu^\top, \qquad
        \operatorname{tr}S^2 \simeq \frac1{n(n-1)}\sum_{i\ne j}(x_i^\top x_j)^2

    The trace too is taken over different samples only, so it holds for words, whose noise is far from isotropic. σ² and
    :math:`\|\mu\|^2 \ge 0` are estimated.

    Args:
        X: samples, finite, n ≥ 2.
        y: labels, ±1.

    Raises:
        InputError: as `mean_norm2`.
    """
    X, y = checked_sample(X, y)
    s = max(_mean_norm2(X, y), 0.0)
    return _error(X, s, _noise(X, s), small_gram(X))


def noise_variance(X: Float[Array, "n p"], y: Float[Array, "n"]) -> float:
    r"""Return the noise variance per feature, :math:`\sigma^2 = \operatorname{tr}\Sigma/p`, unbiased.

    .. math::
        \widehat{\sigma^2} = \frac1p\Big(\frac1n\sum_i\|x_i\|^2 - \widehat{\|\mu\|^2}\Big)

    Args:
        X: samples, finite, n ≥ 2.
        y: labels, ±1.

    Raises:
        InputError: as `mean_norm2`.
    """
    X, y = checked_sample(X, y)
    return ((X**2).sum() / len(y) - _mean_norm2(X, y)) / X.shape[1]


def alignment(X: Float[Array, "n p"], y: Float[Array, "n"], W: Float[Array, "K p"]) -> Float[Array, "K"]:
    r"""Return the mean margins of source classifiers, :math:`b_k = \tilde w_k^\top\mu_\beta`; unbiased if they have not seen X.

    .. math::
        \hat b_k = \frac1n\sum_iy_i\tilde w_k^\top x_i

    Args:
        X: target samples, finite, n ≥ 2.
        y: labels, ±1.
        W: source classifiers as rows; one vector (p,) is taken as K = 1.

    Raises:
        InputError: as `mean_norm2`, or the rows of W are not p finite numbers.
    """
    X, y = checked_sample(X, y)
    return checked_weights(W, X.shape[1]) @ (X.T @ y) / len(y)


def mean_product(
    X: Float[Array, "N p"], y: Float[Array, "N"], other_X: Float[Array, "n p"], other_y: Float[Array, "n"]
) -> float:
    r"""Return an unbiased estimate of :math:`\mu^\top\mu_\beta`: the product of two sample means with independent noises.

    Args:
        X: samples of one problem, finite.
        y: their labels, ±1.
        other_X: samples of the other problem, none shared.
        other_y: their labels, ±1.

    Raises:
        InputError: as `mean_norm2`, or the problems differ in p.
    """
    (X, y), (other_X, other_y) = checked_sample(X, y), checked_sample(other_X, other_y, "other_X", "other_y")
    if X.shape[1] != other_X.shape[1]:
        raise InputError(f"other_X has {other_X.shape[1]} features; allowed: {X.shape[1]}, as X")
    return float((X.T @ y) @ (other_X.T @ other_y)) / (len(y) * len(other_y))


def beta(
    source_X: Float[Array, "N p"], source_y: Float[Array, "N"], X: Float[Array, "n p"], y: Float[Array, "n"]
) -> float:
    r"""Return the alignment :math:`\beta = \mu^\top\mu_\beta/\|\mu\|^2` of the target's mean with the source's, unbiased parts.

    The ratio is consistent; with the sample mean's own norm below the line it would be too small by the share
    :math:`\operatorname{tr}\Sigma/N\|\mu\|^2`. It is ±∞ or NaN where the source's mean is estimated as exactly 0.

    Args:
        source_X: source samples, N ≥ 2.
        source_y: their labels, ±1.
        X: target samples, n ≥ 2.
        y: their labels, ±1.

    Raises:
        InputError: as `mean_product`.

    Source:
        α-LoRA, §3, :math:`\mu_\beta = \beta\mu + \mu^\perp`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(mean_product(source_X, source_y, X, y), mean_norm2(source_X, source_y)))


def shrunk_mean_norm2(unbiased: float, error: float, floor: float) -> float:
    r"""Return the unbiased :math:`\|\mu_\beta\|^2` shrunk towards the value that a source classifier suggests.

    The precision-weighted mean of the estimate :math:`s_u\pm\epsilon` and the guess :math:`s_0\pm\max(s_0,\epsilon)`,
    never below the floor :math:`s_{min}`. The guess :math:`s_0 = 2.5\,s_{min}` supposes a cosine of 0.63 between source
    classifier and target mean; the factor is a rule of thumb, settled on the Amazon reviews and on synthetic data. Where
    n is small :math:`s_u` is as often negative as not, and the law would then put nearly everything on the source;
    where n is large the guess has no weight left. Arrays broadcast.

    Args:
        unbiased: :math:`s_u`, from `mean_norm2`.
        error: ε > 0, its standard error, from `mean_norm2_error`.
        floor: :math:`s_{min} = b^\top G^+b \ge 0`, the squared norm of :math:`\mu_\beta` in the sources' span.
    """
    guess = 2.5 * floor
    trust, guess_trust = 1 / np.square(error), 1 / np.square(np.maximum(guess, error))
    return np.maximum((trust * unbiased + guess_trust * guess) / (trust + guess_trust), floor)


def target_moments(X: Float[Array, "n p"], y: Float[Array, "n"], W: Float[Array, "K p"]) -> TargetMoments:
    r"""Return everything that the laws need about a target sample and K ≥ 0 source classifiers, from the sample alone.

    Args:
        X: target samples, finite, n ≥ 2.
        y: labels, ±1.
        W: source classifiers as rows, (K, p), independent of X.

    Raises:
        InputError: as `mean_norm2`, or the rows of W are not p finite numbers.
    """
    X, y = checked_sample(X, y)
    return unchecked_moments(X, y, checked_weights(W, X.shape[1]), small_gram(X))


def law_scalars(moments: TargetMoments, gamma: float) -> MarginMoments:
    r"""Return the five scalars of the law at the estimated moments, in units where the noise has variance 1.

    Dividing the data by σ turns γ into :math:`\gamma/\sigma^2`, :math:`\|\mu_\beta\|` and b into :math:`\|\mu_\beta\|/\sigma` and
    :math:`b/\sigma`, and α into ασ; the classifier's decisions stay.

    Args:
        moments: as `target_moments` returns them; batch axes broadcast.
        gamma: the target's ridge parameter γ > 0, in the units of the data.

    Source:
        α-LoRA, Theorem 4.2 and Appendix D, by `rmtjax.laws.alpha_ftc.scalars`.
    """
    sigma = np.sqrt(moments.noise)
    source = SourceStatistics(_regular(moments.gram), moments.alignment / sigma[..., None])
    # Without any signal the law's ratios are 0/0; a norm that cannot be distinguished from 0 gives their limits.
    norm = np.maximum(np.sqrt(moments.mean_norm2) / sigma, 1e-12)
    return _scalars(gamma / moments.noise, moments.eta, norm, source)


def law_alpha(moments: TargetMoments, gamma: float) -> Float[Array, "... K"]:
    r"""Return the law's :math:`\alpha^\star` at the estimated moments, in the units of the data; 0 where the sources are 0.

    Args:
        moments: as `target_moments` returns them; batch axes broadcast.
        gamma: the target's ridge parameter γ > 0.

    Source:
        α-LoRA, Theorem 4.4 and Appendix D.3.
    """
    if moments.alignment.shape[-1] == 0:
        return np.zeros(moments.alignment.shape)
    alpha = _optimal_alpha(law_scalars(moments, gamma)) / np.sqrt(moments.noise)[..., None]
    return np.where(np.isfinite(alpha) & (_scale(moments.gram) > 0)[..., None], alpha, 0.0)


def law_accuracy(moments: TargetMoments, gamma: float, alphas: Float[Array, "... K"]) -> Float[Array, "..."]:
    r"""Return the law's accuracy :math:`\Phi(m_\alpha/\sqrt{v_\alpha})` at the estimated moments.

    Args:
        moments: as `target_moments` returns them.
        gamma: the target's ridge parameter γ > 0.
        alphas: α in the units of the data, the last axis over the K sources; other axes broadcast with the batch.

    Source:
        α-LoRA, Proposition 4.3.
    """
    return _accuracy(law_scalars(moments, gamma), np.asarray(alphas) * np.sqrt(moments.noise)[..., None])


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the law as one program from NumPy to NumPy; otherwise its first call would compile every operation separately."""
    program = jax.jit(function)

    def run(*arguments):
        # float64 has to hold where arrays enter the program, not only inside it.
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, program(*arguments))

    return run


_scalars, _optimal_alpha, _accuracy = map(_compiled, (alpha_ftc.scalars, alpha_ftc.optimal_alpha, alpha_ftc.accuracy))


def checked_sample(X, y, X_name="X", y_name="y") -> tuple[np.ndarray, np.ndarray]:
    """Return samples and labels in double precision.

    Raises:
        InputError: if shapes disagree, there is one sample only, or an entry is not finite or a label not ±1.
    """
    X, y = np.asarray(X, np.float64), np.asarray(y, np.float64)
    if X.ndim != 2 or y.shape != X.shape[:1] or len(y) < 2:
        raise InputError(
            f"{X_name} and {y_name} have shapes {X.shape} and {y.shape}; allowed: (n, p) and (n,), n at least 2"
        )
    finite(X_name, X)
    if not np.isin(y, (-1, 1)).all():
        raise InputError(f"{y_name} holds the labels {shown(np.unique(y).tolist())}; allowed: -1 and 1")
    return X, y


def checked_weights(W, p: int, name: str = "W") -> np.ndarray:
    """Return source classifiers as rows, shape (K, p).

    Raises:
        InputError: if they have another shape or are not finite.
    """
    W = floats(name, W, f"an array of numbers, ({p},) or (K, {p})")
    if W.ndim not in (1, 2) or W.shape[-1] != p:
        raise InputError(f"{name} has shape {W.shape}; allowed: ({p},) or (K, {p}), one weight per feature")
    finite(name, W)
    return W.reshape(-1, p)


def small_gram(X):
    """Return X Xᵀ or XᵀX, whichever is smaller; they have the same trace and Frobenius norm."""
    return X @ X.T if len(X) <= X.shape[1] else X.T @ X


def _mean_norm2(X, y):
    n, total = len(y), X.T @ y
    return float(total @ total - (X**2).sum()) / (n * (n - 1))


def _noise(X, s):
    each = (X**2).sum() / X.size
    return max(each - s / X.shape[1], _TINY * each, np.finfo(float).tiny)


def _error(X, s, noise, small):
    n = len(X)
    trace2 = max(((small**2).sum() - ((X**2).sum(1) ** 2).sum()) / (n * (n - 1)), 0.0)
    return max(4 * noise * s / n + 2 * trace2 / n**2, np.finfo(float).tiny) ** 0.5


def unchecked_moments(X, y, W, small) -> TargetMoments:
    """Return `target_moments` of arguments that are checked already, given their `small_gram`."""
    n, p = X.shape
    b, gram = W @ (X.T @ y) / n, W @ W.T
    unbiased = _mean_norm2(X, y)
    floor = float(b @ np.linalg.pinv(gram, hermitian=True) @ b) if len(W) else 0.0
    s = max(unbiased, floor)
    noise = _noise(X, s)
    error = _error(X, s, noise, small)
    shrunk = float(shrunk_mean_norm2(unbiased, error, floor)) if len(W) else max(unbiased, 0.0)
    return TargetMoments(*map(np.float64, (p / n, noise, shrunk, unbiased, error, floor)), b, gram)


def _scale(gram):
    return np.trace(gram, axis1=-2, axis2=-1)


def _regular(gram):
    """Return the Gram matrix with a trace of ridge, so that equal or zero sources share α instead of dividing by 0."""
    k = gram.shape[-1]
    if k == 0:
        return gram
    ridge = np.maximum(_TINY * _scale(gram) / k, np.finfo(float).tiny)
    return gram + ridge[..., None, None] * np.eye(k) if k > 1 else np.maximum(gram, ridge[..., None, None])
