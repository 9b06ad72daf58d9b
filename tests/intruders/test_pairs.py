"""A checkpoint before and after, in every form that it may lie on a disk."""

import json
import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from rmtjax.adapters import merged_copy, save_peft
from rmtjax.adapters.layers import adapted_layers
from rmtjax.adapters.methods import DoRA
from rmtjax.adapters.params import AdapterParam, AlphaParam
from rmtjax.checkpoints import read_peft
from rmtjax.intruders import Pairs, Skipped, scan
from rmtjax.models import save_model
from tests.adapters.helpers import with_adapters
from tests.models.helpers import classifier, config_of, refused, torch_classifier

from .helpers import matrix, planted, write, write_adapter, write_shards

LAYER = "encoder.layer.0.attention.self."


def dense(pairs):
    """Every tuned matrix, formed, by name."""
    return {pair.name: np.asarray(pair.tuned.dense()) for pair in pairs}


def assert_close(actual, wanted):
    assert actual.keys() == wanted.keys() and actual
    for name, value in wanted.items():
        np.testing.assert_allclose(actual[name], value, atol=1e-5, rtol=0, err_msg=name)


# -- two checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["file", "folder", "shards"])
@pytest.mark.parametrize("after", ["file", "folder", "shards"])
def test_where_weights_lie(before, after, tmp_path):
    one = {"a.fc.weight": matrix(7, 5, 0), "a.fc.bias": matrix(7, 1)[:, 0], "b.fc.weight": matrix(4, 6, 1)}
    other = {name: value + 1 for name, value in one.items()}

    def put(kind, name, tensors):
        if kind == "shards":
            return write_shards(tmp_path / name, tensors)
        if kind == "file":
            return write(tmp_path / name, tensors, "some.safetensors") / "some.safetensors"
        return write(tmp_path / name, tensors)

    pairs = Pairs(put(before, "base", one), put(after, "tuned", other))
    assert pairs.names == ["a.fc.weight", "b.fc.weight"] and len(pairs) == 2 and pairs.skipped == []
    for pair in pairs:
        assert pair.shape == pairs.shape(pair.name) == one[pair.name].shape and pair.factors is None
        np.testing.assert_array_equal(pair.base, one[pair.name])
        np.testing.assert_array_equal(pair.tuned.dense(), other[pair.name])
        np.testing.assert_allclose(pair.update(), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_precisions_become_float32(dtype, tmp_path):
    one, other = matrix(6, 5).astype(dtype), planted(matrix(6, 5), 3.0).astype(dtype)
    (pair,) = Pairs(write(tmp_path / "b", {"x.fc.weight": one}), write(tmp_path / "t", {"x.fc.weight": other}))
    assert pair.base.dtype == pair.tuned.dense().dtype == np.float32
    np.testing.assert_array_equal(pair.base, one.astype(np.float32))
    np.testing.assert_array_equal(pair.tuned.dense(), other.astype(np.float32))


@pytest.mark.parametrize(("before", "after"), [("bert.", ""), ("", "bert."), ("bert.", "bert.")])
def test_names_with_and_without_what_leads(before, after, tmp_path):
    """Query and key have one shape, so that a mix-up would not stand out by itself."""
    names = [f"{LAYER}{part}.weight" for part in ("key", "query")]
    one = write(tmp_path / "b", {before + name: matrix(6, 6, i) for i, name in enumerate(names)})
    other = {after + name: matrix(6, 6, 10 + i) for i, name in enumerate(names)}
    pairs = Pairs(one, write(tmp_path / "t", dict(reversed(other.items()))))
    assert pairs.names == [before + name for name in names] and not pairs.skipped
    assert_close(dense(pairs), {before + name: other[after + name] for name in names})
    factors = {after + f"{LAYER}{part}": (matrix(2, 6, i), matrix(6, 2, i)) for i, part in enumerate(("key", "query"))}
    found = dense(Pairs(one, write_adapter(tmp_path / "a", factors)))
    wanted = {f"{before}{path.removeprefix(after)}.weight": 2 * b @ a for path, (a, b) in factors.items()}
    assert_close(found, {name: matrix(6, 6, i) + wanted[name] for i, name in enumerate(wanted)})


def test_names_that_could_be_two(tmp_path):
    one = write(tmp_path / "b", {"self.query.weight": matrix(4, 4)})
    other = write(tmp_path / "t", {f"{tower}.self.query.weight": matrix(4, 4) for tower in ("answer", "question")})
    with refused("tuned = ", "self.query.weight could be any of answer.self.query.weight, question.self.query.weight"):
        Pairs(one, other)
    both = {f"{tower}.self.query": (matrix(1, 4), matrix(4, 1)) for tower in ("answer", "question")}
    adapter = write_adapter(tmp_path / "a", {"self.query": both["answer.self.query"]})
    with refused("tuned = ", "self.query.weight could be any of answer.self.query.weight, question.self.query.weight"):
        Pairs(other, adapter)


def test_two_that_could_be_one(tmp_path):
    towers = {f"{tower}.enc.fc.weight": matrix(4, 4) for tower in ("text", "vision")}
    with refused("tuned = ", "enc.fc.weight could be either of text.enc.fc.weight, vision.enc.fc.weight"):
        Pairs(write(tmp_path / "b", towers), write(tmp_path / "t", {"enc.fc.weight": matrix(4, 4)}))
    # Where one has the very name, it is that one.
    found = Pairs(
        write(tmp_path / "c", {"fc.weight": matrix(4, 4), **towers}), write(tmp_path / "u", {"fc.weight": matrix(4, 4)})
    )
    assert found.names == ["fc.weight"] and len(found.skipped) == 2


# -- what is left out --------------------------------------------------------------------------------------------------


EMBEDDINGS = (
    "bert.embeddings.word_embeddings.weight", "transformer.wte.weight", "wpe.weight", "model.embed_tokens.weight",
    "decoder.embed_tokens.weight", "shared.weight", "lm_head.weight", "cls.predictions.decoder.weight",
)  # fmt: skip
LAYERS = (
    "electra.embeddings_project.weight",
    "encoder.embedding_hidden_mapping_in.weight",
    "time_embedding.linear_1.weight",
    "model.decoder.layers.0.fc1.weight",
    "decoder.block.0.layer.0.SelfAttention.q.weight",
    "encoder.mlp.shared_expert.up_proj.weight",
)


def test_embeddings_are_taken_only_by_name(tmp_path):
    tensors = {name: matrix(5, 4, i) for i, name in enumerate((*EMBEDDINGS, *LAYERS))}
    base, tuned = write(tmp_path / "b", tensors), write(tmp_path / "t", tensors)
    pairs = Pairs(base, tuned)
    assert set(pairs.names) == set(LAYERS)
    assert {skip.name for skip in pairs.skipped} == set(EMBEDDINGS)
    assert all(skip.reason.startswith("an embedding") for skip in pairs.skipped)
    assert Pairs(base, tuned, "wte").names == ["transformer.wte.weight"]
    assert set(Pairs(base, tuned, "decoder|fc").names) == {n for n in tensors if "decoder" in n}


def test_what_cannot_be_compared_is_named(tmp_path):
    good, zero, spoiled = matrix(12, 12), np.zeros((12, 12), np.float32), matrix(12, 12)
    spoiled[3, 4] = np.nan
    endless = np.where(np.isnan(spoiled), np.inf, spoiled)
    base = {
        "good.weight": good, "norm.weight": good[0], "b.weight": good, "shape.weight": good, "nan.weight": spoiled,
        "inf.weight": good, "zero.weight": zero, "gone.weight": good, "whole.weight": np.arange(144).reshape(12, 12),
        "cast.weight": good, "small.weight": matrix(12, 9),
    }  # fmt: skip
    tuned = {
        "good.weight": planted(good, 30.0), "norm.weight": good[0], "t.weight": good, "shape.weight": matrix(12, 11),
        "nan.weight": good, "inf.weight": endless, "zero.weight": good, "gone.weight": zero,
        "whole.weight": np.arange(144).reshape(12, 12), "cast.weight": np.ones((12, 12), np.int8),
        "small.weight": matrix(12, 9),
    }  # fmt: skip
    found = scan(write(tmp_path / "b", base), write(tmp_path / "t", tuned))
    assert [layer.name for layer in found.layers] == ["good.weight"]
    assert {skip.name: skip.reason for skip in found.skipped} == {
        "b.weight": "only in the base",
        "t.weight": "only in the tuned model",
        "shape.weight": "shapes differ: [12, 12] and [12, 11]",
        "nan.weight": "NaN or infinite in the base",
        "inf.weight": "NaN or infinite in the tuned model",
        "zero.weight": "all zero in the base but not after tuning, so every vector is new",
        "gone.weight": "all zero in the tuned model",
        "whole.weight": "of integers (I64), which are not weights",
        "cast.weight": "of integers (I8), which are not weights (in the tuned model)",
        "small.weight": "smaller than top_k = 10",
    }


def test_what_an_adapter_holds_besides_is_named(tmp_path):
    """Updates of an embedding, a head that trained whole, and what else lies in an adapter's file."""
    base = write(tmp_path / "b", {"x.fc.weight": matrix(6, 5), "x.embed.weight": matrix(9, 5)})
    adapter = write_adapter(tmp_path / "a", {"x.fc": (matrix(2, 5), matrix(6, 2))})
    tensors = load_file(adapter / "adapter_model.safetensors") | {
        "base_model.model.x.embed.lora_embedding_A": matrix(2, 9),
        "base_model.model.x.embed.lora_embedding_B": matrix(5, 2),
        "base_model.model.head.weight": matrix(3, 5),
        "base_model.model.head.bias": matrix(3, 1)[:, 0],
        "base_model.model.x.other.base_layer.weight": matrix(3, 5),
        "base_model.model.x.tokens.token_adapter.trainable_tokens_delta": matrix(2, 5),
    }
    pairs = Pairs(base, write(adapter, tensors, "adapter_model.safetensors"))
    assert pairs.names == ["x.fc.weight"]
    assert set(pairs.skipped) == {
        Skipped("x.embed.weight", "an embedding (select it with --layers)"),
        Skipped("head.weight", "trained whole, beside the adapter, and no matrix of the base"),
        Skipped("x.other.base_layer.weight", "the base's own, kept with the adapter"),
        Skipped("x.tokens.token_adapter.trainable_tokens_delta", "rows of an embedding, trained beside the adapter"),
    }


def test_an_embedding_beside_dora(tmp_path):
    """PEFT gives the embedding a magnitude, but no lora_A."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, vocab_size=30
    )
    base = transformers.BertModel(config)
    base.save_pretrained(tmp_path / "base")
    model = random_adapter(base, peft, target_modules=["query", "word_embeddings"], use_dora=True)
    model.save_pretrained(tmp_path / "adapter")
    pairs = Pairs(tmp_path / "base", tmp_path / "adapter")
    assert pairs.names == [f"{LAYER}query.weight"]
    assert pairs.skipped == [Skipped("embeddings.word_embeddings", "an embedding with DoRA, which is not supported")]


def test_modules_that_the_file_of_the_base_leaves_out_are_named(tmp_path):
    """A tied head, a pooler, experts in one tensor: the other layers are compared; and it is said, in case it is the base."""
    weights = {"l.0.fc.weight": matrix(6, 5), "l.0.experts": np.ones((2, 6, 5), np.float32)}
    update = matrix(2, 5), matrix(6, 2)
    adapter = write_adapter(tmp_path / "a", {"l.0.fc": update, "lm_head": update, "l.0.experts": update})
    pairs = Pairs(write(tmp_path / "b", weights), adapter)
    assert pairs.names == ["l.0.fc.weight"]
    assert set(pairs.skipped) == {Skipped(name, "no matrix of the base") for name in ("lm_head", "l.0.experts")}
    assert pairs.remarks == ["the adapter updates l.0.experts, lm_head, which are not matrices of the base"]


# -- adapters ----------------------------------------------------------------------------------------------------------


def random_adapter(model, peft, seed=3, **options):
    """A PEFT model whose adapters have left their start."""
    import torch

    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "init_lora_weights": False, **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "magnitude" in name:
                    p.mul_(1 + 0.2 * torch.rand(p.shape))
    return model.eval()


def changed_by_merging(model):
    """Weights before and after `merge_and_unload`, of the layers that an adapter updates."""
    from peft.tuners.lora import LoraLayer

    layers = {
        name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, LoraLayer)
    }
    before = {f"{name}.weight": m.get_base_layer().weight.detach().numpy().copy() for name, m in layers.items()}
    after = model.merge_and_unload().state_dict()
    return before, {name: after[name].numpy() for name in before}


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_adapters_are_what_peft_merges(kind, tmp_path):
    peft = pytest.importorskip("peft")
    base = torch_classifier(config_of(num_hidden_layers=1), seed=2)
    base.save_pretrained(tmp_path / "base")
    model = random_adapter(
        base, peft, task_type="SEQ_CLS", use_rslora=kind == "rslora", use_dora=kind == "dora",
        target_modules=["query", "value", "intermediate.dense"], rank_pattern={"value": 2}, alpha_pattern={"query": 7},
    )  # fmt: skip
    model.save_pretrained(tmp_path / "adapter")
    before, after = changed_by_merging(model)
    pairs = Pairs(tmp_path / "base", tmp_path / "adapter")
    assert pairs.names.pop(pairs.names.index("classifier.weight")) and pairs.skipped == [] and len(pairs) == 3
    assert_close({pair.name: pair.base for pair in pairs}, before)
    assert_close(dense(pairs), after)
    assert_close({pair.name: pair.update() for pair in pairs}, {name: after[name] - before[name] for name in after})
    assert all((pair.factors is None) == (kind == "dora") for pair in pairs)
    assert min(np.abs(after[name] - before[name]).max() for name in after) > 0.1


@pytest.mark.first(2)
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "orthogonal"])
def test_alpha_is_what_merging_makes_of_it(method, tmp_path):
    """Layers with an update and α, with an update alone and with α alone."""
    model = with_adapters(
        classifier(num_hidden_layers=1), method, target_modules=["query", "value"], rank=3, lora_alpha=5.0, alpha=True,
        alpha_modules=["value", "key"],
    )  # fmt: skip
    save_model(classifier(num_hidden_layers=1), tmp_path / "base")
    rng = np.random.default_rng(5)
    for layer in adapted_layers(model).values():
        if layer.alpha is not None:
            layer.alpha = AlphaParam(jnp.asarray(rng.uniform(-1, 2, layer.alpha.shape), jnp.float32))
        if layer.update is not None and method != "orthogonal":
            layer.update.B = AdapterParam(jnp.asarray(rng.normal(size=layer.update.B.shape), jnp.float32))
        if isinstance(layer.update, DoRA):
            layer.update.magnitude = AdapterParam(layer.update.magnitude[...] * 1.3)
    wanted = {f"{path}.weight": np.asarray(layer.kernel()).T for path, layer in adapted_layers(model).items()}
    assert {name.split(".")[-2] for name in wanted} == {"query", "key", "value"}
    save_peft(model, tmp_path / "adapter", base=tmp_path / "base")
    pairs = Pairs(tmp_path / "base", tmp_path / "adapter")
    assert_close(dense(pairs), wanted)
    plain = {pair.name.split(".")[-2] for pair in pairs if pair.factors is not None}
    assert plain == (set() if method == "dora" else {"query"})
    # Merged, it is a checkpoint like any other.
    save_model(merged_copy(model), tmp_path / "whole")
    whole = dense(Pairs(tmp_path / "base", tmp_path / "whole", "query|key|value"))
    assert_close(whole, wanted)
    # α is not taken twice where the base has it, wherever the two lie; another α is refused.
    save_peft(model, tmp_path / "both", base=tmp_path / "base", save_base=save_model)
    shutil.copytree(tmp_path / "both", tmp_path / "copy")
    shutil.move(tmp_path / "copy/base", tmp_path / "scaled")
    for folder in (tmp_path / "both", tmp_path / "copy"):
        assert_close(dense(Pairs(tmp_path / "scaled", folder)), {name: wanted[name] for name in wanted})
        assert_close(dense(Pairs(tmp_path / "base", folder)), wanted)
    for layer in adapted_layers(model).values():
        if layer.alpha is not None:
            layer.alpha = AlphaParam(layer.alpha[...] + 1)
    save_peft(model, tmp_path / "other", base=tmp_path / "base")
    with refused(f"base = {tmp_path / 'scaled'}", "has been scaled by a different α than that of tuned"):
        Pairs(tmp_path / "scaled", tmp_path / "other")


@pytest.mark.parametrize("inner", ["adapter", "model"])
def test_the_folder_of_a_run(inner, tmp_path):
    base = write(tmp_path / "b", {"x.fc.weight": matrix(6, 5)})
    a, b = matrix(2, 5), matrix(6, 2)
    if inner == "adapter":
        write_adapter(tmp_path / "run/adapter", {"x.fc": (a, b)})
    else:
        write(tmp_path / "run/model", {"x.fc.weight": matrix(6, 5) + 2 * b @ a})
    with refused("tuned = ", "holds neither model.safetensors nor"):  # any folder, so far
        Pairs(base, tmp_path / "run")
    (tmp_path / "run/run.json").write_text("{}")
    pairs = Pairs(base, tmp_path / "run")
    assert (pairs.adapter is not None) == (inner == "adapter")
    assert_close(dense(pairs), {"x.fc.weight": matrix(6, 5) + 2 * b @ a})


# -- GPT-2's transposed weights ----------------------------------------------------------------------------------------


def gpt2(folder):
    transformers = pytest.importorskip("transformers")
    import torch

    config = transformers.GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_gpt2_is_turned(tmp_path):
    model = gpt2(tmp_path / "base")
    import torch

    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.1 * (i + 1))
    model.save_pretrained(tmp_path / "tuned")
    pairs = Pairs(tmp_path / "base", tmp_path / "tuned")
    wanted = {f"transformer.h.0.{name}": model.transformer.h[0].get_submodule(name) for name in
              ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}  # fmt: skip
    assert_close(dense(pairs), {f"{name}.weight": layer.weight.detach().numpy().T for name, layer in wanted.items()})
    assert pairs.shape("transformer.h.0.attn.c_attn.weight") == (36, 12)  # outputs first
    assert {skip.name for skip in pairs.skipped} >= {"transformer.wte.weight", "transformer.wpe.weight"}
    # The embeddings are no Conv1D: by name they are taken as they are.
    (embedding,) = Pairs(tmp_path / "base", tmp_path / "tuned", "wpe")
    np.testing.assert_array_equal(embedding.tuned.dense(), model.transformer.wpe.weight.detach().numpy())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_of_turned_weights(kind, tmp_path):
    """`c_proj` of the attention is square: nothing but the values tells whether it was turned."""
    peft = pytest.importorskip("peft")
    model = random_adapter(
        gpt2(tmp_path / "base"), peft, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=kind == "dora"
    )
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["fan_in_fan_out"]
    _, after = changed_by_merging(model)
    assert_close(dense(Pairs(tmp_path / "base", tmp_path / "adapter")), {name: w.T for name, w in after.items()})


def test_transposed_weights_are_known_without_a_config(tmp_path):
    """By the adapter's word, or by the length of biases; a square weight does not tell by itself."""
    model = gpt2(tmp_path / "base")
    wanted = model.transformer.h[0].attn.c_proj.weight.detach().numpy().T
    (tmp_path / "base/config.json").unlink()
    pairs = Pairs(tmp_path / "base", tmp_path / "base")
    assert pairs.shape("transformer.h.0.mlp.c_fc.weight") == (48, 12)
    np.testing.assert_array_equal(pairs.read("transformer.h.0.attn.c_proj.weight").base, wanted)
    weights = {"h.0.attn.c_proj.weight": matrix(12, 12, 3), "h.0.mlp.fc.weight": matrix(20, 12)}
    layers = {name.removesuffix(".weight"): (matrix(2, 12), matrix(len(w), 2)) for name, w in weights.items()}
    for said in (True, False):
        adapter = write_adapter(tmp_path / f"a{said}", layers, fan_in_fan_out=said)
        pairs = Pairs(write(tmp_path / "plain", weights), adapter)
        assert [pairs.turned(name) for name in pairs.names] == [said, False]


def composite(folder, kind, part=None):
    """GPT-2 by another name, or as a part of something."""
    model = gpt2(folder)
    config = {"model_type": kind} | ({} if part is None else {part: {"model_type": "gpt2"}})
    (folder / "config.json").write_text(json.dumps(config))
    return {
        f"{name}.weight": layer.weight.detach().numpy().T
        for name, layer in model.named_modules()
        if type(layer).__name__ == "Conv1D"
    }


@pytest.mark.parametrize("kind", ["vision-encoder-decoder", "another"])
@pytest.mark.parametrize("adapted", [False, True])
def test_gpt2_within_another_model(kind, adapted, tmp_path):
    """The config of the whole does not name the layers' kind at its top; biases, or updates, tell."""
    base = tmp_path / "base"
    layers = composite(base, kind, "decoder" if kind != "another" else None)
    tuned = base
    if adapted:
        factors = {n.removesuffix(".weight"): (0 * matrix(2, w.shape[1]), matrix(len(w), 2)) for n, w in layers.items()}
        tuned = write_adapter(tmp_path / "a", factors, fan_in_fan_out=True)
    pairs = Pairs(base, tuned)
    assert {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_proj.weight"} <= layers.keys()
    assert_close(dense(pairs), layers)


@pytest.mark.parametrize("kind", ["gpt_neo", "gpt2", None])
def test_layers_with_gpt2s_names_that_are_not_transposed(kind, tmp_path):
    """GPT-Neo's `c_fc` and `c_proj` are as anywhere else, which their biases say."""
    weights = {"h.0.mlp.c_fc.weight": matrix(48, 12), "h.0.mlp.c_fc.bias": matrix(48, 1)[:, 0],
               "h.0.attn.c_proj.weight": matrix(12, 12)}  # fmt: skip
    base = write(tmp_path / "b", weights, config=None if kind is None else {"model_type": kind})
    pairs = Pairs(base, base)
    assert not any(map(pairs.turned, pairs.names)) and len(pairs) == 2


def test_square_layers_beside_gpt2s_are_not_transposed(tmp_path):
    """The word of an adapter goes for its transposed layers only; others are told apart where their neighbours are."""
    weights = {"e.0.query.weight": matrix(12, 12), "e.0.up.weight": matrix(20, 12), "e.0.up.bias": matrix(20, 1)[:, 0],
               "d.0.c_attn.weight": matrix(12, 36), "d.0.c_proj.weight": matrix(12, 12)}  # fmt: skip
    layers = {"e.0.query": (matrix(2, 12), matrix(12, 2)), "d.0.c_attn": (matrix(2, 12), matrix(36, 2)),
              "d.0.c_proj": (matrix(2, 12), matrix(12, 2))}  # fmt: skip
    pairs = Pairs(write(tmp_path / "b", weights), write_adapter(tmp_path / "a", layers, fan_in_fan_out=True))
    assert {name: pairs.turned(name) for name in pairs.names} == {
        "d.0.c_attn.weight": True, "d.0.c_proj.weight": True, "e.0.query.weight": False
    }  # fmt: skip


# -- what cannot be used -----------------------------------------------------------------------------------------------


WEIGHTS = {"x.fc.weight": matrix(12, 10), "x.fc.bias": matrix(12, 1)[:, 0], "l.0.fc.weight": matrix(12, 10)}
FACTORS = {"x.fc": (matrix(2, 10), matrix(12, 2))}


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", WEIGHTS)


@pytest.fixture
def adapter(tmp_path):
    return write_adapter(tmp_path / "adapter", FACTORS)


@pytest.mark.parametrize("argument", ["base", "tuned"])
def test_files_that_are_none(argument, base, tmp_path):
    def refuses(path, *says):
        with refused(f"{argument} = ", *says):
            Pairs(*((path, base) if argument == "base" else (base, path)))

    whole, cut = save(WEIGHTS), tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    refuses(cut, f"{cut}: is truncated or not a safetensors file (616 of 1,232 bytes)")
    refuses(write(tmp_path / "m", WEIGHTS) / "model.safetensors/below", "is not a folder")
    for size in (0, 7, 40):
        (tmp_path / "m/model.safetensors").write_bytes(whole[:size])
        refuses(tmp_path / "m", "model.safetensors is truncated or not a safetensors file")
    for name in ("pytorch_model.bin", "weights.pt", "x.ckpt", "x.PTH"):
        (tmp_path / name).write_bytes(pickle.dumps(WEIGHTS))
        refuses(tmp_path / name, f"{name}: is a pickle, which runs code")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/pytorch_model.bin").write_bytes(pickle.dumps(WEIGHTS))
    refuses(tmp_path / "old", "holds pytorch_model.bin but no model.safetensors; a pickle runs code")
    (tmp_path / "renamed.safetensors").write_bytes(pickle.dumps(WEIGHTS))
    refuses(tmp_path / "renamed.safetensors", "renamed.safetensors: is truncated or not a safetensors file")
    (tmp_path / "text.md").write_text("# Model")
    refuses(tmp_path / "text.md", "text.md: is truncated or not a safetensors file")
    refuses(tmp_path / "no/such/model.safetensors", "is not a folder")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "holds neither model.safetensors nor model.safetensors.index.json")
    shards = write_shards(tmp_path / "shards", WEIGHTS)
    (shards / "model-00002-of-00002.safetensors").unlink()
    refuses(shards, "model-00002-of-00002.safetensors is missing")


def test_a_pickle_is_not_opened(base, tmp_path):
    """It would leave a file."""

    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    for name in ("adapter_model.bin", "pytorch_model.bin"):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_bytes(pickle.dumps(Trap()))
    with refused("tuned = ", "pytorch_model.bin"):
        Pairs(base, tmp_path / "p")
    (tmp_path / "p/adapter_config.json").write_text('{"peft_type": "LORA"}')
    with refused("tuned = ", "holds adapter_model.bin but no adapter_model.safetensors"):
        Pairs(base, tmp_path / "p")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (
            {"x.other": FACTORS["x.fc"]},
            "updates x.other, which the base does not have; is it an adapter for another base?",
        ),
        (
            {"l.1.fc": FACTORS["x.fc"], "l.0.fc": FACTORS["x.fc"]},
            "updates l.1.fc, which the base does not have (it has x.fc.weight, for example); is it an adapter for another base?",
        ),
        (
            {"x.fc": (matrix(2, 9), matrix(12, 2))},
            "x.fc: BA has shape [12, 9], the weight has [12, 10]; is it an adapter",
        ),
        ({"x.fc": (matrix(2, 12), matrix(10, 2))}, "x.fc: BA has shape [10, 12], the weight has [12, 10]"),
        ({"x.fc": (matrix(2, 10), matrix(12, 3))}, "x.fc: A and B have shapes [2, 10] and [12, 3]"),
        (
            {"x.fc": (np.full((2, 10), np.nan, np.float32), matrix(12, 2))},
            "has no weight matrix in common with the base, {base}; x.fc is NaN or infinite in the adapter",
        ),
        ({}, "holds no LoRA weights"),
    ],
)
def test_adapters_for_something_else(layers, says, base, tmp_path):
    with refused("tuned = ", says.replace("{base}", str(base))):
        list(Pairs(base, write_adapter(tmp_path / "a", layers)))


def test_layers_of_an_adapter_that_cannot_be_read_are_named(tmp_path):
    """A convolution's factors have four dimensions; biases do not touch the matrices."""
    conv = np.ones((2, 4, 3, 3), np.float32), np.ones((4, 2, 1, 1), np.float32)
    nan = np.full((2, 10), np.nan, np.float32)
    weights = {
        "x.fc.weight": matrix(12, 10),
        "x.nan.weight": matrix(12, 10),
        "x.conv.weight": np.ones((4, 4, 3, 3), "f"),
    }
    base = write(tmp_path / "b", weights)
    adapter = write_adapter(tmp_path / "a", {**FACTORS, "x.nan": (nan, FACTORS["x.fc"][1]), "x.conv": conv}, bias="all")
    pairs = Pairs(base, adapter)
    assert pairs.names == ["x.fc.weight"]
    assert {skip.name: skip.reason for skip in pairs.skipped} == {
        "x.nan": "NaN or infinite in the adapter", "x.conv": "of 4 dimensions in the adapter"
    }  # fmt: skip
    with refused("adapter = ", "bias = 'all'"):  # a model would have to take these
        read_peft(adapter)


def test_names_of_one_part(tmp_path):
    base = write(tmp_path / "b", {"fc.weight": matrix(12, 10)})
    adapter = write_adapter(tmp_path / "a", {"net.fc": FACTORS["x.fc"]})
    assert Pairs(base, adapter).names == Pairs(base, write(tmp_path / "t", {"net.fc.weight": matrix(12, 10)})).names


def test_tensors_of_more_dimensions_are_named(tmp_path):
    weights = {"x.fc.weight": matrix(12, 10), "conv.weight": np.ones((3, 4, 5), np.float32)}
    pairs = Pairs(write(tmp_path / "b", weights), write(tmp_path / "t", weights))
    assert pairs.skipped == [("conv.weight", "of 3 dimensions")]


def test_adapters_of_the_hub(base, adapter, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: asked.extend(allow_patterns) or str(adapter)
    )
    assert Pairs(base, "someone/adapter").adapter.folder == adapter
    assert {"adapter_config.json", "alpha.safetensors", "adapter_model*.safetensors*"} <= set(asked)


def test_vectors_of_another_length(base, tmp_path):
    short = np.ones(10, np.float32)
    for name, adapter in {
        "alpha": write_adapter(tmp_path / "a", FACTORS, {"x.fc": short}),
        "magnitude": write_adapter(tmp_path / "m", {"x.fc": (*FACTORS["x.fc"], short)}, use_dora=True),
    }.items():
        with refused("tuned = ", f"x.fc: {name} has shape [10]; must be [12]"):
            list(Pairs(base, adapter))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "adapter_config.json cannot be read"),
        ('{"peft_type": "IA3"}', "peft_type = 'IA3' is not supported; must be LORA"),
        ('{"peft_type": "LORA", "init_lora_weights": "pissa"}', "also changes the base"),
        ('{"peft_type": "LORA", "alpha_pattern": {"a{99999999999}": 1}}', "must be a regular expression"),
        ("[" * 100_000, "adapter_config.json cannot be read"),
    ],
)
def test_adapters_of_other_kinds(config, says, base, adapter):
    (adapter / "adapter_config.json").write_text(config)
    with refused("tuned = ", says):
        Pairs(base, adapter)


def test_a_config_that_cannot_be_read(base, adapter):
    for text in ("{", '{"a":' * 100_000):
        (base / "config.json").write_text(text)
        with refused("base = ", "config.json cannot be read"):
            Pairs(base, adapter)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": "fc("}, "layers = 'fc(': must be a regular expression"),
        ({"layers": "a{99999999999}"}, "layers = 'a{99999999999}': must be a regular expression"),
        ({"layers": "(" * 3000 + ")" * 3000}, "must be a regular expression"),
        ({"layers": 5}, "layers = 5: must be a regular expression"),
        ({"layers": "qkv"}, "layers = 'qkv': matches none of x.fc.weight"),
        ({"top_k": 11}, "top_k = 11: must be at most 10, the smaller side of the largest layer"),
        ({"top_k": 0}, "top_k = 0: must be a whole number ≥ 1"),
        ({"top_k": -3}, "top_k = -3: must be a whole number ≥ 1"),
        ({"top_k": 2.0}, "top_k = 2.0: must be a whole number ≥ 1"),
        ({"top_k": True}, "top_k = True: must be a whole number ≥ 1"),
        ({"threshold_epsilon": 0}, r"threshold_epsilon = 0: must be a finite number in (0, 1)"),
        ({"threshold_epsilon": 1.0}, r"threshold_epsilon = 1.0: must be a finite number in (0, 1)"),
        ({"threshold_epsilon": -0.5}, r"threshold_epsilon = -0.5: must be a finite number in (0, 1)"),
        ({"threshold_epsilon": float("nan")}, r"threshold_epsilon = nan: must be a finite number in (0, 1)"),
        ({"threshold_epsilon": "half"}, r"threshold_epsilon = 'half': must be a finite number in (0, 1)"),
    ],
)
def test_settings_that_cannot_be_used(options, says, base, adapter):
    with refused(says):
        scan(base, adapter, **options)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (None, "tuned = None: is not a path"),
        ("a" * 300, "is not a path"),
        (3, "is not a path"),
    ],
)
def test_paths_that_cannot_be(path, says, base):
    with refused("tuned = ", says):
        scan(base, path)


def test_updates_too_large_to_compare(tmp_path):
    """In single precision nothing of the base would be left; the other layers go on."""
    base = write(tmp_path / "b", {f"{name}.weight": matrix(12, 10) for name in "xyz"})
    large, larger = 1e18 * FACTORS["x.fc"][1], np.float32(1e38) * np.sign(FACTORS["x.fc"][1])
    a = FACTORS["x.fc"][0]
    adapter = write_adapter(
        tmp_path / "a", {"x": (a, large), "y": (np.float32(1e38) * np.sign(a), larger), "z": FACTORS["x.fc"]}
    )
    found = scan(base, adapter)
    assert [layer.name for layer in found.layers] == ["z.weight"]
    assert [skip.name for skip in found.skipped] == ["x.weight", "y.weight"]
    assert all("which leaves nothing of the base" in skip.reason for skip in found.skipped)
    for scale in (1e300, 10**400):
        with refused("tuned = ", "must be a number in single precision"):
            Pairs(base, write_adapter(tmp_path / "s", {"z": FACTORS["x.fc"]}, lora_alpha=scale))


def test_factors_of_very_different_size_are_one_product(tmp_path):
    a, b = FACTORS["x.fc"]
    base = write(tmp_path / "b", {"x.weight": matrix(12, 10)})
    with np.errstate(all="raise"):
        small = Pairs(base, write_adapter(tmp_path / "a", {"x": (np.float32(2.0**-90) * a, np.float32(2.0**90) * b)}))
        usual = Pairs(base, write_adapter(tmp_path / "c", {"x": (a, b)}))
        assert_close(dense(small), dense(usual))


def test_as_many_vectors_as_the_layer_has(base, adapter):
    """One less than refused."""
    assert len(scan(base, adapter, top_k=10).layers[0].verdicts) == 10


def test_nothing_in_common(base, tmp_path):
    for name, tensors in {
        "names": {"y.gate.weight": matrix(12, 10)},
        "shapes": {"x.fc.weight": matrix(12, 9)},
        "vectors": {"x.fc.bias": matrix(12, 1)[:, 0]},
    }.items():
        tuned = write(tmp_path / name, tensors)
        with refused(f"tuned = {tuned}: has no weight matrix in common with the base, {base}"):
            Pairs(base, tuned)
