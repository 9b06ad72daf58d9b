"""Safetensors files written byte by byte, including number types that NumPy and the package do not know."""

import json
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np

CODES = {
    np.dtype(kind): code
    for kind, code in (
        ("float64", "F64"), ("float32", "F32"), ("float16", "F16"), (jnp.bfloat16, "BF16"), ("int8", "I8"), ("uint8", "U8"),
        ("int32", "I32"), ("int64", "I64"), ("uint32", "U32"),
    )
}  # fmt: skip


def raw(kind, shape, bits):
    """Return a tensor of zeros of any type: (type, shape, bytes)."""
    return kind, tuple(shape), bytes((int(np.prod(shape)) * bits + 7) // 8)


def write_raw(path, tensors):
    """Write a file: name → an array, or what `raw` makes."""
    header, data = {}, bytearray()
    for name, tensor in tensors.items():
        if not isinstance(tensor, tuple):
            tensor = CODES[tensor.dtype], tensor.shape, np.ascontiguousarray(tensor).tobytes()
        kind, shape, content = tensor
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    Path(folder, name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
