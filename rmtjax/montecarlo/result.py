"""Results: labelled datasets made from the statistics of blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtjax.montecarlo.statistics import Rows, State, Statistic, Variable, merge_tiles

if TYPE_CHECKING:
    import xarray as xr

    from rmtjax.montecarlo.plan import Plan

__all__ = ["assemble", "result_variables", "rows_of", "same_law", "to_records", "z_score"]


def z_score(excess: np.ndarray, se: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return excess/se; if nothing varies, 0 if the excess is rounding and ±∞ otherwise."""
    rounding = np.abs(excess) <= 1e-12 * np.maximum(np.abs(scale), 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((se == 0) & rounding, 0.0, excess / se)


def rows_of(plan: Plan, tiles: np.ndarray, values: State) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return the statistics of tiles as rows of one cell and block each, cell after cell: (cell, block, arrays)."""
    cell = tiles[:, :1] * plan.cells_per_tile + np.arange(plan.cells_per_tile)
    block = np.broadcast_to(tiles[:, 1:], cell.shape)
    order = np.lexsort((block.ravel(), cell.ravel()))
    order = order[cell.ravel()[order] < plan.outer.size]  # without the padding of the last tile
    flat = {name: v.reshape(-1, *v.shape[2:]) for name, v in values.items()}
    if not np.array_equal(order, np.arange(cell.size)):
        flat = {name: v[order] for name, v in flat.items()}
    return cell.ravel()[order], block.ravel()[order], flat


def assemble(plan: Plan, law: Mapping[str, np.ndarray], tiles: np.ndarray, values: State) -> xr.Dataset:
    """Return the dataset of a run, or of its finished part.

    Args:
        plan: of the run.
        law: its predictions, by output, in the grid's shape.
        tiles: those that are done, (group, block), shape (tiles, 2).
        values: their statistics, arrays (tiles, cells of a tile, …, outputs, points).
    """
    import xarray as xr

    rows = Rows(*rows_of(plan, tiles, values))
    drawn, points = np.unique(rows.cell), math.prod(plan.within.shape)
    merged = merge_tiles(plan.statistics, rows.arrays, rows.cell)
    if drawn.size < plan.outer.size:
        for name, v in merged.items():
            fill = 0 if name == "count" or v.dtype.kind == "i" else np.nan
            merged[name] = np.full((plan.outer.size, *v.shape[1:]), fill, v.dtype)
            merged[name][drawn] = v
    expected = np.stack([law[name].reshape(plan.outer.size, points) for name in plan.outputs], 1)
    variables = result_variables(plan.statistics, merged, expected, rows)
    coords: dict = {}
    for statistic in plan.statistics:
        coords |= statistic.coordinates(plan.outputs)
    for axis in plan.grid.axes:
        for name, axis_values in axis.values.items():
            about = {"long_name": plan.about["meaning"][name] or name, "units": "1"}
            coords[name] = ((), axis_values[0], about) if axis.fixed else (axis.dim, axis_values, about)
    attrs = {name: plan.about[name] for name in ("claim", "equation", "source")}
    labelled = {name: _labelled(v, plan.grid.dims, plan.grid.shape) for name, v in variables.items()}
    return xr.Dataset(labelled, coords, attrs)


def result_variables(
    statistics: Sequence[Statistic], merged: State, expected: np.ndarray, rows: Rows | None = None
) -> dict[str, Variable]:
    """Return the variables of a result, the law and its z among them.

    Args:
        statistics: the statistics that are kept, `Moments` first.
        merged: their state, for each cell.
        expected: the law, shape (cells, outputs, points).
        rows: all blocks, where they are known.
    """
    moments = statistics[0].to_result(merged, rows)
    z = z_score(merged["mean"] - expected, moments["se"].values, expected)
    variables = {
        "mean": moments.pop("mean"),
        "se": moments.pop("se"),
        "law": Variable(expected, "law"),
        "z": Variable(z, "(mean − law) / standard error"),
        **moments,
    }
    for statistic in statistics[1:]:
        variables |= statistic.to_result(merged, rows)
    return variables


def _labelled(variable: Variable, dims: Sequence[str], shape: tuple[int, ...]) -> tuple:
    """Return a variable as xarray takes it: (cells, outputs…, points, rest…) becomes (outputs…, grid…, rest…)."""
    outputs = len(variable.lead)
    values = np.moveaxis(variable.values, 0, outputs)
    rest = values.shape[values.ndim - len(variable.rest) :]
    values = values.reshape((*values.shape[:outputs], *shape, *rest))
    return (*variable.lead, *dims, *variable.rest), values, {"units": "1", "long_name": variable.long_name}


def same_law(law: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two laws are equal up to rounding, which may differ between machines."""
    return law.shape == other.shape and np.allclose(law, other, rtol=1e-9, atol=1e-300, equal_nan=True)


def to_records(result: xr.Dataset) -> list[dict]:
    """Return the cells of a result as dicts: parameters, trials, and mean, se, law and z (by output if there are several)."""
    outputs = [str(name) for name in result["output"].values]
    table = result[["mean", "se", "law", "z", "trials"]]
    dims = [d for d in table.dims if d != "output"]
    names = [str(n) for n in table.coords if n != "output"]
    stacked = table.stack(cell=dims) if dims else table.expand_dims("cell")
    columns = {n: np.broadcast_to(stacked[n].values, stacked.sizes["cell"]) for n in names}
    trials = np.broadcast_to(stacked["trials"].values, stacked.sizes["cell"])
    numbers = {k: stacked[k].transpose("output", "cell").values for k in ("mean", "se", "law", "z")}
    rows = []
    for i in range(stacked.sizes["cell"]):
        row = {n: _plain(columns[n][i]) for n in names}
        row["trials"] = int(trials[i])
        values = {name: {k: _plain(v[j, i]) for k, v in numbers.items()} for j, name in enumerate(outputs)}
        rows.append({**row, **values[outputs[0]]} if len(outputs) == 1 else {**row, "outputs": values})
    return rows


def _plain(value: float) -> float | int:
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
