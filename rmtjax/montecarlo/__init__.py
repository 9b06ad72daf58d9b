"""The Monte Carlo engine: claims, grids, runs, verdicts. It knows nothing of the science that it checks."""

from rmtjax.montecarlo.claim import Claim, Option, Sampler
from rmtjax.montecarlo.engine import run
from rmtjax.montecarlo.grid import Grid, grid, zipped
from rmtjax.montecarlo.parameter import Parameter, between, nonnegative, positive, real, size
from rmtjax.montecarlo.result import cells_of
from rmtjax.montecarlo.store import open_result
from rmtjax.montecarlo.verdict import Finding, Verdict, holm, judge, verify

__all__ = [
    "Claim",
    "Finding",
    "Grid",
    "Option",
    "Parameter",
    "Sampler",
    "Verdict",
    "between",
    "cells_of",
    "grid",
    "holm",
    "judge",
    "nonnegative",
    "open_result",
    "positive",
    "real",
    "run",
    "size",
    "verify",
    "zipped",
]
