"""Matching of the weights of two checkpoints that are the same layer under different names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rmtjax._errors import InputError, listed
from rmtjax.checkpoints.names import Names, reduced_names, tower

__all__ = ["match_names"]


def _without_towers(name: str) -> str:
    """Return a name without its leading components that are `model` or the name of a tower."""
    reduced = reduced_names(name)[0].split(".")
    first = next((i for i, part in enumerate(reduced) if part.isdigit()), len(reduced) - 2)
    return ".".join([*(part for part in reduced[:first] if tower(part) is None), *reduced[first:]])


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _same_end(name: str, other: str) -> bool:
    """Return whether two dotted names are equal up to leading parts that one of them lacks (`bert.encoder…`, `encoder…`).

    Names of different towers are different layers.
    """
    longer, shorter = (name, other) if len(name) >= len(other) else (other, name)
    return longer.endswith(f".{shorter}") and tower(longer[: -len(shorter)]) in (None, "text", tower(shorter))


def match_names(
    items: Sequence[Names],
    others: Sequence[Names],
    argument: str,
    narrowed: Callable[[str, list[str]], list[str]] = lambda key, candidates: candidates,
) -> dict[str, str]:
    """Return for each item the key of the other side's weight that is the same layer, if any.

    The first of these ways that finds a match decides: the same name; the same name in memory; the same but for leading
    components `model`; but for those of a tower; but for leading parts that one side lacks. A name without a tower never matches
    one of a vision or audio tower, unless that tower is the whole model.

    Args:
        items, others: the two sides.
        argument: the beginning of an error message.
        narrowed: function that reduces several candidates for an item by what else is known of them.

    Raises:
        InputError: if more than one is left, or two items are left with the same.
    """
    exact: list[dict[str, list[Names]]] = [{}, {}, {}, {}, {}]
    for weight in others:
        ways = (
            weight.plain,
            weight.memory,
            reduced_names(weight.memory)[0],
            _without_towers(weight.memory),
            _end(weight.memory),
        )
        for table, name in zip(exact, ways, strict=True):
            table.setdefault(name, []).append(weight)
    towers = {tower(weight.memory) for weight in others}

    def candidates(item: Names) -> Iterable[list[Names]]:
        yield exact[0].get(item.plain, [])
        yield [*exact[1].get(item.plain, []), *exact[1].get(item.memory, [])]
        yield exact[2].get(reduced_names(item.memory)[0], [])
        item_tower = tower(item.memory)
        alike = exact[3].get(_without_towers(item.memory), [])
        if item_tower is None:
            sure = [weight for weight in alike if tower(weight.memory) in (None, "text")]
            yield alike if sure or len(towers) == 1 else []
        else:
            without = [weight for weight in alike if tower(weight.memory) is None]
            yield without if item_tower == "text" or towers == {None} else []
        yield [weight for weight in exact[4].get(_end(item.memory), []) if _same_end(item.memory, weight.memory)]

    matches: dict[str, str] = {}
    for item in items:
        for several in candidates(item):
            keys = list(dict.fromkeys(weight.key for weight in several))
            if len(keys) > 1:
                keys = narrowed(item.key, keys) or keys
            if len(keys) > 1:
                raise InputError(f"{argument}: {item.key} could be any of {listed(keys)} (select one with layers)")
            if keys:
                matches[item.key] = keys[0]
                break
    item_of: dict[str, str] = {}
    direct = {item.key: item.plain for item in items}
    plain_of = {weight.key: weight.plain for weight in others}
    for key, weight_key in sorted(matches.items(), key=lambda pair: direct[pair[0]] != plain_of[pair[1]]):
        if item_of.setdefault(weight_key, key) == key:
            continue
        if direct[item_of[weight_key]] == plain_of[weight_key]:  # the name is equal, so this is another layer
            del matches[key]
        else:
            raise InputError(f"{argument}: {weight_key} could be either of {listed([item_of[weight_key], key])}")
    return {item.key: matches[item.key] for item in items if item.key in matches}
