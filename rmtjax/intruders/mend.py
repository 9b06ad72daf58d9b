r"""Scale intruders down in what fine-tuning has made (Shuttleworth et al. 2024, §5; PEFT's `reduce_intruder_dimension`).

With :math:`W' = \sum_i\sigma_iu_iv_i^\top` after tuning and I its intruders, the mended matrix is
:math:`W' + (\lambda - 1)\sum_{i\in I}\sigma_iu_iv_i^\top`. For an adapter the new update is cut back to the rank of the old one
by its SVD, which takes only that of a small matrix: the update and its correction are products of thin factors.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, listed, shown
from rmtjax._files import prepare_folder, write_bytes, write_json, write_with
from rmtjax.checkpoints.folders import TOKENIZER_FILES, exists
from rmtjax.checkpoints.peft import ALPHA, MERGED_ALPHA, PeftLayer
from rmtjax.intruders.pairs import Pair, Pairs
from rmtjax.intruders.scan import LayerScan, Scan, scan
from rmtjax.linalg.krylov import top_singular

__all__ = ["correction", "mend", "truncated"]

_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""What safetensors calls the types that weights have."""


_NOT_BESIDE = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite",
    ".part", ".lock", ".log",
)  # fmt: skip
"""Files of these kinds in a model's folder are its weights in other forms, not mended, or what a trainer left; all others
belong to it."""


class Factors(NamedTuple):
    """A product of thin matrices, left (n, r) times right (r, m)."""

    left: np.ndarray
    right: np.ndarray


def correction(pair: Pair, found: LayerScan, scale: float) -> Factors:
    r""":math:`(\lambda - 1)\sum_{i\in I}\sigma_iu_iv_i^\top` of the intruders that a scan found."""
    which = [i for i, verdict in enumerate(found.verdicts) if verdict == "intruder"]
    vectors = found.vectors
    if found.method == "bounds":  # whose vectors are good enough for a verdict
        vectors = top_singular(pair.plain()[0].tuned, vectors.shape[1], tolerance=1e-5, most=150).vectors
    u = vectors[:, which]
    return Factors((scale - 1) * u, pair.tuned.transposed(u).T)  # W'ᵀu = σv


def truncated(left: np.ndarray, right: np.ndarray, rank: int) -> Factors:
    """The best approximation of a product by one of that rank, its singular values shared between the factors."""
    ql, rl = np.linalg.qr(left)
    qr, rr = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(rl @ rr.T, full_matrices=False)
    root = np.sqrt(s[:rank])
    none = (0, max(0, rank - len(root)))  # a rank above the matrix's sides is filled with zeros
    b, a = ql @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ qr.T
    return Factors(np.pad(b, ((0, 0), none)), np.pad(a, (none, (0, 0))))


def _mended_layer(pair: Pair, layer: PeftLayer, change: Factors) -> dict[str, np.ndarray]:
    """A, B and magnitude of an adapter whose tuned matrix has changed so."""
    a, b = np.asarray(layer.A, np.float32), np.asarray(layer.B, np.float32)
    left, rows, turn = change.left, None, None
    if layer.magnitude is not None:
        # tuned = diag(t)(diag(α)W + sBA), and t is the magnitude over the norms of the rows.
        rows = pair.base if layer.alpha is None else np.asarray(layer.alpha)[:, None] * pair.base
        norms = np.linalg.norm(rows + layer.strength * (b @ a), axis=1)
        turn = np.asarray(layer.magnitude) / np.maximum(norms, np.finfo(np.float32).tiny)
        left = left / np.where(turn == 0, 1, turn)[:, None]  # a row of magnitude 0 is none of any u
    new = truncated(np.concatenate([layer.strength * b, left], 1), np.concatenate([a, change.right]), a.shape[0])
    made = {"lora_A": new.right, "lora_B": new.left / layer.strength}
    if turn is not None:
        made["lora_magnitude_vector"] = turn * np.linalg.norm(rows + new.left @ new.right, axis=1)
    return made


def mend(
    base: str | os.PathLike | None,
    tuned: str | os.PathLike,
    out: str | os.PathLike,
    *,
    scale: float = 0.75,
    top: int = 10,
    threshold: float = 0.5,
    layers: str | None = None,
    exact: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Scan:
    """Write a copy of an adapter or a model in which every intruder's singular value is scaled down.

    An adapter (LoRA, rsLoRA, DoRA; with α, which stays) is written as one of the same kind and rank that PEFT loads, with the
    base that has α in it where there is one; a model as the same files with the changed weights. What is smaller may be an
    intruder still, and what leaves the leading vectors makes room there for others.

    Args:
        base, tuned, top, threshold, layers, exact, progress: see `scan`.
        out: folder to write, which must not hold anything.
        scale: λ in [0, 1); 1 would leave the intruder as it is, 0 takes it out.

    Returns:
        The scan of before.

    Raises:
        InputError: as `scan`, and for a scale outside [0, 1), a folder that is in use, or an adapter with intruders where it has
            α and no update.
    """
    if not (isinstance(scale, numbers.Real) and math.isfinite(scale) and 0 <= scale < 1):
        raise InputError(f"scale = {shown(scale)}: must be at least 0 and below 1")
    there, target = exists(out, "out"), Path(out)
    if there and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"out = {target}: is in use; give a folder that is empty or new")
    found = scan(base, tuned, top=top, threshold=threshold, layers=layers, exact=exact, progress=progress)
    pairs = Pairs(base, tuned, layers)
    planted = [one.name for one in found.layers if one.intruders]
    if pairs.adapter is not None:
        layers_of = {name: pairs.adapter.layers[pairs.partner(name)] for name in planted}
        bare = [name for name, layer in layers_of.items() if layer.A is None or layer.strength == 0]
        if bare:
            raise InputError(
                f"tuned = {tuned}: {listed(bare)} has intruders by α alone and no update to mend; choose others by layers"
            )
    new = not target.exists()
    target = prepare_folder("out", target)
    try:
        _write(pairs, found, target, scale)
    except BaseException:  # half of it would look like all
        for made in target.iterdir():
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        if new:
            target.rmdir()
        raise
    return found


def _write(pairs: Pairs, found: Scan, target: Path, scale: float) -> None:
    file = pairs.tuned if pairs.adapter is None else pairs.adapter.tensors
    of = {pairs.partner(one.name): one for one in found.layers if one.intruders}
    if pairs.adapter is not None:  # the layer of each of its tensors
        of = {key: of[layer] for layer, keys in pairs.adapter.keys.items() if layer in of for key in keys.values()}
    for shard in file.files:
        changed = [key for key in file.in_file(shard) if key in of]
        write_with(target / shard, _patched(file.folder / shard, _mended(pairs, of, changed, scale)))
    _copy_beside(file.folder, target, whole=pairs.of_folder)
    if pairs.adapter is not None:
        _copy_base(file.folder, target, pairs.adapter.config)


def _mended(pairs: Pairs, of: dict[str, LayerScan], keys: list[str], scale: float) -> Iterator[tuple[str, np.ndarray]]:
    """New tensors for these keys of the tuned file, one layer in memory at a time."""
    for name, found in {of[key].name: of[key] for key in keys}.items():
        pair = pairs.read(name)
        change = correction(pair, found, scale)
        if pairs.adapter is None:
            mended = pair.tuned.dense() + change.left @ change.right
            yield pairs.partner(name), mended.T if pairs.turned(name) else mended
            continue
        made = _mended_layer(pair, pairs.layer(name), change)
        for part, key in pairs.adapter.keys[pairs.partner(name)].items():
            if key in keys:
                yield key, made[part]


def _patched(file: Path, new: Iterator[tuple[str, np.ndarray]]) -> Callable[[BinaryIO], None]:
    """What writes a safetensors file anew, with some tensors replaced and every other bit as it was."""

    def fill(target: BinaryIO) -> None:
        with file.open("rb") as source:
            length = int.from_bytes(source.read(8), "little")
            header = json.loads(source.read(length))
            source.seek(0)
            shutil.copyfileobj(source, target, 1 << 22)
        for key, value in new:
            begin, end = header[key]["data_offsets"]
            made = np.ascontiguousarray(value).astype(_FLOATS[header[key]["dtype"]]).tobytes()
            assert len(made) == end - begin
            target.seek(8 + length + begin)
            target.write(made)

    return fill


def _copy_base(folder: Path, target: Path, config: Mapping[str, Any]) -> None:
    """The base with α in it that lies beside an adapter and that PEFT is to load it on."""
    base = folder / "base"
    if (base / MERGED_ALPHA).is_file():
        shutil.copytree(base, target / "base")
        write_json(
            target / "adapter_config.json", {**config, "base_model_name_or_path": str((target / "base").resolve())}
        )


def _copy_beside(folder: Path, target: Path, *, whole: bool = True) -> None:
    """What belongs to an adapter or a model besides its weights; where the folder may hold other things, by name."""
    named = ("config.json", "generation_config.json", *TOKENIZER_FILES)
    parts = _modules(folder) if whole else set()
    for file in sorted(folder.rglob("*") if whole else folder.iterdir()):
        inside = file.relative_to(folder)
        hidden = any(part.startswith((".", "checkpoint", "events.out")) or part == "base" for part in inside.parts)
        known = file.suffix not in _NOT_BESIDE or file.name == ALPHA or not parts.isdisjoint(inside.parents)
        if file.is_file() and not hidden and (known if whole else file.name in named):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target / inside, file.read_bytes())


def _modules(folder: Path) -> set[Path]:
    """The folders inside of a sentence-transformers model's that have weights of their own, such as `2_Dense`."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return {Path(module["path"]) for module in modules if module["path"]}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, TypeError, KeyError):
        return set()
