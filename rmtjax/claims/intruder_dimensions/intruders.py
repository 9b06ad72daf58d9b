r"""The claims of the intruder law: the frequency at which the outlier of a spiked matrix is an intruder, with its samplers.

One draw serves all strengths θ and tolerances ε. The sampler is exact in law, so what a verdict allows for is the law's own
error (``docs/intruder-law.md``).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rmtjax.claims._shared import ASPECT, check_rows
from rmtjax.ensembles import intruder
from rmtjax.laws import intruders
from rmtjax.montecarlo import Claim, Sampler, between, grid, positive, size

__all__ = ["CLAIMS"]

_EPS = between(0.0, 1.0, "tolerance ε: an intruder has no cosine as large", open_low=True, open_high=True)
_THETA = positive("strength θ of the spike")


def _bias(eps):
    """Return the law's own error, as measured on the grid of ``experiments/intruder_law.py``."""
    return np.interp(eps, [0.7, 0.8, 0.9], [0.02, 0.03, 0.05])


def _wigner(draw):
    return lambda key, N, theta, eps: {"intruder": draw(key, int(N), theta[:, None], eps).intruder}


wigner = Claim(
    name="intruder",
    equation=r"P(\max_j|\langle w_j,\hat v\rangle| < \varepsilon) = P_N(\theta, \varepsilon)",
    source="ours (docs/intruder-law.md); Intruder Dimensions gives no probability",
    params=dict(N=size("order of the matrix", at_least=intruders.SMALLEST), theta=_THETA, eps=_EPS),
    law=lambda N, theta, eps: {"intruder": intruders.wigner_intruder_probability(N, theta, eps)},
    samplers=dict(
        secular=Sampler(
            _wigner(intruder.wigner_intruder), static_argnames=("N",), block=256, batch_size=64, default_trials=2_000
        ),
        dense=Sampler(
            _wigner(intruder.dense_wigner_intruder), static_argnames=("N",), block=64, batch_size=8, default_trials=500
        ),
    ),
    grid=grid(N=[128], theta=[0.95, 1.1, 1.25, 1.5, 2.0], eps=[0.3, 0.5, 0.7]),
    within=("theta", "eps"),
    bias_bound=lambda N, theta, eps: {"intruder": _bias(eps) + 0 * N * theta},
)


def _rectangular_law(N, c, theta, eps):
    n = jnp.round(c * N)
    return {
        f"intruder_{side}": intruders.rectangular_intruder_probability(n, N, theta, eps, side=side)
        for side in ("left", "right")
    }


def _rectangular(draw):
    def sample(key, N, c, theta, eps):
        drawn = draw(key, round(c * N), int(N), theta[:, None], eps)
        return {"intruder_left": drawn.intruder_left, "intruder_right": drawn.intruder_right}

    return sample


def _rectangular_bias(N, c, theta, eps):
    error = _bias(eps) + 0 * N * c * theta
    return {"intruder_left": error, "intruder_right": error}


rectangular = Claim(
    name="intruder-rectangular",
    equation=r"P(\max_j|\langle u_j,\hat u\rangle| < \varepsilon) = P_{n,N}(\theta, \varepsilon),\quad "
    r"P(\max_j|\langle v_j,\hat v\rangle| < \varepsilon) = P_{N,n}(\theta/\sqrt c, \varepsilon),\quad n = cN",
    source=wigner.source,
    params=dict(
        N=size("columns; there are cN rows", at_least=intruders.SMALLEST),
        c=ASPECT,
        theta=_THETA,
        eps=_EPS,
    ),
    law=_rectangular_law,
    samplers=dict(
        secular=Sampler(
            _rectangular(intruder.rectangular_intruder),
            static_argnames=("N", "c"),
            block=256,
            batch_size=64,
            default_trials=2_000,
        ),
        dense=Sampler(
            _rectangular(intruder.dense_rectangular_intruder),
            static_argnames=("N", "c"),
            block=64,
            batch_size=8,
            default_trials=500,
        ),
    ),
    grid=grid(N=[256], c=[0.25], theta=[0.7, 0.85, 1.1], eps=[0.5, 0.7]),
    within=("theta", "eps"),
    check=lambda N, c: check_rows(N, c, intruders.SMALLEST),
    bias_bound=_rectangular_bias,
)

CLAIMS = (wigner, rectangular)
"""Every claim of this module."""
