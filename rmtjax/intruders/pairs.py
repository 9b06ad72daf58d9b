"""A checkpoint before and after fine-tuning, weight by weight, one at a time in memory."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, listed, pattern
from rmtjax.checkpoints.folders import called, exists, model_folder, open_weights, pickled_modules, weights_folder
from rmtjax.checkpoints.matching import Share, Whole, match_adapter, match_names, match_whole
from rmtjax.checkpoints.matrices import NO_MATRIX, Checkpoint, names_no_matrix, natural_order, read_config
from rmtjax.checkpoints.names import without_wrappers
from rmtjax.checkpoints.peft import ALPHA, DORA_EMBEDDING, MERGED_ALPHA, PeftFile, PeftLayer, read_peft
from rmtjax.checkpoints.tensors import Tensor, TensorFile
from rmtjax.linalg.krylov import LowRankUpdated, Matrix

__all__ = ["Pair", "Pairs", "Skipped"]

_EMBEDDING = re.compile(
    r"(^|\.)(\w*embed(?:ding)?s?|embed_(?:tokens|positions|in|out)\w*|wte|wpe|shared|lm_head|decoder)\.(?:\d+\.)?weight$"
)
_HEADS = ("lm_head", "decoder", "embed_out")
"""What ends so is a table of rows, not a map: `word_embeddings`, but not ELECTRA's `embeddings_project`."""
_PLAIN = 30
"""Power of two from which on squares of numbers, and their sums, may leave the range of single precision."""
_CONV1D = ("gpt2", "openai-gpt", "decision_transformer", "imagegpt")
"""Architectures of transformers that keep the transposed weight, (inputs, outputs), in dense layers of these names:"""
_CONV1D_LAYER = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
_STACK_OF_LAYERS = re.compile(r"\.\d+\.")
_ROUNDING = {"BF16": 2.0**-8, "F16": 2.0**-11}
ZERO, ZERO_AFTER = "all zero in the base", "all zero in the tuned model"
NEW = "all zero in the base and not after tuning, so that every vector is new"
_TOKENS = ".token_adapter.trainable_tokens_delta"
_BESIDE = {
    ".base_layer.": "the base's own, kept with the adapter",
    _TOKENS: "rows of an embedding, trained beside the adapter",
}
"""Tensors of an adapter's file that are neither an update of a matrix nor a weight that trained, by what is in their keys."""


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
        rounding: unit roundoff of the type that the base is stored in.
    """

    name: str
    base: Matrix
    tuned: LowRankUpdated
    factors: tuple[Matrix, Matrix] | None
    rounding: float = 2.0**-24

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
        tuned: the tensors of the tuned file, of an adapter, too.
        of_folder: whether `tuned` is a folder, and what lies there belongs to it.
        remarks: what makes one doubt that the two belong together.
        incomplete: updates and layers that should have been compared and could not be.

    Raises:
        InputError: if a file is missing, damaged or a pickle, or nothing is in common.
    """

    def __init__(self, base: str | os.PathLike | None, tuned: str | os.PathLike, layers: str | None = None) -> None:
        self._wanted = None if layers is None else pattern(layers, "layers =")
        with called("base"):
            base = model_folder(None) if base is None else base
        base_file = open_weights(base, "base")
        if not exists(tuned, "tuned"):
            with called("tuned"):
                tuned = model_folder(tuned, adapter=True)
        folder = Path(tuned)
        if folder.is_file() and folder.name.startswith(("adapter_model.", "adapter_model-")):
            raise InputError(f"tuned = {tuned}: is the file of a PEFT adapter; give its folder, {folder.parent}")
        for inner in ("adapter", "model"):  # what a run of finetune leaves
            if (folder / "run.json").is_file() and (folder / inner).is_dir():
                tuned = folder = folder / inner
        self.of_folder = folder.is_dir()
        self.remarks: list[str] = []
        self.incomplete: list[str] = []
        self.skipped: list[Skipped] = []
        self.adapter: PeftFile | None = None
        self.tuned: TensorFile | None = None
        config = read_config(weights_folder(base_file.folder), "base")
        if (folder / "adapter_config.json").is_file():
            with called("tuned"):
                self.adapter = read_peft(folder, matrices_only=True)
            loaded_as = self.adapter.config.get("auto_mapping") or {}
            class_name = loaded_as.get("base_model_class") if isinstance(loaded_as, dict) else None
            self._base = Checkpoint(base_file, config, class_name)
            self.tuned = self.adapter.tensors
            self._match_adapter()
        else:
            self._base = Checkpoint(base_file, config)
            self.tuned = open_weights(tuned, "tuned")
            self._match_checkpoint(read_config(weights_folder(self.tuned.folder), "tuned") or config)
        found = list(dict.fromkeys([*self._shares, *self._partners, *self._whole]))
        if self._wanted is not None:
            kept = [name for name in found if self._wanted.search(name)]
            if found and not kept:
                raise InputError(f"layers = {layers!r}: matches none of {listed(found)}")
        else:
            kept = [name for name in found if not self._is_embedding(name)]
            embeddings = [name for name in found if self._is_embedding(name)]
            self.skipped += [Skipped(name, "an embedding (--layers takes it all the same)") for name in embeddings]
        self.names = sorted(kept, key=natural_order)
        self._said = bool(self.adapter is not None and self.adapter.config.get("fan_in_fan_out"))
        self._turned = self._kept_transposed()
        self._has_alpha = self.adapter is not None and self._merged_alpha(folder)
        if self.adapter is not None:
            self.remarks += self._other_base(str(base))
        if not self.names:
            reason = "".join(f"; {skip.name} is {skip.reason}" for skip in self.skipped[:1])
            raise InputError(f"tuned = {tuned}: has no weight matrix in common with the base, {base}{reason}")

    def _other_base(self, given: str) -> list[str]:
        """Return a remark, if the adapter names a base that is not called as this one is."""
        named, folder = (
            str(self.adapter.config.get("base_model_name_or_path") or ""),
            self._base.tensors.folder.resolve(),
        )
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
        """Return whether the base has been scaled by the adapter's α already."""
        merged, own = self._base.tensors.folder / MERGED_ALPHA, folder / ALPHA
        if not (merged.is_file() and own.is_file()):
            return False
        if merged.read_bytes() != own.read_bytes():
            raise InputError(
                f"base = {self._base.tensors.folder}: has been scaled by another α than that of tuned = {folder}"
            )
        return True

    def _is_embedding(self, name: str) -> bool:
        """Return whether a weight is a table of rows, or a head that is tied to one in many models: by its name, if it has no
        bias, which a dense layer of such a name has; or because an adapter treats it as one.
        """
        if any(self._layers[share.layer].embedding for share in self._shares.get(name, [])):
            return True
        match, tensor = _EMBEDDING.search(name), self._base.matrices[name].tensor
        return match is not None and (
            match[2] in _HEADS or tensor.removesuffix("weight") + "bias" not in self._base.tensors
        )

    def _asked_for(self, names: list[str]) -> list[str]:
        """Return those of some names of the base that `layers` matches; all without it."""
        return [name for name in names if self._wanted is None or self._wanted.search(name)]

    # -- which weights are the same ------------------------------------------------------------------------------------

    def _match_adapter(self) -> None:
        """Find what the adapter's layers update, and which matrices it holds whole."""
        where = f"tuned = {self.adapter.folder}"
        adapted = match_adapter(
            self._base, self.adapter, where, narrowed=self._asked_for, may_turn=self._may_be_transposed
        )
        self._shares, self._layers = adapted.shares, adapted.layers
        self.remarks += self.adapter.remarks
        self.skipped += [Skipped(name, reason) for name, reason in self.adapter.unread.items()]
        asked = [] if self._wanted is None else self._asked_for([f"{name}.weight" for name in self.adapter.unread])
        for name, reason in self.adapter.unread.items():
            if reason != DORA_EMBEDDING or f"{name}.weight" in asked:
                self.incomplete.append(name)
        stray = [name for name, reason in adapted.missing.items() if not reason]
        # Another base has too few layers, or none of these; a module that its file leaves out, as of a head, is none of a stack.
        stacks = {
            _numberless(self._layers[name].module or name) for name in self._layers if name not in adapted.missing
        }
        if stray and (
            not adapted.shares or any(_numberless(self._layers[name].module or name) in stacks for name in stray)
        ):
            raise InputError(
                f"{where}: updates {listed(stray)}, which the base does not have"
                f"{self._closest(stray[0])}; is it an adapter for another base?{self._without_config()}"
            )
        for name, reason in adapted.missing.items():
            self.skipped.append(Skipped(name, reason or "no matrix of the base"))
            self.incomplete.append(name)
        if stray:
            self.remarks.append(f"the adapter updates {listed(stray)}, which is no matrix of the base")
        self._partners = {}
        self._match_whole()

    def _without_config(self) -> str:
        """Return, for a message, what else may be the cause where a base has no config.json."""
        unsure = " (the base has no config.json, without which names that transformers changes in memory are not known)"
        return unsure if self._base.config is None else ""

    def _closest(self, name: str) -> str:
        """Return, for a message, the matrix of the base whose name ends most like a layer's."""
        last = name.rpartition(".")[2]
        alike = [one for one in self._base.matrices if f".{last}." in f".{one}."]
        return f" (it has {min(alike, key=len)}, for example)" if alike else ""

    def _match_whole(self) -> None:
        """Find the matrices that an adapter holds whole (`modules_to_save`)."""
        own = {}
        for name, key in self.adapter.own.items():
            shape = self.tuned.shape(key)
            why = next((why for part, why in _BESIDE.items() if part in key), self.tuned.unreadable(key))
            if why is None and names_no_matrix(name):
                why = "a parameter that is no matrix of a layer"
            if (
                _TOKENS in key
                and self._wanted is not None
                and self._asked_for([f"{name.partition(_TOKENS)[0]}.weight"])
            ):
                self.incomplete.append(name)
            if why is None and len(shape) in (2, 3):
                own[name] = key
            elif why is not None or len(shape) > 1:
                self.skipped.append(
                    Skipped(without_wrappers(key)[0], why or f"of {len(shape)} dimensions, trained whole")
                )
        where = f"tuned = {self.adapter.folder}"
        self._whole, missing = match_whole(self._base, self.adapter, own, where, self._asked_for)
        for name, reason in missing.items():
            self.skipped.append(
                Skipped(name, f"trained whole, beside the adapter, {reason or 'and no matrix of the base'}")
            )
            # A head for other classes, which the base does not have, is none of its layers.
            if _STACK_OF_LAYERS.search(name):
                self.incomplete.append(name)

    def _match_checkpoint(self, config: Mapping[str, Any] | None) -> None:
        """Find the matrices that two checkpoints have in common."""
        self._shares, self._layers, self._whole = {}, {}, {}
        unmerged = [name for name in self.tuned if ".lora_" in name]
        if unmerged:
            raise InputError(
                f"tuned = {self.tuned.folder}: holds {unmerged[0]}, a LoRA that is not merged; give the folder that PEFT's"
                " save_pretrained writes, or merge it (merge_and_unload) and save that"
            )
        self._after = after = Checkpoint(self.tuned, config)
        base = self._base
        found = match_names(
            [base.names(name) for name in base.matrices],
            [after.names(name) for name in after.matrices],
            f"tuned = {self.tuned.folder}",
            lambda _, candidates: candidates,
        )
        self.skipped += [Skipped(name, reason) for name, reason in base.skipped.items()]
        alike = match_names(
            [base.names(name) for name in after.skipped], [base.names(name) for name in base.skipped], "tuned"
        )
        self.incomplete += [mine for name, mine in alike.items() if self._differs(mine, name)]
        for name, reason in after.skipped.items():
            if name not in alike:
                self.skipped.append(Skipped(name, f"{reason} (in the tuned model)"))
        taken = set(found.values())
        only = (
            [name for name in base.matrices if name not in found],
            [name for name in after.matrices if name not in taken],
        )
        unread = {*base.skipped, *after.skipped}
        self.skipped += [Skipped(name, "only in the base") for name in only[0] if name not in unread]
        self.skipped += [Skipped(name, "only in the tuned model") for name in only[1] if name not in unread]
        in_stacks = [[name for name in names if _STACK_OF_LAYERS.search(name)] for names in only]
        if all(in_stacks):  # both sides have layers that the other lacks: most likely the same under other names
            self.incomplete += in_stacks[0]
            self.remarks.append(
                f"the base has {listed(in_stacks[0], 2)} and the tuned model {listed(in_stacks[1], 2)}, which were not compared:"
                " their names do not show whether they are the same layers"
            )
        elif alike_in_shape := self._of_one_shape(*only):
            self.remarks.append(
                f"{listed(alike_in_shape, 2)} is only in the base, and only in the tuned model is a matrix of the same shape;"
                " if they are one layer, rename one of them"
            )
        self.incomplete += [name for name in {**base.skipped, **after.skipped} if self._is_quantized(name)]
        for file in pickled_modules(self.tuned.folder) if self.of_folder else []:
            self.skipped.append(Skipped(file, "a pickle, which runs the code inside it when it is read"))
            before = self._base.tensors.folder / file
            if not before.is_file() or before.read_bytes() != (self.tuned.folder / file).read_bytes():
                self.incomplete.append(file)
        for name, other in list(found.items()):
            shapes = base.matrices[name].stored, after.matrices[other].stored
            if shapes[0] != shapes[1]:
                self.skipped.append(Skipped(name, f"shapes differ: {list(shapes[0])} and {list(shapes[1])}"))
                if _STACK_OF_LAYERS.search(name):  # not a head or a table for another number of rows
                    self.incomplete.append(name)
                del found[name]
        self._partners = found

    def _of_one_shape(self, only_base: list[str], only_tuned: list[str]) -> list[str]:
        """Return those matrices that only the base has which are shaped as one that only the tuned model has."""
        shapes = {self._after.matrices[name].stored for name in only_tuned}
        return [name for name in only_base if self._base.matrices[name].stored in shapes]

    def _differs(self, name: str, other: str) -> bool:
        """Return whether tuning has changed a weight that is not compared, such as a convolution's of four dimensions."""
        files = self._base.tensors, self.tuned
        shape = files[0].shape(name)
        if self._base.skipped[name] == NO_MATRIX or any(
            file.unreadable(one) for file, one in zip(files, (name, other), strict=True)
        ):
            return False
        return shape != files[1].shape(other) or not np.array_equal(files[0].on_host(name), files[1].on_host(other))

    def _is_quantized(self, name: str) -> bool:
        """Return whether a tensor is a quantised weight itself, not a table of one."""
        reason = self._base.tensors.quantized.get(name) or self.tuned.quantized.get(name) or "a table of"
        return not reason.startswith("a table of")

    # -- how a matrix is stored ----------------------------------------------------------------------------------------

    def _may_be_transposed(self, name: str) -> bool:
        """Return whether a layer of this name may be kept as (inputs, outputs)."""
        return bool(self.adapter.config.get("fan_in_fan_out")) or _named(name)

    def _told(self, name: str) -> bool | None:
        """Return whether the file keeps the transpose of a weight, (inputs, outputs), by what has to fit it: an update, or a
        bias, which is as long as there are outputs. Neither tells of a square one.
        """
        matrix = self._base.matrices[name]
        n, m = matrix.stored
        if n == m or matrix.expert is not None:
            return None
        shares = self._shares.get(name, [])
        layer = self._layers[shares[0].layer] if len(shares) == 1 else None
        if layer is not None and layer.A is not None and layer.of_layer:
            return shares[0].turned
        bias = matrix.tensor.removesuffix("weight") + "bias"
        return {(n,): False, (m,): True}.get(self._base.tensors.shape(bias)) if bias in self._base.tensors else None

    def _kept_transposed(self) -> frozenset[str]:
        """Return the weights that the file keeps as (inputs, outputs).

        What has to fit a weight tells; of a square one what is told of its neighbours, where all are alike. Else the config
        says of what architectures the model is made, and without one an adapter says so of its layers. A stack of experts is
        told by the shapes of its projections.
        """
        neighbours: dict[tuple[str, bool], set[bool]] = {}
        for name in self._base.matrices:
            if (told := self._told(name)) is not None:
                neighbours.setdefault(_neighbourhood(name), set()).add(told)
        kinds = _architectures(self._base.config)
        turned = set()
        for name in self.names:
            matrix = self._base.matrices[name]
            if matrix.expert is not None:
                told = self._base.stack_is_transposed(matrix.tensor)
            elif (told := self._told(name)) is None and (_named(name) or self._said):
                near = neighbours.get(_neighbourhood(name), set())
                by_config = self._said if kinds is None else _named(name) and not kinds.isdisjoint(_CONV1D)
                told = True in near if len(near) == 1 else by_config
            if told:
                turned.add(name)
        return frozenset(turned)

    def __len__(self) -> int:
        return len(self.names)

    def partner(self, name: str) -> str | None:
        """Return the name that a weight of the base has in the tuned file; None if it is an adapter's."""
        return self._partners.get(name)

    def shares(self, name: str) -> list[Share]:
        """Return what an adapter's layers do to a weight of the base; empty if it is in the tuned file whole."""
        return [] if name in self._partners or name in self._whole else self._shares.get(name, [])

    def layer(self, name: str) -> PeftLayer:
        """Return an adapter's layer, by its own name; without α where the base has it already."""
        layer = self._layers[name]
        return dataclasses.replace(layer, alpha=None) if self._has_alpha else layer

    def shape(self, name: str) -> tuple[int, int]:
        """Return (outputs, inputs), without reading the matrix."""
        n, m = self._base.matrices[name].stored
        return (m, n) if self.turned(name) else (n, m)

    def turned(self, name: str) -> bool:
        """Return whether the file keeps the transposed matrix."""
        return name in self._turned

    def __iter__(self) -> Iterator[Pair | Skipped]:
        return map(self.read, self.names)

    def read(self, name: str) -> Pair | Skipped:
        """Read one pair; or say why there is none.

        Raises:
            InputError: if an update's factors do not fit the weight.
        """
        base = self._oriented(self._base.read(name), name)
        if not np.isfinite(base).all():
            return Skipped(name, "NaN or infinite in the base")
        if name not in self._partners and name not in self._whole:
            if base.any():
                return self._updated(name, base)
            layers = [self.layer(share.layer) for share in self.shares(name)]
            moved = any(layer.A is not None and np.any(layer.A) and np.any(layer.B) for layer in layers)
            return Skipped(name, NEW if moved else ZERO)
        tuned = self._oriented(self._read_tuned(name), name)
        if not np.isfinite(tuned).all():
            return Skipped(name, "NaN or infinite in the tuned model")
        if not base.any():
            return Skipped(name, NEW if tuned.any() else ZERO)
        if not tuned.any():
            return Skipped(name, ZERO_AFTER)
        return Pair(name, base, LowRankUpdated(tuned), None, self._rounding(name))

    def _read_tuned(self, name: str) -> np.ndarray:
        if name in self._partners:
            return self._after.read(self._partners[name])
        pieces = self._whole[name]
        tuned = self._base.read(name) if pieces[0].within is not None else None
        for piece in pieces:
            value = self.tuned.part_on_host(piece.key, piece.expert)
            value = value if piece.rows is None else value[slice(*piece.rows)]
            if piece.within is None:
                tuned = value.T if piece.turned else value
            else:
                tuned[slice(*piece.within)] = value
        return tuned

    def _oriented(self, stored: np.ndarray, name: str) -> np.ndarray:
        return np.ascontiguousarray(stored.T) if self.turned(name) else stored

    def factors(self, name: str, share: Share) -> tuple[np.ndarray, np.ndarray]:
        """Return factors (outputs, r) and (r, inputs), in double precision, of what a layer adds to a matrix."""
        layer = share.of(self.layer(share.layer))
        b, a = np.asarray(layer.B, float) * layer.strength, np.asarray(layer.A, float)
        if share.whole and layer.of_layer:
            return b, a
        left, right = share.stored(b, a, self._base.matrices[name].stored)
        return (right.T, left.T) if self.turned(name) else (left, right)

    def in_layer(self, name: str, share: Share, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a change of a matrix, given as such factors, as B and A of a layer that has a share in it."""
        if share.whole and self._layers[share.layer].of_layer:
            return left, right
        left, right = (right.T, left.T) if self.turned(name) else (left, right)
        return share.in_memory(left, right, self._layers[share.layer].B.shape[0])

    def place(self, name: str) -> tuple[Tensor, int | None]:
        """Return where the tuned file has a matrix that it holds whole: its tensor, and which of a stack's matrices it is."""
        if name in self._partners:
            matrix = self._after.matrices[self._partners[name]]
            return self.tuned.place(matrix.tensor), matrix.expert
        pieces = self._whole[name]
        if pieces != [Whole(pieces[0].key, pieces[0].expert)]:
            raise InputError(
                f"tuned = {self.adapter.folder}: holds {pieces[0].key}, of which the base's file keeps parts in several"
                " matrices, which is not mended here; merge the adapter into its base and mend the merged model"
            )
        return self.tuned.place(pieces[0].key), pieces[0].expert

    def _updated(self, name: str, base: np.ndarray) -> Pair | Skipped:
        n = len(base)
        left = right = scale = None
        pieces = [(share, self.layer(share.layer)) for share in self.shares(name)]
        factors = [_balanced(*self.factors(name, share)) for share, layer in pieces if layer.A is not None]
        if factors:
            left, right = (
                np.concatenate(side, axis) for side, axis in zip(zip(*factors, strict=True), (1, 0), strict=True)
            )
            size = math.sqrt(max(np.einsum("ij,ij->", left.T @ left, right @ right.T), 0.0))
            if not size <= float(np.linalg.norm(base)) / float(np.finfo(np.float32).eps):
                return Skipped(name, f"an update of norm {size:.1e}, beside which nothing of the base is left")
            left, right = _host(left), _host(right)
        vectors = {}
        for part in ("alpha", "magnitude"):
            for share, layer in pieces:
                vector = getattr(layer, part)
                if vector is None:
                    continue
                if share.rows is not None:
                    vector = vector[slice(*share.rows)]
                first, end = share.within or (0, n)
                if vector.shape != (end - first,):
                    where = f"tuned = {self.adapter.folder}: {share.layer}"
                    raise InputError(f"{where}: {part} has shape {list(vector.shape)}, must be [{end - first}]")
                vectors.setdefault(part, np.full(n, np.nan, np.float32))[first:end] = _host(vector)
        if "alpha" in vectors:
            scale = np.where(np.isnan(vectors["alpha"]), np.float32(1), vectors["alpha"])
        if "magnitude" in vectors:
            # m/‖W'‖ by rows, W' = diag(α)W + BA, whose norms need no W': ‖w‖² + 2⟨w, ba⟩ + ‖ba‖².
            rows = base if scale is None else scale[:, None] * base
            squares = np.einsum("ij,ij->i", rows, rows)
            squares += 2 * np.einsum("ir,ir->i", rows @ right.T, left)
            squares += np.einsum("ir,rs,is->i", left, right @ right.T, left)
            turn = vectors["magnitude"] / np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny))
            turn = np.where(np.isnan(vectors["magnitude"]), np.float32(1), turn)
            scale = turn if scale is None else turn * scale
            left = turn[:, None] * left
        factors = (left, right) if scale is None else None
        return Pair(name, base, LowRankUpdated(base, scale, left, right), factors, self._rounding(name))

    def _rounding(self, name: str) -> float:
        return _ROUNDING.get(self._base.tensors.dtype(self._base.matrices[name].tensor), 2.0**-24)


def _named(name: str) -> bool:
    return _CONV1D_LAYER.search(name) is not None


def _neighbourhood(name: str) -> tuple[str, bool]:
    """Return what leads to the stack of layers that a weight is in, all before the first number; and whether it is named so."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0], _named(name)


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "", name)


def _architectures(config: Mapping[str, Any] | None) -> set[str] | None:
    """Return what a model is and what its parts are, by its config; None if it has none or that does not say."""
    parts = [] if config is None else [config, *(part for part in config.values() if isinstance(part, dict))]
    kinds = {kind for part in parts if isinstance(kind := part.get("model_type"), str)}
    return kinds or None
