"""Small checkpoints and adapters written by hand, files compared byte by byte, and the definition of an intruder itself."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

PREFIX = "base_model.model."


def matrix(n, m, seed=0):
    """Return a weight with singular values from 10 to 1, so far apart that a small change does not turn its vectors."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, min(n, m))))[0] for size in (n, m))
    return ((u * np.geomspace(10, 1, min(n, m))) @ v.T).astype(np.float32)


def planted(weight, *strengths, seed=1):
    """Return the weight with planted directions of the given strengths."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, len(strengths))))[0] for size in weight.shape)
    return (weight + (u * strengths) @ v.T).astype(np.float32)


def write(folder, tensors, name="model.safetensors", config=None):
    """Write a checkpoint of one file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, {"format": "pt"}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_shards(folder, tensors):
    """Write a checkpoint of two files and their index."""
    names = list(tensors)
    where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(where.values())):
        write(folder, {name: tensors[name] for name in names if where[name] == file}, file)
    (Path(folder) / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return Path(folder)


def write_adapter(folder, layers, alphas=None, **config):
    """Write a PEFT adapter: layers maps paths to (A, B) or (A, B, magnitude)."""
    parts = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    tensors = {
        f"{PREFIX}{path}.{part}": value
        for path, values in layers.items()
        for part, value in zip(parts, values, strict=False)
    }
    write(folder, tensors, "adapter_model.safetensors")
    if alphas:
        write(folder, {f"{path}.alpha": value for path, value in alphas.items()}, "alpha.safetensors")
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (Path(folder) / "adapter_config.json").write_text(json.dumps(values))
    return Path(folder)


def stored(file):
    """Return the content of a safetensors file, read without any library: name → (type, shape, bytes)."""
    content = Path(file).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, at in header.items():
        begin, end = at["data_offsets"]
        found[name] = (at["dtype"], tuple(at["shape"]), content[start + begin : start + end])
    return found


def by_formula(base, tuned, scale, top=10, threshold=0.5):
    """Return W' + (λ − 1)Σσuvᵀ over the intruders, from two SVDs in double precision; and their number."""
    u0 = np.linalg.svd(np.asarray(base, float), full_matrices=False)[0]
    u, s, vt = np.linalg.svd(np.asarray(tuned, float), full_matrices=False)
    which = np.flatnonzero(np.abs(u0.T @ u[:, :top]).max(0) < threshold)
    return tuned + (scale - 1) * (u[:, which] * s[which]) @ vt[which], len(which)
