"""The α-updater moves when it should and only then; frames stay orthonormal."""

import doctest
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rmtjax._errors import InputError
from rmtjax.adapters import (
    AdapterParam,
    AlphaParam,
    OrthogonalParam,
    alpha_updater,
    apply_adapters,
    project_spectral_norm,
    stiefel,
)
from rmtjax.adapters import optimizers as optimise
from rmtjax.adapters.layers import adapted_layers
from rmtjax.adapters.methods import FullUpdate, LoRA
from tests.adapters.helpers import with_adapters
from tests.helpers import array
from tests.models.helpers import batch, classifier, filled, refused, relative, train

PARAMS = {"w": array(np.arange(3)), "alpha": array(np.ones(4))}
ADAM = optax.adam(0.1)
OWN = {"w": False, "alpha": True}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gradient(step: int) -> dict:
    return {"w": normal(3, seed=step), "alpha": normal(4, seed=100 + step)}


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def identical(tree, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(leaves(tree), leaves(other), strict=True))


def alone(optimizer, steps) -> list[np.ndarray]:
    """Values of α after each of its moves, by its optimiser alone."""
    alpha, update = PARAMS["alpha"], moving(optimizer)
    state, values = jax.jit(optimizer.init)(alpha), []
    for step in steps:
        alpha, _, state = update(gradient(step)["alpha"], state, alpha)
        values.append(np.asarray(alpha))
    return values


@functools.cache
def moving(tx, **options):
    """A step as one program: (parameters, updates, state) from a gradient, a state and parameters."""

    def step(gradient, state, params):
        updates, state = tx.update(gradient, state, params, **options)
        return optax.apply_updates(params, updates), updates, state

    return jax.jit(step)


# -- α-updater ---------------------------------------------------------------------------------------------------------


def test_example_in_the_docstring():
    (example,) = (t for t in doctest.DocTestFinder().find(alpha_updater, globs={**vars(optimise)}) if t.examples)
    assert len(example.examples) >= 5 and doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("given", [True, False])
def test_steps(every, given):
    """At T, 2T, … a step of α's optimiser, schedule and decay included; in between nothing of it moves, to the bit."""
    inner = optax.adamw(optax.linear_schedule(0.1, 0.0, 4), weight_decay=0.1)
    tx, alpha = alpha_updater(inner, every), PARAMS["alpha"]
    wanted = alone(inner, range(every, 9, every))
    state, moves = jax.jit(tx.init)(alpha), []

    @jax.jit
    def move(g, state, alpha):
        if given:
            updates, state = tx.update(jnp.full(4, jnp.nan), state, alpha, alpha_gradient=lambda: g)
        else:
            updates, state = tx.update(g, state, alpha)
        return optax.apply_updates(alpha, updates), updates, state

    for step in range(1, 9):
        alpha, updates, new = move(gradient(step)["alpha"], state, alpha)
        assert int(new.step) == step
        if step % every:
            assert identical(new.inner_state, state.inner_state) and np.all(np.asarray(updates) == 0)
        else:
            assert not identical(new.inner_state, state.inner_state)
            moves.append(step)
            np.testing.assert_allclose(alpha, wanted[len(moves) - 1], atol=1e-6)
        state = new
    assert moves == list(range(every, 9, every))


def test_gradient_is_computed_on_moves_alone():
    """Counted on the host, within a compiled program that is compiled once and never again."""
    calls, traces = [], []
    tx = alpha_updater(optax.adam(0.1), 4)

    @jax.jit
    def step(alpha, state, fresh):
        def slope():
            traces.append(1)
            jax.debug.callback(lambda: calls.append(1))
            return 2 * (alpha - fresh)

        updates, state = tx.update(jnp.zeros(4), state, alpha, alpha_gradient=slope)
        return optax.apply_updates(alpha, updates), state

    alpha, state = PARAMS["alpha"], tx.init(PARAMS["alpha"])
    counts = []
    for i in range(1, 14):
        alpha, state = step(alpha, state, array(normal(4, seed=i)))
        jax.effects_barrier()
        counts.append(len(calls))
    assert counts == [i // 4 for i in range(1, 14)]
    assert step._cache_size() == 1 and len(traces) == 1


def test_a_chain_inside_meets_the_fresh_gradient():
    """Clipping belongs there: before the updater it never sees what α moves by."""
    tx = alpha_updater(optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0)), 1)
    updates, _ = tx.update(jnp.zeros(4), tx.init(jnp.ones(4)), jnp.ones(4), alpha_gradient=lambda: 100 * jnp.ones(4))
    np.testing.assert_allclose(updates, -5e-4 * np.ones(4), rtol=1e-5)


def composed(kind: str, inner, every: int):
    own = alpha_updater(inner, every)
    if kind == "chain":
        return optax.chain(optax.identity(), own, optax.scale(1.0))
    if kind == "masked":
        return optax.chain(optax.masked(own, OWN), optax.masked(optax.sgd(0.5), {"w": True, "alpha": False}))
    labels = {name: "alpha" if mine else "rest" for name, mine in OWN.items()}
    return optax.partition({"alpha": own, "rest": optax.sgd(0.5)}, labels)


@pytest.mark.parametrize("kind", ["chain", "masked", "partition"])
@pytest.mark.parametrize("whole", [True, False])
def test_composed(kind, whole):
    """In a chain, behind a mask and in a partition, where the gradient may be of everything or of α alone; compiled once."""
    every, inner = 3, ADAM
    tx = composed(kind, inner, every)
    chain = kind == "chain"  # takes α by itself

    @jax.jit
    def step(params, state, ordinary, fresh):
        def slope():
            if chain or whole:
                return fresh
            return fresh | {"w": optax.MaskedNode()}

        updates, state = tx.update(ordinary, state, params, alpha_gradient=slope)
        return optax.apply_updates(params, updates), state

    pick = (lambda tree: tree["alpha"]) if chain else (lambda tree: tree)
    params = pick(PARAMS)
    state = tx.init(params)
    wanted = [PARAMS["alpha"], *alone(inner, [3, 6])]
    w = np.asarray(PARAMS["w"])
    for i in range(1, 9):
        ordinary = gradient(50 + i)
        params, state = step(params, state, pick(ordinary), pick(gradient(i)))
        alpha = params if chain else params["alpha"]
        np.testing.assert_allclose(alpha, wanted[i // every], atol=1e-6)
        if not chain:
            w = w - 0.5 * ordinary["w"]
            np.testing.assert_allclose(params["w"], w, rtol=1e-6)
    assert step._cache_size() == 1


def test_half_precision():
    """The gradient may come in another precision than α is kept in."""
    alpha = jnp.ones(4, jnp.bfloat16)
    tx = alpha_updater(optax.sgd(0.5), 1)
    updates, _ = tx.update(jnp.zeros(4, jnp.bfloat16), tx.init(alpha), alpha, alpha_gradient=lambda: jnp.ones(4))
    assert updates.dtype == jnp.bfloat16 and np.all(np.asarray(updates, float) == -0.5)


INNER = {
    "adamw": optax.adamw(1e-2, weight_decay=0.1), "zero_nans": optax.chain(optax.zero_nans(), optax.adam(1e-2)),
    "schedule-free": optax.contrib.schedule_free_adamw(1e-2), "sgd": optax.sgd(0.1), "momentum": optax.sgd(0.1, momentum=0.9),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "if finite": optax.apply_if_finite(optax.sgd(0.1), 3), "lion": optax.lion(1e-3), "adafactor": optax.adafactor(1e-2),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), "many steps": optax.MultiSteps(optax.adam(0.1), 2),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)), "rmsprop": optax.rmsprop(1e-2),
    "own dtype": optax.adam(1e-2, mu_dtype=jnp.bfloat16), "average": optax.chain(optax.adam(1e-2), optax.ema(0.9)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)), "lookahead": optax.nadamw(1e-2),
    "masked": optax.masked(optax.adam(1e-2), True), "amsgrad": optax.amsgrad(1e-2), "yogi": optax.yogi(1e-2),
    "prodigy": optax.contrib.prodigy(), "adagrad": optax.adagrad(0.1), "polyak": optax.polyak_sgd(),
}  # fmt: skip
PRECISIONS = [
    ("float32", "float32"), ("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"), ("float16", "bfloat16"),
]  # fmt: skip
CASES = [(name, a, g, False) for name in INNER for a, g in PRECISIONS]
CASES += [(name, a, g, True) for name in ("adamw", "momentum", "lion") for a, g in PRECISIONS]


@pytest.mark.first(8)
@pytest.mark.parametrize(("name", "of_alpha", "of_gradient", "given"), CASES)
def test_any_optimiser_and_precision(name, of_alpha, of_gradient, given):
    """Everything that optax accepts works: the moves are its moves, in its types; between them α stands still."""
    inner = optax.with_extra_args_support(INNER[name])
    of_alpha, of_gradient = jnp.dtype(of_alpha), jnp.dtype(of_gradient)
    alpha = {"a": array(np.ones(3), of_alpha), "b": array(2, of_alpha)}
    gradients = [{k: array(np.full(p.shape, 1.0 + i), of_gradient) for k, p in alpha.items()} for i in range(3)]
    more = {"value": array(1)}

    def moves(alpha):
        state, values = inner.init(alpha), []
        step = jax.jit(lambda g, s, p: inner.update(g, s, p, **more))
        for gradient in gradients:
            updates, state = step(gradient, state, alpha)
            alpha = optax.apply_updates(alpha, updates)
            values.append((alpha, state, updates))
        return values

    try:
        wanted = moves(alpha)
    except Exception as error:
        pytest.skip(f"optax itself refuses: {type(error).__name__}")
    if any(np.isnan(np.asarray(x, float)).any() for x in jax.tree.leaves([value for value, _, _ in wanted])):
        pytest.skip("optax itself gives NaN")
    tx = alpha_updater(inner, every=2)

    @jax.jit
    def step(gradient, state, alpha):
        if not given:
            return tx.update(gradient, state, alpha, **more)
        nothing = jax.tree.map(jnp.zeros_like, gradient)
        return tx.update(nothing, state, alpha, alpha_gradient=lambda: gradient, **more)

    state, now = tx.init(alpha), alpha
    for i in range(6):
        updates, state = step(gradients[i // 2], state, now)
        if i % 2 == 0:
            assert all(np.all(np.asarray(u, float) == 0) for u in jax.tree.leaves(updates))
        now = optax.apply_updates(now, updates)
        if i % 2:
            one, other = (now, state.inner_state, updates), wanted[i // 2]
            for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                assert mine.dtype == theirs.dtype
                if not jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
                    mine, theirs = (np.asarray(x).astype(float) for x in (mine, theirs))
                    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "20", None])
def test_every_is_a_count(every):
    with refused(f"every = {every!r}", "whole number ≥ 1"):
        alpha_updater(optax.sgd(0.1), every)


def test_on_a_model():
    """Of an NNX model's state: α moves at the second step, and the rest has its own optimiser."""
    model = with_adapters(classifier(num_hidden_layers=1), rank=2, alpha=True)
    values = []
    for _ in range(2):
        data = [(*batch(model.config), np.array([0, 1, 1, 0]))] * (len(values) + 1)
        fresh = nnx.clone(model)
        train(fresh, alpha_updater(optax.sgd(0.5), 2), data, AlphaParam)
        values.append([np.asarray(layer.alpha[...]) for layer in adapted_layers(fresh).values()])
    assert all(np.all(a == 1) for a in values[0]) and all(np.abs(a - 1).max() > 1e-4 for a in values[1])


# -- orthonormal frames ------------------------------------------------------------------------------------------------


def frame(n: int, r: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(normal(n, r, seed=seed).astype(float))[0]


def nearest(x: np.ndarray) -> np.ndarray:
    """The polar factor by a singular value decomposition in float64."""
    u, _, vh = np.linalg.svd(x.astype(float), full_matrices=False)
    return u @ vh


@pytest.mark.parametrize(("n", "r"), [(7, 1), (9, 2), (40, 8), (80, 64), (5, 5)])
def test_retraction(n, r):
    """For condition numbers to 30, spread evenly or with a single small or large singular value; any scale."""
    for condition in (1.0, 3.0, 30.0):
        for values in (
            np.geomspace(1, 1 / condition, r),
            np.r_[np.ones(r - 1), 1 / condition],
            np.r_[condition, np.ones(r - 1)],
        ):
            for scale in (1.0, 1e-3):
                x = (scale * frame(n, r) * values @ frame(r, r, 1).T).astype(np.float32)
                got = np.asarray(jax.jit(optimise.orthonormal)(x))
                np.testing.assert_allclose(got.T @ got, np.eye(r), atol=5e-6)
                np.testing.assert_allclose(got, nearest(x), atol=1e-5)


@pytest.mark.first(2)
@pytest.mark.parametrize(("n", "r"), [(9, 1), (9, 3), (6, 6)])
def test_step(n, r):
    """Tangent part of the gradient, X skew(XᵀG) + X⊥ X⊥ᵀ G with the complement from a QR decomposition; then the polar factor."""
    x, g = frame(n, r), normal(n, r, seed=2).astype(float)
    rest = np.linalg.qr(x, mode="complete")[0][:, r:]
    along = x.T @ g
    tangent = x @ (along - along.T) / 2 + rest @ rest.T @ g
    tx, seen = optax.sgd(0.3), []
    spy = optax.GradientTransformation(tx.init, lambda u, s, p=None: (seen.append(u), tx.update(u, s, p))[1])
    own = stiefel(spy)
    params = {"x": np.asarray(x, np.float32)}
    run = jax.jit(lambda g, params: (own.update({"x": g}, own.init(params), params)[0], seen[-1]))
    updates, met = run(g.astype(np.float32), params)
    np.testing.assert_allclose(met["x"], tangent, atol=1e-6)
    np.testing.assert_allclose(updates["x"], nearest(x - 0.3 * tangent) - x, atol=2e-6)
    assert n == r or relative(tangent, g) > 0.1


def test_frames_stay_frames():
    """After 100 steps of Adam, decay and all, ‖BᵀB − I‖ < 1e-5, while the frame has gone elsewhere."""
    x = array(frame(20, 6))
    tx = stiefel(optax.adamw(0.05, weight_decay=0.1))

    @jax.jit
    def run(x):
        def step(carry, i):
            x, state = carry
            g = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), x.shape)
            updates, state = tx.update(g, state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, tx.init(x)), jnp.arange(100))[0][0]

    end = np.asarray(run(x), float)
    assert np.linalg.norm(end.T @ end - np.eye(6)) < 1e-5
    assert np.linalg.norm(end - x) > 1


def test_finds_the_top_eigenspace():
    """Minus the trace of XᵀSX is least where X spans the top eigenvectors (Ky Fan)."""
    spectrum = np.r_[3.0, 2.5, np.linspace(1, 0, 8)]
    tx = stiefel(optax.sgd(0.1))

    @jax.jit
    def run(x):
        def step(carry, _):
            x, state = carry
            g = jax.grad(lambda x: -jnp.sum(x * (spectrum[:, None] * x)))(x)
            updates, state = tx.update(g, state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, tx.init(x)), length=100)[0][0]

    x = np.asarray(run(array(frame(10, 2))))
    np.testing.assert_allclose(np.linalg.norm(x[:2]), np.sqrt(2), atol=1e-4)


@pytest.mark.thorough
def test_orthogonal_lora_in_training():
    """After steps of Adam on a model all r singular values of every update are still a/r, and it has learnt something."""
    model = with_adapters(classifier(num_hidden_layers=1), "orthogonal", rank=4, lora_alpha=2.0)
    layers = adapted_layers(model).values()
    before = [np.asarray(layer.kernel()) for layer in layers]
    losses = train(
        model, stiefel(optax.adam(0.05)), [(*batch(model.config), np.array([0, 1, 1, 0]))] * 12, OrthogonalParam
    )
    assert losses[-1] < losses[0] - 0.01
    for layer, old in zip(layers, before, strict=True):
        assert relative(layer.kernel(), old) > 0.05
        values = np.linalg.svd(np.asarray(layer.kernel() - layer.base.kernel[...]), compute_uv=False)
        np.testing.assert_allclose(values[:4], 0.5, atol=1e-5)
        assert values[4] < 1e-6
        for x in (layer.update.A[...], layer.update.B[...]):
            assert np.linalg.norm(x.T @ x - np.eye(4)) < 1e-5


def test_refused_frames():
    for shape in ((3,), (2, 3), (2, 3, 2)):
        with refused(f"shape {list(shape)}", "r ≤ n"):
            stiefel(optax.sgd(0.1)).init({"x": jnp.ones(shape)})
    tx = stiefel(optax.sgd(0.1))
    x = jnp.eye(3)
    with pytest.raises(ValueError, match="params"):
        tx.update(x, tx.init(x))


def test_stiefel_in_a_partition():
    """As fine-tuning uses it: frames by themselves, all else by another optimiser."""
    params = {"x": array(frame(5, 2)), "w": array(np.ones(3))}
    tx = optax.partition({"frame": stiefel(optax.sgd(0.2)), "rest": optax.sgd(0.2)}, {"x": "frame", "w": "rest"})
    state = tx.init(params)
    updates, _ = jax.jit(tx.update)({"x": normal(5, 2), "w": np.ones(3, np.float32)}, state, params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["x"].T @ new["x"], np.eye(2), atol=2e-6)
    np.testing.assert_allclose(new["w"], 0.8)


# --- project_spectral_norm ------------------------------------------------------------------------------------------


def layers(*outputs: int) -> nnx.Sequential:
    """Layers one after the other, the first with 20 inputs."""
    sides = list(itertools.pairwise((20, *outputs)))
    return filled(lambda rngs: nnx.Sequential(*(nnx.Linear(n, m, rngs=rngs) for n, m in sides)))


def steps_of(tree, size: float = 1.0):
    """Steps of normal numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: size * rng.normal(size=x.shape).astype(np.float32), tree)


@pytest.mark.first(1)
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "spectral-additive", "spectral-rotational"])
def test_updates_stay_below_their_limits(method):
    """Steps that are far too long, in a State and in a dict by dotted path: what is added ends at the limit, and no lower."""
    limit = 0.3
    model = layers(12, 16)
    apply_adapters(model, method, rank=3, target_modules=".*")
    paths = list(adapted_layers(model))
    tx = optax.chain(optax.sgd(1.0), project_spectral_norm(model, {paths[0]: limit}))
    params = nnx.state(model, AdapterParam)
    flat = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(params)}
    for tree in (params, flat):
        moved, _, _ = moving(tx)(steps_of(tree), tx.init(tree), tree)
        values = {k: v for k, v in zip(flat, jax.tree.leaves(moved), strict=True)}
        for path, bounded in ((paths[0], True), (paths[1], False)):
            own = nnx.clone(adapted_layers(model)[path].update)
            for name, value in values.items():
                if name.startswith(f"{path}.update."):
                    setattr(own, name.rsplit(".", 1)[1], AdapterParam(value))
            a, b = map(np.asarray, own.factors())
            norm = np.linalg.norm(a @ b, 2)
            assert norm == pytest.approx(limit, rel=2e-3) if bounded else norm > 2 * limit


def test_a_step_within_the_limit_is_left_alone():
    model = layers(12)
    apply_adapters(model, "lora", rank=3, target_modules=".*")
    params = nnx.state(model, AdapterParam)
    steps = steps_of(params, 1e-3)
    tx = project_spectral_norm(model, {next(iter(adapted_layers(model))): 1.0})
    _, kept, _ = moving(tx)(steps, tx.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), kept, steps)


def test_lora_is_projected():
    """Singular values above the limit are cut, the others and all singular vectors stay."""
    model = layers(12)
    apply_adapters(model, "lora", rank=3, target_modules=".*")
    layer = next(iter(adapted_layers(model).values()))
    layer.update.B[...] = array(normal(*layer.update.B.shape))
    a, b = (np.asarray(x, float) for x in layer.update.factors())
    u, s, vt = np.linalg.svd(a @ b, full_matrices=False)
    limit = float((s[0] + s[1]) / 2)
    cut = layer.update.bounded(limit)["B"]
    expected = (u * np.minimum(s, limit)) @ vt
    np.testing.assert_allclose(a @ np.asarray(cut) * layer.update.strength, expected, atol=2e-5)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5, np.inf])
def test_bounds_hold_whatever_the_factors_are(condition):
    """A direction that A all but loses and B makes up for, and one that it has lost; a negative scale, too."""
    random = np.random.default_rng(0)
    ends = np.array([1, 1, 1, 1 / condition])
    a = np.linalg.qr(random.standard_normal((60, 4)))[0] * ends
    b = (
        np.where(ends > 0, 10 / np.maximum(ends, 1e-9), 10)[:, None]
        * np.linalg.qr(random.standard_normal((50, 4)))[0].T
    )
    for scale in (4.0, -8.0):
        update = LoRA(jnp.zeros((60, 50)), 4, scale, jax.random.key(0))
        update.A[...], update.B[...] = array(a), array(b)

        def norm(update=update):
            a, b = (np.asarray(x, float) for x in update.factors())
            return np.linalg.norm(a @ b, 2)

        assert float(update.norm()) == pytest.approx(norm(), rel=1e-5)
        update.B[...] = update.bounded(2.0)["B"]
        assert norm() == pytest.approx(2, rel=1e-5) and float(update.norm()) == pytest.approx(2, rel=1e-5)
    zero = LoRA(jnp.zeros((60, 50)), 4, 0.0, jax.random.key(0))
    np.testing.assert_array_equal(zero.bounded(2.0)["B"], zero.B[...])


@pytest.mark.thorough
def test_a_dense_update_is_scaled_down():
    update = FullUpdate(jnp.zeros((40, 30)))
    update.delta[...] = array(normal(40, 30))
    norm = np.linalg.norm(np.asarray(update.delta[...]), 2)
    assert float(update.norm()) == pytest.approx(norm, rel=5e-3)
    np.testing.assert_allclose(update.bounded(0.5)["delta"], update.delta[...] * 0.5 / norm, rtol=1e-2)
    np.testing.assert_array_equal(update.bounded(100.0)["delta"], update.delta[...])


def test_limits_that_cannot_be_kept_are_refused():
    model = layers(12)
    apply_adapters(model, "orthogonal", rank=2, lora_alpha=4.0, target_modules=".*")
    path = next(iter(adapted_layers(model)))
    with pytest.raises(InputError, match=r"are all a/r = 2, but the limit is 1.5"):
        project_spectral_norm(model, {path: 1.5})
    project_spectral_norm(model, {path: 2.5})
    with pytest.raises(InputError, match=r"limits: nothing is not a layer with an adapter"):
        project_spectral_norm(model, {"nothing": 1.0})
    with pytest.raises(InputError, match=r"= 0: must be above 0"):
        project_spectral_norm(model, {path: 0})
    turned = layers(12)
    apply_adapters(turned, "orthogonal", rank=2, lora_alpha=-4.0, target_modules=".*")
    with pytest.raises(InputError, match=r"are all a/r = 2, but the limit is 1.5"):
        project_spectral_norm(turned, {path: 1.5})


def test_a_limit_of_what_is_not_optimised_is_named():
    """Without B among the parameters nothing could be kept below anything."""
    model = layers(12)
    apply_adapters(model, "lora", rank=2, target_modules=".*")
    path = next(iter(adapted_layers(model)))
    tx = project_spectral_norm(model, {path: 0.1})
    _, weights, _ = nnx.split(model, lambda path, _: path[-1] == "A", ...)
    with pytest.raises(InputError, match=rf"params: {path}.update.B must be among the optimized parameters"):
        jax.eval_shape(tx.update, weights, tx.init(weights), weights)
