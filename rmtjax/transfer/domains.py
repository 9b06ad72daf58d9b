r"""The α-LoRA paper's linear experiment: sentiment carried from one kind of review to another (Table 1, Figure 3).

A ridge classifier :math:`\tilde w` is trained on 2,000 reviews of a source domain. With n reviews of a target domain the
α-fine-tuned classifier :math:`w_\alpha = w + \alpha\gamma Q\tilde w` is formed, and its accuracy measured on the target's
test split. The paper names neither n, nor the ridge parameters, nor the word features; `sensitivity` shows what each
choice does.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from rmtjax._checks import number, one_of
from rmtjax._errors import InputError, shown, unknown
from rmtjax._progress import Report, Reporter
from rmtjax.datasets import amazon
from rmtjax.datasets.digits import load_default
from rmtjax.transfer import moments
from rmtjax.transfer.estimator import ALPHAS, checked_grid, fit_ridge, fit_transfer, loo_alpha
from rmtjax.transfer.moments import TargetMoments

__all__ = ["PAPER_TABLE_1", "RULES", "SENSITIVITY", "PaperRow", "run_transfer", "sensitivity"]

RULES = {
    "alpha=0": "target samples only",
    "alpha=1": "the usual fine-tuning: the source as it is",
    "alpha*": "the law's α* at moments estimated from the n target samples",
    "loo": "α of the best leave-one-out margins of the n target samples",
    "oracle": "the best α of the grid, chosen on the test split itself: a bound, not a method",
    "source": "the source classifier alone, no target sample",
}
"""The ways to choose α that `run_transfer` compares."""


class PaperRow(NamedTuple):
    """One row of the paper's Table 1: test accuracy in percent, as (mean, spread); None where our copy has lost it."""

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
"""The values that `sensitivity` gives each choice in turn."""

_DIGITS = (((6, 8), (5, 9)), ((5, 9), (6, 8)), ((1, 7), (4, 9)))
_DEFAULT_N = {"amazon": 100, "digits": 8}


@dataclass(frozen=True, eq=False)
class _Problem:
    """One domain: its train split (source, or pool of target samples) and its test split."""

    X: np.ndarray
    y: np.ndarray
    test_X: np.ndarray
    test_y: np.ndarray

    @cached_property
    def gram(self) -> np.ndarray:
        return moments.small_gram(self.X)

    @cached_property
    def mean(self) -> np.ndarray:
        return self.X.T @ self.y / len(self.y)

    @cached_property
    def own_moments(self) -> TargetMoments:
        """Of the whole train split, with no source."""
        return moments.unchecked_moments(self.X, self.y, np.empty((0, self.X.shape[1])), self.gram)

    def classifier(self, gamma: float) -> np.ndarray:
        return fit_ridge(self.X, self.y, gamma, self.gram)


def run_transfer(
    data: str | os.PathLike[str] | None = None,
    *,
    source: str | None = None,
    target: str | None = None,
    n: int | None = None,
    gamma: float = 1.0,
    source_gamma: float = 1.0,
    features: str = "counts",
    words: int = amazon.WORDS,
    seeds: int | Sequence[int] = 5,
    alphas: Sequence[float] | None = None,
    pairs: str | Iterable[tuple[str, str]] = "all",
    progress: Report = None,
) -> xr.Dataset:
    r"""Fine-tune across domains, and compare ways to choose α on the target's test split.

    Without the Amazon folder the same is done on scikit-learn's handwritten digits (`load_default`), and `features` and
    `words` have no effect. All 12 Amazon pairs with 10 seeds take about 12 s on one core and 1.5 GB.

    Args:
        data: folder of the Amazon files; None to search as `amazon.find_data` does.
        source: source domain alone; None for all.
        target: target domain alone; None for all.
        n: target samples, 2 to the pool's size; None for 100 reviews or 8 digits.
        gamma: target ridge parameter γ > 0, for features of variance 1.
        source_gamma: source ridge parameter γ̃ > 0.
        features: one of `amazon.FEATURES`.
        words: most frequent words kept, 1 to 5000.
        seeds: how many draws of the target samples, seeds 0, 1, …; or the seeds.
        alphas: grid of the accuracy curve; None for `rmtjax.transfer.estimator.ALPHAS`.
        pairs: ``"all"``, or (source, target) pairs of domains.
        progress: True draws a bar on standard error, None (the default) on a terminal only; or a function of a `Progress`.

    Returns:
        Dataset over ``pair``, ``seed``, ``rule`` (the keys of `RULES`) and ``alpha``. Accuracies are in percent of the
        test split.

        - ``accuracy`` (pair, seed, rule), ``chosen_alpha`` (pair, seed, rule; ∞ for the source alone)
        - ``curve`` (pair, seed, alpha): measured accuracy
        - ``predicted`` (pair, seed, alpha): the law at moments estimated from the n samples
        - ``law`` (pair, alpha), ``law_alpha`` (pair): the law at moments estimated from the whole labelled pool
        - ``beta``, ``beta_naive`` (pair): alignment from both train splits, unbiased and with the sample mean's norm
        - on Amazon ``paper`` (pair, rule), ``paper_spread`` and ``paper_beta``: `PAPER_TABLE_1`, NaN where there is none

    Raises:
        InputError: an argument is out of its range; domains are asked for and no Amazon folder is found; or as
            `amazon.load_domain`.

    Source:
        α-LoRA, §5.1, Table 1 and Figure 3.
    """
    started = time.perf_counter()
    gamma = number("gamma", gamma, 0, open_low=True)
    source_gamma = number("source_gamma", source_gamma, 0, open_low=True)
    grid = np.unique(checked_grid("alphas", ALPHAS if alphas is None else alphas))
    seeds = _checked_seeds(seeds)
    folder = amazon.find_data(data)
    if folder is None:
        if source is not None or target is not None or pairs != "all":
            raise InputError(
                "source, target and pairs name Amazon domains, and no Amazon folder is found; "
                "allowed: data = its path, or RMTJAX_DATA = the folder that holds amazon_reviews"
            )
        chosen = [tuple(f"digits {a} against {b}" for a, b in pair) for pair in _DIGITS]
        name, what = "digits", "64 pixels"
    else:
        chosen = _checked_pairs(pairs, source, target)
        _check_features(features, words)
        name, what = "amazon", f"{features} of the {words} most frequent words"
    n = _DEFAULT_N[name] if n is None else n
    _check_n(n)

    steps = len(chosen) + len({s for s, _ in chosen} | {t for _, t in chosen})
    with Reporter(steps, "transfer", progress, unit="steps") as reporter:
        if folder is None:
            sources, targets = _digits(reporter)
        else:
            sources = targets = _domains(folder, chosen, features, words, reporter)
        found = _measure(sources, targets, chosen, n, gamma, source_gamma, seeds, grid, reporter)

    result = xr.Dataset(
        found,
        coords={
            "pair": [f"{s}→{t}" for s, t in chosen],
            "source": ("pair", [s for s, _ in chosen]),
            "target": ("pair", [t for _, t in chosen]),
            "seed": list(seeds),
            "rule": list(RULES),
            "alpha": grid,
        },
    )
    if folder is not None:
        result = result.assign(_paper_variables(chosen))
    for variable in ("accuracy", "curve", "predicted", "law", "paper", "paper_spread"):
        if variable in result:
            result[variable].attrs["units"] = "%"
    result.attrs = {
        "data": name,
        "features": what,
        "n": n,
        "gamma": gamma,
        "source_gamma": source_gamma,
        "rules": "; ".join(f"{key}: {meaning}" for key, meaning in RULES.items()),
        "versions": ", ".join(
            f"{package} {version(package)}" for package in ("rmtjax", "jax", "numpy", "scikit-learn")
        ),
        "wall_s": round(time.perf_counter() - started, 2),
    }
    return result


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
    """What each choice that the paper leaves open does to its Table 1: one is varied at a time, over all 12 pairs.

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
        if choice not in base:
            raise unknown("choice", str(choice), base)
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise InputError(f"choices[{choice!r}] = {shown(values)} cannot be used; allowed: a sequence, not empty")
        settings += [(choice, value, {**base, choice: value}) for value in values]
    if not settings:
        raise InputError(f"choices = {shown(choices)} is empty; allowed: some of {', '.join(base)}")
    seeds = _checked_seeds(seeds)
    for _, _, setting in settings:
        _check_features(setting["features"], setting["words"])
        _check_n(setting["n"])
        number("gamma", setting["gamma"], 0, open_low=True)
        number("source_gamma", setting["source_gamma"], 0, open_low=True)
    folder = amazon.find_data(data)
    if folder is None:
        raise InputError("data = None and no Amazon folder is found; allowed: the path of one, or RMTJAX_DATA")

    pairs = list(PAPER_TABLE_1)
    paper = _paper_variables(pairs)["paper"][1]
    accuracy, spread, rms = (np.full((len(settings), len(RULES)), np.nan) for _ in range(3))

    # The settings of one feature space share its arrays and Gram matrices, which cost more than all the fits.
    def space(k):
        return str(settings[k][2]["features"]), int(settings[k][2]["words"])

    with Reporter(len(settings), "transfer", progress, unit="settings") as reporter:
        for (kind, kept), members in itertools.groupby(sorted(range(len(settings)), key=space), key=space):
            domains = _domains(folder, pairs, kind, kept, Reporter(1, "", progress=False))
            for k in members:
                choice, value, setting = settings[k]
                found = _measure(
                    domains,
                    domains,
                    pairs,
                    setting["n"],
                    setting["gamma"],
                    setting["source_gamma"],
                    seeds,
                    np.array(ALPHAS),
                )["accuracy"][1]
                means = found.mean(1)
                accuracy[k], spread[k] = means.mean(0), found.std(1).mean(0)
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


def _checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    integer = int | np.integer
    if isinstance(seeds, integer) and not isinstance(seeds, bool) and seeds >= 1:
        return tuple(range(int(seeds)))
    if (
        isinstance(seeds, Sequence | np.ndarray)
        and len(seeds)
        and all(isinstance(seed, integer) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
        and len(set(map(int, seeds))) == len(seeds)
    ):
        return tuple(map(int, seeds))
    raise InputError(
        f"seeds = {shown(seeds)} cannot be used; allowed: how many, at least 1, or different seeds of 0 or more"
    )


def _checked_pairs(pairs: str | Iterable[tuple[str, str]], source: str | None, target: str | None):
    if isinstance(pairs, str):
        if pairs != "all":
            raise InputError(f"pairs = {shown(pairs)} cannot be used; allowed: 'all' or (source, target) pairs")
        wanted = list(PAPER_TABLE_1)
    else:
        try:
            wanted = [(str(s), str(t)) for s, t in pairs]
        except (TypeError, ValueError):
            raise InputError(
                f"pairs = {shown(pairs)} cannot be used; allowed: 'all' or (source, target) pairs"
            ) from None
    for domain in (source, target, *itertools.chain(*wanted)):
        if domain is not None:
            one_of("domain", domain, amazon.DOMAINS)
    for s, t in [*wanted, (source, target)]:
        if s is not None and s == t:
            raise InputError(f"source and target are both {s!r}; allowed: two different domains")
    found = [(s, t) for s, t in dict.fromkeys(wanted) if source in (None, s) and target in (None, t)]
    if not found:
        raise InputError(
            f"pairs = {shown(pairs)} leaves nothing for source = {source!r}, target = {target!r}; allowed: one"
        )
    return found


def _check_features(features: str, words: int) -> None:
    one_of("features", features, amazon.FEATURES)
    if isinstance(words, bool) or not isinstance(words, int) or not 1 <= words <= amazon.WORDS:
        raise InputError(f"words = {shown(words)} cannot be used; allowed: an integer from 1 to {amazon.WORDS}")


def _check_n(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 2:
        raise InputError(f"n = {shown(n)} cannot be used; allowed: an integer of at least 2")


def _domains(folder, pairs, features: str, words: int, reporter: Reporter) -> dict[str, _Problem]:
    domains = {}
    for domain in dict.fromkeys(itertools.chain(*pairs)):
        (X, test_X), (y, test_y) = amazon.scaled_splits(folder, domain, amazon.SPLITS, features, words)
        domains[domain] = _Problem(X, y, test_X, test_y)
        reporter.advance(1, f"read {domain}")
    return domains


def _digits(reporter: Reporter) -> tuple[dict[str, _Problem], dict[str, _Problem]]:
    sources, targets = {}, {}
    for source, target in _DIGITS:
        pair = load_default(source, target)
        sources[pair.source] = _Problem(pair.source_X, pair.source_y, pair.source_X, pair.source_y)
        targets[pair.target] = _Problem(pair.target_X, pair.target_y, pair.test_X, pair.test_y)
    for name in {**sources, **targets}:
        reporter.advance(1, f"read {name}")
    return sources, targets


def _measure(
    sources: dict[str, _Problem],
    targets: dict[str, _Problem],
    pairs: Sequence[tuple[str, str]],
    n: int,
    gamma: float,
    source_gamma: float,
    seeds: Sequence[int],
    grid: np.ndarray,
    reporter: Reporter | None = None,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Every measured variable of `run_transfer`, by name, as (dimensions, values)."""
    for name in {t for _, t in pairs}:
        if n > len(targets[name].y):
            raise InputError(
                f"n = {n} target samples cannot be drawn; allowed: 2 to {len(targets[name].y)}, the pool's size"
            )
    classifiers = {name: sources[name].classifier(source_gamma) for name in {s for s, _ in pairs}}
    shape = (len(pairs), len(seeds))
    accuracy, chosen = np.empty((*shape, len(RULES))), np.empty((*shape, len(RULES)))
    curve = np.empty((*shape, len(grid)))
    betas = np.empty((2, len(pairs)))
    sampled: dict[tuple[int, int], TargetMoments] = {}
    pooled: dict[int, TargetMoments] = {}
    scores: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    for name in dict.fromkeys(t for _, t in pairs):
        target = targets[name]
        members = [k for k, (_, t) in enumerate(pairs) if t == name]
        W = np.stack([classifiers[pairs[k][0]] for k in members])
        parts = []
        for j, seed in enumerate(seeds):
            rows = np.random.default_rng(seed).permutation(len(target.y))[:n]
            X, y = target.X[rows], target.y[rows]
            small = moments.small_gram(X)
            fit = fit_transfer(X, y, W, gamma)
            for i, k in enumerate(members):
                sampled[k, j] = moments.unchecked_moments(X, y, W[i : i + 1], small)
                chosen[k, j, 3] = loo_alpha(fit.loo[[0, 1 + i]])[0]
            parts.append(np.vstack([fit.target, fit.transferred]))
        # One product scores the test split for every seed and source.
        every = target.test_X @ np.concatenate([*parts, W]).T
        split = every[:, : len(seeds) * (1 + len(members))].reshape(len(every), len(seeds), 1 + len(members))
        for i, k in enumerate(members):
            alone = _percent(every[:, len(seeds) * (1 + len(members)) + i] * target.test_y > 0)
            accuracy[k, :, 5], chosen[k, :, 5] = alone, np.inf
            for j in range(len(seeds)):
                scores[k, j] = split[:, j, 0] * target.test_y, split[:, j, 1 + i] * target.test_y
            pooled[k] = _pool_moments(target, W[i], n)
            s = sources[pairs[k][0]]
            product = s.mean @ target.mean
            betas[:, k] = product / s.own_moments.mean_norm2_unbiased, product / (s.mean @ s.mean)
            if reporter is not None:
                reporter.advance(1, f"{pairs[k][0]}→{name}")

    # All α* in one call, since a call of the law costs the same for one setting as for thousands.
    order = [(k, j) for k in range(shape[0]) for j in range(shape[1])]
    stacked = _stack([sampled[key] for key in order])
    chosen[..., 0], chosen[..., 1] = 0, 1
    chosen[..., 2] = moments.law_alpha(stacked, gamma)[:, 0].reshape(shape)
    for k, j in order:
        curve[k, j] = _margins_won(*scores[k, j], grid)
        best = np.flatnonzero(curve[k, j] == curve[k, j].max())
        chosen[k, j, 4], accuracy[k, j, 4] = grid[best[len(best) // 2]], curve[k, j].max()
        accuracy[k, j, :4] = _margins_won(*scores[k, j], chosen[k, j, :4])
    pool = _stack([pooled[k] for k in range(shape[0])])
    over_seeds = ("pair", "seed", "rule")
    return {
        "accuracy": (over_seeds, accuracy),
        "chosen_alpha": (over_seeds, chosen),
        "curve": (("pair", "seed", "alpha"), curve),
        "predicted": (("pair", "seed", "alpha"), 100 * _law_curve(stacked, gamma, grid).reshape(*shape, -1)),
        "law": (("pair", "alpha"), 100 * _law_curve(pool, gamma, grid)),
        "law_alpha": (("pair",), moments.law_alpha(pool, gamma)[:, 0]),
        "beta": (("pair",), betas[0]),
        "beta_naive": (("pair",), betas[1]),
    }


def _pool_moments(target: _Problem, w: np.ndarray, n: int) -> TargetMoments:
    """Moments of the whole labelled pool, where they are sharp and need no shrinkage, for a fit on n of its samples."""
    own = target.own_moments
    b, q = w @ target.mean, w @ w
    floor = b**2 / q
    return own._replace(
        eta=np.float64(len(w) / n),
        mean_norm2=np.maximum(own.mean_norm2_unbiased, floor),
        mean_norm2_floor=floor,
        alignment=np.array([b]),
        gram=np.array([[q]]),
    )


def _stack(many: Sequence[TargetMoments]) -> TargetMoments:
    return TargetMoments(*(np.stack(field) for field in zip(*many, strict=True)))


def _law_curve(stacked: TargetMoments, gamma: float, grid: np.ndarray) -> np.ndarray:
    return moments.law_accuracy(TargetMoments(*(field[:, None] for field in stacked)), gamma, grid[:, None])


def _margins_won(own: np.ndarray, pulled: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    return np.array([_percent(own + alpha * pulled > 0) for alpha in alphas])


def _percent(right: np.ndarray) -> float:
    return 100 * np.count_nonzero(right) / len(right)


def _paper_variables(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    mean, spread = np.full((2, len(pairs), len(RULES)), np.nan)
    for k, pair in enumerate(pairs):
        row = PAPER_TABLE_1[pair]
        (mean[k, 0], spread[k, 0]), (mean[k, 1], spread[k, 1]) = row.zero, row.one
        mean[k, 2] = np.nan if row.optimal is None else row.optimal
    beta = np.array([PAPER_TABLE_1[pair].beta for pair in pairs], float)
    return {
        "paper": (("pair", "rule"), mean),
        "paper_spread": (("pair", "rule"), spread),
        "paper_beta": (("pair",), beta),
    }
