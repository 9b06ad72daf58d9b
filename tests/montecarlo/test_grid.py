from fractions import Fraction

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.montecarlo import between, grid, nonnegative, positive, real, size, zipped
from rmtjax.montecarlo.grid import parse_values


def test_cells_are_the_product_in_row_major_order():
    cells = grid(zipped(p=[1, 2], n=[10, 20]), a=5.0, b=[0.0, 1.0, 2.0])
    assert cells.dims == ("p", "b")
    assert cells.shape == (2, 3)
    assert cells.size == 6
    columns = cells.cells()
    assert columns["p"].tolist() == [1, 1, 1, 2, 2, 2]
    assert columns["n"].tolist() == [10, 10, 10, 20, 20, 20]
    assert columns["a"].tolist() == [5.0] * 6
    assert columns["b"].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_grid_of_numbers_is_one_cell():
    cells = grid(a=1.0, b=2.0)
    assert cells.size == 1
    assert cells.shape == ()
    assert {k: v.tolist() for k, v in cells.cells().items()} == {"a": [1.0], "b": [2.0]}


def test_override_replaces_and_sets_free():
    cells = grid(zipped(p=[1, 2], n=[10, 20]), a=5.0).override(p=[7.0, 8.0, 9.0], a=[1.0, 2.0])
    assert cells.size == 6
    assert set(cells.cells()["n"]) == {10.0}


@pytest.mark.parametrize(
    ("text", "values"),
    [("3", 3.0), ("1e9", 1e9), ("-0.5", -0.5), ("1,2,4", [1, 2, 4]), ("-3:6:4", [-3, 0, 3, 6]), ("2:2:1", [2])],
)
def test_values_from_the_command_line(text, values):
    np.testing.assert_array_equal(parse_values("x", text), values)


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("0:1:11", "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1"),
        ("1:0.4:7", "1 0.9 0.8 0.7 0.6 0.5 0.4"),
        ("-0.3:0.3:7", "-0.3 -0.2 -0.1 0 0.1 0.2 0.3"),
        ("1e-3:7e-3:7", "0.001 0.002 0.003 0.004 0.005 0.006 0.007"),
        ("1e6:1e7:4", "1e6 4e6 7e6 1e7"),
        ("0.1:0.7:1", "0.1"),
    ],
)
def test_a_range_holds_what_one_would_type(text, typed):
    assert parse_values("x", text).tolist() == [float(value) for value in typed.split()]


def test_values_of_a_range_are_the_nearest_floats():
    """They are those of exact arithmetic, rounded once, and so within a rounding of numpy's."""
    for start, stop, count in [("0", "1", 4), ("0.1", "3.7", 1000), ("-2.5", "1e5", 77)]:
        values = parse_values("x", f"{start}:{stop}:{count}")
        first, last = Fraction(start), Fraction(stop)
        exact = [float(first + i * (last - first) / (count - 1)) for i in range(count)]
        assert values.tolist() == exact
        np.testing.assert_allclose(values, np.linspace(float(start), float(stop), count), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "text", ["inf:1:3", "0:nan:3", "0:1e400:3", "", "a", "1:2", "1:2:0", "1:2:-3", "1:2:x", "1,,2", "1:2:3:4", ","]
)
def test_values_that_are_none(text):
    with pytest.raises(InputError, match=r"^x = "):
        parse_values("x", text)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: grid(a=[]), "a is empty"),
        (lambda: grid(a="word"), "a = 'word'"),
        (lambda: grid(a=[[1, 2], [3, 4]]), r"a has shape \(2, 2\)"),
        (lambda: grid(zipped(p=[1, 2]), p=[1]), "p is on two axes"),
        (lambda: zipped(p=[1, 2], n=[1]), "the same length"),
    ],
)
def test_grids_that_cannot_be(make, says):
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (real(), [0, -1e300, 1e300], [np.nan, np.inf, -np.inf]),
        (positive(), [1e-300, 1e300], [0, -1, np.nan, np.inf]),
        (nonnegative(), [0, 1], [-1e-300, np.nan, np.inf]),
        (size(), [1, 1e9, 2**53], [0, -1, 0.5, 2.0**54, np.nan, np.inf]),
        (size(at_least=2), [2], [1]),
        (between(-1, 1), [-1, 0, 1], [-1.1, 1.1, np.nan]),
        (between(-1, 1, open_low=True, open_high=True), [0], [-1, 1]),
    ],
)
def test_parameters(parameter, good, bad):
    for value in good:
        assert parameter.check("q", value) == value
    for value in bad:
        with pytest.raises(InputError, match=r"^q = .*must be a (finite|whole) number"):
            parameter.check("q", value)


def test_parameters_reject_what_is_no_number():
    for value in ("x", None, [[1.0]], [], object()):
        with pytest.raises(InputError, match=r"^q"):
            real().check("q", value)
