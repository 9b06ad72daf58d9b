"""Haar frames: orthonormal to rounding, and of the invariant law, which Q of a bare QR is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax._errors import InputError
from rmtjax.ensembles.haar import orthogonal, special_orthogonal, unit_vector, unitary

# False alarms: KS at p < 1e-5 and means at 4.5 standard errors (7e-6), some hundred checks: 1e-3 for the file. Seeds are
# fixed. Every statistic of the phases was seen to refuse the bare QR.
P, Z = 1e-5, 4.5
TRIALS = 20_000


@pytest.fixture(autouse=True)
def double():
    """Draws are made in float64."""
    with jax.enable_x64(True):
        yield


def many(draw, trials=TRIALS, seed=1):
    """`draw(key)` for a batch of keys, as a NumPy array."""
    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), trials)))


def centred(x, mean):
    """Standard scores of a sample's mean."""
    return (np.mean(x) - mean) / (np.std(x) / np.sqrt(len(x)))


@pytest.mark.each_value
@pytest.mark.parametrize("draw", [orthogonal, unitary])
@pytest.mark.parametrize("n, k", [(1, 1), (300, 4), (64, 64)])
@pytest.mark.parametrize("bits", [32, 64])
def test_orthonormal_to_rounding(draw, n, k, bits):
    dtype = f"float{bits}" if draw is orthogonal else f"complex{2 * bits}"
    q = np.asarray(draw(jax.random.key(2), n, k, dtype))
    assert q.shape == (n, k) and q.dtype == dtype
    exact = q.astype(np.complex128)
    assert np.max(np.abs(exact.conj().T @ exact - np.eye(k))) < 20 * np.finfo(dtype).eps


@pytest.mark.parametrize("n, k", [(2, 2), (5, 3)])
def test_moments_of_orthogonal_entries(n, k):
    """E Q⁴ = 3/(n(n+2)) for every entry, and mixed moments within a row, a column and across both."""
    q = many(lambda key: orthogonal(key, n, k))
    last = k - 1
    for i, j in {(0, 0), (n - 1, last), (n - 1, 0), (0, last)}:
        assert abs(centred(q[:, i, j], 0)) < Z
        assert abs(centred(q[:, i, j] ** 2, 1 / n)) < Z
        assert abs(centred(q[:, i, j] ** 4, 3 / (n * (n + 2)))) < Z
        # One coordinate of a uniform point of the sphere.
        law = stats.beta((n - 1) / 2, (n - 1) / 2, loc=-1, scale=2)
        assert stats.kstest(q[:, i, j], law.cdf).pvalue > P
    assert abs(centred(q[:, 0, 0] ** 2 * q[:, 1, 0] ** 2, 1 / (n * (n + 2)))) < Z
    if k > 1:
        assert abs(centred(q[:, 0, 0] ** 2 * q[:, 0, 1] ** 2, 1 / (n * (n + 2)))) < Z
        across = (n + 1) / (n * (n - 1) * (n + 2))
        assert abs(centred(q[:, 0, 0] ** 2 * q[:, 1, 1] ** 2, across)) < Z
        product = q[:, 0, 0] * q[:, 0, 1] * q[:, 1, 0] * q[:, 1, 1]
        assert abs(centred(product, -1 / (n * (n - 1) * (n + 2)))) < Z


@pytest.mark.parametrize("n, k", [(2, 2), (5, 3)])
def test_moments_of_unitary_entries(n, k):
    """E|U|⁴ = 2/(n(n+1)), phases uniform, and Weingarten's moments across rows and columns."""
    u = many(lambda key: unitary(key, n, k))
    for i, j in {(0, 0), (n - 1, k - 1), (n - 1, 0), (0, k - 1)}:
        x = u[:, i, j]
        assert abs(centred(np.abs(x) ** 4, 2 / (n * (n + 1)))) < Z
        assert stats.kstest(np.abs(x) ** 2, stats.beta(1, n - 1).cdf).pvalue > P
        assert stats.kstest(np.angle(x), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > P
    if k > 1:
        assert abs(centred(np.abs(u[:, 0, 0] * u[:, 1, 1]) ** 2, 1 / (n**2 - 1))) < Z
        product = (u[:, 0, 0] * u[:, 1, 1] * (u[:, 0, 1] * u[:, 1, 0]).conj()).real
        assert abs(centred(product, -1 / (n * (n**2 - 1)))) < Z


@pytest.mark.parametrize("n", [1, 5])
def test_traces_and_determinant_of_orthogonal_matrices(n):
    """E tr Q = 0, E (tr Q)² = 1, E (tr Q²)² = 3 for n ≥ 4, and det Q = ±1 with equal probability: not so for a bare QR."""
    q = many(lambda key: orthogonal(key, n), seed=3)
    trace = np.trace(q, axis1=1, axis2=2)
    assert abs(centred(trace, 0)) < Z
    if n > 1:
        assert abs(centred(trace**2, 1)) < Z
    if n >= 4:
        assert abs(centred(np.trace(q @ q, axis1=1, axis2=2) ** 2, 3)) < Z
    determinant = np.linalg.det(q)
    np.testing.assert_allclose(np.abs(determinant), 1, rtol=1e-12)
    assert abs(np.mean(determinant)) < Z / np.sqrt(TRIALS)


@pytest.mark.parametrize("n", [1, 4])
def test_eigenvalues_of_unitary_matrices(n):
    """E|tr Uʲ|² = min(j, n) (Diaconis & Shahshahani 1994), and the phase of the determinant is uniform."""
    u = many(lambda key: unitary(key, n), seed=4)
    power = np.eye(n)
    for j in range(1, 5):
        power = power @ u
        trace = np.trace(power, axis1=1, axis2=2)
        assert abs(centred(trace.real, 0)) < Z and abs(centred(trace.imag, 0)) < Z
        if n > 1:
            assert abs(centred(np.abs(trace) ** 2, min(j, n))) < Z
    angle = np.angle(np.linalg.det(u))
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > P


@pytest.mark.thorough
@pytest.mark.parametrize("draw", [orthogonal, unitary])
def test_the_law_is_invariant(draw):
    """The trace of Q has the law of that of OQ and of QO for a fixed O: independent samples by two-sample KS."""
    n = 4
    fixed = np.linalg.qr(np.random.default_rng(5).normal(size=(n, n)))[0]
    samples = many(lambda key: draw(key, n), 30_000, seed=5).reshape(3, 10_000, n, n)
    traces = [np.trace(m, axis1=1, axis2=2) for m in (samples[0], fixed @ samples[1], samples[2] @ fixed)]
    for other in traces[1:]:
        assert stats.ks_2samp(traces[0].real, other.real).pvalue > P
        if draw is unitary:
            assert stats.ks_2samp(traces[0].imag, other.imag).pvalue > P


@pytest.mark.thorough
@pytest.mark.parametrize("n", [1, 2, 5])
def test_rotations(n):
    """Determinant 1, every entry symmetric with the sphere's law, E tr Q = 0 and E(tr Q)² = 1 for n ≥ 3 (2 for n = 2)."""
    q = many(lambda key: special_orthogonal(key, n), seed=8)
    np.testing.assert_allclose(np.linalg.det(q), 1, rtol=1e-12)
    if n == 1:
        return
    np.testing.assert_allclose(q @ np.swapaxes(q, 1, 2), np.broadcast_to(np.eye(n), q.shape), atol=1e-14)
    trace = np.trace(q, axis1=1, axis2=2)
    assert abs(centred(trace, 0)) < Z and abs(centred(trace**2, 2 if n == 2 else 1)) < Z
    for i, j in [(0, 0), (n - 1, 0), (0, n - 1), (n - 1, n - 1)]:
        law = stats.beta((n - 1) / 2, (n - 1) / 2, loc=-1, scale=2)
        assert stats.kstest(q[:, i, j], law.cdf).pvalue > P


@pytest.mark.parametrize("n", [1, 7])
def test_unit_vectors(n):
    x = many(lambda key: unit_vector(key, n), seed=9)
    z = many(lambda key: unit_vector(key, n, jnp.complex128), seed=10)
    for v in (x, z):
        np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, rtol=1e-14)
    if n == 1:
        assert abs(np.mean(x)) < Z / np.sqrt(TRIALS) and set(np.unique(x)) == {-1.0, 1.0}
        assert stats.kstest(np.angle(z[:, 0]), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > P
        return
    for i in (0, n - 1):
        assert stats.kstest(x[:, i], stats.beta((n - 1) / 2, (n - 1) / 2, loc=-1, scale=2).cdf).pvalue > P
        assert stats.kstest(np.abs(z[:, i]) ** 2, stats.beta(1, n - 1).cdf).pvalue > P
        assert stats.kstest(np.angle(z[:, i]), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > P
    assert unit_vector(jax.random.key(0), n, jnp.float32).dtype == jnp.float32


@pytest.mark.first(2)
@pytest.mark.parametrize(
    "draw",
    [
        lambda k: orthogonal(k, 4, 2),
        lambda k: unitary(k, 3),
        lambda k: special_orthogonal(k, 3),
        lambda k: unit_vector(k, 5),
    ],
)
def test_a_draw_belongs_to_its_key(draw):
    """A batch of keys gives what each key gives, in a program of single precision too; two keys differ."""
    keys = jax.random.split(jax.random.key(11), 3)
    alone = np.stack([draw(k) for k in keys])
    with jax.enable_x64(False):
        np.testing.assert_allclose(jax.jit(jax.vmap(draw))(keys), alone, atol=1e-14)
    assert len(set(alone.reshape(3, -1)[:, 0].tolist())) == 3


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: orthogonal(KEY, 0), "n = 0: must be a whole number ≥ 1"),
        (lambda: orthogonal(KEY, 3, 4), "k = 4: must be a whole number from 1 to 3"),
        (lambda: orthogonal(KEY, 3, 0), "k = 0"),
        (lambda: orthogonal(KEY, 3, dtype=jnp.complex64), "dtype = complex64: must be float32 or float64"),
        (lambda: unitary(KEY, -1), "n = -1"),
        (lambda: unitary(KEY, 3, -1), "k = -1"),
        (lambda: unitary(KEY, 3, dtype=jnp.float32), "dtype = float32: must be complex64 or complex128"),
        (lambda: special_orthogonal(KEY, 0), "n = 0"),
        (lambda: special_orthogonal(KEY, 3, jnp.int32), "dtype = int32"),
        (lambda: unit_vector(KEY, 0), "n = 0"),
        (lambda: unit_vector(KEY, 3, jnp.int32), "dtype = int32"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(call, part):
    with pytest.raises(InputError, match=part) as caught:
        call()
    assert "\n" not in str(caught.value)
