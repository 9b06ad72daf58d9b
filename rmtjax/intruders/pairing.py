"""Pairing of weights before and after fine-tuning: of two checkpoints, or of a base and an adapter."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rmtjax._errors import InputError, listed
from rmtjax.checkpoints.folders import pickled_modules
from rmtjax.checkpoints.matching import match_names
from rmtjax.checkpoints.matrices import NO_MATRIX, Checkpoint, names_no_matrix
from rmtjax.checkpoints.names import without_wrappers
from rmtjax.checkpoints.peft import DORA_EMBEDDING, PeftFile, PeftLayer
from rmtjax.checkpoints.shares import Share, Whole, match_adapter, match_whole
from rmtjax.intruders.orientation import is_named_conv1d
from rmtjax.intruders.pair import Skipped

__all__ = ["Pairing", "asked_for", "pair_adapter", "pair_checkpoints"]

_STACK_OF_LAYERS = re.compile(r"\.\d+\.")
_TOKENS = ".token_adapter.trainable_tokens_delta"
_BESIDE = {
    ".base_layer.": "the base's own, kept with the adapter",
    _TOKENS: "rows of an embedding, trained beside the adapter",
}
"""Tensors of an adapter's file that are neither an update of a matrix nor a trained weight, by parts of their keys."""


@dataclasses.dataclass
class Pairing:
    """The weights of a base, paired with their changes.

    Attributes:
        partners: the names that weights of the base have in a tuned checkpoint.
        shares: effects of an adapter's layers on weights of the base.
        layers: the adapter's layers, each with the parameter that it updates.
        whole: weights of the base that an adapter stores whole.
        skipped: tensors that are not compared, and why.
        remarks: reasons to doubt that the two belong together.
        incomplete: names that should have been compared and cannot be.
    """

    partners: dict[str, str] = dataclasses.field(default_factory=dict)
    shares: dict[str, list[Share]] = dataclasses.field(default_factory=dict)
    layers: dict[str, PeftLayer] = dataclasses.field(default_factory=dict)
    whole: dict[str, list[Whole]] = dataclasses.field(default_factory=dict)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)
    incomplete: list[str] = dataclasses.field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The weights of the base that have a counterpart."""
        return list(dict.fromkeys([*self.shares, *self.partners, *self.whole]))


def asked_for(names: list[str], wanted: re.Pattern[str] | None) -> list[str]:
    """Return the names that a pattern matches; all of them without a pattern."""
    return [name for name in names if wanted is None or wanted.search(name)]


# -- a base and an adapter ---------------------------------------------------------------------------------------------------


def pair_adapter(base: Checkpoint, adapter: PeftFile, wanted: re.Pattern[str] | None) -> Pairing:
    """Return the matrices that an adapter's layers update, and those that it stores whole.

    Args:
        base, adapter: the two.
        wanted: the names that the user selects; None for all.

    Raises:
        InputError: if the adapter is one for another base.
    """
    where = f"tuned = {adapter.folder}"
    fan_in_fan_out = bool(adapter.config.get("fan_in_fan_out"))

    def narrowed(names: list[str]) -> list[str]:
        return asked_for(names, wanted)

    adapted = match_adapter(
        base, adapter, where, narrowed=narrowed, may_turn=lambda name: fan_in_fan_out or is_named_conv1d(name)
    )
    pairing = Pairing(shares=adapted.shares, layers=adapted.layers, remarks=list(adapter.remarks))
    pairing.skipped += [Skipped(name, reason) for name, reason in adapter.unread.items()]
    chosen = [] if wanted is None else narrowed([f"{name}.weight" for name in adapter.unread])
    for name, reason in adapter.unread.items():
        if reason != DORA_EMBEDDING or f"{name}.weight" in chosen:
            pairing.incomplete.append(name)
    stray = [name for name, reason in adapted.missing.items() if not reason]

    def numberless(name: str) -> str:
        return re.sub(r"\d+", "", adapted.layers[name].module or name)

    # Another base has too few layers, or none of these; a module that its file omits, such as a head, is not in a stack.
    stacks = {numberless(name) for name in adapted.layers if name not in adapted.missing}
    if stray and (not adapted.shares or any(numberless(name) in stacks for name in stray)):
        unsure = " (the base has no config.json, so the names that transformers uses in memory are unknown)"
        raise InputError(
            f"{where}: updates {listed(stray)}, which the base does not have{_closest(base, stray[0])}; is it an adapter for"
            f" another base?{unsure if base.config is None else ''}"
        )
    for name, reason in adapted.missing.items():
        pairing.skipped.append(Skipped(name, reason or "no matrix of the base"))
        pairing.incomplete.append(name)
    if stray:
        pairing.remarks.append(f"the adapter updates {listed(stray)}, which are not matrices of the base")
    _pair_whole(pairing, base, adapter, wanted, narrowed)
    return pairing


def _closest(base: Checkpoint, name: str) -> str:
    """Return, for a message, the matrix of the base whose name has the longest end in common with a layer's."""
    last = name.rpartition(".")[2]
    alike = [candidate for candidate in base.matrices if f".{last}." in f".{candidate}."]
    return f" (it has {min(alike, key=len)}, for example)" if alike else ""


def _pair_whole(
    pairing: Pairing,
    base: Checkpoint,
    adapter: PeftFile,
    wanted: re.Pattern[str] | None,
    narrowed: Callable[[list[str]], list[str]],
) -> None:
    """Add to a pairing the matrices that an adapter stores whole (`modules_to_save`)."""
    own_keys = {}
    for name, key in adapter.whole.items():
        shape = adapter.tensors.shape(key)
        why = next((why for part, why in _BESIDE.items() if part in key), adapter.tensors.unreadable(key))
        if why is None and names_no_matrix(name):
            why = "a parameter that is no matrix of a layer"
        if _TOKENS in key and wanted is not None and narrowed([f"{name.partition(_TOKENS)[0]}.weight"]):
            pairing.incomplete.append(name)
        if why is None and len(shape) in (2, 3):
            own_keys[name] = key
        elif why is not None or len(shape) > 1:
            reason = why or f"of {len(shape)} dimensions, trained whole"
            pairing.skipped.append(Skipped(without_wrappers(key)[0], reason))
    pairing.whole, missing = match_whole(base, adapter, own_keys, f"tuned = {adapter.folder}", narrowed)
    for name, reason in missing.items():
        pairing.skipped.append(
            Skipped(name, f"trained whole, beside the adapter, {reason or 'and no matrix of the base'}")
        )
        # A head for other classes, which the base does not have, is not one of its layers.
        if _STACK_OF_LAYERS.search(name):
            pairing.incomplete.append(name)


# -- two checkpoints ---------------------------------------------------------------------------------------------------------


def pair_checkpoints(base: Checkpoint, after: Checkpoint, folder: Path | None) -> Pairing:
    """Return the matrices that two checkpoints have in common.

    Args:
        base, after: the two.
        folder: that of the tuned one, if everything in it belongs to it.

    Raises:
        InputError: if the tuned one holds a LoRA that is not merged.
    """
    tuned = after.tensors
    unmerged = [name for name in tuned if ".lora_" in name]
    if unmerged:
        raise InputError(
            f"tuned = {tuned.folder}: holds {unmerged[0]}, a LoRA that is not merged; give the folder that PEFT's"
            " save_pretrained writes, or merge it (merge_and_unload) and save that"
        )
    partners = match_names(
        [base.names(name) for name in base.matrices],
        [after.names(name) for name in after.matrices],
        f"tuned = {tuned.folder}",
        lambda _, candidates: candidates,
    )
    pairing = Pairing(skipped=[Skipped(name, reason) for name, reason in base.skipped.items()])
    alike = match_names(
        [base.names(name) for name in after.skipped], [base.names(name) for name in base.skipped], "tuned"
    )
    pairing.incomplete += [mine for name, mine in alike.items() if _differs(base, after, mine, name)]
    for name, reason in after.skipped.items():
        if name not in alike:
            pairing.skipped.append(Skipped(name, f"{reason} (in the tuned model)"))
    matched = set(partners.values())
    only_base = [name for name in base.matrices if name not in partners]
    only_tuned = [name for name in after.matrices if name not in matched]
    unread = {*base.skipped, *after.skipped}
    pairing.skipped += [Skipped(name, "only in the base") for name in only_base if name not in unread]
    pairing.skipped += [Skipped(name, "only in the tuned model") for name in only_tuned if name not in unread]
    in_stacks = [[name for name in names if _STACK_OF_LAYERS.search(name)] for names in (only_base, only_tuned)]
    shapes = {after.matrices[name].stored for name in only_tuned}
    if all(
        in_stacks
    ):  # both sides have layers that the other lacks: most likely they are the same under different names
        pairing.incomplete += in_stacks[0]
        pairing.remarks.append(
            f"the base has {listed(in_stacks[0], 2)} and the tuned model {listed(in_stacks[1], 2)}, which were not compared:"
            " their names do not show whether they are the same layers"
        )
    elif same_shape := [name for name in only_base if base.matrices[name].stored in shapes]:
        pairing.remarks.append(
            f"{listed(same_shape, 2)} is only in the base, and only in the tuned model is a matrix of the same shape;"
            " if they are one layer, rename one of them"
        )
    pairing.incomplete += [name for name in {**base.skipped, **after.skipped} if _is_quantized(base, after, name)]
    for file in pickled_modules(folder) if folder is not None else []:
        pairing.skipped.append(Skipped(file, "a pickle, which runs code when it is read"))
        before = base.tensors.folder / file
        if not before.is_file() or before.read_bytes() != (folder / file).read_bytes():
            pairing.incomplete.append(file)
    for name, tuned_name in list(partners.items()):
        shapes = base.matrices[name].stored, after.matrices[tuned_name].stored
        if shapes[0] != shapes[1]:
            pairing.skipped.append(Skipped(name, f"shapes differ: {list(shapes[0])} and {list(shapes[1])}"))
            if _STACK_OF_LAYERS.search(name):  # not a head or a table for another number of rows
                pairing.incomplete.append(name)
            del partners[name]
    pairing.partners = partners
    return pairing


def _differs(base: Checkpoint, after: Checkpoint, name: str, tuned_name: str) -> bool:
    """Return whether fine-tuning has changed a weight that is not compared, such as a four-dimensional one of a convolution."""
    files = base.tensors, after.tensors
    shape = files[0].shape(name)
    unreadable = any(file.unreadable(key) for file, key in zip(files, (name, tuned_name), strict=True))
    if base.skipped[name] == NO_MATRIX or unreadable:
        return False
    return shape != files[1].shape(tuned_name) or not np.array_equal(
        files[0].on_host(name), files[1].on_host(tuned_name)
    )


def _is_quantized(base: Checkpoint, after: Checkpoint, name: str) -> bool:
    """Return whether a tensor is a quantised weight itself, not a table of one."""
    reason = base.tensors.quantized.get(name) or after.tensors.quantized.get(name) or "a table of"
    return not reason.startswith("a table of")
