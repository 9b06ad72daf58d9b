"""The spike laws against quadrature, against each other and against the equations they solve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from rmtjax._errors import InputError
from rmtjax.laws import spectral_measure, spikes

THETAS = np.array([0.3, 0.99, 1.0, 1.01, 1.5, 4.0, 50.0])
HALF = np.array([0.5, 1.0])


def test_wigner_solves_its_equation():
    """θ m(λ) = 1 with the semicircle's transform; overlap = dλ/dθ; continuous at the threshold."""
    theta = np.array([1.001, 1.3, 2.0, 7.0])
    outlier = np.asarray(spikes.wigner_outlier(theta))
    np.testing.assert_allclose(theta * (outlier - np.sqrt(outlier**2 - 4)) / 2, 1, rtol=1e-8)
    with jax.enable_x64(True):
        slope = jax.vmap(jax.grad(spikes.wigner_outlier))(jnp.array(theta))
    np.testing.assert_allclose(spikes.wigner_overlap(theta), slope, rtol=1e-10)
    np.testing.assert_allclose(spikes.wigner_outlier(np.array([0.1, 1.0])), 2)
    np.testing.assert_allclose(spikes.wigner_overlap(np.array([0.1, 1.0])), 0)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("c", [0.1, 1.0, 7.0])
def test_the_scale_of_the_noise_is_a_unit(c, sigma):
    np.testing.assert_allclose(
        spikes.wigner_outlier(sigma * THETAS, sigma=sigma), sigma * np.asarray(spikes.wigner_outlier(THETAS))
    )
    np.testing.assert_allclose(
        spikes.wigner_overlap(sigma * THETAS, sigma=sigma), spikes.wigner_overlap(THETAS), atol=1e-12
    )
    for law, unit in (
        (spikes.rectangular_outlier, sigma),
        (spikes.rectangular_overlap, 1),
        (functools.partial(spikes.rectangular_overlap, side="right"), 1),
    ):
        np.testing.assert_allclose(law(sigma * THETAS, c, sigma=sigma), unit * np.asarray(law(THETAS, c)), atol=1e-12)
    np.testing.assert_allclose(
        spikes.covariance_outlier(sigma**2 * THETAS, c, sigma=sigma),
        sigma**2 * np.asarray(spikes.covariance_outlier(THETAS, c)),
    )
    np.testing.assert_allclose(
        spikes.covariance_overlap(sigma**2 * THETAS, c, sigma=sigma), spikes.covariance_overlap(THETAS, c), atol=1e-12
    )


def test_rectangular_against_its_table():
    """Benaych-Georges & Nadakuditi 2012, written the other way round; left and right change places with n and m."""
    theta, c = np.meshgrid([2.0, 3.0, 10.0], [0.25, 1.0, 4.0])
    t2 = theta**2
    np.testing.assert_allclose(spikes.rectangular_overlap(theta, c), 1 - c * (1 + t2) / (t2 * (t2 + c)))
    np.testing.assert_allclose(spikes.rectangular_overlap(theta, c, side="right"), 1 - (c + t2) / (t2 * (t2 + 1)))
    np.testing.assert_allclose(spikes.rectangular_outlier(theta, 1.0), theta + 1 / theta)
    # Transposed and scaled to variance 1/n: θ, c ↦ θ/√c, 1/c.
    np.testing.assert_allclose(
        spikes.rectangular_overlap(theta, c), spikes.rectangular_overlap(theta / np.sqrt(c), 1 / c, side="right")
    )
    np.testing.assert_allclose(
        spikes.rectangular_outlier(theta, c),
        np.sqrt(c) * np.asarray(spikes.rectangular_outlier(theta / np.sqrt(c), 1 / c)),
    )
    np.testing.assert_allclose(
        spikes.rectangular_variance(theta, c), spikes.rectangular_variance(theta / np.sqrt(c), 1 / c), rtol=1e-12
    )
    np.testing.assert_allclose(spikes.rectangular_variance(theta, 1.0), 1 - 1 / t2)


def test_thresholds_and_edges():
    for c in (0.1, 1.0, 7.0):
        critical = float(spikes.rectangular_threshold(c))
        np.testing.assert_allclose(spikes.rectangular_outlier(critical * HALF, c), 1 + np.sqrt(c))
        np.testing.assert_allclose(spikes.rectangular_overlap(critical * HALF, c), 0)
        assert spikes.rectangular_outlier(critical * 1.01, c) > 1 + np.sqrt(c)
        ell = float(spikes.covariance_threshold(c))
        np.testing.assert_allclose(spikes.covariance_outlier(ell * HALF, c), (1 + np.sqrt(c)) ** 2)
        np.testing.assert_allclose(spikes.covariance_overlap(ell * HALF, c), 0, atol=1e-12)
        for variance, at in (
            (spikes.rectangular_variance(critical, c), "rectangular"),
            (spikes.covariance_variance(ell, c), "covariance"),
            (spikes.wigner_variance(1.0), "Wigner"),
        ):
            assert np.isnan(variance), at


def test_strengths_are_read_off_outliers():
    theta, c = np.meshgrid([2.2, 3.0, 10.0], [0.25, 1.0, 4.0])
    np.testing.assert_allclose(spikes.wigner_strength(spikes.wigner_outlier(theta)), theta)
    np.testing.assert_allclose(spikes.rectangular_strength(spikes.rectangular_outlier(theta, c), c), theta)
    np.testing.assert_allclose(spikes.covariance_strength(spikes.covariance_outlier(2 * theta, c), c), 2 * theta)
    for strength in (
        spikes.wigner_strength(1.9),
        spikes.rectangular_strength(1.4, 0.25),
        spikes.covariance_strength(2.2, 0.25),
    ):
        assert np.isnan(strength)


def test_nothing_turns_at_the_threshold_by_rounding():
    """At the threshold and the next floats above overlaps and variances are not negative, and strengths are read off.

    Before, 3 % of overlaps were negative there, and 40 % of strengths NaN.
    """
    rng = np.random.default_rng(0)
    c, sigma = np.exp(rng.uniform(-5, 5, 2000)), np.exp(rng.uniform(-2, 2, 2000))
    theta, ell = (np.asarray(f(c, sigma=sigma)) for f in (spikes.rectangular_threshold, spikes.covariance_threshold))
    plain = sigma
    for _ in range(3):
        for found in (
            spikes.wigner_overlap(plain, sigma=sigma), spikes.rectangular_overlap(theta, c, sigma=sigma),
            spikes.rectangular_overlap(theta, c, sigma=sigma, side="right"), spikes.covariance_overlap(ell, c, sigma=sigma),
        ):  # fmt: skip
            assert np.all((np.asarray(found) >= 0) & (np.asarray(found) < 1e-12))
        for variance in (
            spikes.rectangular_variance(theta, c, sigma=sigma), spikes.covariance_variance(ell, c, sigma=sigma),
        ):  # fmt: skip
            assert not np.any(np.asarray(variance) < 0)
        for strength, wanted in (
            (spikes.wigner_strength(spikes.wigner_outlier(sigma, sigma=sigma), sigma=sigma), sigma),
            (spikes.rectangular_strength(spikes.rectangular_outlier(theta, c, sigma=sigma), c, sigma=sigma), theta),
            (spikes.covariance_strength(spikes.covariance_outlier(ell, c, sigma=sigma), c, sigma=sigma), ell),
        ):
            np.testing.assert_allclose(strength, wanted, rtol=1e-6)
        plain, theta, ell = (np.nextafter(x, np.inf) for x in (plain, theta, ell))


@pytest.mark.parametrize("theta", [0.0, 0.01, 0.04, 0.3, 1.0, 1.5, 24.0, -0.5, -3.0])
def test_spectral_measure_integrates(theta):
    """Mass 1, the closed distribution function and the transform, each against quadrature of eq. (1)."""
    angle = lambda f: quad(lambda a: f(2 * np.cos(a)) * 2 * np.sin(a), 0, np.pi, epsabs=1e-12)[0]  # noqa: E731
    density = lambda x: float(spectral_measure.pdf(x, theta))  # noqa: E731
    atom = float(spectral_measure.atom(theta))
    at = theta + 1 / theta if atom else 0.0
    assert abs(angle(density) + atom - 1) < 1e-9
    for x in (-1.9, 0.2, 1.7):
        below = quad(lambda a: density(2 * np.cos(a)) * 2 * np.sin(a), np.arccos(x / 2), np.pi, epsabs=1e-12)[0]
        assert abs(below + atom * (x >= at) - float(spectral_measure.cdf(x, theta))) < 1e-9
    assert abs(float(spectral_measure.cdf(1e3, theta)) - 1) < 1e-12
    assert abs(float(spectral_measure.cdf(-1e3, theta))) < 1e-12
    z = 0.3 + 0.5j
    transform = angle(lambda x: density(x) * (1 / (z - x)).real) + 1j * angle(lambda x: density(x) * (1 / (z - x)).imag)
    assert abs(transform + atom / (z - at) - complex(spectral_measure.stieltjes(z, theta))) < 1e-9
    with pytest.raises(InputError, match="side 'top' is unknown"):
        spikes.rectangular_overlap(2.0, 1.0, side="top")


def test_outlying_eigenvalue_of_a_matrix_that_is_not_symmetric():
    np.testing.assert_allclose(
        spikes.iid_eigenvalue_outlier(np.array([3.0, 3.0, 0.5]), np.array([1.0, -0.5, 1.0])), [3.0, 1.5, 1.0]
    )


def test_single_precision_callers_get_double_precision():
    assert spikes.wigner_outlier(np.float32(1.5)).dtype == np.float64


def test_strengths_of_an_update_are_its_singular_values():
    rng = np.random.default_rng(7)
    theta, u, v = np.array([2.0, -1.5, 0.3]), rng.normal(size=(9, 3)), rng.normal(size=(5, 3))
    full = np.linalg.svd(u * theta @ v.T, compute_uv=False)[:3]
    np.testing.assert_allclose(spikes.update_strengths(theta, u, v), full, rtol=1e-12)
    symmetric = np.linalg.eigvalsh(u * theta @ u.T)
    np.testing.assert_allclose(spikes.update_strengths(theta, u), symmetric[[8, 7, 0]], rtol=1e-12)
    with pytest.raises(InputError, match=r"left has shape \(2, 3\): must be \(n, 3\), n ≥ 3"):
        spikes.update_strengths(theta, u[:2], v)
    with pytest.raises(InputError, match="right has shape"):
        spikes.update_strengths(theta, u, v[:, :2])
