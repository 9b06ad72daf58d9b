"""The compiled step against the same arithmetic written plainly."""

import itertools
import multiprocessing
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rmtjax.adapters import TRAINABLE, AlphaParam, OrthogonalParam, alpha_updater, apply_adapters
from rmtjax.finetune import Settings, Trainer
from rmtjax.finetune.data import Batch, Layout
from rmtjax.finetune.optimizer import optimizer_of
from rmtjax.finetune.run import predict
from rmtjax.finetune.step import Parts, data_mesh, loss_of

from .helpers import adapted, config, new, sequences

LENGTHS = (2, 4, 5, 9, 13, 16)
PIECES = Layout((8, 16), 2, 1, 0)

# An "optimiser" whose state is the gradient it was given and which moves nothing.
RECORD = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, state, params=None: (jax.tree.map(jnp.zeros_like, gradient), gradient),
)


def trainer_of(
    model, layout=PIECES, *, optimizer=RECORD, alpha=None, regression=False, seed=0, dropout=False, devices=1
):
    return Trainer(
        model, optimizer, alpha, loss_of(regression), layout, data_mesh(jax.devices()[:devices]), seed, dropout
    )


def gradient_of(model, data, layout, pieces=None, **options):
    """Loss and gradient of one step, as flat arrays."""
    trainer = trainer_of(model, layout, **options)
    batch = trainer.put(layout.arrange(data, np.arange(len(data)), pieces))
    state, loss = trainer.step(trainer.start, trainer.frozen, batch, None)
    assert state.step == 1 and state.loss == loss
    return float(loss), {name: np.asarray(x) for name, x in state.optimizer.items()}


def plain(model, kind, regression=False):
    """Mean loss and its gradient with respect to the variables of a kind, of one padded batch.

    It is padded to one size for all, so that it is compiled once: with examples again, which count nothing.
    """
    graph, own, rest = nnx.split(model, kind, ...)

    def loss(values, others, ids, mask, types, labels, share):
        given = {**others, **values}
        flat = [
            (path, v.replace(given[".".join(map(str, path))])) for s in (own, rest) for path, v in nnx.to_flat_state(s)
        ]
        logits = nnx.merge(graph, nnx.from_flat_state(flat))(ids, mask, types)
        if regression:
            return jnp.sum(share * (logits[:, 0] - labels) ** 2)
        return -jnp.sum(share * jnp.log(jax.nn.softmax(logits))[jnp.arange(len(labels)), labels])

    both = jax.jit(jax.value_and_grad(loss))

    def of(values, others, data):
        rows, n = np.arange(len(LENGTHS)), max(LENGTHS)
        share = np.float32(rows < len(data)) / np.float32(len(data))
        rows = rows % len(data)
        ids, types = (np.stack([np.pad(xs[k], (0, n - len(xs[k]))) for k in rows]) for xs in (data.ids, data.types))
        mask = np.arange(n)[None] < data.lengths()[rows][:, None]
        return both(values, others, ids, mask.astype(np.int32), types, data.labels[rows], share)

    return of


def weights_of(model, kind=...):
    """Variables of a kind by dotted path."""
    return {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(model, kind))}


def close(actual, wanted, tolerance=3e-6):
    assert actual.keys() == wanted.keys()
    largest = max(float(np.abs(x).max()) for x in wanted.values())
    for name, x in actual.items():
        assert np.abs(np.asarray(x) - np.asarray(wanted[name])).max() < tolerance * largest, name


def apart(actual, wanted):
    """The largest difference, relative to the largest number."""
    largest = max(float(np.abs(x).max()) for x in wanted.values())
    return max(float(np.abs(np.asarray(x) - np.asarray(wanted[name])).max()) for name, x in actual.items()) / largest


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "layout", "pieces", "regression"),
    [
        ("lora", Layout((16,), 8, 1, 0), None, False),  # one piece, two places of it empty
        ("lora", PIECES, None, False),
        ("dora", Layout((8, 16), 4, 1, 0), 4, False),  # two pieces of four are empty
        ("spectral-rotational", Layout((16,), 1, 1, 0), None, True),
        ("full", PIECES, None, True),
    ],
)
def test_gradient_in_pieces_is_that_of_the_mean_loss(method, layout, pieces, regression):
    layers = 2 if method == "full" else 1
    model, data = adapted(method, 1 if regression else 2, num_hidden_layers=layers), sequences(LENGTHS, regression)
    own = weights_of(model, TRAINABLE)
    assert len(own) == (len(weights_of(model)) if method == "full" else 8 if method == "dora" else 6)
    loss, gradient = gradient_of(model, data, layout, pieces, regression=regression)
    value, wanted = plain(model, TRAINABLE, regression)(own, weights_of(model), data)
    assert loss == pytest.approx(float(value), rel=1e-6)
    close(gradient, wanted)
    moving = [
        name for name, x in gradient.items() if np.abs(x).max() > 1e-4 * max(np.abs(y).max() for y in gradient.values())
    ]
    assert set(gradient) - set(moving) <= {
        name for name in gradient if name.endswith("key.bias")
    }  # softmax is blind to it


def test_loss_of_examples():
    logits = np.array([[0.0, 0.0], [np.log(3.0), 0.0]])
    assert jax.jit(loss_of(False))(logits, np.array([0, 1])) == pytest.approx([np.log(2), np.log(4)])
    assert jax.jit(loss_of(True))(np.array([[1.0], [4.0]]), np.array([3.0, 3.5])) == pytest.approx([4.0, 0.25])


@pytest.mark.thorough
def test_dropout_does_not_depend_on_how_a_batch_is_cut():
    data = sequences(LENGTHS)
    (loss, gradient), *others = [
        gradient_of(adapted(), data, layout, dropout=True)
        for layout in (Layout((16,), 6, 1, 0), Layout((5, 8, 16), 1, 1, 0), PIECES)
    ]
    for another, other in others:
        assert another == pytest.approx(loss, rel=1e-6)
        close(other, gradient)
    assert apart(gradient_of(adapted(), data, PIECES)[1], gradient) > 0.03


@pytest.mark.thorough
def test_dropout_is_new_in_each_step():
    trainer = trainer_of(adapted(), dropout=True)
    state, batch, losses = trainer.start, trainer.put(PIECES.arrange(sequences(LENGTHS), np.arange(6))), []
    for _ in range(3):
        state, loss = trainer.step(state, trainer.frozen, batch, None)
        losses.append(float(loss))
    assert min(abs(a - b) for a, b in itertools.combinations(losses, 2)) > 1e-4


# --- α ------------------------------------------------------------------------------------------------------------


def idle(batch):
    return Batch(*map(np.zeros_like, batch))


def run_with(trainer, batches):
    """States and losses after each step, on this side."""
    state, found = trainer.start, []
    trainer.start = jax.tree.map(jnp.copy, state)  # a step gives up what it is given
    for batch, fresh in batches:
        state, loss = trainer.step(state, trainer.frozen, trainer.put(batch), trainer.put(fresh))
        found.append((jax.tree.map(np.array, state), float(loss)))
    return found


def test_adapters_never_see_the_batch_of_alpha():
    data, other = sequences(LENGTHS), sequences(LENGTHS, seed=9)
    model = adapted(alpha=True)
    given = {name: np.array(x) for name, x in weights_of(model).items()}
    trainer = trainer_of(model, optimizer=optax.adam(0.01), alpha=alpha_updater(optax.adam(0.05), 3))
    frozen = {name: np.array(x) for name, x in trainer.frozen.items()}
    own = [PIECES.arrange(data, np.roll(np.arange(6), k)) for k in range(7)]
    one, two = (
        run_with(trainer, [(batch, PIECES.arrange(fresh, np.arange(6))) for batch in own]) for fresh in (data, other)
    )
    start = jax.tree.map(np.array, trainer.start)

    def equal(a, b):
        return jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a, b))

    for step, ((a, loss_a), (b, loss_b)) in enumerate(zip(one, two, strict=True), 1):
        assert equal(a.weights, b.weights) == equal(a.optimizer, b.optimizer) == (loss_a == loss_b) == (step <= 3)
        assert equal(a.alpha, b.alpha) == equal(a.alpha_optimizer, b.alpha_optimizer) == (step < 3)
        before = one[step - 2][0] if step > 1 else start
        assert equal(a.alpha, before.alpha) == (step not in (3, 6))  # α moves at T, 2T, … and nothing of it in between
        assert equal(a.alpha_optimizer.inner_state, before.alpha_optimizer.inner_state) == (step not in (3, 6))
        assert not equal(a.weights, before.weights)
    assert float(one[-1][0].loss) == pytest.approx(sum(loss for _, loss in one), rel=1e-6)
    assert all(x.tobytes() == frozen[name].tobytes() for name, x in jax.tree.map(np.array, trainer.frozen).items())
    assert given.keys() == {*frozen, *start.weights, *start.alpha}
    assert all(
        np.array_equal(x, given[name]) for name, x in weights_of(model).items()
    )  # the caller's own stays as it was
    assert trainer.step._cache_size() == 1


def test_steps_are_algorithm_1():
    """Adapters move on their batch, then α every T steps on a fresh one, at the adapters that have just moved."""
    rate, alpha_rate, every = 0.3, 0.5, 2
    model = adapted(alpha=True)
    trainer = trainer_of(model, optimizer=optax.sgd(rate), alpha=alpha_updater(optax.sgd(alpha_rate), every))
    weights, alpha, rest = weights_of(model, TRAINABLE), weights_of(model, AlphaParam), weights_of(model)
    data = [sequences(LENGTHS[: 6 - k], seed=k) for k in range(5)]  # the batches are ragged
    fresh = {2: sequences(LENGTHS, seed=20), 4: sequences(LENGTHS[::-1], seed=21)}
    shape = PIECES.pieces(6)
    nothing = idle(PIECES.arrange(data[0], np.arange(6)))
    found = run_with(
        trainer,
        [
            (
                PIECES.arrange(batch, np.arange(len(batch)), shape),
                PIECES.arrange(fresh[t], np.arange(6)) if t in fresh else nothing,
            )
            for t, batch in enumerate(data, 1)
        ],
    )
    assert trainer.step._cache_size() == 1
    to_weights, to_alpha = plain(model, TRAINABLE), plain(model, AlphaParam)
    for t, batch in enumerate(data, 1):
        state, loss = found[t - 1]
        value, gradient = to_weights(weights, {**rest, **alpha}, batch)
        assert loss == pytest.approx(float(value), rel=1e-5)
        old, weights = weights, {name: x - rate * gradient[name] for name, x in weights.items()}
        close(state.weights, weights, 1e-5)
        if t in fresh:
            _, gradient = to_alpha(alpha, {**rest, **weights}, fresh[t])
            stale = to_alpha(alpha, {**rest, **old}, fresh[t])[1]
            assert apart(stale, gradient) > 0.01  # or this would not tell one order from the other
            alpha = {name: x - alpha_rate * gradient[name] for name, x in alpha.items()}
        close(state.alpha, alpha, 1e-5)
        assert state.step == t


# --- devices ------------------------------------------------------------------------------------------------------


def _on_devices(path):
    """Two steps, the second on a batch smaller than the devices are many, and predictions: on one device and on four."""
    assert len(jax.devices()) == 4
    data, found = sequences(LENGTHS * 2), {}
    for devices in (1, 4):
        layout = Layout((8, 16), 2, devices, 0)
        alpha = alpha_updater(optax.sgd(0.5), 1)
        trainer = trainer_of(
            adapted(alpha=True), layout, optimizer=optax.sgd(0.3), alpha=alpha, dropout=True, devices=devices
        )
        assert set(trainer.start.step.devices()) == set(jax.devices()[:devices])
        state, losses = trainer.start, []
        for step, which in enumerate((np.arange(11), np.array([3, 7, 5]))):
            batch = trainer.put(layout.arrange(data, which, layout.pieces(12)))
            state, loss = trainer.step(
                state, trainer.frozen, batch, trainer.put(layout.arrange(data, np.arange(step, 12)))
            )
            losses.append(float(loss))
        found |= {f"{devices} {name}": x for name, x in {**state.weights, **state.alpha}.items()}
        found |= {f"{devices} losses": losses, f"{devices} logits": predict(trainer, state, layout, data, batch=5)}
        found[f"{devices} programs"] = trainer.step._cache_size() + trainer.logits._cache_size()
    np.savez(path, **found)


@pytest.mark.thorough
def test_nothing_depends_on_the_number_of_devices(tmp_path, monkeypatch, programs):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(programs))
    process = multiprocessing.get_context("spawn").Process(target=_on_devices, args=(tmp_path / "found.npz",))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    with np.load(tmp_path / "found.npz") as found:
        one, four = ({k[2:]: found[k] for k in found if k[0] == devices} for devices in "14")
    assert one.pop("programs") == four.pop("programs") == 2
    for name in ("losses", "logits"):
        assert four.pop(name) == pytest.approx(one.pop(name), rel=1e-5, abs=1e-5)
    start = weights_of(adapted(alpha=True))
    assert apart(one, {name: start[name] for name in one}) > 0.01
    close(four, one)


# --- predictions and optimisers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [4, 64])
def test_predictions_are_the_models_in_the_order_of_the_data(batch):
    model, data = adapted("dora", alpha=True), sequences((3, 16, 2, 9, 8, 4, 11, 5, 16, 7))
    trainer = trainer_of(model, alpha=alpha_updater(RECORD, 1), dropout=True)
    found = predict(trainer, trainer.start, PIECES, data, batch)
    assert found.shape == (10, 2) and found.dtype == np.float32
    whole = Layout((16,), 10, 1, 0).arrange(data, np.arange(10))
    wanted = nnx.jit(lambda m, *x: m(*x))(model, whole.ids[0], whole.mask[0], whole.types[0])
    assert found[whole.number[0]] == pytest.approx(np.asarray(wanted), rel=1e-4, abs=1e-5)
    assert np.ptp(found, axis=0).min() > 0.1
    assert trainer.logits._cache_size() == 1


def moved(method, gradient, steps=10, **changes):
    """The first steps of a run's own optimiser under a constant gradient: weights before and after each."""
    model = new(config(), 2)
    apply_adapters(model, method, rank=2, train=["classifier"])
    parts, weights, _, _ = Parts.of(model)
    tx = optimizer_of(Settings("mrpc", adapter=method, **changes).checked(), parts, sorted(weights), steps)
    state, found = jax.jit(tx.init)(weights), [weights]
    update = jax.jit(lambda g, s, w: (lambda u: (optax.apply_updates(w, u[0]), u[1]))(tx.update(g, s, w)))
    gradients = jax.tree.map(lambda x: np.full(x.shape, gradient, np.float32), weights)
    for _ in range(steps):
        weights, state = update(gradients, state, weights)
        found.append(weights)
    return parts, [jax.tree.map(np.asarray, x) for x in found]


def test_learning_rate_rises_and_falls():
    _, found = moved("lora", 1.0, learning_rate=0.1, warmup_ratio=0.3)
    taken = [float(b["classifier.bias"][0] - a["classifier.bias"][0]) for a, b in itertools.pairwise(found)]
    # Adam's step under a constant gradient is the rate itself: up over 3 of 10 steps, down over the 7 others.
    wanted = [0, 1 / 3, 2 / 3, *(1 - k / 7 for k in range(7))]
    assert taken == pytest.approx([-0.1 * x for x in wanted], abs=1e-5)
    _, found = moved("lora", 1.0, learning_rate=0.1, warmup_ratio=0.0)
    assert float(found[1]["classifier.bias"][0] - found[0]["classifier.bias"][0]) == pytest.approx(-0.1, abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora", "orthogonal"])
def test_weight_decay_is_for_matrices(method):
    parts, found = moved(method, 0.0, 4, learning_rate=0.5, weight_decay=0.4, warmup_ratio=0.0)
    shrunk = np.prod([1 - 0.5 * 0.4 * (1 - k / 4) for k in range(4)])
    for name, x in found[0].items():
        is_plain_matrix = x.ndim > 1 and not isinstance(parts.template[name], OrthogonalParam)
        assert np.allclose(found[-1][name], (shrunk if is_plain_matrix else 1) * x, rtol=1e-4, atol=1e-5), name
    assert np.abs(found[0]["classifier.kernel"]).max() > 0


def test_gradients_are_clipped_together():
    _, (start, small) = moved("lora", 0.01, 1, warmup_ratio=0.0, learning_rate=0.1)
    # Adam does not see a factor of the gradient but for its ε, so the norm is read from the moments instead.
    model = new(config(), 2)
    apply_adapters(model, "lora", rank=2, train=["classifier"])
    parts, weights, _, _ = Parts.of(model)
    tx = optimizer_of(Settings("mrpc", max_grad_norm=0.5).checked(), parts, sorted(weights), 10)
    step = jax.jit(lambda given: tx.update(given, tx.init(weights), weights)[1])
    for gradient, norm in ((3.0, 0.5), (1e-3, None)):
        state = step(jax.tree.map(lambda x, g=gradient: np.full(x.shape, g, np.float32), weights))
        first = next(x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
        seen = np.sqrt(sum(float(np.sum((np.asarray(x) / 0.1) ** 2)) for x in jax.tree.leaves(first)))
        assert seen == pytest.approx(norm or gradient * np.sqrt(sum(x.size for x in weights.values())), rel=1e-4)
    assert not np.array_equal(start["classifier.bias"], small["classifier.bias"])
