"""Spikes: the update is the one that was asked for, and the outliers stand where Baik, Ben Arous and Péché put them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax._errors import InputError
from rmtjax.ensembles.haar import orthogonal, unitary
from rmtjax.ensembles.spiked import low_rank_update, spiked_covariance, spiked_rectangular, spiked_wigner
from rmtjax.ensembles.wigner import wigner
from rmtjax.ensembles.wishart import iid, sample_covariance

# False alarms: KS at p < 1e-5, 8 checks; means at 4.5 standard errors beside the bias stated: 1e-4. Seeds are fixed.
P, Z = 1e-5, 4.5
KEY, OTHER = jax.random.split(jax.random.key(1))
DTYPES = ["float32", "float64", "complex64", "complex128"]


@pytest.fixture(autouse=True)
def double():
    """Draws are made in float64."""
    with jax.enable_x64(True):
        yield


def frame(key, n, r, dtype):
    return (orthogonal if dtype[0] == "f" else unitary)(key, n, r, dtype)


def gaussian(n, m, dtype="float64"):
    """A base by NumPy, which is as good as any: (n, m), and Hermitian where both are the same."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, m)) + 1j * rng.normal(size=(n, m))
    x = (x + x.conj().T) / 2 if n == m else x
    return (x if dtype[0] == "c" else x.real).astype(dtype)


def digits(dtype):
    return 50 * np.finfo(dtype).eps


def wide(x):
    return np.asarray(x).astype(np.complex128)


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("theta", "dtype"),
    [([3.0, -1.5, 0.25], d) for d in DTYPES] + [([2.0], "float64"), ([2.0] * 4, "float64")],
)
def test_symmetric_update(theta, dtype):
    """The difference has eigenvalues θ, rank r, and the given directions as eigenvectors, or a Haar frame without them."""
    n, r = 30, len(theta)
    base = gaussian(n, n, dtype)
    u = frame(OTHER, n, r, dtype)
    for spiked, v in (
        (spiked_wigner(base, theta, u), u),
        (spiked_wigner(base, np.array(theta), key=OTHER), u),
    ):
        assert spiked.dtype == dtype and spiked.shape == (n, n)
        difference = wide(spiked) - wide(base)
        np.testing.assert_allclose(difference, difference.conj().T, atol=digits(dtype))
        np.testing.assert_allclose(difference @ wide(v), wide(v) * theta, atol=10 * digits(dtype))
        values = np.sort(np.linalg.eigvalsh(difference))
        np.testing.assert_allclose(values, np.sort([*theta, *[0] * (n - r)]), atol=10 * digits(dtype))


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("n", "m", "theta", "dtype"),
    [(12, 20, [3.0, 1.5, 0.25], d) for d in ("float32", "complex128")]
    + [(20, 12, [2.0], "float64"), (3, 3, [3.0, 1.5, 0.25], "float64")],
)
def test_rectangular_update(n, m, theta, dtype):
    """The difference has singular values θ with the given directions, and both sides may be left out."""
    r = len(theta)
    base = gaussian(n, m, dtype)
    left_key, right_key = jax.random.split(OTHER)
    u, v = frame(left_key, n, r, dtype), frame(right_key, m, r, dtype)
    for spiked in (
        spiked_rectangular(base, theta, u, v),
        spiked_rectangular(base, theta, u, key=OTHER),
        spiked_rectangular(base, theta, right=v, key=OTHER),
        spiked_rectangular(base, theta, key=OTHER),
    ):
        assert spiked.dtype == dtype
        difference = wide(spiked) - wide(base)
        np.testing.assert_allclose(difference @ wide(v), wide(u) * theta, atol=10 * digits(dtype))
        values = np.linalg.svd(difference, compute_uv=False)
        np.testing.assert_allclose(values, [*theta, *[0] * (min(n, m) - r)], atol=10 * digits(dtype))


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("ell", "dtype"),
    [([9.0, 4.0, 0.25], d) for d in ("float32", "complex128")] + [([4.0], "float64"), ([4.0, 4.0], "float64")],
)
def test_population_covariance(ell, dtype):
    """Applied to the identity it is Σ^{1/2}: symmetric, with eigenvalues √ℓ in the directions and 1 elsewhere."""
    p, r = 15, len(ell)
    u = frame(OTHER, p, r, dtype)
    eye = np.eye(p, dtype=dtype)
    for root in (spiked_covariance(eye, ell, u), spiked_covariance(jax.device_put(eye), ell, key=OTHER)):
        assert root.dtype == dtype
        root = wide(root)
        np.testing.assert_allclose(root, root.conj().T, atol=digits(dtype))
        sigma = np.eye(p) + wide(u) @ np.diag(np.array(ell) - 1) @ wide(u).conj().T
        np.testing.assert_allclose(root @ root, sigma, atol=10 * digits(dtype))
    x = gaussian(p, 8, dtype)
    np.testing.assert_allclose(spiked_covariance(x, ell, u), root @ wide(x), atol=10 * digits(dtype))


def test_one_strength_one_vector():
    """A number and a vector are rank one."""
    w, x, u, v = gaussian(4, 4), gaussian(4, 6), np.eye(4)[2], np.eye(6)[1]
    np.testing.assert_allclose(np.asarray(spiked_wigner(w, -2, u)) - w, -2 * np.outer(u, u), atol=1e-15)
    np.testing.assert_allclose(np.asarray(spiked_rectangular(x, 2.5, u, v)) - x, 2.5 * np.outer(u, v), atol=1e-15)
    np.testing.assert_allclose(spiked_covariance(x, 9, u), x * (1 + 2 * u[:, None]), rtol=1e-15)


def test_full_rank():
    """As many spikes as dimensions: W + θI, and a covariance of ℓI."""
    w, x = gaussian(4, 4), gaussian(4, 6)
    np.testing.assert_allclose(spiked_wigner(w, [3.0] * 4, key=OTHER), w + 3 * np.eye(4), atol=1e-14)
    np.testing.assert_allclose(spiked_covariance(x, [4.0] * 4, key=OTHER), 2 * x, atol=1e-14)
    assert spiked_wigner(np.ones((1, 1)), 2.0, key=OTHER) == 3
    assert abs(abs(spiked_rectangular(np.zeros((1, 1)), 2.0, key=OTHER)[0, 0]) - 2) < 1e-15


def test_directions_that_are_not_orthogonal():
    """The update is the sum; its eigenvalues are those of Θ^{1/2}UᵀUΘ^{1/2}."""
    u = np.array([[1, 0.6], [0, 0.8], [0, 0]])
    theta = np.array([2.0, 3.0])
    difference = np.asarray(spiked_wigner(np.zeros((3, 3)), theta, u))
    root = np.diag(np.sqrt(theta))
    np.testing.assert_allclose(
        np.linalg.eigvalsh(difference)[1:], np.linalg.eigvalsh(root @ u.T @ u @ root), rtol=1e-14
    )
    v = np.array([[1, 1], [0, 0]])
    sum_ = 2 * np.outer(u[:, 0], v[:, 0]) + 3 * np.outer(u[:, 1], v[:, 1])
    np.testing.assert_allclose(spiked_rectangular(np.zeros((3, 2)), theta, u, v), sum_, rtol=1e-14)


def test_update_of_any_columns():
    """No unit norms are asked for; real and complex columns mix."""
    rng = np.random.default_rng(2)
    u, v, theta = rng.normal(size=(4, 2)), rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2)), np.array([2.0, -5.0])
    np.testing.assert_allclose(low_rank_update(u, theta, v), u @ np.diag(theta) @ v.conj().T, rtol=1e-13)
    np.testing.assert_allclose(low_rank_update(v, theta), v @ np.diag(theta) @ v.conj().T, rtol=1e-13)


def test_haar_directions_are_haar():
    """One coordinate of each direction, and the two sides independent of each other."""
    n, m, trials = 3, 4, 10_000
    keys = jax.random.split(jax.random.key(3), trials)
    up = np.asarray(jax.jit(jax.vmap(lambda k: spiked_rectangular(jnp.zeros((n, m)), 1.0, key=k)))(keys))
    u, s, vt = np.linalg.svd(up)
    np.testing.assert_allclose(s[:, 0], 1, rtol=1e-12)
    for x, size in ((u[:, 0, 0] ** 2, n), (vt[:, 0, 0] ** 2, m)):
        assert stats.kstest(x, stats.beta(1 / 2, (size - 1) / 2).cdf).pvalue > P
    assert abs(stats.spearmanr(u[:, 0, 0] ** 2, vt[:, 0, 0] ** 2).statistic) < Z / np.sqrt(trials)
    # Signs: the product of the two sides' coordinates is symmetric.
    assert abs(np.mean(np.sign(up[:, 0, 0]))) < Z / np.sqrt(trials)


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_outlier_of_a_wigner_matrix(dtype):
    """θ + 1/θ and 1 − 1/θ², N = 100; below the threshold the edge. Bias O(1/N), allowed 2/N."""
    n, theta, trials = 100, 2.0, 60
    keys = jax.random.split(jax.random.key(4), trials)
    u = np.eye(n)[:, 0]

    def draw(key, strength):
        return spiked_wigner(wigner(key, n, dtype=dtype), strength, u)

    draws = jax.jit(jax.vmap(draw, (0, None)))
    values, vectors = np.linalg.eigh(np.asarray(draws(keys, theta)))
    top, overlap = values[:, -1], np.abs(vectors[:, 0, -1]) ** 2
    for x, law in ((top, theta + 1 / theta), (overlap, 1 - 1 / theta**2)):
        assert abs(np.mean(x) - law) < Z * np.std(x) / np.sqrt(trials) + 2 / n
    below = np.linalg.eigvalsh(np.asarray(draws(keys, 0.5)))[:, -1]
    assert np.max(below) < 2.4


def test_outlier_of_a_rectangular_matrix():
    """√((1+θ²)(c+θ²))/θ at c = n/m = 1/2, with the spike on Haar directions. Bias O(1/n), allowed 2/n."""
    n, m, theta, trials = 80, 160, 1.5, 60
    draw = lambda key: spiked_rectangular(iid(key, n, m), theta, key=jax.random.fold_in(key, 1))  # noqa: E731
    x = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(5), trials)))
    top = np.linalg.svd(x, compute_uv=False)[:, 0]
    law = np.sqrt((1 + theta**2) * (n / m + theta**2)) / theta
    assert abs(np.mean(top) - law) < Z * np.std(top) / np.sqrt(trials) + 2 / n


def test_outlier_of_a_sample_covariance():
    """ℓ(1 + c/(ℓ − 1)) at c = 1/2, ℓ = 4. Bias O(1/n), allowed 5/n."""
    p, n, ell, trials = 80, 160, 4.0, 60

    def draw(key):
        x = iid(key, p, n, sigma=np.sqrt(n))
        return sample_covariance(spiked_covariance(x, ell, key=jax.random.fold_in(key, 1)))

    s = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(6), trials)))
    top = np.linalg.eigvalsh(s)[:, -1]
    assert abs(np.mean(top) - ell * (1 + p / n / (ell - 1))) < Z * np.std(top) / np.sqrt(trials) + 5 / n


def test_traced_strengths_and_directions():
    """A grid of θ in one program, its derivative uuᵀ, and keys under vmap."""
    w, u = gaussian(4, 4), np.linalg.qr(gaussian(4, 6))[0][:, :1]
    grid = np.array([0.5, 1.0, 2.0])

    @jax.jit
    def both(grid):
        slope = jax.jacfwd(lambda t: spiked_wigner(w, [t], u))(1.0)  # traced inside a list
        return jax.vmap(lambda t: spiked_wigner(w, t, u))(grid), slope

    got, slope = both(grid)
    np.testing.assert_allclose(got, [spiked_wigner(w, float(t), u) for t in grid], atol=1e-15)
    np.testing.assert_allclose(slope, u @ u.T, atol=1e-15)
    with jax.enable_x64(False):
        single = jax.eval_shape(lambda k: spiked_wigner(jnp.zeros((3, 3), jnp.float32), 2.0, key=k), KEY)
        assert single.dtype == jnp.float32
    batch = jax.jit(jax.vmap(lambda k: spiked_wigner(jnp.zeros((3, 3)), 2.0, key=k)))(jax.random.split(KEY, 4))
    np.testing.assert_allclose(np.linalg.eigvalsh(batch), [[0, 0, 2]] * 4, atol=1e-14)


W, X, U = np.eye(4), np.ones((4, 3)), np.eye(4)
NAN, HALF = np.full((4, 4), np.nan), np.eye(4) / 2


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: spiked_wigner(W, 0.0, U[0]), "theta = 0: must be finite and not 0, which is no spike"),
        (lambda: spiked_wigner(W, [2.0, 0.0], U[:, :2]), "theta = 0"),
        (lambda: spiked_wigner(W, np.nan, U[0]), "theta = nan"),
        (lambda: spiked_wigner(W, [1.0, np.inf], U[:, :2]), "theta = inf"),
        (lambda: spiked_wigner(W.astype("float32"), 1e60, U[0]), r"theta = 1e\+60.*in float32"),
        (lambda: spiked_wigner(W.astype("float32"), 1e-60, U[0]), "theta = 1e-60.*in float32"),
        (lambda: spiked_wigner(W, 1j, U[0]), "theta = 1j: must be real"),
        (lambda: spiked_wigner(W, [], U[:, :0]), "theta is empty"),
        (lambda: spiked_wigner(W, np.ones((2, 2)), U[:, :2]), r"theta has shape \(2, 2\)"),
        (lambda: spiked_wigner(W, [1.0] * 5, key=KEY), "theta holds 5 strengths: must hold at most 4, the dimension"),
        (lambda: spiked_wigner(W, 2.0), "directions is None: must be given, or a key"),
        (lambda: spiked_wigner(W, 2.0, 2 * U[0]), "directions: column 0 has norm 2; must be 1"),
        (lambda: spiked_wigner(W, [2.0, 3.0], U[:, :2] * [1, 1.001]), "directions: column 1 has norm 1.001"),
        (lambda: spiked_wigner(W, 2.0, 0 * U[0]), "column 0 has norm 0"),
        (lambda: spiked_wigner(W, 2.0, NAN[0]), "column 0 has norm nan"),
        (lambda: jax.jit(lambda w: spiked_wigner(w, 2.0, 2 * U[0]))(W), "column 0 has norm 2"),
        (lambda: spiked_wigner(W, 2.0, np.array(["a"] * 4)), "directions = .*must be numbers"),
        (lambda: spiked_wigner(W, 2.0, U[0, :3]), r"directions has shape \(3,\): must be \(4, 1\)"),
        (lambda: spiked_wigner(W, 2.0, U[:, :2]), r"directions has shape \(4, 2\): must be \(4, 1\)"),
        (lambda: spiked_wigner(W, [1.0, 2.0], U[:2].T[None]), r"directions has shape \(1, 4, 2\)"),
        (lambda: spiked_wigner(W, 2.0, 1j * U[0]), "directions has dtype complex128: must be real for a real base"),
        (lambda: spiked_wigner(X, 2.0, key=KEY), r"base has shape \(4, 3\): must be square"),
        (lambda: spiked_wigner(W[0], 2.0, key=KEY), r"base has shape \(4,\): must be a matrix"),
        (lambda: spiked_wigner(W[:0, :0], 2.0, key=KEY), r"base has shape \(0, 0\): must be a matrix with at least"),
        (lambda: spiked_wigner(NAN, 2.0, key=KEY), "base has an entry nan: all must be finite"),
        (lambda: spiked_wigner(W.astype(int), 2.0, key=KEY), "base has dtype int64: must be float32 or float64"),
        (lambda: spiked_wigner(np.triu(np.ones((4, 4))), 2.0, key=KEY), "base differs from its adjoint by 1: must be"),
        (lambda: spiked_wigner(1j * np.ones((4, 4)), 2.0, key=KEY), "base differs from its adjoint by 2"),
        (lambda: spiked_rectangular(X, 0, key=KEY), "theta = 0"),
        (lambda: spiked_rectangular(X, [1.0] * 4, key=KEY), "theta holds 4 strengths: must hold at most 3"),
        (lambda: spiked_rectangular(X, 2.0, U[0]), "right is None: must be given, or a key"),
        (lambda: spiked_rectangular(X, 2.0, None, U[0, :3]), "left is None"),
        (lambda: spiked_rectangular(X, 2.0, U[0], U[0, :3] * 3), "right: column 0 has norm 3"),
        (lambda: spiked_rectangular(X, 2.0, HALF[0], U[0, :3]), "left: column 0 has norm 0.5"),
        (lambda: spiked_rectangular(X, 2.0, U[0], U[0]), r"right has shape \(4,\): must be \(3, 1\)"),
        (lambda: spiked_rectangular(X * np.inf, 2.0, key=KEY), "base has an entry inf: all must be finite"),
        (lambda: spiked_covariance(X, 1.0, key=KEY), "ell = 1: must be finite, > 0 and not 1, which is no spike"),
        (lambda: spiked_covariance(X, 0.0, key=KEY), "ell = 0"),
        (lambda: spiked_covariance(X, -2.0, key=KEY), "ell = -2"),
        (lambda: spiked_covariance(X, np.nan, key=KEY), "ell = nan"),
        (lambda: spiked_covariance(X, [2.0] * 5, key=KEY), "ell holds 5 strengths"),
        (lambda: spiked_covariance(X, 2.0, 3 * U[0]), "directions: column 0 has norm 3"),
        (
            lambda: spiked_covariance(X, [2.0, 3.0], np.array([[1, 0.6], [0, 0.8], [0, 0], [0, 0]])),
            "directions: columns 0 and 1 have inner product 0.6; must be orthogonal",
        ),
        (lambda: low_rank_update(np.ones((3, 1), int), 2.0), "u has dtype int64"),
        (lambda: low_rank_update(np.ones((3, 1)), 2.0, np.ones((3, 1), bool)), "v has dtype bool"),
    ],
)
def test_what_makes_no_spike_is_refused_in_one_line(call, part):
    with pytest.raises(InputError, match=part) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_rounding_is_no_reason_to_refuse():
    """Directions of single precision, a base that differs from its adjoint in the last place."""
    u = np.random.default_rng(7).normal(size=(1000, 3)).astype(np.float32)
    u = np.linalg.qr(u)[0]
    base = gaussian(1000, 1000, "complex128")
    noisy = base * (1 + 1e-15 * np.random.default_rng(8).normal(size=base.shape))
    assert spiked_wigner(noisy, [1.0, 2.0, 3.0], u).shape == base.shape
    assert spiked_covariance(np.ones((1000, 2)), [2.0, 3.0, 4.0], u).shape == (1000, 2)
