r"""Comparison of rules for α on pairs of domains: sentiment transferred from one kind of review to another.

A ridge classifier :math:`\tilde w` is trained on a source domain. With n samples of a target domain the α-fine-tuned classifier
:math:`w_\alpha = w + \alpha\gamma Q\tilde w` is formed, and its accuracy measured on the target's test split.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import numpy as np
import xarray as xr

from rmtjax._checks import number, one_of, whole
from rmtjax._errors import InputError, shown
from rmtjax._progress import Report, Reporter
from rmtjax.datasets import amazon
from rmtjax.datasets.digits import load_default
from rmtjax.transfer import moments
from rmtjax.transfer.estimator import ALPHAS, checked_grid, fit_ridge, fit_transfer, loo_alpha
from rmtjax.transfer.moments import TargetMoments

__all__ = [
    "RULES",
    "Problem",
    "check_features",
    "check_sample_size",
    "checked_seeds",
    "measure",
    "read_domains",
    "run_transfer",
]

RULES = {
    "alpha=0": "target samples only",
    "alpha=1": "the usual fine-tuning: the source as it is",
    "alpha*": "the law's α* at moments estimated from the n target samples",
    "loo": "α of the best leave-one-out margins of the n target samples",
    "oracle": "the best α of the grid, chosen on the test split itself: a bound, not a method",
    "source": "the source classifier alone, no target sample",
}
"""The rules for α that `run_transfer` compares."""


_DIGITS = (((6, 8), (5, 9)), ((5, 9), (6, 8)), ((1, 7), (4, 9)))
_DEFAULT_N = {"amazon": 100, "digits": 8}


@dataclass(frozen=True, eq=False)
class Problem:
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
        """The moments of the whole train split, with no source."""
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
    r"""Return a comparison of rules for α across domains, on the target's test split.

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
        seeds: number of draws of the target samples, with seeds 0, 1, …; or the seeds.
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

    Raises:
        InputError: an argument is out of its range; domains are given and no Amazon folder is found; or as
            `amazon.load_domain`.

    Source:
        α-LoRA, §5.1, Table 1 and Figure 3.
    """
    started = time.perf_counter()
    gamma = number("gamma", gamma, 0, open_low=True)
    source_gamma = number("source_gamma", source_gamma, 0, open_low=True)
    grid = np.unique(checked_grid("alphas", ALPHAS if alphas is None else alphas))
    seeds = checked_seeds(seeds)
    folder = amazon.find_data(data)
    if folder is None:
        if source is not None or target is not None or pairs != "all":
            raise InputError(
                "source, target and pairs name Amazon domains, but no Amazon folder is found; "
                "allowed: data = its path, or RMTJAX_DATA = the folder that holds amazon_reviews"
            )
        chosen = [tuple(f"digits {a} against {b}" for a, b in pair) for pair in _DIGITS]
        name, description = "digits", "64 pixels"
    else:
        chosen = _checked_pairs(pairs, source, target)
        check_features(features, words)
        name, description = "amazon", f"{features} of the {words} most frequent words"
    n = _DEFAULT_N[name] if n is None else n
    check_sample_size(n)

    steps = len(chosen) + len({s for s, _ in chosen} | {t for _, t in chosen})
    with Reporter(steps, "transfer", progress, unit="steps") as reporter:
        if folder is None:
            sources, targets = _digits(reporter)
        else:
            sources = targets = read_domains(folder, chosen, features, words, reporter)
        measured = measure(sources, targets, chosen, n, gamma, source_gamma, seeds, grid, reporter)

    result = xr.Dataset(
        measured,
        coords={
            "pair": [f"{s}→{t}" for s, t in chosen],
            "source": ("pair", [s for s, _ in chosen]),
            "target": ("pair", [t for _, t in chosen]),
            "seed": list(seeds),
            "rule": list(RULES),
            "alpha": grid,
        },
    )
    for variable in ("accuracy", "curve", "predicted", "law"):
        result[variable].attrs["units"] = "%"
    result.attrs = {
        "data": name,
        "features": description,
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


def checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Return the seeds that a number or a list of seeds stands for.

    Raises:
        InputError: for a count below 1, or seeds that are negative or not different.
    """
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
    raise InputError(f"seeds = {shown(seeds)}: must be a number of seeds ≥ 1, or a list of distinct seeds ≥ 0")


def _checked_pairs(pairs: str | Iterable[tuple[str, str]], source: str | None, target: str | None):
    if isinstance(pairs, str):
        if pairs != "all":
            raise InputError(f"pairs = {shown(pairs)}: must be 'all' or (source, target) pairs")
        wanted = list(itertools.permutations(amazon.DOMAINS, 2))
    else:
        try:
            wanted = [(str(s), str(t)) for s, t in pairs]
        except (TypeError, ValueError):
            raise InputError(f"pairs = {shown(pairs)}: must be 'all' or (source, target) pairs") from None
    for domain in (source, target, *itertools.chain(*wanted)):
        if domain is not None:
            one_of("domain", domain, amazon.DOMAINS)
    for s, t in [*wanted, (source, target)]:
        if s is not None and s == t:
            raise InputError(f"source and target are both {s!r}; allowed: two different domains")
    chosen = [(s, t) for s, t in dict.fromkeys(wanted) if source in (None, s) and target in (None, t)]
    if not chosen:
        raise InputError(
            f"pairs = {shown(pairs)} has no pair with source = {source!r}, target = {target!r}; allowed: one"
        )
    return chosen


def check_features(features: str, words: int) -> None:
    """Raise InputError unless the features are known and the number of words is allowed."""
    one_of("features", features, amazon.FEATURES)
    whole("words", words, 1, amazon.WORDS)


def check_sample_size(n: int) -> None:
    """Raise InputError unless n target samples suffice for a fit."""
    whole("n", n, 2)


def read_domains(folder, pairs, features: str, words: int, reporter: Reporter) -> dict[str, Problem]:
    """Return the domains that pairs name, read from the Amazon folder."""
    domains = {}
    for domain in dict.fromkeys(itertools.chain(*pairs)):
        (X, test_X), (y, test_y) = amazon.scaled_splits(folder, domain, amazon.SPLITS, features, words)
        domains[domain] = Problem(X, y, test_X, test_y)
        reporter.advance(1, f"read {domain}")
    return domains


def _digits(reporter: Reporter) -> tuple[dict[str, Problem], dict[str, Problem]]:
    sources, targets = {}, {}
    for source, target in _DIGITS:
        pair = load_default(source, target)
        sources[pair.source] = Problem(pair.source_X, pair.source_y, pair.source_X, pair.source_y)
        targets[pair.target] = Problem(pair.target_X, pair.target_y, pair.test_X, pair.test_y)
    for name in {**sources, **targets}:
        reporter.advance(1, f"read {name}")
    return sources, targets


def measure(
    sources: dict[str, Problem],
    targets: dict[str, Problem],
    pairs: Sequence[tuple[str, str]],
    n: int,
    gamma: float,
    source_gamma: float,
    seeds: Sequence[int],
    grid: np.ndarray,
    reporter: Reporter | None = None,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return every measured variable of `run_transfer`, by name, as (dimensions, values)."""
    for name in {t for _, t in pairs}:
        if n > len(targets[name].y):
            raise InputError(
                f"n = {n} target samples cannot be drawn; allowed: 2 to {len(targets[name].y)}, the pool's size"
            )
    classifiers = {name: sources[name].classifier(source_gamma) for name in {s for s, _ in pairs}}
    shape = (len(pairs), len(seeds))
    accuracy, chosen = ({rule: np.empty(shape) for rule in RULES} for _ in range(2))
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
                chosen["loo"][k, j] = loo_alpha(fit.loo[[0, 1 + i]])[0]
            parts.append(np.vstack([fit.target, fit.transferred]))
        # One product computes the scores of the test split for every seed and source.
        every = target.test_X @ np.concatenate([*parts, W]).T
        split = every[:, : len(seeds) * (1 + len(members))].reshape(len(every), len(seeds), 1 + len(members))
        for i, k in enumerate(members):
            alone = _percent(every[:, len(seeds) * (1 + len(members)) + i] * target.test_y > 0)
            accuracy["source"][k], chosen["source"][k] = alone, np.inf
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
    chosen["alpha=0"][:], chosen["alpha=1"][:] = 0, 1
    chosen["alpha*"] = moments.law_alpha(stacked, gamma)[:, 0].reshape(shape)
    for k, j in order:
        curve[k, j] = _margins_won(*scores[k, j], grid)
        best = np.flatnonzero(curve[k, j] == curve[k, j].max())
        # Of several equally good α the middle one is taken, since the ends of their range are arbitrary.
        chosen["oracle"][k, j], accuracy["oracle"][k, j] = grid[best[len(best) // 2]], curve[k, j].max()
        rules = ["alpha=0", "alpha=1", "alpha*", "loo"]
        won = _margins_won(*scores[k, j], np.array([chosen[rule][k, j] for rule in rules]))
        for rule, percent in zip(rules, won, strict=True):
            accuracy[rule][k, j] = percent
    pool = _stack([pooled[k] for k in range(shape[0])])
    over_seeds = ("pair", "seed", "rule")
    return {
        "accuracy": (over_seeds, np.stack([accuracy[rule] for rule in RULES], -1)),
        "chosen_alpha": (over_seeds, np.stack([chosen[rule] for rule in RULES], -1)),
        "curve": (("pair", "seed", "alpha"), curve),
        "predicted": (("pair", "seed", "alpha"), 100 * _law_curve(stacked, gamma, grid).reshape(*shape, -1)),
        "law": (("pair", "alpha"), 100 * _law_curve(pool, gamma, grid)),
        "law_alpha": (("pair",), moments.law_alpha(pool, gamma)[:, 0]),
        "beta": (("pair",), betas[0]),
        "beta_naive": (("pair",), betas[1]),
    }


def _pool_moments(target: Problem, w: np.ndarray, n: int) -> TargetMoments:
    """Return moments of the whole labelled pool, which are precise and need no shrinkage, for a fit on n of its samples."""
    train_moments = target.own_moments
    b, q = w @ target.mean, w @ w
    floor = b**2 / q
    return train_moments._replace(
        eta=np.float64(len(w) / n),
        mean_norm2=np.maximum(train_moments.mean_norm2_unbiased, floor),
        mean_norm2_floor=floor,
        alignment=np.array([b]),
        gram=np.array([[q]]),
    )


def _stack(many: Sequence[TargetMoments]) -> TargetMoments:
    return TargetMoments(*(np.stack(field) for field in zip(*many, strict=True)))


def _law_curve(stacked: TargetMoments, gamma: float, grid: np.ndarray) -> np.ndarray:
    return moments.law_accuracy(TargetMoments(*(field[:, None] for field in stacked)), gamma, grid[:, None])


def _margins_won(target_scores: np.ndarray, pulled: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    return np.array([_percent(target_scores + alpha * pulled > 0) for alpha in alphas])


def _percent(right: np.ndarray) -> float:
    return 100 * np.count_nonzero(right) / len(right)
