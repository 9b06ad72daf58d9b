"""Tracy–Widom: against Fredholm determinants in up to 120 digits, published moments, and the edge of tridiagonal matrices."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import stats

from rmtjax import InputError
from rmtjax.laws.edge import tracy_widom

BETAS = [1, 2, 4]
MOMENTS = [tracy_widom.mean, tracy_widom.var, tracy_widom.skewness, tracy_widom.kurtosis]

# (x, F(x), 1 − F(x)) from `fredholm` below: with 100 nodes and 60 digits, and with 130 nodes and 120 digits where one of
# the two is below 1e-30. With 80 and 100 nodes the numbers agree to 1e-15. The code under test knows of Painlevé's equation
# and of no determinant.
REFERENCE = {
    1: [
        (-14, 6.4079559567055289e-56, 1 - 6.4079559567055289e-56),
        (-10, 3.1590379031995637e-22, 1 - 3.1590379031995637e-22),
        (-9, 7.5764221418723242e-17, 1 - 7.5764221418723242e-17),
        (-8, 1.8068279211854167e-12, 1 - 1.8068279211854167e-12),
        (-7, 5.4828625915597060e-9, 1 - 5.482862591559706e-9),
        (-6, 2.7073193253047731e-6, 1 - 2.7073193253047731e-6),
        (-5, 0.00027791775491679037, 1 - 0.00027791775491679037),
        (-4, 0.0075676785987964005, 0.9924323214012036),
        (-3, 0.069600118867369888, 0.93039988113263011),
        (-2, 0.27432019790921786, 0.72567980209078214),
        (-1, 0.58378989551973228, 0.41621010448026772),
        (0, 0.83190806620295193, 0.16809193379704807),
        (1, 0.95142123691155073, 0.048578763088449265),
        (2, 0.98959757108482699, 0.010402428915173008),
        (4, 1 - 0.00022034448743299865, 0.00022034448743299865),
        (6, 1 - 1.9408140726462171e-6, 1.9408140726462171e-6),
        (8, 1 - 8.0454248798697386e-9, 8.0454248798697386e-9),
        (10, 1 - 1.7082158695271068e-11, 1.7082158695271068e-11),
        (12, 1 - 1.9765729575215767e-14, 1.9765729575215767e-14),
        (22, 1 - 1.831047920024858e-32, 1.831047920024858e-32),
    ],
    2: [
        (-14, 3.0815649574090075e-100, 1 - 3.0815649574090075e-100),
        (-10, 4.2122590096599025e-37, 1 - 4.2122590096599025e-37),
        (-9, 2.7419496100431435e-27, 1 - 2.7419496100431435e-27),
        (-8, 1.9859004257636575e-19, 1 - 1.9859004257636575e-19),
        (-7, 2.6396147672460623e-13, 1 - 2.6396147672460623e-13),
        (-6, 1.0622546741244511e-8, 1 - 1.0622546741244511e-8),
        (-5, 2.1359969847411158e-5, 1 - 2.1359969847411158e-5),
        (-4, 0.0035445535955092003, 0.9964554464044908),
        (-3, 0.080319552939334548, 0.91968044706066545),
        (-2, 0.41322414250512255, 0.58677585749487745),
        (-1, 0.80721424199928529, 0.19278575800071471),
        (0, 0.96937282835526267, 0.030627171644737332),
        (1, 0.99750543814938925, 0.0024945618506107506),
        (2, 1 - 0.00011244630169082707, 0.00011244630169082707),
        (4, 1 - 4.957912153331047e-8, 4.957912153331047e-8),
        (6, 1 - 3.817232659009459e-12, 3.817232659009459e-12),
        (8, 1 - 6.5335632069316115e-17, 6.5335632069316115e-17),
        (10, 1 - 2.938427133604718e-22, 2.938427133604718e-22),
        (12, 1 - 3.9282154898035874e-28, 3.9282154898035874e-28),
        (22, 1 - 3.3605419197244203e-64, 3.3605419197244203e-64),
    ],
    4: [
        (-10, 8.6069722192730309e-47, 1 - 8.6069722192730309e-47),
        (-8, 2.3402908150589240e-23, 1 - 2.340290815058924e-23),
        (-7, 2.0686056522675231e-15, 1 - 2.0686056522675231e-15),
        (-6, 1.4517745400591692e-9, 1 - 1.4517745400591692e-9),
        (-5, 1.6566661306440607e-5, 1 - 1.6566661306440607e-5),
        (-4, 0.0063195559403566413, 0.99368044405964336),
        (-3, 0.16770803819804685, 0.83229196180195315),
        (-2, 0.67350867155861120, 0.3264913284413888),
        (-1, 0.96075153645571287, 0.039248463544287133),
        (0, 0.99857419735816854, 0.0014258026418314598),
        (1, 1 - 1.7602863436760846e-5, 1.7602863436760846e-5),
        (2, 1 - 8.3333789867279143e-8, 8.3333789867279143e-8),
        (4, 1 - 1.5367931003100102e-13, 1.5367931003100102e-13),
        (6, 1 - 1.595671686527928e-20, 1.595671686527928e-20),
        (8, 1 - 1.3669324432662305e-28, 1.3669324432662305e-28),
        (16, 1 - 9.5818009372913459e-70, 9.5818009372913459e-70),
    ],
}


@pytest.fixture(autouse=True)
def double():
    """Gradients in float64."""
    with jax.enable_x64(True):
        yield


def gauss_legendre(count):
    """Nodes and weights on [−1, 1] in mpmath's precision."""
    nodes, weights = [], []
    for i in range(count):
        x = mpmath.cos(mpmath.pi * (i + mpmath.mpf(3) / 4) / (count + mpmath.mpf(1) / 2))
        for _ in range(12):  # Newton's steps double the digits
            before, last = mpmath.mpf(1), x
            for k in range(2, count + 1):
                before, last = last, ((2 * k - 1) * x * last - (k - 1) * before) / k
            slope = count * (x * last - before) / (x * x - 1)
            step, x = last / slope, x - last / slope
            if abs(step) < mpmath.mpf(10) ** (5 - mpmath.mp.dps):
                break
        nodes.append(x)
        weights.append(2 / ((1 - x * x) * slope**2))
    return nodes, weights


def fredholm(s, length, count):
    """det(1 ∓ B) for B(x, y) = Ai(x + y + s) on [0, length], by Gauss–Legendre (Bornemann, Math. Comp. 79, 2010)."""
    nodes, weights = gauss_legendre(count)
    x = [length * (1 + t) / 2 for t in nodes]
    root = [mpmath.sqrt(length * w / 2) for w in weights]
    kernel = mpmath.matrix(count)
    for i in range(count):
        for j in range(i + 1):
            kernel[i, j] = kernel[j, i] = root[i] * root[j] * mpmath.airyai(x[i] + x[j] + s)
    return mpmath.det(mpmath.eye(count) - kernel), mpmath.det(mpmath.eye(count) + kernel)


class Law:
    """The functions of one β on NumPy arrays, filled up to one length, so that each is compiled once for all tests."""

    LENGTH = 200

    def __init__(self, beta):
        self.beta = beta
        self.scale = math.sqrt(2) if beta == 4 else 1.0  # from x to Painlevé's s

    def __getattr__(self, name):
        function = getattr(tracy_widom, name)
        return lambda x: self._filled(lambda x: function(x, self.beta), x)

    def slope(self, name, x):
        """The derivative."""
        return self._filled(compiled_slope(name, self.beta), x)

    def _filled(self, function, x):
        x = np.asarray(x, float)
        return np.asarray(function(np.concatenate([x, np.full(self.LENGTH - len(x), 0.5)])))[: len(x)]


@functools.cache
def compiled_slope(name, beta):
    """Elementwise derivative of a function of the module."""
    return jax.jit(jax.grad(lambda x: jnp.sum(getattr(tracy_widom, name)(x, beta))))


@pytest.fixture(params=BETAS)
def law(request) -> Law:
    """Each β in turn."""
    return Law(request.param)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.first(2)
def test_reference_values(law):
    """Both tails to a relative 5e-14, from 1e-100 on; the requirement is 1e-6 down to 1e-12."""
    x, f, rest = np.array(REFERENCE[law.beta]).T
    np.testing.assert_allclose(law.cdf(x), f, rtol=5e-14)
    np.testing.assert_allclose(law.sf(x), rest, rtol=5e-14)
    log_f, log_rest = (np.where(a < 0.5, np.log(a), np.log1p(-np.minimum(b, 0.5))) for a, b in ((f, rest), (rest, f)))
    np.testing.assert_allclose(law.logcdf(x), log_f, rtol=1e-13)
    np.testing.assert_allclose(law.logsf(x), log_rest, rtol=1e-13)


@pytest.mark.first(1)
@pytest.mark.parametrize("s", [-2.3, 0.7, 3.1])
def test_fredholm_determinants(s):
    """The references' own recipe, at places of its own, with few enough nodes to run here."""
    with mpmath.workdps(30):
        minus, plus = fredholm(mpmath.mpf(s), mpmath.mpf(14 - min(s, 0)), 34)
        wanted = [minus, minus * plus, (minus + plus) / 2]
        cdf, sf = np.array([[w, 1 - w] for w in wanted], float).T
    got = [f(s / math.sqrt(2) if beta == 4 else s, beta) for f in (tracy_widom.cdf, tracy_widom.sf) for beta in BETAS]
    np.testing.assert_allclose(got, [*cdf, *sf], rtol=1e-13)


def test_published_moments():
    """Bornemann, *Markov Processes Relat. Fields* 16 (2010), to the digits given there."""
    published = {
        1: (-1.2065335745820, 1.607781034581, 0.29346452408, 0.1652429384),
        2: (-1.771086807411, 0.8131947928329, 0.224084203610, 0.0934480876),
        4: (-2.306884893241, 0.5177237207726, 0.16550949435, 0.0491951565),
    }
    for beta, wanted in published.items():
        got = [f(beta) for f in MOMENTS]
        np.testing.assert_allclose(got[:2], wanted[:2], atol=2e-12)
        np.testing.assert_allclose(got[2:], wanted[2:], atol=1e-10)
        assert {g.dtype for g in got} == {jnp.dtype("float64")}


@pytest.mark.first(1)
def test_far_right(law):
    """1 − F to first order in e^{−ζ}: half the integral of Ai, the trace of the Airy kernel, and what the two leave."""
    x = np.array([20.0, 30.0, 45.0, 60.0])
    wanted = []
    with mpmath.workdps(300):
        for v in map(mpmath.mpf, x):
            s = v * (mpmath.sqrt(2) if law.beta == 4 else 1)
            a, slope = mpmath.airyai(s), mpmath.airyai(s, derivative=1)
            integral = mpmath.mpf(1) / 3 - mpmath.airyai(s, derivative=-1)
            trace = (2 * s * s * a * a - 2 * s * slope * slope - a * slope) / 3
            wanted.append({1: integral / 2, 2: trace, 4: trace / 2 - integral**2 / 8}[law.beta])
        wanted = [float(mpmath.log(w)) for w in wanted]
    np.testing.assert_allclose(law.logsf(x), wanted, rtol=1e-14)


def test_far_left(law):
    """The leading terms and the constants of Baik, Buckingham & DiFranco, CMP 280 (2008); what is left falls as |s|^{−3/2}."""
    s = np.array([100.0, 400.0, 1600.0])
    log_f2 = -(s**3) / 12 - np.log(s) / 8 + math.log(2) / 24 + float(mpmath.zeta(-1, 1, 1))
    integral = math.sqrt(2) / 3 * s**1.5 + math.log(2) / 2
    wanted = {1: (log_f2 - integral) / 2, 2: log_f2, 4: (log_f2 + integral) / 2 - math.log(2)}[law.beta]
    got = law.logcdf(-s / law.scale)
    assert np.all(np.abs(got - wanted) < 0.1 * s**-1.5 + 3e-16 * s**3)


def test_pieces_join(law):
    """At every seam, those to the asymptotic series and that from F to 1 − F included."""
    seam = np.arange(-12.0, 21.0) / law.scale
    sides = [np.nextafter(seam, side) for side in (-np.inf, np.inf)]
    for f in (law.logcdf, law.logsf, law.logpdf):
        values = [np.asarray(f(x)) for x in sides]
        np.testing.assert_allclose(*values, rtol=2e-14, atol=1e-14)


def test_density_is_the_derivative(law):
    """Five-point differences of the smaller logarithm; their error is about 1e-9."""
    x = np.linspace(-14, 24, 191) + 0.013
    h = 2e-3

    def slope(f):
        side = [np.asarray(f(x + k * h)) for k in (-2, -1, 1, 2)]
        return (side[0] - 8 * side[1] + 8 * side[2] - side[3]) / (12 * h)

    left = x < -2
    f = np.where(left, law.logcdf(x), law.logsf(x))
    rate = np.where(left, slope(law.logcdf), -slope(law.logsf))
    np.testing.assert_allclose(law.logpdf(x), f + np.log(rate), atol=3e-9)
    np.testing.assert_allclose(law.pdf(x), np.exp(law.logpdf(x)), rtol=1e-12)


@pytest.mark.first(2)
def test_no_point_and_no_end(law):
    x = np.array([-np.inf, -1e200, 1e200, np.inf, np.nan])

    def equal(f, wanted):
        np.testing.assert_array_equal(f(x), wanted)

    equal(law.cdf, [0, 0, 1, 1, np.nan])
    equal(law.sf, [1, 1, 0, 0, np.nan])
    equal(law.pdf, [0, 0, 0, 0, np.nan])
    equal(law.logcdf, [-np.inf, -np.inf, 0, 0, np.nan])
    equal(law.logsf, [0, 0, -np.inf, -np.inf, np.nan])
    equal(law.logpdf, [-np.inf] * 4 + [np.nan])
    np.testing.assert_array_equal(law.slope("cdf", x)[:4], 0)
    assert not np.any(np.isnan(law.slope("logpdf", x)[:4]))


# -- quantiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
def test_ppf_and_isf_invert(law):
    p = np.concatenate([10.0 ** -np.arange(300, 2, -6), np.linspace(0, 1, 121)[1:-1], 1 - 10.0 ** -np.arange(2, 16)])
    for inverse, function in ((law.ppf, law.cdf), (law.isf, law.sf)):
        # The logarithm of a tail is known to an ulp, which at 1e-300 is 1e-13.
        assert np.all(np.abs(function(inverse(p)) / p - 1) < 6e-14 - 2e-15 * np.log(p))
    # From x and back, to 1e-12 in x, by whichever tail is the smaller.
    x = np.linspace(-9, 10, 190) / law.scale
    left = law.cdf(x) < 0.5
    np.testing.assert_allclose(law.ppf(law.cdf(x))[left], x[left], atol=1e-12)
    np.testing.assert_allclose(law.isf(law.sf(x))[~left], x[~left], atol=1e-12)
    p = np.array([0.0, 1.0, -0.1, 1.1, np.nan])
    np.testing.assert_array_equal(law.ppf(p), [-np.inf, np.inf, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(law.isf(p), [np.inf, -np.inf, np.nan, np.nan, np.nan])


# -- transformations ---------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
def test_gradients(law):
    """At the seams too, where a derivative is taken from one side."""
    x = np.linspace(-15, 25, 81) / law.scale
    log_density = law.logpdf(x)
    np.testing.assert_allclose(law.slope("cdf", x), law.pdf(x), rtol=1e-12)
    h = 1e-4
    slopes = (law.logpdf(x + h) - law.logpdf(x - h)) / (2 * h)
    np.testing.assert_allclose(law.slope("logpdf", x), slopes, rtol=1e-7, atol=1e-8)
    p = np.array([1e-30, 1e-12, 1e-3, 0.2, 0.27, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(law.slope("ppf", p) * law.pdf(law.ppf(p)), 1, rtol=1e-12)
    if law.beta == 2:  # the rest of the code is the same for all
        np.testing.assert_allclose(law.slope("sf", x), -law.pdf(x), rtol=1e-12)
        np.testing.assert_allclose(law.slope("logcdf", x), np.exp(log_density - law.logcdf(x)), rtol=1e-12)
        np.testing.assert_allclose(law.slope("logsf", x), -np.exp(log_density - law.logsf(x)), rtol=1e-12)
        np.testing.assert_allclose(law.slope("isf", p) * law.pdf(law.isf(p)), -1, rtol=1e-12)


FUNCTIONS = [getattr(tracy_widom, name) for name in ("cdf", "sf", "pdf", "logcdf", "logsf", "logpdf", "ppf", "isf")]


def test_single_precision_program_gets_double_precision():
    with jax.enable_x64(False):
        x = jnp.float32(0.5)
        for f in FUNCTIONS:
            assert jax.eval_shape(lambda x, f=f: f(x, 2), x).dtype == jnp.float64
        got = jax.jit(jax.vmap(lambda x: tracy_widom.cdf(x, beta=2)))(jnp.full(3, x))
        np.testing.assert_allclose(got, float(tracy_widom.cdf(0.5, 2)), rtol=1e-15)
        assert jax.jit(jax.grad(lambda p: tracy_widom.ppf(p, 2)))(x).dtype == jnp.float32
    assert jax.eval_shape(lambda x: tracy_widom.cdf(x, np.int64(1)), jnp.zeros((3, 4))).shape == (3, 4)


@pytest.mark.parametrize("beta", [0, 3, -1, 2.0, "2", True, None, np.array([1, 2])])
def test_refused_beta(beta):
    for f in FUNCTIONS:
        with pytest.raises(InputError, match=r"^beta = .*: must be the whole number 1, 2 or 4"):
            f(0.5, beta)
    for f in MOMENTS:
        with pytest.raises(InputError, match=r"^beta = "):
            f(beta)


def test_refused_traced_beta():
    with pytest.raises(InputError, match=r"^beta = .*known before compilation"):
        jax.jit(lambda beta: tracy_widom.cdf(0.5, beta))(2)


# -- matrices ----------------------------------------------------------------------------------------------------------


@pytest.mark.first(2)
@pytest.mark.parametrize("beta", BETAS)
def test_edge_of_tridiagonal_matrices(beta):
    """The largest eigenvalue of 5000 Dumitriu–Edelman matrices at N = 10⁶, in the scaling that the module states.

    Only the first 10 N^{1/3} rows matter (Edelman & Persson); the law is off by O(N^{−2/3}) = 1e-4 in x. KS rejects at
    p < 1e-5, a false alarm in 3e-5 for the three β. Any other scaling of β = 4 fails at p < 1e-30.
    """
    size, rows, count = 1e6, 1000, 5000
    rng = np.random.default_rng(beta)
    diagonal = rng.normal(size=(rows, count)) * math.sqrt(2 / beta)
    squares = rng.chisquare(beta * (size - 1 - np.arange(rows - 1))[:, None], (rows - 1, count)) / beta
    low, high = np.full(count, -12.0), np.full(count, 12.0)
    for _ in range(26):  # bisection: λ is above every eigenvalue where all pivots of λ − H are positive
        middle = (low + high) / 2
        shift = 2 * math.sqrt(size) + middle * size ** (-1 / 6)
        pivot = shift - diagonal[0]
        above = pivot > 0
        for a, b2 in zip(diagonal[1:], squares, strict=True):
            pivot = shift - a - b2 / pivot
            above &= pivot > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    scaled = low * (2 ** (1 / 6) if beta == 4 else 1)
    assert stats.kstest(scaled, lambda x: np.asarray(tracy_widom.cdf(x, beta))).pvalue > 1e-5
    if beta == 4:
        for factor in (1, 2**0.5, 2 ** (2 / 3)):
            assert stats.kstest(low * factor, lambda x: np.asarray(tracy_widom.cdf(x, 4))).pvalue < 1e-30
