"""What the claims about the α-fine-tuned classifier share: parameters, checks, dense samplers and the size of a limit's error."""

from __future__ import annotations

import numpy as np

from rmtjax._errors import InputError
from rmtjax.ensembles.entries import ENTRIES, parse_entries
from rmtjax.montecarlo import Sampler, nonnegative, positive, real, size, zipped
from rmtjax.montecarlo.claim import Option


def mean_norm(beta, mu, mu_perp):
    r"""Return :math:`\|\mu_\beta\| = \sqrt{\beta^2\|\mu\|^2 + \|\mu^\perp\|^2}`."""
    return (beta**2 * mu**2 + mu_perp**2) ** 0.5


def orthogonal_norm(beta, mu, mu_beta):
    r"""Return :math:`\|\mu^\perp\|` at fixed :math:`\|\mu_\beta\|`.

    Raises:
        InputError: if :math:`|\beta|\,\|\mu\| > \|\mu_\beta\|`: no vector has a component longer than itself.
    """
    along, total = np.broadcast_arrays(np.abs(beta) * mu, mu_beta)
    too_long = along > total * (1 + 1e-12)
    if np.any(too_long):
        at = np.broadcast_to(beta, along.shape)[too_long].flat[0]
        limit = np.broadcast_to(mu_beta / np.asarray(mu), along.shape)[too_long].flat[0]
        raise InputError(f"beta = {at:g}: must be within ±mu_beta/mu = ±{limit:g}, otherwise β‖μ‖ exceeds ‖μ_β‖")
    return np.sqrt(np.maximum(total**2 - along**2, 0.0))


def check_means(p, beta, mu, mu_perp):
    if mean_norm(beta, mu, mu_perp) == 0:
        raise InputError(
            f"beta = {beta:g} and mu_perp = {mu_perp:g}: one must differ from 0, otherwise ‖μ_β‖ = 0 and nothing can be learned"
        )
    if p == 1 and mu_perp > 0:
        raise InputError(f"mu_perp = {mu_perp:g}: must be 0 for p = 1, where no direction is orthogonal to μ")


def check_cosine(p, cosine):
    if p == 1 and abs(cosine) != 1:
        raise InputError(f"cosine = {cosine:g}: must be ±1 for p = 1")


def check_room(p, least):
    if p < least:
        raise InputError(f"p = {p:g}: must be a whole number ≥ {least} for the given directions to fit")


SIZES = dict(p=size("dimension"), n=size("target samples"), N=size("source samples"))
RIDGE = dict(gamma=positive("target ridge γ"), gamma_source=positive("source ridge γ̃"))
MODEL = dict(
    **SIZES,
    beta=real("alignment β of μ_β with μ"),
    mu=positive("‖μ‖"),
    mu_perp=nonnegative("‖μ⊥‖"),
    **RIDGE,
)
ALPHA = dict(alpha=real("scale α of the source classifier"))

ALPHAS = np.linspace(-3, 6, 19)
LARGE = zipped(p=[1e4, 1e6, 1e9], n=[5e3, 5e5, 5e8], N=[2e4, 2e6, 2e9])
SMALL = zipped(p=[30, 12], n=[15, 40], N=[60, 30])
ONE = dict(mu=1.0, gamma=1.0, gamma_source=1.0)

_ENTRIES = Option("gaussian", tuple(ENTRIES), parse_entries)
_DENSE_OPTIONS = dict(entries=_ENTRIES, dtype=Option("float64", ("float64", "float32")))


def _batch_size(p=1, n=1, N=1):
    """Return the number of matrices drawn at once: enough to fill vector units, few enough to stay in cache."""
    return max(1, int(2**20 // (p * (n + N))))


def dense_sampler(draw, static_argnames=("p", "n", "N"), **options):
    return Sampler(
        draw,
        static_argnames=static_argnames,
        options={**_DENSE_OPTIONS, **options},
        block=8,
        batch_size=_batch_size,
        default_trials=2_000,
    )


def limit_error(constant):
    """Return the allowance for a limit whose error is O(1/size): `constant` over the smallest size.

    The constants are two to four times the largest |mean − law|·size measured at sizes 100 to 800 in the settings of the
    default grids.
    """
    return lambda p, n, N=np.inf, **_: constant / np.minimum(np.minimum(p, n), N)
