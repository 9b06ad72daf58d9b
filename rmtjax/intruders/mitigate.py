r"""Scale intruders down in what fine-tuning has made (Shuttleworth et al. 2024, §5; PEFT's `reduce_intruder_dimension`).

With :math:`W' = \sum_i\sigma_iu_iv_i^\top` after tuning and I its intruders, the mended matrix is
:math:`W' + (\lambda - 1)\sum_{i\in I}\sigma_iu_iv_i^\top`. For an adapter the new update is cut back to the rank of the old one
by its SVD, which takes only that of a small matrix: the update and its correction are products of thin factors.
"""

from __future__ import annotations

import math
import numbers
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rmtjax._errors import InputError, listed, shown
from rmtjax._files import prepare_folder, write_bytes, write_json, write_with
from rmtjax._progress import Report
from rmtjax.checkpoints.folders import TOKENIZER_FILES, exists, pickled_modules
from rmtjax.checkpoints.matching import Share
from rmtjax.checkpoints.peft import ALPHA, MERGED_ALPHA
from rmtjax.checkpoints.tensors import FLOATS, Tensor
from rmtjax.intruders.pairs import Pair, Pairs
from rmtjax.intruders.scan import LayerScan, Scan, scan
from rmtjax.linalg.krylov import top_singular

__all__ = ["correction", "mend", "truncated"]

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
        vectors = top_singular(pair.plain()[0].tuned, vectors.shape[1], tolerance=1e-5, max_blocks=150).vectors
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


class _Change(NamedTuple):
    """The correction of one matrix in which an adapter's layer has a share."""

    pair: Pair
    share: Share
    factors: Factors


def _mended_layer(pairs: Pairs, name: str, changes: list[_Change]) -> dict[str, np.ndarray]:
    """Return A, B and magnitude of an adapter's layer whose tuned matrices have changed so.

    Raises:
        InputError: if it is one of DoRA of which the file keeps parts in several matrices.
    """
    layer = pairs.layer(name)
    if layer.magnitude is not None:
        return _mended_dora(pairs, name, changes)
    by_expert: dict[int | None, list[Factors]] = {}
    for change in changes:
        of_layer = pairs.in_layer(change.pair.name, change.share, *change.factors)
        by_expert.setdefault(change.share.expert, []).append(Factors(*of_layer))
    count = changes[0].share.experts
    new_a, new_b = [], []
    for expert in [None] if count == 1 and None in by_expert else range(count):
        one = layer if expert is None else layer.expert(expert, count)
        a, b = np.asarray(one.A, np.float32), np.asarray(one.B, np.float32)
        if of_expert := by_expert.get(expert):
            left = np.concatenate([one.strength * b, *(f.left for f in of_expert)], 1)
            new = truncated(left, np.concatenate([a, *(f.right for f in of_expert)]), a.shape[0])
            a, b = new.right, new.left / one.strength
        new_a.append(a)
        new_b.append(b)
    # PEFT keeps the A of all experts below one another, the B interleaved.
    return {"lora_A": np.concatenate(new_a), "lora_B": np.stack(new_b, -1).reshape(len(new_b[0]), -1)}


def _mended_dora(pairs: Pairs, name: str, changes: list[_Change]) -> dict[str, np.ndarray]:
    (pair, share, change), layer = changes[0], pairs.layer(name)
    if len(changes) > 1 or not share.whole:
        raise InputError(
            f"tuned = {pairs.adapter.folder}: {name} is DoRA on a matrix of which the base's file keeps parts elsewhere, which is"
            " not mended here; merge the adapter into its base and mend the merged model"
        )
    a, b = np.asarray(layer.A, np.float32), np.asarray(layer.B, np.float32)
    # tuned = diag(t)(diag(α)W + sBA), and t is the magnitude over the norms of the rows.
    rows = pair.base if layer.alpha is None else np.asarray(layer.alpha)[:, None] * pair.base
    norms = np.linalg.norm(rows + layer.strength * (b @ a), axis=1)
    turn = np.asarray(layer.magnitude) / np.maximum(norms, np.finfo(np.float32).tiny)
    left = change.left / np.where(turn == 0, 1, turn)[:, None]  # a row of magnitude 0 is none of any u
    new = truncated(np.concatenate([layer.strength * b, left], 1), np.concatenate([a, change.right]), a.shape[0])
    magnitude = turn * np.linalg.norm(rows + new.left @ new.right, axis=1)
    return {"lora_A": new.right, "lora_B": new.left / layer.strength, "lora_magnitude_vector": magnitude}


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
    progress: Report = None,
) -> Scan:
    """Write a copy of an adapter or a model in which every intruder's singular value is scaled down.

    An adapter (LoRA, rsLoRA, DoRA; with α, which stays) is written as one of the same kind and rank that PEFT loads, with the
    base that has α in it where there is one; a model as the same files with the changed weights. An update that is
    cut back to its rank changes all that it adds to, also other matrices that the base's file has of the same layer in
    memory, such as the two projections of an expert. What is smaller may be an
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
    bare = [
        name
        for name in planted
        for share in pairs.shares(name)
        if pairs.layer(share.layer).A is None or pairs.layer(share.layer).strength == 0
    ]
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
    planted = {layer.name: layer for layer in found.layers if layer.intruders}
    whole = [name for name in planted if not pairs.shares(name)]
    of_layer: dict[str, list[str]] = {}
    for name in planted:
        for share in pairs.shares(name):
            of_layer.setdefault(share.layer, []).append(name)

    def pieces(shard: str) -> Iterator[tuple[Tensor, int | None, np.ndarray]]:
        """The new numbers for one file: where they belong, a layer or a matrix in memory at a time."""
        for name in whole:
            tensor, index = pairs.place(name)
            if tensor.file == pairs.tuned.folder / shard:
                pair = pairs.read(name)
                change = correction(pair, planted[name], scale)
                mended = pair.tuned.dense() + change.left @ change.right
                yield tensor, index, mended.T if pairs.turned(name) else mended
        for layer, names in of_layer.items():
            keys = {part: key for part, key in pairs.adapter.keys[layer].items() if key in pairs.tuned.in_file(shard)}
            if keys:
                changes = []
                for name in names:
                    pair = pairs.read(name)
                    change = correction(pair, planted[name], scale)
                    changes += [_Change(pair, share, change) for share in pairs.shares(name) if share.layer == layer]
                made = _mended_layer(pairs, layer, changes)
                for part, key in keys.items():
                    yield pairs.tuned.place(key), None, made[part]

    for shard in pairs.tuned.files:
        (target / shard).parent.mkdir(parents=True, exist_ok=True)
        write_with(target / shard, _patched(pairs.tuned.folder / shard, pieces(shard)))
    _copy_beside(pairs.tuned.folder, target, whole=pairs.of_folder)
    if pairs.adapter is not None:
        _copy_base(pairs.tuned.folder, target, pairs.adapter.config)


def _patched(file: Path, new: Iterator[tuple[Tensor, int | None, np.ndarray]]) -> Callable[[BinaryIO], None]:
    """Return what writes a safetensors file anew, with some tensors replaced and every other bit as it was."""

    def fill(target: BinaryIO) -> None:
        with file.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 22)
        for tensor, index, value in new:
            made = np.ascontiguousarray(value).astype(FLOATS[tensor.dtype]).tobytes()
            size = (tensor.stop - tensor.start) // (1 if index is None else tensor.shape[0])
            assert len(made) == size
            target.seek(tensor.start + (index or 0) * size)
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
    pickled = pickled_modules(folder) if whole else []
    for file in sorted(folder.rglob("*") if whole else folder.iterdir()):
        inside = file.relative_to(folder)
        hidden = any(part.startswith((".", "checkpoint", "events.out")) or part == "base" for part in inside.parts)
        known = file.suffix not in _NOT_BESIDE or file.name == ALPHA or inside.as_posix() in pickled
        if file.is_file() and not hidden and (known if whole else file.name in named):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target / inside, file.read_bytes())
