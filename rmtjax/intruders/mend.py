r"""Scale intruders down in what fine-tuning has made (Shuttleworth et al. 2024, §5; PEFT's `reduce_intruder_dimension`).

With :math:`W' = \sum_i\sigma_iu_iv_i^\top` after tuning and I its intruders, the mended matrix is
:math:`W' + (\lambda - 1)\sum_{i\in I}\sigma_iu_iv_i^\top`. For an adapter the new update is cut back to the rank of the old one
by its SVD, which takes only that of a small matrix: the update and its correction are products of thin factors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmtjax._errors import InputError, shown
from rmtjax._files import prepare_folder, write_bytes
from rmtjax.adapters.peft import PeftLayer
from rmtjax.intruders.pairs import Pair, Pairs, Skipped
from rmtjax.intruders.scan import LayerScan, Scan, scan

__all__ = ["correction", "mend", "truncated"]


class Factors(NamedTuple):
    """A product of thin matrices, left (n, r) times right (r, m)."""

    left: np.ndarray
    right: np.ndarray


def correction(pair: Pair, found: LayerScan, scale: float) -> Factors:
    r""":math:`(\lambda - 1)\sum_{i\in I}\sigma_iu_iv_i^\top` of the intruders that a scan found."""
    which = [i for i, verdict in enumerate(found.verdicts) if verdict == "intruder"]
    u = found.vectors[:, which]
    return Factors((scale - 1) * u, pair.tuned.transposed(u).T)  # W'ᵀu = σv


def truncated(left: np.ndarray, right: np.ndarray, rank: int) -> Factors:
    """The best approximation of a product by one of that rank, its singular values shared between the factors."""
    ql, rl = np.linalg.qr(left)
    qr, rr = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(rl @ rr.T)
    root = np.sqrt(s[:rank])
    return Factors(ql @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ qr.T)


def _mended_layer(pair: Pair, layer: PeftLayer, change: Factors) -> dict[str, np.ndarray]:
    """A, B and magnitude of an adapter whose tuned matrix has changed so."""
    rank = layer.A.shape[0]
    a, b = np.asarray(layer.A, np.float32), np.asarray(layer.B, np.float32)
    left = change.left
    turn = None
    if layer.magnitude is not None:
        # tuned = diag(t)(diag(α)W + sBA), and t is the magnitude over the norms of the rows.
        alpha = np.ones(len(b), np.float32) if layer.alpha is None else np.asarray(layer.alpha)
        turn = pair.tuned.scale / alpha
        left = left / turn[:, None]
    new = truncated(np.concatenate([layer.strength * b, left], 1), np.concatenate([a, change.right]), rank)
    made = {"lora_A": new.right, "lora_B": new.left / layer.strength}
    if turn is not None:
        rows = pair.base * (1 if layer.alpha is None else np.asarray(layer.alpha)[:, None]) + new.left @ new.right
        made["lora_magnitude_vector"] = turn * np.linalg.norm(rows, axis=1)
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

    An adapter (LoRA, rsLoRA, DoRA; with α, which stays) is written as one of the same kind and rank that PEFT loads; a model as
    the same files with the changed weights.

    Args:
        base, tuned, top, threshold, layers, exact, progress: see `scan`.
        out: folder to write, which must not hold anything.
        scale: λ in [0, 1); 1 would leave the intruder as it is, 0 takes it out.

    Returns:
        The scan of before.

    Raises:
        InputError: as `scan`, and for a scale outside [0, 1) or a folder that is in use.
    """
    if not (isinstance(scale, (int, float)) and math.isfinite(scale) and 0 <= scale < 1):
        raise InputError(f"scale = {shown(scale)}: must be at least 0 and below 1")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"out = {target}: is in use; give a folder that is empty or new")
    found = scan(base, tuned, top=top, threshold=threshold, layers=layers, exact=exact, progress=progress)
    pairs = Pairs(base, tuned, layers)
    target = prepare_folder("out", target)
    changes = {}
    for one in found.layers:
        if one.intruders:
            pair = pairs.read(one.name)
            if not isinstance(pair, Skipped):
                changes[one.name] = (pair, correction(pair, one, scale))
    if pairs.adapter is not None:
        _write_adapter(pairs, changes, target)
    else:
        _write_model(pairs, changes, target)
    return found


def _write_adapter(pairs: Pairs, changes: dict[str, tuple[Pair, Factors]], target: Path) -> None:
    from safetensors.flax import save

    file = pairs.adapter
    by_layer = {pairs.partner(name): change for name, change in changes.items()}
    tensors: dict[str, Any] = {}
    for key in file.tensors:
        tensors[key] = file.tensors[key]
    for name, (pair, change) in by_layer.items():
        made = _mended_layer(pair, file.layers[name], change)
        for part, key in file.keys[name].items():
            old = tensors[key]
            tensors[key] = np.ascontiguousarray(made[part].reshape(old.shape)).astype(old.dtype)
    import jax.numpy as jnp

    content = save({k: jnp.asarray(v) for k, v in tensors.items()}, metadata={"format": "pt"})
    for other in sorted(file.folder.iterdir()):
        if other.is_file() and other.name != "adapter_model.safetensors":
            write_bytes(target / other.name, other.read_bytes())
    write_bytes(target / "adapter_model.safetensors", content)


def _write_model(pairs: Pairs, changes: dict[str, tuple[Pair, Factors]], target: Path) -> None:
    import jax.numpy as jnp
    from safetensors.flax import save

    file = pairs.tuned
    new = {pairs.partner(name): change for name, change in changes.items()}
    for shard in file.files:
        tensors = {}
        for key in file.in_file(shard):
            tensors[key] = file[key]
            if key in new:
                pair, change = new[key]
                mended = pair.tuned.dense() + change.left @ change.right
                mended = mended.T if pairs.turned(pair.name) else mended
                tensors[key] = jnp.asarray(np.ascontiguousarray(mended)).astype(tensors[key].dtype)
        write_bytes(target / shard, save(tensors, metadata={"format": "pt"}))
    for other in sorted(file.folder.iterdir()):
        if other.is_file() and other.suffix in (".json", ".txt", ".model"):
            write_bytes(target / other.name, other.read_bytes())
