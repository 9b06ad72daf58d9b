"""Tensors of files: which file holds them, what they are, and what is no weight at all."""

import json
import struct

import numpy as np
import pytest

from rmtjax.checkpoints import TensorFile, open_weights
from tests.models.helpers import refused

from .helpers import raw, write_index, write_raw

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- which file holds a tensor -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_the_index_decides(order, tmp_path):
    """A shard holds a stale copy of a tensor that the index assigns to the other; the order of its entries does not matter."""
    right, other, stale = (numbers(3, 4, seed=i) for i in range(3))
    write_raw(tmp_path / ONE, {"a.weight": right})
    write_raw(tmp_path / TWO, {"b.weight": other, "a.weight": stale})
    write_index(tmp_path, dict([("a.weight", ONE), ("b.weight", TWO)][::order]))
    file = TensorFile(tmp_path)
    np.testing.assert_array_equal(file.on_host("a.weight"), right)
    np.testing.assert_array_equal(file["b.weight"], other)
    assert (
        sorted(file) == ["a.weight", "b.weight"]
        and file.in_file(TWO) == ["b.weight"]
        and sorted(file.files) == [ONE, TWO]
    )


def test_a_tensor_that_the_index_leaves_out_is_read(tmp_path):
    """As transformers does, which loads all that the shards hold."""
    write_raw(tmp_path / ONE, {"a.weight": numbers(2, 2), "c.weight": numbers(2, 3)})
    write_index(tmp_path, {"a.weight": ONE})
    assert TensorFile(tmp_path).shape("c.weight") == (2, 3)


def test_a_file_that_is_named_is_read(tmp_path):
    """Beside it lie an index, and a file of another name."""
    write_raw(tmp_path / "model.safetensors", {"a.weight": numbers(2, 2, seed=1)})
    write_raw(tmp_path / ONE, {"a.weight": numbers(2, 2, seed=2)})
    write_index(tmp_path, {"a.weight": ONE})
    for path, seed in (
        (tmp_path / "model.safetensors", 1),
        (tmp_path / "model.safetensors.index.json", 2),
        (tmp_path / ONE, 2),
        (tmp_path, 1),
    ):
        np.testing.assert_array_equal(open_weights(path, "base").on_host("a.weight"), numbers(2, 2, seed=seed))


def test_errors_name_what_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"# no tensors")
    with refused("base = x.safetensors: is truncated or not a safetensors file"):
        open_weights("x.safetensors", "base")
    (tmp_path / "model.safetensors").write_bytes(b"# no tensors")
    with refused("base = .: model.safetensors is truncated or not a safetensors file"):
        open_weights(".", "base")
    write_index(tmp_path, {"a": "gone.safetensors"}, "other.index.json")
    with refused("base = .: gone.safetensors is missing"):
        open_weights("other.index.json", "base")


# -- files that are damaged, or something else -------------------------------------------------------------------------


def headed(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"", "is truncated or not a safetensors file (0 bytes)"),
        (b"1234567", "is truncated or not a safetensors file"),
        (headed(b"", length=2**63), "is truncated or not a safetensors file"),
        (headed(b"{}", length=200_000_000), "is truncated or not a safetensors file"),
        (headed(b"\xff\xff"), "its header cannot be read"),
        (headed(b"[1]"), "its header cannot be read"),
        (headed(b"[" * 100_000), "its header cannot be read"),
        (headed({"a": {**GOOD, "shape": [-2]}}, bytes(8)), "its header cannot be read"),
        (headed({"a": {**GOOD, "shape": [True, 2]}}, bytes(8)), "its header cannot be read"),
        (headed({"a": {**GOOD, "data_offsets": [8, 0]}}, bytes(8)), "its header cannot be read"),
        (headed({"a": {**GOOD, "dtype": 3}}, bytes(8)), "its header cannot be read"),
        (headed({"a": {"dtype": "F32"}}, bytes(8)), "its header cannot be read"),
        (headed({"a": GOOD}, bytes(7)), "is truncated or not a safetensors file (76 of 77 bytes)"),
        (headed({"a": {**GOOD, "shape": [3]}}, bytes(8)), "a has 8 bytes, its shape needs 12"),
    ],
)
def test_what_is_no_good_file(content, says, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with refused(f"model = {tmp_path}: model.safetensors ", says):
        TensorFile(tmp_path)


# -- what is no weight -------------------------------------------------------------------------------------------------

NF4 = {
    "x.weight": raw("U8", (128, 1), 8), "x.weight.absmax": numbers(4), "x.weight.quant_map": numbers(16),
    "x.weight.quant_state.bitsandbytes__nf4": raw("U8", (80,), 8),
}  # fmt: skip
QUANTIZED = {
    "four bits by bitsandbytes": NF4,
    "8-bit integers by bitsandbytes": {"x.weight": raw("I8", (8, 8), 8), "x.SCB": numbers(8)},
    "by GPTQ or AWQ": {
        "x.qweight": raw("I32", (2, 8), 32), "x.qzeros": raw("I32", (1, 2), 32), "x.scales": numbers(4, 8).astype(np.float16),
    },
    "by compressed-tensors": {"x.weight_packed": raw("I32", (8, 2), 32), "x.weight_scale": numbers(8, 2)},
    "8-bit floating point (F8_E4M3), ": {"x.weight": raw("F8_E4M3", (8, 8), 8), "x.weight_scale_inv": numbers(2, 2)},
    "8-bit floating point (F8_E5M2) without its scales": {"x.weight": raw("F8_E5M2", (8, 8), 8)},
    "MXFP4": {"x.w_blocks": raw("U8", (2, 8, 4, 16), 8), "x.w_scales": raw("U8", (2, 8, 4), 8)},
    "by MLX": {"x.weight": raw("U32", (8, 2), 32), "x.scales": numbers(8, 2), "x.biases": numbers(8, 2)},
    "packed numbers of type F4": {"x.weight": raw("F4", (8, 8), 4)},
    "packed numbers of type F6_E9M9": {"x.weight": raw("F6_E9M9", (8, 8), 8)},
    "of integers (I8), which are not weights": {"x.weight": raw("I8", (8, 8), 8)},
    "in an unknown format (W_q of type U8)": {"x.W_q": raw("U8", (32, 1), 8), "x.scale": numbers(8, 4), "x.zero": numbers(8, 4)},
    "in an unknown format (_data of type I8)": {"x.weight._data": raw("I8", (8, 8), 8), "x.weight._scale": numbers(8, 1)},
    "in an unknown format (codes of type I16)": {"x.codes": raw("I16", (8, 4, 2), 16), "x.codebooks": numbers(2, 16, 8, 8)},
    "in an unknown format (indices of type I32)": {"x.indices": raw("I32", (1, 9), 32), "x.centroids.weight": numbers(1, 64)},
}  # fmt: skip


@pytest.mark.parametrize("says", QUANTIZED)
def test_quantized_weights_are_told(says, tmp_path):
    """Neither the packed numbers nor their tables are given out, as whatever array; plain tensors beside them are."""
    plain = {"y.weight": numbers(4, 4), "x.bias": numbers(8), "position_ids": np.arange(4)}
    write_raw(tmp_path / "model.safetensors", QUANTIZED[says] | plain)
    file = TensorFile(tmp_path)
    assert file.quantized.keys() == QUANTIZED[says].keys()
    for name in QUANTIZED[says]:
        for read in (file.on_host, file.__getitem__, lambda name: file.part_on_host(name, 0)):
            with refused(f"model = {tmp_path}: model.safetensors holds {name}, which is ", says.rstrip(", ")):
                read(name)
    np.testing.assert_array_equal(file.on_host("y.weight"), plain["y.weight"])
    np.testing.assert_array_equal(file["x.bias"], plain["x.bias"])
    with refused("holds position_ids, which is of type I64, which is not supported"):
        file["position_ids"]


def test_integers_that_models_keep_beside_their_weights(tmp_path):
    """The causal mask of GPT-NeoX is called a bias and is of bytes; what lies beside it is not quantised."""
    plain = {
        "h.0.attention.bias": raw("U8", (1, 1, 8, 8), 8), "h.0.attention.masked_bias": numbers(1),
        "h.0.attention.dense.weight": numbers(4, 4), "h.0.attention.dense.bias": numbers(4),
        "embeddings.position_ids": np.arange(8), "embeddings.word.weight": numbers(9, 4),
        "h.0.attn.relative_position_index": np.zeros((4, 4), np.int64), "h.0.attn.qkv.weight": numbers(6, 2),
        "norm.num_batches_tracked": np.zeros(1, np.int64), "norm.weight": numbers(4),
    }  # fmt: skip
    write_raw(tmp_path / "model.safetensors", plain)
    assert TensorFile(tmp_path).quantized == TensorFile(tmp_path).quantized_modules == {}


def test_empty_weights(tmp_path):
    write_raw(tmp_path / "model.safetensors", {"x.weight": np.zeros(0, np.float32)})
    assert "DeepSpeed's ZeRO-3" in TensorFile(tmp_path).unreadable("x.weight")


def test_one_matrix_of_a_stack(tmp_path):
    stack = numbers(3, 4, 5)
    write_raw(
        tmp_path / "model.safetensors", {"before": numbers(7), "experts": stack.astype(np.float16), "after": numbers(2)}
    )
    file = TensorFile(tmp_path)
    for i in range(3):
        np.testing.assert_array_equal(file.part_on_host("experts", i), stack[i].astype(np.float16).astype(np.float32))
