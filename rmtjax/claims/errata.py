r"""Misprints of the papers that a simulation refutes, each beside its correction: pairs of claims.

The law of an ``erratum-…`` is the printed one, which `verify` expects to be refuted; that of its ``corrected-…`` holds.
Both are drawn by the same sampler on the same grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError
from rmtjax.claims.intruder_dimensions.spikes import bbp_rectangular, wishart_bulk
from rmtjax.ensembles import density, outlier
from rmtjax.ensembles.alpha_ftc import compressed, dense
from rmtjax.ensembles.entries import entries
from rmtjax.ensembles.wigner import goe
from rmtjax.laws import alpha_ftc, marchenko_pastur, semicircle, spikes
from rmtjax.montecarlo import Claim, Sampler, between, grid, positive, real, size, zipped

__all__ = ["CLAIMS"]


def _pair(
    name: str,
    *,
    source: str,
    printed: Callable[..., Any],
    holds: Callable[..., Any],
    equations: tuple[str, str],
    samplers: Mapping[str, Any],
    corrected_samplers: Mapping[str, Any] | None = None,
    **shared: Any,
) -> tuple[Claim, Claim]:
    wrong = Claim(
        name=f"erratum-{name}",
        equation=equations[0],
        source=f"{source}, as printed",
        law=printed,
        samplers=samplers,
        erratum=True,
        **shared,
    )
    right = Claim(
        name=f"corrected-{name}",
        equation=equations[1],
        source=f"{source}, corrected",
        law=holds,
        samplers=samplers if corrected_samplers is None else corrected_samplers,
        **shared,
    )
    return wrong, right


def _one(value: Callable) -> Callable:
    return lambda **cell: {"ratio": 1.0 + 0 * value(**cell)}


def _sherman_morrison(sign: float) -> Callable:
    def sample(key, N, theta, at):
        """Return the resolvent after the update over the formula's prediction from the one before."""
        base_key, spike_key = jax.random.split(key)
        W = goe(base_key, N)
        u, v = entries(spike_key, (2, N)) / np.sqrt(N)
        v = (u + v) / 2  # so that vᵀGu is not small
        before = at * jnp.eye(N) - W
        g = v @ jnp.linalg.solve(before, u)
        after = v @ jnp.linalg.solve(before - theta * jnp.outer(u, v), u)
        return {"ratio": after / (g + sign * theta * g**2 / (1 - sign * theta * g))}

    return sample


sherman_morrison = _pair(
    "sherman-morrison",
    source="Intruder Dimensions, eq. (3)",
    equations=(
        r"v^\top G_Mu = v^\top Gu - \frac{\theta(v^\top Gu)^2}{1 + \theta v^\top Gu}",
        r"v^\top G_Mu = v^\top Gu + \frac{\theta(v^\top Gu)^2}{1 - \theta v^\top Gu}",
    ),
    params=dict(
        N=size("dimension", at_least=2),
        theta=positive("strength θ"),
        at=between(2.5, 100, "place z, right of the spectrum"),
    ),
    printed=_one(lambda theta, **_: theta),
    holds=_one(lambda theta, **_: theta),
    samplers=dict(dense=Sampler(_sherman_morrison(-1), static_argnames=("N",), block=8, default_trials=200)),
    corrected_samplers=dict(dense=Sampler(_sherman_morrison(1), static_argnames=("N",), block=8, default_trials=200)),
    grid=grid(N=[40], theta=[0.5, 1.0], at=4.0),
    bias_bound=lambda theta: 1e-9 + 0 * theta,
)

_outlier_only = dict(
    compressed=lambda key, N, c, theta: {
        "outlier": outlier.rectangular_outlier(key, jnp.round(c * N), N, theta).outlier
    }
)
_rectangular = dict(
    params=bbp_rectangular.params,
    samplers=_outlier_only,
    check=bbp_rectangular.check,
    bias_bound=lambda N, c, theta: bbp_rectangular.bias_bound(N, c, theta)["outlier"],
)

threshold = _pair(
    "threshold",
    source="Intruder Dimensions, eq. (1) and §IV-C",
    equations=(
        r"\text{outlier iff } \theta \ge \sqrt{\lambda_+} = 1 + \sqrt c",
        r"\text{outlier iff } \theta > c^{1/4}",
    ),
    printed=lambda c, theta: {
        "outlier": jnp.where(theta >= 1 + jnp.sqrt(c), spikes.rectangular_outlier(theta, c), 1 + jnp.sqrt(c))
    },
    holds=lambda c, theta: {"outlier": spikes.rectangular_outlier(theta, c)},
    grid=grid(zipped(c=[0.25, 1.0, 1.0], theta=[1.1, 1.3, 1.9]), N=[1e4, 1e8]),
    **_rectangular,
)

rectangular = _pair(
    "rectangular-outlier",
    source="Intruder Dimensions, §IV-B and C",
    equations=(
        r"\sigma_{out} = \theta + 1/\theta \text{ for every } c",
        r"\sigma_{out} = \sqrt{(1+\theta^2)(c+\theta^2)}/\theta",
    ),
    printed=lambda c, theta: {"outlier": theta + 1 / theta + 0 * c},
    holds=lambda c, theta: {"outlier": spikes.rectangular_outlier(theta, c)},
    grid=grid(N=[1e4, 1e8], c=[0.25, 4.0], theta=[2.0, 3.0]),
    **_rectangular,
)


def _transform(key, N, c, at):
    X = entries(key, (round(c * N), N))
    return {"m": jnp.mean(1 / (at - jnp.linalg.eigvalsh(X @ X.T / N)))}


stieltjes = _pair(
    "stieltjes",
    source="Intruder Dimensions, §IV-B, the Stieltjes transform of the Marchenko–Pastur bulk",
    equations=(
        r"m(z) = \frac{z - \sqrt{z^2-4}}2",
        r"cz\,m^2 - (z + c - 1)m + 1 = 0",
    ),
    params=dict(N=wishart_bulk.params["N"], c=wishart_bulk.params["c"], at=positive("place z, right of the bulk")),
    printed=lambda c, at: {"m": semicircle.stieltjes(at) + 0 * c},
    holds=lambda c, at: {"m": marchenko_pastur.stieltjes(at, c)},
    samplers=dict(dense=Sampler(_transform, static_argnames=("N", "c"), block=8, default_trials=400)),
    grid=grid(N=[80], c=[0.5, 1.0], at=[5.0, 8.0]),
    check=wishart_bulk.check,
    bias_bound=lambda N, c, at: 2 / (c * N * at),
)

_shares = dict(
    params=wishart_bulk.params,
    within=("x",),
    check=wishart_bulk.check,
    bias_bound=wishart_bulk.bias_bound,
)

singular_values = _pair(
    "singular-values",
    source="Intruder Dimensions, §III-A",
    equations=(
        r"\text{singular values follow } \rho_{MP}",
        r"\text{their squares follow } \rho_{MP}",
    ),
    printed=lambda c, x: {"cdf": marchenko_pastur.cdf(x, c)},
    holds=lambda c, x: {"cdf": marchenko_pastur.cdf(x**2, c)},
    samplers=dict(
        compressed=Sampler(
            lambda key, N, c, x: {"cdf": density.laguerre_cdf(key, jnp.round(c * N), N, x**2)},
            block=64,
            default_trials=200,
        )
    ),
    grid=grid(N=[1e3], c=[0.5, 1.0], x=[0.3, 0.6, 1.0, 1.4, 1.8]),
    **_shares,
)

density_c = _pair(
    "density",
    source="Intruder Dimensions, eq. (2), for c < 1",
    equations=(
        r"\rho(x) = \frac{\sqrt{(\lambda_+-x)(x-\lambda_-)}}{2\pi x}",
        r"\rho(x) = \frac{\sqrt{(\lambda_+-x)(x-\lambda_-)}}{2\pi c x}",
    ),
    printed=lambda c, x: {"cdf": c * marchenko_pastur.cdf(x, c)},
    holds=lambda c, x: {"cdf": marchenko_pastur.cdf(x, c)},
    samplers=dict(
        compressed=Sampler(
            lambda key, N, c, x: {"cdf": density.laguerre_cdf(key, jnp.round(c * N), N, x)},
            block=64,
            default_trials=200,
        )
    ),
    grid=grid(N=[1e3], c=[0.25, 0.5], x=[0.3, 0.6, 1.0, 1.4, 1.8]),
    **_shares,
)


def _eigenvalue(key, N, theta, cosine):
    base_key, u_key, v_key = jax.random.split(key, 3)
    u = entries(u_key, (N,))
    u = u / jnp.linalg.norm(u)
    w = entries(v_key, (N,))
    w = w - u * (u @ w)
    v = cosine * u + jnp.sqrt(1 - cosine**2) * w / jnp.linalg.norm(w)
    values = jnp.linalg.eigvals(entries(base_key, (N, N)) / np.sqrt(N) + theta * jnp.outer(u, v))
    return {"modulus": jnp.max(jnp.abs(values))}


eigenvalue = _pair(
    "eigenvalue-outlier",
    source="Intruder Dimensions, §IV, eigenvalues of a W that is not symmetric",
    equations=(
        r"\lambda_{out} = \theta + 1/\theta",
        r"\lambda_{out} = \theta\,v^\top u",
    ),
    params=dict(
        N=size("dimension", at_least=2),
        theta=positive("strength θ"),
        cosine=between(-1, 1, "cosine of u and v"),
    ),
    printed=lambda theta, cosine: {"modulus": theta + 1 / theta + 0 * cosine},
    holds=lambda theta, cosine: {"modulus": spikes.iid_eigenvalue_outlier(theta, cosine)},
    samplers=dict(dense=Sampler(_eigenvalue, static_argnames=("N",), block=8, default_trials=400)),
    grid=grid(N=[100], theta=[3.0], cosine=[0.7, 1.0]),
    bias_bound=lambda N, theta, cosine: 3 / (N * (theta * cosine - 1)),
)


def _forward(exponent: float) -> Callable:
    def sample(key, width, rank):
        """Return the mean square of a unit input's image under the update, whose factors have entries of variance 1."""
        x_key, a_key, b_key = jax.random.split(key, 3)
        x = entries(x_key, (width,))
        hidden = entries(a_key, (rank, width)) @ (x / jnp.linalg.norm(x))
        return {"square": jnp.mean((entries(b_key, (width, rank)) @ hidden / rank**exponent) ** 2)}

    return sample


rank_stabilised = _pair(
    "rank-stabilised",
    source="Intruder Dimensions, §V-B; Kalajdzievski 2023",
    equations=(
        r"\frac\alpha r BA \text{ does not shrink with } r",
        r"\frac\alpha{\sqrt r} BA \text{ does not shrink with } r",
    ),
    params=dict(width=size("width of the layer"), rank=size("rank r")),
    printed=lambda width, rank: {"square": 1.0 + 0 * rank},
    holds=lambda width, rank: {"square": 1.0 + 0 * rank},
    samplers=dict(dense=Sampler(_forward(1.0), static_argnames=("width", "rank"), block=64, default_trials=2_000)),
    corrected_samplers=dict(
        dense=Sampler(_forward(0.5), static_argnames=("width", "rank"), block=64, default_trials=2_000)
    ),
    grid=grid(width=[64], rank=[4, 16]),
)


def _rises(fixed_total: bool) -> Callable:
    def sample(key, p, n, N, low, high, mu, rest, gamma, gamma_source):
        """Return whether α* is larger at the stronger alignment, from the same draw of the noise."""

        def best(beta):
            mu_perp = jnp.sqrt((high**2 - beta**2) * mu**2 + rest**2) if fixed_total else rest
            source_key, target_key = jax.random.split(key)
            source = compressed.ridge_source(source_key, p, N, gamma_source, mu, beta, mu_perp)
            norm = jnp.sqrt(beta**2 * mu**2 + mu_perp**2)
            return alpha_ftc.optimal_alpha(compressed.target_scalars(target_key, p, n, gamma, norm, source))

        weak, strong = jax.vmap(best)(jnp.stack([low, high]))
        return {"rises": strong >= weak}

    return sample


monotone = _pair(
    "monotone",
    source="α-LoRA, §4",
    equations=(
        r"\alpha^\star \text{ does not fall with } \beta \text{ at fixed } \|\mu^\perp\|",
        r"\alpha^\star \text{ does not fall with } \beta \text{ at fixed } \|\mu_\beta\|",
    ),
    params=dict(
        p=size("dimension"),
        n=size("target samples"),
        N=size("source samples"),
        low=real("weaker alignment β"),
        high=real("stronger alignment β"),
        mu=positive("‖μ‖"),
        rest=positive("‖μ⊥‖ at the stronger alignment"),
        gamma=positive("target ridge γ"),
        gamma_source=positive("source ridge γ̃"),
    ),
    printed=lambda p: {"rises": 1.0 + 0 * p},
    holds=lambda p: {"rises": 1.0 + 0 * p},
    samplers=dict(compressed=Sampler(_rises(False), default_trials=1_000)),
    corrected_samplers=dict(compressed=Sampler(_rises(True), default_trials=1_000)),
    grid=grid(p=1e8, n=5e7, N=2e8, low=0.6, high=1.0, mu=2.0, rest=0.3, gamma=1.0, gamma_source=1.0),
)


def _kept_share(key, p, n, mu_beta, gamma):
    """Return the share of a source classifier's squared norm that is left in the fine-tuned one."""
    source = alpha_ftc.SourceStatistics(jnp.ones_like(mu_beta), jnp.zeros_like(mu_beta))
    return {"share": compressed.target_scalars(key, p, n, gamma, mu_beta, source).v2}


def _kept_share_dense(key, p, n, mu_beta, gamma, **_):
    direction, other = dense.means(p, 1.0, 0.0, 1.0)
    fitted = dense.fit_target(key, n, mu_beta * direction, gamma, other[:, None], "gaussian")
    return {"share": jnp.sum(fitted.u**2)}


def _check_few(p, n):
    if n >= p:
        raise InputError(
            f"n = {n:g}: must be below p = {p:g}; with more samples than features nothing of the source stays"
        )


source_stays = _pair(
    "source-forgotten",
    source="α-LoRA, Remark 3.2",
    equations=(
        r"\gamma \to 0:\quad w_\alpha \to w_0, \text{ which depends neither on } \alpha \text{ nor on } \tilde w",
        r"\gamma \to 0:\quad w_\alpha \to w_0 + \alpha P_0\tilde w,\quad"
        r" \|P_0\tilde w\|^2/\|\tilde w\|^2 \to 1 - n/p, \quad n < p",
    ),
    params=dict(
        p=size("dimension", at_least=2),
        n=size("target samples, fewer than p"),
        mu_beta=positive("‖μ_β‖, orthogonal to w̃"),
        gamma=positive("ridge parameter γ"),
    ),
    printed=lambda p: {"share": 0.0 * p},
    holds=lambda p, n: {"share": 1 - n / p},
    samplers=dict(compressed=Sampler(_kept_share, default_trials=1_000)),
    corrected_samplers=dict(
        compressed=Sampler(_kept_share, default_trials=1_000),
        dense=Sampler(_kept_share_dense, static_argnames=("p", "n"), block=8, default_trials=500),
    ),
    check=_check_few,
    # |mean − law|·p was 0.17 at most, for p of 12 to 200; the ridge itself takes away no more than the second term.
    bias_bound=lambda p, n, gamma: 0.4 / p + 4 * gamma * p / n / (p / n - 1) ** 2,
    grid=grid(zipped(p=[50, 1e4, 1e9], n=[20, 5e3, 2e8]), mu_beta=1.0, gamma=[1e-6, 1e-8]),
    comparison_grid=grid(zipped(p=[50, 12], n=[20, 9]), mu_beta=1.0, gamma=1e-6),
)

CLAIMS = (
    *sherman_morrison, *threshold, *rectangular, *stieltjes, *singular_values, *density_c, *eigenvalue,
    *rank_stabilised, *monotone, *source_stays,
)  # fmt: skip
"""Every claim of this module, each erratum before its correction."""
