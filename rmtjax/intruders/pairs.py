"""A checkpoint before and after fine-tuning, weight by weight, one at a time in memory."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rmtjax._errors import InputError, listed, pattern
from rmtjax.checkpoints.folders import PACKAGED, called, exists, model_folder, open_weights, weights_folder
from rmtjax.checkpoints.matrices import Checkpoint, natural_order, read_config
from rmtjax.checkpoints.peft import ALPHA, MERGED_ALPHA, PeftFile, PeftLayer, read_peft
from rmtjax.checkpoints.shares import Share, Whole
from rmtjax.checkpoints.tensors import Tensor, TensorFile
from rmtjax.intruders.orientation import kept_transposed
from rmtjax.intruders.pair import Pair, Skipped
from rmtjax.intruders.pairing import asked_for, pair_adapter, pair_checkpoints
from rmtjax.intruders.updates import updated_pair
from rmtjax.linalg.krylov import LowRankUpdated

__all__ = ["ZERO", "ZERO_AFTER", "Pairs"]

_EMBEDDING = re.compile(
    r"(^|\.)(\w*embed(?:ding)?s?|embed_(?:tokens|positions|in|out)\w*|wte|wpe|shared|lm_head|decoder)\.(?:\d+\.)?weight$"
)
_HEADS = ("lm_head", "decoder", "embed_out")
"""Names with such an end are tables of rows, not linear maps: `word_embeddings`, but not ELECTRA's `embeddings_project`."""
_ROUNDING = {"BF16": 2.0**-8, "F16": 2.0**-11}
ZERO, ZERO_AFTER = "all zero in the base", "all zero in the tuned model"
NEW = "all zero in the base but not after tuning, so every vector is new"


class Pairs:
    """The weight matrices that two checkpoints have in common, or those that an adapter updates.

    Args:
        base: safetensors file, folder or hub id; "minilm" for the packaged all-MiniLM-L6-v2.
        tuned: the same, or a folder of a PEFT adapter (LoRA, rsLoRA, DoRA; with α), or of a run of `rmtjax finetune`.
        layers: regular expression that names must contain; embeddings are taken only where it is given and matches them.

    Attributes:
        names: matrices that will be read, by their names in the base.
        skipped: those that will not, and why.
        adapter: the adapter, if that is what `tuned` is.
        tuned: the tensors of the tuned file, of an adapter, too.
        of_folder: whether `tuned` is a folder, whose other files belong to it.
        remarks: reasons to doubt that the two belong together.
        incomplete: updates and layers that should have been compared and could not be.

    Raises:
        InputError: if a file is missing, damaged or a pickle, or nothing is in common.
    """

    def __init__(self, base: str | os.PathLike, tuned: str | os.PathLike, layers: str | None = None) -> None:
        wanted = None if layers is None else pattern(layers, "layers =")
        base_file = open_weights(base, "base")
        if tuned == PACKAGED or not exists(tuned, "tuned"):
            with called("tuned"):
                tuned = model_folder(tuned, adapter=True)
        folder = Path(tuned)
        if folder.is_file() and folder.name.startswith(("adapter_model.", "adapter_model-")):
            raise InputError(f"tuned = {tuned}: is the file of a PEFT adapter; give its folder, {folder.parent}")
        for inner in ("adapter", "model"):  # a folder written by `rmtjax finetune`
            if (folder / "run.json").is_file() and (folder / inner).is_dir():
                tuned = folder = folder / inner
        self.of_folder = folder.is_dir()
        self.adapter: PeftFile | None = None
        self._after: Checkpoint | None = None
        config = read_config(weights_folder(base_file.folder), "base")
        if (folder / "adapter_config.json").is_file():
            with called("tuned"):
                self.adapter = read_peft(folder, matrices_only=True)
            loaded_as = self.adapter.config.get("auto_mapping") or {}
            class_name = loaded_as.get("base_model_class") if isinstance(loaded_as, dict) else None
            self._base = Checkpoint(base_file, config, class_name)
            self.tuned: TensorFile = self.adapter.tensors
            self._pairing = pair_adapter(self._base, self.adapter, wanted)
        else:
            self._base = Checkpoint(base_file, config)
            self.tuned = open_weights(tuned, "tuned")
            self._after = Checkpoint(self.tuned, read_config(weights_folder(self.tuned.folder), "tuned") or config)
            self._pairing = pair_checkpoints(self._base, self._after, self.tuned.folder if self.of_folder else None)
        self.skipped, self.remarks = self._pairing.skipped, self._pairing.remarks
        self.incomplete = self._pairing.incomplete
        names = self._pairing.names
        if wanted is not None:
            chosen = asked_for(names, wanted)
            if names and not chosen:
                raise InputError(f"layers = {layers!r}: matches none of {listed(names)}")
        else:
            chosen = [name for name in names if not self._is_embedding(name)]
            embeddings = [name for name in names if self._is_embedding(name)]
            self.skipped += [Skipped(name, "an embedding (select it with --layers)") for name in embeddings]
        self.names = sorted(chosen, key=natural_order)
        fan_in_fan_out = bool(self.adapter is not None and self.adapter.config.get("fan_in_fan_out"))
        shares, of_adapter = self._pairing.shares, self._pairing.layers
        self._turned = kept_transposed(self._base, self.names, shares, of_adapter, fan_in_fan_out)
        self._has_alpha = self.adapter is not None and self._merged_alpha(folder)
        if self.adapter is not None:
            self.remarks += self._other_base(str(base))
        if not self.names:
            reason = "".join(f"; {skip.name} is {skip.reason}" for skip in self.skipped[:1])
            raise InputError(f"tuned = {tuned}: has no weight matrix in common with the base, {base}{reason}")

    def _other_base(self, base: str) -> list[str]:
        """Return a remark if the adapter names a different base."""
        named, folder = (
            str(self.adapter.config.get("base_model_name_or_path") or ""),
            self._base.tensors.folder.resolve(),
        )
        called = {
            Path(base).name,
            folder.name,
            *(part.rpartition("--")[2] for part in folder.parts),
        }  # the hub's cache
        scaled = (self.adapter.folder / ALPHA).is_file()  # and the named base may be a copy with α merged
        if not named or scaled or Path(named).name in called or Path(named).resolve() == folder:
            return []
        return [f"the adapter names {named} as its base, but was compared with {base}"]

    def _merged_alpha(self, folder: Path) -> bool:
        """Return whether the base has already been scaled by the adapter's α."""
        of_base, of_adapter = self._base.tensors.folder / MERGED_ALPHA, folder / ALPHA
        if not (of_base.is_file() and of_adapter.is_file()):
            return False
        if of_base.read_bytes() != of_adapter.read_bytes():
            raise InputError(
                f"base = {self._base.tensors.folder}: has been scaled by a different α than that of tuned = {folder}"
            )
        return True

    def _is_embedding(self, name: str) -> bool:
        """Return whether a weight is a table of rows, or a head that many models tie to one.

        Its name decides, if it has no bias, which a dense layer of such a name has; or an adapter that treats it as a table.
        """
        if any(self._pairing.layers[share.layer].embedding for share in self._pairing.shares.get(name, [])):
            return True
        match, tensor = _EMBEDDING.search(name), self._base.matrices[name].tensor
        return match is not None and (
            match[2] in _HEADS or tensor.removesuffix("weight") + "bias" not in self._base.tensors
        )

    def __len__(self) -> int:
        return len(self.names)

    def partner(self, name: str) -> str | None:
        """Return the name that a weight of the base has in the tuned file; None if it is an adapter's."""
        return self._pairing.partners.get(name)

    def shares(self, name: str) -> list[Share]:
        """Return the effects of an adapter's layers on a weight of the base; empty if the tuned file has it whole."""
        return (
            [] if name in self._pairing.partners or name in self._pairing.whole else self._pairing.shares.get(name, [])
        )

    def layer(self, name: str) -> PeftLayer:
        """Return an adapter's layer by its own name, without α if the base already contains it."""
        layer = self._pairing.layers[name]
        return dataclasses.replace(layer, alpha=None) if self._has_alpha else layer

    def shape(self, name: str) -> tuple[int, int]:
        """Return (outputs, inputs), without reading the matrix."""
        n, m = self._base.matrices[name].stored
        return (m, n) if self.turned(name) else (n, m)

    def turned(self, name: str) -> bool:
        """Return whether the file stores the transposed matrix."""
        return name in self._turned

    def __iter__(self) -> Iterator[Pair | Skipped]:
        return map(self.read, self.names)

    def read(self, name: str) -> Pair | Skipped:
        """Return one pair, or the reason why it is skipped.

        Raises:
            InputError: if an update's factors do not fit the weight.
        """
        base = self._oriented(self._base.read(name), name)
        if not np.isfinite(base).all():
            return Skipped(name, "NaN or infinite in the base")
        if name not in self._pairing.partners and name not in self._pairing.whole:
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
        if name in self._pairing.partners:
            return self._after.read(self._pairing.partners[name])
        pieces = self._pairing.whole[name]
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
        """Return factors (outputs, r) and (r, inputs), in double precision, of a layer's update of a matrix."""
        layer = share.of(self.layer(share.layer))
        b, a = np.asarray(layer.B, float) * layer.strength, np.asarray(layer.A, float)
        if share.whole and layer.of_layer:
            return b, a
        left, right = share.stored(b, a, self._base.matrices[name].stored)
        return (right.T, left.T) if self.turned(name) else (left, right)

    def in_layer(self, name: str, share: Share, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a change of a matrix, given as such factors, as B and A of a layer that updates it."""
        if share.whole and self._pairing.layers[share.layer].of_layer:
            return left, right
        left, right = (right.T, left.T) if self.turned(name) else (left, right)
        return share.in_memory(left, right, self._pairing.layers[share.layer].B.shape[0])

    def place(self, name: str) -> tuple[Tensor, int | None]:
        """Return the place in the tuned file of a matrix that it holds whole: its tensor, and its index if that is a stack."""
        if name in self._pairing.partners:
            matrix = self._after.matrices[self._pairing.partners[name]]
            return self.tuned.place(matrix.tensor), matrix.expert
        pieces = self._pairing.whole[name]
        if pieces != [Whole(pieces[0].key, pieces[0].expert)]:
            raise InputError(
                f"tuned = {self.adapter.folder}: holds {pieces[0].key}, which the base's file stores in several"
                " matrices, which is not supported; merge the adapter into its base and mitigate the merged model"
            )
        return self.tuned.place(pieces[0].key), pieces[0].expert

    def _updated(self, name: str, base: np.ndarray) -> Pair | Skipped:
        pieces = [(share, self.layer(share.layer)) for share in self.shares(name)]
        factors = [self.factors(name, share) for share, layer in pieces if layer.A is not None]
        return updated_pair(name, base, pieces, factors, self._rounding(name), f"tuned = {self.adapter.folder}")

    def _rounding(self, name: str) -> float:
        return _ROUNDING.get(self._base.tensors.dtype(self._base.matrices[name].tensor), 2.0**-24)
