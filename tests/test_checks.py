"""The checks of arguments that all rooms share."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax import InputError
from rmtjax._checks import (
    finite,
    flag,
    floats,
    interval,
    is_traced,
    number,
    numbers,
    one_of,
    one_or_list,
    path,
    whole,
)


@pytest.mark.parametrize("value", [0, -1, 9, True, 1.0, "1", None, np.float64(2), [1]])
def test_what_is_no_whole_number_in_range(value):
    with pytest.raises(InputError, match=r"rank = .*: must be a whole number from 1 to 8"):
        whole("rank", value, 1, 8)


def test_whole_numbers():
    assert whole("n", np.int32(3)) == 3 and type(whole("n", np.int64(3))) is int
    with pytest.raises(InputError, match="must be a whole number ≥ 2, known before compilation"):
        jax.jit(lambda n: whole("n", n, 2))(3)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "1", None, 1 + 0j, 10**400])
def test_what_is_no_number_in_range(value):
    with pytest.raises(InputError, match=r"gamma = .*: must be a finite number > 0"):
        number("gamma", value, 0, open_low=True)


@pytest.mark.parametrize(
    ("open_low", "open_high", "inside"),
    [(False, False, {0, 0.5, 1}), (True, False, {0.5, 1}), (False, True, {0, 0.5}), (True, True, {0.5})],
)
def test_ends_of_intervals(open_low, open_high, inside):
    ends = dict(open_low=open_low, open_high=open_high)
    for value in (-0.1, 0, 0.5, 1, 1.1):
        for check in (number, numbers):
            if value in inside:
                check("x", value, 0, 1, **ends)
            else:
                with pytest.raises(InputError, match=f"x = {value}"):
                    check("x", value, 0, 1, **ends)


def test_intervals_in_words():
    assert interval("a number", -math.inf, math.inf) == "a number"
    assert interval("a number", -math.inf, 2, open_high=True) == "a number < 2"
    assert interval("a number", 1, math.inf) == "a number ≥ 1"
    assert interval("a number", 1, 2, open_low=True) == "a number in (1, 2]"


def test_entries_of_arrays():
    with pytest.raises(InputError, match=r"theta = -2: must be a finite number ≥ 0"):
        numbers("theta", [[1.0, -2.0], [-3.0, 0.0]], 0)
    with pytest.raises(InputError, match=r"n = 0: must be a whole number ≥ 1"):
        numbers("n", [1, 0], 1, kind="a whole number")
    with pytest.raises(InputError, match=r"s has an entry nan: all must be finite"):
        finite("s", jnp.array([1.0, jnp.nan, jnp.inf]))
    with pytest.raises(InputError, match="s has an entry"):
        finite("s", np.array([1, complex(0, np.inf)]))
    finite("s", []), finite("s", [1 + 2j])


def test_traced_values_pass():
    @jax.jit
    def traced(x):
        assert is_traced(1.0, x)
        numbers("x", x, 5)
        finite("x", x)
        return x

    assert not is_traced(1.0, np.ones(2), jnp.ones(2))
    assert traced(jnp.nan).dtype


def test_names():
    assert one_of("side", "left", ("left", "right")) == "left"
    with pytest.raises(InputError, match="side 'lefd' is unknown; did you mean 'left'"):
        one_of("side", "lefd", ("left", "right"))
    for name in (None, 3, ["left"]):
        with pytest.raises(InputError, match="is unknown"):
            one_of("side", name, ("left", "right"))


@pytest.mark.parametrize("value", ["a", [[1], [1, 2]], None, 1j, object(), 10**400])
def test_what_is_no_number_nor_several(value):
    if value is not None:  # which NumPy takes for NaN
        for check in (floats, one_or_list):
            with pytest.raises(InputError, match=r"edges = .*: must be numbers"):
                check("edges", value, "numbers")
    with pytest.raises(InputError, match="edges"):
        numbers("edges", one_or_list("edges", value, "numbers"))


def test_one_number_or_a_list():
    assert floats("edges", [[0, 1]], "numbers").tolist() == [[0.0, 1.0]]
    assert one_or_list("n", 2, "a number").shape == () and one_or_list("n", [2, 3], "a number").tolist() == [2.0, 3.0]
    with pytest.raises(InputError, match=r"n is empty: must hold at least one value, each a number"):
        one_or_list("n", [], "a number")
    with pytest.raises(InputError, match=r"n has shape \(1, 2\): must be one number or a one-dimensional list"):
        one_or_list("n", [[1, 2]], "a number")


def test_flags_and_paths():
    assert flag("remat", True) is True and flag("remat", False) is False
    for value in (0, 1, None, "yes", np.bool_(True)):
        with pytest.raises(InputError, match=r"remat = .*: must be True or False"):
            flag("remat", value)
    assert path("data", Path("a") / "b") == str(Path("a/b")) and path("data", "a") == "a"
    with pytest.raises(InputError, match=r"data = 3: must be the path of a folder"):
        path("data", 3, "the path of a folder")
