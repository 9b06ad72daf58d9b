"""Rectangular and Wishart matrices: exact moments, dense and bidiagonal equal in law, samples that run out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax._errors import InputError
from rmtjax.ensembles.wishart import complex_wishart, iid, laguerre, sample_covariance, wishart

# False alarms: KS at p < 1e-5 and means at 4.5 standard errors (7e-6), some ninety checks: 1e-3 for the file. Seeds are
# fixed.
P, Z = 1e-5, 4.5
TRIALS = 20_000


@pytest.fixture(autouse=True)
def double():
    """Draws are made in float64."""
    with jax.enable_x64(True):
        yield


def many(draw, trials=TRIALS, seed=1):
    """`draw(key)` for a batch of keys, as NumPy arrays."""
    keys = jax.random.split(jax.random.key(seed), trials)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))


@functools.partial(jax.jit, static_argnums=1)
def _laguerres(keys, p, n, beta):
    return jax.vmap(lambda k: laguerre(k, p, n, beta, 1.5))(keys)


def bidiagonals(p, n, beta, seed=2, trials=TRIALS):
    """A batch of full matrices B, σ = 1.5."""
    d, e = map(np.asarray, _laguerres(jax.random.split(jax.random.key(seed), trials), p, float(n), float(beta)))
    b, i = np.zeros((trials, p, p)), np.arange(p)
    b[:, i, i], b[:, i[1:], i[:-1]] = d, e
    return b


def centred(x, mean):
    """Standard scores of a sample's mean."""
    return (np.mean(x) - mean) / (np.std(x) / np.sqrt(len(x)))


SIZES = [(1, 1), (3, 5), (6, 1)]


@pytest.mark.each_value
@pytest.mark.parametrize("p, n", SIZES)
@pytest.mark.parametrize("beta", [1, 2])
def test_exact_moments_dense(beta, p, n):
    """E tr S/p = σ² and E tr S²/p = σ⁴(1 + (p − 1 + 2/β)/n), Hermitian and positive semi-definite."""
    s = many(lambda k: (wishart if beta == 1 else complex_wishart)(k, p, n, "gaussian", 1.5))
    np.testing.assert_allclose(s, np.swapaxes(s.conj(), 1, 2), rtol=1e-14, atol=1e-13)
    assert np.min(np.linalg.eigvalsh(s[:100])) > -1e-12
    assert abs(centred(np.trace(s, axis1=1, axis2=2).real / p, 1.5**2)) < Z
    second = np.sum(np.abs(s) ** 2, (1, 2)) / p
    assert abs(centred(second, 1.5**4 * (1 + (p - 1 + 2 / beta) / n))) < Z


@pytest.mark.thorough
@pytest.mark.parametrize("p, n", [(1, 0.3), (3, 5), (3, 2.01), (5, 2), (5, 1), (20, 30)])
@pytest.mark.parametrize("beta", [0.3, 1, 2, 7])
def test_exact_moments_bidiagonal(beta, p, n):
    """The same formulas for every β, for real n > p − 1 and for whole n < p."""
    b = bidiagonals(p, n, beta)
    s = b @ np.swapaxes(b, 1, 2)
    assert abs(centred(np.trace(s, axis1=1, axis2=2) / p, 1.5**2)) < Z
    assert abs(centred(np.sum(s**2, (1, 2)) / p, 1.5**4 * (1 + (p - 1 + 2 / beta) / n))) < Z


@pytest.mark.thorough
@pytest.mark.parametrize("p, n", [(3, 5), (5, 2)])
@pytest.mark.parametrize("beta", [1, 2])
def test_bidiagonal_is_the_dense_ensemble_in_law(beta, p, n):
    """Extreme singular values and third power sum, and the weight of the first coordinate on the top left vector."""
    x = many(lambda k: iid(k, p, n, "gaussian", 1.5, jnp.float64 if beta == 1 else jnp.complex128), seed=3)
    u, dense, _ = np.linalg.svd(x, full_matrices=False)
    v, sparse, _ = np.linalg.svd(bidiagonals(p, n, beta))
    rank = min(p, n)
    np.testing.assert_array_less(sparse[:, rank:], 1e-12)
    for f in (lambda s: s[:, 0], lambda s: s[:, rank - 1], lambda s: np.sum(s[:, :rank] ** 6, -1)):
        assert stats.ks_2samp(f(dense), f(sparse)).pvalue > P
    assert stats.ks_2samp(np.abs(u[:, 0, 0]) ** 2, v[:, 0, 0] ** 2).pvalue > P


@pytest.mark.parametrize("beta", [0.4, 2.5])
def test_rows_and_columns_change_places(beta):
    """At any β a rank-n matrix of order p > n has the non-zero singular values of one of order n with p samples."""
    p, n = 5, 3
    tall = np.linalg.svd(bidiagonals(p, n, beta, seed=4), compute_uv=False)
    wide = np.linalg.svd(bidiagonals(n, p, beta, seed=5), compute_uv=False) * np.sqrt(p / n)
    np.testing.assert_array_less(tall[:, n:], 1e-12)
    for k in range(n):
        assert stats.ks_2samp(tall[:, k], wide[:, k]).pvalue > P


@pytest.mark.parametrize("n", [0.4, 1, 2.7, 1e6])
@pytest.mark.parametrize("beta", [0.5, 4])
def test_order_one(n, beta):
    """One row: βn s²/σ² is χ² with βn degrees of freedom, for every real n > 0."""
    b = bidiagonals(1, n, beta)[:, 0, 0]
    assert stats.kstest(b**2 * beta * n / 1.5**2, stats.chi2(beta * n).cdf).pvalue > P


@pytest.mark.parametrize("c", [0.25, 1.0, 4.0])
def test_bulk_is_marchenko_pastur(c):
    """The atom 1 − 1/c exactly, the edges, and the rest within 0.02 of the law's distribution function, p = 600."""
    p = 600
    n = int(p / c)
    d, e = map(np.asarray, _laguerres(jax.random.split(jax.random.key(6), 1), p, float(n), 1.0))
    b = np.diag(d[0]) + np.diag(e[0], -1)
    values = np.sort(np.linalg.svd(b, compute_uv=False)) ** 2 / 1.5**2
    zero = max(0, p - n)
    assert np.all(values[:zero] < 1e-20)
    low, high = (1 - np.sqrt(c)) ** 2, (1 + np.sqrt(c)) ** 2
    # x = 1 + c − 2√c cos φ makes the density smooth: ∫√((x−λ₋)(λ₊−x))/(2πcx) dx = ∫(2/π) sin²φ/x dφ.
    phi = (np.arange(20_000) + 0.5) * np.pi / 20_000
    x = 1 + c - 2 * np.sqrt(c) * np.cos(phi)
    mass = np.cumsum(2 * np.sin(phi) ** 2 / x) / 20_000
    np.testing.assert_allclose(mass[-1], min(1, 1 / c), rtol=1e-3)
    rest = stats.kstest(values[zero:], lambda v: np.interp(v, x, mass / mass[-1])).statistic
    assert rest < 0.02 and abs(values[-1] - high) < 0.2 * high and abs(values[zero] - low) < 0.2


@pytest.mark.parametrize(
    ("law", "entry_fourth", "dtype"),
    [
        ("rademacher", 1, "float64"),
        ("uniform", 9 / 5, "float64"),
        ("rademacher", 1, "complex128"),
        ("student-t:12", 3 + 6 / 8, "complex128"),
    ],
)
def test_exact_moments_of_any_entries(law, entry_fourth, dtype):
    """E tr S²/p = 1 + (m + p − 2)/n, m = E|x|⁴: (m + 1)/2 of the parts' for complex entries."""
    p, n = 3, 4
    m = (entry_fourth + 1) / 2 if dtype == "complex128" else entry_fourth
    s = many(lambda k: wishart(k, p, n, law, dtype=dtype))
    trace = np.trace(s, axis1=1, axis2=2).real / p
    if np.std(trace) > 1e-12:
        assert abs(centred(trace, 1)) < Z
    else:  # signs of fixed size
        np.testing.assert_allclose(trace, 1, rtol=1e-12)
    assert abs(centred(np.sum(np.abs(s) ** 2, (1, 2)) / p, 1 + (m + p - 2) / n)) < Z


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_entries_of_the_rectangular_matrix(dtype):
    """Variance σ²/m whatever the number of rows; complex ones have independent parts of half of it."""
    w = many(lambda k: iid(k, 2, 5, "gaussian", 3.0, jnp.dtype(dtype))).reshape(-1)
    scale = 3 / np.sqrt(5) / (np.sqrt(2) if dtype == "complex128" else 1)
    assert stats.kstest(w.real, stats.norm(scale=scale).cdf).pvalue > P
    if dtype == "complex128":
        assert stats.kstest(w.imag, stats.norm(scale=scale).cdf).pvalue > P
        assert abs(np.corrcoef(w.real, w.imag)[0, 1]) < Z / np.sqrt(w.size)


@pytest.mark.first(2)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_sample_covariance(dtype):
    x = iid(jax.random.key(7), 40, 70, dtype=dtype)
    s = np.asarray(sample_covariance(x))
    exact = np.asarray(x, np.complex128)
    np.testing.assert_allclose(s, exact @ exact.conj().T / 70, atol=40 * np.finfo(dtype).eps)
    assert s.dtype == dtype
    with jax.enable_x64(False):
        assert sample_covariance(x).dtype == dtype


DRAWS = [
    (lambda k, d: iid(k, 3, 5, dtype=d), (3, 5), "fc"),
    (lambda k, d: wishart(k, 3, 5, "student-t", dtype=d), (3, 3), "fc"),
    (lambda k, d: complex_wishart(k, 3, 5, dtype=d), (3, 3), "c"),
    (lambda k, d: jnp.concatenate(laguerre(k, 3, 5, 1.5, dtype=d)), (5,), "f"),
]


@pytest.mark.first(1)
@pytest.mark.parametrize(("draw", "shape", "kinds"), DRAWS)
def test_shape_dtype_and_key(draw, shape, kinds):
    """The dtype that was asked for; a batch of keys gives what each key gives; two keys differ."""
    for dtype in ("float32", "float64", "complex64", "complex128"):
        if dtype[0] in kinds:
            x = jax.eval_shape(lambda k, d=dtype: draw(k, d), jax.random.key(0))
            assert x.shape == shape and x.dtype == dtype
    dtype = "float64" if "f" in kinds else "complex128"
    keys = jax.random.split(jax.random.key(8), 3)
    alone = np.stack([draw(k, dtype) for k in keys])
    with jax.enable_x64(False):
        plain = np.stack([draw(k, dtype) for k in keys])
    np.testing.assert_array_equal(plain, alone)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda k: draw(k, dtype)))(keys), alone, rtol=1e-12, atol=1e-14)
    assert len(set(alone.reshape(3, -1)[:, 0].tolist())) == 3


def test_no_row_no_subdiagonal():
    b = laguerre(jax.random.key(0), 1, 3)
    assert b.diagonal.shape == (1,) and b.subdiagonal.shape == (0,)


@pytest.mark.thorough
def test_parameters_may_be_traced():
    """A grid of n, β and σ in one program, n below and above p."""
    n, beta, sigma = jnp.array([2.0, 3.5, 100.0]), jnp.array([0.5, 1.0, 4.0]), jnp.array([1.0, 2.0, 3.0])
    one = lambda n, b, s: laguerre(jax.random.key(1), 4, n, b, s)  # noqa: E731
    jitted, got = jax.jit(one), jax.jit(jax.vmap(one))(n, beta, sigma)
    alone = [jitted(a, b, c) for a, b, c in zip(n, beta, sigma, strict=True)]
    np.testing.assert_allclose(got.diagonal, [a.diagonal for a in alone], rtol=1e-12)
    np.testing.assert_allclose(got.subdiagonal, [a.subdiagonal for a in alone], rtol=1e-12)
    assert np.all(alone[0].diagonal[2:] == 0) and alone[0].subdiagonal[2] == 0 and np.all(alone[0].subdiagonal[:2] > 0)


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: iid(KEY, 0, 3), "n = 0: must be a whole number ≥ 1"),
        (lambda: iid(KEY, 3, -1), "m = -1"),
        (lambda: iid(KEY, 3, 3, sigma=0.0), "sigma = 0.0: must be a finite number > 0"),
        (lambda: iid(KEY, 3, 3, dtype=jnp.int8), "dtype = int8"),
        (lambda: iid(KEY, 3, 3, "normal"), "entries 'normal' is unknown"),
        (lambda: wishart(KEY, 0, 3), "p = 0"),
        (lambda: wishart(KEY, 3, 0), "n = 0"),
        (lambda: wishart(KEY, 3, 3, sigma=np.nan), "sigma = nan"),
        (lambda: wishart(KEY, 3, 3, dtype=jnp.bool_), "dtype = bool"),
        (lambda: complex_wishart(KEY, 3, 0), "n = 0"),
        (lambda: complex_wishart(KEY, 3, 3, dtype=jnp.float64), "dtype = float64: must be complex64 or complex128"),
        (lambda: laguerre(KEY, 0, 3), "p = 0"),
        (lambda: laguerre(KEY, 3, 0), "n = 0"),
        (lambda: laguerre(KEY, 3, -2.5), "n = -2.5"),
        (lambda: laguerre(KEY, 3, 1.5), "n = 1.5: must be a whole number or > p − 1 = 2"),
        (lambda: jax.jit(lambda k: laguerre(k, 3, 1.5).diagonal)(KEY), "n = 1.5"),
        (lambda: laguerre(KEY, 3, np.inf), "n = inf"),
        (lambda: laguerre(KEY, 3, 4, 0), "beta = 0: must be a finite number > 0"),
        (lambda: laguerre(KEY, 3, 4, -1.0), "beta = -1.0"),
        (lambda: laguerre(KEY, 3, 4, np.nan), "beta = nan"),
        (lambda: laguerre(KEY, 3, 4, 1.0, -1.0), "sigma = -1.0"),
        (lambda: laguerre(KEY, 3, 4, dtype=jnp.complex64), "dtype = complex64: must be float32 or float64"),
        (lambda: sample_covariance(jnp.ones((2, 3), jnp.int32)), "x has dtype int32"),
        (lambda: sample_covariance(jnp.ones((2, 0))), r"x has shape \(2, 0\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(call, part):
    with pytest.raises(InputError, match=part) as caught:
        call()
    assert "\n" not in str(caught.value)
