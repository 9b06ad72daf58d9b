r"""Both papers in one matrix: rows rescaled as by α-LoRA, and an update that may plant a singular direction.

The factors of the rows are spread evenly over an interval around 1. The limit laws take the mean over it from equally many points
of the same kind.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rmtjax.claims._shared import ASPECT, COLUMNS, check_rows, dense, overlap_window, window
from rmtjax.ensembles.entries import ENTRIES, entries, parse_entries
from rmtjax.laws import rescaled_rows as law
from rmtjax.montecarlo import Claim, between, grid, positive
from rmtjax.montecarlo.claim import Option

__all__ = ["CLAIMS"]

_POINTS = 1024
_SPREAD = between(0, 1, "half-width s of the interval [1 − s, 1 + s] of the rows' factors", open_high=True)
_ENTRIES = Option("gaussian", tuple(ENTRIES), parse_entries)


def _factors(spread, count):
    """Return the rows' factors: the midpoints of equal parts of the interval, along a new last axis."""
    return 1 + jnp.asarray(spread)[..., None] * ((2 * jnp.arange(count) + 1) / count - 1)


def _draw(key, N, c, spread, theta, entries_):
    n = round(c * N)
    W = _factors(spread, n)[:, None] * entries(key, (n, N), entries_) / np.sqrt(N)
    return W + theta / np.sqrt(n * N)  # a spike along (1, …, 1): rows are exchangeable but for their factors


def _spike(key, N, c, spread, theta, entries):
    left, values, right = jnp.linalg.svd(_draw(key, N, c, spread, theta, entries), full_matrices=False)
    return {
        "outlier": values[0],
        "overlap_left": jnp.sum(left[:, 0]) ** 2 / len(left),
        "overlap_right": jnp.sum(right[0]) ** 2 / N,
    }


def _spike_law(c, spread, theta):
    factors = _factors(spread, _POINTS)
    return {
        "outlier": law.outlier(theta, factors, c),
        "overlap_left": law.overlap_left(theta, factors, c),
        "overlap_right": law.overlap_right(theta, factors, c),
    }


def _spike_bias(N, c, spread, theta):
    smaller = np.minimum(N, c * N)
    distance = theta / np.asarray(law.threshold(_factors(spread, _POINTS), c)) - 1
    overlap = 3 * overlap_window(smaller, distance)
    return {"outlier": 2 * (1 + c) * window(smaller, distance), "overlap_left": overlap, "overlap_right": overlap}


spike = Claim(
    name="bbp-rescaled-rows",
    equation=r"\sigma_{out}^2 = \frac1w + \frac1m\sum_i\frac{t_i}{1-t_iw},\quad"
    r" \frac1n\sum_i\frac w{1-t_iw} = \frac1{\theta^2},\quad t_i = a_i^2",
    source="ours, from Benaych-Georges & Nadakuditi 2012: Intruder Dimensions, §IV-C, on the rescaled base of α-LoRA",
    params=dict(N=COLUMNS, c=ASPECT, spread=_SPREAD, theta=positive("strength θ of the spike")),
    law=_spike_law,
    samplers=dict(dense=dense(_spike, "N", "c", entries=_ENTRIES, default_trials=100)),
    grid=grid(N=[200], c=[0.5, 1.0, 2.0], spread=[0.0, 0.4, 0.8], theta=[2.0, 3.0]),
    check=check_rows,
    bias_bound=_spike_bias,
)


def _resolvent(key, N, c, spread, at, entries):
    place = (at * law.edge(_factors(spread, _POINTS), c)) ** 2
    values = jnp.linalg.svd(_draw(key, N, c, spread, 0.0, entries), compute_uv=False)
    inside = jnp.sum(1 / (place - values**2))
    return {"transform": (inside + (N - len(values)) / place) / N, "edge": values[0]}


def _resolvent_law(c, spread, at):
    factors = _factors(spread, _POINTS)
    edge = law.edge(factors, c)
    return {"transform": law.companion_transform((at * edge) ** 2, factors, c), "edge": edge + 0 * at}


bulk = Claim(
    name="bulk-rescaled-rows",
    equation=r"z = \frac1w + \frac1m\sum_i\frac{t_i}{1-t_iw},\quad"
    r" w = \tfrac1m\operatorname{tr}(z - A^\top A)^{-1},\quad t_i = a_i^2",
    source="Silverstein & Choi 1995, for the rescaled base of α-LoRA",
    params=dict(
        N=COLUMNS, c=ASPECT, spread=_SPREAD, at=between(1, 100, "√z in units of the bulk's edge", open_low=True)
    ),
    law=_resolvent_law,
    samplers=dict(dense=dense(_resolvent, "N", "c", entries=_ENTRIES, default_trials=100)),
    grid=grid(N=[200], c=[0.5, 1.0, 2.0], spread=[0.0, 0.4, 0.8], at=[1.2, 2.0]),
    check=check_rows,
    bias_bound=lambda N, c, at: {"transform": 0.1 / (N * np.minimum(c, 1)) / at, "edge": 2.5 * (1 + c) * N ** (-2 / 3)},
)

CLAIMS = (spike, bulk)
"""Every claim of this module."""
