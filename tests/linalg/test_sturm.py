"""Counts, histograms and bisection against exact rational arithmetic, SciPy and closed forms."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtjax import InputError
from rmtjax.linalg import sturm

EPS = np.finfo(float).eps


def hermite(n: int, seed: int = 0, batch: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Tridiagonal matrices with the spectrum of the GOE, semicircle on [−2, 2]."""
    rng = np.random.default_rng(seed)
    dof = np.arange(n - 1, 0, -1)
    return rng.normal(size=(*batch, n)) * np.sqrt(2 / n), np.sqrt(rng.chisquare(dof, size=(*batch, n - 1)) / n)


def laguerre(n: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bidiagonal matrices with the singular values of an n×m Gaussian matrix of variance 1/m, n ≤ m."""
    rng = np.random.default_rng(seed)
    return np.sqrt(rng.chisquare(m - np.arange(n)) / m), np.sqrt(rng.chisquare(np.arange(n - 1, 0, -1)) / m)


def dense(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.diag(a) + np.diag(b, 1) + np.diag(b, -1)


def exact_count(a, b, x) -> int:
    """Eigenvalues strictly below x by rational arithmetic: sign changes of the leading minors, block by block."""
    a, b, x = [Fraction(v) for v in a], [Fraction(v) for v in b], Fraction(x)
    count, before, minor, sign = 0, Fraction(0), Fraction(1), 1
    for i, entry in enumerate(a):
        if i and b[i - 1] == 0:  # a new block
            before, minor, sign = Fraction(0), Fraction(1), 1
        coupling = b[i - 1] ** 2 if i else Fraction(0)
        before, minor = minor, (entry - x) * minor - coupling * before
        now = sign if minor == 0 else (1 if minor > 0 else -1)
        count += now != sign
        sign = now
    return count


# -- counts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_count_below(n):
    a, b = hermite(n, seed=n)
    values = np.linalg.eigvalsh(dense(a, b))
    middle = (values[1:] + values[:-1]) / 2
    points = np.concatenate([[-np.inf, values[0] - 1], middle, [values[-1] + 1, np.inf]])
    wanted = [0, *range(n), n, n] if n > 1 else [0, 0, 1, 1]
    for scale in (1e-300, 1e-8, 1.0, 1e150, 1e306):
        got = sturm.count_below(a * scale, b * scale, points * scale)
        np.testing.assert_array_equal(got, wanted)


entries = st.one_of(st.integers(-3, 3).map(float), st.floats(-4, 4), st.just(-0.0))


@given(data=st.data(), n=st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_counts_are_those_of_a_nearby_matrix(data, n):
    """Whole numbers, zeros and huge ratios: the count at x is an exact one within a few roundings of x."""
    a = data.draw(st.lists(entries, min_size=n, max_size=n))
    b = data.draw(st.lists(entries, min_size=n - 1, max_size=n - 1))
    points = data.draw(st.lists(entries, min_size=8, max_size=8))
    a, b = np.pad(a, (0, 12 - n), constant_values=100.0), np.pad(b, (0, 12 - n))  # one shape, one compilation
    got = np.asarray(sturm.count_below(a, b[:11], np.array(points)))
    slack = Fraction(20 * EPS * 8)
    for x, count in zip(points, got, strict=True):
        low = exact_count(a[:n], b[: n - 1], Fraction(x) - slack)
        assert low <= count <= exact_count(a[:n], b[: n - 1], Fraction(x) + slack)


@given(values=st.lists(st.integers(-3, 3), min_size=5, max_size=5), x=st.integers(-4, 4))
@settings(max_examples=50, deadline=None)
def test_below_means_strictly_below(values, x):
    """Of a diagonal matrix the count is exact, ties and signed zeros included."""
    a = np.array([-0.0 if v == 0 else float(v) for v in values])
    for point in (float(x), -0.0 if x == 0 else float(x)):
        assert int(sturm.count_below(a, np.zeros(4), point)) == sum(v < x for v in values)


def test_ties_inside_a_matrix():
    """[[0, 1], [1, 0]] and a 3×3 with eigenvalues −√2, 0, √2: pivots that vanish at the points asked for."""
    assert list(sturm.count_below(np.zeros(2), np.ones(1), np.array([-1.0, 0.0, 1.0, 1.5]))) == [0, 1, 1, 2]
    assert list(sturm.count_below(np.zeros(3), np.ones(2), np.array([-1.0, 0.0, 1.0]))) == [1, 1, 2]


@pytest.mark.parametrize("kind", ["wilkinson", "glued", "graded", "goe"])
def test_counts_never_decrease(kind):
    """At a hundred neighbouring floats around each of a few eigenvalues, where rounding decides."""
    if kind == "goe":
        a, b = hermite(200, seed=5)
    else:
        a, b = np.abs(np.arange(-10.0, 11)), np.ones(20)
        if kind == "glued":
            a, b = np.tile(a, 3), np.concatenate([b, [1e-14], b, [1e-14], b])
        if kind == "graded":
            a, b = 10.0 ** -np.arange(40), 10.0 ** -(np.arange(39) + 0.5)
    values = np.linalg.eigvalsh(dense(a, b))[::7]
    points = values[:, None].repeat(101, 1)
    for i in range(50):
        points[:, 51 + i] = np.nextafter(points[:, 50 + i], np.inf)
        points[:, 49 - i] = np.nextafter(points[:, 50 - i], -np.inf)
    counts = np.asarray(sturm.count_below(a, b, np.sort(points.ravel())))
    assert np.all(np.diff(counts) >= 0)


@pytest.mark.thorough
def test_batches_and_layouts():
    """More matrices than points and the reverse, shared points, one point, every way of `vmap`."""
    a, b = hermite(37, seed=1, batch=(2, 3))
    values = np.linalg.eigvalsh([[dense(a[i, j], b[i, j]) for j in range(3)] for i in range(2)])
    nested = jax.jit(jax.vmap(jax.vmap(sturm.count_below, in_axes=(0, 0, None)), in_axes=(0, 0, None)))
    for points in (np.linspace(-2, 2, 40), np.float64(0.3)):
        wanted = np.sum(values.reshape(2, 3, *[1] * np.ndim(points), 37) < np.expand_dims(points, -1), -1)
        np.testing.assert_array_equal(sturm.count_below(a, b, points), wanted)
        np.testing.assert_array_equal(nested(a, b, points), wanted)
    own = np.random.default_rng(2).uniform(-2, 2, (2, 3, 4))
    wanted = np.sum(values[..., None, :] < own[..., None], -1)
    np.testing.assert_array_equal(jax.vmap(sturm.count_below)(a, b, own), wanted)
    of_points = jax.vmap(sturm.count_below, in_axes=(None, None, 0))
    np.testing.assert_array_equal(of_points(a[0, 0], b[0, 0], own[0]), np.sum(values[0, 0] < own[0, ..., None], -1))
    of_diagonals = jax.vmap(sturm.count_below, in_axes=(0, None, None))
    few = own[0, 0]
    np.testing.assert_array_equal(of_diagonals(a[0], b[0, 0], few), sturm.count_below(a[0], b[0, 0], few))


def test_a_program_in_single_precision_gets_the_same_counts():
    a, b = hermite(50, seed=3)
    assert not jax.config.jax_enable_x64
    counts = sturm.count_below(a, b, np.linspace(-2, 2, 9))
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(
        counts, np.sum(np.linalg.eigvalsh(dense(a, b)) < np.linspace(-2, 2, 9)[:, None], axis=1)
    )


# -- histograms --------------------------------------------------------------------------------------------------------


def test_histogram():
    a, b = hermite(300, seed=4)
    edges = np.linspace(-2.2, 2.2, 23)
    np.testing.assert_array_equal(sturm.histogram(a, b, edges), np.histogram(np.linalg.eigvalsh(dense(a, b)), edges)[0])
    everything = sturm.histogram(a, b, np.array([-np.inf, 0.1, 0.1, np.inf]))
    assert int(everything.sum()) == 300 and int(everything[1]) == 0


def test_singular_histogram():
    a, b = laguerre(200, 500, seed=4)
    values = np.linalg.svd(np.diag(a) + np.diag(b, 1), compute_uv=False)
    edges = np.linspace(0, 2, 23)
    np.testing.assert_array_equal(sturm.singular_histogram(a, b, edges), np.histogram(values, edges)[0])


def test_histograms_of_large_matrices_follow_their_laws():
    """100,000 eigenvalues are rigid: no bin's count is off its law by more than a few dozen."""
    n = 100_000
    edges = np.linspace(-2, 2, 41)
    cdf = 0.5 + edges * np.sqrt(4 - edges**2) / (4 * np.pi) + np.arcsin(edges / 2) / np.pi
    counts = np.asarray(sturm.histogram(*hermite(n, seed=6), edges))
    assert np.max(np.abs(counts - n * np.diff(cdf))) < 40
    # c = 1: a quarter circle.
    edges = np.linspace(0, 2, 21)
    cdf = edges * np.sqrt(4 - edges**2) / (2 * np.pi) + 2 * np.arcsin(edges / 2) / np.pi
    counts = np.asarray(sturm.singular_histogram(*laguerre(n, n, seed=7), edges))
    assert np.max(np.abs(counts - n * np.diff(cdf))) < 40


# -- eigenvalues -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 120])
def test_eigenvalues(n):
    a, b = hermite(n, seed=n)
    values = scipy.linalg.eigvalsh(dense(a, b))
    for scale in (1e-290, 1.0, 1e306):
        got = np.asarray(sturm.eigenvalues(a * scale, b * scale)) / scale
        np.testing.assert_allclose(got, values, rtol=0, atol=16 * EPS * max(1, np.sqrt(n)))
    if n > 3:
        np.testing.assert_array_equal(np.asarray(sturm.largest(a * scale, b * scale, 3)) / scale, got[:-4:-1])


def test_eigenvalues_known_in_closed_form():
    """2 − 2cos(kπ/(n+1)) of the second difference, to four roundings of the norm."""
    n = 120
    wanted = 2 - 2 * np.cos(np.arange(1, n + 1) * np.pi / (n + 1))
    np.testing.assert_allclose(sturm.eigenvalues(np.full(n, 2.0), np.full(n - 1, -1.0)), wanted, rtol=0, atol=16 * EPS)


def test_whole_numbers_come_out_exact():
    np.testing.assert_array_equal(
        sturm.eigenvalues(np.array([3.0, -1.0, 2.0, 0.0, 2.0]), np.zeros(4)), [-1, 0, 2, 2, 3]
    )
    np.testing.assert_array_equal(sturm.eigenvalues(np.zeros(5), np.zeros(4)), np.zeros(5))
    np.testing.assert_array_equal(sturm.eigenvalues(np.array([5.0]), np.zeros(0)), [5.0])


@pytest.mark.thorough
def test_indices_and_tolerance():
    a, b = hermite(60, seed=8, batch=(4,))
    everything = np.asarray(sturm.eigenvalues(a, b))
    np.testing.assert_array_equal(sturm.eigenvalues(a, b, -1), everything[:, -1])
    own = np.array([[0, 3], [10, -2], [59, 1], [-60, 59]])
    np.testing.assert_array_equal(sturm.eigenvalues(a, b, own), np.take_along_axis(everything, own, 1))
    np.testing.assert_array_equal(sturm.largest(a[0], b[0])[0], everything[0, -1])
    rough = np.asarray(sturm.eigenvalues(a, b, tolerance=1e-3))
    assert np.all((everything - rough >= 0) & (everything - rough <= 1e-3)) and np.any(rough != everything)
    with jax.enable_x64(True):
        mapped = jax.jit(jax.vmap(lambda a, b: sturm.largest(a, b, 2)))(a, b)
    np.testing.assert_array_equal(mapped, everything[:, :-3:-1])
    of_index = jax.vmap(lambda i: sturm.eigenvalues(a[0], b[0], i))(jnp.arange(60))
    np.testing.assert_array_equal(of_index, everything[0])


@pytest.mark.thorough
def test_gradients_are_squares_of_eigenvectors():
    """dλ/da_i = v_i² and dλ/db_i = 2 v_i v_{i+1}."""
    a, b = hermite(80, seed=9)
    _, vectors = np.linalg.eigh(dense(a, b))
    v = vectors[:, 40]
    da, db = jax.grad(lambda a, b: sturm.eigenvalues(a, b, 40), argnums=(0, 1))(jnp.asarray(a), jnp.asarray(b))
    assert da.dtype == jnp.float32  # the dtype of the argument
    _, vectors = np.linalg.eigh(dense(np.float32(a), np.float32(b)).astype(float))
    v = vectors[:, 40]
    np.testing.assert_allclose(da, v**2, rtol=0, atol=1e-7)
    np.testing.assert_allclose(db, 2 * v[1:] * v[:-1], rtol=0, atol=1e-7)
    with jax.enable_x64(True):
        _, slopes = jax.jvp(sturm.eigenvalues, (a, b), (a, np.ones(79)))
        _, vectors = np.linalg.eigh(dense(a, b))
        wanted = (vectors**2 * a[:, None]).sum(0) + 2 * (vectors[1:] * vectors[:-1]).sum(0)
        np.testing.assert_allclose(slopes, wanted, atol=1e-9)
        assert float(jax.grad(lambda a: sturm.eigenvalues(a, jnp.zeros(0), 0))(jnp.array([2.0]))[0]) == 1.0


# -- singular values ---------------------------------------------------------------------------------------------------


def exact_singular_count(a, b, x) -> int:
    """Singular values strictly below x > 0, from the tridiagonal matrix with eigenvalues ±σ."""
    beside = np.stack([a, np.append(b, 0.0)], 1).ravel()[:-1]
    return exact_count(np.zeros(2 * len(a)), beside, x) - len(a)


def test_small_singular_values_to_full_relative_accuracy():
    """Entries over forty decades: the smallest singular value is 1e-40 of the norm and still has fourteen digits."""
    rng = np.random.default_rng(10)
    for a, b in (
        (10.0 ** rng.uniform(-40, 0, 8), 10.0 ** rng.uniform(-40, 0, 7)),
        (np.full(8, 1e-8), np.ones(7)),
        laguerre(8, 8, seed=11),
    ):
        got = np.asarray(sturm.singular_values(a, b))
        error = Fraction(1, 10**14)
        for k, value in enumerate(got):
            assert exact_singular_count(a, b, Fraction(value) * (1 - error)) <= k
            assert exact_singular_count(a, b, Fraction(value) * (1 + error)) > k
        points = np.sqrt(got[1:] * got[:-1])
        below = [exact_singular_count(a, b, x) for x in points]
        np.testing.assert_array_equal(sturm.singular_count_below(a, b, points), below)


def test_singular_values_of_singular_matrices():
    np.testing.assert_array_equal(sturm.singular_values(np.zeros(2), np.zeros(1)), np.zeros(2))
    np.testing.assert_allclose(sturm.singular_values(np.array([1.0, 0.0]), np.ones(1)), [0, np.sqrt(2)], rtol=1e-15)
    counts = sturm.singular_count_below(np.array([1.0, 0.0]), np.ones(1), np.array([-1.0, 0.0, 1e-100, 1.0, 2.0]))
    assert list(counts) == [0, 0, 1, 1, 2]
    assert list(sturm.singular_count_below(np.array([-3.0]), np.zeros(0), np.array([2.9, 3.0, 3.1]))) == [0, 0, 1]


def test_singular_values_batch_and_gradient():
    a, b = laguerre(30, 40, seed=12)
    values = np.linalg.svd(np.diag(a) + np.diag(b, 1), compute_uv=False)
    batch = sturm.singular_values(np.stack([a, 2 * a]), np.stack([b, 2 * b]), np.array([-1, 0]))
    np.testing.assert_allclose(batch, np.outer([1, 2], values[[0, -1]]), rtol=1e-13)
    with jax.enable_x64(True):
        left, _, right = np.linalg.svd(np.diag(a) + np.diag(b, 1))
        slope = jax.grad(lambda a: sturm.singular_values(a, b, -1))(jnp.asarray(a))
        np.testing.assert_allclose(slope, left[:, 0] * right[0], atol=1e-12)


# -- bad input ---------------------------------------------------------------------------------------------------------

A, B = np.ones(4), np.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sturm.count_below(np.ones(0), np.ones(0), 0.0), r"diagonal has shape \(0,\): must be"),
        (lambda: sturm.count_below(A, A, 0.0), r"off_diagonal has shape \(4,\): must be \(..., 3\)"),
        (lambda: sturm.count_below(A * np.nan, B, 0.0), "diagonal has an entry nan: all must be finite"),
        (lambda: sturm.histogram(A, B * np.inf, A), "off_diagonal has an entry inf"),
        (lambda: sturm.count_below(A, B, np.array([0.0, np.nan])), "points has an entry nan"),
        (lambda: sturm.histogram(A, B, np.array([1.0])), r"edges has shape \(1,\)"),
        (lambda: sturm.histogram(A, B, np.array([1.0, 0.0])), "edges = .*: must not decrease"),
        (lambda: sturm.singular_histogram(A, B, np.array([1.0, np.nan])), "edges = .*: must not decrease"),
        (lambda: sturm.eigenvalues(A, B, 4), "indices = .*: must be between -4 and 3"),
        (lambda: sturm.eigenvalues(A, B, np.array([-5, 0])), "indices = .*: must be between -4 and 3"),
        (lambda: sturm.eigenvalues(A, B, 1.0), "indices has dtype float.*: must be whole numbers"),
        (lambda: sturm.eigenvalues(A, B, 0, tolerance=-1.0), "tolerance = .*: must be one number ≥ 0"),
        (lambda: sturm.largest(A, B, 5), "count = 5: must be a whole number from 1 to 4"),
        (lambda: sturm.largest(A, B, 0), "count = 0"),
        (lambda: sturm.singular_values(A, B, -5), "indices = .*: must be between -4 and 3"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
