"""Verdicts: which laws do the data refute, when many cells of many claims are tested at once?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from rmtjax._errors import InputError, shown
from rmtjax._progress import Progress
from rmtjax.montecarlo.claim import Claim
from rmtjax.montecarlo.engine import Run
from rmtjax.montecarlo.grid import Grid
from rmtjax.montecarlo.resources import workers
from rmtjax.montecarlo.result import z_score

__all__ = ["Finding", "Verdict", "holm", "verify"]


@dataclass(frozen=True)
class Finding:
    """One output of one claim, tested on every cell of a grid.

    Attributes:
        claim, output: what was tested.
        against: ``"law"``, or the name of the sampler that the first one was compared with.
        method: the sampler.
        tests: how many cells.
        trials: per cell.
        z: the largest |z| beyond the claim's stated bias, with its sign.
        p: the smallest p-value, adjusted by Holm over everything that was tested.
        cell: the parameters of that cell, and there `mean`, `se` and `expected`.
        holds: whether nothing was refuted.
        erratum: whether the law is a known error, which should not hold.
    """

    claim: str
    output: str
    against: str
    method: str
    tests: int
    trials: int
    z: float
    p: float
    cell: dict[str, float]
    mean: float
    se: float
    expected: float
    holds: bool
    erratum: bool

    @property
    def as_it_should(self) -> bool:
        """Whether a law holds, or a known error is refuted."""
        return self.holds != self.erratum


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes:
        findings: one for each claim, output and comparison.
        results: the datasets, by claim and method.
        level: the family-wise error: the probability that anything true is refuted.
        wall_s: seconds in all.
    """

    findings: tuple[Finding, ...]
    results: dict[tuple[str, str], xr.Dataset] = field(repr=False)
    level: float
    wall_s: float

    @property
    def holds(self) -> bool:
        """Whether no claim was refuted, and every known error was."""
        return all(finding.as_it_should for finding in self.findings)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (Scand. J. Statist. 6, 1979): rejecting those ≤ a errs with probability ≤ a, whatever the
    dependence between the tests.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(adjusted, 1.0)
    return out


@dataclass
class _Tests:
    claim: Claim
    output: str
    against: str
    method: str
    trials: int
    mean: xr.DataArray
    se: xr.DataArray
    expected: xr.DataArray
    z: np.ndarray
    p: np.ndarray

    def finding(self, adjusted: np.ndarray, level: float) -> Finding:
        at = np.unravel_index(np.argmin(self.p - 1e-9 * np.abs(np.nan_to_num(self.z))), self.p.shape)
        place = dict(zip(self.mean.dims, at, strict=True))
        here = self.mean.isel(place)
        cell = {str(n): float(v) for n, v in here.coords.items() if n != "output"}
        return Finding(
            self.claim.name, self.output, self.against, self.method, self.p.size, self.trials, float(self.z[at]),
            float(adjusted.min()), cell, float(here), float(self.se.isel(place)), float(self.expected.isel(place)),
            bool((adjusted > level).all()), self.claim.erratum,
        )  # fmt: skip


def _p_values(excess: np.ndarray, se: np.ndarray, freedom: np.ndarray | float, scale: np.ndarray):
    z = z_score(excess, se, scale)
    p = 2 * stats.t.sf(np.abs(z), freedom)
    return z, np.where(np.isfinite(p), p, 0.0)  # a mean that is not a number refutes the law


def _against_law(claim: Claim, cells: Grid, result: xr.Dataset) -> list[_Tests]:
    bias = {}
    if claim.bias is not None:
        allowed = claim.predict(cells, claim.bias)
        bias = {name: v for name, v in allowed.items() if name in result["output"].values}
        if not bias:
            everywhere = next(iter(allowed.values()))
            bias = {str(name): everywhere for name in result["output"].values}
    tests = []
    for name in result["output"].values:
        one = result.sel(output=name)
        mean, se, law = one["mean"].values, one["se"].values, one["law"].values
        gap = mean - law
        excess = np.sign(gap) * np.maximum(np.abs(gap) - bias.get(str(name), 0.0), 0.0)
        excess = np.where(np.isfinite(gap), excess, gap)
        z, p = _p_values(excess, se, result["trials"].values - 1, law)
        method, trials = result.attrs["method"], result.attrs["trials_per_cell"]
        tests.append(_Tests(claim, str(name), "law", method, trials, one["mean"], one["se"], one["law"], z, p))
    return tests


def _against_each_other(claim: Claim, first: xr.Dataset, other: xr.Dataset) -> list[_Tests]:
    tests = []
    for name in first["output"].values:
        a, b = first.sel(output=name), other.sel(output=name)
        se2a, se2b = a["se"].values ** 2, b["se"].values ** 2
        se = np.sqrt(se2a + se2b)
        with np.errstate(divide="ignore", invalid="ignore"):  # Welch and Satterthwaite
            freedom = se**4 / (se2a**2 / (a["trials"].values - 1) + se2b**2 / (b["trials"].values - 1))
        z, p = _p_values((b["mean"] - a["mean"]).values, se, np.nan_to_num(freedom, nan=1.0), a["mean"].values)
        tests.append(
            _Tests(
                claim=claim,
                output=str(name),
                against=first.attrs["method"],
                method=other.attrs["method"],
                trials=other.attrs["trials_per_cell"],
                mean=b["mean"],
                se=b["se"].copy(data=se),
                expected=a["mean"],
                z=z,
                p=p,
            )
        )
    return tests


def _runs(claim: Claim, trials: int | None, seed: int, how: dict[str, Any]) -> list[Run]:
    """The run of a claim's first sampler on its grid; on the grid of comparison, if there is one; and those of the others."""
    method, sampler = claim.sampler()
    count = sampler.trials if trials is None else trials
    first = Run(claim, trials=count, seed=seed, method=method, **how)
    if claim.compare is None or len(claim.samplers) == 1:
        return [first]
    runs = [first, Run(claim, claim.compare, trials=count, seed=seed, method=method, **how)]
    for name, other in list(claim.samplers.items())[1:]:
        runs.append(Run(claim, claim.compare, trials=min(count, other.trials), seed=seed, method=name, **how))
    return runs


def verify(
    claims: Sequence[Claim],
    *,
    trials: int | None = None,
    seed: int = 0,
    level: float = 0.01,
    progress: bool | None = None,
    done: Callable[[Claim], None] | None = None,
    **how: Any,
) -> Verdict:
    """Test claims on their default grids: each law against its first sampler, and the samplers against each other.

    The null hypothesis of a cell is |E − law| ≤ the claim's stated bias; a t-test gives its p-value, and Holm's method
    controls the probability that anything true is refuted, over all cells of all claims together.

    Args:
        claims: what to test.
        trials: per cell; by default what each sampler says. A sampler that is only compared with draws no more than it
            says.
        seed: as in `run`.
        level: the family-wise error, in (0, 1).
        progress: as in `run`.
        done: called after each claim.
        how: further arguments of `run`: ``memory``, ``devices``.

    Returns:
        A `Verdict`.
    """
    if not isinstance(level, (int, float)) or not 0 < level < 1:
        raise InputError(f"level = {shown(level)}: must be a number in (0, 1)")
    if not claims:
        raise InputError("claims is empty: give at least one")
    began = time.perf_counter()
    tests: list[_Tests] = []
    results: dict[tuple[str, str], xr.Dataset] = {}
    plans = [_runs(claim, trials, seed, how) for claim in claims]
    # One claim's programs compile on one core; several claims fill the others, and the bars show which is awaited.
    with ThreadPoolExecutor(len(workers(how.get("devices"), len(claims)))) as pool:
        compiled = [pool.submit(lambda runs: [one.compile() for one in runs], runs) for runs in plans]
        try:
            for claim, (first, *compared), ready in zip(claims, plans, compiled, strict=True):
                with Progress(1, f"{claim.name}: compiling", progress):
                    ready.result()
                result = first.execute(progress)
                results[claim.name, first.method] = result
                tests += _against_law(claim, claim.resolve(claim.grid), result)
                if compared:
                    reference = compared[0].execute(progress)
                    for other in compared[1:]:
                        results[claim.name, other.method] = drawn = other.execute(progress)
                        tests += _against_each_other(claim, reference, drawn)
                if done is not None:
                    done(claim)
        finally:
            pool.shutdown(cancel_futures=True)
    adjusted = np.split(holm(np.concatenate([t.p.ravel() for t in tests])), np.cumsum([t.p.size for t in tests])[:-1])
    findings = tuple(t.finding(a, level) for t, a in zip(tests, adjusted, strict=True))
    return Verdict(findings, results, level, time.perf_counter() - began)
