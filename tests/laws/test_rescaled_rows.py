"""The laws of a spike on rescaled rows: against the rectangular law, the definition, dense matrices and known derivatives."""

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from rmtjax import InputError
from rmtjax.laws import rescaled_rows, spikes

STRENGTHS = np.array([0.3, 1.1, 1.5, 3.0, 50.0])


@pytest.mark.parametrize("c", [1e-4, 0.25, 1.0, 4.0, 1e4])
def test_equal_factors_are_the_rectangular_law(c):
    scales, theta = np.full(5, -2.0), 2 * STRENGTHS * max(c**0.25, 1)
    np.testing.assert_allclose(rescaled_rows.edge(scales, c), 2 * (1 + c**0.5), rtol=1e-12)
    np.testing.assert_allclose(rescaled_rows.threshold(scales, c), 2 * c**0.25, rtol=1e-12)
    np.testing.assert_allclose(
        rescaled_rows.outlier(theta, scales, c), 2 * np.asarray(spikes.rectangular_outlier(theta / 2, c)), rtol=1e-12
    )
    for found, side in ((rescaled_rows.overlap_left, "left"), (rescaled_rows.overlap_right, "right")):
        wanted = spikes.rectangular_overlap(theta / 2, c, side=side)
        np.testing.assert_allclose(found(theta, scales, c), wanted, rtol=1e-9, atol=1e-12)


def test_the_roots_solve_their_equations():
    """By the D-transform of Benaych-Georges and Nadakuditi, with derivatives by differences."""
    rng = np.random.default_rng(0)
    scales, c, theta = rng.uniform(0.2, 2.0, 50), 0.6, 2.5
    x = float(rescaled_rows.outlier(theta, scales, c))

    def transforms(x):
        u = float(rescaled_rows.companion_transform(x**2, scales, c))
        return x * (u - (1 - c) / x**2) / c, x * u

    left, right = transforms(x)
    assert left * right == pytest.approx(1 / theta**2, rel=1e-10)
    step = 1e-5
    slope = (np.prod(transforms(x + step)) - np.prod(transforms(x - step))) / (2 * step)
    assert float(rescaled_rows.overlap_left(theta, scales, c)) == pytest.approx(
        -2 * left / (theta**2 * slope), rel=1e-6
    )
    assert float(rescaled_rows.overlap_right(theta, scales, c)) == pytest.approx(
        -2 * right / (theta**2 * slope), rel=1e-6
    )
    # z(w) = z, and the edge is where dz/dw = 0.
    w = float(rescaled_rows.companion_transform(x**2, scales, c))
    assert 1 / w + c * np.mean(scales**2 / (1 - scales**2 * w)) == pytest.approx(x**2, rel=1e-12)
    places = np.linspace(1e-3, 0.9999, 20_001) / np.max(scales**2)
    lowest = np.min(1 / places + c * np.mean(scales**2 / (1 - scales**2 * places[:, None]), 1))
    assert float(rescaled_rows.edge(scales, c)) ** 2 == pytest.approx(lowest, rel=1e-6)


def test_at_the_threshold_everything_meets():
    scales, c = np.linspace(0.5, 1.5, 40), 0.7
    critical = float(rescaled_rows.threshold(scales, c))
    below, above = critical * (1 - 1e-9), critical * (1 + 1e-6)
    assert float(rescaled_rows.outlier(below, scales, c)) == pytest.approx(
        float(rescaled_rows.edge(scales, c)), rel=1e-14
    )
    assert float(rescaled_rows.outlier(above, scales, c)) == pytest.approx(
        float(rescaled_rows.edge(scales, c)), rel=1e-9
    )
    assert float(rescaled_rows.overlap_left(below, scales, c)) == 0
    assert 0 < float(rescaled_rows.overlap_left(above, scales, c)) < 1e-4
    assert np.isnan(rescaled_rows.companion_transform(float(rescaled_rows.edge(scales, c)) ** 2 * 0.99, scales, c))


def test_rows_of_zeros_count():
    """They change the aspect ratio and nothing else: n rows of which half vanish are n/2 rows."""
    scales = np.linspace(0.5, 1.5, 20)
    padded = np.concatenate([scales, np.zeros(20)])
    np.testing.assert_allclose(rescaled_rows.edge(padded, 1.0), rescaled_rows.edge(scales, 0.5), rtol=1e-12)


def test_arrays_broadcast():
    scales, c = np.random.default_rng(1).uniform(0.5, 1.5, (3, 1, 10)), np.array([0.5, 2.0])
    found = rescaled_rows.overlap_right(2.5, scales, c)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found[1, 0], rescaled_rows.overlap_right(2.5, scales[1, 0], 0.5), rtol=1e-14)


@pytest.mark.thorough
def test_derivatives():
    scales = np.random.default_rng(2).uniform(0.5, 1.5, 6)
    with jax.enable_x64(True):
        for law in (rescaled_rows.outlier, rescaled_rows.overlap_left, rescaled_rows.overlap_right):
            check_grads(jax.jit(law), (2.5, scales, 0.6), 2, modes=("fwd", "rev"))
        check_grads(jax.jit(rescaled_rows.edge), (scales, 0.6), 2, modes=("fwd", "rev"))
        exact = jax.grad(rescaled_rows.outlier)(2.5, scales, 0.6)
    assert jax.grad(rescaled_rows.outlier)(np.float32(2.5), scales, 0.6) == pytest.approx(float(exact), rel=1e-6)


def test_dense_matrices():
    """At level 1e-4 for three means: twelve draws of 300 × 400, within 3.9 standard errors and O(1/√n) of the law."""
    rng = np.random.default_rng(3)
    n, m, theta, draws = 300, 400, 2.5, 12
    scales = 1 + 0.4 * rng.normal(size=n)
    drawn = []
    for _ in range(draws):
        u, v = (x / np.linalg.norm(x) for x in (rng.normal(size=n), rng.normal(size=m)))
        left, values, right = np.linalg.svd(
            scales[:, None] * rng.normal(size=(n, m)) / m**0.5 + theta * np.outer(u, v), full_matrices=False
        )
        drawn.append([values[0], (left[:, 0] @ u) ** 2, (right[0] @ v) ** 2])
    wanted = [float(f(theta, scales, n / m)) for f in (
        rescaled_rows.outlier, rescaled_rows.overlap_left, rescaled_rows.overlap_right
    )]  # fmt: skip
    allowed = 3.9 * np.std(drawn, 0) / draws**0.5 + 0.01
    assert np.all(np.abs(np.mean(drawn, 0) - wanted) < allowed)
    plain = [float(spikes.rectangular_outlier(theta, n / m)), *(
        float(spikes.rectangular_overlap(theta, n / m, side=side)) for side in ("left", "right")
    )]  # fmt: skip
    assert np.all(np.abs(np.mean(drawn, 0) - plain) > allowed)  # unscaled rows would be refuted


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rescaled_rows.edge([1.0, np.nan], 1.0), "scales has an entry nan"),
        (lambda: rescaled_rows.edge([0.0, 0.0], 1.0), "scales has only zeros"),
        (lambda: rescaled_rows.edge(np.ones((2, 0)), 1.0), "scales has shape (2, 0)"),
        (lambda: rescaled_rows.edge([1.0], 0.0), "c = 0"),
        (lambda: rescaled_rows.outlier(0.0, [1.0], 1.0), "theta = 0"),
        (lambda: rescaled_rows.overlap_left(-1.0, [1.0], 1.0), "theta = -1"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(call, says):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(says) and "\n" not in str(error.value)
