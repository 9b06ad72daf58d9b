"""Merge results of several seeds into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtjax._errors import InputError, shown
from rmtjax.montecarlo.result import result_variables, same_law
from rmtjax.montecarlo.statistics import STATISTICS, Statistic

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["merge_results"]

_SAME = ("claim", "equation", "source", "method")
_OUTPUTS, _REST = ("output", "other"), ("bin", "trial")
"""Names of the axes before and after those of the grid."""

_SINGLE = ("seed", "wall_s", "compile_s", "trials_per_cell", "finished", "unfinished")


def _seeds(result: xr.Dataset) -> list[int]:
    return np.atleast_1d(result.attrs["seed"]).tolist()


def merge_results(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the merged result of several results, which must have the same claim, sampler and grid, and different seeds.

    Each result is turned back into the state of its statistics, and states are merged like those of blocks, so the result is that
    of all trials together; a cell may have a different number of trials in each. Samples are concatenated.

    Args:
        results: from `run` or `open_result`, at least two; those that are not finished count with what they have.

    Returns:
        A dataset as `run` returns it, its attribute ``seed`` a list.

    Raises:
        InputError: for results that do not belong together.
    """
    import xarray as xr

    if len(results) < 2:
        raise InputError(f"results has {len(results)} entries: give at least two")
    first, *others = results
    for i, result in enumerate(others, 1):
        for name in (*_SAME, *sorted({k for r in (first, result) for k in r.attrs if k.startswith("option_")})):
            if first.attrs.get(name) != result.attrs.get(name):
                raise InputError(
                    f"results[{i}] is of {name} {shown(result.attrs.get(name))}, results[0] of {shown(first.attrs.get(name))}:"
                    " must be the same"
                )
        if set(result.data_vars) != set(first.data_vars):
            different = sorted(set(result.data_vars) ^ set(first.data_vars))
            raise InputError(f"{', '.join(different)} is not in all results: they must keep the same statistics")
        for name, values in first.coords.items():
            if name not in result.coords or not values.equals(result.coords[name]):
                raise InputError(f"results[{i}] has different values of {name} than results[0]: must be the same grid")
        if not same_law(first["law"].values, result["law"].values):
            raise InputError(f"results[{i}] has a different law than results[0]: must be the same")
    seeds = [seed for result in results for seed in _seeds(result)]
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise InputError(f"seed = {seed} is in two results: must differ, since equal seeds give the same draws")
    kinds = [statistic for kind in STATISTICS.values() if (statistic := kind.of_result(first)) is not None]
    state = _state(first, kinds)
    for result in others:
        state = {name: v for s in kinds if s.is_reduced for name, v in s.merge(state, _state(result, kinds)).items()}
    is_drawn = (state["count"] > 0)[:, None, None]
    state |= {name: np.where(is_drawn, state[name], np.nan) for name in ("mean", "min", "max")}
    variables = result_variables(kinds, state, _by_cell(first["law"]))
    merged = first.copy()
    for name, variable in variables.items():
        merged[name] = first[name].copy(data=_like_result(variable.values, first[name]))
    if "samples" in first:
        merged = merged.drop_dims("trial")
        merged["samples"] = xr.concat([result["samples"] for result in results], "trial").assign_attrs(
            first["samples"].attrs
        )
    attrs = {k: v for k, v in first.attrs.items() if k not in _SINGLE and all(r.attrs.get(k) == v for r in results)}
    summed = {
        k: sum(r.attrs[k] for r in results) for k in ("wall_s", "compile_s") if all(k in r.attrs for r in results)
    }
    attrs |= {"seed": seeds, "trials_per_cell": int(merged["trials"].max()), **summed}
    merged.attrs = attrs
    return merged


def _by_cell(values: xr.DataArray) -> np.ndarray:
    """Return a variable with all cells of the grid first and one point per cell: (cells, outputs…, 1, rest…)."""
    lead = [dim for dim in values.dims if dim in _OUTPUTS]
    rest = [dim for dim in values.dims if dim in _REST]
    grid = [dim for dim in values.dims if dim not in (*lead, *rest)]
    array = values.transpose(*grid, *lead, *rest).values
    shape = array.shape[len(grid) :]
    return array.reshape((-1, *shape[: len(lead)], *(1,) * bool(lead), *shape[len(lead) :]))


def _like_result(values: np.ndarray, template: xr.DataArray) -> np.ndarray:
    """Return the inverse of `_by_cell`, with the axes of a variable of the result."""
    outputs = sum(dim in _OUTPUTS for dim in template.dims)
    return np.moveaxis(values, 0, outputs).reshape(template.shape)


def _state(result: xr.Dataset, statistics: Sequence[Statistic]) -> dict[str, np.ndarray]:
    """Return the state from which the statistics of a result were made."""
    values = {str(name): _by_cell(v) for name, v in result.data_vars.items() if "trial" not in v.dims}
    count = values.pop("trials").astype(np.float64)
    return {name: v for s in statistics for name, v in s.from_result(values, count).items()}
