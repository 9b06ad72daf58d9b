"""Adapters of PEFT on many families of transformers: every matrix that merging changes is compared, and counted as by two SVDs.

What merging changes is read from the files that transformers and PEFT write themselves. The scan of the adapter must find each of
these matrices, by its name in the base's file, with the same numbers and the same count as that of the merged model; and nothing
else. Markers: these tests need PyTorch, transformers and PEFT, and run in a job of their own (`make zoo`).
"""

import json
import re

import numpy as np
import pytest

from rmtjax.intruders import Pairs, mitigate, scan

from .conversions import TABLE, table, written
from .families import FAMILIES, adapted, build, counted, matrices

pytest.importorskip("peft", reason="needs the peers")
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]
TOP = 4
FAMILY = {family.kind: family for family in FAMILIES}
STACKS = ["experts.gate_up_proj", "experts.down_proj"]
CASES = [
    *((kind, {}) for kind in FAMILY),
    *((kind, {"use_dora": True}) for kind in ("llama", "gpt2", "llava", "vit", "qwen2_5_vl")),
    *((kind, {"use_rslora": True}) for kind in ("qwen3", "gemma3", "swin")),
    ("qwen2", {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 3}}),
    ("qwen2", {"alpha_pattern": {r"layers\.1\.self_attn\.\w+": 9, r"^model\.layers\.0\.mlp": 1, "up_proj": 0.1}}),
    (
        "qwen2_vl",
        {"alpha_pattern": {r"^model\.visual\.blocks\.0\.attn\.qkv": 9, r"language_model\.layers\.1\..*": 0.5}},
    ),
    ("qwen2_vl", {"target_modules": r".*language_model.*\.(q_proj|v_proj)"}),
    ("llava", {"target_modules": r".*vision_tower.*\.(q_proj|fc1)"}),
    ("vit", {"target_modules": ["q_proj", "fc2"], "rank_pattern": {"fc2": 4}}),
    *(
        (kind, {"target_modules": [], "target_parameters": STACKS})
        for kind in ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")
    ),
    *(
        (kind, {"target_modules": [], "target_parameters": STACKS[1:]})
        for kind in ("llama4_text", "granitemoe", "olmoe")
    ),
    ("llama4_text", {"target_modules": ["q_proj"], "target_parameters": STACKS[:1], "use_rslora": True}),
    (
        "gpt_oss",
        {
            "target_modules": [],
            "target_parameters": STACKS,
            "rank_pattern": {r".*gate_up_proj": 3},
            "alpha_pattern": {"down_proj": 1},
        },
    ),
    (
        "llama",
        {
            "target_modules": [],
            "target_parameters": ["q_proj.weight", "0.mlp.down_proj.weight"],
            "alpha_pattern": {r"q_proj\.weight": 9, "down_proj": 0.1},
        },
    ),
    ("llama", {"modules_to_save": ["lm_head"]}),
    ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    *(
        (kind, {"target_modules": ["q_proj"], "modules_to_save": ["experts"]})
        for kind in ("mixtral", "gpt_oss", "llama4_text")
    ),
    ("gpt2", {"target_modules": [], "target_parameters": ["attn.c_proj.weight", "c_fc.weight"]}),
    ("bert", {"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]}),
    ("roberta", {"task_type": "SEQ_CLS"}),
    ("bert", {"bias": "all"}),
    ("qwen2", {"bias": "lora_only", "lora_bias": True, "target_modules": ["q_proj"]}),
    ("bart", {"layers_to_transform": [0], "layers_pattern": "layers", "target_modules": ["fc1"]}),
    ("mamba", {"target_modules": ["in_proj"]}),
]


def case_name(kind, options):
    return "-".join([kind, *(f"{key}={json.dumps(value)}" for key, value in options.items())])


def oriented(family, name, value):
    return value.T if re.search(family.turned, name) else value


def changed_by_merging(base, merged):
    """Matrices of the base that the merged model has changed: name → (before, after)."""
    before, after = matrices(base), matrices(merged)
    assert before.keys() == after.keys()
    return {name: (before[name], after[name]) for name in before if not np.array_equal(before[name], after[name])}


def check(family, base, adapter, merged, layers="."):
    """Names, numbers and counts of the scan of an adapter, and of the merged folder, against the merged folder's files."""
    wanted = changed_by_merging(base, merged)
    assert wanted
    pairs = Pairs(base, adapter, layers=layers)
    assert sorted(pairs.names) == sorted(wanted)
    assert pairs.incomplete == []
    for pair in pairs:
        after = oriented(family, pair.name, wanted[pair.name][1])
        size = np.abs(after).max()
        np.testing.assert_allclose(np.asarray(pair.tuned.dense()), after, atol=1e-5 * size, rtol=0, err_msg=pair.name)
    large = {name: value for name, value in wanted.items() if min(value[0].shape) >= TOP}
    counts = {
        name: counted(*(oriented(family, name, value) for value in both), top=TOP) for name, both in large.items()
    }
    for tuned in (adapter, merged):
        found = scan(base, tuned, top_k=TOP, layers=layers)
        by_name = {layer.name: layer.intruders for layer in found.layers}
        assert {name: by_name[name] for name in counts} == counts
        assert all(count == 0 for name, count in by_name.items() if name not in counts)
        assert found.incomplete == ()


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[case_name(*case) for case in CASES])
def test_every_matrix_is_compared(kind, options, tmp_path):
    family = FAMILY[kind]
    model = build(family)
    model.save_pretrained(tmp_path / "base")
    targets = family.targets if isinstance(family.targets, str) else list(family.targets)
    wrapped = adapted(model, **{"target_modules": targets, **options})
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    check(family, tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("kind", ["llama", "mixtral", "llava"])
def test_a_base_in_half_precision_and_shards(kind, tmp_path):
    """The adapter was trained on the very numbers of the base, in single precision, in which it is merged here."""
    family = FAMILY[kind]
    model = build(family, "bfloat16")
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 1
    wrapped = adapted(model.float())
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    check(family, tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize(
    ("whole", "part"),
    [("clip", "vision_model"), ("clip", "text_model"), ("siglip", "vision_model"), ("llama", "model")],
)
def test_an_adapter_of_a_part_beside_the_whole(whole, part, tmp_path):
    """One tower alone, loaded from the whole's folder, or the trunk without its head."""
    import transformers

    family = FAMILY[whole]
    build(family).save_pretrained(tmp_path / "base")
    name = {"vision_model": "VisionModel", "text_model": "TextModel", "model": "Model"}[part]
    cls = getattr(transformers, {"clip": "CLIP", "siglip": "Siglip", "llama": "Llama"}[whole] + name)
    wrapped = adapted(cls.from_pretrained(tmp_path / "base"))
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = getattr(transformers, family.model).from_pretrained(tmp_path / "base")
    tower = wrapped.merge_and_unload()
    getattr(merged, part).load_state_dict(tower.state_dict(), strict=False)
    merged.save_pretrained(tmp_path / "merged")
    check(family, tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def test_an_adapter_of_a_text_model_on_a_vision_language_base(tmp_path):
    """The layers of Llama within LLaVA, adapted as a Llama of its own."""
    import torch
    import transformers

    whole = build(FAMILY["llava"])
    whole.save_pretrained(tmp_path / "base")
    text = transformers.LlamaForCausalLM(whole.config.text_config)
    text.model.load_state_dict(whole.model.language_model.state_dict())
    wrapped = adapted(text)
    wrapped.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        whole.model.language_model.load_state_dict(wrapped.merge_and_unload().model.state_dict())
    whole.save_pretrained(tmp_path / "merged")
    check(FAMILY["llava"], tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def test_attention_of_pytorch(tmp_path):
    """`nn.MultiheadAttention`, whose query, key and value are one parameter that is no layer."""
    import torch
    from safetensors.torch import save_file

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = torch.nn.MultiheadAttention(32, 4)
            self.fc = torch.nn.Linear(32, 16)

    torch.manual_seed(0)
    block = torch.nn.Sequential(Block(), Block())
    for folder in ("base", "merged"):
        (tmp_path / folder).mkdir()
    save_file(block.state_dict(), tmp_path / "base/model.safetensors")
    wrapped = adapted(block, target_modules=["attn", "fc"])
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = wrapped.merge_and_unload().state_dict()
    save_file({name: value.contiguous() for name, value in merged.items()}, tmp_path / "merged/model.safetensors")
    check(FAMILY["llama"], tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


MENDED = {
    "mixtral": {"target_modules": [], "target_parameters": STACKS},
    "gpt_oss": {"target_modules": [], "target_parameters": STACKS},
    "llava": {},
    "gpt2": {},
    "llama": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", MENDED)
def test_mended_adapters_load_in_peft(kind, tmp_path):
    """PEFT merges the output of `mitigate` into the numbers that its scan sees, with fewer intruders."""
    import peft
    import transformers

    family = FAMILY[kind]
    model = build(family)
    model.save_pretrained(tmp_path / "base")
    adapted(model, **MENDED[kind]).save_pretrained(tmp_path / "adapter")
    found = mitigate(
        tmp_path / "base", tmp_path / "adapter", tmp_path / "mended", mitigation_lambda=0.0, top_k=TOP, layers="."
    ).before
    planted = {layer.name for layer in found.layers if layer.intruders}
    assert planted
    base = getattr(transformers, family.model).from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "mended").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    pairs = Pairs(tmp_path / "base", tmp_path / "mended", layers=".")
    after = matrices(tmp_path / "merged")
    for pair in pairs:
        wanted = oriented(family, pair.name, after[pair.name])
        np.testing.assert_allclose(np.asarray(pair.tuned.dense()), wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
    left = scan(tmp_path / "base", tmp_path / "mended", top_k=TOP, layers=".")
    assert left.intruders < found.intruders


def test_the_table_of_conversions_is_that_of_transformers():
    """`python -m tests.zoo.conversions` writes it anew."""
    import transformers

    kept = json.loads(TABLE.read_text(encoding="utf-8"))
    if kept["source"].split()[1].rstrip(",") != transformers.__version__:
        pytest.skip(f"the table is of another version: {kept['source']}")
    assert written(table()) == TABLE.read_text(encoding="utf-8")
