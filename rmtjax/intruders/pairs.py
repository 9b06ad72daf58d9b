"""A checkpoint before and after fine-tuning, weight by weight, one at a time in memory."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, listed, pattern, shown
from rmtjax.checkpoints.folders import called, exists, model_folder, open_weights
from rmtjax.checkpoints.peft import ALPHA, MERGED_ALPHA, PeftFile, PeftLayer, read_peft
from rmtjax.checkpoints.tensors import FLOATS, TensorFile
from rmtjax.linalg.krylov import Matrix, Operator

__all__ = ["Pair", "Pairs", "Skipped"]

_INDEX = ".index.json"
_EMBEDDING = re.compile(
    r"(^|\.)(\w*embed(ding)?s?|embed_(tokens|positions|in|out)\w*|wte|wpe|shared|lm_head|decoder)\.(\d+\.)?weight$"
)
"""What ends so is a table of rows, not a map: `word_embeddings`, but not ELECTRA's `embeddings_project`."""
_PLAIN = 30
"""Power of two from which on squares of numbers, and their sums, may leave the range of single precision."""
_CONV1D = ("gpt2", "openai-gpt", "decision_transformer", "imagegpt")
"""Architectures of transformers that keep the transposed weight, (inputs, outputs), in dense layers of these names:"""
_CONV1D_LAYER = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
_BESIDE = {
    ".base_layer.weight": "the base's own, kept with the adapter",
    ".trainable_tokens_delta": "rows of an embedding, trained beside the adapter",
}
"""Tensors of an adapter's file that are neither an update of a matrix nor a weight that trained, by how their names end."""


def largest(x: Matrix) -> float:
    """The largest magnitude, NaN if there is one; without a copy of all of them."""
    return float(max(x.max(initial=0), -x.min(initial=0)))


class Pair(NamedTuple):
    """One weight matrix before and after, (outputs, inputs), in float32.

    Attributes:
        name: in the base.
        base: W, shape (n, m); of NumPy on processors, of JAX on an accelerator.
        tuned: the matrix afterwards.
        factors: B (n, r) and A (r, m) of an update that is BA and nothing else; otherwise None.
    """

    name: str
    base: Matrix
    tuned: Operator
    factors: tuple[Matrix, Matrix] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.base.shape

    def update(self) -> Matrix:
        """What was added, formed: tuned − base."""
        if self.factors is not None:
            with jax.default_matmul_precision("highest"):
                return self.factors[0] @ self.factors[1]
        return self.tuned.dense() - self.base

    def plain(self) -> tuple[Pair, float]:
        """The pair in units in which single precision holds the squares of its numbers, and that unit, a power of two."""
        tuned = self.tuned
        weights = (self.base,) if tuned.weight is self.base else (self.base, tuned.weight)
        exponent = math.frexp(max(map(largest, weights)))[1]
        if abs(exponent) <= _PLAIN:
            return self, 1.0
        xp = np if isinstance(self.base, np.ndarray) else jnp
        base = xp.ldexp(self.base, -exponent)
        weight = base if tuned.weight is self.base else xp.ldexp(tuned.weight, -exponent)
        left = None if tuned.left is None else xp.ldexp(tuned.left, -exponent)
        factors = None if self.factors is None else (left, self.factors[1])
        pair = self._replace(base=base, tuned=dataclasses.replace(tuned, weight=weight, left=left), factors=factors)
        return pair, math.ldexp(1.0, exponent)

    def on_device(self, device: jax.Device | None = None) -> Pair:
        """The same in the memory of one of JAX's devices, the first by default."""
        device = jax.devices()[0] if device is None else device
        base, tuned = jax.device_put((self.base, self.tuned), device)
        # An update beside the base shares its array, there as here.
        return self._replace(
            base=base, tuned=dataclasses.replace(tuned, weight=base) if self.tuned.weight is self.base else tuned
        )


class Skipped(NamedTuple):
    """A tensor that was not compared, and why."""

    name: str
    reason: str


def _host(value) -> np.ndarray:
    return np.asarray(value).astype(np.float32, copy=False)


def _balanced(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same product, of factors whose largest numbers are alike up to 4."""
    sizes = [math.frexp(float(np.max(np.abs(x), initial=0)))[1] for x in (left, right)]
    shift = (sizes[1] - sizes[0]) // 2 if left.any() and right.any() else 0
    return np.ldexp(left, shift), np.ldexp(right, -shift)


def _same_layer(one: str, other: str) -> bool:
    """Whether two dotted names are one, up to leading parts that one of them lacks (`bert.encoder…`, `encoder…`)."""
    return one == other or one.endswith("." + other) or other.endswith("." + one)


def _partners(names: list[str], others: Mapping[str, object], argument: str) -> dict[str, str]:
    """For each of `names` the entry of `others` that is the same layer, where there is one."""
    found = {name: name for name in names if name in others}
    by_end: dict[str, list[str]] = {}
    for other in others:
        if other not in found:
            by_end.setdefault(".".join(other.split(".")[-2:]), []).append(other)
    for name in names:
        if name in found:
            continue
        same = [o for o in by_end.get(".".join(name.split(".")[-2:]), []) if _same_layer(name, o)]
        if len(same) > 1:
            raise InputError(f"{argument}: {name} could be any of {listed(same)}")
        if same:
            found[name] = same[0]
    taken: dict[str, str] = {}
    for name, other in found.items():
        if taken.setdefault(other, name) != name:
            raise InputError(f"{argument}: {other} could be either of {listed([taken[other], name])}")
    return found


class Pairs:
    """The weight matrices that two checkpoints have in common; or those that an adapter updates.

    Args:
        base: safetensors file, folder or hub id; None for the packaged all-MiniLM-L6-v2.
        tuned: the same, or a folder of a PEFT adapter (LoRA, rsLoRA, DoRA; with α), or of a run of `rmtjax finetune`.
        layers: regular expression that names must contain; embeddings are taken only where it is given and matches them.

    Attributes:
        names: what will be read, by their names in the base.
        skipped: what will not, and why.
        adapter: the adapter, if that is what `tuned` is.
        tuned: its tensors otherwise.
        of_folder: whether `tuned` is a folder, and what lies there belongs to it.
        remarks: what makes one doubt that the two belong together.

    Raises:
        InputError: if a file is missing, damaged or a pickle, or nothing is in common.
    """

    def __init__(self, base: str | os.PathLike | None, tuned: str | os.PathLike, layers: str | None = None) -> None:
        self._wanted = None if layers is None else pattern(layers, "layers =")
        with called("base"):
            base = model_folder(None) if base is None else base
        self._base = open_weights(base, "base")
        if not exists(tuned, "tuned"):
            with called("tuned"):
                tuned = model_folder(tuned, adapter=True)
        folder = Path(tuned)
        if folder.is_file() and folder.name == f"model.safetensors{_INDEX}":
            tuned = folder = folder.parent
        if folder.is_file() and folder.name.startswith("adapter_model"):
            raise InputError(f"tuned = {tuned}: is the file of a PEFT adapter; give its folder, {folder.parent}")
        for inner in ("adapter", "model"):  # what a run of finetune leaves
            if (folder / "run.json").is_file() and (folder / inner).is_dir():
                tuned = folder = folder / inner
        self.of_folder = folder.is_dir()
        self.remarks: list[str] = []
        self.adapter: PeftFile | None = None
        self.tuned: TensorFile | None = None
        if (folder / "adapter_config.json").is_file():
            with called("tuned"):
                self.adapter = read_peft(folder, matrices_only=True)
            partners = self._adapted()
        else:
            self.tuned = open_weights(tuned, "tuned")
            partners = self._common()
        if self._wanted is not None:
            kept = {name: other for name, other in partners.items() if self._wanted.search(name)}
            if partners and not kept:
                raise InputError(f"layers = {layers!r}: matches none of {listed(list(partners))}")
            partners = kept
        else:
            for name in [name for name in partners if _EMBEDDING.search(name)]:
                self.skipped.append(Skipped(name, "an embedding (--layers takes it all the same)"))
                del partners[name]
        self._partners = partners
        self._said = bool(self.adapter is not None and self.adapter.config.get("fan_in_fan_out"))
        self._turned = self._kept_transposed()
        self.names = sorted(partners, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])
        self._has_alpha = self.adapter is not None and self._merged_alpha(folder)
        if self.adapter is not None:
            self.remarks += self._other_base(str(base))
        if not self.names:
            unread = self.adapter.unread if self.adapter is not None else {}
            reason = "".join(f"; {name} is {why}" for name, why in list(unread.items())[:1])
            raise InputError(
                f"tuned = {tuned}: has no weight matrix in common with the base, {self._base.folder}{reason}"
            )

    def _other_base(self, given: str) -> list[str]:
        """A remark, if the adapter names a base that is not called as this one is."""
        named, folder = str(self.adapter.config.get("base_model_name_or_path") or ""), self._base.folder.resolve()
        called = {
            Path(given).name,
            folder.name,
            *(part.rpartition("--")[2] for part in folder.parts),
        }  # the hub's cache
        scaled = (self.adapter.folder / ALPHA).is_file()  # and the base that is named may be a copy with α in it
        if not named or scaled or Path(named).name in called or Path(named).resolve() == folder:
            return []
        return [f"the adapter names {named} as its base, and was compared with {given}"]

    def _merged_alpha(self, folder: Path) -> bool:
        """Whether the base has been scaled by the adapter's α already."""
        merged, own = self._base.folder / MERGED_ALPHA, folder / ALPHA
        if not (merged.is_file() and own.is_file()):
            return False
        if merged.read_bytes() != own.read_bytes():
            raise InputError(f"base = {self._base.folder}: has been scaled by another α than that of tuned = {folder}")
        return True

    def _matrices(self, file: TensorFile) -> list[str]:
        return [name for name in file if len(file.shape(name)) == 2]

    def _told(self, name: str) -> bool | None:
        """Whether the file keeps the transpose of a weight, (inputs, outputs), by what has to fit it: an update, or a bias,
        which is as long as there are outputs. Neither tells of a square one.
        """
        n, m = self._base.shape(name)
        update = self.adapter.layers[self._partners[name]] if self.adapter and name in self._partners else None
        if n == m:
            return None
        if update is not None and update.A is not None:
            fits = update.B.shape[0], update.A.shape[1]
            return False if fits == (n, m) else (self._said or _named(name)) and fits == (m, n)
        bias = name.removesuffix("weight") + "bias"
        return {(n,): False, (m,): True}.get(self._base.shape(bias)) if bias in self._base else None

    def _kept_transposed(self) -> frozenset[str]:
        """The weights that the file keeps as (inputs, outputs).

        What has to fit a weight tells; of a square one what is told of its neighbours, where all are alike. Else the config
        says of what architectures the model is made, and without one an adapter says so of its layers.
        """
        neighbours: dict[tuple[str, bool], set[bool]] = {}
        for name in self._matrices(self._base):
            if (told := self._told(name)) is not None:
                neighbours.setdefault(_neighbourhood(name), set()).add(told)
        kinds = _architectures(self._base.folder)
        turned = set()
        for name in self._partners:
            told = self._told(name)
            if told is None and (_named(name) or self._said):
                near = neighbours.get(_neighbourhood(name), set())
                by_config = self._said if kinds is None else _named(name) and not kinds.isdisjoint(_CONV1D)
                told = True in near if len(near) == 1 else by_config
            if told:
                turned.add(name)
        return frozenset(turned)

    def _adapted(self) -> dict[str, str]:
        """Base tensor → layer of the adapter."""
        self.skipped = [Skipped(name, reason) for name, reason in self.adapter.unread.items()]
        for name, key in self.adapter.own.items():
            if len(self.adapter.tensors.shape(key)) == 2:
                reason = next(
                    (why for end, why in _BESIDE.items() if name.endswith(end)), "trained whole, beside the adapter"
                )
                self.skipped.append(Skipped(name, reason))
        stems = {f"{name.removesuffix('.weight')}.weight": name for name in self._matrices(self._base)}
        wanted = {f"{name}.weight": name for name in self.adapter.layers}
        found = _partners(list(wanted), stems, f"tuned = {self.adapter.folder}")
        partners = {wanted[name]: stem for name, stem in found.items()}
        stray = [name for name in self.adapter.layers if name not in partners]
        # Another base has too few layers, or none of these; a module that its file leaves out, as of a head, is none of a stack.
        stacks = {_numberless(name) for name in partners}
        if stray and (not partners or any(_numberless(name) in stacks for name in stray)):
            raise InputError(
                f"tuned = {self.adapter.folder}: updates {listed(stray)}, which the base does not have; is it an adapter for"
                " another base?"
            )
        self.skipped += [Skipped(name, "no matrix of the base") for name in stray]
        if stray:
            self.remarks.append(f"the adapter updates {listed(stray)}, which is no matrix of the base")
        return {stems[stem]: name for name, stem in partners.items()}

    def _common(self) -> dict[str, str]:
        """Base tensor → tuned tensor."""
        base, tuned = self._matrices(self._base), self._matrices(self.tuned)
        partners = _partners(base, dict.fromkeys(tuned), f"tuned = {self.tuned.folder}")
        taken = set(partners.values())
        self.skipped = [
            Skipped(name, f"of {len(self._base.shape(name))} dimensions")
            for name in self._base
            if len(self._base.shape(name)) > 2
        ]
        self.skipped += [Skipped(name, "only in the base") for name in base if name not in partners]
        self.skipped += [Skipped(name, "only in the tuned model") for name in tuned if name not in taken]
        for name, other in list(partners.items()):
            shapes = self._base.shape(name), self.tuned.shape(other)
            if shapes[0] != shapes[1]:
                self.skipped.append(Skipped(name, f"shapes differ: {list(shapes[0])} and {list(shapes[1])}"))
                del partners[name]
        return partners

    def __len__(self) -> int:
        return len(self.names)

    def partner(self, name: str) -> str:
        """The name that a weight of the base has in the tuned file, or its layer's in the adapter."""
        return self._partners[name]

    def layer(self, name: str) -> PeftLayer:
        """What the adapter does to a weight of the base; without α where the base has it already."""
        layer = self.adapter.layers[self._partners[name]]
        return dataclasses.replace(layer, alpha=None) if self._has_alpha else layer

    def shape(self, name: str) -> tuple[int, int]:
        """(outputs, inputs), without reading the matrix."""
        n, m = self._base.shape(name)
        return (m, n) if self.turned(name) else (n, m)

    def turned(self, name: str) -> bool:
        """Whether the file keeps the transposed matrix."""
        return name in self._turned

    def __iter__(self) -> Iterator[Pair | Skipped]:
        return map(self.read, self.names)

    def read(self, name: str) -> Pair | Skipped:
        """One pair, or why there is none.

        Raises:
            InputError: if an update's factors do not fit the weight.
        """
        if self._base.dtype(name) not in FLOATS:
            return Skipped(name, f"of type {self._base.dtype(name)}")
        base = self._base.on_host(name)
        base = np.ascontiguousarray(base.T) if self.turned(name) else base
        if not np.isfinite(base).all():
            return Skipped(name, "NaN or infinite in the base")
        if not base.any():
            return Skipped(name, "all zero in the base")
        if self.adapter is not None:
            return self._updated(name, base, self.layer(name))
        partner = self._partners[name]
        if self.tuned.dtype(partner) not in FLOATS:
            return Skipped(name, f"of type {self.tuned.dtype(partner)} in the tuned model")
        tuned = self.tuned.on_host(partner)
        tuned = np.ascontiguousarray(tuned.T) if self.turned(name) else tuned
        if not np.isfinite(tuned).all():
            return Skipped(name, "NaN or infinite in the tuned model")
        if not tuned.any():
            return Skipped(name, "all zero in the tuned model")
        return Pair(name, base, Operator(tuned), None)

    def _updated(self, name: str, base: np.ndarray, layer: PeftLayer) -> Pair | Skipped:
        n, m = base.shape
        where = f"tuned = {self.adapter.folder}: {self._partners[name]}"
        left = right = None
        if layer.A is not None:
            left, right = _balanced(np.asarray(layer.B, float) * layer.strength, np.asarray(layer.A, float))
            if left.shape[0] != n or right.shape[1] != m:
                raise InputError(
                    f"{where}: BA has shape {[left.shape[0], right.shape[1]]}, the weight {[n, m]}; is it an adapter for"
                    " another base?"
                )
            size = math.sqrt(max(np.einsum("ij,ij->", left.T @ left, right @ right.T), 0.0))
            if not size <= float(np.linalg.norm(base)) / float(np.finfo(np.float32).eps):
                return Skipped(name, f"an update of norm {size:.1e}, beside which nothing of the base is left")
            left, right = _host(left), _host(right)
        scale = None
        for part, vector in (("alpha", layer.alpha), ("magnitude", layer.magnitude)):
            if vector is not None and vector.shape != (n,):
                raise InputError(f"{where}: {part} has shape {list(vector.shape)}, must be [{n}]")
        if layer.alpha is not None:
            scale = _host(layer.alpha)
        if layer.magnitude is not None:
            # m/‖W'‖ by rows, W' = diag(α)W + BA, whose norms need no W': ‖w‖² + 2⟨w, ba⟩ + ‖ba‖².
            rows = base if scale is None else scale[:, None] * base
            squares = np.einsum("ij,ij->i", rows, rows)
            squares += 2 * np.einsum("ir,ir->i", rows @ right.T, left)
            squares += np.einsum("ir,rs,is->i", left, right @ right.T, left)
            turn = _host(layer.magnitude) / np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny))
            scale = turn if scale is None else turn * scale
            left = turn[:, None] * left
        factors = (left, right) if scale is None else None
        return Pair(name, base, Operator(base, scale, left, right), factors)


def _named(name: str) -> bool:
    return _CONV1D_LAYER.search(name) is not None


def _neighbourhood(name: str) -> tuple[str, bool]:
    """What leads to the stack of layers that a weight is in, all before the first number; and whether it is named so."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0], _named(name)


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "", name)


def _architectures(folder: Path) -> set[str] | None:
    """What a model is and what its parts are, by its config; None if it has none or that does not say."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, RecursionError) as error:
        raise InputError(f"base = {folder}: config.json cannot be read ({shown(str(error))})") from None
    kinds = {kind for part in parts if isinstance(kind := part.get("model_type"), str)}
    return kinds or None
