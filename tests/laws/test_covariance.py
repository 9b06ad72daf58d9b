"""The law of the α-fine-tuned classifier on classes of any covariance: against its own definition, special cases and draws."""

import jax
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import brentq

from rmtjax import InputError
from rmtjax.laws import alpha_ftc as law
from rmtjax.laws.alpha_ftc import RepeatedEigenvalues, SpikedCovariance, covariance_scalars, covariance_scalars_for_coef

P, N_TARGET, N_SOURCE, GAMMA, SOURCE_GAMMA = 40, 20, 80, 0.5, 1.5
VALUES, SOURCE_VALUES = np.repeat([4.0, 1.0], 20), np.repeat([2.0, 3.0], 20)
MEAN, SOURCE_MEAN = np.zeros((2, P))
MEAN[[0, 1, 20]], SOURCE_MEAN[[0, 20]] = (0.6, 0.8, 0.3), (1.0, -0.5)


def random_orthogonal(rng, p):
    return np.linalg.qr(rng.normal(size=(p, p)))[0]


def random_covariance(rng, p):
    """Gamma-distributed eigenvalues in a random basis."""
    basis = random_orthogonal(rng, p)
    return (basis * rng.gamma(2.0, 0.5, p)) @ basis.T


def scalars_of(sigma, mean, source_sigma, source_mean):
    return covariance_scalars(sigma, mean, N_TARGET, GAMMA, source_sigma, source_mean, N_SOURCE, SOURCE_GAMMA)


def literal(sigma, mean, n, gamma, source_sigma, source_mean, N, source_gamma):
    """The definition: resolvents with a shift tΣ, and second moments as derivatives in t by central differences."""
    p, step = len(mean), 1e-4

    def delta_of(sigma, n, gamma, shift):
        def solve(delta):
            A = sigma / (1 + delta) + gamma * np.eye(p) + shift
            return np.trace(np.linalg.solve(A, sigma)) / n - delta

        return brentq(solve, 0, 100 * p / n, xtol=1e-14, rtol=1e-14)

    def at(sigma, mean, n, gamma, shift):
        delta = delta_of(sigma, n, gamma, shift)
        A = (sigma + np.outer(mean, mean)) / (1 + delta) + gamma * np.eye(p) + shift
        return delta, np.linalg.inv(A)

    def margin(sigma, mean, n, gamma, shift):
        delta, Q = at(sigma, mean, n, gamma, shift)
        return (mean @ Q @ mean / (1 + delta) + delta) / (1 + delta)

    def slope(function):
        return (function(step) - function(-step)) / (2 * step)

    delta, Q = at(sigma, mean, n, gamma, 0)
    source_delta, source_Q = at(source_sigma, source_mean, N, source_gamma, 0)
    w = source_Q @ source_mean / (1 + source_delta)

    def v1(t):
        delta, Q = at(sigma, mean, n, gamma, t * sigma)
        return mean @ Q @ w / (1 + delta)

    def second_moment(t):
        Q = at(sigma, mean, n, gamma, t * sigma)[1]
        return -slope(lambda s: margin(source_sigma, source_mean, N, source_gamma, s * Q))

    return law.MarginMoments(
        m0=mean @ Q @ mean / (1 + delta),
        m1=gamma * mean @ Q @ w,
        v0=-slope(lambda t: margin(sigma, mean, n, gamma, t * sigma)),
        v1=-gamma * slope(v1),
        v2=-(gamma**2) * slope(second_moment),
    )


def test_it_is_its_definition():
    """To the error of the differences; what a source scatters along the means, O(1/p), is in the definition of v₂ alone."""
    rng = np.random.default_rng(0)
    arguments = random_covariance(rng, P), MEAN, 30, 0.7, random_covariance(rng, P), SOURCE_MEAN, 90, 1.3
    found, wanted = covariance_scalars(*arguments), literal(*arguments)
    np.testing.assert_allclose(found[:4], wanted[:4], rtol=2e-6)
    np.testing.assert_allclose(found.v2, wanted.v2, rtol=1 / P)
    assert abs(float(found.v2) / wanted.v2 - 1) > 1e-5


IDENTITIES = {
    "number": 1.0,
    "eigenvalues": np.ones(P),
    "matrix": np.eye(P),
    "repeated": RepeatedEigenvalues(np.ones(P), np.ones(P)),
    "spiked": SpikedCovariance(np.ones(3), np.eye(P)[:, :3], 1.0),
}


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
@pytest.mark.parametrize("gamma", [1e-3, 1.0, 1e3])
def test_of_the_identity_it_is_the_isotropic_law(identity, gamma):
    for n, N in ((20, 80), (80, 20)):
        found = covariance_scalars(identity, MEAN, n, gamma, identity, SOURCE_MEAN, N, 0.3)
        beta = MEAN @ SOURCE_MEAN / (SOURCE_MEAN @ SOURCE_MEAN)
        source = law.ridge_source(0.3, P / N, np.linalg.norm(SOURCE_MEAN), beta)
        wanted = law.scalars(gamma, P / n, np.linalg.norm(MEAN), source)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_all_forms_of_a_covariance_agree():
    wanted = scalars_of(VALUES, MEAN, SOURCE_VALUES, SOURCE_MEAN)
    Q = random_orthogonal(np.random.default_rng(1), P)
    matrices = scalars_of((Q * VALUES) @ Q.T, Q @ MEAN, (Q * SOURCE_VALUES) @ Q.T, Q @ SOURCE_MEAN)
    target, source = SpikedCovariance(VALUES[:20], Q[:, :20], 1.0), SpikedCovariance(SOURCE_VALUES[:20], Q[:, :20], 3.0)
    spiked = scalars_of(target, Q @ MEAN, source, Q @ SOURCE_MEAN)
    mixed = scalars_of(target, Q @ MEAN, (Q * SOURCE_VALUES) @ Q.T, Q @ SOURCE_MEAN)
    at, counts = [0, 1, 20], [1, 19, 20]
    repeated = scalars_of(
        RepeatedEigenvalues(VALUES[at], counts),
        MEAN[at],
        RepeatedEigenvalues(SOURCE_VALUES[at], counts),
        SOURCE_MEAN[at],
    )
    for found in (matrices, spiked, mixed, repeated):
        np.testing.assert_allclose(found, wanted, rtol=1e-11)


def test_beyond_its_coordinates_a_spiked_covariance_is_its_scale():
    """Given with few coordinates and p, or with all of them."""
    rng = np.random.default_rng(2)
    small, more = random_orthogonal(rng, 6)[:, :2], np.zeros((500, 2))
    more[:6] = small
    means = rng.normal(size=(2, 6)) / 2
    long = np.pad(means, ((0, 0), (0, 494)))
    short = SpikedCovariance([5.0, 0.1], small, 1.5, 500)
    full = SpikedCovariance([5.0, 0.1], more, 1.5)
    other, other_full = SpikedCovariance([7.0], small[:, :1], 0.5, 500), SpikedCovariance([7.0], more[:, :1], 0.5)
    np.testing.assert_allclose(
        scalars_of(short, means[0], other, means[1]), scalars_of(full, long[0], other_full, long[1]), rtol=1e-12
    )


def test_large_dimensions_cost_nothing():
    """At p = 10¹² the law is that of p = 10⁹ at the same ratios and the same spike."""
    at = [
        covariance_scalars(
            SpikedCovariance([5.0], [[1.0], [0.0]], 1.0, p), [0.6, 0.8], p / 2, 1.0,
            SpikedCovariance([3.0], [[0.6], [0.8]], 2.0, p), [1.0, 0.0], 2 * p, 1.0,
        )
        for p in (1e9, 1e12)
    ]  # fmt: skip
    np.testing.assert_allclose(*at, rtol=1e-7)


@pytest.mark.parametrize("gamma", [1e-6, 1e-2, 1e2])
@pytest.mark.parametrize("n", [3, 39, 40, 41, 400])
def test_the_effective_ridge_solves_its_equation(gamma, n):
    """By bisection to the last digit, for eigenvalues over six decades; what is judged is d, where κ enters."""
    values = np.geomspace(1e-4, 1e2, P)
    kappa = brentq(
        lambda k: k - gamma - k * np.sum(values / (values + k)) / n, gamma, gamma + values.sum() / n, xtol=1e-300
    )
    d = np.sum((values / (values + kappa)) ** 2) / n
    omega = MEAN / (values + kappa) / (1 + np.sum(MEAN**2 / (values + kappa)))
    wanted = (omega @ (values * omega) + d * (1 - omega @ MEAN) ** 2) / (1 - d)
    for form in (values, np.diag(values)):
        found = covariance_scalars_for_coef(form, MEAN, n, gamma, SOURCE_MEAN)
        np.testing.assert_allclose(found.v0, wanted, rtol=1e-8)


def test_several_sources():
    """Sources learnt from data of their own are independent; with one of them the law is that of one."""
    rng = np.random.default_rng(3)
    covariances = tuple(random_covariance(rng, P) for _ in range(2))
    sigma, means = random_covariance(rng, P), np.stack([SOURCE_MEAN, MEAN])
    both = covariance_scalars(sigma, MEAN, 20, 0.5, covariances, means, [80, 50], [1.5, 0.2])
    assert both.m1.shape == (2,) and both.v2.shape == (2, 2)
    for k, (N, gamma) in enumerate([(80, 1.5), (50, 0.2)]):
        one = covariance_scalars(sigma, MEAN, 20, 0.5, covariances[k], means[k], N, gamma)
        np.testing.assert_allclose([both.m0, both.m1[k], both.v0, both.v1[k], both.v2[k, k]], one, rtol=1e-12)
    best = np.asarray(law.optimal_alpha(both))
    assert law.accuracy(both, best) > max(
        law.accuracy(both, best * np.array([1.1, 1])), law.accuracy(both, best * np.array([1, 1.1]))
    )


def test_given_classifiers():
    rng = np.random.default_rng(4)
    coefs = rng.normal(size=(2, P)) / 4
    found = covariance_scalars_for_coef(1.0, MEAN, 20, 0.5, coefs)
    wanted = law.scalars(0.5, P / 20, np.linalg.norm(MEAN), law.SourceStatistics(coefs @ coefs.T, coefs @ MEAN))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    single = covariance_scalars_for_coef(VALUES, MEAN, 20, 0.5, coefs[0])
    double = covariance_scalars_for_coef(VALUES, MEAN, 20, 0.5, coefs)
    np.testing.assert_allclose(single, [double.m0, double.m1[0], double.v0, double.v1[0], double.v2[0, 0]], rtol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("order", [1, 2])
def test_derivatives(order):
    """In every argument, in a program without float64 too."""
    Q = random_orthogonal(np.random.default_rng(5), 8)
    values, source_values, mean, source_mean = (
        x[[0, 1, 2, 3, 20, 21, 22, 23]] for x in (VALUES, SOURCE_VALUES, MEAN, SOURCE_MEAN)
    )

    def of_matrices(sigma, mean, n, gamma, source_sigma, source_mean, N, source_gamma):
        symmetric = [(x + x.T) / 2 for x in (sigma, source_sigma)]
        return law.best_accuracy(
            covariance_scalars(symmetric[0], mean, n, gamma, symmetric[1], source_mean, N, source_gamma)
        )

    def of_spikes(eigenvalues, scale, mean):
        target = SpikedCovariance(eigenvalues, Q[:, :4], scale)
        return law.best_accuracy(
            scalars_of(target, mean, SpikedCovariance(source_values[:4], Q[:, :4], 3.0), Q @ source_mean)
        )

    matrices = [np.asarray(x) for x in (
        (Q * values) @ Q.T, Q @ mean, 20.0, 0.5, (Q * source_values) @ Q.T, Q @ source_mean, 80.0, 1.5,
    )]  # fmt: skip
    with jax.enable_x64(True):
        check_grads(jax.jit(of_matrices), matrices, order, modes=("fwd", "rev"))
        check_grads(jax.jit(of_spikes), (values[:4], 1.0, Q @ mean), order, modes=("fwd", "rev"))
        wanted = jax.grad(of_matrices, (0, 1, 2, 3))(*matrices)
    for found, exact in zip(jax.grad(of_matrices, (0, 1, 2, 3))(*matrices), wanted, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-9)


def test_vmap_and_jit():
    gammas = np.array([0.1, 1.0, 10.0])
    many = jax.jit(jax.vmap(lambda gamma: covariance_scalars(VALUES, MEAN, 20, gamma, 1.0, SOURCE_MEAN, 80, 1.5)))(
        gammas
    )
    for i, gamma in enumerate(gammas):
        one = covariance_scalars(VALUES, MEAN, 20, gamma, 1.0, SOURCE_MEAN, 80, 1.5)
        np.testing.assert_allclose([x[i] for x in many], one, rtol=1e-6)  # vmap's results are read as float32


def test_dense_draws_in_unrelated_bases():
    """At level 1e-5 for five means: 800 draws at p = 120, within 4.9 standard errors and 1/p of the law."""
    rng = np.random.default_rng(6)
    p, n, N, draws = 120, 60, 300, 800
    sigma, source_sigma = random_covariance(rng, p), random_covariance(rng, p)
    mean, source_mean = np.zeros((2, p))
    mean[:2], source_mean[0] = (0.8, 0.6), 1.0
    roots = [np.linalg.cholesky(matrix) for matrix in (sigma, source_sigma)]
    drawn = np.empty((draws, 5))
    for row in drawn:
        X = source_mean[:, None] + roots[1] @ rng.normal(size=(p, N))
        source = np.linalg.solve(X @ X.T / N + 1.3 * np.eye(p), X.mean(1))
        X = mean[:, None] + roots[0] @ rng.normal(size=(p, n))
        w, u = np.linalg.solve(X @ X.T / n + 0.7 * np.eye(p), np.stack([X.mean(1), 0.7 * source], 1)).T
        row[:] = w @ mean, u @ mean, w @ sigma @ w, w @ sigma @ u, u @ sigma @ u
    wanted = np.array(covariance_scalars(sigma, mean, n, 0.7, source_sigma, source_mean, N, 1.3))
    allowed = 4.9 * drawn.std(0) / draws**0.5 + np.abs(wanted) / p
    assert np.all(np.abs(drawn.mean(0) - wanted) < allowed), (drawn.mean(0), wanted, allowed)
    isotropic = np.array(covariance_scalars(np.trace(sigma) / p, mean, n, 0.7, 1.0, source_mean, N, 1.3))
    assert np.any(np.abs(drawn.mean(0) - isotropic) > 3 * allowed)  # the same means would refute another law


NEGATIVE = np.eye(P)
NEGATIVE[3, 3] = -0.25
LOPSIDED = np.eye(P)
LOPSIDED[0, 1] = 0.5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(sigma=NEGATIVE), "sigma has the eigenvalue -0.25"),
        (dict(source_sigma=LOPSIDED), "source_sigma is not symmetric"),
        (dict(sigma=np.eye(P + 1)), "sigma has shape"),
        (dict(sigma=-VALUES), "sigma = -4"),
        (dict(sigma=np.full((P, P), np.nan)), "sigma has an entry nan"),
        (dict(sigma=np.ones((2, P, P))), "sigma has shape"),
        (dict(source_mean=MEAN[:5]), "source_mean has 5 coordinates"),
        (dict(mean=np.full(P, np.inf)), "mean has an entry inf"),
        (dict(mean=MEAN[None]), "mean has shape"),
        (dict(n=0), "n = 0"),
        (dict(N=-1), "N = -1"),
        (dict(gamma=0.0), "gamma = 0"),
        (dict(source_gamma=np.nan), "source_gamma = nan"),
        (dict(n=[1, 2]), "n has shape"),
        (dict(N=[1, 2]), "N has shape"),
        (dict(source_sigma=[VALUES, VALUES]), "source_sigma holds 2 covariances"),
        (dict(sigma=SpikedCovariance([2.0], np.ones((P, 1)))), "sigma.basis is not orthonormal"),
        (dict(sigma=SpikedCovariance([2.0], np.eye(P)[:, :2])), "sigma has eigenvalues"),
        (dict(sigma=SpikedCovariance([-2.0], np.eye(P)[:, :1])), "sigma.eigenvalues = -2"),
        (dict(sigma=SpikedCovariance([2.0], np.eye(P)[:, :1], 1.0, 30)), "sigma.p = 30"),
        (dict(sigma=SpikedCovariance([2.0], np.eye(P)[:, :1], -1.0)), "sigma.scale = -1"),
        (
            dict(sigma=SpikedCovariance([2.0], np.eye(P)[:, :1]), source_sigma=VALUES),
            "source_sigma is not a SpikedCovariance",
        ),
        (dict(sigma=RepeatedEigenvalues([2.0], [5])), "sigma.eigenvalues has shape"),
        (dict(sigma=RepeatedEigenvalues(VALUES, np.zeros(P))), "sigma.counts = 0"),
        (dict(sigma=RepeatedEigenvalues(VALUES, np.full(P, 2.0)), source_sigma=VALUES), "source_sigma has no counts"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(arguments, says):
    given = dict(
        sigma=1.0, mean=MEAN, n=20, gamma=0.5, source_sigma=1.0, source_mean=SOURCE_MEAN, N=80, source_gamma=1.5
    )
    with pytest.raises(InputError) as error:
        covariance_scalars(**{**given, **arguments})
    assert str(error.value).startswith(says) and "\n" not in str(error.value)
