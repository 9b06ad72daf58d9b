"""The corner of a Gaussian resolvent: the dense inverse's law, and no more levels than it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax.ensembles.resolvent_corner import depth, resolvent_corner, truncation_bound
from tests.linalg.test_small import to_array

# False alarms: at most 18 statistics for each of 22 shapes, each rejected at p < 2e-6: 8e-4 for the file. Seeds are fixed.
P = 2e-6
SAMPLED, DENSE = 10_000, 4_000
TOLERANCES = [1e-6, 1e-12]


@pytest.fixture(autouse=True)
def double():
    """The compression works in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def sampler():
    """``(r) -> (keys, γ, rows, cols, n, levels) -> (trial, 2, r, r)``: one program a corner size, whatever the matrix."""
    programs = {}

    def of(r):
        if r not in programs:

            def one(key, *arguments):
                corner = resolvent_corner(key, *arguments[:-1], r, arguments[-1])
                return jnp.stack([to_array(corner.resolvent), to_array(corner.square)])

            programs[r] = jax.jit(jax.vmap(one, in_axes=(0, *(None,) * 5)))
        program = programs[r]

        def run(keys, gamma, rows, cols, n, levels):
            sizes = map(jnp.float64, (gamma, rows, cols, n))
            return np.asarray(program(keys, *sizes, jnp.int32(levels)))

        return run

    return of


def levels_for(gamma, rows, cols, n, r, tolerance) -> int:
    """`depth` as a whole number."""
    return int(_depth(*map(jnp.float64, (gamma, rows, cols, n)), r, tolerance))


_depth = jax.jit(depth, static_argnums=(4, 5))
_bound = jax.jit(truncation_bound)


def dense(rng, count, gamma, rows, cols, n, r) -> np.ndarray:
    """The same corners from matrices and their inverses; a row that does not exist is one of the identity's."""
    z = rng.normal(size=(count, rows, cols))
    full = np.broadcast_to(np.eye(max(rows, r)), (count, max(rows, r), max(rows, r))) * gamma
    full[:, :rows, :rows] += z @ z.transpose(0, 2, 1) / n
    inverse = np.linalg.inv(full)
    return np.stack([inverse[:, :r, :r], (inverse @ inverse)[:, :r, :r]], 1)


def statistics(x: np.ndarray) -> dict[str, np.ndarray]:
    """Every entry on and below the diagonal, and functions of several that see how they hang together."""
    r = x.shape[-1]
    result = {f"{'HS'[k]}[{i},{j}]": x[:, k, i, j] for k in (0, 1) for i in range(r) for j in range(i + 1)}
    a = np.array([1.0, -2.0, 0.7])[:r]
    form = np.einsum("i,tkij,j->tk", a, x, a)
    result |= {"aᵀHa": form[:, 0], "aᵀSa": form[:, 1], "ratio": form[:, 1] / form[:, 0] ** 2}
    result["det H"] = np.linalg.det(x[:, 0])
    result["S₀₀ − (H²)₀₀"] = x[:, 1, 0, 0] - np.sum(x[:, 0, 0] ** 2, -1)
    return result


SHAPES = [
    (rows, cols, r)
    for r, sizes in {
        1: [(6, 4), (4, 9), (1, 3), (5, 1), (7, 7)],
        2: [(20, 12), (12, 20), (9, 9), (1, 5), (2, 1), (5, 2), (3, 2), (3, 40)],
        3: [(20, 12), (12, 20), (10, 10), (2, 8), (2, 1), (3, 3), (7, 1), (8, 2), (4, 5)],
    }.items()
    for rows, cols in sizes
]


@pytest.mark.thorough
@pytest.mark.parametrize(("rows", "cols", "r"), SHAPES)
def test_the_dense_inverse_has_the_same_law(sampler, rows, cols, r):
    gamma, n = 0.3, cols + 1
    keys = jax.random.split(jax.random.key(1000 * rows + 10 * cols + r), SAMPLED)
    drawn = sampler(r)(keys, gamma, rows, cols, n, levels_for(gamma, rows, cols, n, r, 1e-12))
    np.testing.assert_array_equal(drawn, drawn.swapaxes(-1, -2))
    truth = statistics(dense(np.random.default_rng(1), DENSE, gamma, rows, cols, n, r))
    for name, sample in statistics(drawn).items():
        wanted = truth[name]
        scale = np.max(np.abs(wanted))
        if np.ptp(wanted) <= 1e-11 * scale + 1e-12:  # not random: a row that does not exist, or two that cancel
            np.testing.assert_allclose(sample, np.mean(wanted), rtol=1e-10, atol=1e-11, err_msg=name)
        else:
            assert stats.ks_2samp(sample, wanted).pvalue > P, name


@pytest.mark.thorough
@pytest.mark.parametrize("rows", [0, 1, 2, 50])
def test_without_columns_only_the_ridge_is_left(sampler, rows):
    assert levels_for(0.3, rows, 0, 1, 2, 1e-12) == 0
    keys = jax.random.split(jax.random.key(0), 16)
    for levels in (0, 3):  # levels beyond the matrix change nothing
        drawn = sampler(2)(keys, 0.3, rows, 0, 1, levels)
        np.testing.assert_allclose(drawn[:, 0], np.broadcast_to(np.eye(2) / 0.3, (16, 2, 2)), rtol=1e-14)
        np.testing.assert_allclose(drawn[:, 1], np.broadcast_to(np.eye(2) / 0.09, (16, 2, 2)), rtol=1e-14)


def test_the_square_is_the_derivative_in_the_ridge(sampler):
    """−dH/dγ at fixed noise, by central differences."""
    keys, step = jax.random.split(jax.random.key(3), 16), 1e-5
    for rows, cols in [(30, 20), (20, 30)]:
        low, middle, high = (sampler(2)(keys, g, rows, cols, cols, 15) for g in (0.5 - step, 0.5, 0.5 + step))
        np.testing.assert_allclose(middle[:, 1], (low[:, 0] - high[:, 0]) / (2 * step), rtol=1e-7, atol=1e-8)


# -- depth -------------------------------------------------------------------------------------------------------------

ZOO = [
    (gamma, ratio, cols)
    for gamma in (1e-3, 0.03, 1.0, 10.0)
    for ratio in (0.1, 0.5, 1.0, 2.0, 10.0)
    for cols in (50.0, 1e3, 1e6, 1e9)
]


def errors(gamma, truncated, full) -> np.ndarray:
    """γ‖ΔH‖ and γ²‖ΔS‖ of every trial."""
    return np.linalg.norm(truncated - full, 2, axis=(-2, -1)) * np.array([gamma, gamma**2])


@pytest.fixture(scope="module")
def zoo(sampler):
    """Errors at the depth for either tolerance, at half of it, and at a few levels, against ten times the greater depth.

    Level k draws from streams of its own, so what differs between two depths is the truncation and nothing else.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(4), 16)
        table = {}
        for gamma, ratio, cols in ZOO:
            rows, n = round(ratio * cols), cols + 1
            depths = {t: levels_for(gamma, rows, cols, n, 2, t) for t in TOLERANCES}
            full = sampler(2)(keys, gamma, rows, cols, n, 10 * max(depths.values()))
            wanted = {*depths.values(), *(max(d // 2, 1) for d in depths.values()), 1, 2, 3, 5, 8, 13}
            table[gamma, ratio, cols] = (
                depths,
                {k: errors(gamma, sampler(2)(keys, gamma, rows, cols, n, k), full) for k in sorted(wanted)},
            )
        return table


ROUNDING = 1e-13
"""The fraction's loss to rounding, in units of its largest value."""


def test_depth_reaches_its_tolerance(zoo):
    for setting, (depths, error) in zoo.items():
        for tolerance, levels in depths.items():
            assert np.max(error[levels]) <= tolerance + ROUNDING, (setting, tolerance)


def test_half_the_depth_does_not(zoo):
    """Nor does much less than the depth said: it is no multiple of what it takes. Small matrices are used up before."""
    checked = 0
    for (gamma, ratio, cols), (depths, error) in zoo.items():
        for tolerance, levels in depths.items():
            if cols >= 1e6 and levels >= 4:
                checked += 1
                assert np.max(error[levels // 2]) > tolerance, (gamma, ratio, cols, tolerance)
    assert checked > 60


def test_bound_bounds(zoo):
    """The bound fails at most where a singular value strays four deviations from its edge, and for these seeds never."""
    for (gamma, ratio, cols), (_, error) in zoo.items():
        rows, n = round(ratio * cols), cols + 1
        for levels, observed in error.items():
            degree = 2 * levels - (rows <= cols)
            bound = _bound(*map(jnp.float64, (gamma, rows, cols, n, degree)))
            assert np.all(np.max(observed, 0) <= np.asarray(bound) + ROUNDING), (gamma, ratio, cols, levels)


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_depth_does_not_know_the_size(gamma, ratio, tolerance):
    depths = [levels_for(gamma, ratio * 10.0**k, 10.0**k, 10.0**k, 2, tolerance) for k in (9, 10, 12, 15)]
    assert max(depths) - min(depths) <= 1
    # And it is worth having: finite, and far below the size.
    assert 1 <= depths[0] <= 2000


def test_depth_grows_with_what_is_asked():
    by_tolerance = [levels_for(0.1, 1e6, 1e6, 1e6, 2, t) for t in (1e-3, 1e-6, 1e-12)]
    by_gamma = [levels_for(g, 1e6, 1e6, 1e6, 2, 1e-12) for g in (10.0, 0.1, 1e-3)]
    assert by_tolerance == sorted(set(by_tolerance)) and by_gamma == sorted(set(by_gamma))


@pytest.mark.parametrize(("rows", "cols", "whole"), [(7, 50, 4), (50, 7, 4), (8, 8, 4), (1, 5, 1), (5, 1, 1)])
def test_depth_stops_where_the_matrix_is_used_up(sampler, rows, cols, whole):
    """A ridge so small that the fraction forgets nothing: every level that exists is taken, and then it is exact."""
    assert levels_for(1e-6, rows, cols, cols, 2, 1e-12) == whole
    keys = jax.random.split(jax.random.key(5), 16)
    at, beyond = (sampler(2)(keys, 1e-6, rows, cols, cols, k) for k in (whole, whole + 9))
    np.testing.assert_allclose(at, beyond, rtol=1e-12)


@pytest.mark.thorough
def test_a_batch_of_sizes_gives_what_each_size_gives():
    """Sizes and ridges along the batch, hence depths too: no trial notices whom it is drawn with."""

    def one(key, gamma, rows):
        cols, n = jnp.float64(40), jnp.float64(41)
        corner = resolvent_corner(key, gamma, rows, cols, n, 2, depth(gamma, rows, cols, n, 2, 1e-12))
        return jnp.stack([to_array(corner.resolvent), to_array(corner.square)])

    keys, gammas, rows = (
        jax.random.split(jax.random.key(6), 3),
        jnp.array([1.0, 0.1, 30.0]),
        jnp.array([30.0, 90.0, 4.0]),
    )
    single = jax.jit(one)
    alone = np.stack([single(*a) for a in zip(keys, gammas, rows, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(keys, gammas, rows), alone, rtol=1e-11)
