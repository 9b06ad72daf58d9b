"""The Marchenko–Pastur law: against quadrature in 30 digits, its own inverses, and the eigenvalues of dense matrices."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rmtjax import InputError
from rmtjax.laws import marchenko_pastur as mp
from rmtjax.laws import semicircle

ASPECTS = [1e-3, 0.3, 1.0, 1.01, 300.0]
SIGMA = 1.3


@pytest.fixture(autouse=True)
def double():
    """Gradients in float64."""
    with jax.enable_x64(True):
        yield


def exact_ends(c):
    root, variance = mpmath.sqrt(mpmath.mpf(c)), mpmath.mpf(SIGMA) ** 2
    return variance * (1 - root) ** 2, variance * (1 + root) ** 2


def exact_density(x, c):
    low, high = exact_ends(c)
    return mpmath.sqrt(abs((x - low) * (high - x))) / (2 * mpmath.pi * mpmath.mpf(SIGMA) ** 2 * c * x)


def exact_integral(f, c, end=1):
    """Of f times the density over the bulk up to a point given as a share of it."""
    low, high = exact_ends(c)
    length = (high - low) * end
    points = [low, *(low + length * mpmath.mpf(10) ** -k for k in (5, 3, 1)), low + length]
    return mpmath.quad(lambda x: f(x) * exact_density(x, c), points)


def exact_atom(c):
    return max(0.0, 1 - 1 / c)


def at(law, x, c, sigma=SIGMA) -> np.ndarray:
    """A law at points, repeated to as many as all tests have at most, so that it is compiled once."""
    return np.asarray(law(np.resize(x, 1300), c, sigma=sigma))[: np.size(x)]


# -- distribution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", ASPECTS)
def test_cdf_and_sf_are_integrals_of_the_density(c):
    with mpmath.workdps(25):
        low, high = exact_ends(c)
        x = np.array([float(low + (high - low) * v) for v in (1e-4, 0.03, 0.4, 0.8, 0.999)])
        below = [exact_integral(lambda _: 1, c, (mpmath.mpf(v) - low) / (high - low)) for v in x]
        above = [min(1, 1 / mpmath.mpf(c)) - v for v in below]
        below, above, density = np.array([below, above, [exact_density(v, c) for v in x]], float)
    # An ulp of x counts for as much as the bulk is narrow, and 1e4 times that at the point next to its end.
    rtol = 1e-11 if 0.1 < c < 10 else 1e-10
    cdf, sf = at(mp.cdf, x, c), at(mp.sf, x, c)
    np.testing.assert_allclose(cdf - exact_atom(c), below, rtol=rtol, atol=1e-15 * (c > 1))
    np.testing.assert_allclose(sf, above, rtol=rtol)
    np.testing.assert_allclose(at(mp.pdf, x, c), density, rtol=rtol)
    np.testing.assert_allclose(cdf + sf, 1, rtol=1e-15)


_mass = jax.jit(mp._mass)
_angle = jax.jit(mp._angle)


@pytest.mark.parametrize("r", [-1.0, -0.5, 1e-9, 0.3, 0.99, 1.0])
def test_mass_up_to_an_angle(r):
    """The one integral behind both tails, to rounding at every angle, in either of its two forms."""
    angles = np.concatenate([np.logspace(-10, -1, 7) * max(1 - r, 1e-3), np.linspace(0.2, 3.1, 9)])
    with mpmath.workdps(22):
        gap = 1 - mpmath.mpf(r)

        def density(t):
            return 2 / mpmath.pi * mpmath.sin(t) ** 2 / (gap**2 + 4 * r * mpmath.sin(t / 2) ** 2)

        wanted, last = [mpmath.mpf(0)], mpmath.mpf(0)
        for a in map(mpmath.mpf, map(float, angles)):
            # In units of the result: the quadrature stops at an absolute error.
            middle = [gap * k for k in (1, 10) if last < gap * k < a]
            wanted.append(wanted[-1] + a**3 * mpmath.quad(lambda t, a=a: density(t) / a**3, [last, *middle, a]))
            last = a
    got = _mass(angles, np.full(angles.shape, r), np.full(angles.shape, 1 - r))
    np.testing.assert_allclose(got, np.array(wanted[1:], float), rtol=2e-14)


@pytest.mark.parametrize("c", ASPECTS)
def test_ends_and_beyond(c):
    low, high = (float(v) for v in mp.support(c, sigma=SIGMA))
    with mpmath.workdps(25):
        np.testing.assert_allclose([low, high], [float(v) for v in exact_ends(c)], rtol=1e-15)
    zero = exact_atom(c)
    np.testing.assert_allclose(mp.atom(c), zero, rtol=1e-15)
    x = np.array([-np.inf, -1.0, low / 2, high, 2 * high, np.inf, np.nan])
    between = zero if low > 0 else 0.0
    np.testing.assert_allclose(at(mp.cdf, x, c), [0, 0, between, 1, 1, 1, np.nan], rtol=1e-15)
    np.testing.assert_allclose(at(mp.sf, x, c), [1, 1, 1 - between, 0, 0, 0, np.nan], rtol=1e-13)
    np.testing.assert_array_equal(at(mp.pdf, x, c), [0, 0, 0 if low > 0 else np.inf, 0, 0, 0, np.nan])
    np.testing.assert_allclose(at(mp.cdf, 0.0, c), zero, rtol=1e-15)
    q = np.array([-0.1, zero / 2, zero, 1.0, 1.1, np.nan])
    wanted = [np.nan, 0 if c > 1 else low, 0 if c > 1 else low, high, np.nan, np.nan]
    np.testing.assert_allclose(at(mp.ppf, q, c), wanted, rtol=1e-15)
    ends = np.array([float(v) for v in mp.singular_support(c, sigma=SIGMA)])
    np.testing.assert_allclose(ends, np.sqrt([low, high]), rtol=1e-15)
    np.testing.assert_allclose(at(mp.singular_ppf, [0.0, 1.0, 2.0], c), [*ends, np.nan], rtol=1e-15)
    np.testing.assert_array_equal(at(mp.singular_cdf, [-1, *ends, np.inf, np.nan], c), [0, 0, 1, 1, np.nan])
    np.testing.assert_array_equal(at(mp.singular_pdf, [-1, ends[1], np.inf, np.nan], c), [0, 0, 0, np.nan])


@pytest.mark.first(1)
@pytest.mark.parametrize("c", [1e-6, 0.3, 1.0, 1 + 1e-9, 300.0])
def test_ppf_inverts_the_cdf_at_extremes(c):
    """Aspect ratios and probabilities beyond those of test_law_matrix.py; in the angle even the smallest are met."""
    q = np.concatenate([np.logspace(-300, -3, 200), np.linspace(0, 1, 1001), 1 - np.logspace(-16, -3, 50)])
    # x is known to an ulp, which near the ends of a narrow bulk is worth more than an ulp of q.
    allowed = 2e-15 + 3e-16 / math.sqrt(c)
    got = at(mp.cdf, at(mp.ppf, q, c), c)
    np.testing.assert_allclose(got, np.maximum(q, mp.atom(c)), rtol=0, atol=allowed)
    allowed = 2e-15 + 3e-16 * max(1 / math.sqrt(c), math.sqrt(c))
    got = at(mp.singular_cdf, at(mp.singular_ppf, q, c), c)
    np.testing.assert_allclose(got, q, rtol=0, atol=allowed)
    np.testing.assert_allclose(_mass(*_angle(q, np.full(q.size, c))[1:]), np.minimum(q, 1 - q), rtol=1e-14)


# -- moments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", ASPECTS)
@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_moments(k, c):
    with mpmath.workdps(20):
        wanted = float(exact_integral(lambda x: x**k, c)) + exact_atom(c) * (k == 0)
    np.testing.assert_allclose(mp.moment(k, c, sigma=SIGMA), wanted, rtol=1e-14)


def test_high_moments():
    """Narayana's polynomial is a hypergeometric function; the largest order that is allowed does not overflow."""
    with mpmath.workdps(30):
        for k, c in ((40, 0.3), (500, 1.0), (500, 1e-3)):
            np.testing.assert_allclose(mp.moment(k, c), float(mpmath.hyp2f1(-k, 1 - k, 2, mpmath.mpf(c))), rtol=1e-12)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 101])
def test_singular_moments(k):
    """Against ₂F₁, whose series is slow next to c = 1 but does converge."""
    below = [1e-9, 1e-3, 0.2, 0.9, 0.999, 1 - 1e-6, 1 - 1e-12, 1.0]
    with mpmath.workdps(30):
        half = mpmath.mpf(k) / 2
        wanted = [float(mpmath.hyp2f1(-half, 1 - half, 2, mpmath.mpf(c)) * mpmath.mpf(SIGMA) ** k) for c in below]
    np.testing.assert_allclose(mp.singular_moment(k, np.array(below), sigma=SIGMA), wanted, rtol=1e-14 * (1 + k / 10))
    # The transpose, with the variance in terms of its own number of columns.
    c = np.array([1.5, 30.0])
    turned = mp.singular_moment(k, 1 / c, sigma=SIGMA * np.sqrt(c))
    np.testing.assert_allclose(mp.singular_moment(k, c, sigma=SIGMA), turned, rtol=1e-14 * (1 + k / 10))


# -- transforms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", ASPECTS)
def test_stieltjes_is_the_integral(c):
    low, high = (float(v) for v in mp.support(c, sigma=SIGMA))
    width = high - low
    real = [high * 1.01, high + width, 1e3 * high, -0.01 * width, -high, -1e4 * high]
    if c != 1:
        real += [0.9 * low, 0.1 * low] + ([0.0] if c < 1 else [])
    z = [high + 0.1j * width, low + 0.3j * width, low - 0.3j * width, 0.5 * low + 0.5 * high - 0.1j * width, -high + 1j]

    def exact(v):
        with mpmath.workdps(20):
            v = mpmath.mpmathify(v)
            return complex(exact_integral(lambda x: 1 / (v - x), c) + ((1 - 1 / mpmath.mpf(c)) / v if c > 1 else 0))

    rtol = 1e-12 if 0.1 < c < 10 else 1e-10
    got = at(mp.stieltjes, real, c)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, [exact(v).real for v in real], rtol=rtol)
    np.testing.assert_allclose(at(mp.stieltjes, z, c), [exact(v) for v in z], rtol=rtol)


@pytest.mark.parametrize("c", ASPECTS)
def test_stieltjes_far_away_at_the_atom_and_on_the_bulk(c):
    for z in np.array([1e8, -1e8, 1e300, -1e300]), np.array([1e200j, -1e200 - 1e200j]):
        np.testing.assert_allclose(at(mp.stieltjes, z, c, 1.0) * z, 1 + 1 / z, rtol=1e-14 * (1 + c * 1e-2))
    if c > 1:
        assert abs(mp.stieltjes(0.0, c)) == math.inf
        for z in np.array([1e-18, -1e-18, 1e-300]), np.array([1e-18j]):
            np.testing.assert_allclose(at(mp.stieltjes, z, c, 1.0) * z, exact_atom(c), rtol=1e-13)
    low, high = (float(v) for v in mp.support(c, sigma=1.0))
    x = low + (high - low) * np.linspace(0.05, 0.95, 9)
    np.testing.assert_array_equal(at(mp.stieltjes, x, c, 1.0), np.nan)
    np.testing.assert_allclose(at(mp.stieltjes, x + 0j, c, 1.0).imag, -np.pi * at(mp.pdf, x, c, 1.0), rtol=1e-12)
    np.testing.assert_allclose(
        at(mp.stieltjes, x - 0.0j, c, 1.0).real, (x + c - 1) / (2 * c * x), rtol=1e-12, atol=1e-14
    )


def log_uniform(low: float, high: float):
    """Numbers spread evenly over decades."""
    return st.floats(np.log10(low), np.log10(high)).map(lambda e: float(10.0**e))


@given(log_uniform(1e-3, 1e3), st.floats(-3.2, 3.2), log_uniform(1e-3, 1e3), log_uniform(0.1, 10))
@settings(max_examples=200, deadline=None)
def test_stieltjes_is_a_nevanlinna_function_and_a_root(size, phase, c, sigma):
    """The imaginary parts of z and m differ in sign, and those of z and zm agree in being of a measure on [0, ∞)."""
    assume(abs(phase) > 1e-12)  # no denormal numbers
    z = complex(size * sigma**2 * np.exp(1j * phase))
    with jax.enable_x64(True):
        m = complex(mp.stieltjes(z, c, sigma=sigma))
    assert z.imag * m.imag <= 0
    assert z.imag * (z * m).imag <= 1e-15 * abs(z * m * z)
    terms = c * sigma**2 * z * m**2, -(z + sigma**2 * (c - 1)) * m, 1
    assert abs(sum(terms)) < 1e-13 * (sum(map(abs, terms)) + abs(z * m) + abs(sigma**2 * m) * (1 + c))


@pytest.mark.parametrize("c", ASPECTS)
def test_inverse_r_and_s_transform(c):
    low, high = (float(v) for v in mp.support(c, sigma=SIGMA))
    z = np.array([-1e5, -1.0, high, 1.1 * high, 1e5 * high, high + 1j, -0.5 - 0.5j, low + 0.5j * high])
    m = at(mp.stieltjes, z, c)
    inverse = at(mp.inverse_stieltjes, m, c)
    np.testing.assert_allclose(inverse, z, rtol=1e-10)
    np.testing.assert_allclose(at(mp.r_transform, m, c) + 1 / m, inverse, rtol=1e-14)
    # ψ(u) = m(1/u)/u − 1, and S(ψ) = u (1 + ψ)/ψ.
    u = np.array([0.3, -0.5, -7.0, 0.2 + 0.4j]) / high
    psi = at(mp.stieltjes, 1 / u, c) / u - 1
    np.testing.assert_allclose(at(mp.s_transform, psi, c), u * (1 + psi) / psi, rtol=1e-11)


def test_r_transform_generates_the_free_cumulants():
    """κ₁…κ₄ = σ²(cσ²)^{k−1}, and the moments follow from them by Speicher's formula."""
    c, s = 0.7, SIGMA**2
    derivatives = [lambda m: mp.r_transform(m, c, sigma=SIGMA)]
    for _ in range(3):
        derivatives.append(jax.grad(derivatives[-1]))
    at_zero = jax.jit(lambda m: [f(m) for f in derivatives])(0.0)
    kappa = [float(x) / math.factorial(k) for k, x in enumerate(at_zero)]
    np.testing.assert_allclose(kappa, [s * (c * s) ** k for k in range(4)], rtol=1e-13)
    a, b, d, e = kappa
    moments = [a, b + a**2, d + 3 * a * b + a**3, e + 4 * a * d + 2 * b**2 + 6 * a**2 * b + a**4]
    np.testing.assert_allclose(moments, [mp.moment(k, c, sigma=SIGMA) for k in (1, 2, 3, 4)], rtol=1e-13)


# -- singular values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", ASPECTS)
def test_singular_values_are_roots(c):
    low, high = (float(v) for v in mp.singular_support(c, sigma=SIGMA))
    s = low + (high - low) * np.array([0.01, 0.2, 0.5, 0.9, 0.99])
    mass = 1 - exact_atom(c)
    rtol = 1e-11 if 0.1 < c < 10 else 1e-9
    pdf, cdf = at(mp.singular_pdf, s, c), at(mp.singular_cdf, s, c)
    np.testing.assert_allclose(pdf, 2 * s * at(mp.pdf, s**2, c) / mass, rtol=rtol)
    np.testing.assert_allclose(cdf, (at(mp.cdf, s**2, c) - exact_atom(c)) / mass, rtol=1e-9, atol=1e-13)
    # A matrix and its transpose have the same.
    turned = SIGMA * np.sqrt(c)
    np.testing.assert_allclose(cdf, at(mp.singular_cdf, s, 1 / c, turned), rtol=1e-9)
    np.testing.assert_allclose(pdf, at(mp.singular_pdf, s, 1 / c, turned), rtol=1e-9)


def test_square_matrices_follow_the_quarter_circle():
    s = np.concatenate([[0.0], np.logspace(-12, 0, 30), [2 * SIGMA - 1e-3]])
    pdf, cdf = (np.asarray(f(s, sigma=SIGMA)) for f in (semicircle.pdf, semicircle.cdf))
    np.testing.assert_allclose(at(mp.singular_pdf, s, 1.0), 2 * pdf, rtol=1e-12)
    np.testing.assert_allclose(at(mp.singular_cdf, s, 1.0), 2 * cdf - 1, atol=1e-15)
    # And near 0, where the right side above has no digits, the mass is that of a constant density.
    s = np.logspace(-300, -5, 60)
    np.testing.assert_allclose(at(mp.singular_cdf, s, 1.0), 2 * s / (np.pi * SIGMA), rtol=1e-10)
    np.testing.assert_allclose(at(mp.singular_ppf, 2 * s / (np.pi * SIGMA), 1.0), s, rtol=1e-10)


# -- transformations ---------------------------------------------------------------------------------------------------


def in_all(law):
    """Return a law as a function of positional arguments alone."""
    return lambda x, c, sigma: law(x, c, sigma=sigma)


FUNCTIONS = {
    "pdf": (in_all(mp.pdf), "middle"),
    "cdf": (in_all(mp.cdf), "middle"),
    "ppf": (in_all(mp.ppf), "q"),
    "stieltjes": (in_all(mp.stieltjes), "beyond"),
    "inverse": (in_all(mp.inverse_stieltjes), "small"),
    "r": (in_all(mp.r_transform), "small"),
    "s": (in_all(mp.s_transform), "small"),
    "moment": (lambda x, c, s: x * mp.moment(3, c, sigma=s), "small"),
    "support": (lambda x, c, s: mp.support(c, sigma=s)[0] + x * mp.support(c, sigma=s)[1], "small"),
    "singular_pdf": (in_all(mp.singular_pdf), "root"),
    "singular_cdf": (in_all(mp.singular_cdf), "root"),
    "singular_ppf": (in_all(mp.singular_ppf), "small"),
    "singular_moment": (lambda x, c, s: x * mp.singular_moment(5, c, sigma=s), "small"),
}


@functools.cache
def gradient_of(name):
    """In all three arguments, elementwise; compiled for batches of 18 and kept."""
    return jax.jit(jax.grad(lambda *a: jnp.sum(FUNCTIONS[name][0](*a)), argnums=(0, 1, 2)))


@pytest.mark.thorough
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    """In every argument against central differences, whose error is about 1e-9; at c = 1 too, where the law is smooth."""
    f, at = FUNCTIONS[name]
    c, sigma = np.array([0.3, 1.0, 4.0]), np.full(3, SIGMA)
    q = 0.4 + 0.6 * np.asarray(mp.atom(c))
    middle = np.asarray(mp.ppf(q, c, sigma=sigma))
    places = {"q": q, "middle": middle, "root": np.sqrt(middle), "small": np.full(3, 0.3)}
    places["beyond"] = 1.2 * np.asarray(mp.support(c, sigma=sigma)[1])
    point = np.stack([places[at], c, sigma])
    h = 3e-6
    steps = np.multiply.outer(np.array([h, -h]), np.eye(3))  # side, argument, component
    around = point[None, None] + steps[..., None]
    values = np.reshape(f(*np.moveaxis(around, 2, 0).reshape(3, 18)), (2, 3, 3))
    gradient = np.stack(gradient_of(name)(*np.tile(point, 6)))[:, :3]
    assert np.all(np.isfinite(gradient))
    # The singular values' density has min(c, 1) in it.
    smooth = [0, 2] if name.startswith("singular") else [0, 1, 2]
    np.testing.assert_allclose(
        gradient[:, smooth], ((values[0] - values[1]) / (2 * h))[:, smooth], rtol=3e-8, atol=2e-9
    )


def test_gradient_where_one_form_of_the_mass_takes_over_from_the_other():
    r = 0.4
    both = np.array([1 - 1e-12, 1 + 1e-12]) * 0.5 * (1 - r)
    a, b, c = jax.jit(jax.grad(lambda *x: jnp.sum(mp._mass(*x)), argnums=(0, 1, 2)))(
        both, np.full(2, r), np.full(2, 1 - r)
    )
    a, b, c = map(np.asarray, (a, b, c))
    np.testing.assert_allclose(a[0], a[1], rtol=1e-11)
    np.testing.assert_allclose((b - c)[0], (b - c)[1], rtol=1e-11)


@pytest.mark.first(2)
@pytest.mark.parametrize("name", ["pdf", "cdf", "singular_pdf", "singular_cdf"])
def test_gradients_at_the_ends_are_no_nan(name):
    c, sigma = np.repeat([0.3, 1.0, 4.0], 6), np.ones(18)
    low, high = map(np.asarray, mp.support(c))
    x = np.choose(np.tile(range(6), 3), [0 * low - 1, 0 * low, low / 2, low, high, 2 * high])
    x = np.sqrt(np.abs(x)) if name.startswith("singular") else x
    finite = np.isfinite(FUNCTIONS[name][0](x, c, sigma))
    assert np.sum(finite) >= 15
    assert np.all(np.isfinite(np.stack(gradient_of(name)(x, c, sigma))[:, finite]))


@pytest.mark.thorough
def test_the_ends_as_quantiles():
    """They move as the ends of the support do, and infinitely fast with q but at 0 for c = 1."""
    c, q, sigma = np.tile([0.3, 0.3, 1.0, 1.0, 4.0, 4.0], 3), np.tile([0.0, 1.0], 9), np.full(18, 1.2)
    by_q, by_c, by_sigma = np.stack(gradient_of("singular_ppf")(q, c, sigma))[:, :6]
    c, q = c[:6], q[:6]
    np.testing.assert_allclose(by_q, [np.inf, np.inf, np.pi * 1.2 / 2, np.inf, np.inf, np.inf], rtol=1e-14)
    wanted = 1.2 / (2 * np.sqrt(c)) * np.array([-1, 1, -1, 1, 1, 1])
    np.testing.assert_allclose(by_c, wanted, rtol=1e-12)
    np.testing.assert_allclose(by_sigma, np.where(q == 1, *mp.singular_support(c)[::-1]), rtol=1e-14)
    forward = jax.jit(lambda c: jax.jvp(lambda c: mp.singular_ppf(q, c, sigma=1.2), (c,), (jnp.ones(6),))[1])(c)
    np.testing.assert_allclose(forward, wanted, rtol=1e-12)
    # Of the eigenvalues; the last one asks within the atom, where nothing moves.
    c, q = np.tile([0.3, 0.3, 1.0, 1.0, 4.0, 4.0], 3), np.tile([0.0, 1.0, 0.0, 1.0, 1.0, 0.2], 3)
    gradient = np.stack(gradient_of("ppf")(q, c, sigma))[:, :6]
    np.testing.assert_allclose(gradient[0], [np.inf, np.inf, 0, np.inf, np.inf, 0], rtol=1e-14)
    wanted = 1.2**2 * np.array([1 - 0.3**-0.5, 1 + 0.3**-0.5, 0, 2, 1.5, 0])
    np.testing.assert_allclose(gradient[1], wanted, rtol=1e-12, atol=1e-15)
    assert np.all(np.isfinite(gradient[2]))
    by_c = gradient_of("cdf")(np.full(18, 0.1), np.full(18, 4.0), np.ones(18))[1]
    np.testing.assert_allclose(by_c, 1 / 16, rtol=1e-14)


def test_single_precision_program_gets_double_precision():
    with jax.enable_x64(False):
        x = jnp.float32(0.7)
        assert jax.jit(mp.cdf)(x, x).dtype == jnp.float64
        gradient = jax.jit(jax.grad(mp.ppf, argnums=(0, 1)))(x, x)
        assert {g.dtype for g in gradient} == {jnp.dtype("float32")}
        for f in (mp.pdf, mp.ppf, mp.sf, mp.stieltjes, mp.singular_pdf, mp.singular_cdf, mp.singular_ppf):
            assert jax.eval_shape(f, x, x).dtype == jnp.float64
        assert jax.eval_shape(mp.stieltjes, x + 1j, x).dtype == jnp.complex128
        assert jax.eval_shape(jax.vmap(mp.ppf, in_axes=(0, None)), jnp.zeros(3), x).shape == (3,)
    x, c, sigma = jnp.zeros((4, 1, 1)), jnp.ones((3, 1)), jnp.ones(2)
    for f in (mp.pdf, mp.cdf, mp.sf, mp.ppf, mp.stieltjes, mp.singular_pdf, mp.singular_cdf, mp.singular_ppf):
        assert jax.eval_shape(in_all(f), x, c, sigma).shape == (4, 3, 2)
    for f in (mp.moment, mp.singular_moment):
        assert {jax.eval_shape(lambda c, sigma, k=k, f=f: f(k, c, sigma=sigma), c, sigma).shape for k in range(4)} == {
            (3, 2)
        }


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, np.array([1.0, 0.0])])
def test_refused_parameters(bad):
    calls = [
        mp.support,
        mp.singular_support,
        *(
            lambda c, f=f, **sigma: f(0.5, c, **sigma)
            for f in (mp.pdf, mp.cdf, mp.sf, mp.ppf, mp.stieltjes, mp.inverse_stieltjes)
        ),
        *(lambda c, f=f, **sigma: f(0.5, c, **sigma) for f in (mp.inverse_stieltjes, mp.r_transform, mp.s_transform)),
        *(lambda c, f=f, **sigma: f(0.5, c, **sigma) for f in (mp.singular_pdf, mp.singular_cdf, mp.singular_ppf)),
        *(lambda c, f=f, **sigma: f(3, c, **sigma) for f in (mp.moment, mp.singular_moment)),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"^c = .*: must be a finite number > 0"):
            call(bad)
        with pytest.raises(InputError, match=r"^sigma = .*: must be a finite number > 0"):
            call(0.5, sigma=bad)
    with pytest.raises(InputError, match=r"^c = "):
        mp.atom(bad)


@pytest.mark.parametrize("k", [-1, 501, 1.5, 2.0, True, "2", None])
def test_refused_order(k):
    for f in (mp.moment, mp.singular_moment):
        with pytest.raises(InputError, match=r"k = .*: must be a whole number from 0 to 500"):
            f(k, 0.5)


# -- matrices ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(150, 300), (200, 200), (300, 150)])
def test_eigenvalues_and_singular_values_of_dense_matrices(shape):
    """Mean shares below x and mean moments over 100 matrices.

    A sum of f over the k = min(p, n) eigenvalues is off by (f(λ₋) + f(λ₊))/4 − (1/2π)∫f dφ (Bai & Silverstein, *Ann. Prob.*
    32, 2004, for real entries). Law and correction are met to 4.5 standard errors, a false alarm in 3e-4 for the 39
    checks of the three shapes, and 0.1/k. A variance or an aspect ratio that is off by 3 % fails in every shape.
    """
    (p, n), count = shape, 100
    c, k = p / n, min(shape)
    rng = np.random.default_rng(p)
    share = np.array([0.03, 0.15, 0.35, 0.6, 0.85])
    x = np.asarray(mp.ppf(1 - (1 - share) * min(1, 1 / c), c, sigma=SIGMA))
    moments = [lambda s: s**4, lambda s: s, lambda s: s**3]
    measured = []
    for _ in range(count):
        s = np.linalg.svd(SIGMA * rng.normal(size=shape) / np.sqrt(n), compute_uv=False)
        eigenvalues = np.concatenate([s**2, np.zeros(p - len(s))])
        below = [np.mean(eigenvalues < v) for v in x]
        measured.append(below + [np.mean(s < np.sqrt(v)) for v in x] + [np.mean(f(s)) for f in moments])
    law = [*mp.cdf(x, c, sigma=SIGMA), *mp.singular_cdf(np.sqrt(x), c, sigma=SIGMA)]
    law = np.array([*law, *(mp.singular_moment(order, c, sigma=SIGMA) for order in (4, 1, 3))], float)
    angle = np.arccos((1 + c - x / SIGMA**2) / (2 * np.sqrt(c)))
    shift = (0.25 - angle / (2 * np.pi)) / k
    s = SIGMA * np.sqrt(1 + c - 2 * np.sqrt(c) * np.cos((np.arange(1000) + 0.5) / 1000 * np.pi))
    low, high = (float(v) for v in mp.singular_support(c, sigma=SIGMA))
    shifts = [((f(low) + f(high)) / 4 - np.mean(f(s)) / 2) / k for f in moments]
    correction = np.array([*shift * k / p, *shift, *shifts])
    units = np.array([k / p] * 5 + [1.0] * 5 + list(law[-3:]))
    mean, error = np.mean(measured, 0), np.std(measured, 0, ddof=1) / np.sqrt(count)
    print(
        np.round((mean - law - correction) / error, 1),
        np.round((mean - law) / error, 1),
        np.round(error * k / units, 2),
    )
    assert np.all(np.abs(mean - law - correction) < 4.5 * error + 0.1 * units / k)
