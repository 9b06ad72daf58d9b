"""The ridge resolvent on whichever side is smaller, against the obvious inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax.linalg.ridge import gram_lower, ridge_solve

solve = jax.jit(ridge_solve)


@pytest.mark.parametrize("rows", [1, 5, 256, 257, 600])
def test_gram_has_its_lower_triangle(rows):
    """In one piece up to 256 rows, in halves beyond; what lies above the diagonal is never read."""
    with jax.enable_x64(True):
        x = np.random.default_rng(rows).normal(size=(rows, 9))
        got = np.asarray(jax.jit(gram_lower)(x))
        np.testing.assert_allclose(np.tril(got), np.tril(x @ x.T), rtol=1e-12, atol=1e-13)
        above = got[: rows // 2, rows // 2 :]
        assert rows <= 256 or not np.any(above)


@pytest.mark.parametrize(("p", "n"), [(6, 11), (11, 6), (7, 7), (1, 5), (5, 1), (1, 1), (300, 320), (320, 300)])
@pytest.mark.parametrize("gamma", [1e-3, 1.0, 100.0])
def test_against_the_inverse(p, n, gamma):
    with jax.enable_x64(True):
        rng = np.random.default_rng(p + 1000 * n)
        x, b = rng.normal(size=(p, n)), rng.normal(size=(p, 3))
        wanted = np.linalg.inv(x @ x.T / n + gamma * np.eye(p)) @ b
        got = solve(x, jnp.float64(gamma), b)
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-10 * np.max(np.abs(wanted)))


@pytest.mark.parametrize(("p", "n"), [(4, 9), (9, 4)])
def test_a_batch_gives_what_each_gives(p, n):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, b, gamma = rng.normal(size=(5, p, n)), rng.normal(size=(5, p, 2)), 10.0 ** rng.uniform(-2, 1, 5)
        alone = np.stack([solve(*a) for a in zip(x, gamma, b, strict=True)])
        np.testing.assert_allclose(jax.jit(jax.vmap(ridge_solve))(x, gamma, b), alone, rtol=1e-11)


@pytest.mark.parametrize(("p", "n"), [(20, 35), (35, 20)])
def test_single_precision_stays(p, n):
    """Also inside a program in double precision: the user named the dtype."""
    rng = np.random.default_rng(2)
    x, b = rng.normal(size=(p, n)).astype(np.float32), rng.normal(size=(p, 1)).astype(np.float32)
    wanted = np.linalg.inv(x @ x.T / n + 0.1 * np.eye(p)) @ b
    for double in (False, True):
        with jax.enable_x64(double):
            got = solve(jnp.asarray(x), jnp.float32(0.1), jnp.asarray(b))
            assert got.dtype == jnp.float32
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * np.max(np.abs(wanted)))
