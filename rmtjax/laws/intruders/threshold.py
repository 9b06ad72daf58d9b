"""The strength at which the outlier is an intruder with a given probability."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from rmtjax._checks import is_traced
from rmtjax._precision import float64
from rmtjax.laws.intruders._common import (
    check_eps,
    check_side,
    check_sizes,
    elementwise,
)
from rmtjax.laws.intruders._integral import rectangular_law, wigner_law

__all__ = ["rectangular_intruder_threshold", "wigner_intruder_threshold"]

_NEVER = 1e3
"""A θ beyond which a threshold is reported as infinite."""


def _search(function, guess, probability):
    """Return where an increasing function crosses a level, by a guarded secant of its probit in log θ; ∞ if it does not."""
    level, never = ndtri(probability), jnp.log(_NEVER)

    def unfinished(state):
        count, low, high, _, height, _ = state
        return (count < 80) & (jnp.abs(height) > 1e-8) & (high - low > 1e-9) & (low < never - 0.01)

    def step(state):
        count, low, high, x, height, new = state
        at = ndtri(jnp.clip(function(jnp.exp(new)), 1e-15, 1 - 1e-15)) - level
        low, high = jnp.where(at < 0, new, low), jnp.where(at < 0, high, new)
        rise, run = at - height, new - x
        secant = jnp.where(rise * run > 0, new - at * run / jnp.where(rise == 0, 1.0, rise), new - jnp.sign(at))
        following = jnp.clip(secant, new - 0.5, new + 0.5)
        following = jnp.where((following > low) & (following < high), following, (low + high) / 2)
        return count + 1, low, high, new, at, following

    start = jnp.log(guess)
    state = step((0, -never, never, start, jnp.zeros_like(start), start))  # the same point twice: no secant
    if not is_traced(*state):  # reuses the law's own compiled program
        while unfinished(state):
            state = step(state)
    else:
        state = jax.lax.while_loop(unfinished, step, state)
    _, low, _, x, _, _ = state
    return jnp.where(low < never - 0.01, jnp.exp(x), jnp.inf)


def _crossing(function, bbp):
    """Return the θ at which ``function(*sizes, θ, eps)`` reaches a level, differentiable by the implicit function theorem."""

    @jax.custom_jvp
    def crossing(*args):
        *sizes, eps, probability = args
        guess = bbp(*sizes) * (1 + jnp.cbrt(2 / (jnp.minimum(sizes[0], sizes[-1]) * eps**2)))
        return _search(lambda theta: function(*sizes, theta, eps), guess, probability)

    @crossing.defjvp
    def _(args, tangents):
        theta = crossing(*args)
        crosses = jnp.isfinite(theta)
        safe = jnp.where(crosses, theta, bbp(*args[:-2]))

        def residual(theta, *args):
            return function(*args[:-2], theta, args[-2]) - args[-1]

        _, slope = jax.jvp(lambda t: residual(t, *args), (safe,), (jnp.ones_like(safe),))
        _, moved = jax.jvp(lambda *a: residual(safe, *a), args, tangents)
        return theta, jnp.where(crosses, -moved / jnp.where(crosses, slope, 1.0), 0.0)

    return crossing


_wigner_crossings = elementwise(_crossing(wigner_law(), jnp.ones_like))

_rectangular_crossings = elementwise(_crossing(rectangular_law(), lambda n, m: (n / m) ** 0.25))


@float64
def wigner_intruder_threshold(
    N: Float[Array, "..."], eps: Float[Array, "..."], probability: Float[Array, "..."] | float = 0.5
) -> Float[Array, "..."]:
    r"""Return the θ at which `wigner_intruder_probability` reaches a level; the BBP threshold, where an outlier appears, is 1.

    It tends to 1 as :math:`1 + w(\varepsilon, P)N^{-1/3}`. Infinite where no θ up to 1000 is enough: a Haar vector itself
    may be closer than ε to some eigenvector. Levels above 0.98 are beyond the law's accuracy.

    Args:
        N: order of the matrix, at least 32; may be traced.
        eps: tolerance ε in (0, 1).
        probability: the level, in (0, 1).

    Raises:
        InputError: for arguments outside these ranges.
    """
    check_sizes(N=N)
    check_eps(eps=eps, probability=probability)
    return _wigner_crossings(N, eps, probability)


@float64(keep=("side",))
def rectangular_intruder_threshold(
    n: Float[Array, "..."],
    m: Float[Array, "..."],
    eps: Float[Array, "..."],
    probability: Float[Array, "..."] | float = 0.5,
    *,
    side: str = "left",
) -> Float[Array, "..."]:
    r"""Return the θ at which `rectangular_intruder_probability` reaches a level; the BBP threshold is :math:`(n/m)^{1/4}`.

    Args:
        n, m: rows and columns, at least 32; may be traced.
        eps: tolerance ε in (0, 1).
        probability: the level, in (0, 1).
        side: "left" or "right".

    Raises:
        InputError: for arguments outside these ranges.
    """
    check_side(side)
    check_sizes(n=n, m=m)
    check_eps(eps=eps, probability=probability)
    if side == "left":
        return _rectangular_crossings(n, m, eps, probability)
    return _rectangular_crossings(m, n, eps, probability) * jnp.sqrt(n / m)
