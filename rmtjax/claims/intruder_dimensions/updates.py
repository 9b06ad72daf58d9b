r"""Claims about updates: LoRA of rank r, orthogonal LoRA, full fine-tuning, and bases for which none of it is universal.

Sizes are as in `rmtjax.claims.intruder_dimensions.spikes`: N columns and cN rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError
from rmtjax.claims._shared import ASPECT, COLUMNS, check_above, check_rows, dense, overlap_window, window
from rmtjax.ensembles import outlier
from rmtjax.ensembles.wigner import goe, wigner
from rmtjax.laws import intruders, perturbation, semicircle, spikes
from rmtjax.montecarlo import Claim, Sampler, between, grid, positive, real, size, zipped

__all__ = ["CLAIMS"]

_VECTORS = 200
"""Trials for a sampler that decomposes two matrices."""


# -- LoRA of rank r ------------------------------------------------------------------------------------------------------


def _oblique(theta, theta2, cosine):
    r"""Return a left frame F of that cosine, (..., 2, 2), and the update :math:`F\Theta` in an orthogonal right frame."""
    theta, theta2, cosine = np.broadcast_arrays(*(np.asarray(a, float) for a in (theta, theta2, cosine)))
    frame = np.stack(
        [np.stack([np.ones_like(cosine), cosine], -1), np.stack([0 * cosine, np.sqrt(1 - cosine**2)], -1)], -2
    )
    return frame, frame * np.stack([theta, theta2], -1)[..., None, :]


def _rank_two_law(c, theta, theta2, cosine):
    frame, update = _oblique(theta, theta2, cosine)
    left, strengths, right = np.linalg.svd(update)
    outlier = spikes.rectangular_outlier(strengths, np.asarray(c)[..., None])
    share_left = spikes.rectangular_overlap(strengths, np.asarray(c)[..., None])
    share_right = spikes.rectangular_overlap(strengths, np.asarray(c)[..., None], side="right")
    # Overlaps of the first two vectors with the first direction of either side.
    along_left, along_right = np.einsum("...ik,...i->...k", left, frame[..., 0]), right[..., 0]
    return {
        **{f"outlier_{k + 1}": outlier[..., k] for k in range(2)},
        **{f"overlap_left_{k + 1}": share_left[..., k] * along_left[..., k] ** 2 for k in range(2)},
        **{f"overlap_right_{k + 1}": share_right[..., k] * along_right[..., k] ** 2 for k in range(2)},
    }


def _draw_rank_two(key, N, c, theta, theta2, cosine):
    frame = jnp.array([[jnp.ones_like(cosine), cosine], [jnp.zeros_like(cosine), jnp.sqrt(1 - cosine**2)]])
    drawn = outlier.rectangular_outliers(key, jnp.round(c * N), N, jnp.stack([theta, theta2]), frame)
    return {
        **{f"outlier_{k + 1}": drawn.outlier[k] for k in range(2)},
        **{f"overlap_left_{k + 1}": drawn.overlap_left[k, 0] for k in range(2)},
        **{f"overlap_right_{k + 1}": drawn.overlap_right[k, 0] for k in range(2)},
    }


def _rank_two_bias(N, c, theta, theta2, cosine):
    strengths = np.linalg.svd(_oblique(theta, theta2, cosine)[1], compute_uv=False)
    smaller = np.minimum(N, c * N)
    apart = np.abs(strengths[..., 0] - strengths[..., 1])
    biases = {}
    for k in range(2):
        distance = strengths[..., k] / c**0.25 - 1
        biases[f"outlier_{k + 1}"] = (1 + c) * window(smaller, distance) + 1 / (smaller * apart)
        for side in ("left", "right"):
            biases[f"overlap_{side}_{k + 1}"] = overlap_window(smaller, distance) + 1 / (smaller * apart**2)
    return biases


rank_two = Claim(
    name="bbp-rank-two",
    equation=r"W + \theta_1u_1v_1^\top + \theta_2u_2v_2^\top:\quad \sigma_{out,k} = \sqrt{(1+t_k^2)(c+t_k^2)}/t_k,\quad "
    r"t = \sigma(U\Theta V^\top)",
    source="Intruder Dimensions, §IV-C; directions that are not orthogonal count by the update's singular values",
    params=dict(
        N=COLUMNS,
        c=ASPECT,
        theta=positive("strength θ₁"),
        theta2=positive("strength θ₂"),
        cosine=between(-1, 1, "inner product of u₁ and u₂; v₁ and v₂ are orthogonal", open_low=True, open_high=True),
    ),
    law=_rank_two_law,
    samplers=dict(compressed=Sampler(_draw_rank_two, default_trials=4_000)),
    grid=grid(zipped(theta=[3.0, 4.0, 3.0], theta2=[2.0, 2.5, 3.0], cosine=[0.0, 0.5, -0.3]), N=[1e3, 1e9], c=[0.5]),
    check=check_rows,
    bias_bound=_rank_two_bias,
)


def _orthogonal(rank: int) -> Claim:
    def draw(key, N, c, scale):
        theta = jnp.full(rank, scale / rank)
        return {"outlier": jnp.mean(outlier.rectangular_outliers(key, jnp.round(c * N), N, theta).outlier)}

    def bias(N, c, scale):
        # Equal spikes repel: at first order this does not shift their mean.
        return (1 + c) * rank * window(np.minimum(N, c * N), scale / rank / c**0.25 - 1)

    return Claim(
        name=f"orthogonal-lora-{rank}",
        equation=rf"\Delta = \frac a{{{rank}}}BA^\top,\ B^\top B = A^\top A = I_{{{rank}}}:\quad "
        r"\frac1r\sum_k\sigma_k = \sqrt{(1+t^2)(c+t^2)}/t \text{ for } t = \frac ar > c^{1/4}, \text{ else } 1 + \sqrt c",
        source=f"Intruder Dimensions, §V-B, for r = {rank}",
        params=dict(N=COLUMNS, c=ASPECT, scale=positive("scale a of the update")),
        law=lambda c, scale: {"outlier": spikes.rectangular_outlier(np.asarray(scale) / rank, c)},
        samplers=dict(compressed=Sampler(draw, block=256, default_trials=1_000)),
        grid=grid(zipped(scale=[1.2 * rank, 2.0 * rank, 0.5 * rank], N=[1e6, 1e6, 2e3]), c=[1.0]),
        check=check_rows,
        bias_bound=bias,
    )


ORTHOGONAL = tuple(map(_orthogonal, (2, 3)))


# -- full fine-tuning ----------------------------------------------------------------------------------------------------


def _levels(N: int) -> np.ndarray:
    """Return a spectrum to perturb: the semicircle's quantiles, descending."""
    with jax.ensure_compile_time_eval():
        return np.asarray(semicircle.ppf(1 - (np.arange(N) + 0.5) / N))


def _perturbed(key, N, i, delta):
    values = jnp.asarray(_levels(N))
    Delta = delta * goe(key, N)
    new, vectors = jnp.linalg.eigh(jnp.diag(values) + Delta)
    # In units of δ²/N; without the first order, whose mean is zero, far fewer trials show the shift.
    unit = delta**2 / N
    return {
        "first": (new[-i] - values[i - 1]) ** 2 / (2 * unit),
        "second": (new[-i] - values[i - 1] - Delta[i - 1, i - 1]) / unit,
        "rotation": (1 - vectors[i - 1, -i] ** 2) / unit,
    }


def _perturbation_sums(N, i):
    """Return Σ_{j≠i} (λ_i − λ_j)^{−1} and ^{−2}, elementwise."""

    def sums(N, i):
        values = _levels(int(N))
        gaps = np.delete(values[int(i) - 1] - values, int(i) - 1)
        return np.sum(1 / gaps), np.sum(1 / gaps**2)

    return np.vectorize(sums)(N, i)


def _perturbation_law(N, i, delta):
    first, second = _perturbation_sums(N, i)
    still = 0 * np.asarray(delta)
    return {"first": 1.0 + still, "second": first + still, "rotation": second + still}


def _perturbation_bias(N, i, delta):
    # The next order is smaller by the expected rotation.
    _, crowding = _perturbation_sums(N, i)
    small = np.asarray(delta) ** 2 / N * crowding
    return {"first": 3 * small, "second": 6 * small * np.sqrt(crowding), "rotation": 6 * small * crowding}


def _check_index(N, i):
    if i > N:
        raise InputError(f"i = {i:g}: must be at most N = {N:g}")


perturbative = Claim(
    name="full-fine-tuning-perturbation",
    equation=r"\frac N{2\delta^2}E(\lambda_i'-\lambda_i)^2 = 1,\quad \frac N{\delta^2}E(\lambda_i'-\lambda_i-\Delta_{ii}) = "
    r"\sum_{j\ne i}\frac1{\lambda_i-\lambda_j},\quad \frac N{\delta^2}E(1-\langle v_i,v_i'\rangle^2) = "
    r"\sum_{j\ne i}\frac1{(\lambda_i-\lambda_j)^2}",
    source="Intruder Dimensions, §III-C, and the second order",
    params=dict(
        N=size("dimension; the eigenvalues are the semicircle's quantiles"),
        i=size("which eigenvalue, 1 the largest"),
        delta=positive("size δ of the update, entries of variance δ²/N"),
    ),
    law=_perturbation_law,
    samplers=dict(dense=dense(_perturbed, "N", "i", default_trials=20_000)),
    grid=grid(N=[20], i=[1, 2, 10], delta=[0.01]),
    check=_check_index,
    bias_bound=_perturbation_bias,
)


def _shares(weights, values, x):
    """Return the share of a vector that lies on eigenvectors with eigenvalues ≤ x."""
    return {"share": jnp.sum(jnp.where(values[:, None] <= x, weights[:, None], 0.0), 0)}


def _rotated(key, N, delta, x):
    base_key, update_key = jax.random.split(key)
    base = goe(base_key, N)
    values, old = jnp.linalg.eigh(base)
    new = jnp.linalg.eigh(base + delta * goe(update_key, N))[1][:, N // 2]
    return _shares((old.T @ new) ** 2, values, x)


def _planted(key, N, theta, x):
    base_key, spike_key = jax.random.split(key)
    base = goe(base_key, N)
    values, old = jnp.linalg.eigh(base)
    u = jax.random.normal(spike_key, (N,), base.dtype)
    u = u / jnp.linalg.norm(u)
    return _shares((old.T @ jnp.linalg.eigh(base + theta * jnp.outer(u, u))[1][:, -1]) ** 2, values, x)


_ANGLES = (np.arange(4000) + 0.5) * np.pi / 4000
"""Midpoints, at which λ = 2 cos φ has the semicircle's weights."""


def _share_below(x, profile):
    """Return ∫_{−2}^x of a profile of N·overlaps against the semicircle; `profile(λ)` has one axis more than x."""
    points = 2 * np.cos(_ANGLES)
    weights = 2 * np.sin(_ANGLES) ** 2 / len(_ANGLES)
    return np.sum(np.where(points <= np.asarray(x)[..., None], weights * profile(points), 0.0), -1)


full = Claim(
    name="full-fine-tuning",
    equation=r"\sum_{\lambda_j \le x}\langle v_j, v'\rangle^2 = \int_{-2}^x\frac{\sqrt{4-\lambda^2}}{2\pi}"
    r"\frac{\delta^2}{\lambda^2+\delta^4/(1+\delta^2)}d\lambda,\quad \lambda' = 0",
    source="Intruder Dimensions, §III-C, beyond perturbation theory; Ledoit & Péché 2011, Allez & Bouchaud 2012",
    params=dict(
        N=size("dimension of the GOE base"),
        delta=positive("size δ of the dense update"),
        x=real("eigenvalues up to which the old eigenvectors count"),
    ),
    law=lambda delta, x: {
        "share": _share_below(
            x,
            lambda old: np.asarray(
                perturbation.overlap(0.0, old, np.asarray(delta)[..., None] + 0 * np.asarray(x)[..., None])
            ),
        )
    },
    samplers=dict(dense=dense(_rotated, "N", default_trials=_VECTORS)),
    grid=grid(N=[201], delta=[0.3, 0.6], x=np.linspace(-1.5, 1.5, 7)),
    within=("x",),
    bias_bound=lambda N, delta, x: 0.2 / (N * delta**2) + 0 * x,
)

planted = Claim(
    name="lora-eigenbasis",
    equation=r"\sum_{\lambda_j \le x}\langle w_j, \hat v\rangle^2 = \int_{-2}^x\frac{\sqrt{4-\lambda^2}}{2\pi}"
    r"\frac{\theta^2-1}{(\theta+1/\theta-\lambda)^2}d\lambda",
    source="Intruder Dimensions, §IV-C: the outlier is spread over all eigenvectors of the base (docs/intruder-law.md)",
    params=dict(
        N=size("dimension of the GOE base"),
        theta=positive("strength θ > 1 of the spike"),
        x=real("eigenvalues up to which the old eigenvectors count"),
    ),
    law=lambda theta, x: {
        "share": _share_below(
            x,
            lambda old: np.asarray(
                intruders.wigner_overlap_profile(old, np.asarray(theta)[..., None] + 0 * np.asarray(x)[..., None])
            ),
        )
    },
    samplers=dict(dense=dense(_planted, "N", default_trials=_VECTORS)),
    grid=grid(N=[200], theta=[1.5, 3.0], x=np.linspace(-1.5, 1.5, 7)),
    within=("x",),
    check=lambda theta: check_above("theta", theta, 1.0),
    bias_bound=lambda N, theta, x: 0.5 / (N * (theta - 1) ** 2) + 0 * x,
)


# -- where universality ends ----------------------------------------------------------------------------------------------


def _heavy_law(N, nu, x):
    from scipy import stats

    scale = np.sqrt((nu - 2) / (nu * N))
    strength = (x + np.sqrt(np.maximum(x**2 - 4, 0))) / 2
    expected = N * (N - 1) * stats.t.sf(strength / scale, nu) + N * stats.t.sf(strength / np.sqrt(2) / scale, nu)
    return {"above": -np.expm1(-expected)}


heavy = Claim(
    name="heavy-tails",
    equation=r"P(\lambda_{max} > x) = 1 - \exp\Big(-\sum_{i<j}P(|w_{ij}| > t) - \sum_iP(w_{ii} > t)\Big),\quad t = "
    r"\frac{x+\sqrt{x^2-4}}2",
    source="ours (docs/derivations.md), against the universality of Intruder Dimensions, §II-A3; Soshnikov 2004",
    params=dict(
        N=size("dimension"),
        nu=between(2, 4, "degrees of freedom of Student's t", open_low=True, open_high=True),
        x=between(2, np.inf, "place beyond the edge", open_low=True),
    ),
    law=_heavy_law,
    samplers=dict(
        dense=dense(
            lambda key, N, nu, x: {"above": jnp.linalg.eigvalsh(wigner(key, N, f"student-t:{nu:g}"))[-1] > x},
            "N",
            "nu",
            default_trials=4_000,
        )
    ),
    grid=grid(N=[60], nu=[3.0], x=[2.6, 3.5, 6.0]),
    within=("x",),
    bias_bound=lambda N, nu, x: 0.2 / N + 0 * x,
)

CLAIMS = (rank_two, *ORTHOGONAL, perturbative, full, planted, heavy)
"""Every claim of this module."""
