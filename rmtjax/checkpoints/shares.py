"""The effect of an adapter on the matrices of a base: the share of each adapter layer in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rmtjax._errors import InputError, listed
from rmtjax.checkpoints.matching import match_names
from rmtjax.checkpoints.matrices import Checkpoint, Matrix
from rmtjax.checkpoints.names import InMemory, Names, plain_name
from rmtjax.checkpoints.peft.file import PeftFile, PeftLayer

__all__ = ["Adapted", "Share", "Whole", "match_adapter", "match_whole"]


class Share(NamedTuple):
    """The effect of one layer of an adapter on one matrix of the base's file.

    Attributes:
        layer: the adapter's.
        expert, experts: index within a stack, and the size of the stack; None and 1 if there is no stack.
        rows: rows of the layer's matrix in memory that the file's matrix holds, (first, end); None for all.
        within: rows of the file's matrix that these are, (first, end); None for all.
        turned: whether the file stores the transpose of the matrix that the layer's BA is added to.
    """

    layer: str
    expert: int | None = None
    experts: int = 1
    rows: tuple[int, int] | None = None
    within: tuple[int, int] | None = None
    turned: bool = False

    @property
    def whole(self) -> bool:
        """Whether the layer's BA is added to the whole matrix, or to its transpose."""
        return self.expert is None and self.rows is None and self.within is None

    def of(self, layer: PeftLayer) -> PeftLayer:
        """Return the layer's update of this expert."""
        return layer if self.expert is None else layer.expert(self.expert, self.experts)

    def stored(self, b: np.ndarray, a: np.ndarray, stored: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the factors of BA's change of a matrix of this shape, as the file stores the matrix."""
        left, right = (a.T, b.T) if self.turned else (b, a)
        if self.rows is not None:
            left = left[slice(*self.rows)]
        if self.within is not None:
            padded = np.zeros((stored[0], left.shape[1]), left.dtype)
            padded[slice(*self.within)] = left
            left = padded
        return left, right

    def in_memory(self, left: np.ndarray, right: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return B and A in the layer's own matrix, of so many rows, for a change of the file's matrix given as factors."""
        if self.within is not None:
            left = left[slice(*self.within)]
        if self.rows is not None:
            padded = np.zeros((rows, left.shape[1]), left.dtype)
            padded[slice(*self.rows)] = left
            left = padded
        return (right.T, left.T) if self.turned else (left, right)


def _targets(base: Checkpoint) -> dict[str, _Target]:
    """Return the tensors that an adapter can update, by name: as they are in memory, and as in the file where that differs."""
    in_file: dict[str, list[tuple[Matrix, InMemory]]] = {}
    for matrix in base.matrices.values():
        name = plain_name(matrix.tensor)
        in_file.setdefault(name, []).append((matrix, InMemory(name)))
    renamed = set()
    for name, made_of in base.memory.items():
        tensors = {matrix.tensor for matrix, _ in made_of}
        if len(tensors) == 1 and all(place == InMemory(name) for _, place in made_of):
            renamed |= {plain_name(tensor) for tensor in tensors} - {name}  # one tensor under a second name
    targets = {name: made_of for name, made_of in in_file.items() if name not in renamed}
    return {name: _Target(name, made_of) for name, made_of in {**targets, **base.memory}.items()}


def _plain(target: _Target) -> str:
    """Return the name of a tensor in the file, if it is a single tensor there."""
    tensors = {plain_name(matrix.tensor) for matrix, _ in target.made_of}
    is_whole = all(place.parts == 1 and not place.split and place.expert is None for _, place in target.made_of)
    return tensors.pop() if len(tensors) == 1 and is_whole else target.name


def _expert(matrix: Matrix, place: InMemory) -> int | None:
    return matrix.expert if matrix.expert is not None else place.expert


def _shape_of(layer: PeftLayer) -> tuple[int, int]:
    return layer.B.shape[0], layer.A.shape[1]


_HEADS = ("lm_head", "embed_out", "output_projection", "decoder", "proj_out")
"""Last names of heads that transformers may tie to the embedding; a file then holds only one of the two."""


class _Target(NamedTuple):
    """A tensor that an adapter can update: its name in memory, and the matrices of the file that make it up."""

    name: str
    made_of: list[tuple[Matrix, InMemory]]

    @property
    def experts(self) -> int:
        return len({_expert(matrix, place) for matrix, place in self.made_of})

    def shape(self, matrix: Matrix, place: InMemory) -> tuple[int, int]:
        """Return the shape of one expert's matrix in memory."""
        n, m = matrix.stored[::-1] if place.transposed else matrix.stored
        return n * place.parts // max(len(place.split), 1), m

    def fits(self, layer: PeftLayer) -> bool:
        """Return whether a layer's BA has the shape of the tensor, or of its transpose."""
        if layer.A is None:
            return True
        shape = self.shape(*self.made_of[0])
        allowed = (shape[::-1],) if layer.embedding else (shape, shape[::-1])
        return _shape_of(layer) in allowed and layer.A.shape[0] % self.experts == 0

    def shares(
        self, key: str, layer: PeftLayer, base: Checkpoint, may_turn: Callable[[str], bool]
    ) -> dict[str, Share] | str:
        """Return a layer's share in each of the matrices, by their names; or the reason why it is unknown.

        Raises:
            ValueError: with both shapes, if they do not fit.
        """
        shares = {}
        for matrix, place in self.made_of:
            if place.unknown is not None:
                return f"made in memory by {place.unknown}, which is not followed here"
            if layer.A is None:
                shares[matrix.name] = Share(key)
                continue
            expert, shape = _expert(matrix, place), self.shape(matrix, place)
            # PEFT adds BA to a two-dimensional parameter as stored in memory, and to a layer's weight as (outputs, inputs).
            turnable = expert is not None or layer.embedding or (layer.of_layer and may_turn(matrix.name))
            turned = _shape_of(layer) != shape
            if (turned or layer.embedding) and not (turnable and _shape_of(layer) == shape[::-1]):
                raise ValueError(f"BA has shape {list(_shape_of(layer))}, the weight has {list(shape)}")
            if layer.A.shape[0] % self.experts:
                raise ValueError(f"A has {layer.A.shape[0]} rows: must be a multiple of the {self.experts} experts")
            if shape[0] == shape[1]:  # both fit
                turned = turnable if expert is None else base.adds_transposed  # of an embedding always
            rows = (place.part * matrix.stored[0], (place.part + 1) * matrix.stored[0]) if place.parts > 1 else None
            which = place.split.index(self.name) if place.split else 0
            within = (which * shape[0], (which + 1) * shape[0]) if place.split else None
            if place.transposed and (rows or within):
                return "transposed and split in memory, which is not followed here"
            experts = self.experts if expert is not None else 1
            shares[matrix.name] = Share(key, expert, experts, rows, within, turned != place.transposed)
        return shares


class Whole(NamedTuple):
    """A matrix of the base, or some of its rows, that an adapter stores whole.

    Attributes:
        key: the adapter's tensor.
        expert: index of the slice along its first dimension; None if it is one matrix.
        rows: rows of it that the file's matrix holds, (first, end); None for all.
        within: rows of the file's matrix that these are, (first, end); None for all.
        turned: whether the file stores the transpose.
    """

    key: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    within: tuple[int, int] | None = None
    turned: bool = False


def match_whole(
    base: Checkpoint,
    adapter: PeftFile,
    keys: Mapping[str, str],
    argument: str,
    narrowed: Callable[[list[str]], list[str]],
) -> tuple[dict[str, list[Whole]], dict[str, str]]:
    """Return the matrices of a base that an adapter stores whole (`modules_to_save`), and the tensors that match none.

    Args:
        base, adapter, argument, narrowed: see `match_adapter`.
        keys: of the tensors in question, by name.

    Returns:
        Pieces by matrix of the base; and the reason by unmatched tensor, "" if the base has no such weight.
    """
    targets = _targets(base)
    others = [Names(name, _plain(target), name) for name, target in targets.items()]

    def remaining(_: str, candidates: list[str]) -> list[str]:
        return [c for c in candidates if narrowed([matrix.name for matrix, _ in targets[c].made_of])]

    target_of = match_names([base.names(name) for name in keys], others, argument, remaining)
    held: dict[str, list[Whole]] = {}
    missing: dict[str, str] = {}
    for name, key in keys.items():
        if name not in target_of:
            missing[name] = ""
            continue
        target = targets[target_of[name]]
        stacked = _expert(*target.made_of[0]) is not None
        base_shape = (target.experts,) * stacked + target.shape(*target.made_of[0])
        adapter_shape = adapter.tensors.shape(key)
        if adapter_shape != base_shape or any(
            place.unknown or (place.transposed and place.split) for _, place in target.made_of
        ):
            missing[name] = f"of shape {list(adapter_shape)}, in the base {list(base_shape)}"
            continue
        for matrix, place in target.made_of:
            n = matrix.stored[1] if place.transposed else matrix.stored[0]
            rows = (place.part * n, (place.part + 1) * n) if place.parts > 1 else None
            which = place.split.index(target.name) if place.split else 0
            size = n // max(len(place.split), 1)
            within = (which * size, (which + 1) * size) if place.split else None
            piece = Whole(key, _expert(matrix, place) if stacked else None, rows, within, place.transposed)
            held.setdefault(matrix.name, []).append(piece)
    return held, missing


class Adapted(NamedTuple):
    """The effect of an adapter on the matrices of a base.

    Attributes:
        shares: of each matrix, by its name.
        layers: the adapter's layers, each with the parameter that it updates.
        missing: layers that are not among the shares, and why; "" if the base has no such weight.
    """

    shares: dict[str, list[Share]]
    layers: dict[str, PeftLayer]
    missing: dict[str, str]


def match_adapter(
    base: Checkpoint,
    adapter: PeftFile,
    argument: str,
    *,
    narrowed: Callable[[list[str]], list[str]],
    may_turn: Callable[[str], bool],
) -> Adapted:
    """Return the shares of an adapter's layers in the matrices of a base.

    Args:
        base, adapter: the two.
        argument: the beginning of an error message.
        narrowed: function that reduces several matrices of the base to those that the user selected.
        may_turn: whether a matrix of the base may be kept as (inputs, outputs).

    Raises:
        InputError: if a layer could update several tensors, or does not fit the one that it updates.
    """
    targets = _targets(base)
    others = [Names(name, _plain(target), name) for name, target in targets.items()]

    layers = dict(adapter.layers)
    names = {key: layer.module or key for key, layer in layers.items()}

    def matched(key_of: Mapping[str, str]) -> dict[str, str]:
        """Return the target of each name that has one; the values of `key_of` are the layers whose shapes must fit."""

        def remaining(name: str, candidates: list[str]) -> list[str]:
            kept = [c for c in candidates if narrowed([matrix.name for matrix, _ in targets[c].made_of])] or candidates
            return [c for c in kept if targets[c].fits(layers[key_of[name]])] or kept

        return match_names([base.names(name) for name in key_of], others, argument, remaining)

    target_of: dict[str, str] = {}
    modules: dict[str, list[str]] = {}
    for key, layer in layers.items():
        if layer.parameters:
            modules.setdefault(layer.module, []).append(key)
    parameters_of = {module: layers[keys[0]].parameters for module, keys in modules.items()}
    of_parameters = matched({f"{module}.{p}": modules[module][0] for module, ps in parameters_of.items() for p in ps})
    for module, keys in modules.items():
        # PEFT wraps in the order of registration, so the innermost wrapper, with the longest name, is of the first one.
        innermost_first = sorted(keys, key=len, reverse=True)
        present = [f"{module}.{p}" for p in parameters_of[module] if f"{module}.{p}" in of_parameters]
        ways = list(itertools.permutations([*present, *[None] * (len(keys) - len(present))], len(keys)))

        def fitting(way: tuple[str | None, ...], keys: list[str] = innermost_first) -> bool:
            pairs = zip(keys, way, strict=True)
            return all(name is None or targets[of_parameters[name]].fits(layers[key]) for key, name in pairs)

        for key, name in zip(innermost_first, next(filter(fitting, ways), ways[0]), strict=True):
            if name is not None:
                layers[key] = adapter.with_parameter(key, name.rpartition(".")[2])
                target_of[key] = of_parameters[name]

    for ending in ("weight", "in_proj_weight"):
        key_of = {f"{names[key]}.{ending}": key for key in layers if key not in target_of}
        target_of |= {key_of[name]: target for name, target in matched(key_of).items()}

    def parts_of(module: str) -> str:
        """Return the reason why a module is not matched although the base has tensors of it; "" if the base has none."""
        parts = [] if base.config is None else [base.config, *(p for p in base.config.values() if isinstance(p, dict))]
        tied = any(part.get("tie_word_embeddings") is not False for part in parts)
        if tied and module.rpartition(".")[2] in _HEADS:
            return "tied to the embedding, which the base's file holds instead of it"
        for name in base.matrices:
            if f".{module}." in f".{plain_name(name)}" or f".{module}." in f".{base.names(name).memory}":
                unsure = " without its config.json" if base.config is None else ""
                return f"kept by the base in tensors such as {name}, whose place in it is unknown{unsure}"
        return ""

    key_by_target: dict[str, str] = {}
    for key, name in target_of.items():
        if key_by_target.setdefault(name, key) != key:
            raise InputError(f"{argument}: {name} could be either of {listed([key_by_target[name], key])}")
    shares: dict[str, list[Share]] = {}
    missing: dict[str, str] = {}
    for key, layer in layers.items():
        if key not in target_of:
            missing[key] = parts_of(names[key])
            continue
        try:
            of_layer = targets[target_of[key]].shares(key, layer, base, may_turn)
        except ValueError as error:
            raise InputError(f"{argument}: {key}: {error}; is it an adapter for another base?") from None
        if isinstance(of_layer, str):
            missing[key] = of_layer
            continue
        for name, share in of_layer.items():
            shares.setdefault(name, []).append(share)
    quantized = [base.names(name) for name in base.quantized]
    absent = {f"{names[key]}.weight": key for key, reason in missing.items() if not reason}
    for name, weight in match_names([base.names(name) for name in absent], quantized, argument).items():
        missing[absent[name]] = base.quantized[weight]
    return Adapted(shares, layers, missing)
