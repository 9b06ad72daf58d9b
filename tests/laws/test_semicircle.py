"""The semicircle law: against quadrature in 30 digits, its own inverses, and the eigenvalues of dense matrices."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rmtjax import InputError
from rmtjax.laws import semicircle

SIGMAS = [0.3, 1.0, 5.0]


@pytest.fixture(autouse=True)
def double():
    """Gradients in float64."""
    with jax.enable_x64(True):
        yield


def exact_density(x, sigma):
    return mpmath.sqrt((2 * sigma - x) * (2 * sigma + x)) / (2 * mpmath.pi * sigma**2)


def exact_mass(a, b, sigma) -> float:
    with mpmath.workdps(30):
        return float(mpmath.quad(lambda x: exact_density(x, sigma), [a, (a + b) / 2, b]))


def exact_transform(z, sigma):
    with mpmath.workdps(30):
        return complex(
            mpmath.quad(lambda x: exact_density(x, sigma) / (z - x), mpmath.linspace(-2 * sigma, 2 * sigma, 9))
        )


# -- distribution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_cdf_is_the_integral_of_the_density(sigma):
    x = sigma * np.array([-1.999, -1.5, -1.0, -0.1, 0.0, 0.4, 1.2, 1.99])
    np.testing.assert_allclose(
        semicircle.cdf(x, sigma=sigma), [exact_mass(-2 * sigma, v, sigma) for v in x], rtol=1e-12
    )
    np.testing.assert_allclose(semicircle.pdf(x, sigma=sigma), [float(exact_density(v, sigma)) for v in x], rtol=1e-13)


def test_lower_tail_keeps_its_relative_accuracy():
    """Near the end the mass is (2/3π)t^{3/2}(1 − 3t/40 + …), t = x + 2."""
    t = 2.0 ** -np.arange(20, 50)
    np.testing.assert_allclose(semicircle.cdf(-2 + t), 2 / (3 * np.pi) * t**1.5 * (1 - 3 * t / 40), rtol=1e-12)
    np.testing.assert_allclose(semicircle.cdf(-2 + 2.0**-8), exact_mass(-2, -2 + mpmath.mpf(2) ** -8, 1), rtol=1e-13)


def test_off_the_support():
    x = np.array([-np.inf, -3.0, -2.0, 2.0, 3.0, np.inf, np.nan])
    np.testing.assert_array_equal(semicircle.pdf(x), [0, 0, 0, 0, 0, 0, np.nan])
    np.testing.assert_array_equal(semicircle.cdf(x), [0, 0, 0, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(semicircle.ppf(np.array([-0.1, 1.1, np.nan])), np.nan)
    np.testing.assert_array_equal(semicircle.ppf(np.array([0.0, 1.0]), sigma=3.0), [-6.0, 6.0])
    np.testing.assert_array_equal(np.stack(semicircle.support(sigma=np.array([1.0, 2.0]))), [[-2, -4], [2, 4]])


def test_quantiles_keep_their_relative_accuracy():
    """This holds as long as x itself resolves the distance from the end."""
    q = np.logspace(-6, -1, 200)
    np.testing.assert_allclose(semicircle.cdf(semicircle.ppf(q)), q, rtol=1e-11)


def test_ppf_inverts_the_cdf_at_extremes():
    """Probabilities beyond those of test_law_matrix.py, where x itself still resolves the distance from the end."""
    q = np.concatenate([np.logspace(-15, -1, 200), np.linspace(0, 1, 2001)])
    for sigma in SIGMAS:
        inverted = semicircle.cdf(semicircle.ppf(q, sigma=sigma), sigma=sigma)
        np.testing.assert_allclose(inverted, q, rtol=0, atol=5e-16)
    q = np.logspace(-6, -1, 200)
    np.testing.assert_allclose(semicircle.cdf(semicircle.ppf(q)), q, rtol=1e-11)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("k", range(9))
def test_moments(k, sigma):
    with mpmath.workdps(30):
        wanted = mpmath.quad(lambda x: x**k * exact_density(x, sigma), [-2 * sigma, 0, 2 * sigma])
    np.testing.assert_allclose(semicircle.moment(k, sigma=sigma), float(wanted), rtol=1e-14, atol=1e-15)


# -- transforms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_stieltjes_is_the_integral(sigma):
    real = sigma * np.array([-40.0, -3.0, -2.05, 2.05, 2.5, 1e3])
    got = semicircle.stieltjes(real, sigma=sigma)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, [exact_transform(z, sigma).real for z in real], rtol=1e-13)
    z = sigma * np.array([1 + 0.3j, -1 + 0.3j, 0.2 - 0.5j, -2.5 - 0.2j, -3 + 0j, 0.3j, -1j, 50 - 80j])
    np.testing.assert_allclose(semicircle.stieltjes(z, sigma=sigma), [exact_transform(v, sigma) for v in z], rtol=1e-12)


def test_stieltjes_far_away_and_on_the_support():
    for z in (1e8, -1e8, 1e300, -1e300):
        np.testing.assert_allclose(semicircle.stieltjes(z, sigma=2.0), 1 / z * (1 + 4 / z / z), rtol=1e-15)
    z = 1e200 * np.exp(1j * np.linspace(0, 2 * np.pi, 17))
    np.testing.assert_allclose(semicircle.stieltjes(z) * z, 1, rtol=1e-14)
    np.testing.assert_array_equal(semicircle.stieltjes(np.array([-2.0, 2.0])), [-1, 1])
    np.testing.assert_array_equal(semicircle.stieltjes(np.array([-1.9, 0.0, np.nan])), np.nan)
    # From above the imaginary part is −π times the density, and the real part x/2σ².
    x = np.linspace(-1.9, 1.9, 11)
    limit = np.asarray(semicircle.stieltjes(x + 0j))
    np.testing.assert_allclose(limit, x / 2 - 1j * np.pi * semicircle.pdf(x), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(semicircle.stieltjes(x - 1e-14j), limit.conj(), rtol=1e-12)


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0.1, 10))
@settings(max_examples=200, deadline=None)
def test_stieltjes_is_a_nevanlinna_function_and_a_root(x, y, sigma):
    """The imaginary parts of z and m differ in sign, |m| ≤ 1/σ, and σ²m² − zm + 1 = 0: that leaves no other branch."""
    assume(abs(y) > 1e-12)  # no denormal numbers
    z = complex(x, y)
    with jax.enable_x64(True):
        m = complex(semicircle.stieltjes(z, sigma=sigma))
    assert y * m.imag <= 0
    assert abs(m) * sigma <= 1 + 1e-12
    assert abs(sigma**2 * m**2 - z * m + 1) < 1e-13 * (1 + abs(z * m))


def test_inverse_and_r_transform():
    sigma = np.array(SIGMAS)[:, None]
    z = sigma * np.array([-1e6, -5.0, -2.0, 2.0, 2.1, 7.0, 1e6])
    np.testing.assert_allclose(
        semicircle.inverse_stieltjes(semicircle.stieltjes(z, sigma=sigma), sigma=sigma), z, rtol=1e-14
    )
    z = sigma * np.array([1 + 1j, -3 - 1j, 0.1j])
    m = semicircle.stieltjes(z, sigma=sigma)
    np.testing.assert_allclose(semicircle.inverse_stieltjes(m, sigma=sigma), z, rtol=1e-13)
    np.testing.assert_allclose(semicircle.r_transform(m, sigma=sigma), z - 1 / np.asarray(m), rtol=1e-12, atol=1e-14)
    # The outlier of a spike θ.
    np.testing.assert_allclose(semicircle.inverse_stieltjes(1 / 1.7), 1.7 + 1 / 1.7, rtol=1e-15)


# -- transformations ---------------------------------------------------------------------------------------------------


def test_gradients():
    """Against central differences, whose error is about 1e-9."""
    functions = {
        "pdf": (semicircle.pdf, 0.7),
        "cdf": (semicircle.cdf, -0.7),
        "ppf": (semicircle.ppf, 0.3),
        "stieltjes": (semicircle.stieltjes, 3.1),
        "inverse": (semicircle.inverse_stieltjes, 0.4),
        "r": (semicircle.r_transform, 0.4),
        "moment": (lambda x, sigma: x * semicircle.moment(4, sigma=sigma), 0.4),
        "second": (jax.grad(semicircle.cdf), 0.4),
    }
    h = 1e-5
    for name, (law, x) in functions.items():
        f = lambda x, sigma, law=law: law(x, sigma=sigma)  # noqa: E731
        gradient = jax.jit(jax.grad(f, argnums=(0, 1)))(x, 1.3)
        wanted = (f(x + h, 1.3) - f(x - h, 1.3)) / 2 / h, (f(x, 1.3 + h) - f(x, 1.3 - h)) / 2 / h
        np.testing.assert_allclose(gradient, wanted, rtol=1e-8, err_msg=name)
    q = np.linspace(0.01, 0.99, 7)
    slope = jax.vmap(jax.grad(semicircle.ppf))(q)
    np.testing.assert_allclose(slope, 1 / np.asarray(semicircle.pdf(semicircle.ppf(q))), rtol=1e-11)


def test_gradients_at_the_ends_are_no_nan():
    for x in (-7.0, -2.0, 2.0, 7.0):
        for f in (semicircle.pdf, semicircle.cdf):
            assert np.all(np.isfinite(jax.grad(lambda x, s, f=f: f(x, sigma=s), argnums=(0, 1))(x, 1.0)))
    assert jax.grad(semicircle.ppf)(0.0) == math.inf
    assert jax.grad(lambda s: semicircle.ppf(0.0, sigma=s))(1.0) == -2.0
    assert jax.jvp(lambda s: semicircle.ppf(1.0, sigma=s), (1.0,), (1.0,))[1] == 2.0
    assert jax.grad(semicircle.stieltjes)(2.0) == -math.inf


def test_single_precision_program_gets_double_precision():
    with jax.enable_x64(False):
        x = jnp.float32(0.7)
        for f in (semicircle.pdf, semicircle.cdf, semicircle.ppf):
            assert jax.jit(f)(x).dtype == jnp.float64
            assert jax.jit(jax.grad(f))(x).dtype == jnp.float32
        assert jax.jit(semicircle.stieltjes)(3 * x).dtype == jnp.float64
        assert jax.jit(semicircle.stieltjes)(x + 1j).dtype == jnp.complex128
        assert jax.vmap(lambda v: semicircle.cdf(v, sigma=x))(jnp.zeros(3)).shape == (3,)
    assert semicircle.pdf(np.zeros((4, 1)), sigma=np.ones(3)).shape == (4, 3)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, np.array([1.0, 0.0])])
def test_refused_sigma(sigma):
    calls = [
        lambda: semicircle.support(sigma=sigma),
        lambda: semicircle.pdf(0.0, sigma=sigma),
        lambda: semicircle.cdf(0.0, sigma=sigma),
        lambda: semicircle.ppf(0.5, sigma=sigma),
        lambda: semicircle.moment(2, sigma=sigma),
        lambda: semicircle.stieltjes(3.0, sigma=sigma),
        lambda: semicircle.inverse_stieltjes(0.3, sigma=sigma),
        lambda: semicircle.r_transform(0.3, sigma=sigma),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"sigma = .*: must be a finite number > 0"):
            call()


@pytest.mark.parametrize("k", [-1, 501, 1.5, 2.0, True, "2", None])
def test_refused_order(k):
    with pytest.raises(InputError, match=r"k = .*: must be a whole number from 0 to 500"):
        semicircle.moment(k)


# -- matrices ----------------------------------------------------------------------------------------------------------


def test_eigenvalues_of_dense_matrices():
    """The mean share of eigenvalues below x over 100 GOE matrices of order 200, and their moments.

    The law and its 1/N correction, −arcsin(x/2σ)/2πN in the distribution function and (1, 5, 22)/N in the moments, are met to
    4.5 standard errors, a false alarm in 7e-5 for the 10 checks, and 0.1/N. A variance that is off by 2 % fails.
    """
    size, count, sigma = 200, 100, 0.7
    rng = np.random.default_rng(1)
    x = sigma * np.array([-1.9, -1.5, -1.0, -0.3, 0.5, 1.2, 1.8])
    shares, moments = [], []
    for _ in range(count):
        a = rng.normal(size=(size, size))
        eigenvalues = np.linalg.eigvalsh((a + a.T) * sigma / np.sqrt(2 * size))
        shares.append(np.mean(eigenvalues[:, None] < x, 0))
        moments.append([np.mean((eigenvalues / sigma) ** k) for k in (2, 4, 6)])
    measured = np.concatenate([shares, moments], 1)
    law = np.concatenate([semicircle.cdf(x, sigma=sigma), [float(semicircle.moment(k)) for k in (2, 4, 6)]])
    correction = np.concatenate([-np.arcsin(x / sigma / 2) / (2 * np.pi), [1, 5, 22]]) / size
    error = measured.std(0, ddof=1) / np.sqrt(count)
    assert np.all(np.abs(measured.mean(0) - law - correction) < 4.5 * error + 0.1 / size)
