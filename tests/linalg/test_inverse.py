"""The inverse of a positive definite matrix, on both sides of the order up to which LAPACK factorises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax.linalg.inverse import positive_definite_inverse


@pytest.mark.parametrize("n", [1, 7, 256, 257, 601])
def test_it_is_the_inverse(n):
    rng = np.random.default_rng(n)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.geomspace(1e-3, 1.0, n)
    matrix, exact = (basis * values) @ basis.T, (basis / values) @ basis.T
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(positive_definite_inverse)(matrix))
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(found, exact, atol=1e-12 * np.abs(exact).max())


def test_what_is_not_positive_definite_has_none():
    matrix = np.eye(300)
    matrix[280, 280] = -1.0
    assert np.isnan(np.asarray(positive_definite_inverse(jnp.asarray(matrix)))).any()
