r"""The claims of *Intruder Dimensions*: bulk laws, edges and the BBP transition, with their samplers.

A spiked model takes its size N and, where it is rectangular, its aspect ratio c: it has N columns and cN rows. In the
compressed samplers both may be swept within one program; the dense ones form the matrix.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError
from rmtjax.claims._shared import ASPECT, COLUMNS, check_above, check_rows, dense, overlap_window, window
from rmtjax.ensembles import density, outlier
from rmtjax.ensembles.entries import ENTRIES, entries, parse_entries
from rmtjax.ensembles.wigner import wigner
from rmtjax.laws import marchenko_pastur, semicircle, spectral_measure, spikes
from rmtjax.laws.edge import tracy_widom
from rmtjax.montecarlo import Claim, Sampler, grid, positive, real, size
from rmtjax.montecarlo.claim import Option

__all__ = ["CLAIMS"]

_N = size("dimension")
_THETA = positive("strength θ of the spike")
_ENTRIES = Option("gaussian", tuple(ENTRIES), parse_entries)


def _dense_wigner(key, N, theta, entries):
    # A spike spread over all coordinates: one concentrated in a single entry would depend on that entry's law.
    values, vectors = jnp.linalg.eigh(wigner(key, N, entries) + theta / N)
    return {"outlier": values[-1], "overlap": jnp.sum(vectors[:, -1]) ** 2 / N}


def _wigner_bias(N, theta):
    return {
        "outlier": 1.5 * window(N, theta - 1),
        "overlap": overlap_window(N, theta - 1),
    }


_SUPERCRITICAL = grid(N=[1e3, 1e6, 1e9], theta=[1.2, 1.6, 2.0, 3.0])

bbp_wigner = Claim(
    name="bbp-wigner",
    equation=r"\lambda_{out} = \theta + \frac1\theta,\quad |\langle u,\hat v\rangle|^2 = 1 - \frac1{\theta^2}",
    source="Intruder Dimensions, §IV-B, with the threshold θ > 1",
    params=dict(N=_N, theta=_THETA),
    law=lambda theta: {"outlier": spikes.wigner_outlier(theta), "overlap": spikes.wigner_overlap(theta)},
    samplers=dict(
        compressed=lambda key, N, theta: outlier.wigner_outlier(key, N, theta)._asdict(),
        dense=dense(_dense_wigner, "N", entries=_ENTRIES),
    ),
    grid=_SUPERCRITICAL,
    bias_bound=_wigner_bias,
    comparison_grid=grid(N=[20, 60], theta=[0.5, 1.0, 2.0]),
)

bbp_transition = Claim(
    name="bbp-transition",
    equation=bbp_wigner.equation,
    source="Intruder Dimensions, §IV-B, through the threshold: no outlier below θ = 1",
    params=bbp_wigner.params,
    law=bbp_wigner.law,
    samplers=dict(compressed=bbp_wigner.samplers["compressed"]),
    grid=grid(N=[1e4], theta=[0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5]),
    bias_bound=_wigner_bias,
)


def _fluctuation(key, N, theta, beta):
    drawn = outlier.wigner_outlier(key, N, theta, beta).outlier
    return {"variance": N * (drawn - spikes.wigner_outlier(theta)) ** 2}


fluctuation = Claim(
    name="bbp-wigner-fluctuation",
    equation=r"N\,E(\lambda_{out} - \theta - 1/\theta)^2 = \frac2\beta\Big(1 - \frac1{\theta^2}\Big)",
    source="Péché 2006; Intruder Dimensions gives no fluctuation",
    params=dict(N=_N, theta=positive("strength θ > 1"), beta=positive("1, 2, 4: real, complex, quaternion; any β > 0")),
    law=lambda theta, beta: {"variance": spikes.wigner_variance(theta, beta=beta)},
    samplers=dict(compressed=_fluctuation),
    grid=grid(N=[1e5, 1e9], theta=[1.5, 3.0], beta=[1, 2, 4]),
    check=lambda theta: check_above("theta", theta, 1.0),
    bias_bound=lambda N, theta, beta: 20 / (N * beta * (theta - 1) ** 3),
)


def _dense_rectangular(key, N, c, theta, entries_):
    n = round(c * N)
    W = entries(key, (n, N), entries_) / np.sqrt(N)
    left, values, right = jnp.linalg.svd(W + theta / np.sqrt(n * N), full_matrices=False)
    return {
        "outlier": values[0],
        "overlap_left": jnp.sum(left[:, 0]) ** 2 / n,
        "overlap_right": jnp.sum(right[0]) ** 2 / N,
    }


def _rectangular_bias(N, c, theta):
    smaller, distance = np.minimum(N, c * N), theta / c**0.25 - 1
    overlap = 4 * overlap_window(smaller, distance)
    return {"outlier": 4 * (1 + c) * window(smaller, distance), "overlap_left": overlap, "overlap_right": overlap}


bbp_rectangular = Claim(
    name="bbp-rectangular",
    equation=r"\sigma_{out} = \sqrt{(1+\theta^2)(c+\theta^2)}/\theta,\quad |\langle u,\hat u\rangle|^2 = 1 - "
    r"\frac{c(1+\theta^2)}{\theta^2(\theta^2+c)},\quad |\langle v,\hat v\rangle|^2 = 1 - \frac{c+\theta^2}{\theta^2(\theta^2+1)}",
    source="Benaych-Georges & Nadakuditi 2012; Intruder Dimensions, §IV-C, for c = 1",
    params=dict(N=COLUMNS, c=ASPECT, theta=_THETA),
    law=lambda c, theta: {
        "outlier": spikes.rectangular_outlier(theta, c),
        "overlap_left": spikes.rectangular_overlap(theta, c),
        "overlap_right": spikes.rectangular_overlap(theta, c, side="right"),
    },
    samplers=dict(
        compressed=lambda key, N, c, theta: outlier.rectangular_outlier(key, jnp.round(c * N), N, theta)._asdict(),
        dense=dense(
            lambda key, N, c, theta, entries: _dense_rectangular(key, N, c, theta, entries), "N", "c", entries=_ENTRIES
        ),
    ),
    grid=grid(N=[1e3, 1e6, 1e9], c=[0.25, 1.0, 4.0], theta=[1.6, 2.0, 3.0]),
    check=check_rows,
    bias_bound=_rectangular_bias,
    comparison_grid=grid(N=[20], c=[0.5, 1.0, 2.0], theta=[0.5, 2.0]),
)

rectangular_fluctuation = Claim(
    name="bbp-rectangular-fluctuation",
    equation=r"N\,E(\sigma_{out} - \sigma_\infty)^2 = \Big(1 - \frac c{\theta^4}\Big)\frac{\theta^2 + (1+c)/2}{\sigma_\infty^2}",
    source="ours (docs/derivations.md)",
    params=bbp_rectangular.params,
    law=lambda c, theta: {"variance": spikes.rectangular_variance(theta, c)},
    samplers=dict(
        compressed=lambda key, N, c, theta: {
            "variance": N
            * (
                outlier.rectangular_outlier(key, jnp.round(c * N), N, theta).outlier
                - spikes.rectangular_outlier(theta, c)
            )
            ** 2
        }
    ),
    grid=grid(N=[1e6], c=[0.25, 1.0, 4.0], theta=[1.6, 3.0]),
    check=lambda N, c, theta: (check_rows(N, c), check_above("theta", theta, c**0.25))[0],
    bias_bound=lambda N, c, theta: 50 * (1 + c) / (N * np.minimum(c, 1) * (theta / c**0.25 - 1) ** 3),
)


def _dense_covariance(key, N, c, theta, entries_):
    n = round(c * N)
    X = entries(key, (n, N), entries_)
    # Σ^{1/2} = I + (√ℓ − 1)uuᵀ with u = (1, …, 1)/√n
    X = X + (jnp.sqrt(theta) - 1) * jnp.mean(X, 0)
    values, vectors = jnp.linalg.eigh(X @ X.T / N)
    return {"outlier": values[-1], "overlap": jnp.sum(vectors[:, -1]) ** 2 / n}


def _covariance_bias(N, c, theta):
    smaller, distance = np.minimum(N, c * N), (theta - 1) / np.sqrt(c) - 1
    return {
        "outlier": 6 * (1 + c) * theta * window(smaller, distance),
        "overlap": 4 * overlap_window(smaller, distance),
    }


bbp_covariance = Claim(
    name="bbp-covariance",
    equation=r"\lambda_{out} = \ell\Big(1 + \frac c{\ell-1}\Big),\quad |\langle u,\hat v\rangle|^2 = "
    r"\frac{1 - c/(\ell-1)^2}{1 + c/(\ell-1)}",
    source="Baik, Ben Arous & Péché 2005; Paul 2007; Intruder Dimensions, §II-B",
    params=dict(N=COLUMNS, c=ASPECT, theta=positive("population eigenvalue ℓ of the spike; all others are 1")),
    law=lambda c, theta: {
        "outlier": spikes.covariance_outlier(theta, c),
        "overlap": spikes.covariance_overlap(theta, c),
    },
    samplers=dict(
        compressed=lambda key, N, c, theta: outlier.covariance_outlier(key, jnp.round(c * N), N, theta)._asdict(),
        dense=dense(
            lambda key, N, c, theta, entries: _dense_covariance(key, N, c, theta, entries), "N", "c", entries=_ENTRIES
        ),
    ),
    grid=grid(N=[1e3, 1e6, 1e9], c=[0.25, 1.0, 4.0], theta=[4.0, 6.0]),
    check=check_rows,
    bias_bound=_covariance_bias,
    comparison_grid=grid(N=[20], c=[0.5, 1.0, 2.0], theta=[0.5, 4.0]),
)

covariance_fluctuation = Claim(
    name="bbp-covariance-fluctuation",
    equation=r"N\,E(\lambda_{out} - \lambda_\infty)^2 = \frac2\beta\ell^2\Big(1 - \frac c{(\ell-1)^2}\Big)",
    source="Paul 2007",
    params=dict(**bbp_covariance.params, beta=positive("1 for real, 2 for complex data; any β > 0")),
    law=lambda c, theta, beta: {"variance": spikes.covariance_variance(theta, c, beta=beta)},
    samplers=dict(
        compressed=lambda key, N, c, theta, beta: {
            "variance": N
            * (
                outlier.covariance_outlier(key, jnp.round(c * N), N, theta, beta).outlier
                - spikes.covariance_outlier(theta, c)
            )
            ** 2
        }
    ),
    grid=grid(N=[1e6], c=[0.25, 1.0, 4.0], theta=[4.0, 6.0], beta=[1, 2]),
    check=lambda N, c, theta: (check_rows(N, c), check_above("theta", theta, 1 + c**0.5))[0],
    bias_bound=lambda N, c, theta: 50 * (1 + c) * theta**2 / (N * np.minimum(c, 1) * ((theta - 1) / c**0.5 - 1) ** 3),
)


def _parts(transform):
    return {"real": transform.real, "imaginary": transform.imag}


def _measure_law(theta, x, y):
    return _parts(spectral_measure.stieltjes(x + 1j * y, theta))


measure = Claim(
    name="spectral-measure",
    equation=r"u^\top(z - W - \theta uu^\top)^{-1}u = \int\frac{\mu_\theta(dx)}{z - x},\quad \mu_\theta(dx) = "
    r"\frac{\sqrt{4-x^2}}{2\pi(\theta^2+1-\theta x)}dx + 1_{|\theta|>1}\Big(1-\frac1{\theta^2}\Big)\delta_{\theta+1/\theta}",
    source="Intruder Dimensions, eq. (1), with the condition |θ| > 1",
    params=dict(
        N=_N, theta=real("strength θ, of either sign"), x=real("real part of z"), y=positive("imaginary part of z")
    ),
    law=_measure_law,
    samplers=dict(compressed=lambda key, N, theta, x, y: _parts(density.spectral_measure(key, N, theta, x, y))),
    grid=grid(N=[1e4, 1e9], theta=[-0.5, 0.8, 1.5, 3.0], x=[-1.5, 0.0, 1.5, 2.5], y=0.25),
    bias_bound=lambda N, theta, x, y: 4 / (N * y**3),
)


def _dense_share(key, N, x, entries):
    values = jnp.linalg.eigvalsh(wigner(key, N, entries))
    return {"cdf": jnp.mean(values[:, None] <= x, 0)}


bulk = Claim(
    name="semicircle",
    equation=r"\frac1N\#\{\lambda_i \le x\} = \int_{-2}^x \frac{\sqrt{4-y^2}}{2\pi}dy",
    source="Intruder Dimensions, §II-A1",
    params=dict(N=_N, x=real("where the distribution function is taken")),
    law=lambda x: {"cdf": semicircle.cdf(x)},
    samplers=dict(
        compressed=Sampler(lambda key, N, x: {"cdf": density.hermite_cdf(key, N, x)}, block=128, default_trials=1_000),
        dense=dense(_dense_share, "N", entries=_ENTRIES),
    ),
    grid=grid(N=[1e3, 1e4], x=np.linspace(-2.1, 2.1, 13)),
    within=("x",),
    bias_bound=lambda N, x: 0.3 / N + 0 * x,
    comparison_grid=grid(N=[20, 60], x=[-1.9, -1.0, 0.0, 1.5]),
)


def _dense_sample(key, N, c, x, entries_):
    X = entries(key, (round(c * N), N), entries_)
    values = jnp.linalg.eigvalsh(X @ X.T / N)
    # If there are more rows than columns, the zeros come out as rounding errors.
    return {"cdf": jnp.mean(values[:, None] <= jnp.where(x >= 0, jnp.maximum(x, 1e-9), x), 0)}


wishart_bulk = Claim(
    name="marchenko-pastur",
    equation=r"\rho(x) = \frac{\sqrt{(x-\lambda_-)(\lambda_+-x)}}{2\pi c x} + \max(1 - 1/c, 0)\,\delta_0,\quad "
    r"\lambda_\pm = (1\pm\sqrt c)^2",
    source="Intruder Dimensions, §II-A2 and eq. (2), with the c that (2) leaves out",
    params=dict(N=COLUMNS, c=ASPECT, x=real("where the distribution function is taken")),
    law=lambda c, x: {"cdf": marchenko_pastur.cdf(x, c)},
    samplers=dict(
        compressed=Sampler(
            lambda key, N, c, x: {"cdf": density.laguerre_cdf(key, jnp.round(c * N), N, x)},
            block=128,
            default_trials=1_000,
        ),
        dense=dense(lambda key, N, c, x, entries: _dense_sample(key, N, c, x, entries), "N", "c", entries=_ENTRIES),
    ),
    grid=grid(N=[1e3, 1e4], c=[0.25, 1.0, 4.0], x=[0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0, 9.5]),
    within=("x",),
    check=check_rows,
    bias_bound=lambda N, c, x: 0.5 / (c * N) + 0 * x,
    comparison_grid=grid(N=[20], c=[0.5, 1.0, 2.0], x=[0.0, 0.2, 1.0, 3.0]),
)


def _scaled_edge(key, N, beta):
    # The β-ensembles' own scale: at β = 4 the tabulated law is 2^{1/6} times wider.
    wide = 2 ** (1 / 6) if beta == 4 else 1.0
    scaled = wide * N ** (2 / 3) * (outlier.wigner_edge(key, N, beta) - 2)
    return {
        "mean": scaled,
        "square": scaled**2,
        **{name: scaled <= tracy_widom.ppf(p, int(beta)) for name, p in _QUARTILES.items()},
    }


_QUARTILES = {"lower": 0.25, "median": 0.5, "upper": 0.75}


def _tracy_widom_law(N, beta):
    betas = np.asarray(beta)

    def of(function):
        return np.select([betas == b for b in (1, 2, 4)], [float(function(b)) for b in (1, 2, 4)]) + 0 * np.asarray(N)

    return {
        "mean": of(tracy_widom.mean),
        "square": of(lambda b: tracy_widom.var(b) + tracy_widom.mean(b) ** 2),
        **{name: p + 0 * np.asarray(N) for name, p in _QUARTILES.items()},
    }


def _check_beta(beta):
    if beta not in (1, 2, 4):
        raise InputError(f"beta = {beta:g}: must be 1, 2 or 4, for which the Tracy–Widom law is known")


edge = Claim(
    name="tracy-widom",
    equation=r"N^{2/3}(\lambda_{max} - 2) \to TW_\beta \quad (2^{-1/6}TW_4 \text{ for } \beta = 4)",
    source="Tracy & Widom 1994, 1996; the edge that Intruder Dimensions calls λ₊",
    params=dict(N=_N, beta=size("1, 2 or 4")),
    law=_tracy_widom_law,
    samplers=dict(
        compressed=Sampler(
            _scaled_edge,
            static_argnames=("N", "beta"),
            batch_size=lambda N, beta: max(8, int(2**20 / N ** (1 / 3) / 16)),
            block=256,
        )
    ),
    grid=grid(N=[1e6], beta=[1, 2, 4]),
    check=_check_beta,
    bias_bound=lambda N, beta: {
        "mean": 1.5 * N ** (-1 / 3),
        "square": 5 * N ** (-1 / 3),
        **{name: 0.3 * N ** (-1 / 3) for name in _QUARTILES},
    },
)


_KURTOSIS = {"rademacher": -2.0, "uniform": -1.2, "student-t": 6.0, "sparse": 27.0}
"""Excess kurtosis κ of the entries as they are named without a parameter."""


def _universal(law: str, kurtosis: float) -> Claim:
    def bias(N, theta):
        # Where the law is felt at all, at order 1/N, it is through the fourth cumulant. Twice what κ = 27 shows at N = 100.
        gaussian = _wigner_bias(N, theta)
        return {name: gaussian[name] + c * abs(kurtosis) / N for name, c in (("outlier", 0.7), ("overlap", 1.4))}

    return Claim(
        name=f"universality-{law}",
        equation=bbp_wigner.equation,
        source=f"Intruder Dimensions, §II-A3: {ENTRIES[law].split(';')[0]}",
        params=bbp_wigner.params,
        law=bbp_wigner.law,
        samplers=dict(dense=dense(lambda key, N, theta: _dense_wigner(key, N, theta, law), "N")),
        grid=grid(N=[100], theta=[1.5, 2.5]),
        bias_bound=bias,
    )


UNIVERSALITY = tuple(_universal(law, kurtosis) for law, kurtosis in _KURTOSIS.items())

CLAIMS = (
    bulk, wishart_bulk, edge, bbp_wigner, bbp_transition, fluctuation, bbp_rectangular, rectangular_fluctuation,
    bbp_covariance, covariance_fluctuation, measure, *UNIVERSALITY,
)  # fmt: skip
"""Every claim of this module."""
