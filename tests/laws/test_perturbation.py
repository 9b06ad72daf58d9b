"""Perturbation theory: errors of the order they should be, and the range in which it holds against simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigvalsh_tridiagonal
from threadpoolctl import threadpool_limits

from rmtjax import InputError
from rmtjax.laws import perturbation as law
from tests.helpers import compiled, programs_of

STEPS = 10.0 ** np.array([-2, -2.5, -3, -3.5])
programs = programs_of(law, "breakdown_delta", "largest_valid_delta", "overlap", "rotation", "scale")
singular_rotation = compiled(law.singular_rotation, static_argnums=(2, 3))


@compiled
def of_symmetric(base, D):
    """First and second order of eigenvalues, and of eigenvectors."""
    values = law.first_order_eigenvalues(base, D), law.second_order_eigenvalues(base, D)
    return values, (law.first_order_eigenvectors(base, D), law.second_order_eigenvectors(base, D))


@compiled
def of_rectangular(base, D):
    """First and second order of singular values, and first order of singular vectors."""
    values = law.first_order_singular_values(base, D), law.second_order_singular_values(base, D)
    return values, law.first_order_singular_vectors(base, D)


@pytest.fixture(autouse=True)
def one_thread():
    """Many small decompositions: waking LAPACK's threads would take longer than the work."""
    with threadpool_limits(1, user_api="blas"):
        yield


def goe(rng: np.random.Generator, n: int) -> np.ndarray:
    """Off-diagonal variance 1/n, spectrum on [−2, 2]."""
    a = rng.normal(size=(n, n))
    return (a + a.T) / np.sqrt(2 * n)


def well_separated(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An n×m matrix with singular values 1, 2, … and its decomposition."""
    k = min(n, m)
    u, v = (np.linalg.qr(rng.normal(size=(s, k)))[0] for s in (n, m))
    return u, np.arange(k, 0, -1.0), v.T


def slope(errors: list[float]) -> float:
    """The power of the step that errors go with."""
    return np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def aligned(vectors: np.ndarray, to: np.ndarray) -> np.ndarray:
    return vectors * np.sign(np.sum(vectors * to, 0))


# -- orders ------------------------------------------------------------------------------------------------------------


def test_symmetric_errors_are_of_the_next_order():
    """Left over after the zeroth, first and second order: t, t², t³, for values and vectors alike."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    base = np.arange(6.0), q
    W, D = q * base[0] @ q.T, goe(rng, 6)
    values, vectors = of_symmetric(base, D)
    for order in range(3):
        left_values, left_vectors = [], []
        for t in STEPS:
            w, v = np.linalg.eigh(W + t * D)
            series = base[0] + sum(t ** (k + 1) * values[k] for k in range(order))
            left_values.append(np.max(np.abs(w - series)))
            series = q + sum(t ** (k + 1) * vectors[k] for k in range(order))
            left_vectors.append(np.max(np.abs(aligned(v, q) - series)))
        assert abs(slope(left_values) - (order + 1)) < 0.1
        assert abs(slope(left_vectors) - (order + 1)) < 0.1


@pytest.mark.parametrize(("n", "m"), [(4, 4), (6, 4), (3, 7)])
def test_rectangular_errors_are_of_the_next_order(n, m):
    rng = np.random.default_rng(1)
    u, s, vh = base = well_separated(rng, n, m)
    W, D = u * s @ vh, rng.normal(size=(n, m)) / np.sqrt(m)
    values, (left, right) = of_rectangular(base, D)
    for order in range(3):
        errors = []
        for t in STEPS:
            new = np.linalg.svd(W + t * D, compute_uv=False)
            errors.append(np.max(np.abs(new - s - sum(t ** (k + 1) * values[k] for k in range(order)))))
        assert abs(slope(errors) - (order + 1)) < 0.1
    of_left, of_right = [], []
    for t in STEPS:
        x, _, yh = np.linalg.svd(W + t * D, full_matrices=False)
        sign = np.sign(np.sum(x * u, 0))
        of_left.append(np.max(np.abs(x * sign - u - t * left)))
        of_right.append(np.max(np.abs(yh.T * sign - vh.T - t * right)))
    assert abs(slope(of_left) - 2) < 0.1 and abs(slope(of_right) - 2) < 0.1


def test_a_matrix_or_its_decomposition():
    rng = np.random.default_rng(2)
    W, D = goe(rng, 5), goe(rng, 5)
    R, E = rng.normal(size=(2, 4, 6))
    for of, whole, base, update in (
        (of_symmetric, W, np.linalg.eigh(W), D), (of_rectangular, R, np.linalg.svd(R, full_matrices=False), E),
    ):  # fmt: skip
        for one, other in zip(of(whole, update)[0], of(tuple(base), update)[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11)


def test_a_symmetric_matrix_is_a_rectangular_one():
    """Positive definite: singular values are eigenvalues."""
    rng = np.random.default_rng(3)
    q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    values, D = np.arange(5, 0, -1.0), goe(rng, 5)
    (_, singular), vectors = of_rectangular((q, values, q.T), D)
    (_, eigenvalues), (eigenvectors, _) = of_symmetric((values, q), D)
    np.testing.assert_allclose(singular, eigenvalues, rtol=1e-10)
    np.testing.assert_allclose(vectors.left, vectors.right, atol=1e-12)
    np.testing.assert_allclose(vectors.left, eigenvectors, atol=1e-12)


def test_one_eigenvalue_and_one_singular_value():
    (first, second), (_, vectors) = of_symmetric(np.array([[2.0]]), np.array([[0.5]]))
    assert float(first[0]) == 0.5
    assert float(second[0]) == 0.0
    np.testing.assert_array_equal(vectors, [[0.0]])
    # ‖(3, t)‖ = 3 + t²/6 + …
    (_, second), _ = of_rectangular(np.array([[3.0, 0.0]]), np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(second, [1 / 6], rtol=1e-14)


def test_jit_vmap_and_gradient():
    rng = np.random.default_rng(4)
    W, D = goe(rng, 4), np.stack([goe(rng, 4) for _ in range(3)])
    values, vectors = np.linalg.eigh(W)

    def second(d):
        return law.second_order_eigenvalues((values, vectors), d)

    alone = np.stack([second(d) for d in D])
    np.testing.assert_allclose(compiled(jax.vmap(second))(D), alone, rtol=1e-12)
    # d/dt of the second order of tD is 2/t of it.
    _, rate = compiled(lambda t: jax.jvp(lambda t: second(t * D[0]), (t,), (1.0,)))(1.5)
    np.testing.assert_allclose(rate, 2 * 1.5 * alone[0], rtol=1e-12)
    eps = 1e-6
    wanted = (programs.rotation(values + eps * np.arange(4), 0.3) - programs.rotation(values, 0.3)) / eps
    _, rate = compiled(lambda v: jax.jvp(lambda v: law.rotation(v, 0.3), (v,), (np.arange(4.0),)))(values)
    np.testing.assert_allclose(rate, wanted, rtol=1e-4)


# -- the range in which it holds ---------------------------------------------------------------------------------------


def test_rotation_is_the_mean_of_what_it_says():
    """2,000 updates; each mean within 4.5 of its standard errors. 40 comparisons: a false alarm in 3e-4."""
    rng = np.random.default_rng(5)
    values, delta = np.linalg.eigvalsh(goe(rng, 40)), 0.3
    D = np.stack([goe(rng, 40) for _ in range(2000)])
    first = D / (values - values[:, None] + np.eye(40)) * (1 - np.eye(40))
    size = delta**2 * np.sum(first**2, 1)
    z = (size.mean(0) - programs.rotation(values, delta)) / (size.std(0) / np.sqrt(len(D)))
    assert np.max(np.abs(z)) < 4.5


@pytest.mark.first(2)
@pytest.mark.parametrize(("n", "m"), [(20, 30), (30, 20), (20, 20)])
def test_singular_rotation_is_the_mean_of_what_it_says(n, m):
    """1,000 updates, 40 comparisons a case at 4.5 standard errors: a false alarm in 3e-4 each."""
    rng = np.random.default_rng(6)
    base = np.linalg.svd(rng.normal(size=(n, m)) / np.sqrt(m), full_matrices=False)
    D = rng.normal(size=(1000, n, m)) / np.sqrt(m)
    vectors = compiled(jax.vmap(lambda d: law.first_order_singular_vectors(tuple(base), d)))(D)
    for got, wanted in zip(vectors, singular_rotation(base[1], 0.3, n, m), strict=True):
        size = 0.3**2 * np.sum(got**2, 1)
        z = (size.mean(0) - wanted) / (size.std(0) / np.sqrt(len(D)))
        assert np.max(np.abs(z)) < 4.5


def test_breakdown_against_simulation():
    """An eigenvector rotates by a ninth of the limit at a third of `largest_valid_delta`, by the limit at it; at three times by
    about half of what the first order says, which would be 0.9.

    Medians over all eigenvectors in |λ| < 1 of 12 draws at N = 120, each perturbed at its own δ (in 30 groups of like ones);
    they spread by some 10 % from seed to seed (a false alarm is below 1e-3).
    """
    rng = np.random.default_rng(7)
    n = 120
    rotated = {factor: [] for factor in (1 / 3, 1.0, 3.0)}
    for _ in range(12):
        W = goe(rng, n)
        values, vectors = np.linalg.eigh(W)
        below = programs.largest_valid_delta(values)
        inside = np.flatnonzero(np.abs(values) < 1)
        for group in np.array_split(inside[np.argsort(below[inside])], 30):
            for factor, results in rotated.items():
                _, new = np.linalg.eigh(W + factor * np.median(below[group]) * goe(rng, n))
                results.extend(1 - np.sum(new[:, group] * vectors[:, group], 0) ** 2)
    third, at, thrice = (np.median(r) for r in rotated.values())
    # The median of a sum of squares dominated by two of them is about 0.8 of its mean, 0.1.
    assert 0.006 < third < 0.011
    assert 0.06 < at < 0.12
    assert 0.35 < thrice < 0.7


@pytest.mark.thorough
def test_thresholds_scale_as_derived():
    """N^{-1/2} in the bulk and N^{-1/6} at the edge: over a factor 8 in N the exponents come out within 0.02 and 0.1.

    The medians' ratios were seen to be 0.983 ± 0.004 and 0.93 ± 0.03 over twelve seeds, so a false alarm is below 1e-3. In the
    bulk the median is moreover 0.82 of `breakdown_delta`.
    """
    rng = np.random.default_rng(8)

    def spectrum(n):  # the GOE's, from its tridiagonal form
        return eigvalsh_tridiagonal(
            rng.normal(size=n) * np.sqrt(2 / n), np.sqrt(rng.chisquare(np.arange(n - 1, 0, -1)) / n)
        )

    bulk, edge, ratio = [], [], []
    for n, draws in ((40, 1000), (320, 200)):
        values = np.stack([spectrum(n) for _ in range(draws)])
        below = programs.largest_valid_delta(values)
        inside = np.abs(values) < 1
        bulk.append(np.median(below[inside]) * n**0.5)
        edge.append(np.median(below[:, -1]) * n ** (1 / 6))
        ratio.append(np.median(below[inside] / programs.breakdown_delta(values[inside], float(n))))
    assert abs(np.log(bulk[1] / bulk[0])) < 0.02 * np.log(8)
    assert abs(np.log(edge[1] / edge[0])) < 0.1 * np.log(8)
    np.testing.assert_allclose(ratio, 0.82, atol=0.02)


def test_equal_spacing_is_where_breakdown_is_exact():
    """Eigenvalues 1/(Nρ) apart around the middle of the semicircle, ρ(0) = 1/π."""
    n = 801
    values = (np.arange(n) - n // 2) * np.pi / n
    at = programs.largest_valid_delta(values, limit=0.2)[n // 2]
    np.testing.assert_allclose(at, law.breakdown_delta(0.0, float(n), limit=0.2), rtol=2e-3)
    outside, twice, once = programs.breakdown_delta(
        np.array([2.5, 2.0, 1.0]), 100.0, limit=0.1, sigma=np.array([1.0, 2.0, 1.0])
    )
    assert outside == 0.0
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-14)


def test_an_outlier_is_safe():
    """δ² (θ² − 1)^{-1} for an outlier of strength θ: Σ_j 1/(λ − λ_j)² = −N m'(λ)."""
    rng = np.random.default_rng(9)
    n, theta = 600, 2.0
    values = np.linalg.eigvalsh(goe(rng, n) + theta * np.eye(n)[:, :1] @ np.eye(n)[:1])
    np.testing.assert_allclose(float(programs.rotation(values, 0.5)[-1]), 0.25 / (theta**2 - 1), rtol=0.1)


@pytest.mark.thorough
def test_overlap_is_a_cauchy_line():
    """Mean squared overlaps by distance, N = 200, δ = 0.4: each of 16 bins within 5 % of the law, whose range is 30."""
    rng = np.random.default_rng(10)
    n, delta = 200, 0.4
    bins = np.linspace(-0.8, 0.8, 17)
    seen = predicted = np.zeros(16)
    for _ in range(15):
        W = goe(rng, n)
        old, v = np.linalg.eigh(W)
        new, x = np.linalg.eigh(W + delta * goe(rng, n))
        inner = np.abs(new) < 1.5
        overlaps = n * (x.T @ v)[inner] ** 2
        expected = programs.overlap(new[inner][:, None], old, delta)
        distance = new[inner][:, None] - old
        seen = seen + np.histogram(distance, bins, weights=overlaps)[0]
        predicted = predicted + np.histogram(distance, bins, weights=expected)[0]
    assert np.max(predicted) > 10 * np.min(predicted)
    np.testing.assert_allclose(seen, predicted, rtol=0.05)


def test_overlaps_of_one_vector_sum_to_one():
    """∫ ρ(λ) overlap dλ = 1, for W of any size and δ of any size."""
    angle = (np.arange(20_000) + 0.5) / 20_000 * np.pi
    for sigma, delta in ((1.0, 0.3), (2.0, 5.0), (0.7, 0.1)):
        old, mass = 2 * sigma * np.cos(angle), 2 * np.sin(angle) ** 2 / 20_000
        s = float(programs.scale(delta, sigma=sigma))
        new = 2 * s * np.array([-0.9, 0.0, 0.3, 0.99])
        total = programs.overlap(new[:, None], old, delta, sigma=sigma) @ mass
        np.testing.assert_allclose(total, 1, rtol=1e-6)
    # Small δ: the first order.
    np.testing.assert_allclose(programs.overlap(0.5, 0.0, 1e-4), 1e-8 / 0.25, rtol=1e-3)
    assert np.isfinite(programs.overlap(3.0, 0.0, 0.1))


def test_spectrum_as_a_whole_only_stretches():
    """√(1 + δ²) on the edge at δ a hundred times where the bulk's eigenvectors are lost; fluctuations are of order N^{-2/3}."""
    rng = np.random.default_rng(11)
    n, delta = 500, 0.7
    W = goe(rng, n)
    old, v = np.linalg.eigh(W)
    new, x = np.linalg.eigh(W + delta * goe(rng, n))
    assert delta > 10 * np.median(programs.largest_valid_delta(old))
    np.testing.assert_allclose(np.quantile(new, [0.01, 0.25, 0.75, 0.99]) / float(programs.scale(delta, sigma=1.0)),
                               np.quantile(old, [0.01, 0.25, 0.75, 0.99]), atol=0.03)  # fmt: skip
    assert np.median(np.sum(x * v, 0) ** 2) < 0.05


# -- scale and equal values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-140, 1e-9, 1e9, 1e140])
def test_everything_scales(scale):
    """Values of cW and corrections for cΔ are c times theirs, vectors the same; before, rotations were 0 from 10⁹ on."""
    rng = np.random.default_rng(12)
    W, D, R, E = goe(rng, 5), goe(rng, 5), rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    values = np.array([1.0, 2, 4])
    for function, base, update in (
        (law.second_order_eigenvalues, W, D), (law.second_order_singular_values, R, E),
    ):  # fmt: skip
        got = np.asarray(function(scale * base, scale * update))
        np.testing.assert_allclose(got / scale, function(base, update), rtol=1e-10)
    for function, base, update in (
        (law.first_order_eigenvectors, W, D), (law.second_order_eigenvectors, W, D), (law.first_order_singular_vectors, R, E),
    ):  # fmt: skip
        wanted = jax.tree.leaves(function(base, update))
        for one, right in zip(jax.tree.leaves(function(scale * base, scale * update)), wanted, strict=True):
            np.testing.assert_allclose(np.abs(one), np.abs(right), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(law.rotation(scale * values, scale * 0.1), law.rotation(values, 0.1), rtol=1e-12)
    np.testing.assert_allclose(
        np.asarray(law.largest_valid_delta(scale * values)) / scale, law.largest_valid_delta(values), rtol=1e-12
    )


def test_values_that_only_rounding_keeps_apart_are_refused():
    """A matrix with a double value has two of a decomposition, 10⁻¹⁶ apart, and corrections of 10¹⁵ followed from them."""
    rng = np.random.default_rng(13)
    q, p = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (5, 4))
    W = q * np.array([1.0, 1, 2, 3, 4]) @ q.T
    W, R = (W + W.T) / 2, q[:, :4] * np.array([3.0, 2, 2, 1]) @ p
    for function, base in (
        (law.second_order_eigenvalues, W), (law.first_order_eigenvectors, W),
        (law.second_order_singular_values, R), (law.first_order_singular_vectors, R),
    ):  # fmt: skip
        with pytest.raises(InputError, match="values has equal entries up to rounding"):
            function(base, np.ones_like(base))
        with jax.enable_x64(True):
            inside = jax.jit(function)(jnp.asarray(base), jnp.ones_like(base))
        assert all(np.isnan(x).all() for x in jax.tree.leaves(inside))
    # Values that are given are taken for what they are.
    assert np.isfinite(law.second_order_eigenvalues((np.array([1, 1 + 1e-15, 2]), np.eye(3)), D3)).all()


# -- bad input ---------------------------------------------------------------------------------------------------------

I3, D3 = np.diag([1.0, 2.0, 3.0]), np.ones((3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: law.first_order_eigenvalues(np.eye(3), D3), "values has equal entries"),
        (lambda: law.first_order_eigenvalues(I3 + np.triu(D3), D3), "W differs from its transpose by 1"),
        (lambda: law.first_order_eigenvalues(I3, np.triu(D3)), "Delta differs from its transpose by 1"),
        (lambda: law.first_order_eigenvalues(I3 * np.nan, D3), "W has an entry nan"),
        (lambda: law.first_order_eigenvalues(I3, D3 * np.inf), "Delta has an entry inf"),
        (lambda: law.first_order_eigenvalues((np.arange(2.0), np.eye(2)), np.ones((3, 3))), "Delta has shape"),
        (lambda: law.second_order_singular_values(I3, D3[:2]), "Delta has shape"),
        (lambda: law.first_order_singular_values(np.eye(3), D3), "values has equal entries"),
        (lambda: law.first_order_singular_values(np.eye(3)[:1] * 0, D3[:1]), "values has an entry 0"),
        (lambda: law.rotation(np.array([1.0, 1.0]), 0.1), "values has equal entries"),
        (lambda: law.rotation(np.array([]), 0.1), r"values has shape \(0,\)"),
        (lambda: law.largest_valid_delta(np.array([1.0, np.nan])), "values has an entry nan"),
        (lambda: law.largest_valid_delta(np.array([1.0, 2.0]), limit=-1.0), "limit = -1: must be a finite number > 0"),
        (lambda: law.breakdown_delta(1.0, 0.0), "N = 0: must be a finite number > 0"),
        (lambda: law.singular_rotation(np.array([2.0, 1.0]), 0.1, 1, 2), "n = 1: must be a whole number ≥ 2"),
        (lambda: law.singular_rotation(np.array([2.0, 1.0]), 0.1, 3, 4), "values has 2 entries: must have all"),
        (lambda: law.singular_rotation(np.array([2.0, 0.0]), 0.1, 2, 2), "values = 0: must be a finite number > 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_single_values():
    assert float(programs.rotation(np.array([1.0]), 0.3)[0]) == 0.0
    assert float(programs.largest_valid_delta(np.array([1.0]))[0]) == np.inf
    several = jax.eval_shape(law.rotation, np.array([[1.0, 2.0], [1.0, 3.0]]), np.array([0.1, 0.2]))
    assert several.shape == (2, 2) and several.dtype == jnp.float64
