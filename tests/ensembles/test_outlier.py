"""The outlier samplers against dense matrices: the same law, and the same numbers where the same entries are put in."""

import jax
import numpy as np
import pytest
from scipy import stats

from rmtjax.ensembles import outlier
from rmtjax.ensembles.outlier import rank_one

T = 1_000  # one number of trials everywhere: every sampler is compiled once


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


wigner = jax.jit(jax.vmap(outlier.wigner_outlier, in_axes=(0, None, None, None, None)))
rectangular = jax.jit(jax.vmap(outlier.rectangular_outlier, in_axes=(0, None, None, None, None)))
covariance = jax.jit(jax.vmap(outlier.covariance_outlier, in_axes=(0, None, None, None, None, None)))


def keys(count=T, seed=0):
    return jax.random.split(jax.random.key(seed), count)


wigner_rows = jax.jit(rank_one.wigner_rows)
rectangular_rows = jax.jit(rank_one.rectangular_rows)
covariance_rows = jax.jit(rank_one.covariance_rows)


def drawn_rows(rows, N):
    """Return the draws of `rows(group)`, as arrays (N, trials)."""
    groups = [rows(g) for g in range(-(-N // 4))]
    return [np.concatenate([np.asarray(g[i]) for g in groups])[:N] for i in range(len(groups[0]))]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("N", "theta", "beta"), [(1, 2.0, 1.0), (3, 0.5, 4.0), (30, 0.3, 1.0), (30, 1.5, 2.0), (31, 0.0, 1.0)]
)
def test_wigner_is_the_eigenproblem_of_its_rows(N, theta, beta):
    """To rounding, on a few hundred matrices, below, at and above the threshold."""
    data = jax.random.key_data(keys()).T
    diagonal, off2 = drawn_rows(lambda g: wigner_rows(data, g, float(N), beta), N)
    M = np.zeros((T, N, N))
    i = np.arange(N)
    M[:, i, i] = diagonal.T
    M[:, i[:-1], i[1:]] = M[:, i[1:], i[:-1]] = np.sqrt(off2[:-1].T)
    M[:, 0, 0] += theta
    values, vectors = np.linalg.eigh(M)
    found = wigner(keys(), float(N), theta, beta, 1e-12)
    np.testing.assert_allclose(found.outlier, values[:, -1], atol=1e-13)
    np.testing.assert_allclose(found.overlap, vectors[:, 0, -1] ** 2, atol=2e-9, rtol=1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("n", "m", "theta"), [(1, 1, 0.5), (1, 4, 1.0), (4, 1, 1.0), (9, 20, 0.2), (20, 9, 2.5), (16, 16, 1.5), (6, 6, 0.0)]
)
def test_rectangular_is_the_svd_of_its_rows(n, m, theta):
    """To rounding, the case included where the noise turns the spike's sign around."""
    data = jax.random.key_data(keys()).T
    size = max(n, m)
    diagonal, right, below = drawn_rows(lambda g: rectangular_rows(data, g, float(n), float(m)), size)
    W = np.zeros((T, size + 1, size + 1))
    i = np.arange(size)
    W[:, i, i], W[:, i, i + 1], W[:, i + 1, i] = diagonal.T, right.T, below.T
    assert not W[:, n:].any()
    assert not W[:, :, m:].any()
    W = W[:, :n, :m]
    W[:, 0, 0] += theta
    left, values, right_vectors = np.linalg.svd(W, full_matrices=False)
    found = rectangular(keys(), float(n), float(m), theta, 1e-12)
    np.testing.assert_allclose(found.outlier, values[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.overlap_left, left[:, 0, 0] ** 2, atol=2e-9, rtol=1e-6)
    np.testing.assert_allclose(found.overlap_right, right_vectors[:, 0, 0] ** 2, atol=2e-9, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("p", "n", "ell", "beta"),
    [(1, 1, 2.0, 1.0), (1, 4, 2.0, 2.0), (4, 1, 3.0, 1.0), (9, 20, 0.5, 1.0), (20, 9, 6.0, 1.0)],
)
def test_covariance_is_the_eigenproblem_of_its_rows(p, n, ell, beta):
    """To rounding."""
    data = jax.random.key_data(keys()).T
    size = min(p, n)
    own, below = drawn_rows(lambda g: covariance_rows(data, g, float(p), float(n), beta), size)
    Z = np.zeros((T, size + 1, size))
    i = np.arange(size)
    Z[:, i, i], Z[:, i + 1, i] = np.sqrt(own.T), np.sqrt(below.T)
    Z[:, 0] *= np.sqrt(ell)
    values, vectors = np.linalg.eigh(Z @ Z.transpose(0, 2, 1))
    found = covariance(keys(), float(p), float(n), ell, beta, 1e-12)
    np.testing.assert_allclose(found.outlier, values[:, -1], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(found.overlap, vectors[:, 0, -1] ** 2, atol=2e-9, rtol=1e-6)


def same_law(ours, dense):
    """Two-sample KS of every output at level 1e-4 each: a false alarm in about 1e-3 of all seeds a test."""
    for name, a, b in zip(ours._fields, ours, dense, strict=True):
        p = stats.ks_2samp(np.round(a, 9), np.round(b, 9)).pvalue
        assert p > 1e-4, f"{name}: p = {p:.1g}"


@pytest.mark.parametrize(("N", "theta"), [(2, 0.5), (12, 1.0), (12, 2.0)])
def test_wigner_has_the_law_of_dense_matrices(N, theta):
    A = np.random.default_rng(1).standard_normal((T, N, N))
    W = (A + A.transpose(0, 2, 1)) / np.sqrt(2 * N) + theta / N
    values, vectors = np.linalg.eigh(W)
    same_law(wigner(keys(), float(N), theta, 1.0, 1e-12), (values[:, -1], vectors[:, :, -1].sum(1) ** 2 / N))


@pytest.mark.parametrize("N", [2, 10])
def test_beta_2_has_the_law_of_dense_complex_matrices(N):
    A = np.random.default_rng(2).standard_normal((2, T, N, N))
    A = A[0] + 1j * A[1]
    W = (A + A.conj().transpose(0, 2, 1)) / np.sqrt(4 * N)
    W[:, 0, 0] += 1.5
    values, vectors = np.linalg.eigh(W)
    same_law(wigner(keys(), float(N), 1.5, 2.0, 1e-12), (values[:, -1], np.abs(vectors[:, 0, -1]) ** 2))


@pytest.mark.first(1)
@pytest.mark.parametrize(("n", "m", "theta"), [(1, 3, 0.5), (5, 2, 1.0), (8, 12, 1.5), (12, 8, 0.3)])
def test_rectangular_has_the_law_of_dense_matrices(n, m, theta):
    W = np.random.default_rng(3).standard_normal((T, n, m)) / np.sqrt(m) + theta / np.sqrt(n * m)
    left, values, right = np.linalg.svd(W, full_matrices=False)
    dense = values[:, 0], left[:, :, 0].sum(1) ** 2 / n, right[:, 0].sum(1) ** 2 / m
    same_law(rectangular(keys(), float(n), float(m), theta, 1e-12), dense)


@pytest.mark.first(1)
@pytest.mark.parametrize(("p", "n", "ell"), [(4, 1, 3.0), (1, 4, 2.0), (8, 12, 0.5), (12, 8, 5.0)])
def test_covariance_has_the_law_of_dense_matrices(p, n, ell):
    X = np.random.default_rng(4).standard_normal((T, p, n))
    X[:, 0] *= np.sqrt(ell)
    values, vectors = np.linalg.eigh(X @ X.transpose(0, 2, 1) / n)
    same_law(covariance(keys(), float(p), float(n), ell, 1.0, 1e-12), (values[:, -1], vectors[:, 0, -1] ** 2))


@pytest.mark.thorough
@pytest.mark.parametrize("theta", [0.5, 1.0, 1.01, 1.2, 3.0])
def test_rows_left_out_do_not_matter(theta):
    """Against a depth for a tolerance of 1e-60, at N = 10⁵: the outlier moves by less than the stated 1e-12."""
    few = wigner(keys(), 1e5, theta, 1.0, 1e-12)
    many = wigner(keys(), 1e5, theta, 1.0, 1e-60)
    np.testing.assert_allclose(few.outlier, many.outlier, atol=2e-12)
    np.testing.assert_allclose(few.overlap, many.overlap, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("c", "theta"), [(0.25, 1.2), (4.0, 1.5), (4.0, 3.0), (1e-3, 1.0)])
def test_rows_left_out_do_not_matter_in_rectangles(c, theta):
    few = rectangular(keys(), round(c * 1e5) * 1.0, 1e5, theta, 1e-12)
    many = rectangular(keys(), round(c * 1e5) * 1.0, 1e5, theta, 1e-40)
    np.testing.assert_allclose(few.outlier, many.outlier, atol=3e-12)
    np.testing.assert_allclose(few.overlap_left, many.overlap_left, rtol=1e-6, atol=1e-10)


def test_too_few_rows_would_be_noticed():
    """The test above sees a depth that is too small: a tolerance of 1e-3 moves the outlier by more than 1e-12."""
    few = wigner(keys(), 1e5, 1.2, 1.0, 1e-3)
    many = wigner(keys(), 1e5, 1.2, 1.0, 1e-60)
    assert np.abs(few.outlier - many.outlier).max() > 1e-9


def test_depth_does_not_grow_with_the_matrix_away_from_the_edge():
    def levels(N, theta):
        return int(outlier.outlier_depth(rank_one.wigner_start(N, theta, 1.0)[2], 4 / N, N, 1e-12))

    assert levels(1e9, 2.0) <= levels(1e6, 2.0) <= 24  # log 1e12 / (2 log 2) = 20
    at_edge = [levels(10.0**k, 1.0) for k in (6, 9, 12)]
    np.testing.assert_allclose(np.divide(at_edge[1:], at_edge[:-1]), 10, rtol=0.1)  # N^{1/3}
    assert levels(5.0, 1.0) == 5


@pytest.mark.thorough
@pytest.mark.parametrize("N", [2, 10**4])
def test_the_edge_is_the_outlier_without_a_spike(N):
    edge = jax.jit(jax.vmap(lambda k: outlier.wigner_edge(k, N)))(keys()[:16])
    np.testing.assert_allclose(edge, wigner(keys(), float(N), 0.0, 1.0, 1e-12).outlier[:16], atol=1e-13)


@pytest.mark.thorough
def test_a_trial_does_not_depend_on_the_batch():
    few = jax.jit(jax.vmap(lambda k: outlier.wigner_outlier(k, 1e5, 1.3)))(keys()[5:7])
    np.testing.assert_allclose(few.outlier, wigner(keys(), 1e5, 1.3, 1.0, 1e-12).outlier[5:7], rtol=1e-15)
