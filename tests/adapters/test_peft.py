"""Adapters from and to the files of PEFT, and training side by side with it."""

import json

import numpy as np
import optax
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from rmtjax.adapters import (  # noqa: E402
    TRAINABLE,
    AdapterParam,
    AlphaParam,
    TrainedParam,
    merged_copy,
    save_peft,
)
from rmtjax.adapters.layers import adapted_layers  # noqa: E402
from rmtjax.adapters.methods import DoRA, LoRA  # noqa: E402
from rmtjax.models import load_classifier, save_model  # noqa: E402
from tests.adapters.helpers import with_adapters, with_peft  # noqa: E402
from tests.models.helpers import (  # noqa: E402
    batch,
    classifier,
    config_of,
    gradients,
    logits,
    refused,
    relative,
    tensors,
    torch_classifier,
    torch_logits,
    train,
    weights,
)

TOLERANCE = 1e-5
LABELS = np.array([0, 1, 1, 0])
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
TARGETS = ["query", "value", "intermediate.dense"]


def base_of(folder, model_type: str = "bert", **changes):
    """A torch classifier in a folder."""
    model = torch_classifier(config_of(model_type, **{"num_hidden_layers": 1, **changes}), seed=2)
    model.save_pretrained(folder)
    return model


def wrapped(model, **options):
    """With adapters of PEFT that have left their start, and its head training."""
    settings = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS, "modules_to_save": ["classifier"]}
    config = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **{**settings, **options})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "magnitude" in name:
                    p.mul_(1 + 0.2 * torch.rand(p.shape))
    return model.eval()


def torch_train(model, optimizer, batches) -> None:
    for *data, labels in batches:
        optimizer.zero_grad()
        ids, mask, types = tensors(*data)
        model(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=tensors(labels)[0]).loss.backward()
        optimizer.step()


def torch_name(path: str) -> str:
    """The name in a PEFT model of a variable here."""
    path = path.replace(".base.", ".base_layer.").replace("classifier.", "classifier.modules_to_save.default.")
    path = path.replace(".kernel", ".weight")
    for mine, theirs in (
        ("A", "lora_A.default.weight"),
        ("B", "lora_B.default.weight"),
        ("magnitude", "lora_magnitude_vector.default.weight"),
    ):
        path = path.replace(f".update.{mine}", f".{theirs}")
    return f"base_model.model.{path}"


def compared(ours: dict, of_torch: dict):
    """Pairs (name, here, there) of what trains, the latter transposed as here."""
    for name, value in ours.items():
        other = of_torch[torch_name(name)].detach().numpy()
        yield name, value, other.T if value.ndim == 2 else other


def loaded(base, adapter):
    """PEFT's own reading of a folder; every tensor of the file has found its place."""
    from safetensors.torch import load_file

    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    file, state = load_file(adapter / "adapter_model.safetensors"), peft.get_peft_model_state_dict(model)
    assert file.keys() == state.keys()
    assert all(torch.equal(file[name], state[name]) for name in file)
    return model


# -- theirs here -------------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("kind", "model_type"), [("lora", "bert"), ("rslora", "roberta"), ("dora", "bert"), ("dora", "roberta")]
)
def test_trained_by_peft(kind, model_type, tmp_path):
    """A few steps of torch: logits within 1e-5, and gradients of A, B, m and the head within 1e-4 of autograd's."""
    model = wrapped(base_of(tmp_path / "base", model_type), **KINDS[kind])
    data = batch(config_of(model_type))
    torch_train(model, torch.optim.SGD(model.parameters(), 0.05), [(*data, LABELS)] * 3)
    model.save_pretrained(tmp_path / "adapter")
    wanted = torch_logits(model, *data)
    mine, _ = load_classifier(tmp_path / "base", 2)
    unadapted = logits(mine, *data)
    mine = with_peft(mine, tmp_path / "adapter")
    got = logits(mine, *data)
    assert np.abs(wanted - unadapted).max() > 0.1
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)
    layers = adapted_layers(mine)
    assert len(layers) == 3 and all(
        type(layer.update) is (DoRA if kind == "dora" else LoRA) for layer in layers.values()
    )
    assert {name.split(".")[0] for name in weights(mine, TrainedParam)} == {"classifier"}

    model.zero_grad()
    ids, mask, types = tensors(*data)
    model(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=tensors(LABELS)[0]).loss.backward()
    every = weights(gradients(mine, *data, LABELS))
    trained = {name: every[name] for name in weights(mine, TRAINABLE)}
    theirs = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(theirs) == len(trained)
    for name, gradient, other in compared(trained, theirs):
        assert relative(gradient, other) < 1e-4, name


@pytest.mark.thorough
def test_patterns_of_ranks_and_scales(tmp_path):
    """Layers with a rank and a scale of their own, here and back there; all of PEFT's ways to write a pattern."""
    options = {
        "rank_pattern": {"layer.0.attention.self.query": 5, r"intermediate\.dense": 2},
        "alpha_pattern": {r"^bert\.encoder\.layer\.1\.attention\.self\.value": 3, "query": 7},
        "target_modules": r".*(query|value|intermediate\.dense)",
    }
    model = wrapped(base_of(tmp_path / "base", num_hidden_layers=2), **options)
    model.save_pretrained(tmp_path / "adapter")
    mine = with_peft(load_classifier(tmp_path / "base", 2)[0], tmp_path / "adapter")
    own = {path.removeprefix("bert.encoder.layer."): layer.update for path, layer in adapted_layers(mine).items()}
    assert {path: (u.rank, u.scale) for path, u in own.items()} == {
        "0.attention.self.query": (5, 7), "1.attention.self.query": (3, 7), "0.attention.self.value": (3, 5),
        "1.attention.self.value": (3, 3), "0.intermediate.dense": (2, 5), "1.intermediate.dense": (2, 5),
    }  # fmt: skip
    data = batch(mine.config)
    wanted = torch_logits(model, *data)
    np.testing.assert_allclose(logits(mine, *data), wanted, atol=TOLERANCE, rtol=0)
    save_peft(mine, tmp_path / "again", base=tmp_path / "base")
    np.testing.assert_allclose(
        torch_logits(loaded(tmp_path / "base", tmp_path / "again"), *data), wanted, atol=TOLERANCE
    )
    again = with_peft(load_classifier(tmp_path / "base", 2)[0], tmp_path / "again")
    assert {p: (layer.update.rank, layer.update.scale) for p, layer in adapted_layers(again).items()} == {
        p: (layer.update.rank, layer.update.scale) for p, layer in adapted_layers(mine).items()
    }


def test_rank_above_a_layers_sides(tmp_path):
    """PEFT puts any rank on any layer, such as 6 on a head of two classes."""
    model = wrapped(base_of(tmp_path / "base"), target_modules=["query", "pooler.dense"], r=20, modules_to_save=None)
    model.save_pretrained(tmp_path / "adapter")
    mine = with_peft(load_classifier(tmp_path / "base", 2)[0], tmp_path / "adapter")
    data = batch(mine.config)
    np.testing.assert_allclose(logits(mine, *data), torch_logits(model, *data), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "target", [["query", "value"], ["self.key"], ["dense"], r".*\.output\.dense", r"bert\.pooler\.dense"]
)
def test_targets_are_those_of_peft(target, tmp_path):
    model = torch_classifier(config_of())
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=target, r=2))
    theirs = {name.removeprefix("base_model.model.") for name in model.targeted_module_names}
    assert theirs == set(adapted_layers(with_adapters(classifier(), target_modules=target, rank=2)))


# -- ours there --------------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("rslora", {}),
        ("dora", {}),
        ("orthogonal", {}),
        ("spectral-rotational", {}),
        ("lora", {"target_modules": r".*(attention\.output|intermediate)\.dense"}),  # beside other layers called dense
        ("lora", {"train": ["pooler", "LayerNorm", "classifier"]}),
        ("dora", {"alpha": True, "alpha_modules": ["key", "value", "query", "intermediate.dense"]}),
        ("orthogonal", {"alpha": True, "alpha_share": "attention"}),
        ("spectral-additive", {"alpha": True}),
    ],
)
def test_trained_here(method, options, tmp_path):
    """A few steps of optax, written, and read by PEFT: the same logits; and by us, with what trained still marked."""
    base_of(tmp_path / "base")
    model = with_adapters(
        load_classifier(tmp_path / "base", 2)[0],
        method,
        **{"rank": 3, "lora_alpha": 5.0, "train": ["classifier"], **options},
    )
    data = batch(model.config)
    start = logits(model, *data)
    train(model, optax.sgd(0.3), [(*data, LABELS)] * 4, nnx.Any(TRAINABLE, AlphaParam))
    wanted = logits(model, *data)
    assert np.abs(wanted - start).max() > 0.05
    folder, alpha = tmp_path / "adapter", "alpha" in options
    save_peft(model, folder, base=tmp_path / "base", task_type="SEQ_CLS", save_base=save_model)
    config = json.loads((folder / "adapter_config.json").read_text())
    base = folder / "base" if alpha else tmp_path / "base"
    assert config["base_model_name_or_path"] == str(base) and (folder / "alpha.safetensors").exists() == alpha
    np.testing.assert_allclose(torch_logits(loaded(base, folder), *data), wanted, atol=TOLERANCE, rtol=0)

    again = with_peft(load_classifier(tmp_path / "base", 2)[0], folder)
    np.testing.assert_allclose(logits(again, *data), wanted, atol=TOLERANCE, rtol=0)
    mine, theirs = weights(model, TrainedParam), weights(again, TrainedParam)
    assert mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)
    layers = adapted_layers(again)
    for path, layer in adapted_layers(model).items():
        assert (layer.alpha is None) == (layers[path].alpha is None)
        if layer.alpha is not None:
            np.testing.assert_array_equal(layer.alpha[...], layers[path].alpha[...])
            same = [
                [p for p, other in found.items() if other.alpha is found[path].alpha]
                for found in (adapted_layers(model), layers)
            ]
            assert same[0] == same[1] and (len(same[0]) > 1) == ("alpha_share" in options)
        if method in KINDS and layer.update is not None:
            np.testing.assert_array_equal(layer.update.A[...], layers[path].update.A[...])
            assert layers[path].update.strength == layer.update.strength


@pytest.mark.thorough
def test_merged_models_are_plain_ones(tmp_path):
    """The other way out: everything folded in, for `transformers` alone."""
    model = with_adapters(classifier(num_hidden_layers=1), "dora", rank=2, alpha=True, train=["classifier"])
    data = batch(model.config)
    train(model, optax.sgd(0.3), [(*data, LABELS)] * 2, nnx.Any(TRAINABLE, AlphaParam))
    save_model(merged_copy(model), tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(torch_logits(theirs, *data), logits(model, *data), atol=TOLERANCE, rtol=0)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = torch.nn.Linear(6, 4), torch.nn.Linear(4, 6)

    def forward(self, x):
        return self.o_proj(torch.tanh(self.q_proj(x)))


class Model(torch.nn.Module):
    """A decoder as Hugging Face lays it out: blocks below `model.layers`, and a head beside them."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
        for layer in self.model.layers:
            layer.self_attn = Attention()
        self.lm_head = torch.nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.model.layers:
            x = x + layer.self_attn(x)
        return self.lm_head(x)


class Mine(nnx.Module):
    """The same with paths of its own, and kernels of several axes."""

    def __init__(self, peer=None):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List(
            [
                nnx.Dict(
                    q=nnx.LinearGeneral(6, (2, 2), rngs=rngs), o=nnx.LinearGeneral((2, 2), 6, axis=(-2, -1), rngs=rngs)
                )
                for _ in range(2)
            ]
        )
        self.head = nnx.Linear(6, 3, rngs=rngs)
        if peer is not None:
            layers = [(b[k], getattr(t.self_attn, f"{k}_proj")) for b, t in zip(self.blocks, peer.model.layers, strict=True)
                      for k in "qo"]  # fmt: skip
            for mine, other in [*layers, (self.head, peer.lm_head)]:
                mine.kernel[...] = other.weight.detach().numpy().T.reshape(mine.kernel.shape)
                mine.bias[...] = other.bias.detach().numpy().reshape(mine.bias.shape)

    def __call__(self, x):
        for block in self.blocks:
            x = x + block["o"](nnx.tanh(block["q"](x)))
        return self.head(x)


def mine_there(path: str) -> str:
    if path.startswith("head"):
        return path.replace("head", "lm_head")
    return path.replace("blocks", "model.layers").replace(".q", ".self_attn.q_proj").replace(".o", ".self_attn.o_proj")


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "orthogonal"])
def test_names_of_another_model(kind, tmp_path):
    """With names PEFT finds every tensor and answers alike; without them it would load nothing, and the base tells."""
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = Model().eval()
    model = with_adapters(Mine(theirs), kind, target_modules=["q", "o"], rank=2, train=["head"])
    for _, v in nnx.to_flat_state(nnx.state(model, TRAINABLE)):
        v[...] = v[...] + 0.1 * np.random.default_rng(v.size).normal(size=v.shape).astype(np.float32)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(Mine(theirs)(x), theirs(torch.tensor(x)), atol=TOLERANCE)
    base = tmp_path / "base"
    base.mkdir()
    save_file(theirs.state_dict(), base / "model.safetensors")
    with refused("base = ", "names="):
        save_peft(model, tmp_path / "adapter", base=base)
    save_peft(model, tmp_path / "adapter", base=base, names=mine_there)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    wanted = model(x)
    assert np.abs(wanted - Mine(theirs_again(base))(x)).max() > 0.05
    with torch.no_grad():
        np.testing.assert_allclose(loaded(torch.tensor(x)), wanted, atol=TOLERANCE)
    again = with_peft(Mine(theirs_again(base)), tmp_path / "adapter", names=mine_there)
    np.testing.assert_allclose(again(x), wanted, atol=TOLERANCE)


def theirs_again(base):
    from safetensors.torch import load_file

    model = Model().eval()
    model.load_state_dict(load_file(base / "model.safetensors"))
    return model


# -- side by side ------------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_ten_steps_of_adamw(kind, tmp_path):
    """The same start, ten batches, learning rate 3e-3 and decay: everything that trains stays within 1e-4 of PEFT's."""
    model = wrapped(base_of(tmp_path / "base"), **KINDS[kind])
    model.save_pretrained(tmp_path / "adapter")
    mine = with_peft(load_classifier(tmp_path / "base", 2)[0], tmp_path / "adapter")
    batches = [(*batch(mine.config, seed=i), np.roll(LABELS, i)) for i in range(10)]
    before = weights(mine, TRAINABLE)
    trained = [p for p in model.parameters() if p.requires_grad]
    torch_train(model, torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.1), batches)
    train(mine, optax.adamw(3e-3, weight_decay=0.1), batches, TRAINABLE)
    after = weights(mine, TRAINABLE)
    for name, value, other in compared(after, dict(model.named_parameters())):
        np.testing.assert_allclose(value, other, atol=1e-4, rtol=0, err_msg=name)
        assert np.abs(value - before[name]).max() > 5e-3, name
    assert len(weights(mine, AdapterParam)) == 3 * (2 if kind == "lora" else 3)
