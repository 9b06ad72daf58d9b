r"""Mitigation: scale down the intruders of a fine-tuned model (Shuttleworth et al. 2024, §5; PEFT's `reduce_intruder_dimension`).

With :math:`W' = \sum_i\sigma_iu_iv_i^\top` after tuning and I its intruders, the mitigated matrix is
:math:`W' + (\lambda - 1)\sum_{i\in I}\sigma_iu_iv_i^\top`. For an adapter the new update is cut back to the rank of the old one
by its SVD, which takes only that of a small matrix: the update and its correction are products of thin factors.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rmtjax._checks import number
from rmtjax._errors import InputError, listed
from rmtjax._files import prepare_folder, write_bytes, write_json, write_with
from rmtjax._progress import Report
from rmtjax.checkpoints.folders import PACKAGED, TOKENIZER_FILES, exists, pickled_modules
from rmtjax.checkpoints.peft.config import ALPHA, MERGED_ALPHA
from rmtjax.checkpoints.shares import Share
from rmtjax.checkpoints.tensors import FLOATS, Tensor
from rmtjax.intruders.pair import Pair
from rmtjax.intruders.pairs import Pairs
from rmtjax.intruders.scan.checkpoint import scan
from rmtjax.intruders.scan.result import LayerScan, Scan
from rmtjax.intruders.scan.verdict import ScanLimits
from rmtjax.linalg.krylov import top_singular

__all__ = ["Mitigation", "correction", "mitigate", "truncated"]

_NOT_BESIDE = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite",
    ".part", ".lock", ".log",
)  # fmt: skip
"""Files of these kinds in a model's folder are its weights in other forms, not mitigated, or what a trainer left; all others
belong to it."""


class Factors(NamedTuple):
    """A product of thin matrices, left (n, r) times right (r, m)."""

    left: np.ndarray
    right: np.ndarray


def correction(pair: Pair, layer_scan: LayerScan, scale: float) -> Factors:
    r"""Return :math:`(\lambda - 1)\sum_{i\in I}\sigma_iu_iv_i^\top` for the intruders that a scan found."""
    which = [i for i, verdict in enumerate(layer_scan.verdicts) if verdict == "intruder"]
    vectors = layer_scan.vectors
    if layer_scan.algorithm == "bounds":  # whose vectors are accurate enough for a verdict
        vectors = top_singular(pair.plain()[0].tuned, vectors.shape[1], tolerance=1e-5, max_blocks=150).vectors
    u = vectors[:, which]
    return Factors((scale - 1) * u, pair.tuned.transposed(u).T)  # W'ᵀu = σv


def truncated(left: np.ndarray, right: np.ndarray, rank: int) -> Factors:
    """Return the best approximation of a product by one of the given rank, its singular values shared between the factors."""
    ql, rl = np.linalg.qr(left)
    qr, rr = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(rl @ rr.T, full_matrices=False)
    root = np.sqrt(s[:rank])
    none = (0, max(0, rank - len(root)))  # a rank above the matrix's sides is padded with zeros
    b, a = ql @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ qr.T
    return Factors(np.pad(b, ((0, 0), none)), np.pad(a, (none, (0, 0))))


class _Change(NamedTuple):
    """The correction of one matrix that an adapter's layer updates."""

    pair: Pair
    share: Share
    factors: Factors


def _mitigated_layer(pairs: Pairs, name: str, changes: list[_Change]) -> dict[str, np.ndarray]:
    """Return A, B and magnitude of an adapter's layer after the given changes of its tuned matrices.

    Raises:
        InputError: if it is one of DoRA of which the file keeps parts in several matrices.
    """
    layer = pairs.layer(name)
    if layer.magnitude is not None:
        return _mitigated_dora(pairs, name, changes)
    by_expert: dict[int | None, list[Factors]] = {}
    for change in changes:
        of_layer = pairs.in_layer(change.pair.name, change.share, *change.factors)
        by_expert.setdefault(change.share.expert, []).append(Factors(*of_layer))
    count = changes[0].share.experts
    new_a, new_b = [], []
    for expert in [None] if count == 1 and None in by_expert else range(count):
        part = layer if expert is None else layer.expert(expert, count)
        a, b = np.asarray(part.A, np.float32), np.asarray(part.B, np.float32)
        if of_expert := by_expert.get(expert):
            left = np.concatenate([part.strength * b, *(f.left for f in of_expert)], 1)
            new = truncated(left, np.concatenate([a, *(f.right for f in of_expert)]), a.shape[0])
            a, b = new.right, new.left / part.strength
        new_a.append(a)
        new_b.append(b)
    # PEFT stacks the A of all experts by rows and interleaves the columns of their B.
    return {"lora_A": np.concatenate(new_a), "lora_B": np.stack(new_b, -1).reshape(len(new_b[0]), -1)}


def _mitigated_dora(pairs: Pairs, name: str, changes: list[_Change]) -> dict[str, np.ndarray]:
    (pair, share, change), layer = changes[0], pairs.layer(name)
    if len(changes) > 1 or not share.whole:
        raise InputError(
            f"tuned = {pairs.adapter.folder}: {name} is DoRA on a matrix that the base's file stores in parts, which is"
            " not supported; merge the adapter into its base and mitigate the merged model"
        )
    a, b = np.asarray(layer.A, np.float32), np.asarray(layer.B, np.float32)
    # tuned = diag(t)(diag(α)W + sBA), and t is the magnitude over the norms of the rows.
    rows = pair.base if layer.alpha is None else np.asarray(layer.alpha)[:, None] * pair.base
    norms = np.linalg.norm(rows + layer.strength * (b @ a), axis=1)
    turn = np.asarray(layer.magnitude) / np.maximum(norms, np.finfo(np.float32).tiny)
    left = change.left / np.where(turn == 0, 1, turn)[:, None]  # a row of magnitude 0 has no part in any u
    new = truncated(np.concatenate([layer.strength * b, left], 1), np.concatenate([a, change.right]), a.shape[0])
    magnitude = turn * np.linalg.norm(rows + new.left @ new.right, axis=1)
    return {"lora_A": new.right, "lora_B": new.left / layer.strength, "lora_magnitude_vector": magnitude}


@dataclasses.dataclass(frozen=True)
class Mitigation:
    """The scans before and after intruders were scaled down.

    Attributes:
        before: scan of the input.
        after: scan of the output; unchanged layers are taken from `before`.
        mitigation_lambda: the factor on the singular values of intruders.
        folder: the output folder.
    """

    before: Scan
    after: Scan
    mitigation_lambda: float
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Return both scans and the settings as plain values."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "mitigation_lambda": self.mitigation_lambda,
            "folder": str(self.folder),
        }


def mitigate(
    base: str | os.PathLike,
    tuned: str | os.PathLike,
    out: str | os.PathLike,
    *,
    mitigation_lambda: float = 0.75,
    top_k: int = 10,
    threshold_epsilon: float = 0.5,
    layers: str | None = None,
    exact: bool = False,
    progress: Report = None,
    limits: ScanLimits = ScanLimits(),  # noqa: B008, it is frozen
) -> Mitigation:
    """Write a copy of an adapter or a model in which every intruder's singular value is scaled down.

    An adapter (LoRA, rsLoRA, DoRA; with α, which stays) is written as one of the same kind and rank that PEFT loads, with the
    base that has α in it where there is one; a model as the same files with the changed weights. An update that is
    cut back to its rank changes all that it adds to, also other matrices that the base's file has of the same layer in
    memory, such as the two projections of an expert. A smaller vector may still be an intruder, and one that leaves the
    leading vectors makes room there for others, so the result is scanned again.

    Args:
        base, tuned, top_k, threshold_epsilon, layers, exact, progress, limits: see `scan`.
        out: folder to write, which must not hold anything.
        mitigation_lambda: λ in [0, 1); 1 would leave the intruder as it is, 0 takes it out.

    Raises:
        InputError: as `scan`, and for a λ outside [0, 1), a folder that is in use, or an adapter with intruders where it has
            α and no update.
    """
    number("mitigation_lambda", mitigation_lambda, 0, 1, open_high=True)
    is_present, target = exists(out, "out"), Path(out)
    if is_present and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"out = {target}: is not empty; choose an empty or new folder")
    how = {
        "top_k": top_k,
        "threshold_epsilon": threshold_epsilon,
        "exact": exact,
        "progress": progress,
        "limits": limits,
    }
    before = scan(base, tuned, layers=layers, **how)
    pairs = Pairs(base, tuned, layers)
    planted = [layer.name for layer in before.layers if layer.intruders]
    bare = [
        name
        for name in planted
        for share in pairs.shares(name)
        if pairs.layer(share.layer).A is None or pairs.layer(share.layer).strength == 0
    ]
    if bare:
        raise InputError(
            f"tuned = {tuned}: {listed(bare)} has intruders caused by α, and no update to scale; choose other layers"
        )
    new = not target.exists()
    target = prepare_folder("out", target)
    try:
        _write(pairs, before, target, mitigation_lambda)
    except BaseException:  # half an output folder would look complete
        for entry in target.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if new:
            target.rmdir()
        raise
    written = target / Path(tuned).name if tuned != PACKAGED and Path(tuned).is_file() else target
    after = dataclasses.replace(before, settings={**before.settings, "tuned": str(written)})
    if planted:
        rewritten = {share.layer for name in planted for share in pairs.shares(name)}
        changed = {name for name in pairs.names if any(share.layer in rewritten for share in pairs.shares(name))}
        changed = "|".join(f"^{re.escape(name)}$" for name in sorted({*planted, *changed}))
        again = scan(base, written, layers=changed, **how)
        renewed = {layer.name: layer for layer in again.layers}
        after = dataclasses.replace(
            after,
            layers=tuple(renewed.get(layer.name, layer) for layer in before.layers),
            seconds=before.seconds + again.seconds,
        )
    return Mitigation(before, after, float(mitigation_lambda), target)


def _write(pairs: Pairs, before: Scan, target: Path, scale: float) -> None:
    planted = {layer.name: layer for layer in before.layers if layer.intruders}
    whole_names = [name for name in planted if not pairs.shares(name)]
    of_layer: dict[str, list[str]] = {}
    for name in planted:
        for share in pairs.shares(name):
            of_layer.setdefault(share.layer, []).append(name)

    def pieces(shard: str) -> Iterator[tuple[Tensor, int | None, np.ndarray]]:
        """Yield the new numbers for one file with their place, one layer or matrix in memory at a time."""
        for name in whole_names:
            tensor, index = pairs.place(name)
            if tensor.file == pairs.tuned.folder / shard:
                pair = pairs.read(name)
                change = correction(pair, planted[name], scale)
                mitigated = pair.tuned.dense() + change.left @ change.right
                yield tensor, index, mitigated.T if pairs.turned(name) else mitigated
        for layer, names in of_layer.items():
            keys = {part: key for part, key in pairs.adapter.keys[layer].items() if key in pairs.tuned.in_file(shard)}
            if keys:
                changes = []
                for name in names:
                    pair = pairs.read(name)
                    change = correction(pair, planted[name], scale)
                    changes += [_Change(pair, share, change) for share in pairs.shares(name) if share.layer == layer]
                arrays = _mitigated_layer(pairs, layer, changes)
                for part, key in keys.items():
                    yield pairs.tuned.place(key), None, arrays[part]

    for shard in pairs.tuned.files:
        (target / shard).parent.mkdir(parents=True, exist_ok=True)
        write_with(target / shard, _patched(pairs.tuned.folder / shard, pieces(shard)))
    _copy_beside(pairs.tuned.folder, target, everything=pairs.of_folder)
    if pairs.adapter is not None:
        _copy_base(pairs.tuned.folder, target, pairs.adapter.config)


def _patched(file: Path, new: Iterator[tuple[Tensor, int | None, np.ndarray]]) -> Callable[[BinaryIO], None]:
    """Return a writer of a safetensors file with some tensors replaced and every other byte unchanged."""

    def fill(target: BinaryIO) -> None:
        with file.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 22)
        for tensor, index, value in new:
            data = np.ascontiguousarray(value).astype(FLOATS[tensor.dtype]).tobytes()
            size = (tensor.stop - tensor.start) // (1 if index is None else tensor.shape[0])
            assert len(data) == size
            target.seek(tensor.start + (index or 0) * size)
            target.write(data)

    return fill


def _copy_base(folder: Path, target: Path, config: Mapping[str, Any]) -> None:
    """Copy the base with merged α that lies beside an adapter, for PEFT to load the adapter on."""
    base = folder / "base"
    if (base / MERGED_ALPHA).is_file():
        shutil.copytree(base, target / "base")
        write_json(
            target / "adapter_config.json", {**config, "base_model_name_or_path": str((target / "base").resolve())}
        )


def _copy_beside(folder: Path, target: Path, *, everything: bool = True) -> None:
    """Copy the files of an adapter or model other than its weights: all, or only known names if the folder may hold others."""
    named = ("config.json", "generation_config.json", *TOKENIZER_FILES)
    pickled = pickled_modules(folder) if everything else []
    for file in sorted(folder.rglob("*") if everything else folder.iterdir()):
        inside = file.relative_to(folder)
        hidden = any(part.startswith((".", "checkpoint", "events.out")) or part == "base" for part in inside.parts)
        belongs = file.suffix not in _NOT_BESIDE or file.name == ALPHA or inside.as_posix() in pickled
        if file.is_file() and not hidden and (belongs if everything else file.name in named):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target / inside, file.read_bytes())
