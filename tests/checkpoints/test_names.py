"""Names of weights: wrappers, towers, and what transformers calls in memory what a file calls otherwise."""

import doctest

import pytest

from rmtjax.checkpoints import matching, names
from rmtjax.checkpoints.matching import match_names
from rmtjax.checkpoints.names import Conversion, InMemory, Names, plain_name, without_wrappers
from tests.models.helpers import refused


def test_examples():
    assert doctest.testmod(names).failed == 0 and doctest.testmod(matching).failed == 0


@pytest.mark.parametrize(
    "lead",
    [
        "",
        "_orig_mod.",
        "module.",
        "base_model.model.",
        "module._orig_mod.base_model.model.",
        "base_model.model.base_model.model.",
    ],
)
@pytest.mark.parametrize("inner", ["", "_fsdp_wrapped_module.", "_orig_mod."])
def test_wrappers(lead, inner):
    name = f"{lead}model.layers.0.{inner}q_proj.weight"
    plain, inside = without_wrappers(name)
    assert plain == plain_name(name) == "model.layers.0.q_proj.weight" and inside == [inner.rstrip(".")] * bool(inner)


def test_a_module_that_is_called_so_stays():
    assert plain_name("transformer.module.fc.weight") == "transformer.module.fc.weight"


@pytest.mark.parametrize(
    ("config", "in_file", "in_memory"),
    [
        ({"model_type": "llama"}, "model.layers.0.q_proj.weight", InMemory("model.layers.0.q_proj.weight")),
        (
            {"model_type": "mixtral"},
            "model.layers.1.block_sparse_moe.experts.2.w3.weight",
            InMemory("model.layers.1.mlp.experts.gate_up_proj", expert=2, part=1, parts=2),
        ),
        (
            {"model_type": "qwen3_moe"},
            "model.layers.1.mlp.experts.10.down_proj.weight",
            InMemory("model.layers.1.mlp.experts.down_proj", expert=10),
        ),
        (
            {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}},
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
            InMemory("model.vision_tower.encoder.layers.0.mlp.fc1.weight"),
        ),
        (
            {"model_type": "clip", "architectures": ["CLIPModel"]},
            "vision_model.encoder.layers.0.mlp.fc1.weight",
            InMemory("vision_model.encoder.layers.0.mlp.fc1.weight"),
        ),
        (
            {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
            "vit.encoder.layer.0.attention.attention.query.weight",
            InMemory("vit.layers.0.attention.q_proj.weight"),
        ),
        ({"model_type": "nobody-knows"}, "a.b.weight", InMemory("a.b.weight")),
        ({"model_type": None, "architectures": 3}, "a.b.weight", InMemory("a.b.weight")),
        (None, "visual.blocks.0.qkv.weight", InMemory("visual.blocks.0.qkv.weight")),
    ],
)
def test_names_in_memory(config, in_file, in_memory):
    assert Conversion(config).memory(in_file) == in_memory


def test_the_class_that_an_adapter_was_made_for():
    conversion = Conversion({"model_type": "clip", "architectures": ["CLIPModel"]}, "CLIPVisionModel")
    assert conversion.memory("vision_model.encoder.layers.0.mlp.fc1.weight").name == "encoder.layers.0.mlp.fc1.weight"
    assert conversion.memory("text_model.encoder.layers.0.mlp.fc1.weight").name.startswith("text_model.")


def sides(*lists):
    return [[Names(name, name, name) for name in names] for names in lists]


TEXT, VISION = "model.language_model.layers.0.fc.weight", "model.vision_tower.layers.0.fc.weight"


@pytest.mark.parametrize(
    ("item", "others", "found"),
    [
        ("layers.0.fc.weight", [TEXT], TEXT),
        ("model.layers.0.fc.weight", [TEXT], TEXT),
        ("language_model.model.layers.0.fc.weight", [TEXT, VISION], TEXT),
        ("vision_tower.layers.0.fc.weight", [TEXT, VISION], VISION),
        ("vision_tower.layers.0.fc.weight", [TEXT], None),
        ("audio_tower.layers.0.fc.weight", [TEXT, VISION], None),
        ("layers.0.fc.weight", [VISION, "model.language_model.head.weight"], None),
        ("layers.0.fc.weight", [VISION], VISION),  # the whole model is that tower
        ("bert.layers.0.fc.weight", ["layers.0.fc.weight"], "layers.0.fc.weight"),
        ("encoder.layers.0.fc.weight", ["decoder.layers.0.fc.weight"], None),
    ],
)
def test_the_same_layer_under_other_names(item, others, found):
    assert match_names(*sides([item], others), "tuned") == ({} if found is None else {item: found})


def test_a_layer_that_could_be_of_two_towers():
    with refused("tuned: layers.0.fc.weight could be any of", TEXT, VISION, "select one with layers"):
        match_names(*sides(["layers.0.fc.weight"], [VISION, TEXT]), "tuned")
    of_text = match_names(
        *sides(["layers.0.fc.weight"], [VISION, TEXT]), "tuned", lambda _, names: [n for n in names if n == TEXT]
    )
    assert of_text == {"layers.0.fc.weight": TEXT}
