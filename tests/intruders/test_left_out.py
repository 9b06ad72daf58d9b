"""Tensors that a scan cannot compare are named and show in the exit status; files that it must not touch stay unchanged."""

import json

import numpy as np
import pytest

from rmtjax.intruders import Pairs, mitigate, scan
from tests.checkpoints.helpers import raw, write_index, write_raw
from tests.checkpoints.test_tensors import QUANTIZED
from tests.models.helpers import refused

from .helpers import by_formula, matrix, planted, stored, write, write_adapter

FACTORS = matrix(2, 30), matrix(40, 2, 1)


@pytest.fixture
def run(command):
    return lambda *arguments: command("intruders", *arguments)


@pytest.mark.parametrize("says", [says for says in QUANTIZED if "MXFP4" not in says])
def test_an_adapter_on_a_base_that_is_quantised_in_part(says, run, tmp_path):
    base = write_raw(tmp_path / "b/model.safetensors", QUANTIZED[says] | {"y.weight": matrix(40, 30)}).parent
    tuned = write_adapter(tmp_path / "a", {"x": (matrix(2, 8), matrix(8, 2)), "y": FACTORS})
    status, out, _ = run(base, tuned)
    assert status == 1 and "INCOMPLETE: 1 that should have been compared could not be: x" in out
    assert says.rstrip(", ") in out.replace("\n", " ")
    with refused("has no weight matrix in common with the base", says.rstrip(", ")):
        Pairs(
            write_raw(tmp_path / "q/model.safetensors", QUANTIZED[says]).parent,
            write_adapter(tmp_path / "one", {"x": FACTORS}),
        )


@pytest.mark.parametrize("says", QUANTIZED)
def test_tables_of_scales_are_no_layers(says, run, tmp_path):
    """They are neither scanned nor changed by mending, although they are shaped like matrices."""
    tables = {name: value for name, value in QUANTIZED[says].items()}
    write_raw(tmp_path / "b/model.safetensors", tables | {"y.weight": matrix(40, 30)})
    write_raw(tmp_path / "t/model.safetensors", tables | {"y.weight": planted(matrix(40, 30), 30.0)})
    found = scan(tmp_path / "b", tmp_path / "t")
    assert [layer.name for layer in found.layers] == ["y.weight"] and {skip.name for skip in found.skipped} == {*tables}
    mitigate(tmp_path / "b", tmp_path / "t", tmp_path / "out", mitigation_lambda=0.0)
    before, after = (stored(tmp_path / folder / "model.safetensors") for folder in ("t", "out"))
    assert {name for name in before if before[name] != after[name]} == {"y.weight"}
    assert run(tmp_path / "b", tmp_path / "t")[0] == 1


def test_mend_writes_every_file_of_the_index(tmp_path):
    """One shard holds nothing but a stale copy of what the other has; it is copied as it is, and the copy is not mended."""
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    base, tuned = matrix(40, 30), planted(matrix(40, 30), 30.0)
    write(tmp_path / "b", {"a.weight": base, "b.weight": base})
    write(tmp_path / "t", {"a.weight": tuned}, one)
    write(tmp_path / "t", {"a.weight": matrix(40, 30, 9), "b.weight": base}, two)
    write_index(tmp_path / "t", {"b.weight": two, "a.weight": one})
    mitigate(tmp_path / "b", tmp_path / "t", tmp_path / "out", mitigation_lambda=0.0)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [one, two, "model.safetensors.index.json"]
    before, after = (stored(tmp_path / folder / two) for folder in ("t", "out"))
    assert before == after
    assert scan(tmp_path / "b", tmp_path / "out").intruders == 0 < scan(tmp_path / "b", tmp_path / "t").intruders


def test_matrices_that_an_adapter_holds_whole(tmp_path):
    """`modules_to_save`: compared, and mended in the adapter's file."""
    head = matrix(39, 30, 4)
    base = write(tmp_path / "b", {"m.fc.weight": matrix(40, 30), "m.head.weight": head})
    tuned = write_adapter(tmp_path / "a", {"fc": FACTORS})
    tensors = {f"base_model.model.fc.lora_{x}.weight": value for x, value in zip("AB", FACTORS, strict=True)}
    write(tuned, tensors | {"base_model.model.head.weight": planted(head, 40.0)}, "adapter_model.safetensors")
    found = scan(base, tuned)
    assert {layer.name: layer.intruders for layer in found.layers}["m.head.weight"] == 1 and not found.incomplete
    mitigate(base, tuned, tmp_path / "out", mitigation_lambda=0.0)
    after = {layer.name: layer.intruders for layer in scan(base, tmp_path / "out").layers}
    assert after["m.head.weight"] == 0


def test_a_model_of_peft_that_is_not_merged(tmp_path):
    """Its base's weights are there as they were, which would look like no change."""
    tuned = {
        "x.base_layer.weight": matrix(40, 30),
        "x.lora_A.default.weight": FACTORS[0],
        "x.lora_B.default.weight": FACTORS[1],
    }
    with refused("holds x.lora_A.default.weight, a LoRA that is not merged", "merge_and_unload"):
        Pairs(write(tmp_path / "b", {"x.weight": matrix(40, 30)}), write(tmp_path / "t", tuned))


def test_layers_of_another_shape(run, tmp_path):
    """In a stack of layers that is a layer which was not compared; a head may be one for other classes."""
    base = write(
        tmp_path / "b", {"h.0.fc.weight": matrix(40, 30), "h.1.fc.weight": matrix(40, 30), "head.weight": matrix(3, 30)}
    )
    same = planted(matrix(40, 30), 30.0)
    tuned = write(
        tmp_path / "t", {"h.0.fc.weight": same, "h.1.fc.weight": matrix(41, 30), "head.weight": matrix(5, 30)}
    )
    status, out, _ = run(base, tuned)
    assert status == 1 and "INCOMPLETE: 1 that should have been compared could not be: h.1.fc.weight" in out


def test_weights_of_more_dimensions_that_changed(run, tmp_path):
    """A convolution is no matrix here; where tuning has changed it, the status says that not all was compared."""
    kept = {"h.0.fc.weight": matrix(40, 30), "conv.weight": np.ones((4, 3, 5, 5), np.float32)}
    base = write(tmp_path / "b", kept)
    assert run(base, write(tmp_path / "t", {**kept, "h.0.fc.weight": planted(matrix(40, 30), 30.0)}))[0] == 0
    status, out, _ = run(base, write(tmp_path / "u", {**kept, "conv.weight": 2 * kept["conv.weight"]}))
    assert status == 1 and "INCOMPLETE: 1 that should have been compared could not be: conv.weight" in out


def test_a_head_that_is_tied(tmp_path):
    base = write(
        tmp_path / "b",
        {"model.embed.weight": matrix(40, 30), "fc.weight": matrix(40, 30)},
        config={"model_type": "llama"},
    )
    pairs = Pairs(base, write_adapter(tmp_path / "a", {"lm_head": FACTORS, "fc": FACTORS}))
    assert pairs.incomplete == ["lm_head"]
    assert pairs.skipped == [("lm_head", "tied to the embedding, which the base's file holds instead of it")]


def test_parameters_that_are_no_maps(tmp_path):
    weights = {
        "l.0.mixer.A_log": matrix(40, 30), "l.0.attn.relative_position_bias_table": matrix(40, 30),
        "vision.pos_embed": matrix(40, 30), "l.0.attn.in_proj_weight": matrix(40, 30), "projection": matrix(40, 30),
    }  # fmt: skip
    tuned = {name: planted(value, 30.0) for name, value in weights.items()}
    pairs = Pairs(write(tmp_path / "b", weights), write(tmp_path / "t", tuned))
    assert pairs.names == ["l.0.attn.in_proj_weight", "projection"]
    assert {skip.name for skip in pairs.skipped} == weights.keys() - {*pairs.names} and not pairs.incomplete


def test_layers_choose_among_several(run, tmp_path):
    """An adapter of one tower alone, whose names do not say which."""
    names = [f"{tower}.encoder.layers.0.fc.weight" for tower in ("text_model", "vision_model")]
    base = write(tmp_path / "b", {name: matrix(40, 30, i) for i, name in enumerate(names)})
    tuned = write_adapter(tmp_path / "a", {"encoder.layers.0.fc": FACTORS})
    status, _, errors = run(base, tuned)
    assert status == 2 and all(name in errors for name in names) and "layers" in errors
    assert run(base, tuned, "--layers", "vision_model")[0] == 0
    assert Pairs(base, tuned, "vision_model").names == names[1:]


def test_stacks_of_layers_under_other_names(run, tmp_path):
    """Both sides have layers that the other lacks, beside one in common: the status says that not all was compared."""
    base = write(tmp_path / "b", {"h.0.attention.query.weight": matrix(40, 30), "fc.weight": matrix(40, 30)})
    tuned = write(tmp_path / "t", {"h.0.attn.q.weight": matrix(40, 30), "fc.weight": planted(matrix(40, 30), 30.0)})
    status, out, _ = run(base, tuned)
    assert (
        status == 1 and "INCOMPLETE: 1 that should have been compared could not be: h.0.attention.query.weight" in out
    )
    assert run(base, write(tmp_path / "u", {"fc.weight": matrix(40, 30)}))[0] == 0  # a part of the model alone


def test_experts_in_merged_folders(tmp_path):
    """Stacks of matrices are compared one by one, and mended where they lie; a convolution is none."""
    stack = np.stack([matrix(40, 30, i) for i in range(3)])
    tuned = stack.copy()
    tuned[1] = planted(stack[1], 40.0, 60.0)
    kept = {"m.conv.weight": np.ones((4, 5, 3), np.float32)}
    base = write(tmp_path / "b", {"m.0.experts.down_proj": stack, **kept})
    after = write(tmp_path / "t", {"m.0.experts.down_proj": tuned, **kept})
    found = scan(base, after)
    assert {layer.name: layer.intruders for layer in found.layers} == {
        f"m.0.experts.down_proj[{i}]": 2 * (i == 1) for i in range(3)
    }
    mitigate(base, after, tmp_path / "out", mitigation_lambda=0.0)
    mended = stored(tmp_path / "out/model.safetensors")["m.0.experts.down_proj"]
    values = np.frombuffer(mended[2], np.float32).reshape(3, 40, 30)
    np.testing.assert_array_equal(values[[0, 2]], stack[[0, 2]])
    assert np.linalg.norm(values[1] - stack[1]) < 0.2 * np.linalg.norm(tuned[1] - stack[1])


def test_a_base_of_integers_is_not_trained(command, tmp_path):
    """The same reader serves `finetune --model` and the scan."""
    from rmtjax.models import load_classifier, save_model
    from tests.models.helpers import classifier

    folder = save_model(classifier(), tmp_path / "m")
    weights = stored(folder / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    shape = weights[name][1]
    write_raw(
        folder / "model.safetensors",
        weights | {name: raw("I8", shape, 8), name.replace("weight", "SCB"): matrix(16, 1)},
    )
    with refused(f"model = {folder}", f"holds {name}, which is quantised to 8-bit integers by bitsandbytes"):
        load_classifier(folder)


def test_an_update_of_an_embedding(run, tmp_path):
    """PEFT adds the transposed of BA to the table. It is compared where `layers` asks for it, as the merged model's would be."""
    table, a, b = matrix(50, 30), matrix(2, 50, 1), matrix(30, 2, 2)
    kept = {"fc.weight": matrix(40, 30), "square_embeddings.weight": matrix(30, 30), "word_embeddings.weight": table}
    base = write(tmp_path / "b", kept)
    adapter = write_adapter(tmp_path / "a", {"fc": FACTORS})
    keys = {"word_embeddings": (a, b), "square_embeddings": (matrix(2, 30, 1), matrix(30, 2, 2))}
    parts = {
        f"base_model.model.{name}.lora_embedding_{part}": value
        for name, pair in keys.items()
        for part, value in zip("AB", pair, strict=True)
    }
    factors = {f"base_model.model.fc.lora_{x}.weight": value for x, value in zip("AB", FACTORS, strict=True)}
    write(adapter, {**parts, **factors}, "adapter_model.safetensors")
    status, out, _ = run(base, adapter)
    assert status == 0 and "an embedding (select it with --layers)" in out
    pairs = Pairs(base, adapter, layers=".")
    assert pairs.names == ["fc.weight", "square_embeddings.weight", "word_embeddings.weight"] and not pairs.incomplete
    merged = {}
    for pair in pairs:
        merged[pair.name] = np.asarray(pair.tuned.dense())
    for name, (a, b) in keys.items():
        np.testing.assert_allclose(
            merged[f"{name}.weight"], kept[f"{name}.weight"] + 2 * (b @ a).T, rtol=1e-5, atol=1e-5
        )
    by_name = {
        tuned: {layer.name: layer.intruders for layer in scan(base, tuned, layers=".").layers}
        for tuned in (adapter, write(tmp_path / "t", merged))
    }
    assert len({str(sorted(counts.items())) for counts in by_name.values()}) == 1
    expected = by_formula(table, merged["word_embeddings.weight"], 0.0)[1]
    assert by_name[adapter]["word_embeddings.weight"] == expected > 0
    mitigate(base, adapter, tmp_path / "out", mitigation_lambda=0.0, layers="word")
    assert scan(base, tmp_path / "out", layers="word").intruders == 0


def test_rows_of_an_embedding_that_were_asked_for(run, tmp_path):
    base = write(tmp_path / "b", {"fc.weight": matrix(40, 30), "embed_tokens.weight": matrix(50, 30)})
    adapter = write_adapter(tmp_path / "a", {"fc": FACTORS})
    tensors = {f"base_model.model.fc.lora_{x}.weight": value for x, value in zip("AB", FACTORS, strict=True)}
    tensors["base_model.model.embed_tokens.token_adapter.trainable_tokens_delta"] = matrix(3, 30)
    write(adapter, tensors, "adapter_model.safetensors")
    assert run(base, adapter)[0] == 0
    status, out, _ = run(base, adapter, "--layers", ".")
    assert status == 1 and "embed_tokens.token_adapter.trainable_tokens_delta" in out


def test_a_dense_layer_called_an_embedding(tmp_path):
    """A table of rows has no bias; PatchTST's `input_embedding` is a dense layer, and has one."""
    kept = {
        "fc.weight": matrix(40, 30),
        "input_embedding.weight": matrix(40, 30, 1),
        "embedding.weight": matrix(50, 30),
    }
    kept["input_embedding.bias"] = np.ones(40, np.float32)
    base = write(tmp_path / "b", kept)
    pairs = Pairs(base, write(tmp_path / "t", {**kept, "fc.weight": planted(kept["fc.weight"], 30.0)}))
    assert pairs.names == ["fc.weight", "input_embedding.weight"]


@pytest.mark.parametrize(
    ("g", "v"), [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]
)
def test_weight_norm(g, v, run, tmp_path):
    """W = g v/‖v‖ is in the file as two tensors, neither of which is W."""
    kept = {"fc.weight": matrix(40, 30), f"proj.{g}": np.ones((20, 1), np.float32), f"proj.{v}": matrix(20, 30)}
    base = write(tmp_path / "b", kept)
    changed = {**kept, "fc.weight": planted(kept["fc.weight"], 30.0)}
    assert run(base, write(tmp_path / "t", changed))[0] == 0
    for one in (g, v):
        status, out, _ = run(base, write(tmp_path / one, {**changed, f"proj.{one}": 2 * kept[f"proj.{one}"]}))
        assert status == 1 and f"could not be: proj.{one}" in out and "weight norm" in out


def test_layers_that_were_renamed(run, tmp_path):
    """Without a number in them, names do not show that two layers are one; it is said, since a head may be another head."""
    base = write(tmp_path / "b", {"fc.weight": matrix(40, 30), "pooler.dense.weight": matrix(30, 30)})
    tuned = write(tmp_path / "t", {"fc.weight": planted(matrix(40, 30), 9.0), "head.fc.weight": matrix(30, 30)})
    status, out, _ = run(base, tuned)
    assert status == 0 and "pooler.dense.weight is only in the base" in out.replace("\n", " ")


def test_a_matrix_that_was_zero(run, tmp_path):
    """Of zeros there are no singular vectors, so that all of after are new: told, unless it is as it was."""
    kept = {"fc.weight": matrix(40, 30), "new.weight": np.zeros((40, 30), np.float32)}
    base = write(tmp_path / "b", kept)
    changed = {**kept, "fc.weight": planted(kept["fc.weight"], 30.0)}
    assert run(base, write(tmp_path / "t", changed))[0] == 0
    status, out, _ = run(base, write(tmp_path / "u", {**changed, "new.weight": matrix(40, 30)}))
    assert status == 1 and "could not be: new.weight" in out and "every vector is new" in out.replace("\n", " ")
    assert run(base, write_adapter(tmp_path / "a", {"fc": FACTORS, "new": FACTORS}))[0] == 1
    idle = (FACTORS[0], np.zeros_like(FACTORS[1]))
    assert run(base, write_adapter(tmp_path / "i", {"fc": FACTORS, "new": idle}))[0] == 0


def test_a_tensor_with_the_name_of_an_expert(tmp_path):
    stack = {"mlp.experts.down_proj": np.stack([matrix(40, 30)] * 2), "mlp.experts.down_proj[0]": matrix(40, 30)}
    with refused("holds a tensor mlp.experts.down_proj[0]"):
        Pairs(write(tmp_path / "b", stack), write(tmp_path / "t", stack))


def _sentence_transformer(folder, main, tensors, dense, config=None):
    """A model of sentence-transformers: a transformer, a pooling without weights, a dense layer in a folder of its own."""
    write(folder / main, tensors, config=config)
    if dense is not None:
        write(folder / "2_Dense", {"linear.weight": dense, "linear.bias": np.ones(len(dense), np.float32)})
    paths = {"0": main, "1": "1_Pooling", "2": "2_Dense"}
    (folder / "modules.json").write_text(
        json.dumps([{"idx": int(name), "name": name, "path": path, "type": "?"} for name, path in paths.items()])
    )
    return folder


@pytest.mark.parametrize("main", ["", "0_Transformer"])
def test_a_model_of_sentence_transformers(main, run, tmp_path):
    """Its dense layer has a file in a folder of its own; an adapter of the whole model names the parts by their numbers."""
    fc, dense = matrix(40, 30), matrix(40, 30, 3)
    name = "encoder.layer.0.attention.self.query"
    base = _sentence_transformer(tmp_path / "b", main, {f"{name}.weight": fc}, dense)
    tuned = _sentence_transformer(tmp_path / "t", main, {f"{name}.weight": fc}, planted(dense, 40.0))
    found = scan(base, tuned)
    assert {layer.name: layer.intruders for layer in found.layers} == {"2.linear.weight": 1, f"{name}.weight": 0}
    mitigate(base, tuned, tmp_path / "out", mitigation_lambda=0.0)
    assert scan(base, tmp_path / "out").intruders == 0
    assert (tmp_path / "out/modules.json").read_bytes() == (tuned / "modules.json").read_bytes()
    for inside in ("0.auto_model", "0.model"):
        adapter = write_adapter(tmp_path / inside, {f"{inside}.{name}": FACTORS, "2.linear": FACTORS})
        pairs = Pairs(base, adapter)
        assert pairs.names == ["2.linear.weight", f"{name}.weight"] and not pairs.incomplete
    alone = write(tmp_path / "alone", {f"{name}.weight": fc})
    assert Pairs(alone, tuned).names == [f"{name}.weight"]


def test_a_module_of_sentence_transformers_in_a_pickle(run, tmp_path):
    fc = matrix(40, 30)
    base, tuned = (
        _sentence_transformer(tmp_path / name, "", {"a.weight": weight}, None)
        for name, weight in (("b", fc), ("t", planted(fc, 40.0)))
    )
    for folder, content in ((base, b"one"), (tuned, b"one")):
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense/pytorch_model.bin").write_bytes(content)
    assert run(base, tuned)[0] == 0
    (tuned / "2_Dense/pytorch_model.bin").write_bytes(b"two")
    status, out, _ = run(base, tuned)
    assert status == 1 and "could not be: 2_Dense/pytorch_model.bin" in out
    mitigate(base, tuned, tmp_path / "out", mitigation_lambda=0.0)
    assert (tmp_path / "out/2_Dense/pytorch_model.bin").read_bytes() == b"two"
