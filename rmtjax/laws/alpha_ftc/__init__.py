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

from rmtjax.laws.alpha_ftc.covariance import covariance_scalars, covariance_scalars_for_coef
from rmtjax.laws.alpha_ftc.forms import RepeatedEigenvalues, SpikedCovariance
from rmtjax.laws.alpha_ftc.isotropic import (
    SourceStatistics,
    delta,
    optimal_mixture,
    orthogonal_source,
    resolvent_equivalent,
    resolvent_forms,
    ridge_source,
    scalars,
    tau,
    training_margin,
)
from rmtjax.laws.alpha_ftc.margins import MarginMoments, accuracy, best_accuracy, optimal_alpha, worst_alpha

__all__ = [
    "MarginMoments",
    "RepeatedEigenvalues",
    "SourceStatistics",
    "SpikedCovariance",
    "accuracy",
    "best_accuracy",
    "covariance_scalars",
    "covariance_scalars_for_coef",
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
