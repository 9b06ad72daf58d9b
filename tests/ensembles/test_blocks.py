"""The outliers of a rank-r spike against dense matrices: the same numbers from the same blocks, and the same law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax._errors import InputError
from rmtjax.ensembles import outlier
from rmtjax.ensembles.outlier import blocks
from rmtjax.laws import spikes

T = 500  # one number of trials everywhere: every sampler is compiled once


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


TILTED = np.array([[1.0, 0.6], [0.0, 0.8]])
COMPLEX = np.array([[1.0, 0.6j], [0.0, 0.8]])

mapped = {
    name: jax.jit(jax.vmap(function, in_axes=(0, *[None] * count)), static_argnames=static)
    for name, function, count, static in (
        ("goe", lambda key, N, theta, frame, t: outlier.wigner_outliers(key, N, theta, frame, tolerance=t), 4, None),
        (
            "gue",
            lambda key, N, theta, frame, t: outlier.wigner_outliers(key, N, theta, frame, beta=2, tolerance=t),
            4,
            None,
        ),
        ("rectangular", outlier.rectangular_outliers, 5, None),
        ("covariance", outlier.covariance_outliers, 3, None),
    )
}


def keys(count=T, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def block_matrix(rows, r_left, count, n, m):
    """The matrix (T, n, m) of `count` block rows: upper left blocks, couplings ahead and, from the lower left, behind."""
    width = count * r_left
    W = np.zeros((T, width + r_left, width + r_left), np.result_type(*(row[0].dtype for row in rows)))
    for k, (own, ahead, behind) in enumerate(rows):
        here, there = slice(k * r_left, (k + 1) * r_left), slice((k + 1) * r_left, (k + 2) * r_left)
        W[:, here, here] = np.moveaxis(own, -1, 0)
        W[:, here, there] = np.moveaxis(ahead, -1, 0)
        W[:, there, here] = np.moveaxis(behind, -1, 0)
    assert not W[:, n:].any()
    assert not W[:, :, m:].any()
    return W[:, :n, :m]


def key_data():
    return jax.random.key_data(keys()).T


draw_wigner = jax.jit(blocks.wigner_block, static_argnums=(3, 4))
draw_rectangular = jax.jit(blocks.rectangular_block, static_argnums=4)
draw_covariance = jax.jit(blocks.covariance_block, static_argnums=4)


def wigner_matrix(N, r, beta):
    count = -(-N // r)
    rows = []
    for k in range(count):
        own, coupling, _ = map(np.asarray, draw_wigner(key_data(), k, float(N), r, beta))
        rows.append((own, coupling, coupling.swapaxes(0, 1).conj()))
    return block_matrix(rows, r, count, N, N)


def rectangular_matrix(draw, n, m, r):
    count = -(-max(n, m) // r)
    rows = []
    for k in range(count):
        own, coupling, _ = map(np.asarray, draw(key_data(), k, float(n), float(m), r))
        rows.append((own[:r, r:], coupling[:r, r:], coupling[r:, :r].swapaxes(0, 1)))
    return block_matrix(rows, r, count, n, m)


def overlaps(vectors, frame):
    """Squared inner products (T, k, j) of columns with those of a frame."""
    return np.abs(np.einsum("tik,ij->tkj", vectors[:, : len(frame)].conj(), frame)) ** 2


def assert_vectors(actual, wanted, values):
    """Equal where the eigenvalues are apart: vectors of near ones may turn into each other."""
    gaps = np.abs(np.diff(values, axis=1)).min(1)
    np.testing.assert_allclose(actual[gaps > 1e-4], wanted[gaps > 1e-4], atol=2e-8)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("N", "theta", "frame", "beta"),
    [
        (2, [1.0, 2.0], TILTED, 1),
        (7, [0.2, 3.0], TILTED, 1),
        (24, [2.0, -2.0], np.eye(2), 1),
        (24, [2.0, 2.0], np.eye(2), 1),
        (24, [0.1, 0.5], TILTED, 1),
        (9, [0.5, 2.5], COMPLEX, 2),
    ],
)
def test_wigner_is_the_eigenproblem_of_its_blocks(N, theta, frame, beta):
    """To rounding, degenerate, opposite, oblique and subcritical spikes included."""
    M = wigner_matrix(N, 2, beta)
    M[:, :2, :2] += frame @ np.diag(theta) @ frame.conj().T
    values, vectors = np.linalg.eigh(M)
    found = mapped["goe" if beta == 1 else "gue"](keys(), float(N), np.array(theta), frame, outlier.TOLERANCE)
    np.testing.assert_allclose(found.outlier, values[:, :-3:-1], atol=1e-12)
    assert_vectors(np.asarray(found.overlap), overlaps(vectors[:, :, :-3:-1], frame), values[:, -3:])


@pytest.mark.thorough
@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 5), (5, 2), (3, 9), (9, 3), (12, 12), (7, 10)])
def test_rectangular_is_the_svd_of_its_blocks(n, m):
    W = rectangular_matrix(draw_rectangular, n, m, 2)
    theta = np.array([1.0, 2.5])
    W[:, :2, :2] += TILTED @ np.diag(theta)
    left, values, right = np.linalg.svd(W, full_matrices=False)
    found = mapped["rectangular"](keys(), float(n), float(m), theta, TILTED, np.eye(2))
    np.testing.assert_allclose(found.outlier, values[:, :2], atol=1e-11)
    near = values[:, :3]
    assert_vectors(np.asarray(found.overlap_left), overlaps(left[:, :, :2], TILTED), near)
    assert_vectors(np.asarray(found.overlap_right), overlaps(right.swapaxes(1, 2)[:, :, :2], np.eye(2)), near)


@pytest.mark.thorough
@pytest.mark.parametrize(("p", "n"), [(2, 2), (2, 5), (5, 2), (3, 9), (9, 3), (12, 12)])
def test_covariance_is_the_eigenproblem_of_its_blocks(p, n):
    Z = rectangular_matrix(draw_covariance, p, n, 2)
    ell = np.array([3.0, 0.5])
    Z[:, :2] *= np.sqrt(ell)[:, None]
    left, values, _ = np.linalg.svd(Z, full_matrices=False)
    found = mapped["covariance"](keys(), float(p), float(n), ell)
    np.testing.assert_allclose(found.outlier, values[:, :2] ** 2, atol=1e-11)
    assert_vectors(np.asarray(found.overlap), overlaps(left[:, :, :2], np.eye(2)), values[:, :3])


def same_law(ours, dense):
    """Two-sample KS at level 1e-5 for each number."""
    for name, a, b in zip(ours._fields, ours, dense, strict=True):
        a, b = np.asarray(a).reshape(T, -1), np.asarray(b).reshape(T, -1)
        for column in range(a.shape[1]):
            p = stats.ks_2samp(np.round(a[:, column], 9), np.round(b[:, column], 9)).pvalue
            assert p > 1e-5, f"{name} {column}: p = {p:.1g}"


@pytest.mark.thorough
def test_wigner_has_the_law_of_dense_matrices():
    rng, N, theta = np.random.default_rng(1), 12, np.array([1.0, 2.0])
    for beta, frame in ((1, TILTED), (2, COMPLEX)):
        G = rng.standard_normal((T, N, N)) + (1j * rng.standard_normal((T, N, N)) if beta == 2 else 0)
        W = (G + G.conj().swapaxes(1, 2)) / np.sqrt(2 * beta * N)
        W[:, :2, :2] += frame @ np.diag(theta) @ frame.conj().T
        values, vectors = np.linalg.eigh(W)
        found = mapped["goe" if beta == 1 else "gue"](keys(), float(N), theta, frame, outlier.TOLERANCE)
        same_law(found, (values[:, :-3:-1], overlaps(vectors[:, :, :-3:-1], frame)))


@pytest.mark.thorough
@pytest.mark.parametrize(("n", "m"), [(5, 12), (12, 5)])
def test_rectangular_has_the_law_of_dense_matrices(n, m):
    rng, theta = np.random.default_rng(2), np.array([1.0, 2.5])
    G = rng.standard_normal((T, n, m))
    W = G / np.sqrt(m)
    W[:, :2, :2] += TILTED @ np.diag(theta)
    left, values, right = np.linalg.svd(W, full_matrices=False)
    dense = values[:, :2], overlaps(left[:, :, :2], TILTED), overlaps(right.swapaxes(1, 2)[:, :, :2], np.eye(2))
    same_law(mapped["rectangular"](keys(), float(n), float(m), theta, TILTED, np.eye(2)), dense)
    G[:, :2] *= np.sqrt(np.array([3.0, 0.5]))[:, None]
    left, values, _ = np.linalg.svd(G / np.sqrt(m), full_matrices=False)
    found = mapped["covariance"](keys(), float(n), float(m), np.array([3.0, 0.5]))
    same_law(found, (values[:, :2] ** 2, overlaps(left[:, :, :2], np.eye(2))))


@pytest.mark.thorough
def test_a_large_matrix_knows_the_laws():
    """N = 10⁹: eigenvalues of the update of oblique spikes, to 5 standard errors of a mean of 500."""
    theta = np.array([3.0, 4.0])
    effective, turn = np.linalg.eigh(TILTED @ np.diag(theta) @ TILTED.T)
    found = mapped["goe"](keys(), 1e9, theta, TILTED, outlier.TOLERANCE)
    for k, strength in enumerate(effective[::-1]):
        spread = np.sqrt(float(spikes.wigner_variance(strength)) / 1e9 / T)
        assert abs(np.mean(found.outlier[:, k]) - float(spikes.wigner_outlier(strength))) < 5 * spread
    wanted = (TILTED.T @ turn[:, ::-1]).T ** 2 * np.asarray(spikes.wigner_overlap(effective[::-1]))[:, None]
    np.testing.assert_allclose(np.mean(found.overlap, 0), wanted, atol=1e-5)
    found = mapped["rectangular"](keys(), 1e9, 4e9, theta, np.eye(2), np.eye(2))
    np.testing.assert_allclose(np.mean(found.outlier, 0), spikes.rectangular_outlier(theta[::-1], 0.25), atol=1e-5)
    found = mapped["covariance"](keys(), 1e9, 4e9, 3 * theta)
    np.testing.assert_allclose(np.mean(found.outlier, 0), spikes.covariance_outlier(3 * theta[::-1], 0.25), atol=1e-4)


@pytest.mark.thorough
def test_blocks_left_out_do_not_matter():
    """A coarse tolerance gives what a fine one gives, to that tolerance, through the transition."""
    for theta in ([0.5, 0.2], [1.05, 0.9], [2.0, 1.2]):
        coarse, fine = (mapped["goe"](keys(), 2e3, np.array(theta), np.eye(2), t).outlier for t in (1e-6, 1e-13))
        np.testing.assert_allclose(coarse, fine, atol=1e-6)


@pytest.mark.thorough
def test_rank_one_is_the_sampler_of_one():
    """Same law as `wigner_outlier`, KS at level 1e-5."""
    ours = jax.jit(jax.vmap(lambda key: outlier.wigner_outliers(key, 50.0, jnp.array([1.5]))))(keys())
    theirs = jax.jit(jax.vmap(lambda key: outlier.wigner_outlier(key, 50.0, 1.5)))(keys(seed=1))
    assert stats.ks_2samp(ours.outlier[:, 0], theirs.outlier).pvalue > 1e-5
    assert stats.ks_2samp(ours.overlap[:, 0, 0], theirs.overlap).pvalue > 1e-5


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda key: outlier.wigner_outliers(key, 10.0, np.zeros(0)), "theta has shape"),
        (lambda key: outlier.wigner_outliers(key, 10.0, np.ones(9)), "r from 1 to 8"),
        (lambda key: outlier.wigner_outliers(key, 10.0, np.array([1.0, np.nan])), "theta = nan"),
        (lambda key: outlier.wigner_outliers(key, 1.0, np.ones(2)), "N = .*at least the rank, 2"),
        (lambda key: outlier.wigner_outliers(key, 10.0, np.ones(2), np.ones((2, 2))), "frame: column 0 has norm 1.414"),
        (lambda key: outlier.wigner_outliers(key, 10.0, np.ones(2), np.eye(3)), r"frame has shape \(3, 3\)"),
        (lambda key: outlier.wigner_outliers(key, 10.0, np.ones(2), COMPLEX), "frame has dtype complex"),
        (lambda key: outlier.wigner_outliers(key, 10.0, np.ones(2), beta=3), "beta = 3"),
        (lambda key: outlier.rectangular_outliers(key, 10.0, 1.0, np.ones(2)), "m = "),
        (lambda key: outlier.rectangular_outliers(key, 10.0, 10.0, np.ones(2), right=np.eye(1)), "right has shape"),
        (
            lambda key: outlier.covariance_outliers(key, 10.0, 10.0, np.array([1.0, 0.0])),
            "ell = 0.0: must be finite and > 0",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(call, part):
    with pytest.raises(InputError, match=part) as caught:
        call(jax.random.key(0))
    assert "\n" not in str(caught.value)
