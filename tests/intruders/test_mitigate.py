"""Intruders scaled down: the formula, PEFT's own function, and everything else to the bit."""

import importlib
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax.adapters import save_peft
from rmtjax.adapters.layers import adapted_layers
from rmtjax.intruders import Pairs, ScanLimits, mitigate
from rmtjax.models import load_classifier, save_model
from tests.adapters.helpers import set_to, with_adapters, with_peft
from tests.finetune.helpers import files
from tests.models.helpers import classifier, config_of, refused, relative, torch_classifier

from .helpers import by_formula, matrix, planted, stored, write, write_adapter, write_shards

SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 96}


def values(weight):
    return np.linalg.svd(np.asarray(weight, float), compute_uv=False)


def array(content):
    """Of what `stored` found."""
    dtype, shape, data = content
    kind = {"F16": np.float16, "BF16": jnp.bfloat16, "F32": np.float32, "F64": np.float64}[dtype]
    return np.frombuffer(data, kind).reshape(shape).astype(np.float32)


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scale"), [("lora", 0.75), ("rslora", 0.2)])
def test_adapters_are_those_of_pefts_own_function(kind, scale, tmp_path):
    """Many intruders in two layers, cut back to the rank; none in the third, whose A and B stay to the bit."""
    peft = pytest.importorskip("peft", minversion="0.19")
    torch = pytest.importorskip("torch")
    intruders = pytest.importorskip("peft.tuners.lora.intruders")
    base = torch_classifier(config_of(**SIZES), seed=2)
    base.save_pretrained(tmp_path / "base")
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "value", "intermediate.dense"]}
    model = peft.get_peft_model(base, peft.LoraConfig(use_rslora=kind == "rslora", **options))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_((1e-4 if "lora_B" in name and "value" in name else 1) * torch.randn(p.shape))
    model.save_pretrained(tmp_path / "adapter")
    found = mitigate(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", mitigation_lambda=scale).before
    counts = {layer.name.split(".")[-2]: layer.intruders for layer in found.layers}
    assert counts["query"] >= 3 and counts["dense"] >= 3 and counts["value"] == 0

    intruders.reduce_intruder_dimension(model, mitigation_lambda=scale, logging_sink=None)
    fresh = torch_classifier(config_of(**SIZES), seed=2)
    mended = peft.PeftModel.from_pretrained(fresh, tmp_path / "out")
    theirs = {n: m for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert len(theirs) == 3
    for name, layer in theirs.items():
        wanted = layer.get_delta_weight("intruder_reduced").detach()
        assert relative(mended.get_submodule(name).get_delta_weight("default").detach(), wanted) < 1e-4, name
        changed = relative(layer.get_delta_weight("default").detach(), wanted)
        assert changed > 0.01 if "value" not in name else changed == 0, name
    before, after = (stored(tmp_path / folder / "adapter_model.safetensors") for folder in ("adapter", "out"))
    assert before.keys() == after.keys()
    for key in before:
        assert before[key][:2] == after[key][:2] and (before[key] == after[key]) == ("value" in key), key


@pytest.mark.first(1)
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "orthogonal"])
def test_adapters_become_what_the_formula_says(method, alpha, tmp_path):
    """The update has rank 2 of 12, so that there is room for ten intruders and nothing is cut off."""
    base = classifier(**SIZES)
    save_model(base, tmp_path / "base")
    model = with_adapters(
        base,
        method,
        rank=2 if method == "orthogonal" else 12,
        lora_alpha=60.0,
        alpha=alpha,
        target_modules=["query", "key"],
    )
    rng = np.random.default_rng(6)
    for layer in adapted_layers(model).values():
        own = layer.update
        if method != "orthogonal":
            a, b = rng.normal(size=own.A.shape), np.zeros(own.B.shape)
            b[:2] = 0.4 * rng.normal(size=(2, b.shape[1]))
            set_to(own.A, a / 6)
            set_to(own.B, b)
        if method == "dora":
            set_to(own.magnitude, np.asarray(own.magnitude[...]) * rng.uniform(3, 4, 64))
        if alpha:
            set_to(layer.alpha, rng.uniform(0.9, 1.1, 64))
    save_peft(model, tmp_path / "adapter", base=tmp_path / "base")
    if method == "orthogonal":  # written as LoRA of rank 2; in a wider one there is room
        widen(tmp_path / "adapter", 12)
    found = mitigate(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", mitigation_lambda=0.4).before
    before, after = (Pairs(tmp_path / "base", tmp_path / folder) for folder in ("adapter", "out"))
    for pair, mended, layer in zip(before, after, found.layers, strict=True):
        wanted, count = by_formula(pair.base, pair.tuned.dense(), 0.4)
        assert layer.intruders == count >= 1
        change = np.linalg.norm(wanted - pair.tuned.dense())
        assert np.linalg.norm(mended.tuned.dense() - wanted) < 2e-5 * change, pair.name
    assert files(tmp_path / "adapter").keys() == {tmp_path / "adapter" / p.name for p in files(tmp_path / "out")}
    for name in ("adapter_config.json", *(["alpha.safetensors"] if alpha else [])):
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    # Where the model itself reads it, too.
    read = with_peft(load_classifier(tmp_path / "base", 2)[0], tmp_path / "out")
    for path, layer in adapted_layers(read).items():
        np.testing.assert_allclose(np.asarray(layer.kernel()).T, after.read(f"{path}.weight").tuned.dense(), atol=1e-5)


def test_an_adapter_with_alpha_takes_its_base_along(tmp_path, monkeypatch):
    """PEFT finds what was mended when the run that it came from is gone; its answers are those of the formula."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

    base = classifier(**SIZES)
    save_model(base, tmp_path / "base")
    model = with_adapters(
        base, "lora", rank=2, lora_alpha=60.0, alpha=True, target_modules=["query"], train=["classifier"]
    )
    rng = np.random.default_rng(6)
    for layer in adapted_layers(model).values():
        set_to(layer.update.B, rng.normal(size=layer.update.B.shape))
        set_to(layer.alpha, rng.uniform(0.9, 1.1, 64))
    monkeypatch.chdir(tmp_path)
    save_peft(model, "adapter", base="base", save_base=save_model)
    found = mitigate("base", "adapter", "out", mitigation_lambda=0.4).before
    assert found.intruders
    wanted = {p.name: p.tuned.dense() for p in Pairs("base", "out")}
    shutil.rmtree("adapter")
    monkeypatch.chdir("/")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out/base")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(config["base_model_name_or_path"])
    merged = dict(peft.PeftModel.from_pretrained(theirs, tmp_path / "out").merge_and_unload().named_parameters())
    for name, value in wanted.items():
        np.testing.assert_allclose(merged[name].detach().numpy(), value, atol=1e-5 * np.abs(value).max())


def widen(folder, rank):
    """Rows and columns of zeros in an adapter's A and B; its strength stays."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    config |= {"lora_alpha": config["lora_alpha"] * rank / config["r"], "r": rank}
    for key, value in tensors.items():
        grown = [(0, rank - 2), (0, 0)] if "lora_A" in key else [(0, 0), (0, rank - 2)]
        tensors[key] = np.pad(value, grown)
    write(folder, tensors, "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_an_update_that_does_not_fit_its_rank_is_cut_to_the_nearest(tmp_path):
    """Rank 1 has no room for the correction: what is written is the largest singular part of the update that was wanted."""
    w = matrix(48, 40)
    full = planted(w, 30.0, seed=3) - w
    u, s, vt = np.linalg.svd(full)
    factors = (s[0] * vt[:1] / 2, u[:, :1])
    base = write(tmp_path / "b", {"x.fc.weight": w})
    adapter = write_adapter(tmp_path / "a", {"x.fc": factors}, r=1, lora_alpha=2)
    assert mitigate(base, adapter, tmp_path / "out", mitigation_lambda=0.1).before.intruders == 1
    (pair,) = Pairs(base, adapter)
    u, s, vt = np.linalg.svd(by_formula(w, pair.tuned.dense(), 0.1)[0] - w)
    assert s[1] > 1e-2 * s[0]  # there is something to cut off
    (mended,) = Pairs(base, tmp_path / "out")
    assert relative(mended.update(), s[0] * u[:, :1] @ vt[:1]) < 1e-5


def test_a_rank_above_the_sides(tmp_path):
    """PEFT puts any rank on any layer. With room for every update nothing is cut off."""
    rng = np.random.default_rng(7)
    base = write(tmp_path / "b", {"x.fc.weight": matrix(30, 20)})
    factors = (rng.normal(size=(35, 20)).astype(np.float32), rng.normal(size=(30, 35)).astype(np.float32))
    adapter = write_adapter(tmp_path / "a", {"x.fc": factors}, r=35, lora_alpha=35)
    assert mitigate(base, adapter, tmp_path / "out", mitigation_lambda=0.5).before.intruders > 1
    (pair,), (mended,) = Pairs(base, adapter), Pairs(base, tmp_path / "out")
    assert relative(mended.tuned.dense(), by_formula(pair.base, pair.tuned.dense(), 0.5)[0]) < 1e-5
    before, after = (stored(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "out"))
    assert {k: v[:2] for k, v in before.items()} == {k: v[:2] for k, v in after.items()}


def test_rows_without_magnitude_stay_so(tmp_path):
    """DoRA's rows of magnitude 0, and a row of W that α has switched off."""
    rng = np.random.default_rng(8)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 40), (48, 4)))
    a[1:], b[:, 1:] = 0, 0
    magnitude, alpha = rng.uniform(20, 30, 48).astype(np.float32), np.ones(48, np.float32)
    magnitude[5] = alpha[9] = 0
    base = write(tmp_path / "b", {"x.fc.weight": matrix(48, 40)})
    adapter = write_adapter(tmp_path / "a", {"x.fc": (a, b, magnitude)}, {"x.fc": alpha}, use_dora=True, r=4)
    assert 1 <= mitigate(base, adapter, tmp_path / "out", mitigation_lambda=0.5).before.intruders <= 3
    (pair,), (mended,) = Pairs(base, adapter), Pairs(base, tmp_path / "out")
    assert relative(mended.tuned.dense(), by_formula(pair.base, pair.tuned.dense(), 0.5)[0]) < 1e-5
    assert not mended.tuned.dense()[5].any()


def test_alpha_without_an_update_cannot_be_mended(tmp_path):
    rng = np.random.default_rng(9)
    alphas = {"x.key": rng.uniform(0, 20, 48).astype(np.float32), "x.value": np.ones(48, np.float32)}
    base = write(tmp_path / "b", {f"x.{part}.weight": matrix(48, 40) for part in ("query", "key", "value")})
    adapter = write_adapter(tmp_path / "a", {"x.query": (9 * matrix(2, 40), matrix(48, 2))}, alphas)
    with refused("tuned = ", "x.key.weight has intruders caused by α, and no update to scale"):
        mitigate(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert mitigate(base, adapter, tmp_path / "out", layers="query|value").before.intruders > 0
    assert (tmp_path / "out/alpha.safetensors").read_bytes() == (adapter / "alpha.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_adapters_keep_their_type(dtype, tmp_path):
    base = write(tmp_path / "b", {"x.fc.weight": matrix(48, 40).astype(dtype)})
    rng = np.random.default_rng(10)
    a, b = (rng.normal(size=shape) for shape in ((4, 40), (48, 4)))
    a[1:] = 0
    adapter = write_adapter(tmp_path / "a", {"x.fc": (a.astype(dtype), b.astype(dtype))}, r=4)
    assert mitigate(base, adapter, tmp_path / "out").before.intruders == 1
    types = {kind for kind, _, _ in stored(tmp_path / "out/adapter_model.safetensors").values()}
    assert types == {"F16" if dtype == np.float16 else "BF16"}
    (pair,), (mended,) = Pairs(base, adapter), Pairs(base, tmp_path / "out")
    wanted = by_formula(pair.base, pair.tuned.dense(), 0.75)[0]
    assert relative(mended.update(), wanted - pair.base) < (1e-3 if dtype == np.float16 else 8e-3)


# -- models ------------------------------------------------------------------------------------------------------------


NAMES = ("a.fc.weight", "b.fc.weight", "c.fc.weight")


def weights_of(dtype=np.float32):
    """One layer with an intruder, one that moved and has none, one as before; and what else is in a file."""
    before = {name: matrix(40, 48, i) for i, name in enumerate(NAMES)}
    after = {**before, NAMES[0]: planted(before[NAMES[0]], 30.0), NAMES[1]: 1.5 * before[NAMES[1]]}
    rest = {
        "a.embed.weight": matrix(30, 48), "a.fc.bias": np.arange(48, dtype=np.float32),
        "half": matrix(4, 4).astype(np.float16), "brain": matrix(3, 3).astype(jnp.bfloat16),
        "position_ids": 2**40 + np.arange(48)[None], "double": np.array([1 + 2.0**-40]),
        "mask": np.array([True, False]), "nothing": np.zeros((0, 5), np.float32),
        "nan.weight": np.full((40, 48), np.nan),
    }  # fmt: skip
    return [{k: v.astype(dtype) for k, v in part.items()} | rest for part in (before, after)]


def contents(folder):
    """Return the content of all safetensors files of a folder together."""
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in stored(file).items()}


def test_folders_of_a_model_are_copied_along(tmp_path):
    """Files that others name, as sentence-transformers' modules.json does, wherever in the folder."""
    before, after = weights_of()
    write(tmp_path / "base", before)
    tuned = write(tmp_path / "tuned", after)
    kept = ("1_Pooling/config.json", "2_Dense/model.safetensors", "chat_template.jinja", "modeling_x.py", "source.spm",
            "bpe.codes", "vocab.bpe", "tokenizer.model.v3")  # fmt: skip
    for name in kept:
        (tuned / name).parent.mkdir(exist_ok=True)
        (tuned / name).write_text("{}")
    write(tuned / "2_Dense", {"linear.weight": matrix(5, 5)})
    (tuned / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]')
    for name in (
        "pytorch_model.bin",
        "checkpoint-5/config.json",
        ".git/x.json",
        "onnx/model.onnx",
        "old/model.safetensors",
    ):
        (tuned / name).parent.mkdir(exist_ok=True)
        (tuned / name).write_text("{}")
    mitigate(tmp_path / "base", tuned, tmp_path / "out")
    made = {str(path.relative_to(tmp_path / "out")) for path in files(tmp_path / "out")}
    assert made == {"model.safetensors", "modules.json", *kept}


def test_only_what_belongs_to_it_is_copied(tmp_path):
    """Beside a file other things may lie, and beside an adapter what a trainer left: nothing unmended goes along."""
    one, other = weights_of()
    base, tuned = write(tmp_path / "b", one), write(tmp_path / "t", other, "tuned.safetensors")
    for name in ("config.json", "diary.txt", "secret.json"):
        (tuned / name).write_text("{}")
    mitigate(base, tuned / "tuned.safetensors", tmp_path / "o1")
    assert {p.name for p in (tmp_path / "o1").iterdir()} == {"tuned.safetensors", "config.json"}
    factors = np.ones((1, 48), np.float32), 5 * np.ones((40, 1), np.float32)
    adapter = write_adapter(tmp_path / "a", {NAMES[0].removesuffix(".weight"): factors}, r=1)
    for name in ("optimizer.pt", "adapter_model.bin", "tokenizer.json"):
        (adapter / name).write_text("{}")
    mitigate(base, adapter, tmp_path / "o2")
    assert {p.name for p in (tmp_path / "o2").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"
    }  # fmt: skip


@pytest.mark.parametrize("place", ["file", "folder", "shards"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.float64])
def test_only_layers_with_intruders_change(place, dtype, tmp_path):
    one, other = weights_of(dtype)
    base = write(tmp_path / "b", one)
    tuned = (write_shards if place == "shards" else write)(tmp_path / "t", other)
    for name in ("config.json", "vocab.txt"):
        (tuned / name).write_text("{}")
    kept = files(tmp_path / "t")
    given = tuned / "model.safetensors" if place == "file" else tuned
    found = mitigate(base, given, tmp_path / "out", mitigation_lambda=0.25).before
    assert {layer.name: layer.intruders for layer in found.layers} == dict(zip(NAMES, (1, 0, 0), strict=True))
    assert {p.name for p in files(tmp_path / "out")} == {p.name for p in kept} and files(tmp_path / "t") == kept
    before, after = contents(tuned), contents(tmp_path / "out")
    assert before.keys() == after.keys() == other.keys()
    for name in before:
        assert before[name][:2] == after[name][:2] and (before[name] == after[name]) == (name != NAMES[0]), name
    wanted, _ = by_formula(*(np.float32(w[NAMES[0]]) for w in (one, other)), 0.25)
    rounding = {"F16": 1e-3, "BF16": 8e-3}.get(after[NAMES[0]][0], 1e-5)
    assert relative(array(after[NAMES[0]]), wanted) < rounding
    if place == "shards":  # each where it was
        for file in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            assert stored(tuned / file).keys() == stored(tmp_path / "out" / file).keys()


def test_scale_zero_takes_the_direction_out(tmp_path):
    one, other = weights_of()
    mitigate(write(tmp_path / "b", one), write(tmp_path / "t", other), tmp_path / "out", mitigation_lambda=0)
    before, after = values(other[NAMES[0]]), values(array(contents(tmp_path / "out")[NAMES[0]]))
    assert before[0] > 29 > 2 * before[1]
    np.testing.assert_allclose(after, [*before[1:], 0], atol=1e-4)


def test_transposed_weights_are_written_as_they_were(tmp_path):
    """Square and not: the left vectors are those of outputs by inputs, the file keeps inputs by outputs."""
    one = {
        f"h.0.{name}.weight": matrix(*shape) for name, shape in {"attn.c_proj": (40, 40), "mlp.c_fc": (40, 60)}.items()
    }
    rng = np.random.default_rng(11)
    other = {}
    for name, w in one.items():  # a known left vector of the file's matrix, and a right one that is new: an intruder
        u = np.linalg.svd(w)[0][:, 2]
        v = rng.standard_normal(w.shape[1])
        other[name] = (w + 30 * np.outer(u, v / np.linalg.norm(v))).astype(np.float32)
    base = write(tmp_path / "b", one, config={"model_type": "gpt2"})
    found = mitigate(
        base, write(tmp_path / "t", other, config={"model_type": "gpt2"}), tmp_path / "out", mitigation_lambda=0.5
    ).before
    after = contents(tmp_path / "out")
    for layer in found.layers:
        assert layer.intruders == 1, layer.name
        wanted, _ = by_formula(one[layer.name].T, other[layer.name].T, 0.5)
        assert after[layer.name][1] == one[layer.name].shape
        assert relative(array(after[layer.name]), wanted.T) < 1e-5


def test_transformers_loads_what_was_mended(tmp_path):
    transformers = pytest.importorskip("transformers")
    base = torch_classifier(config_of(**SIZES), seed=2)
    base.save_pretrained(tmp_path / "base")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    weight = dict(base.named_parameters())[name]
    before = weight.detach().numpy().copy()
    tuned = planted(before, 40.0)
    weight.data.copy_(weight.data.new_tensor(tuned))
    base.save_pretrained(tmp_path / "tuned", max_shard_size="40KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1
    found = mitigate(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", mitigation_lambda=0.5).before
    assert [layer.name for layer in found.layers if layer.intruders] == [name]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    wanted, _ = by_formula(before, tuned, 0.5)
    assert relative(theirs.pop(name), wanted) < 1e-5
    own = base.state_dict()
    assert all((theirs[key] == own[key]).all() for key in theirs) and len(theirs) == len(own) - 1


@pytest.mark.parametrize("method", ["bounds", "eigh"])
def test_vectors_of_layers_without_an_svd_are_good_enough(tmp_path, method):
    """Lanczos's are off by 2e-3 at most."""
    limits = ScanLimits(eigh_side=0) if method == "bounds" else ScanLimits()
    w = matrix(140, 130)
    base = write(tmp_path / "b", {"x.fc.weight": w})
    tuned = planted(w, 30.0, 15.0)
    found = mitigate(
        base, write(tmp_path / "t", {"x.fc.weight": tuned}), tmp_path / "out", mitigation_lambda=0.5, limits=limits
    ).before
    assert found.layers[0].algorithm == method and found.intruders == 2
    wanted, _ = by_formula(w, tuned, 0.5)
    off = array(contents(tmp_path / "out")["x.fc.weight"]) - wanted
    assert np.linalg.norm(off) < 4e-3 * np.linalg.norm(wanted - tuned)


# -- what cannot be done -----------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    one, other = weights_of()
    return write(tmp_path / "b", one), write(tmp_path / "t", other)


@pytest.mark.parametrize("scale", [-0.1, 1, 1.5, float("nan"), float("inf"), "much", None])
def test_scales_that_mend_nothing(scale, pair, tmp_path):
    with refused(f"mitigation_lambda = {scale!r}: must be a finite number in [0, 1)"):
        mitigate(*pair, tmp_path / "out", mitigation_lambda=scale)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(pair, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = files(tmp_path)
    for out in (tmp_path / "out", tmp_path / "file", pair[1], pair[0]):
        with refused(f"out = {out}: is not empty; choose an empty or new folder"):
            mitigate(*pair, out)
    with refused("out = ", "cannot be used as an output folder"):
        mitigate(*pair, tmp_path / "file/below")
    assert files(tmp_path) == before
    (tmp_path / "empty").mkdir()
    mitigate(*pair, tmp_path / "empty")
    assert (tmp_path / "empty/model.safetensors").exists()


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_of_a_mending_that_is_broken_off(there, pair, tmp_path, monkeypatch):
    """At the last file, when weights have been written."""

    def broken(*_, **__):
        assert list((tmp_path / "out").glob("*.safetensors"))
        raise KeyboardInterrupt

    if there:
        (tmp_path / "out").mkdir()
    monkeypatch.setattr(importlib.import_module("rmtjax.intruders.mitigate"), "_copy_beside", broken)
    with pytest.raises(KeyboardInterrupt):
        mitigate(*pair, tmp_path / "out")
    assert (tmp_path / "out").exists() == there
    assert not list(tmp_path.glob("out/*"))


def test_nothing_is_left_where_the_scan_fails(pair, tmp_path):
    broken = shutil.copytree(pair[1], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((pair[1] / "model.safetensors").read_bytes()[:2000])
    for tuned, options in (
        (broken, {}),
        (pair[1], {"top_k": 41}),
        (pair[1], {"threshold_epsilon": 1}),
        (pair[1], {"layers": "["}),
    ):
        with refused():
            mitigate(pair[0], tuned, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    other = write_adapter(tmp_path / "a", {"a.fc": (matrix(2, 47), matrix(40, 2))})
    with refused("BA has shape [40, 47]"):
        mitigate(pair[0], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
