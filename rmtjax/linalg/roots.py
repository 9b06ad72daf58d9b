"""Roots of monotone functions: by bisection, and by any step of the caller's, safeguarded by a bracket.

Both work elementwise on arrays and inside `jit`, and both solve all problems of a batch at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["Trial", "average", "bisect", "safeguarded_newton"]


def average(low: Array | float, high: Array | float) -> Array | float:
    """Return the middle of an interval of floats."""
    return (low + high) / 2


def bisect(
    is_below: Callable[[Array], Array],
    low: Array | float,
    high: Array | float,
    steps: int,
    middle: Callable[[Array, Array], Array] = average,
) -> tuple[Array, Array]:
    """Return the interval that holds the root after a number of bisections.

    Args:
        is_below: whether a point lies below the root.
        low, high: the ends of an interval with the root inside.
        steps: number of halvings (static).
        middle: middle of an interval, by default the mean of its ends.

    Returns:
        The lower and the upper end of the last interval.

    Examples:
        >>> low, high = bisect(lambda x: x * x < 2, 1.0, 2.0, 20)
        >>> f"{float(low):.5f} {float(high):.5f}"
        '1.41421 1.41421'
    """

    def halve(_, ends):
        low, high = ends
        point = middle(low, high)
        below = is_below(point)
        return jnp.where(below, point, low), jnp.where(below, high, point)

    return jax.lax.fori_loop(0, steps, halve, (low, high))


class Trial(NamedTuple):
    """The state of a search at a trial point.

    Attributes:
        is_below: whether the point lies below the root.
        move: the step that should lead to the root.
        is_trusted: whether that step may be taken.
        has_converged: whether the point plus the step is the root.
        resolution: the width at which a bracket need not be halved any more.
        value: further arrays, kept from the point at which a root is found.
    """

    is_below: Array
    move: Array
    is_trusted: Array
    has_converged: Array
    resolution: Array
    value: Any


def safeguarded_newton(
    trial: Callable[[Array], Trial],
    start: Array,
    spread: Array,
    value: Array,
    passes: int,
    *,
    from_above: bool = False,
) -> tuple[Array, Array]:
    """Return the roots of a batch of functions by Newton's method, or any other step, inside a bracket.

    The bracket starts as the whole line. A step that leaves the bracket, and every eighth one, is replaced by a bisection;
    as long as one end is infinite, by a leap whose length doubles with every pass.

    Args:
        trial: function that returns the `Trial` at points of the shape of `start`.
        start: first points.
        spread: length of the first leap.
        value: placeholder for `Trial.value` until a root is found.
        passes: largest number of passes; a root that is not found by then is NaN.
        from_above: whether a bracket that is narrow enough ends the search at its upper end alone, because there the value
            is sure to be defined.

    Returns:
        The roots, and the values that belong to them.
    """

    def one_pass(state):
        count, z, low, high, done, root, kept = state
        at = trial(z)
        low, high = jnp.where(at.is_below, jnp.maximum(low, z), low), jnp.where(at.is_below, high, jnp.minimum(high, z))
        is_tight = high - low <= at.resolution
        ends_here = is_tight & (z == high) if from_above else is_tight
        now = (at.has_converged | ends_here) & ~done
        proposed = z + at.move
        root = jnp.where(now, jnp.where(at.has_converged, proposed, z), root)
        kept = jnp.where(now, at.value, kept)
        inside = at.is_trusted & (proposed > low) & (proposed < high) & (count % 8 != 7)
        reach = spread * 2.0**count
        middle = jnp.where(jnp.isinf(high), low + reach, jnp.where(jnp.isinf(low), high - reach, 0.5 * (low + high)))
        following = jnp.where(inside, proposed, middle)
        if from_above:
            following = jnp.where(is_tight, high, following)
        return count + 1, following, low, high, done | now, root, kept

    infinite = jnp.full(start.shape, jnp.inf)
    state = (0, start, -infinite, infinite, jnp.zeros(start.shape, bool), start, value)
    state = jax.lax.while_loop(lambda s: (s[0] < passes) & ~jnp.all(s[4]), one_pass, state)
    return jnp.where(state[4], state[5], jnp.nan), state[6]
