"""The α-LoRA paper's numbers on the Amazon reviews, and the effect of each choice that the paper leaves open.

The paper names neither n, nor the ridge parameters, nor the word features; `sensitivity` shows what each choice does.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from rmtjax._checks import number, one_of
from rmtjax._errors import InputError, shown
from rmtjax._progress import Report, Reporter
from rmtjax.datasets import amazon
from rmtjax.transfer.domains import RULES, check_features, check_sample_size, checked_seeds, measure, read_domains
from rmtjax.transfer.estimator import ALPHAS

__all__ = ["PAPER_TABLE_1", "SENSITIVITY", "PaperRow", "paper_variables", "sensitivity", "with_paper"]


class PaperRow(NamedTuple):
    """One row of the paper's Table 1: test accuracy in percent, as (mean, spread); None where our copy lacks it."""

    beta: float | None
    zero: tuple[float, float]
    one: tuple[float, float]
    optimal: float | None


def _paper_table() -> dict[tuple[str, str], PaperRow]:
    zero = {"books": (63.43, 0.67), "dvd": (64.12, 0.03), "electronics": (68.61, 0.74), "kitchen": (69.24, 0.95)}
    rows = {
        ("books", "dvd"): (None, (75.67, 0.24)),
        ("books", "electronics"): (0.71, (76.65, 0.02)),
        ("books", "kitchen"): (0.79, (78.19, 0.05)),
        ("dvd", "books"): (0.78, (75.22, 0.24)),
        ("dvd", "electronics"): (0.71, (76.72, 0.17)),
        ("dvd", "kitchen"): (0.78, (78.11, 0.23)),
        ("electronics", "books"): (0.51, (72.20, 0.10)),
        ("electronics", "dvd"): (0.52, (72.41, 0.16)),
        ("electronics", "kitchen"): (0.90, (81.58, 0.15)),
        ("kitchen", "books"): (0.52, (72.86, 0.10)),
        ("kitchen", "dvd"): (0.53, (73.15, 0.08)),
        ("kitchen", "electronics"): (0.83, (80.14, 0.02)),
    }
    optimal = {("dvd", "electronics"): 76.88}
    return {pair: PaperRow(beta, zero[pair[1]], one, optimal.get(pair)) for pair, (beta, one) in rows.items()}


PAPER_TABLE_1 = _paper_table()
"""Table 1 of the α-LoRA paper by (source, target). Of its α* column one value is legible in our copy."""

SENSITIVITY: dict[str, tuple[Any, ...]] = {
    "features": amazon.FEATURES,
    "words": (400, 1000, 2000, 5000),
    "n": (40, 60, 80, 100, 150, 200, 400),
    "gamma": (0.1, 1.0, 10.0),
    "source_gamma": (0.1, 1.0, 10.0, 100.0),
}
"""The values that `sensitivity` gives to each choice, one choice at a time."""


def paper_variables(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple]:
    """Return the paper's numbers as variables beside those of `run_transfer`, NaN where there are none."""
    mean, spread = ({rule: np.full(len(pairs), np.nan) for rule in RULES} for _ in range(2))
    for k, pair in enumerate(pairs):
        row = PAPER_TABLE_1[pair]
        mean["alpha=0"][k], spread["alpha=0"][k] = row.zero
        mean["alpha=1"][k], spread["alpha=1"][k] = row.one
        mean["alpha*"][k] = np.nan if row.optimal is None else row.optimal
    beta = np.array([PAPER_TABLE_1[pair].beta for pair in pairs], float)
    return {
        "paper": (("pair", "rule"), np.stack([mean[rule] for rule in RULES], -1), {"units": "%"}),
        "paper_spread": (("pair", "rule"), np.stack([spread[rule] for rule in RULES], -1), {"units": "%"}),
        "paper_beta": (("pair",), beta),
    }


def with_paper(result: xr.Dataset) -> xr.Dataset:
    """Return the result of `run_transfer` on Amazon's domains with the paper's numbers beside it.

    They are ``paper`` (pair, rule), ``paper_spread`` (pair, rule) and ``paper_beta`` (pair).
    """
    pairs = list(zip(result["source"].values.tolist(), result["target"].values.tolist(), strict=True))
    return result.assign(paper_variables(pairs))


def sensitivity(
    data: str | os.PathLike[str] | None = None,
    *,
    n: int = 100,
    gamma: float = 1.0,
    source_gamma: float = 1.0,
    features: str = "counts",
    words: int = amazon.WORDS,
    seeds: int | Sequence[int] = 5,
    choices: dict[str, Sequence[Any]] | None = None,
    progress: Report = None,
) -> xr.Dataset:
    """Return the effect on Table 1 of each choice that the paper leaves open, varied one at a time over all 12 pairs.

    Args:
        data: folder of the Amazon files; None to search as `amazon.find_data` does.
        n: target samples where n is not varied.
        gamma: target ridge parameter likewise.
        source_gamma: source ridge parameter likewise.
        features: one of `amazon.FEATURES` likewise.
        words: words kept likewise.
        seeds: as in `run_transfer`.
        choices: values by choice; None for `SENSITIVITY`.
        progress: as in `run_transfer`.

    Returns:
        Dataset over ``setting`` (with coordinates ``choice`` and ``value``, both text) and ``rule``, in percent:
        ``accuracy``, the mean over pairs and seeds; ``spread``, the standard deviation over seeds, averaged over pairs;
        ``rms``, the root mean square distance of the 12 means to the paper's (NaN where the paper has no column).

    Raises:
        InputError: no Amazon folder is found; a choice is unknown or empty; or as `run_transfer`.
    """
    base = {"features": features, "words": words, "n": n, "gamma": gamma, "source_gamma": source_gamma}
    choices = SENSITIVITY if choices is None else choices
    settings = []
    for choice, values in choices.items():
        one_of("choice", choice, base)
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise InputError(f"choices[{choice!r}] = {shown(values)}: must be a sequence, not empty")
        settings += [(choice, value, {**base, choice: value}) for value in values]
    if not settings:
        raise InputError(f"choices = {shown(choices)} is empty; allowed: some of {', '.join(base)}")
    seeds = checked_seeds(seeds)
    for _, _, setting in settings:
        check_features(setting["features"], setting["words"])
        check_sample_size(setting["n"])
        number("gamma", setting["gamma"], 0, open_low=True)
        number("source_gamma", setting["source_gamma"], 0, open_low=True)
    folder = amazon.find_data(data)
    if folder is None:
        raise InputError("data = None and no Amazon folder is found; allowed: the path of one, or RMTJAX_DATA")

    pairs = list(PAPER_TABLE_1)
    paper = paper_variables(pairs)["paper"][1]
    accuracy, spread, rms = (np.full((len(settings), len(RULES)), np.nan) for _ in range(3))

    # The settings of one feature space share its arrays and Gram matrices, which cost more than all the fits.
    def space(k):
        return str(settings[k][2]["features"]), int(settings[k][2]["words"])

    with Reporter(len(settings), "transfer", progress, unit="settings") as reporter:
        for (kind, kept), members in itertools.groupby(sorted(range(len(settings)), key=space), key=space):
            domains = read_domains(folder, pairs, kind, kept, Reporter(1, "", progress=False))
            for k in members:
                choice, value, setting = settings[k]
                measured = measure(
                    domains,
                    domains,
                    pairs,
                    setting["n"],
                    setting["gamma"],
                    setting["source_gamma"],
                    seeds,
                    np.array(ALPHAS),
                )["accuracy"][1]
                means = measured.mean(1)
                accuracy[k], spread[k] = means.mean(0), measured.std(1).mean(0)
                # A column is compared only where the paper's is complete.
                rms[k] = np.sqrt(np.mean((means - paper) ** 2, 0))
                reporter.advance(1, f"{choice} = {value}")
            del domains
    result = xr.Dataset(
        {
            "accuracy": (("setting", "rule"), accuracy, {"units": "%"}),
            "spread": (("setting", "rule"), spread, {"units": "%"}),
            "rms": (("setting", "rule"), rms, {"units": "%"}),
        },
        coords={
            "choice": ("setting", [choice for choice, _, _ in settings]),
            "value": ("setting", [str(value) for _, value, _ in settings]),
            "rule": list(RULES),
        },
    )
    result.attrs = {**base, "seeds": list(seeds)}
    return result
