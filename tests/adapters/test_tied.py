"""A weight that is held in several places stays one, or is refused by the names of two of them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rmtjax.adapters import (
    TRAINABLE,
    AdapterParam,
    TrainedParam,
    apply_adapters,
    count_parameters,
    load_peft,
    merged_copy,
    save_peft,
)
from rmtjax.adapters.layers import adapted_layers
from tests.adapters.helpers import with_adapters, with_peft
from tests.models.helpers import refused, weights


class Dense(nnx.Module):
    """Two layers with one kernel."""

    names = ("a.kernel", "b.kernel")

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.b, self.rest = (nnx.Linear(4, 4, rngs=rngs) for _ in range(3))
        self.b.kernel = self.a.kernel

    def __call__(self, x):
        return self.rest(self.b(self.a(x)))


class Biases(Dense):
    """Two layers with one bias."""

    names = ("a.bias", "b.bias")

    def __init__(self):
        super().__init__()
        self.b.kernel = nnx.Param(2 * self.a.kernel[...])
        self.b.bias = self.a.bias


class Embedding(nnx.Module):
    """An embedding and a head."""

    names = ("a.embedding", "b.kernel")

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.b, self.rest = nnx.Embed(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.b.kernel = self.a.embedding

    def __call__(self, x):
        return self.rest(self.b(x @ self.a.embedding[...]))


KINDS = [Dense, Biases, Embedding]
X = jax.random.normal(jax.random.key(0), (3, 4))


def at(model, name):
    for step in name.split("."):
        model = getattr(model, step)
    return model


@pytest.mark.parametrize("method", ["lora", "dora", "orthogonal", "spectral-additive"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_end_adapted_and_the_other_trained_is_refused(kind, method, alpha):
    model = kind()
    before = {name: at(model, name) for name in kind.names}
    for options in ({"target_modules": ["b"], "train": ["a"]}, {"target_modules": ["rest", "b"], "train": ""}):
        with refused(*kind.names, "one weight", "frozen"):
            apply_adapters(model, method, rank=2, alpha=alpha, **options)
    with refused(*kind.names, "one weight"):
        apply_adapters(model, method, target_modules=["rest"], rank=2, alpha=True, alpha_modules=["b"], train=["a"])
    assert all(at(model, name) is variable for name, variable in before.items())


@pytest.mark.parametrize("kind", [Dense, Embedding])
def test_full_fine_tuning_beside_alpha_is_refused(kind):
    """There the layer's kernel trains by a Δ of its own, which the other end knows nothing of."""
    for target in (["b"], ["a", "b"] if kind is Dense else ["b"]):
        with refused(*kind.names, "one weight"):
            apply_adapters(kind(), "full", target_modules=target, alpha=True)
    apply_adapters(kind(), "full", target_modules=["rest"], alpha=True)


def test_a_bias_that_full_fine_tuning_trains_stays_one():
    model = with_adapters(Biases(), "full", target_modules=["b"], alpha=True)
    assert model.a.bias is model.b.base.bias and type(model.a.bias) is TrainedParam


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["a", "b"])
def test_what_trains_at_one_end_trains_at_both(kind, end, tmp_path):
    """It counts once, moves at both, and goes into PEFT's file under both names and back as one."""
    model, (one, other) = kind(), kind.names
    apply_adapters(model, target_modules=["rest"], rank=2, train=[end])
    assert at(model, one) is at(model, other) and type(at(model, one)) is TrainedParam
    own = sum(v.size for v in jax.tree.leaves(nnx.state(at(model, end))))
    assert count_parameters(model).trainable == own + 16
    graph, trains, rest = nnx.split(model, TRAINABLE, ...)
    slopes = jax.grad(lambda trains: jnp.sum(nnx.merge(graph, trains, rest)(X) ** 2))(trains)
    nnx.update(model, optax.apply_updates(trains, jax.tree.map(lambda g: -0.01 * g, slopes)))
    assert at(model, one) is at(model, other)
    assert np.abs(at(model, one)[...] - at(kind(), one)[...]).max() > 1e-3
    plain = merged_copy(model)
    assert at(plain, one) is at(plain, other) and type(at(plain, one)) is nnx.Param
    save_peft(model, tmp_path)
    names = {name.replace("kernel", "weight").replace("embedding", "weight") for name in kind.names}
    file = load_file(tmp_path / "adapter_model.safetensors")
    assert {f"base_model.model.{name}" for name in names} <= set(file)
    again = with_peft(kind(), tmp_path)
    assert at(again, one) is at(again, other) and type(at(again, one)) is TrainedParam
    np.testing.assert_allclose(again(X), model(X), atol=1e-6)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_end_adapted_and_the_other_frozen_is_one_weight(kind, alpha):
    """Both use it, and merging gives a kernel of its own to the end that has an adapter."""
    model = with_adapters(kind(), target_modules=["b"], rank=2, alpha=alpha)
    one, other = (at(model, name.replace("b.", "b.base.")) for name in kind.names)
    assert one is other
    np.testing.assert_allclose(model(X), kind()(X), atol=1e-6)
    model.b.update.B[...] = jnp.ones_like(model.b.update.B[...])
    whole = merged_copy(model)
    np.testing.assert_allclose(whole(X), model(X), atol=1e-5)
    assert (at(whole, kind.names[0]) is at(whole, kind.names[1])) == (kind is Biases)
    np.testing.assert_array_equal(at(whole, kind.names[0])[...], at(kind(), kind.names[0])[...])


def test_both_ends_adapted():
    """Each has an update of its own over the one frozen weight."""
    model = with_adapters(Dense(), target_modules=["a", "b"], rank=2, alpha=True)
    assert model.a.base.kernel is model.b.base.kernel
    model.a.update.B[...] = jnp.ones_like(model.a.update.B[...])
    np.testing.assert_allclose(merged_copy(model)(X), model(X), atol=1e-5)


def test_files_that_treat_the_ends_unlike(tmp_path):
    """One end whole and the other adapted, one end alone, or two values for one weight."""
    save_peft(with_adapters(Embedding(), target_modules=["rest"], rank=2, train=["a", "b"]), tmp_path)
    file, path = load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors"
    lead = "base_model.model."
    save_file({n: t for n, t in file.items() if n != f"{lead}b.weight"}, path)
    with refused("a.weight", "b.kernel", "one weight"):
        load_peft(Embedding(), tmp_path)
    save_file(file | {f"{lead}b.weight": file[f"{lead}b.weight"] + 1}, path)
    with refused("a.weight", "b.weight", "differ", "one weight"):
        load_peft(Embedding(), tmp_path)
    adapter = {f"{lead}b.lora_A.weight": np.ones((2, 4), "f4"), f"{lead}b.lora_B.weight": np.ones((4, 2), "f4")}
    save_file(file | adapter, path)
    with refused("one weight"):
        load_peft(Embedding(), tmp_path)
    for model in (with_peft(Separate(), tmp_path),):
        assert set(adapted_layers(model)) == {"b", "rest"} and type(model.a.embedding) is TrainedParam


class Separate(Embedding):
    def __init__(self):
        super().__init__()
        self.b.kernel = nnx.Param(self.a.embedding[...])


def test_separate_weights_are_not_taken_for_one():
    model = with_adapters(Separate(), target_modules=["b"], rank=2, train=["a"])
    assert set(weights(model, TrainedParam)) == {"a.embedding"} and len(weights(model, AdapterParam)) == 2


def test_weights_of_another_type_cannot_be_marked():
    class Special(nnx.Param):
        pass

    model = Separate()
    model.a.embedding = Special(model.a.embedding[...])
    with refused("a.embedding", "Special", "nnx.Param"):
        apply_adapters(model, target_modules=["b"], rank=2, train=["a"])
    with refused("a.embedding", "Special"):
        apply_adapters(model, "full")
    apply_adapters(model, target_modules=["b"], rank=2, train=["rest"])


def test_weights_where_nothing_can_be_set():
    class Tuple(nnx.Module):
        def __init__(self):
            self.fc = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.scales = nnx.data((nnx.Param(jnp.ones(3)),))

    with refused("scales.0", "to be replaced"):
        apply_adapters(Tuple(), "full")


def test_weights_of_the_model_itself_are_no_module_of_peft(tmp_path):
    """PEFT keeps whole modules: it would leave them out."""

    class Shifted(nnx.Module):
        def __init__(self):
            self.fc, self.shift = nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Param(jnp.ones(3))

    model = with_adapters(Shifted(), target_modules=["fc"], rank=2, train="")
    with pytest.warns(UserWarning, match="held by the model itself"):
        save_peft(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] is None
