"""Grids of parameters: products of axes, each of one parameter or of several that vary together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np

from rmtjax._checks import one_or_list
from rmtjax._errors import InputError

__all__ = ["Grid", "grid", "parse_values", "zipped"]

Values = float | Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid: names and, for each name, equally many values. A `fixed` axis has one value and no dimension."""

    values: Mapping[str, np.ndarray]
    fixed: bool

    @property
    def dim(self) -> str:
        """The name of the dimension, which is that of its first parameter."""
        return next(iter(self.values))

    @property
    def length(self) -> int:
        """The number of points."""
        return next(iter(self.values.values())).size


@dataclass(frozen=True)
class Grid:
    """A product of axes, its cells in row-major order. Build it with `grid`."""

    axes: tuple[Axis, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parameters."""
        return tuple(name for axis in self.axes for name in axis.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes that are dimensions."""
        return tuple(axis.length for axis in self.axes if not axis.fixed)

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the axes that are dimensions."""
        return tuple(axis.dim for axis in self.axes if not axis.fixed)

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(self.shape)

    def cells(self) -> dict[str, np.ndarray]:
        """Return the value of each parameter in every cell, shape (size,)."""
        index = np.indices([axis.length for axis in self.axes]).reshape(len(self.axes), -1)
        return {name: v[i] for axis, i in zip(self.axes, index, strict=True) for name, v in axis.values.items()}

    def override(self, **values: Values) -> Grid:
        """Return the grid with other values for some parameters.

        Parameters that varied together with one of these stay at their first value.
        """
        axes = []
        for axis in self.axes:
            rest = {name: v for name, v in axis.values.items() if name not in values}
            if len(rest) == len(axis.values):
                axes.append(axis)
            elif rest:
                axes += [Axis({name: v[:1]}, fixed=True) for name, v in rest.items()]
        return Grid((*axes, *grid(**values).axes))

    def split(self, names: Sequence[str]) -> tuple[Grid, Grid]:
        """Return the grid without the axes of the given parameters, and the grid of these axes."""
        inside = [axis for axis in self.axes if set(axis.values) & set(names)]
        mixed = [axis for axis in inside if not set(axis.values) <= set(names)]
        if mixed:
            raise InputError(
                f"{', '.join(mixed[0].values)} cannot vary together: {', '.join(names)} is evaluated within a draw"
            )
        return Grid(tuple(a for a in self.axes if a not in inside)), Grid(tuple(inside))


def zipped(**values: Sequence[float]) -> Axis:
    """Return one axis along which several parameters vary together, such as p, n and N at fixed aspect ratios."""
    arrays = {name: one_or_list(name, v, "a number") for name, v in values.items()}
    lengths = {name: a.size for name, a in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"zipped parameters must have the same length, got {lengths}")
    return Axis({name: np.atleast_1d(a) for name, a in arrays.items()}, fixed=False)


def grid(*together: Axis, **axes: Values) -> Grid:
    """Return the product of axes.

    Args:
        together: axes of several parameters, from `zipped`.
        axes: for each further parameter a number (fixed, no dimension of its own) or a list (an axis).
    """
    arrays = {name: one_or_list(name, v, "a number") for name, v in axes.items()}
    singles = tuple(Axis({name: np.atleast_1d(a)}, fixed=a.ndim == 0) for name, a in arrays.items())
    result = Grid((*together, *singles))
    repeated = [n for n, same in itertools.groupby(sorted(result.names)) if len(list(same)) > 1]
    if repeated:
        raise InputError(f"{repeated[0]} is on two axes of the grid")
    return result


def _range(start: str, stop: str, count: int) -> np.ndarray:
    """Return equidistant values between two decimal numbers, each computed exactly and rounded once."""
    for end in (start, stop):
        if not math.isfinite(float(end)):
            raise ValueError(end)
    first, last = (Fraction(Decimal(end)) if float(end) else Fraction(0) for end in (start, stop))
    below, steps = math.lcm(first.denominator, last.denominator), max(count - 1, 1)
    low, high = (end.numerator * (below // end.denominator) for end in (first, last))
    return np.array([(low * steps + i * (high - low)) / (below * steps) for i in range(count)])


def parse_values(name: str, text: str) -> float | np.ndarray:
    """Return the values that a text describes: a number, ``a,b,c`` or ``start:stop:count`` (both ends included).

    A value of a range is the float nearest to the exact decimal value, so that 0:1:11 holds 0.3 and not 0.30000000000000004.

    Raises:
        InputError: for any other text.
    """
    allowed = "a number, a,b,c or start:stop:count"
    try:
        if ":" in text:
            start, stop, count = text.split(":")
            if int(count) < 1:
                raise InputError(f"{name} = {text!r}: the count must be at least 1")
            return _range(start, stop, int(count))
        if "," in text:
            return np.array([float(part) for part in text.split(",")])
        return float(text)
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{name} = {text!r}: must be {allowed}") from None
