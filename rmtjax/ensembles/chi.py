r"""χ-distributed draws, exact for every number of degrees of freedom ≥ 0.

`jax.random.gamma` repeats its rejection loop for the whole batch until the slowest element is done, and its logarithms
are taken element by element. Here the first round draws everything at once, with the batch of trials as the vector axis,
and every further round redraws one rejected entry per trial: a rejection costs one entry, not one batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rmtjax._precision import float64
from rmtjax.ensembles._counter import batch_last, box_muller, fast_log, unit, words

__all__ = ["chi", "chi_batched"]


def _marsaglia_tsang(normal, uniform, d):
    r"""Return :math:`d(1+cx)^3`, :math:`c = 1/\sqrt{9d}`, and whether it is accepted; accepted draws are Gamma(d + 1/3)."""
    v = 1 + normal / jnp.sqrt(9 * d)
    v = v * v * v
    positive = v > 0
    v = jnp.where(positive, v, 1.0)
    return d * v, positive & (fast_log(uniform) < 0.5 * normal**2 + d * (1 - v + fast_log(v)))


def chi_batched(key_data: Array, stream: Array | int, dof: Array) -> Array:
    """Draw χ for a batch of keys, the batch along the last axis; see `chi`.

    Args:
        key_data: shape (2, batch).
        stream: index of the keys' stream.
        dof: degrees of freedom, shape (m, 1) or (m, batch).
    """
    count, even = dof.shape[0], dof.shape[0] + dof.shape[0] % 2
    shape = jnp.maximum(dof, 0) / 2
    small = shape < 1
    d = jnp.broadcast_to(jnp.where(small, shape + 1, shape) - 1 / 3, (count, key_data.shape[-1]))
    bits = words(key_data, stream, even + count)
    first = _marsaglia_tsang(box_muller(bits[:even])[:count], unit(bits[even:]), d)
    used = even + 2 * count

    def redraw(state):
        round_, gamma, accepted = state
        at = jax.lax.argmin(accepted, 0, jnp.int32)
        is_redrawn = (jnp.arange(count)[:, None] == at) & ~accepted
        bits = words(key_data, stream, 3, used + 3 * round_)
        again, ok = _marsaglia_tsang(box_muller(bits[:2])[0], unit(bits[2]), jnp.sum(jnp.where(is_redrawn, d, 0), 0))
        return round_ + 1, jnp.where(is_redrawn, again, gamma), accepted | (is_redrawn & ok)

    _, gamma, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[2]), redraw, (0, *first))

    def boosted(gamma):
        # Gamma(a) is Gamma(a + 1)·U^{1/a}: Marsaglia and Tsang's method below shape 1.
        uniform = unit(words(key_data, stream, count, even + count))
        boost = jnp.exp(jnp.log(uniform) / jnp.where(small & (shape > 0), shape, 1.0))
        return jnp.where(shape > 0, jnp.where(small, gamma * boost, gamma), 0.0)

    return jnp.sqrt(2 * jax.lax.cond(jnp.any(small), boosted, lambda gamma: gamma, gamma))


_batched = batch_last(chi_batched)


@float64(keep=("key", "stream"))
def chi(key: Key[Array, ""], dof: Float[Array, "m"], stream: Int[Array, ""] | int = 0) -> Float[Array, "m"]:
    r"""Draw independent :math:`x_i \sim \chi_{k_i}`, the norm of a standard Gaussian vector of length :math:`k_i`.

    Marsaglia & Tsang, *A simple method for generating gamma variables*, ACM TOMS 26 (2000): exact, with the power-of-a-
    uniform boost for shape < 1. Entries with ``dof <= 0`` are 0, the norm of an empty vector.

    Args:
        key: a typed PRNG key, used for nothing but the draws of `rmtjax.ensembles._counter` and this module.
        dof: degrees of freedom, not necessarily whole, float64, shape (m,).
        stream: index of one of 2³² independent streams of the key.
    """
    return _batched(key, jnp.asarray(stream), dof)
