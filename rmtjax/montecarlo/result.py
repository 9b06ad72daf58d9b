"""From blocks to a labelled result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rmtjax.montecarlo.statistics import Histogram, State, merge_tiles

if TYPE_CHECKING:
    import xarray as xr

    from rmtjax.montecarlo.plan import Plan

__all__ = ["assemble", "cells_of", "rows_of", "z_score"]


def z_score(excess: np.ndarray, se: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """excess/se; where nothing varies, 0 if the excess is rounding and ±∞ if not."""
    rounding = np.abs(excess) <= 1e-12 * np.maximum(np.abs(scale), 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((se == 0) & rounding, 0.0, excess / se)


def rows_of(plan: Plan, tiles: np.ndarray, values: State) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The statistics of tiles as rows of one cell and block each, cell after cell: (cell, block, arrays)."""
    cell = tiles[:, :1] * plan.cells_per_tile + np.arange(plan.cells_per_tile)
    block = np.broadcast_to(tiles[:, 1:], cell.shape)
    order = np.lexsort((block.ravel(), cell.ravel()))
    order = order[cell.ravel()[order] < plan.outer.size]  # without the padding of the last tile
    flat = {name: v.reshape(-1, *v.shape[2:]) for name, v in values.items()}
    if not np.array_equal(order, np.arange(cell.size)):
        flat = {name: v[order] for name, v in flat.items()}
    return cell.ravel()[order], block.ravel()[order], flat


def assemble(plan: Plan, law: Mapping[str, np.ndarray], tiles: np.ndarray, values: State) -> xr.Dataset:
    """The dataset of a run, or of what there is of it.

    Args:
        plan: of the run.
        law: what it predicts, by output, in the grid's shape.
        tiles: those that are done, (group, block), shape (tiles, 2).
        values: their statistics, arrays (tiles, cells of a tile, …, outputs, points).
    """
    import xarray as xr

    cell, block, rows = rows_of(plan, tiles, values)
    found, points = np.unique(cell), math.prod(plan.within.shape)
    merged = merge_tiles(plan.statistics, rows, cell)
    if found.size < plan.outer.size:
        for name, v in merged.items():
            fill = 0 if name in ("count", "histogram") else np.nan
            merged[name] = np.full((plan.outer.size, *v.shape[1:]), fill, v.dtype)
            merged[name][found] = v
    shape, dims = plan.grid.shape, plan.grid.dims

    def labelled(values, *, lead=("output",), units="1", **attrs):
        # (cells, outputs…, points, rest…) -> (outputs…, grid…, rest…)
        values = np.moveaxis(values, 0, len(lead))
        rest = values.shape[len(lead) + 2 :]
        return (*lead, *dims), values.reshape((*values.shape[: len(lead)], *shape, *rest)), {"units": units, **attrs}

    count = merged["count"]
    trials = np.broadcast_to(count[:, None, None], merged["mean"].shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = merged["m2"] / (trials - 1)
        se = np.sqrt(variance / trials)
    expected = np.stack([law[name].reshape(plan.outer.size, points) for name in plan.outputs], 1)
    z = z_score(merged["mean"] - expected, se, expected)
    variables = {
        "mean": labelled(merged["mean"], long_name="Monte Carlo mean"),
        "se": labelled(se, long_name="standard error of the mean"),
        "law": labelled(expected, long_name="law"),
        "z": labelled(z, long_name="(mean − law) / standard error"),
        "variance": labelled(variance, long_name="variance of one trial"),
        "min": labelled(merged["min"], long_name="least value drawn"),
        "max": labelled(merged["max"], long_name="largest value drawn"),
        "trials": labelled(trials[:, 0, :], lead=(), long_name="trials drawn"),
    }
    coords: dict = {"output": list(plan.outputs)}
    if "comoment" in merged:
        with np.errstate(divide="ignore", invalid="ignore"):
            covariance = merged["comoment"] / (count[:, None, None, None] - 1)
        variables["covariance"] = labelled(
            covariance, lead=("output", "other"), long_name="covariance of two outputs of one trial"
        )
        coords["other"] = list(plan.outputs)
    if "histogram" in merged:
        edges = next(s.edges for s in plan.statistics if isinstance(s, Histogram))
        d, v, a = labelled(merged["histogram"], long_name="trials per bin, the outer two open")
        variables["histogram"] = ((*d, "bin"), v, a)
        coords["left_edge"] = ("bin", np.array([-np.inf, *edges]))
    if "samples" in rows:
        drawn = rows["samples"]  # (rows, trials of a block, outputs, points)
        samples = np.full((plan.outer.size, int(block.max()) + 1, *drawn.shape[1:]), np.nan)
        live = np.arange(drawn.shape[1]) < rows["count"][:, None]
        samples[cell, block] = np.where(live[:, :, None, None], drawn, np.nan)
        samples = samples.reshape(plan.outer.size, -1, *drawn.shape[2:])[:, : int(count.max())]
        samples = np.moveaxis(samples, 1, -1)
        d, v, a = labelled(samples, long_name="samples")
        variables["samples"] = ((*d, "trial"), v, a)
    for axis in plan.grid.axes:
        for name, values in axis.values.items():
            about = {"long_name": plan.about["meaning"][name] or name, "units": "1"}
            coords[name] = ((), values[0], about) if axis.fixed else (axis.dim, values, about)
    attrs = {name: plan.about[name] for name in ("claim", "equation", "source")}
    return xr.Dataset(variables, coords, attrs)


def same_law(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two laws are one up to rounding, which may differ between machines."""
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-9, atol=1e-300, equal_nan=True)


def cells_of(result: xr.Dataset) -> list[dict]:
    """The cells of a result as plain dicts: parameters, trials, and mean, se, law and z (by output where several)."""
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
