"""PEFT's folders without PEFT: what is written, and one clear line for what cannot be read."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rmtjax.adapters import AdapterParam, AlphaParam, TrainedParam, load_peft, merged_copy, save_peft
from rmtjax.adapters.layers import adapted_layers
from tests.adapters.helpers import set_to, with_adapters, with_peft
from tests.helpers import array
from tests.models.helpers import batch, classifier, filled, logits, refused, weights

CONFIG, TENSORS, ALPHA = "adapter_config.json", "adapter_model.safetensors", "alpha.safetensors"
LAYER = "base_model.model.bert.encoder.layer.0.attention.self.query"
HEAD = "base_model.model.classifier"


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def plain(**changes):
    return classifier(num_hidden_layers=1, **changes)


def moved(model):
    rng = np.random.default_rng(0)
    for _, v in nnx.to_flat_state(nnx.state(model, nnx.Any(AdapterParam, AlphaParam, TrainedParam))):
        set_to(v, np.asarray(v[...]) + 0.3 * rng.normal(size=v.shape))
    return model


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_peft(
        moved(with_adapters(plain(), rank=3, lora_alpha=6.0, train=["classifier"])),
        tmp_path / "adapter",
        base="some/base",
        task_type="SEQ_CLS",
    )


def settings(folder: Path, **changes) -> None:
    values = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(values))


def rewrite(folder: Path, change, file: str = TENSORS) -> None:
    save_file(change(load_file(folder / file)), folder / file)


def test_what_is_written(folder):
    config = json.loads((folder / CONFIG).read_text())
    assert {key: config[key] for key in ("peft_type", "task_type", "r", "lora_alpha", "base_model_name_or_path")} == {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "r": 3, "lora_alpha": 6.0, "base_model_name_or_path": "some/base",
    }  # fmt: skip
    assert config["target_modules"] == ["query", "value"] and config["modules_to_save"] == ["classifier"]
    assert not config["use_dora"] and not config["use_rslora"] and not config["rank_pattern"]
    tensors = load_file(folder / TENSORS)
    shapes = {
        name.removeprefix("base_model.model.bert.encoder.layer.0.attention.self."): t.shape
        for name, t in tensors.items()
    }
    assert shapes == {
        "query.lora_A.weight": (3, 16), "query.lora_B.weight": (16, 3), "value.lora_A.weight": (3, 16),
        "value.lora_B.weight": (16, 3), "base_model.model.classifier.weight": (2, 16), "base_model.model.classifier.bias": (2,),
    }  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, TENSORS]


def test_there_and_back(tmp_path):
    """Without PEFT's help: LoRA, and α with the weights it goes with."""
    for method in ("lora", "rslora", "dora", "orthogonal"):
        model = moved(with_adapters(plain(), method, rank=3, lora_alpha=6.0, alpha=True, train=["classifier"]))
        save_peft(model, tmp_path / method)
        again = with_peft(plain(), tmp_path / method)
        data = batch(model.config)
        np.testing.assert_allclose(logits(again, *data), logits(model, *data), atol=5e-6)
        alpha = load_file(tmp_path / method / ALPHA)
        assert set(alpha) == {f"{path}.alpha" for path in adapted_layers(model)} and len(alpha) == 2


def test_an_alpha_that_lay_there_is_not_taken_for_this_models(tmp_path):
    save_peft(moved(with_adapters(plain(), rank=3, alpha=True)), tmp_path)
    model = moved(with_adapters(plain(), rank=3))
    save_peft(model, tmp_path)
    again = with_peft(plain(), tmp_path)
    assert not (tmp_path / ALPHA).exists()
    np.testing.assert_allclose(logits(again, *batch(model.config)), logits(model, *batch(model.config)), atol=1e-6)


def test_modules_that_trained_are_named_whole(tmp_path):
    """The topmost module of which all trains, or else the layers themselves."""
    for train, wanted in (
        (["classifier"], ["classifier"]),
        (["classifier.dense"], ["classifier.dense"]),
        (["roberta.embeddings"], ["roberta.embeddings"]),
        (["embeddings.LayerNorm", "classifier"], ["classifier", "roberta.embeddings.LayerNorm"]),
        (["output"], [f"roberta.encoder.layer.0.{n}" for n in ("attention.output", "output")]),
        (None, None),
    ):
        save_peft(with_adapters(classifier("roberta", num_hidden_layers=1), rank=2, train=train), tmp_path)
        assert json.loads((tmp_path / CONFIG).read_text())["modules_to_save"] == wanted


def test_a_layer_is_not_taken_for_another_of_its_name(tmp_path):
    """Rank and scale belong to a whole path, not to every path that ends alike."""

    class Inner(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(6, 5, rngs=rngs)

    class Outer(nnx.Module):
        def __init__(self, rngs):
            self.fc, self.inner = nnx.Linear(6, 5, rngs=rngs), Inner(rngs)
            self.shift = nnx.Param(jnp.ones(5))

    model = moved(with_adapters(filled(Outer), target_modules=["fc"], rank=4, lora_alpha=8.0, train=r""))
    for name, own in adapted_layers(model).items():
        if name == "fc":
            own.update.rank, own.update.scale = 2, 3.0
            a, b = np.asarray(own.update.A[...]), np.asarray(own.update.B[...])
            own.update.A, own.update.B = AdapterParam(array(a[:, :2])), AdapterParam(array(b[:2]))
    save_peft(model, tmp_path)
    again = with_peft(filled(Outer), tmp_path)
    for name, own in adapted_layers(model).items():
        other = adapted_layers(again)[name]
        assert (own.update.rank, own.update.scale) == (other.update.rank, other.update.scale)
        np.testing.assert_allclose(own.kernel(), other.kernel(), atol=1e-6)
    np.testing.assert_array_equal(again.shift[...], model.shift[...])


class Block(nnx.Module):
    """A layer of a decoder, with its projections below `attn`."""

    def __init__(self, rngs):
        self.attn = nnx.Dict(q=nnx.Linear(6, 4, rngs=rngs), o=nnx.LinearGeneral((2, 2), 6, axis=(-2, -1), rngs=rngs))


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.LinearGeneral((3, 2), (2, 2), axis=(-2, -1), rngs=rngs)
        self.conv = nnx.Conv(3, 5, (2, 4), rngs=rngs)


def called(path: str) -> str:
    return "model." + path.replace("attn.q", "self_attn.q_proj").replace("attn.o", "self_attn.o_proj")


NAMES = {
    "layers": "model.layers", "layers.0.attn.q": "model.layers.0.self_attn.q_proj", "head": "lm_head",
    "layers.1.attn": "model.layers.1.self_attn", "conv": "model.conv",
}  # fmt: skip


@pytest.mark.first(1)
@pytest.mark.parametrize("names", [called, NAMES, {"": "model"}], ids=["function", "mapping", "prefix"])
def test_names_of_the_pytorch_model(names, tmp_path):
    """Layers, heads, patterns and α are called as there, and come back under the same names."""
    model = moved(with_adapters(filled(Decoder), target_modules=["q", "o"], rank=2, alpha=True, train=["head", "conv"]))
    save_peft(model, tmp_path, names=names)
    config, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / TENSORS)
    layer = "model.layers.0.attn.q" if names == {"": "model"} else "model.layers.0.self_attn.q_proj"
    assert f"base_model.model.{layer}.lora_A.weight" in tensors and layer in config["target_modules"]
    assert len(config["target_modules"]) == 4 and f"{layer}.alpha" in load_file(tmp_path / ALPHA)
    head = "lm_head" if names is NAMES else "model.head"
    assert config["modules_to_save"] == sorted([head, "model.conv"])
    # As in PyTorch: (outputs, inputs), (outputs, inputs, *sizes).
    kernel = np.asarray(model.head.kernel[...])
    np.testing.assert_array_equal(tensors[f"base_model.model.{head}.weight"], kernel.reshape(6, 4).T)
    assert tensors[f"base_model.model.{head}.bias"].shape == (4,)
    conv = tensors["base_model.model.model.conv.weight"]
    np.testing.assert_array_equal(conv, np.asarray(model.conv.kernel[...]).transpose(3, 2, 0, 1))
    with refused("which the model does not have"):
        load_peft(filled(Decoder), tmp_path)
    again = with_peft(filled(Decoder), tmp_path, names=names)
    mine, theirs = weights(model, nnx.Variable), weights(again, nnx.Variable)
    assert mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_alphas_that_are_shared_keep_so_under_other_names(tmp_path):
    model = moved(with_adapters(classifier(), rank=2, alpha=True, alpha_share="self"))
    save_peft(model, tmp_path, names={"": "outer"})
    layers = adapted_layers(with_peft(classifier(), tmp_path, names={"": "outer"}))
    first = [layers[f"bert.encoder.layer.0.attention.self.{name}"].alpha for name in ("query", "value")]
    assert first[0] is first[1]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ({"layers.0": "model"}, ["does not cover layers.1.attn", "the key ''"]),
        ({"layers": 3}, ["must map paths to paths", "3"]),
        (3, ["names = 3", "a mapping of paths, or a function"]),
        (lambda path: None, ["becomes None", "must be a path"]),
        (lambda path: "same", ["are all mapped to same"]),
    ],
)
def test_names_that_cannot_be_used(names, parts, tmp_path):
    model = with_adapters(filled(Decoder), target_modules=["q", "o"], rank=2)
    with refused("names", *parts):
        save_peft(model, tmp_path / "out", names=names)
    assert not (tmp_path / "out").exists()


def base_folder(folder, prefix: str, transposed: bool = False, outputs: int = 4) -> Path:
    """Weights as a folder of Hugging Face has them."""
    folder.mkdir(exist_ok=True)
    shape = (6, outputs) if transposed else (outputs, 6)
    tensors = {f"{prefix}layers.{i}.attn.q.weight": np.ones(shape, np.float32) for i in range(2)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_names_are_checked_against_the_base(tmp_path):
    """An adapter that PEFT would load as nothing is refused, before anything is written."""
    model, out = with_adapters(filled(Decoder), target_modules=["q"], rank=2), tmp_path / "out"
    with refused("base = ", "layers.0.attn.q", "ignore", "model.layers.0.attn.q.weight", "names={'': 'model'}"):
        save_peft(model, out, base=base_folder(tmp_path / "with", "model."))
    with refused("base = ", "layers.0.attn.q", "nor of any other layer", "names="):
        save_peft(model, out, base=other_folder(tmp_path / "other"))
    with refused("base = ", "model.layers.0.attn.q.weight has shape [9, 6]", "[4, 6]"):
        save_peft(model, out, base=base_folder(tmp_path / "shape", "model.", outputs=9), names={"": "model"})
    assert not out.exists()
    for prefix, names in (("model.", {"": "model"}), ("", None), ("", {"": "model"})):
        for transposed in (False, True):
            save_peft(model, out, base=base_folder(tmp_path / "fits", prefix, transposed), names=names)
    with pytest.warns(UserWarning, match="silently ignore its adapter"):
        save_peft(model, out, base=tmp_path / "with", names={"": ""})
    save_peft(model, out, base="some/hub-id")
    # A head of one's own is in no base.
    save_peft(
        with_adapters(filled(Decoder), target_modules=["q", "head"], rank=2),
        out,
        base=base_folder(tmp_path / "fits", ""),
    )


def other_folder(folder) -> Path:
    folder.mkdir()
    save_file({"decoder.weight": np.ones((3, 3), np.float32)}, folder / "model.safetensors")
    return folder


def test_kernels_that_pytorch_has_no_form_for(tmp_path):
    class Turned(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(4, 4, rngs=rngs)
            self.turn = nnx.Einsum("ab,bcd->acd", (4, 2, 2), rngs=rngs)

    with refused("turn.kernel", "Einsum", "(4, 2, 2)"):
        save_peft(with_adapters(filled(Turned), target_modules=["fc"], rank=2, train=["turn"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stack_of_layers_takes_no_adapter(tmp_path):
    tensors = {"here.lora_A.weight": ones(2, 6), "here.lora_B.weight": ones(6, 2)}
    save_file({f"base_model.model.{name}": value for name, value in tensors.items()}, tmp_path / TENSORS)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))

    def stack(_):
        return nnx.vmap(lambda key: nnx.Linear(6, 6, rngs=nnx.Rngs(params=key)))(jax.random.split(jax.random.key(0), 3))

    with refused("here", "stack of layers"):
        load_peft(nnx.Dict(here=filled(stack)), tmp_path)
    load_peft(nnx.Dict(here=filled(square)), tmp_path)


def square(rngs):
    return nnx.Linear(6, 6, rngs=rngs)


def test_the_base_of_any_model_is_written_by_a_function(tmp_path):
    model = with_adapters(nnx.Dict(here=filled(square)), target_modules=["here"], rank=2, alpha=True)
    for layer in adapted_layers(model).values():
        set_to(layer.alpha, np.full(6, 3))
        kernel = layer.base.kernel[...]
    with refused("save_base", "a function"):
        save_peft(model, tmp_path / "out", save_base=True)
    assert not (tmp_path / "out").exists()
    save_peft(model, tmp_path / "out")
    assert (tmp_path / "out" / ALPHA).exists() and not (tmp_path / "out" / "base").exists()

    def save(base, folder):
        save_file({"here.weight": np.ascontiguousarray(base["here"].kernel[...].T)}, folder / "model.safetensors")

    save_peft(model, tmp_path / "out", save_base=save)
    written = load_file(tmp_path / "out" / "base" / "model.safetensors")["here.weight"]
    np.testing.assert_allclose(written, 3 * np.asarray(kernel).T, rtol=1e-6)
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out" / "base") and config["task_type"] is None


def test_what_cannot_be_written(tmp_path):
    full = with_adapters(plain(), "full")
    for model in (plain(), full, with_adapters(plain(), "full", alpha=True)):
        with refused("model", "no low-rank adapters"):
            save_peft(model, tmp_path / "none")
    mixed = with_adapters(plain(), rank=2)
    mixed.bert.encoder.layer[0].attention.self.query = next(
        iter(adapted_layers(with_adapters(plain(), "dora", rank=2)).values())
    )
    with refused("several kinds"):
        save_peft(mixed, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with refused(f"folder = {tmp_path / 'file'}"):
        save_peft(with_adapters(plain(), rank=2), tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft_type": "IA3"}, ["peft_type = 'IA3'", "LORA"]),
        ({"bias": "lora_only"}, ["bias = 'lora_only'", "'none'"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out = True"]),
        ({"lora_bias": True}, ["lora_bias = True"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights = 'pissa_niter_4'", "changes the base"]),
        ({"init_lora_weights": "olora"}, ["init_lora_weights = 'olora'"]),
        ({"init_lora_weights": "loftq"}, ["init_lora_weights = 'loftq'"]),
        ({"alora_invocation_tokens": [1, 2]}, ["alora_invocation_tokens = [1, 2]"]),
        ({"layer_replication": [[0, 1]]}, ["layer_replication"]),
        ({"lora_alpha": None}, ["lora_alpha = None"]),
        ({"lora_alpha": "8"}, ["lora_alpha = '8'"]),
        ({"lora_alpha": True}, ["lora_alpha = True"]),
        ({"alpha_pattern": {"[": 3}}, ["alpha_pattern has '['", "must be a regular expression"]),
        ({"alpha_pattern": [1]}, ["alpha_pattern = [1]"]),
        ({"use_rslora": "no"}, ["use_rslora = 'no'", "true or false"]),
        ({"use_dora": True}, ["lora_magnitude_vector", "use_dora = True"]),
    ],
)
def test_refused_configurations(folder, changes, parts):
    settings(folder, **changes)
    model = plain()
    with refused(f"adapter = {folder}", *parts):
        load_peft(model, folder)
    assert not adapted_layers(model)


def test_harmless_settings(folder):
    settings(
        folder, init_lora_weights="gaussian", lora_dropout=0.3, layers_to_transform=[0], bias="none", lora_bias=None
    )
    assert len(adapted_layers(with_peft(plain(), folder))) == 2


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: {n.replace("layer.0", "layer.7"): x for n, x in t.items()}, ["layer.7", "does not have", "another base"]),
        (lambda t: {n: x for n, x in t.items() if "lora" not in n}, ["holds no LoRA weights"]),
        (lambda t: {n: x for n, x in t.items() if n != f"{LAYER}.lora_B.weight"}, ["self.query", "lora_B is missing"]),
        (lambda t: t | {f"{LAYER}.lora_magnitude_vector": ones(16)}, ["lora_magnitude_vector", "use_dora = False"]),
        (lambda t: t | {f"{LAYER}.lora_A.weight": ones(3, 8)}, ["A has shape [8, 3]", "[16, 3]"]),
        (lambda t: t | {f"{LAYER}.lora_B.weight": ones(16, 4)}, ["A and B have shapes [3, 16] and [16, 4]", "[outputs, r]"]),
        (lambda t: t | {f"{LAYER}.lora_A.weight": np.nan * ones(3, 16)}, ["lora_A", "not finite"]),
        (lambda t: t | {f"{HEAD}.weight": ones(3, 16)}, ["classifier.weight has shape [3, 16]", "classes"]),
        (lambda t: t | {"base_model.model.score.weight": ones(3, 16)}, ["score.weight", "which the model does not have"]),
    ],
)  # fmt: skip
def test_refused_tensors(folder, change, parts):
    """And the model is as it was."""
    rewrite(folder, change)
    model = plain()
    with refused(f"adapter = {folder}", *parts):
        load_peft(model, folder)
    assert not adapted_layers(model) and not weights(model, TrainedParam)


def test_refused_alpha(folder):
    save_file({"bert.encoder.layer.9.output.dense.alpha": np.ones(16, np.float32)}, folder / ALPHA)
    with refused(f"adapter = {folder}", ALPHA, "layer.9.output.dense", "which the model does not have"):
        load_peft(plain(), folder)
    for wrong in (np.ones(5, np.float32), np.float32(1.0), np.ones((16, 1), np.float32)):
        save_file({"bert.encoder.layer.0.output.dense.alpha": np.asarray(wrong)}, folder / ALPHA)
        with refused(f"adapter = {folder}", "bert.encoder.layer.0.output.dense.alpha", "16"):
            load_peft(plain(), folder)
    save_file({"bert.encoder.layer.0.output.dense.alpha": np.full(16, 2.0, np.float32)}, folder / ALPHA)
    layers = adapted_layers(with_peft(plain(), folder))
    assert len(layers) == 3 and layers["bert.encoder.layer.0.output.dense"].update is None
    paths = [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key")]
    for shared, second in (
        ("[", 1.0),
        ("3", 1.0),
        ('["a"]', 1.0),
        (json.dumps([[*paths, "no"]]), 1.0),
        (json.dumps([paths]), 2.0),
    ):
        alphas = {
            f"{path}.alpha": np.full(16, value, np.float32) for path, value in zip(paths, (1.0, second), strict=True)
        }
        save_file(alphas, folder / ALPHA, metadata={"shared": shared})
        with refused(f"adapter = {folder}", ALPHA, "shared = ", "must list layers with the same α"):
            load_peft(plain(), folder)


def test_files_that_are_not_there(folder, tmp_path):
    with refused(f"adapter = {tmp_path}", f"holds no {CONFIG}"):
        load_peft(plain(), tmp_path)
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[:100])
    with refused(f"adapter = {folder}", f"{TENSORS} is truncated"):
        load_peft(plain(), folder)
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    with refused(f"adapter = {folder}", "adapter_model.bin", "runs code when it is read"):
        load_peft(plain(), folder)
    (folder / "adapter_model.bin").unlink()
    with refused(f"adapter = {folder}", f"holds neither {TENSORS}"):
        load_peft(plain(), folder)
    for text in ("{", "[]", "{}"):
        (folder / CONFIG).write_text(text)
        with refused(f"adapter = {folder}"):
            load_peft(plain(), folder)


def test_not_on_an_adapted_model(folder):
    for options in ({}, {"adapter": "full"}):
        with refused("model", "already has adapters"):
            load_peft(with_adapters(plain(), rank=2, **options), folder)
    load_peft(merged_copy(with_adapters(plain(), rank=2)), folder)
