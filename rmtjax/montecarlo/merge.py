"""Results of several seeds as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtjax._errors import InputError, shown
from rmtjax.montecarlo.result import same_law, z_score

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["merge_results"]

_SAME = ("claim", "equation", "source", "method")
_SINGLE = ("seed", "wall_s", "compile_s", "trials_per_cell", "finished", "unfinished")


def _seeds(result: xr.Dataset) -> list[int]:
    return np.atleast_1d(result.attrs["seed"]).tolist()


def merge_results(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """One result of the trials of several, which must be of the same claim, sampler and grid, and of different seeds.

    Means and sums of squares are added as Chan, Golub & LeVeque (1979) do, so that the result is that of all trials together;
    a cell may have any number of trials in each. Samples are put one after another.

    Args:
        results: from `run` or `open_result`, at least two; those that are not finished count with what they have.

    Returns:
        A dataset as `run` returns it, its attribute ``seed`` a list.

    Raises:
        InputError: for results that do not belong together.
    """
    if len(results) < 2:
        raise InputError(f"results has {len(results)} entries: give at least two")
    first, *others = results
    for i, other in enumerate(others, 1):
        for name in (*_SAME, *sorted({k for r in (first, other) for k in r.attrs if k.startswith("option_")})):
            if first.attrs.get(name) != other.attrs.get(name):
                raise InputError(
                    f"results[{i}] is of {name} {shown(other.attrs.get(name))}, results[0] of {shown(first.attrs.get(name))}:"
                    " must be the same"
                )
        if set(other.data_vars) != set(first.data_vars):
            different = sorted(set(other.data_vars) ^ set(first.data_vars))
            raise InputError(f"{', '.join(different)} is not in all results: they must keep the same statistics")
        for name, values in first.coords.items():
            if name not in other.coords or not values.equals(other.coords[name]):
                raise InputError(f"results[{i}] has other values of {name} than results[0]: must be the same grid")
        if not same_law(first["law"].values, other["law"].values):
            raise InputError(f"results[{i}] has another law than results[0]: must be the same")
    seeds = [seed for result in results for seed in _seeds(result)]
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise InputError(f"seed = {seed} is in two results: their trials are the same draws and count once")
    merged = first
    for other in others:
        merged = _two(merged, other)
    excess = (merged["mean"] - merged["law"]).values
    merged["z"] = merged["z"].copy(data=z_score(excess, merged["se"].values, merged["law"].values))
    attrs = {k: v for k, v in first.attrs.items() if k not in _SINGLE and all(r.attrs.get(k) == v for r in results)}
    summed = {
        k: sum(r.attrs[k] for r in results) for k in ("wall_s", "compile_s") if all(k in r.attrs for r in results)
    }
    attrs |= {"seed": seeds, "trials_per_cell": int(merged["trials"].max()), **summed}
    merged.attrs = attrs
    return merged


def _two(a: xr.Dataset, b: xr.Dataset) -> xr.Dataset:
    """The statistics of both; z is left as it is."""
    import xarray as xr

    na, nb = a["trials"], b["trials"]
    total = na + nb
    here, there = na > 0, nb > 0
    share = xr.where(total > 0, nb / total.where(total > 0), 0.0)
    step = xr.where(here & there, b["mean"] - a["mean"], 0.0)

    def chosen(both, name):  # a cell without a trial is NaN
        return xr.where(here & there, both, xr.where(here, a[name], b[name]))

    def squares(result, count, name):  # of a single trial nothing is known of the variance, and nothing deviates
        return xr.where(count > 1, result[name] * (count - 1), 0.0)

    found = {"mean": chosen(a["mean"] + step * share, "mean"), "trials": total, "law": a["law"], "z": a["z"]}
    m2 = squares(a, na, "variance") + squares(b, nb, "variance") + step**2 * (na * share)
    found["variance"] = m2 / (total - 1).where(total > 1)
    found["se"] = np.sqrt(found["variance"] / total)
    found["min"], found["max"] = np.fmin(a["min"], b["min"]), np.fmax(a["max"], b["max"])
    if "covariance" in a:
        outer = step * step.rename(output="other")
        both = squares(a, na, "covariance") + squares(b, nb, "covariance") + outer * (na * share)
        found["covariance"] = both / (total - 1).where(total > 1)
    if "histogram" in a:
        found["histogram"] = a["histogram"] + b["histogram"]
    if "samples" in a:
        found["samples"] = xr.concat([a["samples"], b["samples"]], "trial")
    for name, v in found.items():
        found[name] = v.transpose(*a[name].dims).assign_attrs(a[name].attrs)
    return xr.Dataset(found, {name: c for name, c in a.coords.items()})
