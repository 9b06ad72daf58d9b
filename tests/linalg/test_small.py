"""Unrolled small matrices against NumPy, alone and in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax.linalg import small

BATCH = 7


def to_array(a):
    """Return the array of shape (r, c) with the given rows of scalars."""
    return jnp.stack([jnp.stack(row) for row in a])


@pytest.fixture(autouse=True)
def double():
    """Tolerances here are float64's."""
    with jax.enable_x64(True):
        yield


def definite(r: int, seed: int = 0) -> np.ndarray:
    """A batch of positive definite matrices of condition up to 1e6."""
    rng = np.random.default_rng(seed + r)
    q, _ = np.linalg.qr(rng.normal(size=(BATCH, r, r)))
    return np.einsum("bij,bj,bkj->bik", q, 10.0 ** rng.uniform(-3, 3, (BATCH, r)), q)


def batched(function):
    """A function of matrices as one of arrays, under jit and vmap."""
    return jax.jit(jax.vmap(lambda *a: to_array(function(*map(small.from_array, a)))))


def factor(a: small.Matrix) -> small.Matrix:
    """The factor itself: `cholesky` without the reciprocal pivots that ride along."""
    zero = jnp.zeros_like(a[0][0])
    return tuple(tuple(row[j] if j <= i else zero for j in range(len(a))) for i, row in enumerate(small.cholesky(a)))


@pytest.mark.parametrize("r", [1, 2, 3])
def test_against_numpy(r):
    a = definite(r)
    rng = np.random.default_rng(1)
    b, upper = rng.normal(size=(BATCH, r, 2)), np.triu(rng.normal(size=(BATCH, r, r)))
    lower = np.linalg.cholesky(a)
    np.testing.assert_allclose(batched(factor)(a), lower, rtol=1e-9, atol=1e-12 * np.max(np.abs(lower)))
    solved = batched(lambda x, y: small.solve_lower(small.cholesky(x), y))(a, b)
    np.testing.assert_allclose(lower @ np.asarray(solved), b, atol=1e-10)
    np.testing.assert_allclose(batched(small.gram)(b), b.transpose(0, 2, 1) @ b, rtol=1e-12, atol=1e-13)
    wanted = upper.transpose(0, 2, 1) @ a @ upper
    np.testing.assert_allclose(batched(small.congruence)(a, upper), wanted, rtol=1e-10, atol=1e-12 * np.max(wanted))
    inverse = np.asarray(batched(small.inverse)(a))
    np.testing.assert_array_equal(inverse, inverse.swapaxes(1, 2))
    np.testing.assert_allclose(inverse @ a, np.broadcast_to(np.eye(r), a.shape), atol=1e-9)


def test_a_batch_gives_what_each_gives():
    a = definite(3)
    alone = np.stack([to_array(small.inverse(small.from_array(jnp.asarray(x)))) for x in a])
    np.testing.assert_allclose(batched(small.inverse)(a), alone, rtol=1e-10)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_cholesky_of_what_is_only_semidefinite(rank):
    """Whole numbers, so that a pivot which should vanish does: C Cᵀ = A and nothing is NaN."""
    w = np.array([[1.0, 2.0, -1.0], [0.0, 1.0, 3.0]])[:rank]
    a = w.T @ w
    c = np.asarray(to_array(factor(small.from_array(jnp.asarray(a)))))
    np.testing.assert_allclose(c @ c.T, a, atol=1e-13)
    assert np.sum(np.diag(c) > 0) == rank


def test_cholesky_of_what_rounding_made_indefinite():
    """A negative pivot of rounding's size counts as zero."""
    a = np.array([[1.0, 0.3], [0.3, 0.09 - 1e-17]])
    c = np.asarray(to_array(factor(small.from_array(jnp.asarray(a)))))
    np.testing.assert_allclose(c, [[1.0, 0.0], [0.3, 0.0]], atol=1e-8)


def test_semidefinite_gradients_are_finite():
    """The square root of a vanishing pivot is never differentiated."""
    gradient = jax.grad(lambda x: small.cholesky(((x, x), (x, x)))[1][0])(jnp.float64(4.0))
    np.testing.assert_allclose(gradient, 0.25)


def test_quadratic_identity_and_round_trip():
    rng = np.random.default_rng(2)
    a, x, y = rng.normal(size=(2, 3)), rng.normal(size=2), rng.normal(size=3)
    np.testing.assert_allclose(small.quadratic(small.from_array(jnp.asarray(a)), x, y), x @ a @ y, rtol=1e-13)
    np.testing.assert_array_equal(to_array(small.from_array(jnp.asarray(a))), a)
    np.testing.assert_array_equal(to_array(small.scaled_identity(3, jnp.float64(0.5))), 0.5 * np.eye(3))


def test_single_precision_stays():
    a = small.from_array(jnp.asarray(definite(2)[0], jnp.float32))
    assert to_array(small.inverse(a)).dtype == jnp.float32
