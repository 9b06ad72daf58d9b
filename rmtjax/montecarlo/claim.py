"""A claim: a closed-form law and samplers with the same parameters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmtjax._checks import one_of
from rmtjax._errors import InputError, shown, unknown
from rmtjax._precision import double
from rmtjax._random import pinned
from rmtjax.montecarlo.grid import Axis, Grid, grid
from rmtjax.montecarlo.parameter import Parameter

__all__ = ["Claim", "Option", "Sampler"]

RESERVED = (
    "mean",
    "se",
    "law",
    "z",
    "variance",
    "min",
    "max",
    "trials",
    "covariance",
    "histogram",
    "samples",
    "output",
)
"""Names that a result uses, so that no parameter can have them."""

OUTPUT = "value"
"""Name of a claim's only output if the claim does not name it."""


def _accepts(function: Callable, skip: int = 0) -> tuple[str, ...] | None:
    """Return the names of a function's parameters after the first `skip`; None if it takes any."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters)


def call_with(function: Callable, *args: Any, skip: int = 0, **values: Any) -> Any:
    """Call `function` with those of `values` that its signature names."""
    names = _accepts(function, skip)
    return function(*args, **(values if names is None else {k: v for k, v in values.items() if k in names}))


@dataclass(frozen=True)
class Option:
    """A choice that a sampler offers beside the parameters of the law, such as the law of the entries.

    Attributes:
        default: the value if none is given.
        choices: the values to list.
        check: a function that raises `InputError` for an invalid text; None allows only the choices.
    """

    default: str
    choices: tuple[str, ...]
    check: Callable[[str], Any] | None = None


@dataclass(frozen=True)
class Sampler:
    """A way to draw the quantity that a law predicts.

    Attributes:
        draw: ``draw(key, **params) -> outputs``, for one trial: a scalar array, or a dict of them by name. The
            parameters it names are passed as float64 scalars. Parameters that the claim evaluates ``within`` a draw come
            as one-dimensional arrays, and every output then has one axis for each, in the claim's order.
        static_argnames: parameters that shape arrays; they come as Python numbers and each combination is compiled once.
        options: further keywords of `draw`, texts that are not parameters of the law.
        block: trials per block, the unit of work and of summation. Whatever the chunk size, device count or history
            of a run, a block is computed by the same program on the same inputs.
        batch_size: trials of a block that are drawn at once, or a function of the static parameters that returns it. None
            means the whole block; less saves memory.
        default_trials: number of trials that `verify` draws in each cell.
    """

    draw: Callable[..., Any]
    static_argnames: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    block: int = 1024
    batch_size: int | Callable[..., int] | None = None
    default_trials: int = 10_000

    def choose(self, options: Mapping[str, str] | None) -> dict[str, str]:
        """Return the value of every option, given the values of some."""
        chosen = {name: option.default for name, option in self.options.items()}
        if options is not None and not isinstance(options, Mapping):
            raise InputError(f"options = {shown(options)}: must be a mapping of names to values")
        for name, value in ({} if options is None else options).items():
            if name not in self.options:
                raise InputError(f"{name} = {shown(value)}: this sampler has no such option")
            option = self.options[name]
            if option.check is not None:
                option.check(str(value))
            else:
                one_of(name, value, option.choices)
            chosen[name] = str(value)
        return chosen


@dataclass(frozen=True)
class Claim:
    r"""A statement about a random system: a law's prediction and samplers of the predicted quantity.

    Attributes:
        name: its name on the command line.
        equation: the law, in LaTeX.
        source: paper and equation.
        params: the parameters, in the order of the grid's cells.
        law: ``law(**params)``, elementwise on arrays that broadcast: an array, or a dict of arrays by output name.
        samplers: by name; the first is the default. A bare function stands for ``Sampler(function)``.
        grid: the default grid, all parameters.
        within: parameters that do not enter the randomness and are evaluated all at once from one draw.
        check: ``check(**params)`` on one value each; raises `InputError` for combinations that are not admissible.
        bias_bound: ``bias_bound(**params)``: largest distance of the law from the exact mean, because it is a limit; an array or
            a dict by output name. A verdict counts only the excess over it. None: the law is exact.
        comparison_grid: a grid on which `verify` compares the samplers with each other, if there are several.
        erratum: whether the law is a known error, such as a misprint, that the data are to refute.
    """

    name: str
    equation: str
    source: str
    params: Mapping[str, Parameter]
    law: Callable[..., Any]
    samplers: Mapping[str, Sampler | Callable[..., Any]]
    grid: Grid | Mapping[str, Any]
    within: tuple[str, ...] = ()
    check: Callable[..., None] | None = None
    bias_bound: Callable[..., Any] | None = None
    comparison_grid: Grid | None = None
    erratum: bool = False

    def __post_init__(self) -> None:
        for name in self.params:
            if name in RESERVED:
                raise InputError(f"claim {self.name!r}: parameter {name!r}: must not be one of {', '.join(RESERVED)}")
        if not self.samplers:
            raise InputError(f"claim {self.name!r} has no sampler: give at least one")
        samplers = {n: s if isinstance(s, Sampler) else Sampler(s) for n, s in self.samplers.items()}
        object.__setattr__(self, "samplers", samplers)
        if not isinstance(self.grid, Grid):
            object.__setattr__(self, "grid", grid(**self.grid))
        roles = [("law", self.law, 0), ("check", self.check, 0), ("bias_bound", self.bias_bound, 0)]
        roles += [(f"sampler {n!r}", s.draw, 1) for n, s in samplers.items()]
        options = {o for s in samplers.values() for o in s.options}
        for role, function, skip in roles:
            for name in (function and _accepts(function, skip)) or ():
                if name not in self.params and name not in options:
                    required = inspect.signature(function).parameters[name].default is inspect.Parameter.empty
                    if required:
                        raise unknown(f"claim {self.name!r}: {role}'s parameter", name, self.params)
        for name in (*self.within, *(n for s in samplers.values() for n in s.static_argnames)):
            one_of(f"claim {self.name!r}: parameter", name, self.params)
        self.resolve(self.grid)

    def resolve(self, cells: Grid) -> Grid:
        """Return the grid with every value checked and its axes in the claim's order, those within a draw last.

        Raises:
            InputError: for a parameter that is unknown or missing, or a value or combination that is not admissible.
        """
        if not isinstance(cells, Grid):
            raise InputError(f"grid = {shown(cells)}: must be a grid, from rmtjax.grid(name=values, …)")
        for name in cells.names:
            one_of(f"claim {self.name!r}: parameter", name, self.params)
        for name in self.params:
            if name not in cells.names:
                raise InputError(f"claim {self.name!r}: parameter {name} has no value")
        axes = [Axis({n: self.params[n].check(n, v) for n, v in a.values.items()}, a.fixed) for a in cells.axes]
        order = {name: i for i, name in enumerate((*(n for n in self.params if n not in self.within), *self.within))}
        result = Grid(tuple(sorted(axes, key=lambda axis: min(order[n] for n in axis.values))))
        outer, _ = result.split(self.within)
        if self.check is not None:
            columns = outer.cells()
            for values in zip(*columns.values(), strict=True):
                named = dict(zip(columns, map(float, values), strict=True))
                try:
                    call_with(self.check, **named)
                except OverflowError:
                    at = ", ".join(f"{name} = {value:g}" for name, value in named.items())
                    raise InputError(f"claim {self.name!r}: {at}: too large to compute with") from None
        return result

    def sampler(self, name: str | None = None) -> tuple[str, Sampler]:
        """Return the sampler of the given name with that name; by default the first sampler."""
        name = next(iter(self.samplers)) if name is None else name
        one_of(f"claim {self.name!r}: sampler", name, self.samplers)
        return name, self.samplers[name]

    def predict(self, cells: Grid, of: Callable[..., Any] | None = None) -> dict[str, np.ndarray]:
        """Return the law (or the function `of`) on every cell: by output name, arrays of the grid's shape."""
        columns = {name: v.reshape(cells.shape) for name, v in cells.cells().items()}
        with pinned(), double():
            values = call_with(of or self.law, **columns)
        values = values if isinstance(values, Mapping) else {OUTPUT: values}
        outputs = {}
        for name, v in values.items():
            v = np.asarray(v, np.float64)
            try:
                outputs[name] = np.broadcast_to(v, cells.shape)
            except ValueError:
                raise InputError(
                    f"claim {self.name!r}: {'the law' if of is None else 'a function'} returns {name} of shape {v.shape} for"
                    f" parameters of shape {cells.shape}: must work elementwise"
                ) from None
        return outputs


def whole_width(block: int, limit: float) -> int:
    """Return the largest power of two that divides `block` and is at most `limit`, at least 1."""
    largest = block & -block
    return int(min(largest, 2 ** max(0, math.floor(math.log2(max(limit, 1))))))
