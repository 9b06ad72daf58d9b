"""Promises of the encoders beyond the numbers of `transformers` (see test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmtjax.models import DropoutKey, Encoder, SequenceClassifier, encoder
from rmtjax.models import _fast_cpu as functional
from rmtjax.models import classifier as head
from tests.models.helpers import batch, classifier, config_of, filled, logits, refused, relative, weights

RATES = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4}


@nnx.jit
def both(model, ids, mask, types, examples, step):
    """Logits without dropout and with."""
    dropout_key = DropoutKey.of(jax.random.fold_in(jax.random.key(0), step), examples)
    return model(ids, mask, types), model(ids, mask, types, dropout_key=dropout_key)


def test_first_token_alone():
    """One token asks in the last layer; it costs less and says the same, with one layer or three."""
    for layers in (1, 2):
        model = filled(lambda rngs, n=layers: Encoder(config_of(num_hidden_layers=n), rngs=rngs))
        data = batch(model.config)
        graph, own = nnx.split(model)
        programs = [
            jax.jit(lambda weights, *a, g=graph, one=one: nnx.merge(g, weights)(*a, first_only=one))
            .lower(own, *data)
            .compile()
            for one in (False, True)
        ]
        whole, first = (program(own, *data) for program in programs)
        assert whole.shape == (4, 9, 16) and first.shape == (4, 1, 16)
        np.testing.assert_allclose(first, whole[:, :1], atol=2e-6)
        whole, first = (program.cost_analysis()["flops"] for program in programs)
        assert first < 0.9 * whole


@pytest.mark.thorough
def test_padding_changes_nothing():
    """Not the logits, and with dropout not the masks: an example alone, unpadded, is the same as among longer ones."""
    model = classifier("roberta", type_vocab_size=2, **RATES)
    ids, mask, types = batch(model.config)
    numbers = np.array([7, 3, 900, 4])
    whole, dropped = both(model, ids, mask, types, numbers, 0)
    assert np.abs(whole - dropped).max() > 0.05
    alone = ids[1:2, :6], mask[1:2, :6], types[1:2, :6]
    assert mask[1].sum() == 6
    one = both(model, *alone, numbers[1:2], 0)
    np.testing.assert_allclose(one, [whole[1:2], dropped[1:2]], atol=2e-6)
    assert np.abs(both(model, ids, mask, types, numbers, 1)[1] - dropped).max() > 0.05


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_every_dropout_has_its_own_place_and_rate(model_type, monkeypatch):
    """One for the embeddings, three a layer, and the head's one or two; none shares its masks with another."""
    seen = []

    def spy(x, rate, dropout_key, place):
        seen.append((place, rate))
        return x

    for module in (functional, encoder, head):
        monkeypatch.setattr(module, "dropout", spy)
    model = classifier(model_type, **RATES)
    jax.eval_shape(lambda: model(*batch(model.config), dropout_key=DropoutKey.of(jax.random.key(0), jnp.arange(4))))
    layer = [0.3, 0.2, 0.2]  # probabilities, then the ends of both sublayers
    assert [rate for _, rate in seen] == [0.2, *layer, *layer, *[0.4] * (1 if model_type == "bert" else 2)]
    assert len({place for place, _ in seen}) == len(seen)
    assert config_of(hidden_dropout_prob=0.25).head_dropout == 0.25


@pytest.mark.thorough
def test_rematerialised():
    """The same values, gradients and masks, while less is kept."""
    out, programs = [], []
    for remat in (False, True):
        model = classifier(options={"remat": remat}, num_hidden_layers=1, **RATES)
        data, dropout_key = batch(model.config), DropoutKey.of(jax.random.key(0), jnp.arange(4))
        graph, own = nnx.split(model)
        f = jax.value_and_grad(
            lambda weights, g=graph, d=data, n=dropout_key: jnp.sum(nnx.merge(g, weights)(*d, dropout_key=n)[:, 0] ** 2)
        )
        out.append(jax.tree.leaves(jax.jit(f)(own)))
        programs.append(str(jax.make_jaxpr(f)(own)))
    for one, other in zip(*out, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max() + 1e-6)
    assert ["remat" in program or "checkpoint" in program for program in programs] == [False, True]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    """Activations in half precision, weights and logits in float32; off by a few roundings, and not equal."""
    for model_type in ("bert",) if dtype == jnp.float16 else ("bert", "roberta"):
        plain, half = (classifier(model_type, options={"dtype": d}, num_hidden_layers=1) for d in (jnp.float32, dtype))
        data = batch(plain.config)
        wanted, got = logits(plain, *data), logits(half, *data)
        assert got.dtype == jnp.float32 and all(w.dtype == np.float32 for w in weights(half).values())
        assert 0 < relative(got, wanted) < 30 * float(jnp.finfo(dtype).eps)
        states = jax.eval_shape(lambda m=half, d=data: m.backbone(*d))
        assert states.dtype == dtype


def test_paths_are_those_of_the_files():
    """PEFT's patterns select the same layers here as in the original."""
    paths = {".".join(map(str, path)) for path, _ in nnx.iter_modules(classifier("roberta"))}
    assert {"roberta.encoder.layer.1.attention.self.query", "classifier.out_proj"} <= paths
    assert {"roberta.encoder.layer.0.attention.output.LayerNorm", "roberta.embeddings.word_embeddings"} <= paths
    assert classifier().backbone.pooler is not None and classifier("roberta").backbone.pooler is None


def test_refused():
    model = classifier()
    with refused("ids has sequences of 21 tokens", "20"):
        model(np.zeros((1, 21), np.int32))
    with refused("ids has sequences of 19 tokens", "18"):
        classifier("roberta")(np.zeros((1, 19), np.int32))
    with refused("num_labels = 0", "a whole number ≥ 1"):
        SequenceClassifier(config_of(), 0, rngs=nnx.Rngs(0))


def test_new_models_start_like_theirs():
    """Normal weights of `initializer_range`, zero biases, layer norms that do nothing; 5 standard errors, false alarm 6e-7."""
    model = SequenceClassifier(config_of(initializer_range=0.05, vocab_size=500), 2, rngs=nnx.Rngs(0))
    own = weights(model)
    words = own["bert.embeddings.word_embeddings.embedding"]
    assert abs(words.std() / 0.05 - 1) < 5 / np.sqrt(2 * words.size) and abs(words.mean()) < 5 * 0.05 / np.sqrt(
        words.size
    )
    assert all(np.all(w == 0) for name, w in own.items() if name.endswith("bias"))
    assert all(np.all(w == 1) for name, w in own.items() if name.endswith("scale"))
    kernels = [own[f"bert.encoder.layer.{i}.attention.self.query.kernel"] for i in (0, 1)]
    assert not np.array_equal(*kernels) and abs(kernels[0].std() / 0.05 - 1) < 5 / np.sqrt(2 * 256)
