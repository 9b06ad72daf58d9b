"""Moment estimates: no bias where none is promised, and the naive estimates caught with theirs."""

import numpy as np
import pytest

from rmtjax._errors import InputError
from rmtjax.laws import alpha_ftc
from rmtjax.transfer import moments

P, N, REPETITIONS = 200, 20, 400
SIGMA2 = 1.7
MU = np.r_[1.2, np.full(P - 1, 0.02)]
MU_BETA = np.r_[0.6, 0.8, np.zeros(P - 2)]


def sample(rng, mean, n):
    y = rng.choice([-1.0, 1.0], n)
    return y[:, None] * mean + SIGMA2**0.5 * rng.standard_normal((n, len(mean))), y


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(3)
    return [(*sample(rng, MU, N), *sample(rng, MU_BETA, N)) for _ in range(REPETITIONS)]


def in_errors(values, truth):
    """Return the distance of the values' mean from the truth, in standard errors."""
    return abs(np.mean(values) - truth) / (np.std(values, ddof=1) / len(values) ** 0.5)


def unbiased(values, truth):
    # Four standard errors: one false alarm in 16,000.
    return in_errors(values, truth) < 4


def test_squared_norm_is_unbiased_and_the_naive_one_is_not(draws):
    assert unbiased([moments.mean_norm2(X, y) for X, y, _, _ in draws], MU @ MU)
    naive = [np.sum((X.T @ y / N) ** 2) for X, y, _, _ in draws]
    assert not unbiased(naive, MU @ MU)
    assert unbiased(naive, MU @ MU + SIGMA2 * P / N)


def test_noise_variance_is_unbiased_and_the_mean_square_is_not(draws):
    assert unbiased([moments.noise_variance(X, y) for X, y, _, _ in draws], SIGMA2)
    assert not unbiased([np.mean(X**2) for X, _, _, _ in draws], SIGMA2)


def test_mean_product_and_alignment_are_unbiased(draws):
    assert unbiased([moments.mean_product(*draw) for draw in draws], MU @ MU_BETA)
    W = np.random.default_rng(0).standard_normal((2, P))
    found = np.array([moments.alignment(X, y, W) for _, _, X, y in draws])
    assert all(unbiased(found[:, k], W[k] @ MU_BETA) for k in range(2))


def test_the_standard_error_is_the_spread_seen(draws):
    spread = np.std([moments.mean_norm2(X, y) for X, y, _, _ in draws], ddof=1)
    stated = np.mean([moments.mean_norm2_error(X, y) for X, y, _, _ in draws])
    # A spread from 400 repetitions is known to 1/√800 = 3.5 %; clipping ‖μ‖² at 0 inflates the formula a little.
    assert stated == pytest.approx(spread, rel=0.15)


def test_the_standard_error_holds_for_uneven_noise():
    rng = np.random.default_rng(5)
    scale = np.geomspace(1, 0.01, P) ** 0.5 * 3
    draws = [(scale * rng.standard_normal((N, P)), rng.choice([-1.0, 1.0], N)) for _ in range(REPETITIONS)]
    values = [moments.mean_norm2(X, y) for X, y in draws]
    assert unbiased(values, 0)
    stated = np.mean([moments.mean_norm2_error(X, y) for X, y in draws])
    assert stated == pytest.approx(np.std(values, ddof=1), rel=0.2)


def test_beta_recovers_the_truth_where_the_naive_ratio_is_shrunk():
    rng = np.random.default_rng(1)
    draws = [(*sample(rng, MU, 400), *sample(rng, MU_BETA, 400)) for _ in range(60)]
    truth = MU @ MU_BETA / (MU @ MU)
    assert unbiased([moments.beta(*draw) for draw in draws], truth)
    naive = [(X.T @ y) @ (A.T @ b) / np.sum((X.T @ y) ** 2) for X, y, A, b in draws]
    assert not unbiased(naive, truth) and np.mean(naive) < truth


def test_norm_is_the_root_and_never_nan():
    rng = np.random.default_rng(0)
    X, y = sample(rng, 0 * MU, 6)
    values = [(moments.mean_norm2(X, s * y), moments.mean_norm(X, s * y)) for s in (1, -1)]
    assert all(root == max(square, 0) ** 0.5 for square, root in values)


def test_shrinkage_goes_from_the_guess_to_the_estimate():
    assert moments.shrunk_mean_norm2(3.0, 1e-6, 0.2) == pytest.approx(3.0)
    assert moments.shrunk_mean_norm2(3.0, 1e6, 0.2) == pytest.approx((3 + 0.5) / 2)  # equal errors: the plain mean
    assert moments.shrunk_mean_norm2(-9.0, 0.5, 0.2) == 0.2  # the floor


@pytest.mark.parametrize("n", [12, 60])
def test_target_moments_agree_with_the_single_estimates_on_either_side(n):
    rng = np.random.default_rng(2)
    p = 30
    X, y = sample(rng, MU_BETA[:p], n)
    W = rng.standard_normal((3, p)) / p**0.5
    found = moments.target_moments(X, y, W)
    b = moments.alignment(X, y, W)
    assert found.mean_norm2_unbiased == pytest.approx(moments.mean_norm2(X, y))
    np.testing.assert_allclose(found.alignment, b)
    np.testing.assert_allclose(found.gram, W @ W.T)
    assert found.mean_norm2_floor == pytest.approx(b @ np.linalg.solve(W @ W.T, b))
    assert found.eta == p / n
    G = X @ X.T
    trace2 = (np.sum(G**2) - np.sum(np.diag(G) ** 2)) / (n * (n - 1))
    s = max(found.mean_norm2_unbiased, found.mean_norm2_floor)
    assert found.mean_norm2_error == pytest.approx((4 * found.noise * s / n + 2 * trace2 / n**2) ** 0.5)


def test_noise_scale_cancels():
    """Data c times as large, with γ c² times as large, have the same accuracy at α/c: w̃ is held."""
    rng = np.random.default_rng(4)
    X, y = sample(rng, MU_BETA, 40)
    W, c = rng.standard_normal((1, P)) / 10 + MU_BETA, 3.0
    one, other = moments.target_moments(X, y, W), moments.target_moments(c * X, y, W)
    np.testing.assert_allclose(moments.law_alpha(other, c**2) * c, moments.law_alpha(one, 1.0), rtol=1e-9)
    np.testing.assert_allclose(
        moments.law_accuracy(other, c**2, [[0.7 / c]]), moments.law_accuracy(one, 1.0, [[0.7]]), rtol=1e-9
    )


def test_unit_noise_is_the_law_itself():
    b, q, s, eta = 0.4, 0.5, 1.1, 2.0
    found = moments.TargetMoments(*map(np.float64, (eta, 1.0, s, s, 0.1, b * b / q)), np.array([b]), np.array([[q]]))
    law = alpha_ftc.scalars(0.8, eta, s**0.5, alpha_ftc.SourceStatistics(np.float64(q), np.float64(b)))
    assert moments.law_alpha(found, 0.8)[0] == pytest.approx(float(alpha_ftc.optimal_alpha(law)))
    assert moments.law_accuracy(found, 0.8, [0.3]) == pytest.approx(float(alpha_ftc.accuracy(law, 0.3)))


def test_degenerate_sources_give_finite_alpha():
    rng = np.random.default_rng(6)
    X, y = sample(rng, MU_BETA, 40)
    w = MU_BETA + 0.1 * rng.standard_normal(P)
    assert moments.law_alpha(moments.target_moments(X, y, 0 * w), 1.0).tolist() == [0.0]
    assert moments.law_alpha(moments.target_moments(X, y, np.empty((0, P))), 1.0).shape == (0,)
    alone = moments.law_alpha(moments.target_moments(X, y, w), 1.0)
    twice = moments.law_alpha(moments.target_moments(X, y, np.stack([w, w])), 1.0)
    np.testing.assert_allclose(twice, np.repeat(alone / 2, 2), rtol=1e-5)


X_GOOD, Y_GOOD = np.eye(4, 3), np.array([1.0, -1.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("X", "y", "said"),
    [
        (X_GOOD[:1], Y_GOOD[:1], "at least 2"),
        (X_GOOD, Y_GOOD[:3], r"shapes \(4, 3\) and \(3,\)"),
        (X_GOOD[0], Y_GOOD, "shapes"),
        (X_GOOD * np.nan, Y_GOOD, "X has an entry nan: all must be finite"),
        (X_GOOD, Y_GOOD + 1, r"labels \[0.0, 2.0\]"),
    ],
)
def test_bad_samples_are_named(X, y, said):
    for estimate in (moments.mean_norm, moments.mean_norm2, moments.mean_norm2_error, moments.noise_variance):
        with pytest.raises(InputError, match=said) as error:
            estimate(X, y)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("W", "said"),
    [
        (np.ones(2), "shape"),
        (np.full(3, np.inf), "W has an entry inf: all must be finite"),
        ("no", "W = 'no': must be an array of numbers"),
        (np.ones((1, 1, 3)), "shape"),
    ],
)
def test_bad_weights_are_named(W, said):
    for estimate in (moments.alignment, moments.target_moments):
        with pytest.raises(InputError, match=said):
            estimate(X_GOOD, Y_GOOD, W)


def test_two_problems_must_share_their_features():
    with pytest.raises(InputError, match="other_X has 2 features"):
        moments.mean_product(X_GOOD, Y_GOOD, X_GOOD[:, :2], Y_GOOD)
    with pytest.raises(InputError, match="other_y holds the labels"):
        moments.beta(X_GOOD, Y_GOOD, X_GOOD, 2 * Y_GOOD)
