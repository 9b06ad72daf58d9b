"""The Monte Carlo engine: claims, grids, runs, verdicts. It is independent of the science that it checks."""

from rmtjax.montecarlo.claim import Claim, Option, Sampler
from rmtjax.montecarlo.config import RunConfig
from rmtjax.montecarlo.estimate import Estimate, estimate
from rmtjax.montecarlo.grid import Grid, grid, zipped
from rmtjax.montecarlo.hypothesis_tests import holm
from rmtjax.montecarlo.limits import Limits
from rmtjax.montecarlo.merge import merge_results
from rmtjax.montecarlo.parameter import Parameter, between, nonnegative, positive, real, size
from rmtjax.montecarlo.result import to_records
from rmtjax.montecarlo.run import Run, run
from rmtjax.montecarlo.store import open_result, write_result
from rmtjax.montecarlo.verify import Finding, Verdict, judge, verify

__all__ = [
    "Claim",
    "Estimate",
    "Finding",
    "Grid",
    "Limits",
    "Option",
    "Parameter",
    "Run",
    "RunConfig",
    "Sampler",
    "Verdict",
    "between",
    "estimate",
    "grid",
    "holm",
    "judge",
    "merge_results",
    "nonnegative",
    "open_result",
    "positive",
    "real",
    "run",
    "size",
    "to_records",
    "verify",
    "write_result",
    "zipped",
]
