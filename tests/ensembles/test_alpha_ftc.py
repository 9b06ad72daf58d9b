"""The compressed samplers against plain NumPy, the dense sampler against plain NumPy, and the law against both."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from rmtjax.ensembles.alpha_ftc import compressed, dense
from rmtjax.ensembles.entries import entries
from rmtjax.laws import alpha_ftc as law

# False alarms: fewer than 320 two-sample KS tests at p < 2e-6 make 6e-4, some forty means at 4.5 standard errors (7e-6)
# 3e-4: below 1e-3 for the file. Seeds are fixed.
P, Z = 2e-6, 4.5
SAMPLED, DENSE = 10_000, 4_000
NAMES = law.MarginMoments._fields


@pytest.fixture(autouse=True)
def double():
    """The samplers work in float64."""
    with jax.enable_x64(True):
        yield


def batched(draw):
    """One program for every size: keys along the batch, everything else traced and shared."""
    program = jax.jit(lambda keys, *a: jax.vmap(lambda k: draw(k, *a))(keys))

    def run(seed, *arguments, trials=SAMPLED):
        keys = jax.random.split(jax.random.key(seed), trials)
        result = program(keys, *jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), arguments))
        return jax.tree.map(np.asarray, result)

    return run


def _scalars(key, p, n, N, beta, mu, mu_perp, gamma, gamma_source):
    source_key, target_key = jax.random.split(key)
    source = compressed.ridge_source(source_key, p, N, gamma_source, mu, beta, mu_perp)
    mean_norm = jnp.sqrt(beta**2 * mu**2 + mu_perp**2)
    return source, compressed.target_scalars(target_key, p, n, gamma, mean_norm, source)


sample_scalars = batched(_scalars)
sample_given = batched(compressed.target_scalars)
sample_margin = batched(compressed.training_margin)
sample_forms = batched(compressed.resolvent_forms)


# -- the obvious way, in NumPy -----------------------------------------------------------------------------------------


def basis(p: int, k: int) -> np.ndarray:
    """The k-th axis, or nothing where the space ends."""
    return np.eye(p)[k] if k < p else np.zeros(p)


def train(rng, count, mean, n, gamma):
    """Resolvents Q, ridge classifiers w and data with labels folded in, `count` times."""
    p = mean.size
    x = rng.normal(size=(count, p, n)) + mean[:, None]
    q = np.linalg.inv(x @ x.transpose(0, 2, 1) / n + gamma * np.eye(p))
    return q, np.einsum("tij,tj->ti", q, x.mean(2)), x


def given_source(rng, count, n, mean, gamma, sources) -> law.MarginMoments:
    """Conditional scalars for source vectors (count or 1, p, K)."""
    q, w, _ = train(rng, count, mean, n, gamma)
    u = gamma * q @ sources
    return law.MarginMoments(
        w @ mean,
        np.einsum("tik,i->tk", u, mean),
        np.sum(w * w, 1),
        np.einsum("tik,ti->tk", u, w),
        np.einsum("tij,tik->tjk", u, u),
    )


def whole(
    rng, count, p, n, N, beta, mu, mu_perp, gamma, gamma_source
) -> tuple[law.SourceStatistics, law.MarginMoments]:
    """Both trainings from data, as the paper writes them."""
    mean = mu * basis(p, 0)
    target = beta * mean + mu_perp * basis(p, 1)
    _, source, _ = train(rng, count, mean, N, gamma_source)
    s = given_source(rng, count, n, target, gamma, source[:, :, None])
    return law.SourceStatistics(np.sum(source**2, 1), source @ target), law.MarginMoments(
        s.m0, s.m1[:, 0], s.v0, s.v1[:, 0], s.v2[:, 0, 0]
    )


def same_law(sample: dict[str, np.ndarray], wanted: dict[str, np.ndarray]):
    """Two-sample KS on every named statistic; one that is a constant must be that constant."""
    assert sample.keys() == wanted.keys()
    for name, y in wanted.items():
        assert np.all(np.isfinite(sample[name])), name
        # To nine digits, or rounding would tell apart two samples of ±1, such as a cosine in one dimension.
        scale = np.max(np.abs(y))
        x, y = np.round(sample[name] / scale, 9), np.round(y / scale, 9)
        if np.ptp(y) < 1e-8:
            np.testing.assert_allclose(x, np.mean(y), rtol=1e-7, err_msg=name)
        else:
            assert stats.ks_2samp(x, y).pvalue > P, name


def single_statistics(scalars: law.MarginMoments) -> dict[str, np.ndarray]:
    """The five scalars, and functions of several that see how they hang together."""
    m0, m1, v0, v1, v2 = scalars
    return dict(zip(NAMES, scalars, strict=True)) | {
        "accuracy": ndtr((m0 + 0.7 * m1) / np.sqrt(v0 + 1.4 * v1 + 0.49 * v2)),
        "cosine": v1 / np.sqrt(v0 * v2),
        "m0²/v0": m0**2 / v0,
        "m1/m0": m1 / m0,
    }


SIZES = [
    (12, 40, 30),
    (30, 15, 60),
    (20, 20, 10),
    (5, 1, 8),
    (8, 12, 1),
    (2, 3, 4),
    (2, 1, 1),
    (3, 1, 2),
    (3, 2, 2),
    (4, 40, 2),
    (1, 6, 5),
    (1, 1, 1),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("p", "n", "N"), SIZES)
def test_the_whole_chain_has_the_dense_law(p, n, N):
    model = (0.8, 1.2, 0.6 if p > 1 else 0.0, 0.3, 0.7)
    source, scalars = sample_scalars(p + 100 * n + N, p, n, N, *model)
    wanted_source, wanted = whole(np.random.default_rng(1), DENSE, p, n, N, *model)
    same_law(
        {"‖w̃‖²": source.gram, "b": source.alignment, "b²/‖w̃‖²": source.alignment**2 / source.gram},
        {
            "‖w̃‖²": wanted_source.gram,
            "b": wanted_source.alignment,
            "b²/‖w̃‖²": wanted_source.alignment**2 / wanted_source.gram,
        },
    )
    same_law(single_statistics(scalars), single_statistics(wanted))


@pytest.mark.thorough
def test_the_alignment_may_be_negative_or_absent():
    for beta, mu_perp in [(-0.5, 0.3), (0.0, 1.0), (1.0, 0.0)]:
        model = (9, 14, 12, beta, 1.2, mu_perp, 0.1, 2.0)
        _, scalars = sample_scalars(3, *model)
        _, wanted = whole(np.random.default_rng(2), DENSE, *model)
        same_law(single_statistics(scalars), single_statistics(wanted))


def several_statistics(scalars: law.MarginMoments) -> dict[str, np.ndarray]:
    """Every entry of the five, and the accuracies of two mixtures."""
    m0, m1, v0, v1, v2 = scalars
    K = m1.shape[1]
    result = {"m0": m0, "v0": v0}
    result |= {f"m1[{k}]": m1[:, k] for k in range(K)} | {f"v1[{k}]": v1[:, k] for k in range(K)}
    result |= {f"v2[{j},{k}]": v2[:, j, k] for j in range(K) for k in range(j + 1)}
    for a in (np.array([1.0, -0.5, 2.0])[:K], np.array([0.3, 0.8, -1.0])[:K]):
        v = v0 + 2 * v1 @ a + np.einsum("j,tjk,k->t", a, v2, a)
        result[f"accuracy{a}"] = ndtr((m0 + m1 @ a) / np.sqrt(v))
    return result


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("K", "p", "n"), [(2, 10, 6), (2, 6, 15), (2, 3, 2), (2, 2, 4), (3, 9, 14), (3, 5, 3), (3, 3, 4)]
)
def test_given_sources_have_the_dense_law(K, p, n):
    """Also where the sources fill the space (p ≤ K + 1): rows of the corner then do not exist."""
    rng = np.random.default_rng(K + 10 * p)
    w, mean = rng.normal(size=(p, K)), 1.3 * basis(p, 0)
    scalars = sample_given(4, p, n, 0.4, 1.3, law.SourceStatistics(w.T @ w, w.T @ mean))
    assert scalars.v2.shape == (SAMPLED, K, K)
    np.testing.assert_allclose(scalars.v2, scalars.v2.swapaxes(1, 2), rtol=1e-10)
    same_law(several_statistics(scalars), several_statistics(given_source(rng, DENSE, n, mean, 0.4, w[None])))


@pytest.mark.thorough
def test_sources_may_depend_on_each_other():
    """Two sources of which one is twice the other: the Gram matrix is singular, the samples follow suit."""
    rng = np.random.default_rng(5)
    w, mean = np.outer([1.0, 2.0, 2.0, 0, 0, 0], [1.0, 2.0]), 2.0 * basis(6, 0)
    scalars = sample_given(5, 6, 8, 0.4, 2.0, law.SourceStatistics(w.T @ w, w.T @ mean))
    np.testing.assert_allclose(scalars.m1[:, 1], 2 * scalars.m1[:, 0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scalars.v2[:, 1, 1], 4 * scalars.v2[:, 0, 0], rtol=1e-6)
    same_law(several_statistics(scalars), several_statistics(given_source(rng, DENSE, 8, mean, 0.4, w[None])))


@pytest.mark.thorough
@pytest.mark.parametrize(("p", "n"), [(10, 6), (6, 15), (2, 1), (2, 5), (1, 4), (7, 1)])
def test_margin_and_forms_have_the_dense_law(p, n):
    rng = np.random.default_rng(6)
    mean, gamma = 1.3 * basis(p, 0), 0.25
    q, w, x = train(rng, DENSE, mean, n, gamma)
    same_law({"margin": sample_margin(6, p, n, gamma, 1.3)}, {"margin": np.mean(np.einsum("tij,ti->tj", x, w), 1)})
    if p > 1:
        forms = sample_forms(7, p, n, gamma, 1.3)
        wanted = {"along": q[:, 0, 0], "across": q[:, 1, 1]}
        same_law(
            forms | {"product": forms["along"] * forms["across"]},
            wanted | {"product": wanted["along"] * wanted["across"]},
        )


@pytest.mark.thorough
def test_without_a_mean_nothing_is_learnt():
    """‖μ_β‖ = 0 is admissible for the margin and the forms, where along and across are alike."""
    forms = sample_forms(8, 10, 6, 0.25, 0.0)
    assert stats.ks_2samp(forms["along"], forms["across"]).pvalue > P
    assert np.all(np.isfinite(sample_margin(8, 10, 6, 0.25, 0.0)))


# -- the law against the compressed samplers ---------------------------------------------------------------------------


def close_to(sample: np.ndarray, wanted, name: str, allowance: float = 0.0):
    """The mean within 4.5 standard errors, apart from a stated bias."""
    error = np.abs(np.mean(sample, 0) - np.asarray(wanted))
    assert np.all(error < Z * np.std(sample, 0) / np.sqrt(len(sample)) + allowance), name


@pytest.mark.first(1)
@pytest.mark.parametrize(("n", "N", "gamma", "gamma_source"), [(5e8, 2e9, 1.0, 1.0), (3e9, 4e8, 0.3, 3.0)])
def test_law_at_a_billion_dimensions(n, N, gamma, gamma_source):
    """There is no bias left to hide in: 1e-9 or so against a standard error below 1e-6."""
    p, beta, mu, mu_perp = 1e9, 0.8, 1.0, 0.6
    source, scalars = sample_scalars(9, p, n, N, beta, mu, mu_perp, gamma, gamma_source, trials=SAMPLED)
    mean_norm = np.sqrt((beta * mu) ** 2 + mu_perp**2)
    wanted_source = law.ridge_source(gamma_source, p / N, mu, beta)
    wanted = law.scalars(gamma, p / n, mean_norm, wanted_source)
    margin = sample_margin(10, p, n, gamma, mean_norm)
    forms, wanted_forms = sample_forms(11, p, n, gamma, mean_norm), law.resolvent_forms(gamma, p / n, mean_norm)
    for name, sample, value in [
        *zip(NAMES, scalars, wanted, strict=True),
        *zip(("gram", "alignment"), source, wanted_source, strict=True),
        ("margin", margin, law.training_margin(gamma, p / n, mean_norm)),
        *((k, forms[k], wanted_forms[k]) for k in forms),
    ]:
        close_to(sample, value, name)
        assert abs(np.mean(sample) - float(value)) < 2e-6, name
        assert np.std(sample) / np.sqrt(SAMPLED) < 1e-6, name
    close_to(np.asarray(law.optimal_alpha(scalars)), law.optimal_alpha(wanted), "alpha*")


@pytest.mark.thorough
def test_law_of_three_sources_at_a_billion_dimensions():
    rng = np.random.default_rng(12)
    w = rng.normal(size=(4, 3)) / 2
    source = law.SourceStatistics(w.T @ w, 1.1 * w[0])
    scalars = sample_given(12, 1e9, 7e8, 0.8, 1.1, source)
    for name, sample, value in zip(NAMES, scalars, law.scalars(0.8, 1 / 0.7, 1.1, source), strict=True):
        close_to(sample, value, name)
        np.testing.assert_allclose(np.mean(sample, 0), value, atol=2e-6)


@pytest.mark.thorough
def test_bias_of_the_limit_falls_like_one_over_p():
    """Four times the size, a quarter of the bias, wherever it stands ten standard errors clear."""
    wanted = law.scalars(0.5, 1.0, 1.0, law.ridge_source(0.5, 1.0, 1.0, 0.8))
    bias, error = [], []
    for p in (8, 32):
        runs = [sample_scalars(20 + seed, p, p, p, 0.8, 1.0, 0.6, 0.5, 0.5)[1] for seed in range(10)]
        x = np.concatenate(runs, 1)
        bias.append(np.mean(x, 1) - np.array(wanted))
        error.append(np.std(x, 1) / np.sqrt(x.shape[1]))
    bias, error = np.array(bias), np.array(error)
    clear = np.abs(bias[1]) > 10 * error[1]
    assert np.sum(clear) >= 2
    ratio = bias[0, clear] / bias[1, clear]
    # A bias in 1/√p would give 2, one in 1/p² 16.
    assert np.all((ratio > 2.7) & (ratio < 6)), ratio


# -- the dense sampler -------------------------------------------------------------------------------------------------

means = jax.jit(dense.means, static_argnums=(0, 4))
fit_source = jax.jit(dense.fit_source, static_argnames=("N", "law"))
fit_target = jax.jit(dense.fit_target, static_argnames=("n", "law"))


def test_means_have_the_norms_and_the_angle():
    for p in (1, 2, 3, 10, 11):
        mean, target = map(np.asarray, means(p, 1.2, -0.7, 0.5 if p > 1 else 0.0))
        np.testing.assert_allclose(np.linalg.norm(mean), 1.2, rtol=1e-13)
        np.testing.assert_allclose(mean @ target, -0.7 * 1.2**2, rtol=1e-13)
        np.testing.assert_allclose(np.linalg.norm(target + 0.7 * mean), 0.5 if p > 1 else 0.0, rtol=1e-13, atol=1e-15)
        assert np.ptp(np.abs(mean)) < 1e-15  # spread over all coordinates


@pytest.mark.first(1)
@pytest.mark.parametrize(("p", "n", "N"), [(9, 14, 6), (14, 9, 20)])
def test_dense_is_the_textbook(p, n, N):
    """The very same draws through explicit inverses."""
    keys = jax.random.split(jax.random.key(14))
    mean, target = means(p, 1.2, 0.8, 0.6)
    gamma, gamma_source = jnp.float64(0.3), jnp.float64(0.7)
    source = fit_source(keys[0], N, mean, gamma_source, law="gaussian")
    fitted = fit_target(keys[1], n, target, gamma, source[:, None], law="gaussian")

    def resolvent(key, columns, centre, ridge):
        x = np.asarray(entries(key, (p, columns))) + np.asarray(centre)[:, None]
        return np.linalg.inv(x @ x.T / columns + float(ridge) * np.eye(p)), x

    q, x = resolvent(keys[0], N, mean, gamma_source)
    np.testing.assert_allclose(source, q @ x @ np.ones(N) / N, rtol=1e-10)
    q, x = resolvent(keys[1], n, target, gamma)
    # The paper's own form: α w̃ + (1/n) Q X (y − α Xᵀw̃), here at α = 1 and 0.
    w0, w1 = (q @ x @ (1 - a * x.T @ np.asarray(source)) / n + a * np.asarray(source) for a in (0, 1))
    np.testing.assert_allclose(fitted.w, w0, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fitted.w + fitted.u[:, 0], w1, rtol=1e-9, atol=1e-12)

    scalars, t = dense.conditional_scalars(fitted, target), np.asarray(target)
    u = w1 - w0
    np.testing.assert_allclose(scalars, [w0 @ t, u @ t, w0 @ w0, u @ w0, u @ u], rtol=1e-8, atol=1e-12)
    many = dense.conditional_scalars(fitted, target, several=True)
    assert [x.shape for x in many] == [(), (1,), (), (1,), (1, 1)]
    moments = dense.source_moments(source, target)
    np.testing.assert_allclose(moments, [np.sum(np.square(source)), np.asarray(source) @ t], rtol=1e-13)


def test_accuracy_on_points_is_the_conditional_accuracy():
    """A million fresh points for three α: 4.5 binomial standard errors."""
    keys = jax.random.split(jax.random.key(15), 3)
    mean, target = means(8, 1.2, 0.8, 0.6)
    gamma, alpha, size = jnp.float64(0.5), jnp.array([-1.0, 0.0, 2.0]), 1_000_000
    source = fit_source(keys[0], 12, mean, gamma, law="gaussian")
    fitted = fit_target(keys[1], 10, target, gamma, source[:, None], law="gaussian")
    exact = np.asarray(law.accuracy(dense.conditional_scalars(fitted, target), alpha))
    share = np.asarray(dense.accuracy_on_points(keys[2], fitted, target, alpha, size, "gaussian"))
    assert np.all(np.abs(share - exact) < Z * np.sqrt(exact * (1 - exact) / size))
    assert np.ptp(exact) > 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("noise", ["gaussian", "rademacher", "student-t:6", "sparse:0.5"])
def test_universality(noise):
    """Any entries of variance 1 obey the Gaussian law, but for about κ₄/(8p), κ₄ ≤ 3 their fourth cumulant, p = 100.

    0.5/p is allowed. A variance 15 % off, either way, was tried: it fails.
    """
    p, n, N, gamma, gamma_source, trials = 100, 70, 130, jnp.float64(0.5), jnp.float64(0.5), 600

    def one(key):
        keys = jax.random.split(key)
        mean, target = dense.means(p, 1.0, 0.8, 0.6)
        source = dense.fit_source(keys[0], N, mean, gamma_source, noise)
        fitted = dense.fit_target(keys[1], n, target, gamma, source[:, None], noise)
        return dense.conditional_scalars(fitted, target)

    keys = jax.random.split(jax.random.key(16), trials)
    scalars = jax.tree.map(np.asarray, jax.jit(lambda k: jax.lax.map(one, k))(keys))
    gaussian = sample_scalars(19, p, n, N, 0.8, 1.0, 0.6, 0.5, 0.5)[1]
    wanted = law.scalars(0.5, p / n, 1.0, law.ridge_source(0.5, p / N, 1.0, 0.8))
    for name, sample, finite, limit in zip(NAMES, scalars, gaussian, wanted, strict=True):
        close_to(sample, np.mean(finite), f"{noise} {name}", allowance=0.5 / p)
        close_to(sample, limit, f"{noise} {name} in the limit", allowance=2 / p)


@pytest.mark.thorough
def test_single_precision_dense_agrees():
    """The same key in float32: every scalar to 1e-4, and reported in float64."""

    def scalars(dtype):
        keys = jax.random.split(jax.random.key(17))
        mean, target = means(30, 1.0, 0.8, 0.6, dtype)
        source = fit_source(keys[0], 20, mean, jnp.float64(0.5), law="gaussian")
        fitted = fit_target(keys[1], 40, target, jnp.float64(0.5), source[:, None], law="gaussian")
        assert source.dtype == fitted.w.dtype == fitted.u.dtype == dtype
        return dense.conditional_scalars(fitted, target)

    single, exact = scalars(jnp.float32), scalars(jnp.float64)
    assert {x.dtype for x in single} == {jnp.dtype("float64")}
    np.testing.assert_allclose(single, exact, rtol=1e-4)


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_program_in_single_precision_gets_the_same_draw():
    """Called without `jax.enable_x64`: in a process of its own, as the answer might never come."""
    code = """
import jax, jax.numpy as jnp
from rmtjax.ensembles.alpha_ftc import compressed
draw = lambda: float(compressed.training_margin(jax.random.key(0), *map(jnp.asarray, (30.0, 20.0, 1.0, 1.0))))
with jax.enable_x64(True):
    wanted = draw()
assert abs(draw() - wanted) < 1e-12, (draw(), wanted)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=40, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
