"""Resolvents after an update against inverses, and eigenvalues after an update against rational arithmetic and LAPACK."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rmtjax import InputError
from rmtjax.linalg import low_rank
from tests.helpers import programs_of

programs = programs_of(low_rank, "resolvent", "secular_matrix", "woodbury_resolvent")


@pytest.fixture(autouse=True)
def double():
    """Results are compared in their own precision."""
    with jax.enable_x64(True):
        yield


def goe(rng: np.random.Generator, n: int) -> np.ndarray:
    a = rng.normal(size=(n, n))
    return (a + a.T) / np.sqrt(2 * n)


def updated(d: np.ndarray, U: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return np.diag(d) + (U * theta) @ U.T


# -- resolvents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [3.0, 0.3 + 0.1j])
def test_woodbury_is_the_resolvent_of_the_update(z):
    rng = np.random.default_rng(0)
    W, U, V = rng.normal(size=(8, 8)) / 3, rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    theta = np.array([2.0, -0.5, 0.0])
    G = programs.resolvent(W, z)
    np.testing.assert_allclose(G @ (z * np.eye(8) - W), np.eye(8), atol=1e-12)
    got = programs.woodbury_resolvent(G, U, theta, V)
    np.testing.assert_allclose(got, np.linalg.inv(z * np.eye(8) - W - (U * theta) @ V.T), rtol=1e-9, atol=1e-11)
    # Its determinant is that of the whole matrices.
    secular = np.linalg.det(programs.secular_matrix(G, U, theta, V))
    wanted = np.linalg.det(z * np.eye(8) - W - (U * theta) @ V.T) / np.linalg.det(z * np.eye(8) - W)
    np.testing.assert_allclose(secular, wanted, rtol=1e-10)


def test_one_spike_is_sherman_and_morrison_with_a_plus():
    """G + θ Gu vᵀG/(1 − θ vᵀGu); with the paper's signs it is another matrix."""
    rng = np.random.default_rng(1)
    W, u, v, theta = goe(rng, 6), rng.normal(size=6), rng.normal(size=6), 1.7
    G = np.asarray(low_rank.resolvent(W, 2.5))
    got = np.asarray(low_rank.woodbury_resolvent(G, u, theta, v))
    correction, form = theta * np.outer(G @ u, v @ G), theta * v @ G @ u
    np.testing.assert_allclose(got, G + correction / (1 - form), rtol=1e-11)
    assert np.max(np.abs(got - (G - correction / (1 + form)))) > 0.1


@pytest.mark.thorough
def test_secular_determinant_vanishes_at_the_outlier():
    rng = np.random.default_rng(2)
    n, theta = 300, np.array([2.0, 1.5])
    W, U = goe(rng, n), np.linalg.qr(rng.normal(size=(n, 2)))[0]
    base = tuple(np.linalg.eigh(W))
    new = np.linalg.eigvalsh(W + (U * theta) @ U.T)
    at = programs.secular_matrix(base, U, theta, U, new[-2:])
    assert at.shape == (2, 2, 2)
    np.testing.assert_allclose(np.linalg.det(at), 0, atol=1e-12)
    # 1 − θm(z) changes sign there: the printed 1 + θm never does.
    beside = [float(programs.secular_matrix(base, U[:, 0], 2.0, U[:, 0], z)[0, 0]) for z in (2.2, 3.0)]
    assert beside[0] < 0 < beside[1]
    assert all(float(programs.secular_matrix(base, U[:, 0], -2.0, U[:, 0], z)[0, 0]) > 1 for z in (2.2, 3.0))
    points = np.array([2.2, 3.0, 4.0 + 1j])
    direct = [programs.secular_matrix(programs.resolvent(W, z), U, theta, U) for z in points]
    np.testing.assert_allclose(programs.secular_matrix(base, U, theta, U, points), direct, atol=1e-11)


def test_batches_of_resolvents():
    rng = np.random.default_rng(3)
    W, z = np.stack([goe(rng, 4), goe(rng, 4)]), np.array([3.0, 4.0])
    G = programs.resolvent(W, z)
    np.testing.assert_allclose(G[1], programs.resolvent(W[1], 4.0), rtol=1e-13)
    assert jax.eval_shape(low_rank.resolvent, W[0], np.linspace(3, 4, 5)).shape == (5, 4, 4)
    u = rng.normal(size=4)
    one = programs.woodbury_resolvent(G[1], u, 2.0, u)
    np.testing.assert_allclose(programs.woodbury_resolvent(G, u, 2.0, u)[1], one, rtol=1e-12)
    assert jax.eval_shape(low_rank.resolvent, W.astype(np.float32), 3.0).dtype == jnp.float64
    assert low_rank.secular_matrix(G, u, 2.0, u).shape == (2, 1, 1)


# -- eigenvalues after an update ---------------------------------------------------------------------------------------


@pytest.mark.first(2)
@pytest.mark.parametrize("theta", [1.5, -0.7, 1e-9, 1e9])
@pytest.mark.parametrize("n", [1, 2, 60])
def test_rank_one(n, theta):
    """Eigenvalues to a few roundings of the norm; eigenvectors orthonormal and with small residuals, as LAPACK's."""
    rng = np.random.default_rng(n)
    d, u = np.sort(rng.normal(size=n)), rng.normal(size=n)
    matrix = updated(d, u[:, None], theta)
    norm = np.linalg.norm(matrix, 2)
    new = low_rank.update_eigh(d, u, theta)
    vectors = np.asarray(new.eigenvectors)
    np.testing.assert_allclose(new.eigenvalues, np.linalg.eigvalsh(matrix), atol=1e-14 * norm * np.sqrt(n), rtol=0)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(n), atol=1e-13)
    np.testing.assert_allclose(matrix @ vectors, vectors * np.asarray(new.eigenvalues), atol=1e-13 * norm)
    np.testing.assert_array_equal(low_rank.update_eigenvalues(d, u, theta), new.eigenvalues)
    # Interlacing.
    between = np.asarray(new.eigenvalues), np.append(d[1:], np.inf)
    if theta > 0:
        assert np.all(d <= between[0]) and np.all(between[0] <= between[1])


def test_shifts_have_all_their_digits():
    """The secular function changes sign within 1e-12 of each shift, in rational arithmetic; the least shift is 1e-22."""
    rng = np.random.default_rng(4)
    n = 8
    d = np.sort(rng.normal(size=n))
    d[3] = d[2] + 1e-13  # a near pair
    u, theta = rng.normal(size=n) * 10.0 ** rng.uniform(-9, 0, n), 0.7
    new = low_rank.update_eigh(d, u, theta)
    shifts = np.asarray(new.shifts)
    assert shifts.min() < 1e-15

    def secular(k, shift):
        terms = (Fraction(u[j]) ** 2 / (Fraction(d[j]) - Fraction(d[k]) - shift) for j in range(n))
        return 1 + Fraction(theta) * sum(terms)

    for k, shift in enumerate(shifts):
        assert secular(k, Fraction(shift) * (1 - Fraction(1, 10**12))) < 0
        assert secular(k, Fraction(shift) * (1 + Fraction(1, 10**12))) > 0
    vectors = np.asarray(new.eigenvectors)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(n), atol=1e-9)


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.0])
def test_what_cannot_move_stays(theta):
    """Vanishing entries of u and, for eigenvalues alone, equal ones of d."""
    d, u = np.array([0.0, 0, 0, 1, 1, 2, 3]), np.array([1.0, 0, 2, 0, 0, 1, 0])
    got = np.asarray(low_rank.update_eigenvalues(d, u, theta))
    np.testing.assert_allclose(got, np.linalg.eigvalsh(updated(d, u[:, None], theta)), atol=1e-14)
    stays = [0.0, 0.0, 1.0, 1.0, 3.0]
    assert all(np.sum(got == x) >= stays.count(x) for x in stays)
    d, u = np.arange(5.0), np.array([1.0, 0, 1e-9, 0, 1])
    new = low_rank.update_eigh(d, u, theta)
    vectors = np.asarray(new.eigenvectors)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-15)
    np.testing.assert_allclose(
        updated(d, u[:, None], theta) @ vectors, vectors * np.asarray(new.eigenvalues), atol=1e-15
    )


def test_rank_three_with_both_signs():
    rng = np.random.default_rng(5)
    n, theta = 50, np.array([2.0, -1.0, 0.5])
    d, U = np.sort(rng.normal(size=n)), rng.normal(size=(n, 3)) / 5
    matrix = updated(d, U, theta)
    new = low_rank.update_eigh(d, U, theta)
    vectors, values = np.asarray(new.eigenvectors), np.asarray(new.eigenvalues)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=1e-13)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(n), atol=1e-13)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-13)
    np.testing.assert_allclose(new.shifts, values - d, atol=1e-13)
    np.testing.assert_allclose(low_rank.update_eigenvalues(d, U, theta), values, atol=1e-14)


@pytest.mark.thorough
def test_overlaps_of_the_outlier_with_the_old_eigenvectors():
    """In the eigenbasis of a GOE: N|⟨w_j, v̂⟩|² → (θ² − 1)/(λ_out − λ_j)², averaged over 20 updates to 10 %.

    Each overlap is a squared normal; the mean over the middle half of 400 of them and 20 updates has a standard error of
    2.2 %, so 10 % is a false alarm in 1e-5.
    """
    rng = np.random.default_rng(6)
    n, theta = 400, 1.8
    d = np.linalg.eigvalsh(goe(rng, n))
    directions = rng.normal(size=(20, n))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    new = jax.vmap(lambda u: low_rank.update_eigh(d, u, theta))(directions)
    out = np.asarray(new.eigenvalues[:, -1:])
    ratio = n * np.asarray(new.eigenvectors[:, :, -1]) ** 2 * (out - d) ** 2 / (theta**2 - 1)
    assert abs(ratio[:, n // 4 : -n // 4].mean() - 1) < 0.1
    assert abs(out.mean() - theta - 1 / theta) < 0.02


@pytest.mark.thorough
def test_gradients():
    rng, theta = np.random.default_rng(7), -0.8
    d, u = np.sort(rng.normal(size=5)), rng.normal(size=5)
    check_grads(low_rank.update_eigenvalues, (d, u, theta), order=1)
    check_grads(lambda *a: low_rank.update_eigh(*a).eigenvectors ** 2, (d, u, theta), order=1, modes=["rev"])
    # Where an entry of u vanishes its eigenvalue moves with d alone.
    d, u = np.arange(3.0), np.array([1.0, 0.0, 1.0])
    slope = jax.jacobian(low_rank.update_eigenvalues, argnums=(0, 1))(d, u, jnp.float64(0.3))
    assert np.all(np.isfinite(slope[0])) and np.all(np.isfinite(slope[1]))
    np.testing.assert_array_equal(slope[0][1], [0, 1, 0])


# -- bad input ---------------------------------------------------------------------------------------------------------

d3, u3, I3 = np.arange(3.0), np.ones(3), np.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: low_rank.resolvent(np.ones((2, 3)), 1.0), r"W has shape \(2, 3\): must be"),
        (lambda: low_rank.resolvent(np.ones((0, 0)), 1.0), r"W has shape \(0, 0\): must be"),
        (lambda: low_rank.resolvent(I3 * np.nan, 1.0), "W has an entry .*nan.*: all must be finite"),
        (lambda: low_rank.resolvent(I3, np.inf), "z has an entry .*inf"),
        (lambda: low_rank.woodbury_resolvent(I3, np.ones(2), 1.0, u3), r"U has shape \(2, 1\)"),
        (lambda: low_rank.woodbury_resolvent(I3, u3, np.ones(2), u3), "U, theta and V have shapes"),
        (lambda: low_rank.secular_matrix((d3, I3), u3, 1.0, u3), "z is not given"),
        (lambda: low_rank.secular_matrix(I3, u3, 1.0, u3, 2.0), "z is given"),
        (lambda: low_rank.secular_matrix((d3[:2], I3), u3, 1.0, u3, 2.0), r"values has shape \(2,\)"),
        (lambda: low_rank.update_eigenvalues(d3[::-1], u3, 1.0), "values = .*: must ascend"),
        (lambda: low_rank.update_eigenvalues(d3, np.ones(4), 1.0), r"U has shape \(4, 1\)"),
        (lambda: low_rank.update_eigenvalues(d3, u3, np.ones(2)), r"theta has shape \(2,\): must be \(1,\)"),
        (lambda: low_rank.update_eigenvalues(d3 + np.inf, u3, 1.0), "values has an entry"),
        (lambda: low_rank.update_eigenvalues(d3, u3 * np.nan, 1.0), "U has an entry nan"),
        (lambda: low_rank.update_eigh(np.ones(3), u3, 1.0), "values has equal entries"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
