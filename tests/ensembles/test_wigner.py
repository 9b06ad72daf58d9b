"""Wigner matrices: exact moments, dense and tridiagonal equal in law, and what heavy tails do to the largest eigenvalue."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from rmtjax._errors import InputError
from rmtjax.ensembles.wigner import goe, gse, gue, hermite, wigner

# False alarms: KS at p < 1e-5 and means at 4.5 standard errors (7e-6), some hundred checks: 1e-3 for the file. Seeds are
# fixed.
P, Z = 1e-5, 4.5
TRIALS = 20_000
DENSE = {1: goe, 2: gue, 4: gse}


@pytest.fixture(autouse=True)
def double():
    """Draws are made in float64."""
    with jax.enable_x64(True):
        yield


def many(draw, trials=TRIALS, seed=1):
    """`draw(key)` for a batch of keys, as NumPy arrays."""
    keys = jax.random.split(jax.random.key(seed), trials)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))


def centred(x, mean):
    """Standard scores of a sample's mean."""
    return (np.mean(x) - mean) / (np.std(x) / np.sqrt(len(x)))


def second_moment(beta, N):
    return 1 + (2 / beta - 1) / N


def fourth_moment(beta, N):
    k = 2 / beta
    return 2 + 5 * (k - 1) / N + (3 - 5 * k + 3 * k**2) / N**2


@pytest.mark.each_value
@pytest.mark.parametrize("N", [1, 5])
@pytest.mark.parametrize("beta", [1, 2, 4])
def test_exact_moments_dense(beta, N):
    """E tr W²/N and E tr W⁴/N; for the GOE 1 + 1/N and 2 + 5/N + 5/N². σ scales them by σ² and σ⁴."""
    w = many(lambda k: DENSE[beta](k, N, 1.5))
    copies = w.shape[-1]
    square = w @ w
    second = np.trace(square, axis1=1, axis2=2).real / copies
    fourth = np.sum(np.abs(square) ** 2, (1, 2)) / copies
    assert abs(centred(second, 1.5**2 * second_moment(beta, N))) < Z
    assert abs(centred(fourth, 1.5**4 * fourth_moment(beta, N))) < Z


@functools.partial(jax.jit, static_argnums=1)
def hermites(keys, N, beta):
    return jax.vmap(lambda k: hermite(k, N, beta, 1.5))(keys)


@pytest.mark.first(2)
@pytest.mark.parametrize("N", [1, 2, 30])
@pytest.mark.parametrize("beta", [0.3, 1, 2, 3.7, 20])
def test_exact_moments_tridiagonal(beta, N):
    d, e = map(np.asarray, hermites(jax.random.split(jax.random.key(2), TRIALS), N, float(beta)))
    second = (np.sum(d**2, 1) + 2 * np.sum(e**2, 1)) / N
    b2 = e**2
    fourth = np.sum(d**4, 1) + 4 * np.sum(b2 * (d[:, 1:] ** 2 + d[:, 1:] * d[:, :-1] + d[:, :-1] ** 2), 1)
    fourth = (fourth + 2 * np.sum(b2**2, 1) + 4 * np.sum(b2[:, 1:] * b2[:, :-1], 1)) / N
    assert abs(centred(second, 1.5**2 * second_moment(beta, N))) < Z
    assert abs(centred(fourth, 1.5**4 * fourth_moment(beta, N))) < Z


@pytest.mark.thorough
@pytest.mark.parametrize("beta", [1, 2, 4])
def test_tridiagonal_is_the_dense_ensemble_in_law(beta):
    """Largest eigenvalue, largest gap and fourth power sum, and the weight of the first coordinate on the top vector."""
    N = 4
    w = many(lambda k: DENSE[beta](k, N, 1.5), seed=2)
    values, vectors = np.linalg.eigh(w)
    step = 2 if beta == 4 else 1
    if beta == 4:
        np.testing.assert_allclose(values[:, ::2], values[:, 1::2], atol=1e-12)
        # The quaternion weight of the first coordinate: both vectors of the pair, both rows of the quaternion.
        weight = np.sum(np.abs(vectors[:, 0, -2:]) ** 2, -1)
    else:
        weight = np.abs(vectors[:, 0, -1]) ** 2
    dense = values[:, ::step]
    t = jax.tree.map(np.asarray, hermites(jax.random.split(jax.random.key(3), TRIALS), N, float(beta)))
    full = np.zeros((TRIALS, N, N))
    i = np.arange(N)
    full[:, i, i], full[:, i[1:], i[:-1]] = t.diagonal, t.off_diagonal
    sparse, sparse_vectors = np.linalg.eigh(full)
    for f in (
        lambda x: x[:, -1],
        lambda x: x[:, 0],
        lambda x: np.max(np.diff(x), -1),
        lambda x: np.sum(x**4, -1),
    ):
        assert stats.ks_2samp(f(dense), f(sparse)).pvalue > P
    assert stats.ks_2samp(weight, sparse_vectors[:, 0, -1] ** 2).pvalue > P


@pytest.mark.parametrize("beta", [0.2, 1, 2.6, 11])
def test_two_by_two_gap_at_any_beta(beta):
    r"""At N = 2 the squared gap (H₁₁ − H₂₂)² + 4H₁₂² is :math:`(2σ²/β)χ²_{β+1}`, whatever β."""
    d, e = map(np.asarray, hermites(jax.random.split(jax.random.key(4), TRIALS), 2, float(beta)))
    gap2 = (d[:, 0] - d[:, 1]) ** 2 + 4 * e[:, 0] ** 2
    assert stats.kstest(gap2 * beta / (2 * 1.5**2), stats.chi2(beta + 1).cdf).pvalue > P


@pytest.mark.first(2)
@pytest.mark.parametrize("beta", [1, 2, 4])
def test_structure_and_entries(beta):
    """Exactly Hermitian, and each independent component of each entry normal with its own variance."""
    N = 3
    w = many(lambda k: DENSE[beta](k, N))
    np.testing.assert_array_equal(w, np.swapaxes(w.conj(), 1, 2))
    np.testing.assert_array_equal(w.imag[:, np.arange(N), np.arange(N)], 0)
    if beta == 4:
        x, y = w[:, :N, :N], w[:, :N, N:]
        np.testing.assert_array_equal(w[:, N:, N:], x.conj())
        np.testing.assert_array_equal(y, -np.swapaxes(y, 1, 2))
        parts = np.stack([x.real, x.imag, y.real, y.imag], -1)
    else:
        parts = np.stack([w.real, w.imag], -1)[..., :beta]
    rows, cols = np.tril_indices(N, -1)
    off = parts[:, rows, cols].reshape(TRIALS, -1) * np.sqrt(beta * N)
    on = w[:, np.arange(N), np.arange(N)].real * np.sqrt(beta * N / 2)
    x = np.concatenate([off, on], 1)
    for column in x.T:
        assert stats.kstest(column, "norm").pvalue > P
    # Up to 15 components, 105 pairs at 5.3 standard errors (1e-7) each.
    assert np.max(np.abs(np.corrcoef(x, rowvar=False) - np.eye(x.shape[1]))) < 5.3 / np.sqrt(TRIALS)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def wigners(keys, N, law, dtype, diagonal):
    return jax.vmap(lambda k: wigner(k, N, law, 1.0, dtype, diagonal))(keys)


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("law", "entry_fourth", "dtype"),
    [
        ("rademacher", 1, "float64"),
        ("rademacher", 1, "complex128"),
        ("uniform", 9 / 5, "float64"),
        ("student-t:12", 3 + 6 / 8, "complex128"),
    ],
)
@pytest.mark.parametrize("diagonal", [None, 0.0, 3.0])
def test_exact_moments_of_any_entries(law, entry_fourth, dtype, diagonal):
    r"""E tr W²/N = ((N − 1)s + d)N/N and, with Wick's pairings counted for independent symmetric entries,
    :math:`E \frac1N tr W⁴ = ((N−1)s + d)² + (N−1)(m−1)s² + (m_d − 1)d² + (N−1)((N−2)s² + 2sd)`, s = 1/N, d the variance on the
    diagonal, m and m_d the standardised fourth moments there: those of a complex entry of independent parts are (m+1)/2.
    """
    N = 5
    complex_ = dtype == "complex128"
    diagonal = (1.0 if complex_ else 2.0) if diagonal is None else diagonal
    w = np.asarray(wigners(jax.random.split(jax.random.key(5), TRIALS), N, law, dtype, float(diagonal)))
    np.testing.assert_array_equal(w, np.swapaxes(w.conj(), 1, 2))
    s, d = 1 / N, diagonal / N
    m = (entry_fourth + 1) / 2 if complex_ else entry_fourth
    second = (N - 1) * s + d
    fourth = second**2 + (N - 1) * (m - 1) * s**2 + (entry_fourth - 1) * d**2
    fourth += (N - 1) * ((N - 2) * s**2 + 2 * s * d)
    square = w @ w
    got_second = np.trace(square, axis1=1, axis2=2).real / N
    got_fourth = np.sum(np.abs(square) ** 2, (1, 2)) / N
    if np.std(got_second) > 1e-12:
        assert abs(centred(got_second, second)) < Z
    else:  # signs of fixed size
        np.testing.assert_allclose(got_second, second, rtol=1e-12)
    assert abs(centred(got_fourth, fourth)) < Z


def test_bulk_is_the_semicircle():
    """One GOE matrix of order 400: its eigenvalues are within 0.01 of the semicircle's distribution function.

    The distance is of order 1/N (0.003 is typical) and has no tail to speak of: eigenvalues are rigid.
    """
    w = np.linalg.eigvalsh(np.asarray(goe(jax.random.key(6), 400, 0.7)))
    cdf = stats.semicircular(scale=1.4).cdf
    assert stats.kstest(w, cdf).statistic < 0.01
    assert abs(w[-1] - 1.4) < 0.1 and abs(w[0] + 1.4) < 0.1


@pytest.mark.parametrize("beta", [0.5, 1.0, 6.0])
def test_bulk_of_the_tridiagonal_is_the_semicircle(beta):
    """At N = 2000 the distance is 0.001 or so (rigidity again)."""
    d, e = map(np.asarray, jax.jit(lambda k, b: hermite(k, 2000, b))(jax.random.key(7), beta))
    values = linalg.eigh_tridiagonal(d, e, eigvals_only=True)
    assert stats.kstest(values, stats.semicircular(scale=2).cdf).statistic < 0.005
    assert abs(values[-1] - 2) < 0.1


@pytest.mark.thorough
def test_heavy_tails_send_the_largest_eigenvalue_out():
    r"""Student's t with ν = 3: the largest eigenvalue is the outlier of the largest entry, not the edge's.

    An entry w beyond ±1 off the diagonal is a spike of strength |w| (rank two, eigenvalues ±w), on it one of strength w, so
    :math:`P(\lambda_{max} > x) = 1 - \exp(-\sum_{i<j}P(|w_{ij}| > t) - \sum_iP(w_{ii} > t))`, :math:`t = (x + \sqrt{x^2-4})/2`.
    Allowed beside 4.5 standard errors: 0.01 for finite N (20,000 matrices of order 60 gave differences of 0.0014, 0.0030
    and 0.0007, their standard errors 0.0026, 0.0016, 0.0006). For the GOE P(λ_max > 2.6) is below 1e-8.
    """
    N, trials, nu = 60, 2000, 3
    top = np.linalg.eigvalsh(many(lambda k: wigner(k, N, f"student-t:{nu}"), trials, seed=8))[:, -1]
    t = stats.t(nu, scale=np.sqrt((nu - 2) / nu / N))
    for x in (2.6, 3.5, 6.0):
        theta = (x + np.sqrt(x**2 - 4)) / 2
        expected = 1 - np.exp(-N * (N - 1) * t.sf(theta) - N * t.sf(theta / np.sqrt(2)))
        assert abs(np.mean(top > x) - expected) < Z * np.sqrt(expected * (1 - expected) / trials) + 0.01
    assert np.max(np.linalg.eigvalsh(many(lambda k: goe(k, N), 300, seed=9))) < 2.6


def test_without_variance_the_largest_eigenvalue_is_the_largest_entry():
    r"""ν = 1 on Lévy's scale: :math:`N^{-1}(N^2/2)\,\lambda_{max}` is Fréchet's variable (Soshnikov 2004).

    Over 6000 matrices of order 60 the distribution function differed from Fréchet's by 0.016, and half of them had
    λ_max within 0.4 % of the largest entry.
    """
    N, trials = 60, 2000
    w = many(lambda k: wigner(k, N, "heavy:1", 1 / np.sqrt(N), diagonal=0.0), trials, seed=10)
    top, largest = np.linalg.eigvalsh(w)[:, -1], np.max(np.abs(w), (1, 2))
    assert np.median(np.abs(top / largest - 1)) < 0.01
    assert stats.kstest(top * N / (N * (N - 1) / 2), stats.invweibull(1).cdf).pvalue > P


def test_heavy_tails_and_the_bulk():
    """The semicircle needs a variance and no more: it holds at ν = 3 and fails at ν = 1.5, whatever the scale.

    The 0.99 quantile over the 0.75 quantile of the eigenvalues is 2.31 for the semicircle. Six matrices of order 400 each
    gave 2.27–2.36 for the GOE, 2.43–2.56 at ν = 3 and 6.1–8.8 at ν = 1.5.
    """
    for law, low, high in (("gaussian", 2.2, 2.42), ("student-t:3", 2.2, 2.8), ("heavy:1.5", 4, np.inf)):
        values = np.linalg.eigvalsh(np.asarray(wigner(jax.random.key(12), 400, law)))
        assert low < np.quantile(values, 0.99) / np.quantile(values, 0.75) < high


@pytest.mark.first(1)
@pytest.mark.parametrize("draw", [gse, lambda k, N: wigner(k, N, "student-t"), lambda k, N: hermite(k, N, 1.5)])
def test_a_draw_belongs_to_its_key(draw):
    """A batch of keys gives what each key gives; two keys differ."""
    keys = jax.random.split(jax.random.key(11), 4)
    leaves = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    single = jax.jit(lambda k: draw(k, 5))
    alone = [leaves(single(k)) for k in keys]
    batch = jax.jit(jax.vmap(lambda k: draw(k, 5)))(keys)
    together = [leaves(jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-14)
    assert len({x[0].item() for x in alone}) == 4


@pytest.mark.parametrize(
    ("draw", "dtypes", "order"),
    [
        (goe, ["float32", "float64"], 6),
        (gue, ["complex64", "complex128"], 6),
        (gse, ["complex64", "complex128"], 12),
        (wigner, ["float32", "float64", "complex64", "complex128"], 6),
    ],
)
def test_shape_and_dtype(draw, dtypes, order):
    for dtype in dtypes:
        w = jax.eval_shape(lambda k, d=dtype: draw(k, 6, dtype=d), jax.random.key(0))
        assert w.shape == (order, order) and w.dtype == dtype


def test_the_same_draws_in_every_precision():
    """In float32 and float64, and in a program that works in single precision."""
    double = np.asarray(gse(jax.random.key(0), 3))
    single = gse(jax.random.key(0), 3, dtype="complex64")
    np.testing.assert_allclose(single, double, rtol=3e-6)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(gse(jax.random.key(0), 3), double)
        np.testing.assert_array_equal(gse(jax.random.key(0), 3, dtype="complex64"), single)


def test_shape_and_dtype_of_the_tridiagonal():
    for N in (1, 2, 5):
        t = jax.eval_shape(lambda k, N=N: hermite(k, N, 2.0, dtype=jnp.float32), jax.random.key(0))
        assert t.diagonal.shape == (N,) and t.off_diagonal.shape == (N - 1,)
        assert t.diagonal.dtype == t.off_diagonal.dtype == jnp.float32


@pytest.mark.thorough
def test_parameters_may_be_traced():
    """A grid of β and σ in one program, and the derivative in σ, which is W/σ."""
    betas = jnp.array([0.5, 1.0, 4.0])
    one = jax.jit(lambda b: hermite(jax.random.key(1), 4, b, 2.0))
    got = jax.jit(jax.vmap(one))(betas)
    for i, beta in enumerate(betas):
        np.testing.assert_allclose(got.off_diagonal[i], one(beta).off_diagonal, rtol=1e-12)
    slope = jax.jit(jax.jacfwd(lambda s: goe(jax.random.key(1), 3, s)))(2.0)
    np.testing.assert_allclose(slope, goe(jax.random.key(1), 3, 2.0) / 2, rtol=1e-12)


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: goe(KEY, 0), "N = 0: must be a whole number ≥ 1"),
        (lambda: gue(KEY, -3), "N = -3"),
        (lambda: gse(KEY, 0), "N = 0"),
        (lambda: wigner(KEY, 0), "N = 0"),
        (lambda: hermite(KEY, 0), "N = 0"),
        (lambda: hermite(KEY, 3, 0.0), "beta = 0.0: must be a finite number > 0"),
        (lambda: hermite(KEY, 3, -1.0), "beta = -1.0"),
        (lambda: hermite(KEY, 3, np.inf), "beta = inf"),
        (lambda: hermite(KEY, 3, np.nan), "beta = nan"),
        (lambda: hermite(KEY, 3, 1.0, 0.0), "sigma = 0.0"),
        (lambda: goe(KEY, 3, -1.0), "sigma = -1.0"),
        (lambda: gse(KEY, 3, np.nan), "sigma = nan"),
        (lambda: wigner(KEY, 3, sigma=np.inf), "sigma = inf"),
        (lambda: jax.jit(lambda k: goe(k, 3, -1.0))(KEY), "sigma = -1.0"),
        (lambda: wigner(KEY, 3, diagonal=-0.1), "diagonal = -0.1: must be a finite number ≥ 0"),
        (lambda: wigner(KEY, 3, "gausian"), "did you mean 'gaussian'"),
        (lambda: wigner(KEY, 3, "student-t:2"), "ν > 2"),
        (lambda: wigner(KEY, 3, dtype=jnp.int32), "dtype = int32: must be float32 or float64 or complex64"),
        (lambda: wigner(KEY, 3, dtype="float"), None),
        (lambda: wigner(KEY, 3, dtype="flote"), "dtype = 'flote'"),
        (lambda: goe(KEY, 3, dtype=jnp.complex64), "dtype = complex64: must be float32 or float64$"),
        (lambda: gue(KEY, 3, dtype=jnp.float64), "dtype = float64: must be complex64 or complex128$"),
        (lambda: gse(KEY, 3, dtype=jnp.int64), "dtype = int64"),
        (lambda: hermite(KEY, 3, dtype=jnp.complex128), "dtype = complex128"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(call, part):
    if part is None:  # Python's float is float64
        assert call().dtype == np.float64
        return
    with pytest.raises(InputError, match=part) as caught:
        call()
    assert "\n" not in str(caught.value)
