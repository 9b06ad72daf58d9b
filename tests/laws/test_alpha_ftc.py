"""The laws of the α-fine-tuned classifier: against 80-digit arithmetic, against their own definitions, in any precision."""

import subprocess
import sys
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from rmtjax.laws import alpha_ftc as law
from tests.helpers import programs_of

programs = programs_of(
    law, "accuracy", "best_accuracy", "delta", "optimal_alpha", "optimal_mixture", "resolvent_equivalent", "resolvent_forms",
    "ridge_source", "scalars", "tau", "training_margin", "worst_alpha",
)  # fmt: skip
GAMMAS = 10.0 ** np.arange(-8, 9)
ETAS = np.concatenate([10.0 ** np.arange(-6, 7), [0.5, 0.999, 1.0 - 2**-30, 1.001, 2.0]])


def log_uniform(low: float, high: float):
    """Numbers spread evenly over decades."""
    return st.floats(np.log10(low), np.log10(high)).map(lambda e: float(10.0**e))


def exact_delta(gamma: Decimal, eta: Decimal) -> Decimal:
    """The positive root of the quadratic, whichever way it cancels: 80 digits outlast it."""
    half = 1 + gamma - eta
    return 2 * eta / (half + (half * half + 4 * gamma * eta).sqrt())


def exact(gamma, eta, mean_norm, gram, b, gamma_source=1.0, eta_source=1.0, mu=1.0) -> dict[str, float]:
    """THEORY's formulas taken literally in 80 digits, the γ-derivatives by central differences of step 1e-20 γ."""
    with localcontext() as context:
        context.prec = 80
        gamma, eta, m, gram, b, gamma_source, eta_source, mu = map(
            Decimal, map(float, (gamma, eta, mean_norm, gram, b, gamma_source, eta_source, mu))
        )

        def margin(g, e, norm2):
            d = exact_delta(g, e)
            return (norm2 / (1 + g * (1 + d) + norm2) + d) / (1 + d)

        def denominator(g):
            return 1 + g * (1 + exact_delta(g, eta)) + m * m

        def tau(g):
            d = exact_delta(g, eta)
            return (1 + g * (1 + d)) / (1 + d)

        def prime(f, at):
            step = at * Decimal(10) ** -20
            return (f(at + step) - f(at - step)) / (2 * step)

        d = exact_delta(gamma, eta)
        result = {
            "delta": d,
            "tau": tau(gamma),
            "margin": margin(gamma, eta, m * m),
            "m0": m * m / denominator(gamma),
            "m1": gamma * (1 + d) * b / denominator(gamma),
            "v0": -prime(lambda g: margin(g, eta, m * m), gamma),
            "v1": -gamma * prime(lambda g: b / denominator(g), gamma),
            "v2": -(gamma**2) * prime(lambda g: (gram - b * b / denominator(g)) / tau(g), gamma),
            "source_norm2": -prime(lambda g: margin(g, eta_source, mu * mu), gamma_source),
        }
        return {name: float(value) for name, value in result.items()}


def random_settings(count: int, sources: int, seed: int):
    """γ, η, ‖μ_β‖ over several decades, and source vectors whose part along μ_β is anything from all to nothing."""
    rng = np.random.default_rng(seed)
    gamma, eta, mean = 10.0 ** rng.uniform([-3, -2, -1.5], [3, 2, 1.5], (count, 3)).T
    w = rng.normal(size=(count, sources + 1, sources)) * 10.0 ** rng.uniform(-2, 2, (count, 1, sources))
    w[:, 0] *= 10.0 ** rng.uniform(-3, 2, (count, sources))
    return gamma, eta, mean, law.SourceStatistics(np.einsum("cik,cil->ckl", w, w), mean[:, None] * w[:, 0])


def matrices(scalars: law.MarginMoments) -> tuple[np.ndarray, np.ndarray]:
    """The vector m and the matrix M of K sources as NumPy arrays."""
    m0, m1, v0, v1, v2 = map(np.asarray, scalars)
    m = np.concatenate([m0[..., None], m1], -1)
    top = np.concatenate([v0[..., None], v1], -1)
    return m, np.concatenate([top[..., None, :], np.concatenate([v1[..., None], v2], -1)], -2)


# -- δ, τ and Q̄ ------------------------------------------------------------------------------------------------------


def test_delta_and_tau_keep_twelve_digits_everywhere():
    """γ over 16 decades, η over 12: either form of the quadratic's root cancels on half of them."""
    gamma, eta = (a.ravel() for a in np.meshgrid(GAMMAS, ETAS))
    got = np.stack([programs.delta(gamma, eta), programs.tau(gamma, eta)])
    reference = [exact(g, e, 1, 1, 0) for g, e in zip(gamma, eta, strict=True)]
    np.testing.assert_allclose(got, [[r["delta"] for r in reference], [r["tau"] for r in reference]], rtol=1e-12)


@given(gamma=log_uniform(1e-8, 1e8), eta=log_uniform(1e-6, 1e6))
@settings(max_examples=200, deadline=None)
def test_delta_solves_its_quadratic(gamma, eta):
    """The residual over the polynomial's slope is the root's error: at most 1e-12 of the root."""
    root = float(programs.delta(gamma, eta))
    assert root > 0
    with localcontext() as context:
        context.prec = 80
        g, e, d = map(Decimal, (gamma, eta, root))
        residual = g * d * d + (1 + g - e) * d - e
        slope = 2 * g * d + 1 + g - e
        assert abs(residual / slope) <= Decimal("1e-12") * d


def test_equivalent_is_the_inverse_of_its_definition():
    mean = np.array([0.3, -1.2, 0.0, 2.0])
    for gamma, eta in [(1.0, 0.5), (0.01, 3.0), (30.0, 1.0)]:
        d = exact(gamma, eta, 1, 1, 0)["delta"]
        inverse = (np.eye(4) + np.outer(mean, mean)) / (1 + d) + gamma * np.eye(4)
        got = programs.resolvent_equivalent(gamma, eta, mean)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(got) @ inverse, np.eye(4), atol=1e-13)


def test_forms_are_those_of_the_equivalent():
    mean = np.array([0.0, 1.3, 0.0])
    q = programs.resolvent_equivalent(0.2, 1.7, mean)
    forms = programs.resolvent_forms(0.2, 1.7, 1.3)
    np.testing.assert_allclose([forms["along"], forms["across"]], [q[1, 1], q[0, 0]], rtol=1e-13)


def test_delta_is_the_normalised_trace_of_the_equivalent():
    """δ ≃ tr(Q̄)/n: without a mean, ηδ-consistency reads δ = η/τ."""
    gamma, eta = (a.ravel() for a in np.meshgrid(GAMMAS, ETAS))
    np.testing.assert_allclose(programs.delta(gamma, eta), eta / np.asarray(programs.tau(gamma, eta)), rtol=1e-12)


# -- the five scalars --------------------------------------------------------------------------------------------------


def test_scalars_against_eighty_digits():
    """Eight digits of every scalar, from a ridge nearly absent to one that drowns the data."""
    gamma, eta, mean = (a.ravel() for a in np.meshgrid(10.0 ** np.arange(-8, 9, 2), ETAS, [0.03, 1.3, 20.0]))
    gram, cosine = 0.7, 0.4
    b = cosine * np.sqrt(gram) * mean
    got = programs.scalars(gamma, eta, mean, law.SourceStatistics(gram, b))
    reference = [exact(*row) for row in zip(gamma, eta, mean, np.full_like(b, gram), b, strict=True)]
    for name in law.MarginMoments._fields:
        np.testing.assert_allclose(getattr(got, name), [r[name] for r in reference], rtol=1e-8, err_msg=name)


def test_ridge_source_against_eighty_digits():
    gamma, eta, mu = (a.ravel() for a in np.meshgrid(10.0 ** np.arange(-8, 9, 2), ETAS, [0.03, 1.3, 20.0]))
    got = programs.ridge_source(gamma, eta, mu, -0.6)
    reference = [
        exact(1, 1, 1, 1, 0, gamma_source=g, eta_source=e, mu=m)["source_norm2"]
        for g, e, m in zip(gamma, eta, mu, strict=True)
    ]
    np.testing.assert_allclose(got.gram, reference, rtol=1e-8)
    # b = w̃ᵀμ_β with w̃ ≃ μ/D̃: β times what the source itself would call m₀.
    m0 = programs.scalars(gamma, eta, mu, law.SourceStatistics(1.0, 0.0)).m0
    np.testing.assert_allclose(got.alignment, -0.6 * np.asarray(m0), rtol=1e-12)


def test_training_margin_is_the_generating_function_of_the_norm():
    gamma, eta, mean, _ = random_settings(200, 1, seed=1)
    got = programs.training_margin(gamma, eta, mean)
    reference = [exact(g, e, m, 1, 0)["margin"] for g, e, m in zip(gamma, eta, mean, strict=True)]
    np.testing.assert_allclose(got, reference, rtol=1e-12)


def test_a_source_trained_like_the_target_is_the_target():
    """β = 1, μ⊥ = 0, the same γ and η: w̃ and w are two draws of one classifier, so ‖w̃‖² → v₀ and b → m₀."""
    source = programs.ridge_source(0.3, 1.4, 0.9, 1.0)
    target = programs.scalars(0.3, 1.4, 0.9, source)
    np.testing.assert_allclose([source.gram, source.alignment], [target.v0, target.m0], rtol=1e-12)


def test_orthogonal_source_is_one_without_alignment():
    source = law.orthogonal_source(np.array([0.5, 2.0]))
    np.testing.assert_array_equal(source.gram, [0.25, 4.0])
    np.testing.assert_array_equal(source.alignment, [0.0, 0.0])


def test_one_source_is_one_of_several():
    gamma, eta, mean, source = random_settings(500, 1, seed=2)
    many = programs.scalars(gamma, eta, mean, source)
    one = programs.scalars(gamma, eta, mean, law.SourceStatistics(source.gram[:, 0, 0], source.alignment[:, 0]))
    np.testing.assert_allclose(many.m0, one.m0, rtol=1e-14)
    np.testing.assert_allclose(many.v0, one.v0, rtol=1e-14)
    np.testing.assert_allclose(many.m1[:, 0], one.m1, rtol=1e-13)
    np.testing.assert_allclose(many.v1[:, 0], one.v1, rtol=1e-13)
    np.testing.assert_allclose(many.v2[:, 0, 0], one.v2, rtol=1e-11)
    # α* may be a small difference of large numbers: compare where that does not show, in the accuracy.
    np.testing.assert_allclose(programs.best_accuracy(many), programs.best_accuracy(one), rtol=1e-10)
    np.testing.assert_allclose(
        programs.accuracy(many, np.full((500, 1), 0.7)), programs.accuracy(one, np.full(500, 0.7)), rtol=1e-12
    )


def test_a_mixture_of_sources_is_a_source():
    """w_α is linear in the sources: K of them with weights a are the one W̃a with its Gram aᵀGa and alignment bᵀa."""
    gamma, eta, mean, source = random_settings(500, 3, seed=3)
    a = np.array([0.5, -1.0, 2.0])
    mixed = law.SourceStatistics(np.einsum("j,cjk,k->c", a, source.gram, a), source.alignment @ a)
    many, one = programs.scalars(gamma, eta, mean, source), programs.scalars(gamma, eta, mean, mixed)
    mixed_m1, size = np.asarray(many.m1) @ a, np.linalg.norm(many.m1, axis=-1)
    np.testing.assert_allclose(mixed_m1 / size, np.asarray(one.m1) / size, atol=1e-12)
    np.testing.assert_allclose(programs.accuracy(many, a), programs.accuracy(one, 1.0), atol=1e-9)


def test_shapes_broadcast():
    one = shapes(law.scalars, np.ones((3, 1)), 1.0, 1.0, law.SourceStatistics(np.full(4, 2.0), np.full(4, 0.5)))
    assert set(one) == {(3, 4)}
    many = law.scalars(np.ones((3,)), 1.0, 1.0, law.SourceStatistics(np.eye(2), np.zeros(2)))
    assert [x.shape for x in many] == [(3,), (3, 2), (3,), (3, 2), (3, 2, 2)]
    assert shapes(law.optimal_alpha, many) == [(3, 2)]
    assert shapes(law.accuracy, many, np.zeros((5, 3, 2))) == [(5, 3)]


def shapes(function, *arguments) -> list[tuple[int, ...]]:
    return [x.shape for x in jax.tree.leaves(jax.eval_shape(function, *arguments))]


# -- the optimum -------------------------------------------------------------------------------------------------------


def test_optimum_beats_a_grid_of_alphas():
    gamma, eta, mean, source = random_settings(500, 1, seed=4)
    scalars = programs.scalars(gamma, eta, mean, law.SourceStatistics(source.gram[:, 0, 0], source.alignment[:, 0]))
    star, best = np.asarray(programs.optimal_alpha(scalars)), np.asarray(programs.best_accuracy(scalars))
    sweep = np.concatenate([-np.logspace(4, -4, 400), [0.0], np.logspace(-4, 4, 400)])
    scale = np.maximum(np.abs(star), np.sqrt(np.asarray(scalars.v0 / scalars.v2)))
    grid = np.asarray(programs.accuracy(scalars, sweep[:, None] * scale))
    assert np.all(grid <= best + 1e-14)
    # Neighbours of α* on the grid come close, so the grid could have found something better.
    np.testing.assert_allclose(grid.max(0), best, atol=2e-3)
    # And next to α* it is strictly worse: α* is not merely on a plateau. Accuracies of 1 and an α* that silences the
    # target altogether leave no room for that.
    step = 0.1 * scale
    beside = np.maximum(programs.accuracy(scalars, star - step), programs.accuracy(scalars, star + step))
    room = (best < 1 - 1e-9) & (np.abs(star) < 10 * np.sqrt(np.asarray(scalars.v0 / scalars.v2)))
    assert np.sum(room) > 200
    assert np.all(beside[room] < best[room])


@pytest.mark.thorough
def test_optimal_mixture_beats_its_neighbours():
    gamma, eta, mean, source = random_settings(500, 3, seed=5)
    scalars = programs.scalars(gamma, eta, mean, source)
    star, best = np.asarray(programs.optimal_alpha(scalars)), np.asarray(programs.best_accuracy(scalars))
    rng = np.random.default_rng(6)
    sd = np.sqrt(np.asarray(scalars.v0)[:, None] / np.diagonal(np.asarray(scalars.v2), axis1=-2, axis2=-1))
    for size in (1e-2, 1.0, 100.0):
        around = programs.accuracy(scalars, star + size * sd * rng.normal(size=(200, 500, 3)))
        assert np.all(np.asarray(around) <= best + 1e-12)


@pytest.mark.first(1)
@pytest.mark.parametrize("sources", [1, 2, 3])
def test_best_accuracy_is_that_of_the_best_direction(sources):
    """Φ(√(mᵀM⁻¹m)) bounds every α of either sign; α* attains it only because a₀ > 0."""
    scalars = programs.scalars(*random_settings(20_000, sources, seed=7))
    m, matrix = matrices(scalars)
    scale = np.sqrt(np.diagonal(matrix, axis1=-2, axis2=-1))
    direction = np.linalg.solve(matrix / scale[:, :, None] / scale[:, None, :], (m / scale)[..., None])[..., 0]
    assert np.all(direction[:, 0] > 0)
    bound = norm.cdf(np.sqrt(np.sum(direction * m / scale, -1)))
    np.testing.assert_allclose(programs.best_accuracy(scalars), bound, atol=1e-9)
    if sources == 1:
        flat = law.MarginMoments(scalars.m0, scalars.m1[:, 0], scalars.v0, scalars.v1[:, 0], scalars.v2[:, 0, 0])
        np.testing.assert_allclose(programs.best_accuracy(flat), bound, atol=1e-9)


@pytest.mark.parametrize("sources", [1, 3])
def test_closed_form_of_the_optimum(sources):
    """The same α* without passing through the scalars, one source or several; solving with M costs a few digits."""
    gamma, eta, mean, source = random_settings(500, sources, seed=10)
    if sources == 1:
        source = law.SourceStatistics(source.gram[:, 0, 0], source.alignment[:, 0])
    star = np.asarray(programs.optimal_alpha(programs.scalars(gamma, eta, mean, source)))
    np.testing.assert_allclose(
        programs.optimal_mixture(gamma, eta, mean, source), star, rtol=1e-6, atol=1e-9 * np.abs(star).max()
    )


@given(
    gamma=log_uniform(1e-4, 1e4),
    eta=log_uniform(1e-3, 1e3),
    mean=log_uniform(1e-2, 1e2),
    norm_=log_uniform(1e-3, 1e3),
    cosine=st.floats(-1, 1),
)
@settings(max_examples=300, deadline=None)
def test_the_stationary_point_is_never_a_minimum(gamma, eta, mean, norm_, cosine):
    """The guard of Theorem 4.4: m₀v₂ − m₁v₁ > 0."""
    m0, m1, _, v1, v2 = programs.scalars(gamma, eta, mean, law.SourceStatistics(norm_**2, norm_ * cosine * mean))
    assert m0 * v2 - m1 * v1 > 0


def test_worst_alpha_is_a_coin_toss():
    gamma, eta, mean, source = random_settings(500, 1, seed=8)
    scalars = programs.scalars(gamma, eta, mean, law.SourceStatistics(source.gram[:, 0, 0], source.alignment[:, 0]))
    np.testing.assert_allclose(programs.accuracy(scalars, programs.worst_alpha(scalars)), 0.5, atol=1e-12)


def test_an_uninformative_source_is_best_left_alone():
    scalars = law.scalars(np.array([0.1, 1.0, 10.0]), 2.0, 1.0, law.orthogonal_source(1.5))
    np.testing.assert_array_equal(law.optimal_alpha(scalars), 0.0)
    assert np.all(np.isinf(law.worst_alpha(scalars)))
    np.testing.assert_array_equal(law.best_accuracy(scalars), law.accuracy(scalars, 0.0))


def test_optimum_grows_with_the_alignment_at_fixed_mean_norm():
    """The paper's monotony, in the reading that holds."""
    beta = np.linspace(-1, 1, 41)
    rng = np.random.default_rng(9)
    gamma, gamma_source, eta, eta_source = 10.0 ** rng.uniform(-2, 2, (4, 300, 1))
    source = programs.ridge_source(gamma_source, eta_source, 1.0, beta)
    star = np.asarray(programs.optimal_alpha(programs.scalars(gamma, eta, 1.0, source)))
    assert np.all(np.diff(star, axis=1) >= 0)


# -- precision, derivatives, transformations ---------------------------------------------------------------------------

POINT = (0.4, 1.7, 1.1, 0.8, 0.5, 0.6)


def laws(gamma, eta, mean, gram, alignment, alpha) -> list[jax.Array]:
    """Every law of a single source at one point."""
    scalars = law.scalars(gamma, eta, mean, law.SourceStatistics(gram, alignment))
    source = law.ridge_source(gram, alignment, mean, alpha)
    ridge = law.scalars(gamma, eta, mean, source)
    return [
        *scalars,
        *source,
        *ridge,
        law.accuracy(scalars, alpha),
        law.best_accuracy(ridge),
        law.optimal_alpha(scalars),
        law.worst_alpha(scalars),
        law.delta(gamma, eta),
        law.tau(gamma, eta),
        law.training_margin(gamma, eta, mean),
        *law.resolvent_forms(gamma, eta, mean).values(),
        law.orthogonal_source(gamma).gram,
        law.resolvent_equivalent(gamma, eta, mean[None])[0, 0],
    ]


def everything(*point):
    """One number that every law enters with a weight of its own."""
    with jax.enable_x64(True):
        return sum((1 + k / 7) * x for k, x in enumerate(laws(*point)))


@pytest.fixture(scope="module")
def finite_differences() -> np.ndarray:
    """Gradient of `everything` at `POINT` by central differences; its error is of order 1e-10."""
    step = 1e-5
    sides = []
    with jax.enable_x64(True):
        function = jax.jit(everything)
        for k in range(len(POINT)):
            at = [[x + sign * step * (i == k) for i, x in enumerate(POINT)] for sign in (1, -1)]
            sides.append((float(function(*at[0])) - float(function(*at[1]))) / (2 * step))
    return np.array(sides)


def test_gradient_in_double_precision(finite_differences):
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(everything, argnums=tuple(range(6))))(*map(jnp.float64, POINT))
    np.testing.assert_allclose(gradient, finite_differences, rtol=1e-7)


@pytest.mark.thorough
def test_gradient_in_a_single_precision_program(finite_differences):
    """The arguments are float32, and so are the gradients; what lies between is not. Eager, under jit, and under vmap."""
    arguments = tuple(map(jnp.float32, POINT))
    gradient = jax.grad(everything, argnums=tuple(range(6)))
    plain = jax.jit(gradient)(*arguments)
    assert {g.dtype for g in plain} == {jnp.dtype("float32")}
    np.testing.assert_allclose(plain, finite_differences, rtol=3e-6)
    batch = tuple(jnp.stack([a, a, a]) for a in arguments)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(gradient))(*batch), np.repeat(np.stack(plain)[:, None], 3, 1), rtol=1e-6
    )
    eager = jax.grad(law.delta)(arguments[0], arguments[1])
    assert eager.dtype == jnp.float32
    # δ' = −δ(1 + δ)/(2γδ + 1 + γ − η), from the quadratic itself.
    d, gamma, eta = float(law.delta(*arguments[:2])), *map(float, arguments[:2])
    np.testing.assert_allclose(eager, -d * (1 + d) / (2 * gamma * d + 1 + gamma - eta), rtol=1e-6)


def several(gamma, eta, mean, w, alpha):
    """The same for K sources, given their vectors in a basis that starts with μ_β."""
    scalars = law.scalars(gamma, eta, mean, law.SourceStatistics(w.T @ w, mean * w[0]))
    return law.accuracy(scalars, alpha) + law.best_accuracy(scalars) + jnp.sum(law.optimal_alpha(scalars))


def test_gradient_for_several_sources():
    w, alpha = np.array([[0.5, -0.2], [0.3, 0.7], [-0.6, 0.4]]), np.array([0.3, -0.8])
    with jax.enable_x64(True):
        function = jax.jit(several)
        gradient = jax.jit(jax.grad(several, argnums=(0, 1, 2, 3, 4)))(
            0.4, 1.7, 1.1, jnp.asarray(w), jnp.asarray(alpha)
        )
        flat = np.concatenate([np.ravel(g) for g in gradient])
        point = np.concatenate([[0.4, 1.7, 1.1], w.ravel(), alpha])

        def at(x):
            return float(function(x[0], x[1], x[2], x[3:9].reshape(3, 2), x[9:]))

        step = 1e-5 * np.eye(point.size)
        differences = np.array([(at(point + h) - at(point - h)) / 2e-5 for h in step])
    np.testing.assert_allclose(flat, differences, rtol=1e-6, atol=1e-9)


def test_every_law_answers_in_double_precision_to_a_single_precision_program():
    """The value is that of float64 arithmetic: float32's would be off by 1e-7."""
    assert not jax.config.jax_enable_x64
    single = tuple(map(jnp.float32, POINT))
    with jax.enable_x64(True):
        wanted = laws(*(jnp.float64(float(x)) for x in single))
    for function in (laws, jax.jit(laws)):
        got = function(*single)
        assert {x.dtype for x in got} == {jnp.dtype("float64")}
        np.testing.assert_allclose(got, wanted, rtol=1e-13)
    scalars = jax.vmap(law.scalars, in_axes=(0, None, None, None))(
        jnp.ones(3), 1.0, 1.0, law.SourceStatistics(1.0, 0.5)
    )
    assert {x.dtype for x in scalars} == {jnp.dtype("float64")}
    assert {x.shape for x in scalars} == {(3,)}


@pytest.mark.thorough
def test_the_callers_precision_is_left_alone():
    """In a process of its own: neither import nor use flips the global switch."""
    code = """
import jax, jax.numpy as jnp
import rmtjax, rmtjax.laws.alpha_ftc as law, rmtjax.claims.alpha_lora
import rmtjax.ensembles.alpha_ftc.compressed, rmtjax.ensembles.alpha_ftc.dense
import rmtjax.ensembles.entries, rmtjax.linalg.ridge
assert not jax.config.jax_enable_x64
assert law.delta(1.0, 2.0).dtype == "float64"
jax.grad(lambda g: law.best_accuracy(law.scalars(g, 1.0, 1.0, law.SourceStatistics(1.0, 0.5))))(1.0)
assert not jax.config.jax_enable_x64
assert jnp.ones(3).dtype == "float32"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
