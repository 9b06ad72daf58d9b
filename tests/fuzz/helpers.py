"""Malformed inputs, and the permitted outcomes of a call with them."""

import json

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rmtjax import InputError

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 10**9, 2**31, 2**63, 10**40, 0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, 5e-324]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(-5, 300),
    st.floats(),
)
LEAVES = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.text(max_size=8), st.binary(max_size=4),
    st.sampled_from(["float32", "lora", "value", "../..", "nan", "1e9", "\x00", "ü" * 70, "a\nb"]),
)  # fmt: skip
JUNK = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=4),
    st.dictionaries(st.text(max_size=4), LEAVES, max_size=3),
    st.lists(NUMBERS, max_size=4).map(np.array),
    st.just(np.zeros((0,))),
    st.just(np.full((2, 2), np.nan)),
    st.just(object()),
)
"""Any value at all."""


def many(examples):
    """Return many inputs, the same ones each time."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def survives(function, *arguments, **named):
    """Call a function: return its result, or None after a documented one-line error."""
    try:
        return function(*arguments, **named)
    except InputError as error:
        message = str(error)
        assert message and "\n" not in message.strip(), f"not one line: {message!r}"
        assert len(message) < 2000
        return None


@st.composite
def broken_bytes(draw, content):
    """Return a file that was cut, overwritten, lengthened or shuffled somewhere."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["cut", "flip", "insert", "delete", "repeat", "empty"]))
        if kind == "cut":
            del content[place:]
        elif kind == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del content[place : place + draw(st.integers(1, 40))]
        elif kind == "repeat":
            content[place:place] = content[place : place + 30]
        elif kind == "empty":
            content.clear()
    return bytes(content)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def _places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


@st.composite
def broken_json(draw, content):
    """Return JSON in which something is missing or replaced; sometimes no JSON at all."""
    if draw(st.integers(0, 4)) == 0:
        return draw(broken_bytes(content))
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(sorted(_places(value), key=str)))
        if not path:
            value = draw(JSON)
            break
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if draw(st.booleans()):
            inner[path[-1]] = draw(JSON)
        else:
            del inner[path[-1]]
    return json.dumps(value).encode()
