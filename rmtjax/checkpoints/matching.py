"""Which weights of two checkpoints are the same layer although their names differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rmtjax._errors import InputError, listed
from rmtjax.checkpoints.names import Names, reduced_names, tower

__all__ = ["match_names"]


def _without_towers(name: str) -> str:
    """Return a name without the components that lead it and say `model` or a tower."""
    reduced = reduced_names(name)[0].split(".")
    first = next((i for i, part in enumerate(reduced) if part.isdigit()), len(reduced) - 2)
    return ".".join([*(part for part in reduced[:first] if tower(part) is None), *reduced[first:]])


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _same_end(one: str, other: str) -> bool:
    """Return whether two dotted names are one, up to leading parts that one of them lacks (`bert.encoder…`, `encoder…`).

    Parts that say another tower are not lacking: they are another layer.
    """
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return longer.endswith(f".{shorter}") and tower(longer[: -len(shorter)]) in (None, "text", tower(shorter))


def match_names(
    items: Sequence[Names],
    others: Sequence[Names],
    argument: str,
    narrowed: Callable[[str, list[str]], list[str]] = lambda key, candidates: candidates,
) -> dict[str, str]:
    """Return for each item the key of the other side's weight that is the same layer, where there is one.

    The first of these ways that finds any decides: the same name; the same name in memory; the same but for leading components
    `model`; but for those of a tower; but for leading parts that one side lacks. A name that does not say a tower is never taken
    for one of a vision or audio tower, unless that tower is the whole model.

    Args:
        items, others: the two sides.
        argument: the beginning of an error message.
        narrowed: which of several candidates are left for an item, by what else is known of them.

    Raises:
        InputError: if more than one is left, or two items are left with the same.
    """
    exact: list[dict[str, list[Names]]] = [{}, {}, {}, {}, {}]
    for other in others:
        ways = (
            other.plain,
            other.memory,
            reduced_names(other.memory)[0],
            _without_towers(other.memory),
            _end(other.memory),
        )
        for table, name in zip(exact, ways, strict=True):
            table.setdefault(name, []).append(other)
    whole = {tower(other.memory) for other in others}

    def candidates(item: Names) -> Iterable[list[Names]]:
        yield exact[0].get(item.plain, [])
        yield [*exact[1].get(item.plain, []), *exact[1].get(item.memory, [])]
        yield exact[2].get(reduced_names(item.memory)[0], [])
        own = tower(item.memory)
        alike = exact[3].get(_without_towers(item.memory), [])
        if own is None:
            sure = [other for other in alike if tower(other.memory) in (None, "text")]
            yield alike if sure or len(whole) == 1 else []
        else:
            without = [other for other in alike if tower(other.memory) is None]
            yield without if own == "text" or whole == {None} else []
        yield [other for other in exact[4].get(_end(item.memory), []) if _same_end(item.memory, other.memory)]

    found: dict[str, str] = {}
    for item in items:
        for several in candidates(item):
            keys = list(dict.fromkeys(other.key for other in several))
            if len(keys) > 1:
                keys = narrowed(item.key, keys) or keys
            if len(keys) > 1:
                raise InputError(
                    f"{argument}: {item.key} could be any of {listed(keys)} (layers can name the one that is meant)"
                )
            if keys:
                found[item.key] = keys[0]
                break
    taken: dict[str, str] = {}
    direct = {item.key: item.plain for item in items}
    plain_of = {other.key: other.plain for other in others}
    for key, other in sorted(found.items(), key=lambda pair: direct[pair[0]] != plain_of[pair[1]]):
        if taken.setdefault(other, key) == key:
            continue
        if direct[taken[other]] == plain_of[other]:  # that one has the very name, this one is another layer
            del found[key]
        else:
            raise InputError(f"{argument}: {other} could be either of {listed([taken[other], key])}")
    return {item.key: found[item.key] for item in items if item.key in found}
