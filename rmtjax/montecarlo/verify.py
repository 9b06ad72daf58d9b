"""Verification of claims: tests of many cells of many claims at once, and the laws that the data refute."""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtjax._checks import number
from rmtjax._errors import InputError
from rmtjax._progress import Report, Reporter
from rmtjax.montecarlo.claim import Claim
from rmtjax.montecarlo.config import RunConfig
from rmtjax.montecarlo.grid import Axis, Grid
from rmtjax.montecarlo.hypothesis_tests import are_events, binomial, holm, t_with_allowance, welch
from rmtjax.montecarlo.resources import workers
from rmtjax.montecarlo.run import Run

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Finding", "Verdict", "allowance", "claim_of", "grid_of", "judge", "verify"]


@dataclass(frozen=True)
class Finding:
    """One output of one claim, tested on every cell of a grid.

    Attributes:
        claim, output: the tested claim and output.
        against: ``"law"``, or the name of the sampler that the first one was compared with.
        sampler: its name.
        tests: number of cells.
        trials: per cell.
        z: the largest |z| beyond the claim's stated bias, with its sign; of shares of events the normal deviate of their p.
        p: the smallest p-value, adjusted by Holm over everything that was tested.
        cell: the parameters of that cell, and there `mean`, `se` and `expected`.
        holds: whether nothing was refuted.
        erratum: whether the law is a known error, which should not hold.
    """

    claim: str
    output: str
    against: str
    sampler: str
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
    def as_expected(self) -> bool:
        """Whether the law holds, or the known error is refuted."""
        return self.holds != self.erratum


@dataclass(frozen=True)
class Verdict:
    """The outcome of `verify` or `judge`.

    Attributes:
        findings: one for each claim, output and comparison.
        results: the datasets, by claim and sampler.
        references: the first sampler's dataset on the grid of comparison, by claim, where samplers were compared.
        level: the family-wise error: the probability that anything true is refuted.
        wall_s: seconds in all.
    """

    findings: tuple[Finding, ...]
    results: dict[tuple[str, str], xr.Dataset] = field(repr=False)
    level: float
    wall_s: float
    references: dict[str, xr.Dataset] = field(default_factory=dict, repr=False)

    @property
    def holds(self) -> bool:
        """Whether no claim was refuted, and every known error was."""
        return all(finding.as_expected for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain values, with the provenance of every run."""
        return {
            "holds": self.holds,
            "level": self.level,
            "wall_s": self.wall_s,
            "findings": [asdict(finding) for finding in self.findings],
            "runs": {f"{claim} ({sampler})": result.attrs for (claim, sampler), result in self.results.items()},
        }


@dataclass
class _Tests:
    claim: str
    erratum: bool
    output: str
    against: str
    sampler: str
    tests: int
    trials: int
    mean: xr.DataArray
    se: xr.DataArray
    expected: xr.DataArray
    z: np.ndarray
    p: np.ndarray

    def finding(self, adjusted: np.ndarray, level: float) -> Finding:
        at = np.unravel_index(np.argmin(self.p - 1e-9 * np.abs(np.nan_to_num(self.z))), self.p.shape)
        place = dict(zip(self.mean.dims, at, strict=True))
        mean = self.mean.isel(place)
        cell = {str(n): float(v) for n, v in mean.coords.items() if n != "output"}
        return Finding(
            self.claim, self.output, self.against, self.sampler, self.tests, self.trials, float(self.z[at]),
            float(adjusted.min()), cell, float(mean), float(self.se.isel(place)), float(self.expected.isel(place)),
            bool((adjusted > level).all()), self.erratum,
        )  # fmt: skip


def grid_of(result: xr.Dataset) -> Grid:
    """Return the grid of a result, from its coordinates."""
    numbers = {str(n): c for n, c in result.coords.items() if c.dtype.kind in "fiu"}
    axes = []
    for dim in (str(d) for d in result["mean"].dims if d != "output"):
        along = {n: c.values.astype(np.float64) for n, c in numbers.items() if c.dims == (dim,)}
        axes.append(Axis(along or {dim: np.arange(float(result.sizes[dim]))}, False))
    axes += [Axis({n: c.values.astype(np.float64)[None]}, True) for n, c in numbers.items() if c.ndim == 0]
    return Grid(tuple(axes))


def allowance(claim: Claim | None, result: xr.Dataset) -> np.ndarray:
    """Return the largest allowed distance of the law from the mean, the claim's bias bound, in the shape of ``mean``.

    Without a claim, or for one whose law is exact, 0.
    """
    outputs = [str(name) for name in result["output"].values]
    allowed = np.zeros(result["mean"].transpose("output", ...).shape)
    if claim is not None and claim.bias_bound is not None:
        bias = claim.predict(grid_of(result), claim.bias_bound)
        if not set(bias) & set(outputs):
            bias = dict.fromkeys(outputs, next(iter(bias.values())))
        for i, name in enumerate(outputs):
            allowed[i] = bias.get(name, 0.0)
    return allowed


def _against_law(label: str, claim: Claim | None, result: xr.Dataset) -> list[_Tests]:
    tests = []
    for name, allowed in zip(result["output"].values, allowance(claim, result), strict=True):
        of_output = result.sel(output=name)
        mean, se, law = (of_output[kind].values for kind in ("mean", "se", "law"))
        drawn = np.broadcast_to(result["trials"].values, mean.shape)
        z, p = t_with_allowance(mean, se, drawn, law, allowed)
        if {"min", "max", "variance"} <= set(of_output):  # as in every dataset of `run`
            events = are_events(mean, *(of_output[kind].values for kind in ("variance", "min", "max")), drawn)
            events &= (law >= 0) & (law <= 1)
            if events.any():
                allowed_there = np.broadcast_to(allowed, mean.shape)[events]
                z, p = z.copy(), p.copy()
                z[events], p[events] = binomial(mean[events], law[events], allowed_there, drawn[events])
        tests.append(
            _Tests(
                claim=label,
                erratum=claim is not None and claim.erratum,
                output=str(name),
                against="law",
                sampler=str(result.attrs.get("method", "")),
                tests=int((drawn >= 2).sum()),
                trials=int(result.attrs.get("trials_per_cell", drawn.max(initial=0))),
                mean=of_output["mean"],
                se=of_output["se"],
                expected=of_output["law"],
                z=z,
                p=np.where(drawn >= 2, p, 1.0),  # a cell without draws decides nothing
            )
        )
    return tests


def _against_each_other(claim: Claim, first: xr.Dataset, second: xr.Dataset) -> list[_Tests]:
    tests = []
    for name in first["output"].values:
        a, b = first.sel(output=name), second.sel(output=name)
        samples = [result[kind].values for result in (a, b) for kind in ("mean", "se", "trials")]
        z, p, se = welch(*samples)
        tests.append(
            _Tests(
                claim=claim.name,
                erratum=claim.erratum,
                output=str(name),
                against=first.attrs["method"],
                sampler=second.attrs["method"],
                tests=z.size,
                trials=second.attrs["trials_per_cell"],
                mean=b["mean"],
                se=b["se"].copy(data=se),
                expected=a["mean"],
                z=z,
                p=p,
            )
        )
    return tests


def _runs(claim: Claim, config: RunConfig) -> list[Run]:
    """Return the runs of a claim: its first sampler on its grid, then all samplers on its comparison grid, if it has one."""
    name, sampler = claim.sampler()
    trials = sampler.default_trials if config.trials is None else config.trials
    first = Run(claim, None, config, trials=trials, sampler=name)
    if claim.comparison_grid is None or len(claim.samplers) == 1:
        return [first]
    runs = [first, Run(claim, claim.comparison_grid, config, trials=trials, sampler=name)]
    for name, sampler in list(claim.samplers.items())[1:]:
        runs.append(Run(claim, claim.comparison_grid, config, trials=min(trials, sampler.default_trials), sampler=name))
    return runs


def verify(
    claims: Sequence[Claim],
    config: RunConfig | None = None,
    *,
    level: float = 0.01,
    progress: Report = None,
    done: Callable[[Claim], None] | None = None,
    **settings: Any,
) -> Verdict:
    """Test claims on their default grids: each law against its first sampler, and the samplers against each other.

    The null hypothesis of a cell is |E − law| ≤ the claim's stated bias; a t-test gives its p-value, or the binomial law
    where every trial gave 0 or 1, and Holm's method controls the probability that anything true is refuted, over all cells
    of all claims together.

    Args:
        claims: the claims to test.
        config: the settings of all runs. Without a number of trials each sampler has its own; a sampler that is only compared
            with draws no more than that.
        level: the family-wise error, in (0, 1).
        progress: as in `run`.
        done: called after each claim.
        settings: fields of `RunConfig` that differ from `config`, such as ``trials`` and ``seed``.

    Returns:
        A `Verdict`.

    Raises:
        InputError: for settings that are invalid for every run, before anything is compiled.
    """
    config = (config or RunConfig()).replace(**settings)
    number("level", level, 0, 1, open_low=True, open_high=True)
    if not claims:
        raise InputError("claims is empty: give at least one")
    began = time.perf_counter()
    tests: list[_Tests] = []
    results: dict[tuple[str, str], xr.Dataset] = {}
    references: dict[str, xr.Dataset] = {}
    plans = [_runs(claim, config) for claim in claims]
    for module in ("scipy.stats", "xarray"):  # not in a thread that compiles: see `Run.compile`
        importlib.import_module(module)
    # One claim's programs compile on one core; several claims fill the other cores, and the bars show which one is awaited.
    with ThreadPoolExecutor(len(workers(config.devices, len(claims)))) as pool:
        compiled = [pool.submit(lambda runs: [run.compile() for run in runs], runs) for runs in plans]
        try:
            for claim, (first, *compared), ready in zip(claims, plans, compiled, strict=True):
                with Reporter(1, f"{claim.name}: compiling", progress):
                    ready.result()
                result = first.execute(progress)
                results[claim.name, first.sampler] = result
                tests += _against_law(claim.name, claim, result)
                if compared:
                    references[claim.name] = reference = compared[0].execute(progress)
                    for run in compared[1:]:
                        results[claim.name, run.sampler] = drawn = run.execute(progress)
                        tests += _against_each_other(claim, reference, drawn)
                if done is not None:
                    done(claim)
        finally:
            pool.shutdown(cancel_futures=True)
    return Verdict(_findings(tests, level), results, level, time.perf_counter() - began, references)


def judge(results: Sequence[xr.Dataset], claims: Iterable[Claim] = (), *, level: float = 0.01) -> Verdict:
    """Test finished results against the laws that they hold, as `verify` does.

    Args:
        results: from `run` or `open_result`.
        claims: known claims, which state their bias and whether they are known errors. A result's claim is the one with
            the same name, equation and parameters; a result without one is tested as if its law were exact.
        level: the family-wise error, in (0, 1).

    Returns:
        A `Verdict`. A claim with several results has one name for each.
    """
    number("level", level, 0, 1, open_low=True, open_high=True)
    if not results:
        raise InputError("results is empty: give at least one")
    by_name = {claim.name: claim for claim in claims}
    tests: list[_Tests] = []
    tested: dict[tuple[str, str], xr.Dataset] = {}
    for i, result in enumerate(results):
        missing = [name for name in ("mean", "se", "law", "z", "trials") if name not in result]
        if missing or "output" not in result.dims:
            raise InputError(
                f"results[{i}] has no {' and no '.join(missing or ['output'])}: must come from run or open_result"
            )
        name, sampler = (str(result.attrs.get(key, "")) for key in ("claim", "method"))
        labels = itertools.chain([name, f"{name} ({sampler})"], (f"{name} ({k})" for k in itertools.count(2)))
        taken = {label for label, _ in tested}
        label = next(label for label in labels if label not in taken)
        tested[label, sampler] = result
        tests += _against_law(label, claim_of(result, by_name), result)
    wall = sum(float(result.attrs.get("wall_s", 0.0)) for result in results)
    return Verdict(_findings(tests, level), tested, level, wall)


def claim_of(result: xr.Dataset, known: Mapping[str, Claim]) -> Claim | None:
    """Return the claim of a result, if it is among the known claims."""
    claim = known.get(str(result.attrs.get("claim", "")))
    if claim is None or claim.equation != result.attrs.get("equation"):
        return None
    return claim if set(grid_of(result).names) == set(claim.params) else None


def _findings(tests: Sequence[_Tests], level: float) -> tuple[Finding, ...]:
    adjusted = np.split(holm(np.concatenate([t.p.ravel() for t in tests])), np.cumsum([t.p.size for t in tests])[:-1])
    return tuple(t.finding(a, level) for t, a in zip(tests, adjusted, strict=True))
