r"""The α-fine-tuned classifier where the classes have covariances that are no multiple of the identity.

Coordinates fall into two groups. In the first one, a share of all p, the noise has the variances ``high`` in the target and
``high_source`` in the source; in the second one it has variance 1 in both. Every mean has the share ``lean`` of its squared norm
in the first group.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax._errors import InputError
from rmtjax.claims.alpha_lora._shared import ALPHA, MODEL, RIDGE, SIZES, check_means, dense_sampler, limit_error
from rmtjax.ensembles.alpha_ftc import grouped
from rmtjax.ensembles.chi import chi
from rmtjax.ensembles.entries import entries as draw_entries
from rmtjax.laws import alpha_ftc as law
from rmtjax.linalg.ridge import ridge_solve
from rmtjax.montecarlo import Claim, Sampler, between, grid, positive, real, zipped

__all__ = ["CLAIMS"]

_GROUPS = dict(
    share=between(0, 1, "share of the coordinates in the first group", open_low=True, open_high=True),
    high=positive("variance of the target's noise in the first group; 1 in the second"),
    high_source=positive("variance of the source's noise in the first group; 1 in the second"),
    lean=between(0, 1, "share of the means' squared norms in the first group"),
)


def _counts(p, share) -> Float[Array, "2"]:
    first = jnp.round(share * p)
    return jnp.stack([first, p - first])


def _variances(high) -> Float[Array, "2"]:
    return jnp.stack([high, jnp.ones_like(high)])


def _in_groups(lean, *vectors) -> list[Float[Array, "2 c"]]:
    """Spread vectors over both groups: each has the same coordinates in both but for the share of its norm there."""
    weights = jnp.sqrt(jnp.stack([lean, 1 - lean]))
    return [weights[:, None] * jnp.stack(vector) for vector in vectors]


def _check(p, beta, mu, mu_perp, share, least=3):
    check_means(p, beta, mu, mu_perp)
    first = round(share * p)
    if min(first, p - first) < least:
        raise InputError(
            f"share = {share:g}: must leave {least} coordinates or more in each group, of p = {p:g} it leaves"
            f" {min(first, p - first):g}"
        )


def _repeated(p, share, high) -> law.RepeatedEigenvalues:
    """The covariance with a coordinate of its own for each of two directions in each group."""
    counts = _counts(p, share)
    ones = jnp.ones_like(counts)
    return law.RepeatedEigenvalues(jnp.repeat(_variances(high), 2), jnp.stack([ones, counts - 1], 1).ravel())


def _limit_law(p, n, N, beta, mu, mu_perp, gamma, gamma_source, share, high, high_source, lean):
    zero = jnp.zeros_like(mu)
    source_mean, mean = _in_groups(lean, (mu, zero), (beta * mu, mu_perp))
    return law.covariance_scalars(
        _repeated(p, share, high), mean.ravel(), n, gamma,
        _repeated(p, share, high_source), source_mean.ravel(), N, gamma_source,
    )  # fmt: skip


def _outputs(scalars: law.MarginMoments, alpha) -> dict[str, Array]:
    """The accuracy at each α, and the scalars, which do not depend on it."""
    return {"accuracy": law.accuracy(scalars, alpha), **{k: v + 0 * alpha for k, v in scalars._asdict().items()}}


def _elementwise(function):
    """Let a law of numbers take arrays that broadcast."""

    def law_of_arrays(**params):
        names, shape = list(params), jnp.broadcast_shapes(*(jnp.shape(value) for value in params.values()))
        flat = [jnp.broadcast_to(jnp.asarray(value, float), shape).ravel() for value in params.values()]
        result = jax.vmap(lambda *values: function(**dict(zip(names, values, strict=True))))(*flat)
        return {name: value.reshape(shape) for name, value in result.items()}

    return law_of_arrays


def _grouped_scalars(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, share, high, high_source, lean):
    source_key, target_key = jax.random.split(key)
    counts, zero = _counts(p, share), jnp.zeros_like(mu)
    source_mean, mean = _in_groups(lean, (mu, zero), (beta * mu, mu_perp, zero))
    leading, rest = grouped.ridge_source(source_key, N, _variances(high_source), counts, source_mean, gamma_source)
    sources = jnp.concatenate([leading, rest[:, None]], 1)[None]
    several = grouped.target_scalars(target_key, n, _variances(high), counts, mean, gamma, sources)
    return law.MarginMoments(several.m0, several.m1[0], several.v0, several.v1[0], several.v2[0, 0])


def _spread_out(p: int, share, lean, *vectors) -> list[Float[Array, "p"]]:
    """Vectors with given coordinates along two orthogonal directions in each group, which no coordinate dominates."""
    is_first = jnp.arange(p) < jnp.round(share * p)
    directions = []
    for inside in (is_first, ~is_first):
        count = inside.sum()
        position = jnp.cumsum(inside) - 1
        one = jnp.where(inside, 1 / jnp.sqrt(count), 0.0)
        two = one * jnp.where(position < count // 2, 1.0, -1.0)
        two = two - one * (one @ two)
        directions.append(jnp.stack([one, two / jnp.linalg.norm(two)]))
    return [jnp.einsum("gc,gcp->p", coordinates, jnp.stack(directions)) for coordinates in _in_groups(lean, *vectors)]


def _dense_fit(key, count: int, deviations, mean, gamma, others, entries: str) -> Float[Array, "p k"]:
    """Draw a data set, and return the ridge solutions for the mean of its samples and for γ times other vectors."""
    x = deviations[:, None] * draw_entries(key, (mean.size, count), entries, mean.dtype) + mean[:, None]
    return ridge_solve(x, gamma, jnp.concatenate([x.sum(1, keepdims=True) / count, gamma * others], 1))


def _dense_scalars(
    key, p, n, N, beta, mu, mu_perp, gamma, gamma_source, share, high, high_source, lean, entries, dtype
):
    source_key, target_key = jax.random.split(key)
    vectors = _spread_out(p, share, lean, (mu, jnp.zeros_like(mu)), (beta * mu, mu_perp))
    is_first = jnp.arange(p) < jnp.round(share * p)
    variances = jnp.where(is_first, high, 1.0)
    deviations = [jnp.sqrt(jnp.where(is_first, high_source, 1.0)), jnp.sqrt(variances)]
    source_mean, mean, source_scale, scale, gamma, gamma_source = (
        array.astype(dtype) for array in (*vectors, *deviations, gamma, gamma_source)
    )
    source = _dense_fit(source_key, N, source_scale, source_mean, gamma_source, jnp.zeros((p, 0), dtype), entries)
    w, u = _dense_fit(target_key, n, scale, mean, gamma, source, entries).astype(jnp.float64).T
    m = vectors[1]
    return law.MarginMoments(w @ m, u @ m, w @ (variances * w), w @ (variances * u), u @ (variances * u))


def _batch_size(p=1, n=1, N=1, **_):
    """Return the number of data sets drawn at once: their matrices of order n and N stay in the caches."""
    return max(1, int(2**20 // (n * n + N * N)))


_ALPHAS = [-1.0, 0.0, 0.5, 1.0, 2.0, 4.0]
_FIXED = dict(beta=0.8, mu=1.0, mu_perp=0.6, gamma=1.0, gamma_source=1.0)

covariance = Claim(
    name="alpha-ftc-covariance",
    equation=r"v_\alpha = \frac{\bar w_\alpha^\top\Sigma\bar w_\alpha + d(1-m_\alpha)^2"
    r" + \alpha^2\kappa^2\operatorname{tr}(C\Sigma C\operatorname{Cov}\tilde w)}{1-d}",
    source="ours: α-LoRA, Theorem 4.2 and Proposition 4.3, for classes of any covariance",
    params={**MODEL, **_GROUPS, **ALPHA},
    law=_elementwise(lambda alpha, **model: _outputs(_limit_law(**model), alpha)),
    samplers=dict(
        compressed=Sampler(
            lambda key, alpha, **model: _outputs(_grouped_scalars(key, **model), alpha),
            static_argnames=("n", "N"),
            block=64,
            batch_size=_batch_size,
            default_trials=2_000,
        ),
        dense=dense_sampler(lambda key, alpha, **model: _outputs(_dense_scalars(key, **model), alpha)),
    ),
    grid=grid(
        zipped(p=[100, 1e3, 1e6], n=[50, 50, 50], N=[100, 100, 100]),
        **_FIXED,
        share=0.3,
        high=[0.2, 5.0],
        high_source=[1.0, 5.0],
        lean=[0.1, 0.7],
        alpha=_ALPHAS,
    ),
    within=("alpha",),
    check=_check,
    bias_bound=limit_error(0.3),
    comparison_grid=grid(
        zipped(p=[30, 16], n=[15, 40], N=[60, 30]),
        **_FIXED,
        share=0.3,
        high=5.0,
        high_source=[0.2, 2.0],
        lean=0.7,
        alpha=_ALPHAS,
    ),
)


def _two_means(mu, beta, beta_second):
    """Return the means of two sources, which are orthogonal, and of the target, by their coordinates."""
    zero = jnp.zeros_like(mu)
    return (mu, zero), (zero, mu), (beta * mu, beta_second * mu)


def _sources_law(p, n, N, beta, beta_second, mu, gamma, gamma_source, share, high, high_source, high_second, lean):
    first, second, mean = _in_groups(lean, *_two_means(mu, beta, beta_second))
    return law.covariance_scalars(
        _repeated(p, share, high), mean.ravel(), n, gamma,
        (_repeated(p, share, high_source), _repeated(p, share, high_second)), jnp.stack([first.ravel(), second.ravel()]),
        N, gamma_source,
    )  # fmt: skip


def _mixed(scalars: law.MarginMoments, optimum: law.MarginMoments, alpha) -> dict[str, Array]:
    """The accuracy along the best mixture of the sources, which is that of the limit."""
    return {
        "accuracy": law.accuracy(scalars, jnp.atleast_1d(alpha)[:, None] * law.optimal_alpha(optimum)).reshape(
            jnp.shape(alpha)
        )
    }


def _sources_by_law(alpha, **model):
    scalars = _sources_law(**model)
    return _mixed(scalars, scalars, alpha)


def _grouped_sources(
    key, p, n, N, alpha, beta, beta_second, mu, gamma, gamma_source, share, high, high_source, high_second, lean
):
    first_key, second_key, angle_key, target_key = jax.random.split(key, 4)
    counts, means = _counts(p, share), _in_groups(lean, *_two_means(mu, beta, beta_second))
    drawn = [
        grouped.ridge_source(source_key, N, _variances(variance), counts, mean, gamma_source)
        for source_key, variance, mean in zip((first_key, second_key), (high_source, high_second), means, strict=False)
    ]
    # Off the means' directions a classifier points anywhere: the second one's cosine with the first is that of a random vector.
    normal_key, chi_key = jax.random.split(angle_key)
    along, across = jax.random.normal(normal_key, (2,), jnp.float64), chi(chi_key, counts - 3)
    cosine = along / jnp.hypot(along, across)
    zero, sine = jnp.zeros(2), jnp.sqrt(1 - cosine**2)
    (leading, rest), (second_leading, second_rest) = drawn
    sources = jnp.stack(
        [
            jnp.concatenate([leading, jnp.stack([rest, zero], 1)], 1),
            jnp.concatenate([second_leading, second_rest[:, None] * jnp.stack([cosine, sine], 1)], 1),
        ]
    )
    mean = jnp.concatenate([means[2], jnp.zeros((2, 2))], 1)
    scalars = grouped.target_scalars(target_key, n, _variances(high), counts, mean, gamma, sources)
    limit = _sources_law(
        p, n, N, beta, beta_second, mu, gamma, gamma_source, share, high, high_source, high_second, lean
    )
    return _mixed(scalars, limit, alpha)


def _dense_sources(key, alpha, entries, dtype, **model):
    p, n, N, lean = (model[name] for name in ("p", "n", "N", "lean"))
    keys = jax.random.split(key, 3)
    means = _spread_out(p, model["share"], lean, *_two_means(model["mu"], model["beta"], model["beta_second"]))
    is_first = jnp.arange(p) < jnp.round(model["share"] * p)
    variances = [jnp.where(is_first, model[name], 1.0) for name in ("high_source", "high_second", "high")]

    def fit(i, count, ridge, others):
        scale, mean, ridge = (x.astype(dtype) for x in (jnp.sqrt(variances[i]), means[i], ridge))
        return _dense_fit(keys[i], count, scale, mean, ridge, others, entries)

    learnt = jnp.concatenate([fit(i, N, model["gamma_source"], jnp.zeros((p, 0), dtype)) for i in range(2)], 1)
    solutions = fit(2, n, model["gamma"], learnt).astype(jnp.float64)
    margins, spread = solutions.T @ means[2], solutions.T @ (variances[2][:, None] * solutions)
    scalars = law.MarginMoments(margins[0], margins[1:], spread[0, 0], spread[0, 1:], spread[1:, 1:])
    return _mixed(scalars, _sources_law(**model), alpha)


sources = Claim(
    name="alpha-ftc-covariance-sources",
    equation=r"\mathrm{acc}(\alpha\,a^\star),\quad a = M^{-1}m,\ a^\star = a_{1,2}/a_0",
    source="ours: α-LoRA, Appendix D, for two sources whose classes have covariances of their own",
    params=dict(
        **SIZES,
        beta=real("coordinate of μ_β along the first source's mean, in units of ‖μ‖"),
        beta_second=real("the same along the second source's mean, which is orthogonal to the first's"),
        mu=positive("norm of both sources' means"),
        **RIDGE,
        **_GROUPS,
        high_second=positive("variance of the second source's noise in the first group; 1 in the second"),
        alpha=real("scale of the best mixture; 1 is the optimum"),
    ),
    law=_elementwise(_sources_by_law),
    samplers=dict(
        compressed=Sampler(
            _grouped_sources, static_argnames=("n", "N"), block=64, batch_size=_batch_size, default_trials=2_000
        ),
        dense=dense_sampler(_dense_sources),
    ),
    grid=grid(
        zipped(p=[100, 1e3, 1e6], n=[50, 50, 50], N=[100, 100, 100]),
        beta=0.8,
        beta_second=[-0.3, 0.5],
        mu=1.0,
        gamma=1.0,
        gamma_source=1.0,
        share=0.3,
        high=[0.2, 5.0],
        high_source=5.0,
        lean=0.7,
        high_second=0.5,
        alpha=[0.0, 0.5, 1.0, 2.0],
    ),
    within=("alpha",),
    check=lambda p, beta, beta_second, mu, share: _check(p, beta, mu, beta_second, share, least=4),
    bias_bound=limit_error(0.15),
    comparison_grid=grid(
        zipped(p=[30, 16], n=[15, 40], N=[60, 30]), beta=0.8, beta_second=0.5, mu=1.0, gamma=1.0, gamma_source=1.0,
        share=0.3, high=5.0, high_source=2.0, lean=0.7, high_second=0.5, alpha=[0.0, 1.0],
    ),
)  # fmt: skip

CLAIMS = (covariance, sources)
"""Every claim of this module."""
