"""Ranks, the calibrated test of a spectrum, and fits of bulk and spikes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from threadpoolctl import threadpool_limits

from rmtjax import InputError
from rmtjax.laws import marchenko_pastur, semicircle
from rmtjax.spectra.bulk_fit import bulk_fit, bulk_fit_symmetric
from rmtjax.spectra.esd_test import esd_distance, esd_test
from rmtjax.spectra.ranks import effective_rank, stable_rank


@pytest.fixture(autouse=True)
def one_thread():
    """Many small decompositions: waking LAPACK's threads would take longer than the work."""
    with threadpool_limits(1, user_api="blas"):
        yield


def goe(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Matrices (..., N, N) with off-diagonal variance 1/N."""
    a = rng.normal(size=(*shape, shape[-1]))
    return (a + a.swapaxes(-1, -2)) / np.sqrt(2 * shape[-1])


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_ranks():
    for values, effective, stable in (
        ([3.0, 3.0, 3.0, 0.0], 3.0, 3.0),
        ([0.0, 5.0, 0.0, 0.0], 1.0, 1.0),
        ([0.0, 0.0, 0.0, 0.0], 0.0, 0.0),
        ([1.0, 0.0, 1.0, 2.0], 2 * np.sqrt(2), 1.5),  # p = ¼, ¼, ½: entropy 1.5 log 2
    ):
        for scale in (1e-300, 1.0, 1e300):
            np.testing.assert_allclose(effective_rank(np.array(values) * scale), effective, rtol=1e-13)
            np.testing.assert_allclose(stable_rank(np.array(values) * scale), stable, rtol=1e-13)
    batch = np.array([[1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(effective_rank(batch), [1, 2], rtol=1e-14)
    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(effective_rank))(jnp.array([2.0, 1.0, 0.0]))
        assert np.all(np.isfinite(slope[:2]))
        np.testing.assert_allclose(slope @ jnp.array([2.0, 1.0, 0.0]), 0, atol=1e-14)  # scale does not matter
        assert np.all(np.isfinite(jax.grad(stable_rank)(jnp.array([2.0, 1.0, 0.0]))))


# -- a spectrum against a law ------------------------------------------------------------------------------------------


def test_distance_is_kolmogorovs():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(3, 50))
    got = esd_distance(values, lambda x: jax.scipy.stats.norm.cdf(x))
    np.testing.assert_allclose(got, [stats.kstest(v, "norm").statistic for v in values], rtol=1e-12)
    assert float(esd_distance(np.array([0.3]), lambda x: jnp.clip(x, 0, 1))) == pytest.approx(0.7)


def test_atoms_are_compared_with_atoms():
    """20 of 60 eigenvalues are 0, as the law says; counted as a continuous law the distance would be a third."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(60, 40))
    values = np.append(np.linalg.eigvalsh(x.T @ x / 40), np.zeros(20))
    distance = float(esd_distance(values, lambda v: marchenko_pastur.cdf(v, 1.5)))
    assert 0 < distance < 0.05
    half = np.array([0.0, 0.0, 1.0, 1.0])
    assert float(esd_distance(half, lambda v: jnp.where(v < 0, 0.0, jnp.where(v < 1, 0.5, 1.0)))) == 0.0


@pytest.mark.thorough
def test_p_values_are_uniform():
    """80 spectra of each ensemble: KS of the p-values against uniform at 1e-4 each, a false alarm in 3e-4 for the three.

    The classical p-value is above 0.999 for all of them but the smallest: eigenvalues keep closer to the law than
    independent draws ever do.
    """
    rng = np.random.default_rng(7)
    naive = []
    for law, shape, options in (
        ("semicircle", None, {}),
        ("singular", (30, 20), {}),
        ("marchenko-pastur", (30, 20), {"sigma": 1.7}),
    ):
        p_values = []
        for i in range(80):
            if shape is None:
                values = 1.7 * np.linalg.eigvalsh(goe(rng, 40))
                naive.append(stats.kstest(values / 1.7, lambda x: np.asarray(semicircle.cdf(x))).pvalue)
            else:
                values = 1.7 * np.linalg.svd(rng.normal(size=shape), compute_uv=False) / np.sqrt(shape[1])
                values = values**2 if law == "marchenko-pastur" else values
            test = esd_test(values, law, shape, draws=99, key=jax.random.key(i), **options)
            p_values.append(test.p_value)
        # Whole multiples of 1/100: spread them out evenly.
        spread = np.array(p_values) - rng.uniform(size=80) / 100
        assert stats.kstest(spread, "uniform").pvalue > 1e-4, (law, options)
    assert np.min(naive) > 0.9 and np.median(naive) > 0.999


@pytest.mark.thorough
def test_what_is_no_wigner_matrix_is_found_out():
    """Independent draws from the law itself, entries without a variance, two levels, and the wrong shape."""
    rng = np.random.default_rng(8)
    n = 40
    heavy = np.tril(rng.standard_t(1.5, size=(n, n)))
    for values in (
        np.asarray(semicircle.ppf(rng.uniform(size=n))),
        np.linalg.eigvalsh(heavy + np.tril(heavy, -1).T),
        np.linalg.eigvalsh(goe(rng, n) + np.diag(np.repeat([-2, 2], n // 2))),
    ):
        assert esd_test(values, draws=99).p_value == 0.01
    values = np.linalg.svd(rng.normal(size=(40, 20)), compute_uv=False)
    assert esd_test(values, "singular", (40, 20), draws=99).p_value > 0.01
    assert esd_test(values, "singular", (30, 20), draws=99).p_value == 0.01
    # Rademacher entries are Wigner's too: universality. One false alarm in a hundred, as above.
    sign = np.tril(rng.choice([-1.0, 1.0], size=(n, n)))
    assert esd_test(np.linalg.eigvalsh(sign + np.tril(sign, -1).T), draws=99).p_value > 0.01


@pytest.mark.thorough
def test_result_of_the_test():
    rng = np.random.default_rng(9)
    values = 2 * np.linalg.eigvalsh(goe(rng, 40))
    one = esd_test(values, draws=99)
    again = esd_test(values[::-1], "semicircle", draws=99, key=jax.random.key(0))
    assert one.null.shape == (99,) and np.array_equal(one.null, again.null) and one.p_value == again.p_value
    assert abs(one.sigma - 2) < 0.15 and one.statistic <= one.distance <= one.statistic + 1 / 640
    np.testing.assert_allclose(one.distance, esd_distance(values / one.sigma, semicircle.cdf), rtol=1e-12)
    assert one.p_value == (1 + np.sum(one.null >= one.statistic)) / 100
    # β = 2 keeps closer to its law.
    assert np.mean(esd_test(values, beta=2.0, draws=99).null) < np.mean(one.null)
    # A law and sampler of one's own: uniform numbers, where the classical test is right.
    uniform, points = (lambda x: jnp.clip(x, 0, 1)), np.linspace(0.2, 1, 30)
    own = esd_test(points, uniform, sampler=lambda k: jax.random.uniform(k, (30,)), draws=999)
    assert abs(own.p_value - stats.kstest(points, "uniform").pvalue) < 0.05
    # All eigenvalues of XXᵀ/n or those that are not 0.
    x = rng.normal(size=(30, 20))
    values = np.linalg.eigvalsh(x @ x.T / 20)
    every, some = (esd_test(v, "marchenko-pastur", (30, 20), draws=99) for v in (values, values[-20:]))
    assert every[:3] == some[:3]


# -- bulk and spikes ---------------------------------------------------------------------------------------------------


def entries(rng: np.random.Generator, law: str, shape: tuple[int, int]) -> np.ndarray:
    if law == "rademacher":
        return rng.choice([-1.0, 1.0], size=shape)
    if law == "student":
        return rng.standard_t(6, size=shape) / np.sqrt(6 / 4)
    return rng.normal(size=shape)


def spiked(rng, n: int, m: int, strengths, sigma: float = 2.0, law: str = "gaussian") -> np.ndarray:
    """Singular values of noise plus Haar spikes, strengths in units of σ."""
    r = len(strengths)
    u, v = (np.linalg.qr(rng.normal(size=(size, max(r, 1))))[0][:, :r] for size in (n, m))
    noise = entries(rng, law, (n, m)) / np.sqrt(m)
    return np.linalg.svd(sigma * (noise + u * np.array(strengths) @ v.T), compute_uv=False)


@pytest.mark.parametrize(
    ("n", "m", "strengths", "law"),
    [
        (1000, 500, np.linspace(2.0, 6, 20), "gaussian"),
        (1000, 500, np.full(20, 3.0), "student"),
        (300, 600, np.geomspace(1.5, 100, 10), "gaussian"),
        (400, 400, np.linspace(1.7, 5, 10), "rademacher"),
        (500, 200, [], "gaussian"),
    ],
)
def test_sigma_and_spikes(n, m, strengths, law):
    """σ to 0.4 %, three to four of its standard errors, for Gaussian entries of 0.1 to 0.2 %; every spike found and no other.

    The weakest spikes are 20 % above the threshold c^{1/4}. False alarm below 1e-3 a case, seed fixed.
    """
    rng = np.random.default_rng(10)
    values = spiked(rng, n, m, strengths, law=law)
    shuffled = rng.permutation(values.size)
    fit = bulk_fit(values[shuffled], n, m)
    assert fit.count == len(strengths) and fit.c == n / m
    np.testing.assert_array_equal(values[shuffled][fit.spikes], values[: len(strengths)])
    assert abs(fit.sigma / 2 - 1) < 0.004
    np.testing.assert_allclose(fit.sigma_error, fit.sigma / np.sqrt(2 * n * m), rtol=0.1)
    root = np.sqrt(n / m)
    np.testing.assert_allclose([fit.lower, fit.upper], fit.sigma * np.array([abs(1 - root), 1 + root]), rtol=1e-14)
    assert 0.98 < fit.threshold / fit.upper < 1.05
    # Without the sides: c ≤ 1 to 2 %, σ in units of the longer side.
    free = bulk_fit(values)
    assert free.count == fit.count
    np.testing.assert_allclose(free.c, min(n / m, m / n), rtol=0.02)
    np.testing.assert_allclose(free.sigma * np.sqrt(min(m / n, 1)), fit.sigma, rtol=0.002)


def test_error_of_sigma():
    """Over 300 matrices 30×20, with two spikes and without: unbiased to four standard errors and as scattered as it says.

    The standard deviation of 300 is known to 4 %. A σ from all values, spikes included, would be 30 % off.
    """
    rng = np.random.default_rng(11)
    for strengths in ([], [8.0, 5.0]):
        fits = [bulk_fit(spiked(rng, 30, 20, strengths), 30, 20) for _ in range(300)]
        sigma = np.array([f.sigma for f in fits])
        error = np.mean([f.sigma_error for f in fits])
        assert abs(np.mean(sigma) / 2 - 1) < 4 * error / 2 / np.sqrt(300) + 0.002
        assert abs(np.std(sigma) / error - 1) < 0.2


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (10, 10), (5, 40), (60, 60)])
def test_noise_alone_shows_no_spikes(n, m):
    """At level 0.2 no more than 0.2 of 150 matrices of any shape show one; at 60×60 nearly as many: 0.19 of 1,000 did.

    Four standard errors of 0.033 either way: a false alarm in 1e-4 a case.
    """
    rng = np.random.default_rng(12)
    noise = [np.linalg.svd(rng.normal(size=(n, m)), compute_uv=False) for _ in range(150)]
    found = np.mean([bulk_fit(s, n, m, level=0.2).count > 0 for s in noise])
    assert found < 0.33
    if n == m:
        symmetric = np.linalg.eigvalsh(goe(rng, 150, n))
        assert np.mean([bulk_fit_symmetric(w, level=0.2).count > 0 for w in symmetric]) < 0.33
    if n == 60:
        assert found > 0.06


def test_symmetric_bulk_and_spikes():
    rng = np.random.default_rng(13)
    n, strengths = 500, np.array([4.0, -3.0, 2.0, -1.5, 1.4])
    u = np.linalg.qr(rng.normal(size=(n, 5)))[0]
    values = 0.5 * np.linalg.eigvalsh(goe(rng, n) + u * strengths @ u.T)
    fit = bulk_fit_symmetric(values)
    assert fit.count == 5
    np.testing.assert_array_equal(np.sign(values[fit.spikes]), np.sign(strengths))
    assert abs(fit.sigma / 0.5 - 1) < 0.006  # four standard errors of 1/N, and a little
    np.testing.assert_allclose(fit.sigma_error, fit.sigma / n, rtol=0.02)
    assert (fit.lower, fit.upper) == (-2 * fit.sigma, 2 * fit.sigma)
    # Complex: the same matrix size, half the variance on the diagonal.
    a = rng.normal(size=(200, 200)) + 1j * rng.normal(size=(200, 200))
    complex_fit = bulk_fit_symmetric(np.linalg.eigvalsh(a + a.T.conj()) / np.sqrt(800), beta=2)
    assert complex_fit.count == 0 and abs(complex_fit.sigma * np.sqrt(800 / 800) - 1) < 4 / 200


def test_a_few_large_spikes_do_not_hide_many_small_ones():
    """A third of all values are spikes, one of them a thousand times the bulk."""
    rng = np.random.default_rng(14)
    values = spiked(rng, 240, 180, np.append([1000.0], np.full(59, 6.0)))
    fit = bulk_fit(values, 240, 180)
    assert fit.count == 60 and abs(fit.sigma / 2 - 1) < 0.03


@pytest.mark.thorough
def test_a_spectrum_that_is_not_noise_and_spikes():
    """A power law: the fit stands still at a σ whose own edge separates bulk and spikes, and the test refuses the bulk."""
    values = np.arange(1, 301.0) ** -0.7
    fit = bulk_fit(values, 300, 300)
    assert 0 < fit.count < 150
    assert values[fit.count - 1] > fit.threshold >= values[fit.count]
    assert np.all(np.isfinite(fit[:6]))
    assert esd_test(values, "singular", (300, 300), draws=99).p_value == 0.01


def test_matrices_without_noise():
    zeros = bulk_fit(np.zeros(5), 5, 7)
    assert zeros.sigma == 0 and zeros.count == 0
    assert bulk_fit_symmetric(np.zeros(5)).sigma == 0
    low_rank = bulk_fit(np.append([3.0, 2.0], np.zeros(98)), 100, 100)
    assert low_rank.sigma == 0 and low_rank.count == 2


# -- bad input ---------------------------------------------------------------------------------------------------------

I3 = np.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: effective_rank(np.array([1.0, -1.0])),
            "singular_values has an entry -1.0: none may be negative",
        ),
        (lambda: stable_rank(np.zeros(0)), r"singular_values has shape \(0,\)"),
        (lambda: esd_distance(np.array([np.nan]), semicircle.cdf), "values has an entry nan"),
        (lambda: esd_test(np.ones(3), "semicirle"), "law 'semicirle' is unknown; did you mean 'semicircle'"),
        (lambda: esd_test(np.ones((3, 3))), r"values has shape \(3, 3\)"),
        (lambda: esd_test(np.ones(3), shape=(3, 3)), "None for the semicircle"),
        (lambda: esd_test(np.ones(3), "singular"), "shape = None: must be two whole numbers"),
        (lambda: esd_test(np.ones(3), "singular", (4, 5)), "values has 3 entries: must have 4"),
        (lambda: esd_test(-np.ones(3), "singular", (3, 5)), "values has an entry -1.0: none may be negative"),
        (lambda: esd_test(np.zeros(3)), "values are all 0: sigma cannot be estimated"),
        (lambda: esd_test(np.ones(3), sigma=0.0), "sigma = 0.0: must be a finite number > 0"),
        (lambda: esd_test(np.ones(3), beta=-1), "beta = -1: must be a finite number > 0"),
        (lambda: esd_test(np.ones(3), draws=0), "draws = 0: must be a whole number ≥ 1"),
        (lambda: esd_test(np.ones(3), semicircle.cdf), "sampler is not given"),
        (lambda: bulk_fit(np.ones(3), 3), "n = 3, m = None: give both"),
        (lambda: bulk_fit(np.ones(3), 4, 5), "singular_values has 3 entries: must have min"),
        (lambda: bulk_fit(np.ones(3), 3, 0), "m = 0: must be a whole number ≥ 1"),
        (lambda: bulk_fit(-np.ones(3), 3, 3), "singular_values has an entry -1.0"),
        (lambda: bulk_fit(np.array([1.0, np.inf]), 2, 3), "singular_values has an entry inf"),
        (lambda: bulk_fit(np.ones(0), 1, 1), r"singular_values has shape \(0,\)"),
        (lambda: bulk_fit(np.ones(3), 3, 3, level=0.0), "level = 0.0: must be a finite number in \\(0, 1\\)"),
        (lambda: bulk_fit(np.ones(3), 3, 3, beta=3), "beta = 3: must be"),
        (lambda: bulk_fit_symmetric(np.ones((2, 2))), r"eigenvalues has shape \(2, 2\)"),
        (lambda: bulk_fit_symmetric(np.ones(2), level=1.0), "level = 1.0: must be a finite number in \\(0, 1\\)"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
