"""Names of weights: in a file, in the memory of transformers, and with a wrapper's prefix.

A saver leaves the names of its wrappers in what it writes (`_orig_mod.` of torch.compile, `module.` of data parallelism,
`base_model.model.` of PEFT), and transformers 5 loads many families under other names than their files have. An adapter bears
the names in memory, the base the names in its file; `Conversion` goes from the latter to the former by the table
`conversions.json`, whose rules are those of `transformers.conversion_mapping`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "TORCH_LEAVES",
    "Conversion",
    "InMemory",
    "Names",
    "plain_name",
    "reduced_names",
    "tower",
    "weight_name",
    "without_wrappers",
]

_LEADING = re.compile(
    r"(_orig_mod\.|module\.|base_model\.model\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.)+"
)
_INNER = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_flat_param)\.")
_TOWERS = {
    "text": ("language_model", "text_model", "llm", "text_encoder", "text_decoder", "thinker"),
    "vision": ("vision_tower", "vision_model", "visual", "vision_encoder", "image_tower", "image_encoder", "video_tower", "vit"),
    "audio": ("audio_tower", "audio_model", "audio_encoder", "speech_encoder", "sound_encoder", "talker"),
}  # fmt: skip
_BACKBONES = ("backbone", "pixel_level_module.encoder")
"""The attributes in which a model keeps the backbone that `backbone_config` describes."""
_TOWER_OF = {component: kind for kind, components in _TOWERS.items() for component in components}


TORCH_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
"""PyTorch's names for the variables of Flax's layers."""


def weight_name(path: Sequence[Any]) -> str:
    """Return the PyTorch checkpoint name of a Flax module's variable, given its path in the module.

    >>> weight_name(["encoder", "layer", 0, "attention", "self", "query", "kernel"])
    'encoder.layer.0.attention.self.query.weight'
    """
    *modules, leaf = map(str, path)
    return ".".join([*modules, TORCH_LEAVES.get(leaf, leaf)])


def without_wrappers(name: str) -> tuple[str, list[str]]:
    """Return a name without the parts that wrappers inserted, and the wrappers that stood inside it rather than before it.

    >>> without_wrappers("module.base_model.model.model.layers.0._orig_mod.q_proj.weight")
    ('model.layers.0.q_proj.weight', ['_orig_mod'])
    """
    stripped = name[_LEADING.match(name).end() :] if _LEADING.match(name) else name
    inside = [match[1] for match in _INNER.finditer(stripped)]
    return _INNER.sub("", stripped), inside


@functools.lru_cache(1 << 17)
def plain_name(name: str) -> str:
    """Return a name without the parts that wrappers inserted.

    >>> plain_name("_orig_mod.base_model.model.classifier.modules_to_save.default.weight")
    'classifier.weight'
    """
    name = without_wrappers(name)[0]
    name = re.sub(r"\.modules_to_save\.[^.]+(?=\.)", "", name)
    return name.replace(".original_module.", ".").replace(".base_layer.", ".")


def tower(name: str) -> str | None:
    """Return the part of a multimodal model that a name belongs to, "text", "vision" or "audio"; None if it does not say.

    >>> tower("model.vision_tower.encoder.layers.0.fc1.weight"), tower("model.layers.0.mlp.fc1.weight")
    ('vision', None)
    """
    return next((_TOWER_OF[part] for part in name.split(".") if part in _TOWER_OF), None)


def reduced_names(name: str) -> tuple[str, str]:
    """Return a name without its leading components `model`, and also without that of a text tower.

    These differ between versions of a library and between a model and its parts; the towers of other kinds stay.

    >>> reduced_names("model.language_model.model.layers.0.q_proj.weight")
    ('language_model.layers.0.q_proj.weight', 'layers.0.q_proj.weight')
    """
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    lead, rest = [part for part in parts[:first] if part != "model"], parts[first:]
    return ".".join([*lead, *rest]), ".".join([*(part for part in lead if _TOWER_OF.get(part) != "text"), *rest])


class Names(NamedTuple):
    """The names of one weight.

    Attributes:
        key: its identifier, unique on its side.
        plain: its name in the file, without wrappers.
        memory: its name in memory.
    """

    key: str
    plain: str
    memory: str


class InMemory(NamedTuple):
    """The place of a file's tensor in the model in memory.

    Attributes:
        name: of the tensor in memory; of the first of several.
        expert: index of the slice along the first dimension, if tensors of single experts are stacked.
        part, parts: index of its block of rows in the tensor in memory, and their number, if several are concatenated.
        split: names of the tensors in memory that its rows are split into, in equal blocks; empty if it is one.
        transposed: whether the two last dimensions change places.
        unknown: the operation that is not followed here, if any.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1
    split: tuple[str, ...] = ()
    transposed: bool = False
    unknown: str | None = None


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("conversions.json").read_text(encoding="utf-8"))


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    targets: tuple[str, ...]
    operations: tuple[str, ...]
    sources: int


@functools.cache
def _rules(identifier: str) -> tuple[_Rule, ...]:
    table = _table()
    rules = table["rules"].get(table["alike"].get(identifier, identifier), [])
    return tuple(
        _Rule(compiled := re.compile(pattern), tuple(targets), tuple(operations), len(compiled.groupindex))
        for pattern, targets, operations in rules
    )


class _Scoped(NamedTuple):
    """Rules for one part of a model, which match after its name: a prefix if it is there, or some components."""

    rules: tuple[_Rule, ...]
    prefix: str | None = None
    components: re.Pattern[str] | None = None

    def start(self, name: str) -> int | None:
        """Return the index in a name at which the part begins that the rules match; None if they do not apply."""
        if self.components is not None:
            match = self.components.search(name)
            return None if match is None else match.end()
        if self.prefix and name.startswith(f"{self.prefix}."):
            return len(self.prefix) + 1
        return 0


def _components(names: Iterable[str], inner: str = "") -> re.Pattern[str]:
    """Return a pattern for the first of some dotted names within a name, and for an inner one that may follow it."""
    either = "|".join(map(re.escape, names))
    return re.compile(rf"(?:^|\.)(?:{either})\.{f'(?:{re.escape(inner)}[.])?' if inner else ''}")


class Conversion:
    """The renamings from a file to memory for one model.

    Args:
        config: the content of `config.json`; None if there is none, and then names stay as they are.
        class_name: the class that the model is loaded as, where that is known (PEFT notes it as `base_model_class`); by default
            the first of the config's `architectures`.
    """

    def __init__(self, config: Mapping[str, Any] | None, class_name: str | None = None) -> None:
        self.scopes: list[_Scoped] = []
        self._known: dict[str, InMemory] = {}
        if config is None:
            return
        kind, table = str(config.get("model_type") or ""), _table()
        architectures = config.get("architectures")
        if (
            class_name is None
            and isinstance(architectures, list)
            and architectures
            and isinstance(architectures[0], str)
        ):
            class_name = architectures[0]
        base_class = table["classes"].get(kind)
        root = _rules(class_name or "") or _rules(kind)
        self._add(_Scoped(root))
        if (
            base_class is not None
            and base_class != class_name
            and _rules(base_class) != root
            and not _is_part(class_name, base_class)
        ):
            self._add(_Scoped(_rules(base_class), prefix=table["prefixes"].get(base_class)))
        for key, part in config.items():
            if not isinstance(part, dict):
                continue
            of_part = next((name for name in ("text", "vision", "audio") if name in key), None)
            names = (
                _TOWERS[of_part]
                if of_part
                else _BACKBONES
                if key == "backbone_config"
                else (key.removesuffix("_config"),)
            )
            part_kind = str(part.get("model_type") or "")
            part_class, inner = table["classes"].get(part_kind, ""), ""
            if key == "backbone_config" and (rules := _rules(table["backbones"].get(part_kind, ""))):
                self._add(_Scoped(rules, components=_components(names)))
                inner = table["prefixes"].get(table["backbones"][part_kind], "")
            rules = _rules(part_class) or _rules(part_kind)
            if rules != root:
                self._add(_Scoped(rules, components=_components(names, inner)))
        if self.scopes or kind:
            self._add(_Scoped(_rules("legacy")))

    def _add(self, scope: _Scoped) -> None:
        if scope.rules:
            self.scopes.append(scope)

    def memory(self, name: str) -> InMemory:
        """Return the place in memory of a tensor of the file."""
        if name not in self._known:
            self._known[name] = self._memory(name)
        return self._known[name]

    def _memory(self, name: str) -> InMemory:
        for scope in self.scopes:
            for rule in scope.rules:
                if not rule.operations:
                    name = _renamed(name, scope, rule)[0]
        for scope in self.scopes:
            for rule in scope.rules:
                if rule.operations:
                    new, which, matched = _renamed(name, scope, rule)
                    if which is not None:
                        return _converted(new, which, matched, rule)
        return InMemory(name)


def _is_part(class_name: str | None, base_class: str) -> bool:
    """Return whether a class is that of one tower, such as CLIPTextModel beside CLIPModel, which the whole's rules exclude."""
    if class_name is None or class_name.startswith(f"{base_class.removesuffix('Model')}For"):
        return False
    return re.search(r"(Vision|Text|Audio)", class_name) is not None and base_class not in class_name


def _renamed(name: str, scope: _Scoped, rule: _Rule) -> tuple[str, int | None, str]:
    """Return a new name, the index of the source pattern that matched (None if none did), and the text that it matched."""
    start = scope.start(name)
    if start is None or (match := rule.pattern.search(rest := name[start:])) is None:
        return name, None, ""
    group = next(key for key, value in match.groupdict().items() if value is not None)
    target = rule.targets[0]
    if r"\1" in target:
        target = target.replace(r"\1", match[rule.pattern.groupindex[group] + 1])
    return name[:start] + rest.replace(match[0], target, 1), int(group[1:]), match[0]


def _converted(name: str, which: int, matched: str, rule: _Rule) -> InMemory:
    """Return the result of conversion operations on a tensor; only stacking, joining, splitting and transposing are followed."""
    split = tuple(name.replace(rule.targets[0], target, 1) for target in rule.targets) if len(rule.targets) > 1 else ()
    expert, part, parts, transposed = None, 0, 1, False
    for operation in rule.operations:
        if operation == "MergeModulelist 0":
            expert = int(re.search(r"\d+", matched)[0]) if re.search(r"\d+", matched) else None
        elif operation == ("Concatenate 0" if expert is None else "Concatenate 1"):
            part, parts = which, rule.sources
        elif operation in ("Transpose 1 2", "Transpose 0 1"):
            transposed = True
        elif not (operation == "Chunk 0" and split):
            return InMemory(name, split=split, unknown=operation.split()[0])
    return InMemory(name, expert, part, parts, split, transposed)
