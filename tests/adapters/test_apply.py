"""Adapters on a model: where they go, what trains, what is counted, and how they come off again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rmtjax.adapters import (
    TRAINABLE,
    AdaptedLinear,
    AdapterParam,
    AlphaParam,
    OrthogonalParam,
    TrainedParam,
    apply_adapters,
    count_parameters,
    merge_weights,
    merged_copy,
    unmerge_weights,
)
from rmtjax.adapters.layers import adapted_layers
from rmtjax.adapters.methods import METHODS, FullUpdate
from tests.adapters.helpers import set_to, with_adapters
from tests.helpers import array
from tests.models.helpers import batch, classifier, filled, logits, refused, train, weights

D, LAYERS, RANK = 16, 2, 3
KINDS = [*METHODS, "full", "alpha-lora"]
ATTENTION = r".*attention\.self\.(query|value)"


class Net(nnx.Module):
    """Layers in a list, in a dictionary, one used twice, and weights of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(11)])
        self.again = self.layers[0]
        self.heads = nnx.Dict(a=nnx.Linear(8, 3, rngs=rngs), b=nnx.Linear(8, 3, use_bias=False, rngs=rngs))
        self.shift = nnx.Param(jnp.ones(8))
        self.norm = nnx.BatchNorm(8, rngs=rngs, use_running_average=True)

    def __call__(self, x):
        x = jnp.tanh(self.first(x)) + self.shift[...]
        for layer in self.layers:
            x = x + 0.1 * jnp.tanh(layer(x))
        return self.heads["a"](self.norm(self.again(x))) + self.heads["b"](x)


def move(model, by: float = 0.3, seed: int = 0) -> None:
    """Give everything that trains other values."""
    rng = np.random.default_rng(seed)
    for _, v in nnx.to_flat_state(nnx.state(model, nnx.Any(TRAINABLE, AlphaParam))):
        set_to(v, np.asarray(v[...]) + by * rng.normal(size=v.shape))


def steps(model, kind, count: int = 2) -> None:
    data = (*batch(model.config), np.array([0, 1, 1, 0]))
    train(model, optax.adam(0.05), [data] * count, kind)


# -- what is adapted ---------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize("method", KINDS)
def test_start_is_the_model_itself(method):
    """All but orthogonal LoRA, whose update is there from the start; and another seed starts elsewhere."""
    plain = classifier(num_hidden_layers=1)
    wanted = logits(plain, *batch(plain.config))
    model = with_adapters(classifier(num_hidden_layers=1), method, rank=RANK, train=["classifier"])
    difference = np.abs(logits(model, *batch(model.config)) - wanted).max()
    assert difference > 0.01 if method == "orthogonal" else difference < 5e-6
    if method in ("lora", "dora", "orthogonal"):
        other = with_adapters(classifier(num_hidden_layers=1), method, rank=RANK, seed=1)
        a = [m.bert.encoder.layer[0].attention.self.query.update.A[...] for m in (model, other)]
        assert not np.array_equal(*a)
        layers = adapted_layers(model)
        assert len({float(layer.update.A[0, 0]) for layer in layers.values()}) == len(layers)


@pytest.mark.parametrize(
    ("target", "count"),
    [
        (("query", "value"), 4),
        (["self.key"], 2),
        (["y"], 0),  # an end of the name is none of the path
        (["layer.1.output.dense"], 1),
        (["dense"], 7),
        (r".*\.output\.dense", 4),
        (r"bert\.encoder\.layer\.0\..*", 6),
        (r"encoder\.layer\.0\..*", 0),  # a regular expression is for the whole path
        (["classifier", "pooler.dense"], 2),
    ],
)
def test_patterns(target, count):
    """As PEFT reads `target_modules`."""
    model = classifier()
    if count:
        paths = set(adapted_layers(with_adapters(model, target_modules=target, rank=2)))
        assert len(paths) == count
    else:
        before = jax.tree.structure(nnx.state(model))
        with refused(
            "target",
            "matches no dense layer",
            "self.query (as bert.encoder.layer.0.attention.self.query)",
            "classifier",
        ):
            apply_adapters(model, target_modules=target, rank=2)
        assert jax.tree.structure(nnx.state(model)) == before


@pytest.mark.thorough
def test_foreign_model():
    """Any NNX model: lists longer than ten, dictionaries, and a layer that is used twice stays one."""
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    wanted = np.asarray(logits(filled(Net), x))
    model = with_adapters(filled(Net), target_modules=".*", rank=2, alpha=True)
    assert len(adapted_layers(model)) == 14 and model.again is model.layers[0]
    assert isinstance(model.heads["b"], AdaptedLinear) and isinstance(model.layers[10], AdaptedLinear)
    np.testing.assert_allclose(logits(model, x), wanted, atol=1e-6)
    move(model)
    moved = logits(model, x)
    assert np.abs(moved - wanted).max() > 0.01
    plain = merged_copy(model)
    assert plain.again is plain.layers[0] and type(plain.again) is nnx.Linear
    np.testing.assert_allclose(logits(plain, x), moved, atol=1e-5)
    np.testing.assert_allclose(logits(model, x), moved, atol=0)
    shared = sum(w.size for w in weights(filled(Net)).values())
    per_layer = 2 * (6 + 8) + 11 * 2 * 16 + 2 * 2 * (8 + 3) + 12 * 8 + 2 * 3
    assert count_parameters(model) == (per_layer, shared + per_layer)
    model = with_adapters(filled(Net), target_modules=["layers.10", "heads.a"], rank=2, train=["first", "layers.1"])
    assert set(adapted_layers(model)) == {"layers.10", "heads.a"}
    assert set(weights(model, TrainedParam)) == {"first.kernel", "first.bias", "layers.1.kernel", "layers.1.bias"}
    everything = with_adapters(filled(Net), "full")
    assert set(weights(everything, TrainedParam)) == set(weights(filled(Net)))
    assert count_parameters(everything).trainable == shared and everything.again is everything.layers[0]


def test_tied_weights_stay_tied():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
            self.b.kernel = self.a.kernel

    model = with_adapters(filled(Tied), "full")
    assert model.a.kernel is model.b.kernel and isinstance(model.a.kernel, TrainedParam)
    plain = merged_copy(model)
    assert plain.a.kernel is plain.b.kernel and type(plain.a.kernel) is nnx.Param


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"adapter": "loar"}, ["adapter 'loar'", "did you mean 'lora'", "alpha-lora"]),
        ({"alpha_share": "layer"}, ["alpha_share 'layer'", "attention"]),
        ({"target_modules": "(["}, ["target_modules = '(['", "must be a regular expression"]),
        ({"train": ["head"]}, ["train = ['head']", "matches no module"]),
        ({"train": "("}, ["'('", "must be a regular expression"]),
        ({"alpha": True, "alpha_modules": ["keys"]}, ["alpha_modules = ['keys']", "self.key"]),
        ({"alpha_modules": ["key"]}, ["alpha_modules = ['key']", "alpha"]),
        ({"alpha_share": "self"}, ["alpha_share = 'self'", "without alpha"]),
        ({"rank": 0}, ["rank = 0", "a whole number ≥ 1"]),
        ({"rank": 17}, ["rank = 17", "1 to 16", "bert.encoder.layer.0.attention.self.query"]),
        ({"target_modules": ["classifier"], "rank": 3}, ["rank = 3", "1 to 2", "classifier"]),
        ({"adapter": "spectral-rotational", "rank": 1}, ["rank = 1", "at least 2"]),
        (
            {
                "alpha": True,
                "alpha_modules": r".*layer\.0\.(attention\.output|intermediate|output)\.dense",
                "alpha_share": "attention",
            },
            ["alpha_share = attention", "16 outputs", "24"],
        ),
    ],
)
def test_refused(options, parts):
    """One line, and the model is as it was."""
    model = classifier()
    with refused(*parts):
        apply_adapters(model, **{"rank": 2, **options})
    assert not adapted_layers(model) and {type(v) for _, v in nnx.to_flat_state(nnx.state(model))} == {nnx.Param}


def test_not_twice():
    for first in ({}, {"adapter": "full"}, {"alpha": True}, {"train": ["classifier"]}):
        model = with_adapters(classifier(num_hidden_layers=1), rank=2, **first)
        with refused("model", "already has adapters"):
            apply_adapters(model, "dora", rank=2)
        apply_adapters(merged_copy(model), "dora", rank=2)


def test_what_cannot_be_exchanged():
    class Tuple(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.pair = nnx.data((nnx.Linear(3, 3, rngs=nnx.Rngs(0)),))

    model = Tuple()
    with refused("pair.0", "nnx.List"):
        apply_adapters(model, target_modules=".*", rank=1)
    assert type(model.first) is nnx.Linear
    with refused("model", "to be replaced"):
        apply_adapters(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), target_modules=".*", rank=1)


# -- what trains -------------------------------------------------------------------------------------------------------


def formula(method: str) -> int:
    """Return the number of parameters of an adapter on one square layer."""
    return {
        "lora": 2 * RANK * D, "rslora": 2 * RANK * D, "dora": 2 * RANK * D + D, "orthogonal": 2 * RANK * D,
        "spectral-additive": 2 * RANK * D, "spectral-rotational": RANK * (RANK - 1), "alpha-lora": 2 * RANK * D + D,
    }[method]  # fmt: skip


@pytest.mark.parametrize("method", KINDS)
def test_counts(method):
    """Shapes say it all, so nothing is computed."""

    def counted(*arguments, merge=False, **options):
        def build():
            model = with_adapters(classifier(), *arguments, **options)
            return merged_copy(model) if merge else model

        return count_parameters(nnx.eval_shape(build))

    total = sum(w.size for w in weights(classifier()).values())
    head = 2 * D + 2
    count = counted(method, rank=RANK, train=["classifier"])
    if method == "full":
        assert count == (total, total)
        with_alpha = counted("full", alpha=True)
        own = 2 * LAYERS * D  # of α; W stays where it is, and its Δ trains
        assert with_alpha == (total + own, total + own + 2 * LAYERS * D * D)
    else:
        added = 2 * LAYERS * formula(method)
        assert count == (added + head, total + added)
    assert str(count) == f"{count.trainable:,} trainable of {count.total:,}"
    assert counted(method, rank=RANK, merge=True) == (0, total)


@pytest.mark.first(1)
@pytest.mark.parametrize("method", KINDS)
def test_only_what_is_marked_trains(method):
    """After two steps of Adam on the filter, that has moved, all of it, and nothing else, constants included."""
    model = with_adapters(classifier(num_hidden_layers=1), method, rank=RANK, train=["classifier"])
    before = weights(model, nnx.Variable)
    steps(model, nnx.Any(TRAINABLE, AlphaParam), 2 + (method == "spectral-additive"))
    after = weights(model, nnx.Variable)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    marked = set(weights(model, nnx.Any(TRAINABLE, AlphaParam)))
    assert moved == marked
    if method != "full":
        leaves = {name.split(".")[-1] for name in marked}
        assert leaves <= {"A", "B", "magnitude", "AU", "AV", "QU", "QV", "alpha", "kernel", "bias"}
        assert {name for name in marked if name.endswith(("kernel", "bias"))} == {
            "classifier.kernel",
            "classifier.bias",
        }
    else:
        assert marked == set(before)


def test_filters():
    """By type: adapters, head and α apart; orthogonal frames are adapters too."""
    model = with_adapters(classifier(), "orthogonal", rank=2, alpha=True, train=["classifier"])
    alpha, trainable, head = (set(weights(model, kind)) for kind in (AlphaParam, TRAINABLE, TrainedParam))
    assert len(alpha) == 4 and not alpha & trainable and head == {"classifier.kernel", "classifier.bias"}
    assert trainable - head == set(weights(model, AdapterParam)) == set(weights(model, OrthogonalParam))
    assert not any(
        isinstance(v, OrthogonalParam) for _, v in nnx.to_flat_state(nnx.state(with_adapters(classifier(), rank=2)))
    )


def test_train_patterns():
    """A list of ends or a regular expression; all below what matches, but never the frozen base of an adapter."""

    def trained(pattern, **options):
        return set(weights(with_adapters(classifier("roberta"), rank=2, train=pattern, **options), TrainedParam))

    head = {f"classifier.{n}.{leaf}" for n in ("dense", "out_proj") for leaf in ("kernel", "bias")}
    assert trained(["classifier"]) == trained(r"classifier(\..*)?") == trained("classifier") == head
    assert trained(["LayerNorm"]) == {n for n in weights(classifier("roberta")) if "LayerNorm" in n}
    rest = {n for n in weights(classifier("roberta")) if not n.startswith("classifier")}
    bases = {n for n in rest if n.split(".")[-2] in ("query", "value")}
    assert trained(["roberta"]) == rest - bases
    assert trained(".*") == rest - bases | head


def test_full_with_alpha():
    """The layers that α scales get a Δ beside the frozen W; everything else, their biases too, trains itself."""
    model = with_adapters(classifier(), "full", alpha=True, alpha_modules=["intermediate.dense"])
    layers = adapted_layers(model)
    assert set(layers) == {f"bert.encoder.layer.{i}.intermediate.dense" for i in range(2)}
    assert all(isinstance(layer.update, FullUpdate) for layer in layers.values())
    frozen = set(weights(model)) - set(weights(model, nnx.Any(TRAINABLE, AlphaParam)))
    assert frozen == {f"{path}.base.kernel" for path in layers}
    assert {type(v) for _, v in nnx.to_flat_state(nnx.state(merged_copy(model)))} == {nnx.Param}


# -- α -----------------------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize("method", KINDS)
def test_layers_with_more_axes_than_two(method):
    """Flax's own attention: kernels of shapes (8, 2, 4) and (2, 4, 8) are adapted as the matrices that they are."""
    model = filled(lambda rngs: nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs))
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    plain = np.asarray(logits(model, x))
    apply_adapters(model, method, target_modules=["query", "out"], rank=RANK, alpha=True)
    if method not in ("orthogonal",):  # which begins with an update
        np.testing.assert_allclose(logits(model, x), plain, atol=1e-5)
    move(model)
    layer = adapted_layers(model)["query"]
    kernel = np.asarray(layer.kernel())
    assert kernel.shape == (8, 8) and layer.alpha.shape == (8,)
    bias = np.asarray(layer.base.bias[...]).reshape(-1)
    np.testing.assert_allclose(layer(array(x)), (x @ kernel + bias).reshape(3, 5, 2, 4), atol=1e-4)
    moved = np.asarray(logits(model, x))
    assert np.abs(moved - plain).max() > 0.01
    whole = merged_copy(model)
    assert type(whole.query) is nnx.LinearGeneral and whole.query.kernel.shape == (8, 2, 4)
    np.testing.assert_allclose(logits(whole, x), moved, atol=1e-4)
    merge_weights(model)
    np.testing.assert_allclose(logits(model, x), moved, atol=1e-4)
    np.testing.assert_allclose(logits(whole, x), logits(model, x), atol=1e-4)


def test_what_is_no_matrix_is_refused():
    def stack(_):
        return nnx.vmap(lambda key: nnx.Linear(6, 6, rngs=nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 3))

    for build, says in (
        (stack, "stack of layers: its kernel has shape (3, 6, 6)"),
        (lambda rngs: nnx.LinearGeneral(4, 5, axis=-2, rngs=rngs), "contracts axes other"),
        (lambda rngs: nnx.LinearGeneral(4, 5, batch_axis={0: 2}, rngs=rngs), "batch axes"),
    ):
        with refused("target_modules: here", says):
            apply_adapters(nnx.Dict(here=filled(build)), target_modules=["here"], rank=2)
    with refused("seed = ", "a whole number from -9223372036854775808 to 9223372036854775807"):
        apply_adapters(filled(Net), target_modules=["a"], rank=2, seed=2**70)
    apply_adapters(filled(Net), target_modules=["a"], rank=np.int64(2), lora_alpha=np.float32(4))


def test_alpha_of_wider_target():
    """α may scale layers that have no update, and an updated layer may have no α."""
    model = with_adapters(
        classifier(), target_modules=["query", "key"], rank=2, alpha=True, alpha_modules=["query", "value", "dense"]
    )
    layers = adapted_layers(model)
    assert len(layers) == 2 * 6 + 1
    for path, layer in layers.items():
        end = path.split(".")[-1]
        assert (layer.update is not None) == (end in ("query", "key")) and (layer.alpha is None) == (end == "key"), path
        assert layer.alpha is None or np.all(layer.alpha[...] == 1)


@pytest.mark.first(2)
@pytest.mark.parametrize(("share", "groups"), [("module", 6), ("self", 4), ("attention", 2)])
def test_sharing(share, groups):
    """One α is one variable: it counts once, and its gradient is the sum of the layers'."""
    target = ["query", "value", "attention.output.dense"]
    model = with_adapters(classifier(), target_modules=target, rank=2, alpha=True, alpha_share=share)
    own = [{name: layer.alpha for name, layer in adapted_layers(m).items()} for m in (model, nnx.clone(model))]
    for alphas in own:
        assert len({id(a) for a in alphas.values()}) == groups and len(alphas) == 6
        block = [alphas[f"bert.encoder.layer.0.attention.{n}"] for n in ("self.query", "self.value", "output.dense")]
        assert (block[0] is block[1]) == (share != "module") and (block[0] is block[2]) == (share == "attention")
        assert alphas["bert.encoder.layer.1.attention.self.query"] is not block[0]
    plain = sum(w.size for w in weights(classifier()).values())
    assert count_parameters(model).total == plain + 6 * 2 * 2 * D + groups * D
    assert len(jax.tree.leaves(nnx.state(model, AlphaParam))) == groups
    if share == "attention":
        single = with_adapters(classifier(), target_modules=target, rank=2, alpha=True)
        slopes = nnx.jit(alpha_gradient)
        gradient = {m: weights(slopes(m, *batch(m.config))) for m in (model, single)}
        parts = [g for name, g in gradient[single].items() if ".layer.0." in name]
        (whole,) = (g for name, g in gradient[model].items() if ".layer.0." in name)
        assert len(parts) == 3 and not np.allclose(parts[0], whole, rtol=1e-3)
        np.testing.assert_allclose(whole, sum(parts), atol=1e-5)


def alpha_gradient(model, *data) -> nnx.State:
    graph, alpha, rest = nnx.split(model, AlphaParam, ...)
    return jax.grad(lambda alpha: jnp.sum(nnx.merge(graph, alpha, rest)(*data)[:, 0]))(alpha)


# -- on and off --------------------------------------------------------------------------------------------------------


@pytest.mark.first(2)
@pytest.mark.parametrize("method", KINDS)
def test_merged(method):
    """A plain model with the same answers, and the adapted one untouched."""
    model = with_adapters(
        classifier(num_hidden_layers=1), method, rank=RANK, train=["classifier"], alpha=method != "full"
    )
    move(model, 0.2)
    data = batch(model.config)
    wanted, before = logits(model, *data), weights(model, nnx.Variable)
    plain = merged_copy(model)
    assert not adapted_layers(plain) and {type(v) for _, v in nnx.to_flat_state(nnx.state(plain))} == {nnx.Param}
    assert set(weights(plain)) == set(weights(classifier(num_hidden_layers=1)))
    np.testing.assert_allclose(logits(plain, *data), wanted, atol=1e-5)
    after = weights(model, nnx.Variable)
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_merge_and_unmerge():
    """In place: one kernel each; taking it back gives every weight and every answer to the bit."""
    model = with_adapters(classifier(num_hidden_layers=1), "dora", rank=RANK, alpha=True)
    plain = count_parameters(model)
    move(model)
    data = batch(model.config)
    wanted, before = logits(model, *data), weights(model, nnx.Variable)
    merge_weights(model)
    layers = adapted_layers(model).values()
    assert all(layer.is_merged for layer in layers)
    np.testing.assert_allclose(logits(model, *data), wanted, atol=1e-5)
    # It is the kernel that counts now, whatever the adapter says.
    layer = next(iter(layers))
    held = layer.update.B[...]
    set_to(layer.update.B, np.asarray(held) + 1)
    np.testing.assert_allclose(logits(model, *data), wanted, atol=1e-5)
    layer.update.B[...] = held
    assert count_parameters(model) == plain
    unmerge_weights(model)
    after = weights(model, nnx.Variable)
    assert after.keys() == before.keys() and all(np.array_equal(after[n], v) for n, v in before.items())
    np.testing.assert_array_equal(logits(model, *data), wanted)


def test_merged_layer_alone():
    base, alpha = filled(lambda rngs: nnx.Linear(3, 3, rngs=rngs)), np.array([1.0, 2.0, 3.0], np.float32)
    plain = merged_copy(AdaptedLinear(base, None, AlphaParam(array(alpha))))
    assert type(plain) is nnx.Linear
    np.testing.assert_allclose(plain.kernel[...], np.asarray(base.kernel[...]) * alpha, rtol=1e-6)
