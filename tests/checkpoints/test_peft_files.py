"""Adapters' files as trainers leave them: names of adapters and wrappers in the keys, patterns, parameters, experts."""

import numpy as np
import pytest

from rmtjax.checkpoints import read_peft
from rmtjax.intruders import Pairs
from tests.intruders.helpers import matrix, write, write_adapter
from tests.models.helpers import refused

PREFIX = "base_model.model."


def adapter(folder, tensors, **config):
    """An adapter of which the keys are given whole."""
    write_adapter(folder, {"unused": (matrix(1, 2), matrix(2, 1))}, **config)
    write(folder, tensors, "adapter_model.safetensors")
    return folder


def pair_of(layer, name="", seed=0, lead=PREFIX):
    return {
        f"{lead}{layer}.lora_A{name}.weight": matrix(2, 6, seed),
        f"{lead}{layer}.lora_B{name}.weight": matrix(5, 2, seed + 1),
    }


# -- names of adapters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".default", ".my-adapter"])
def test_the_name_of_the_only_adapter(name, tmp_path):
    tensors = pair_of("x.fc", name) | {
        f"{PREFIX}head.modules_to_save{name or '.default'}.weight": matrix(3, 5),
        f"{PREFIX}x.fc.lora_magnitude_vector{name}": matrix(5, 1)[:, 0],
    }
    file = read_peft(adapter(tmp_path, tensors, use_dora=True))
    np.testing.assert_array_equal(file.layers["x.fc"].A, matrix(2, 6, 0))
    np.testing.assert_array_equal(file.layers["x.fc"].magnitude, matrix(5, 1)[:, 0])
    assert list(file.whole) == ["head.weight"] and file.remarks == []


def test_the_adapter_without_a_name_is_the_one(tmp_path):
    tensors = pair_of("x.fc", seed=2) | pair_of("x.fc", ".other") | pair_of("x.g", ".default")
    file = read_peft(adapter(tmp_path, tensors))
    np.testing.assert_array_equal(file.layers["x.fc"].A, matrix(2, 6, 2))
    assert sorted(file.layers) == ["x.fc", "x.g"]
    assert file.remarks == ["the adapter's file also holds the adapters other, which are not read"]


def test_several_adapters_with_names(tmp_path):
    with refused(f"adapter = {tmp_path}: holds several adapters, default, other", "selected_adapters"):
        read_peft(adapter(tmp_path, pair_of("x.fc", ".default") | pair_of("x.fc", ".other")))


def test_the_weights_that_training_replaced_are_not_the_adapters(tmp_path):
    tensors = pair_of("x.fc") | {
        f"{PREFIX}head.original_module.weight": matrix(3, 5, 1),
        f"{PREFIX}head.modules_to_save.default.weight": matrix(3, 5, 2),
    }
    file = read_peft(adapter(tmp_path, tensors))
    assert file.whole == {"head.weight": f"{PREFIX}head.modules_to_save.default.weight"}


# -- wrappers and patterns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", ["", "_orig_mod.", "module.", PREFIX])
def test_patterns_are_anchored_after_what_wrappers_put_before(lead, tmp_path):
    tensors = pair_of("m.l.0.fc", lead=f"{lead}{PREFIX}")
    file = read_peft(adapter(tmp_path, tensors, alpha_pattern={r"^m\.l\.0\.fc": 32}))
    assert list(file.layers) == ["m.l.0.fc"] and file.layers["m.l.0.fc"].strength == 16


def test_a_wrapper_inside_that_decides_the_strength(tmp_path):
    tensors = pair_of("_orig_mod.m.l.0.fc") | pair_of("m.l.1._fsdp_wrapped_module.fc")
    tensors = {name.replace(f"{PREFIX}_orig", f"{PREFIX}m._orig"): value for name, value in tensors.items()}
    file = read_peft(adapter(tmp_path / "plain", tensors, alpha_pattern={"fc": 32}))
    assert sorted(file.layers) == ["m.l.1.fc", "m.m.l.0.fc"] and {x.strength for x in file.layers.values()} == {16}
    with refused("m.m.l.0.fc contains the name of the wrapper _orig_mod", "alpha_pattern"):
        read_peft(adapter(tmp_path / "anchored", tensors, alpha_pattern={r"^m\.m\.l\.0\.fc": 32}))


def test_patterns_that_match_nothing_are_told(tmp_path):
    file = read_peft(
        adapter(tmp_path, pair_of("x.fc"), alpha_pattern={"fc": 4, "nowhere": 5}, rank_pattern={"x\\.g": 3, "x.fc": 2})
    )
    assert file.remarks == [
        "alpha_pattern has nowhere, which matches no layer of the adapter and has no effect",
        "rank_pattern has x\\.g, which matches no layer of the adapter and has no effect",
    ]


@pytest.mark.parametrize(("times", "version"), [(2, None), (2, "0.21.2"), (2, "0.17.0.dev0"), (1, "0.22.0")])
def test_the_projection_that_peft_adds_twice(times, version, tmp_path):
    """`nn.MultiheadAttention.out_proj`; see tests/zoo for PEFT itself."""
    tensors = pair_of("attn.base_layer.out_proj") | pair_of("mlp.out_proj")
    file = read_peft(adapter(tmp_path, tensors, peft_version=version))
    assert file.layers["attn.out_proj"].strength == 2 * times and file.layers["mlp.out_proj"].strength == 2
    assert len(file.remarks) == times - 1


@pytest.mark.parametrize("kind", ["LOHA", "LOKR", "IA3", "OFT", None])
def test_other_adapters_can_be_merged(kind, tmp_path):
    with refused(
        f"peft_type = {kind!r} is not supported; must be LORA", "merge_and_unload", "the folder of the merged model"
    ):
        read_peft(adapter(tmp_path, pair_of("x.fc"), peft_type=kind))
    with refused("init_lora_weights = 'pissa' also changes the base", "the folder of the merged model"):
        read_peft(adapter(tmp_path, pair_of("x.fc"), init_lora_weights="pissa"))


# -- parameters and experts ------------------------------------------------------------------------------------------------


def test_the_strength_of_a_parameter(tmp_path):
    """PEFT's pattern for a parameter names the parameter, and its rank is that of one expert."""
    base = write(tmp_path / "b", {"l.q.weight": matrix(5, 6), "l.v.weight": matrix(5, 6, 1)})
    tuned = adapter(
        tmp_path / "a", pair_of("l.q") | pair_of("l.v"), target_modules=[], target_parameters=["q.weight", "v.weight"],
        alpha_pattern={r"q\.weight": 10, "v": 100},
    )  # fmt: skip
    changes = {pair.name: pair.update() for pair in Pairs(base, tuned)}
    product = matrix(5, 2, 1) @ matrix(2, 6, 0)
    np.testing.assert_allclose(changes["l.q.weight"], 5 * product, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(changes["l.v.weight"], 2 * product, rtol=1e-4, atol=1e-5)  # 4 of lora_alpha over 2


def experts(folder, transposed, config=None):
    """Three experts of 4 hidden and 6 inner features."""
    shapes = {"gate_up_proj": (12, 4), "down_proj": (4, 6)}
    tensors = {
        f"m.experts.{name}": np.stack([matrix(*shape, seed=i) for i in range(3)]) for name, shape in shapes.items()
    }
    if transposed:
        tensors = {name: np.ascontiguousarray(value.transpose(0, 2, 1)) for name, value in tensors.items()}
    return write(folder, tensors, config=config)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("which", [["gate_up_proj", "down_proj"], ["down_proj"], ["gate_up_proj"]])
def test_experts_in_one_tensor(which, transposed, tmp_path):
    """PEFT keeps the A of all experts below one another, the B interleaved; the innermost wrapper is of the first parameter."""
    rng = np.random.default_rng(0)
    shapes, tensors, factors = {"gate_up_proj": (12, 4), "down_proj": (4, 6)}, {}, {}
    for name, path in zip(which, ["m.experts.base_layer", "m.experts"][-len(which) :], strict=True):
        n, m = shapes[name]
        a, b = rng.standard_normal((3, 2, m)).astype(np.float32), rng.standard_normal((3, n, 2)).astype(np.float32)
        factors[name] = a, b
        tensors[f"{PREFIX}{path}.lora_A.weight"] = a.reshape(6, m)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = b.transpose(1, 2, 0).reshape(n, 6)
    targets = [f"experts.{name}" for name in ("gate_up_proj", "down_proj")]
    tuned = adapter(tmp_path / "a", tensors, target_modules=[], target_parameters=targets, lora_alpha=6)
    pairs = Pairs(experts(tmp_path / "b", transposed), tuned)
    assert (
        pairs.names == [f"m.experts.{name}[{i}]" for name in sorted(which) for i in range(3)] and not pairs.incomplete
    )
    for pair in pairs:
        name, i = pair.name.removeprefix("m.experts.")[:-3], int(pair.name[-2])
        a, b = factors[name]
        np.testing.assert_allclose(pair.base, matrix(*shapes[name], seed=i), atol=1e-6)
        np.testing.assert_allclose(pair.update(), 3 * b[i] @ a[i], rtol=1e-4, atol=1e-4)


def test_experts_one_by_one_in_the_file(tmp_path):
    """In memory the projections gate and up of all experts are one tensor; the file has each expert's own."""
    config = {"model_type": "qwen3_moe"}
    names = [f"model.layers.0.mlp.experts.{i}.{part}_proj.weight" for i in range(3) for part in ("gate", "up")]
    base = write(tmp_path / "b", {name: matrix(6, 4, seed) for seed, name in enumerate(names)}, config=config)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 2, 4)).astype(np.float32), rng.standard_normal((3, 12, 2)).astype(np.float32)
    tensors = {
        f"{PREFIX}model.layers.0.mlp.experts.lora_A.weight": a.reshape(6, 4),
        f"{PREFIX}model.layers.0.mlp.experts.lora_B.weight": b.transpose(1, 2, 0).reshape(12, 6),
    }
    tuned = adapter(tmp_path / "a", tensors, target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
    changes = {pair.name: pair.update() for pair in Pairs(base, tuned)}
    assert sorted(changes) == sorted(names)
    for i in range(3):
        for part, rows in (("gate", slice(0, 6)), ("up", slice(6, 12))):
            found = changes[f"model.layers.0.mlp.experts.{i}.{part}_proj.weight"]
            np.testing.assert_allclose(found, 2 * b[i, rows] @ a[i], rtol=1e-4, atol=1e-4)
    (tmp_path / "b/config.json").unlink()
    with refused("model.layers.0.mlp.experts is kept by the base in tensors such as", "without its config.json"):
        Pairs(base, tuned)


def test_layers_of_one_fused_weight(tmp_path):
    """The file keeps query, key and value in one matrix, which memory splits; an adapter on two of them updates its rows."""
    base = write(tmp_path / "b", {"blocks.0.attn.qkv.weight": matrix(12, 6)}, config={"model_type": "radio"})
    path = "blocks.0.attention."
    factors = {f"{path}{part}_proj": (matrix(1, 6, seed), matrix(4, 1, seed)) for seed, part in enumerate("qv")}
    (pair,) = Pairs(base, write_adapter(tmp_path / "a", factors, r=1, lora_alpha=1))
    wanted = np.zeros((12, 6))
    wanted[:4], wanted[8:] = matrix(4, 1, 0) @ matrix(1, 6, 0), matrix(4, 1, 1) @ matrix(1, 6, 1)
    np.testing.assert_allclose(pair.update(), wanted, atol=1e-4)
