r"""The claims of *α-LoRA* about its classifier: every limit of §4 and Appendices A–D beside its samplers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError
from rmtjax.claims.alpha_lora._shared import (
    ALPHA,
    ALPHAS,
    LARGE,
    MODEL,
    ONE,
    RIDGE,
    SIZES,
    SMALL,
    check_cosine,
    check_means,
    check_room,
    dense_sampler,
    limit_error,
    mean_norm,
    orthogonal_norm,
)
from rmtjax.ensembles.alpha_ftc import compressed, dense
from rmtjax.ensembles.entries import entries
from rmtjax.laws import alpha_ftc as law
from rmtjax.linalg.ridge import ridge_solve
from rmtjax.montecarlo import Claim, Sampler, between, grid, nonnegative, positive, real, size, zipped
from rmtjax.montecarlo.claim import Option

__all__ = ["CLAIMS", "alpha_ftc", "mean_norm", "orthogonal_norm"]


def _limit_law(p, n, N, beta, mu, mu_perp, gamma, gamma_source):
    source = law.ridge_source(gamma_source, p / N, mu, beta)
    return law.scalars(gamma, p / n, mean_norm(beta, mu, mu_perp), source)


def _compressed_scalars(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source):
    source_key, target_key = jax.random.split(key)
    source = compressed.ridge_source(source_key, p, N, gamma_source, mu, beta, mu_perp)
    return compressed.target_scalars(target_key, p, n, gamma, mean_norm(beta, mu, mu_perp), source)


def _dense_fit(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, entries, dtype):
    source_key, target_key = jax.random.split(key)
    mean, target_mean = dense.means(p, mu, beta, mu_perp, dtype)
    source = dense.fit_source(source_key, N, mean, gamma_source, entries)
    return dense.fit_target(target_key, n, target_mean, gamma, source[:, None], entries), target_mean


def _dense_scalars(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, entries, dtype):
    fitted, mean = _dense_fit(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, entries, dtype)
    return dense.conditional_scalars(fitted, mean)


def _test_size(text: str) -> int | None:
    """Return None for the exact conditional accuracy, otherwise the number of test points."""
    if text == "exact":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 2**31:
        raise InputError(f"test = {text!r}: must be 'exact' or the number of test points")
    return int(text)


def _compressed_accuracy(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, alpha, test):
    train_key, test_key = jax.random.split(key)
    drawn = _compressed_scalars(train_key, p, n, N, beta, mu, mu_perp, gamma, gamma_source)
    exact = law.accuracy(drawn, alpha)
    points = _test_size(test)
    return {"accuracy": exact if points is None else jax.random.binomial(test_key, points, exact) / points}


def _dense_accuracy(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, alpha, entries, dtype, test):
    train_key, test_key = jax.random.split(key)
    fitted, mean = _dense_fit(train_key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, entries, dtype)
    points = _test_size(test)
    if points is None:
        return {"accuracy": law.accuracy(dense.conditional_scalars(fitted, mean), alpha)}
    return {"accuracy": dense.accuracy_on_points(test_key, fitted, mean, alpha, points, entries)}


_TEST = Option("exact", ("exact", "NUMBER"), _test_size)

alpha_ftc = Claim(
    name="alpha-ftc",
    equation=r"\mathrm{acc}(\alpha) = \Phi\left(\frac{m_0 + \alpha m_1}{\sqrt{v_0 + 2\alpha v_1 + \alpha^2 v_2}}\right)",
    source="α-LoRA, Theorem 4.2 and Proposition 4.3",
    params={**MODEL, **ALPHA},
    law=lambda alpha, **model: {"accuracy": law.accuracy(_limit_law(**model), alpha)},
    samplers=dict(
        compressed=Sampler(_compressed_accuracy, options=dict(test=_TEST)),
        dense=dense_sampler(_dense_accuracy, test=_TEST),
    ),
    grid=grid(LARGE, beta=[0.2, 0.5, 0.8], mu_perp=0.6, **ONE, alpha=ALPHAS),
    within=("alpha",),
    check=check_means,
    bias_bound=limit_error(0.1),
)

scalars = Claim(
    name="alpha-ftc-scalars",
    equation=r"m_0 = \tfrac{s}{D},\; m_1 = \gamma(1+\delta)\tfrac bD,\; v_0 = -t',\; v_1 = -\gamma(\tfrac1D)'b,\;"
    r" v_2 = -\gamma^2[(\tfrac1\tau)'\|\tilde w\|^2 - (\tfrac1{D\tau})'b^2]",
    source="α-LoRA, Theorem 4.2, with the second-order statistics as γ-derivatives",
    params=MODEL,
    law=lambda **model: _limit_law(**model)._asdict(),
    samplers=dict(
        compressed=lambda key, p, n, N, beta, mu, mu_perp, gamma, gamma_source: _compressed_scalars(
            key, p, n, N, beta, mu, mu_perp, gamma, gamma_source
        )._asdict(),
        dense=dense_sampler(
            lambda key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, entries, dtype: _dense_scalars(
                key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, entries, dtype
            )._asdict()
        ),
    ),
    grid=grid(LARGE, beta=0.8, mu_perp=0.6, mu=1.0, gamma=[0.1, 1.0], gamma_source=[0.1, 10.0]),
    check=check_means,
    bias_bound=limit_error(0.6),
    comparison_grid=grid(SMALL, beta=0.8, mu_perp=0.6, mu=1.0, gamma=[0.1, 1.0], gamma_source=1.0),
)


def _fixed_norm(model, mu_beta, beta, mu):
    return model(mu_perp=jnp.sqrt(jnp.maximum(mu_beta**2 - (beta * mu) ** 2, 0.0)), beta=beta, mu=mu)


optimum = Claim(
    name="alpha-star",
    equation=r"\alpha^\star = \frac{m_1v_0 - m_0v_1}{m_0v_2 - m_1v_1}",
    source="α-LoRA, Theorem 4.4, at fixed ‖μ_β‖",
    params=dict(**SIZES, beta=MODEL["beta"], mu=MODEL["mu"], mu_beta=positive("‖μ_β‖"), **RIDGE),
    law=lambda mu_beta, beta, mu, **rest: {
        "alpha_star": law.optimal_alpha(_fixed_norm(lambda **means: _limit_law(**means, **rest), mu_beta, beta, mu))
    },
    samplers=dict(
        compressed=lambda key, p, n, N, beta, mu, mu_beta, gamma, gamma_source: {
            "alpha_star": law.optimal_alpha(
                _fixed_norm(
                    lambda **means: _compressed_scalars(key, p, n, N, gamma=gamma, gamma_source=gamma_source, **means),
                    mu_beta,
                    beta,
                    mu,
                )
            )
        },
    ),
    grid=grid(zipped(p=[1e6, 1e9], n=[5e5, 5e8], N=[2e6, 2e9]), beta=[0.0, 0.25, 0.5, 0.75, 1.0], mu_beta=1.0, **ONE),
    check=lambda beta, mu, mu_beta: orthogonal_norm(beta, mu, mu_beta) and None,
    bias_bound=limit_error(8.0),
)


def _arbitrary_source(norm, cosine, mu_beta):
    return law.SourceStatistics(norm**2, norm * cosine * mu_beta)


def _dense_arbitrary(key, p, n, norm, cosine, mu_beta, gamma, alpha, entries, dtype):
    source, mean = dense.means(p, norm, cosine * mu_beta / norm, mu_beta * jnp.sqrt(1 - cosine**2), dtype)
    fitted = dense.fit_target(key, n, mean, gamma, source[:, None], entries)
    return {"accuracy": law.accuracy(dense.conditional_scalars(fitted, mean), alpha)}


arbitrary = Claim(
    name="alpha-ftc-arbitrary",
    equation=r"\mathrm{acc}(\alpha) = \Phi(m_\alpha/\sqrt{v_\alpha}),\quad b = \tilde w^\top\mu_\beta",
    source="α-LoRA, Appendix C: any source classifier w̃",
    params=dict(
        p=SIZES["p"],
        n=SIZES["n"],
        norm=positive("‖w̃‖"),
        cosine=between(-1, 1, "cosine of w̃ and μ_β"),
        mu_beta=positive("‖μ_β‖"),
        gamma=RIDGE["gamma"],
        **ALPHA,
    ),
    law=lambda p, n, norm, cosine, mu_beta, gamma, alpha: {
        "accuracy": law.accuracy(law.scalars(gamma, p / n, mu_beta, _arbitrary_source(norm, cosine, mu_beta)), alpha)
    },
    samplers=dict(
        compressed=lambda key, p, n, norm, cosine, mu_beta, gamma, alpha: {
            "accuracy": law.accuracy(
                compressed.target_scalars(key, p, n, gamma, mu_beta, _arbitrary_source(norm, cosine, mu_beta)), alpha
            )
        },
        dense=dense_sampler(_dense_arbitrary, static_argnames=("p", "n")),
    ),
    grid=grid(
        zipped(p=[1e4, 1e6, 1e9], n=[5e3, 5e5, 5e8]),
        norm=0.5,
        cosine=[-0.5, 0.0, 0.7],
        mu_beta=1.0,
        gamma=1.0,
        alpha=ALPHAS,
    ),
    within=("alpha",),
    check=check_cosine,
    bias_bound=limit_error(0.1),
    comparison_grid=grid(
        zipped(p=[30, 12], n=[15, 40]),
        norm=0.5,
        cosine=[0.0, 0.7],
        mu_beta=1.0,
        gamma=1.0,
        alpha=ALPHAS,
    ),
)


def _three_sources(norm, overlap, mu_beta, best, second, third):
    """Return three classifiers of one norm with given cosines to μ_β, their other parts at one common cosine `overlap`."""
    cosines = jnp.stack(jnp.broadcast_arrays(best, second, third), -1)
    off = jnp.sqrt(1 - cosines**2)
    equal = overlap[..., None, None] + (1 - overlap[..., None, None]) * jnp.eye(3)
    gram = cosines[..., :, None] * cosines[..., None, :] + off[..., :, None] * off[..., None, :] * equal
    return law.SourceStatistics(norm[..., None, None] ** 2 * gram, norm[..., None] * mu_beta[..., None] * cosines)


def _sources_law(p, n, norm, best, second, third, overlap, mu_beta, gamma, alpha):
    limit = law.scalars(gamma, p / n, mu_beta, _three_sources(norm, overlap, mu_beta, best, second, third))
    return {"accuracy": law.accuracy(limit, alpha[..., None] * law.optimal_alpha(limit))}


def _sources_sampler(key, p, n, norm, best, second, third, overlap, mu_beta, gamma, alpha):
    source = _three_sources(norm, overlap, mu_beta, best, second, third)
    optimal = law.optimal_alpha(law.scalars(gamma, p / n, mu_beta, source))
    drawn = compressed.target_scalars(key, p, n, gamma, mu_beta, source)
    return {"accuracy": law.accuracy(drawn, alpha[:, None] * optimal)}


several = Claim(
    name="alpha-ftc-sources",
    equation=r"\mathrm{acc}(\alpha\,a^\star),\quad a = M^{-1}m,\ a^\star = a_{1\ldots3}/a_0",
    source="α-LoRA, Appendix D: three source classifiers, along the optimal mixture scaled by α",
    params=dict(
        p=SIZES["p"],
        n=SIZES["n"],
        norm=positive("‖w̃_k‖"),
        best=between(-1, 1, "cosine of w̃₁ and μ_β", open_low=True, open_high=True),
        second=between(-1, 1, "cosine of w̃₂ and μ_β", open_low=True, open_high=True),
        third=between(-1, 1, "cosine of w̃₃ and μ_β", open_low=True, open_high=True),
        overlap=between(
            -0.5, 1, "cosine between the parts of the w̃_k orthogonal to μ_β", open_low=True, open_high=True
        ),
        mu_beta=positive("‖μ_β‖"),
        gamma=RIDGE["gamma"],
        alpha=real("scale of the optimal mixture; 1 is the optimum"),
    ),
    law=_sources_law,
    samplers=dict(compressed=_sources_sampler),
    grid=grid(
        zipped(p=[1e4, 1e6, 1e9], n=[5e3, 5e5, 5e8]),
        norm=0.5,
        best=0.7,
        second=0.3,
        third=-0.2,
        overlap=0.3,
        mu_beta=1.0,
        gamma=1.0,
        alpha=[0.0, 0.5, 1.0, 2.0],
    ),
    within=("alpha",),
    check=lambda p: check_room(p, 4),
    bias_bound=limit_error(0.1),
)


def _decision_cdf(drawn, alpha, x):
    return jax.scipy.special.ndtr(
        (x - drawn.m0 - alpha * drawn.m1) / jnp.sqrt(drawn.v0 + 2 * alpha * drawn.v1 + alpha**2 * drawn.v2)
    )


decision = Claim(
    name="alpha-ftc-decision",
    equation=r"y\,w_\alpha^\top x \to \mathcal N(m_\alpha, v_\alpha)",
    source="α-LoRA, Theorem 4.2: distribution function of the decision, seen from the right class",
    params={**MODEL, **ALPHA, "x": real("point at which the distribution function is taken")},
    law=lambda alpha, x, **model: {"cdf": _decision_cdf(_limit_law(**model), alpha, x)},
    samplers=dict(
        compressed=lambda key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, alpha, x: {
            "cdf": _decision_cdf(_compressed_scalars(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source), alpha, x)
        }
    ),
    grid=grid(LARGE, beta=0.8, mu_perp=0.6, **ONE, alpha=[0.0, 1.0], x=np.linspace(-1, 1.5, 11)),
    within=("x",),
    check=check_means,
    bias_bound=limit_error(0.1),
)


def _dense_forms(key, p, n, gamma, mu_beta, entries_, dtype):
    along, across = dense.means(p, 1.0, 0.0, 1.0, dtype)
    mean = mu_beta.astype(along.dtype) * along
    x = entries(key, (p, n), entries_, dtype) + mean[:, None]
    unit = jnp.stack([along, across], 1)
    forms = jnp.sum(unit * ridge_solve(x, gamma.astype(mean.dtype), unit), 0)
    return {"along": forms[0], "across": forms[1]}


equivalent = Claim(
    name="resolvent-equivalent",
    equation=r"a^\top Q a \to a^\top\Big(\frac{I + \mu_\beta\mu_\beta^\top}{1+\delta} + \gamma I\Big)^{-1} a",
    source="α-LoRA, Lemma 3.5, along and across μ_β",
    params=dict(p=size("dimension", at_least=2), n=SIZES["n"], gamma=RIDGE["gamma"], mu_beta=nonnegative("‖μ_β‖")),
    law=lambda p, n, gamma, mu_beta: law.resolvent_forms(gamma, p / n, mu_beta),
    samplers=dict(
        compressed=lambda key, p, n, gamma, mu_beta: compressed.resolvent_forms(key, p, n, gamma, mu_beta),
        dense=dense_sampler(
            lambda key, p, n, gamma, mu_beta, entries, dtype: _dense_forms(key, p, n, gamma, mu_beta, entries, dtype),
            static_argnames=("p", "n"),
        ),
    ),
    grid=grid(zipped(p=[1e4, 1e6, 1e9], n=[5e3, 1e6, 2e9]), gamma=[0.1, 1.0], mu_beta=1.0),
    bias_bound=limit_error(3.0),
    comparison_grid=grid(zipped(p=[30, 12], n=[15, 40]), gamma=[0.1, 1.0], mu_beta=1.0),
)

margin = Claim(
    name="training-margin",
    equation=r"\tfrac1n\sum_i y_iw^\top x_i \to t(\gamma) = \frac{m_0+\delta}{1+\delta}",
    source="α-LoRA, Appendix B: the function whose γ-derivative is −‖w‖²",
    params=dict(p=SIZES["p"], n=SIZES["n"], gamma=RIDGE["gamma"], mu_beta=nonnegative("‖μ_β‖")),
    law=lambda p, n, gamma, mu_beta: {"margin": law.training_margin(gamma, p / n, mu_beta)},
    samplers=dict(
        compressed=lambda key, p, n, gamma, mu_beta: {"margin": compressed.training_margin(key, p, n, gamma, mu_beta)}
    ),
    grid=grid(zipped(p=[1e4, 1e6, 1e9], n=[5e3, 1e6, 2e9]), gamma=[0.1, 1.0], mu_beta=1.0),
    bias_bound=limit_error(0.25),
)

CLAIMS = (alpha_ftc, scalars, optimum, arbitrary, several, decision, equivalent, margin)
"""Every claim of this module."""
