r"""Entries of dense random matrices: independent, mean 0, variance 1.

The bulk of the bits comes from Philox, which XLA runs several times faster than threefry on a processor; each matrix
has its own counter range, derived from its key. Normals are Box–Muller's, Student's t is Bailey's (Math. Comp. 62, 1994)
polar form, so every law costs a fixed number of words and nothing is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Key, UInt64

from rmtjax._errors import InputError, unknown
from rmtjax._precision import float64
from rmtjax.ensembles.counter import box_muller, cos_turn, fast_log, unit

__all__ = ["ENTRIES", "entries", "parse_entries"]


def bulk_words(key: Key[Array, ""], count: int) -> UInt64[Array, "count"]:
    """`count` words of 64 random bits from a typed key. Under `vmap` keys are served one after the other."""

    @sequential_vmap
    def philox(state):
        return jax.lax.rng_bit_generator(state, (count,), jnp.uint64, algorithm=jax.lax.RandomAlgorithm.RNG_PHILOX)[1]

    return philox(jax.random.bits(key, (4,), jnp.uint32))


def _gaussian(key, count):
    even = count + count % 2
    return box_muller(bulk_words(key, even))[:count]


def _rademacher(key, count):
    return jnp.where(bulk_words(key, count) >> 63, 1.0, -1.0)


def _uniform(key, count):
    return (2 * unit(bulk_words(key, count)) - 1) * math.sqrt(3)


def _student_t(key, count, dof):
    radius, angle = jnp.split(unit(bulk_words(key, 2 * count)), 2)
    r2 = dof * jnp.expm1(fast_log(radius) * (-2 / dof))
    return jnp.sqrt(r2 * ((dof - 2) / dof)) * cos_turn(angle)


def _sparse(key, count, density):
    mask_key, normal_key = jax.random.split(key)
    kept = unit(bulk_words(mask_key, count)) <= density
    return jnp.where(kept, _gaussian(normal_key, count) / math.sqrt(density), 0.0)


ENTRIES: dict[str, str] = {
    "gaussian": "N(0, 1)",
    "rademacher": "±1 with equal probability",
    "uniform": "uniform on [−√3, √3]",
    "student-t": "Student's t with ν degrees of freedom over its standard deviation; `student-t:ν`, ν > 2, 5 if not said",
    "sparse": "N(0, 1/q) with probability q, else 0; `sparse:q`, 0 < q ≤ 1, 0.1 if not said",
}
"""The laws of entries by name."""


def parse_entries(law: str) -> Callable[[Key[Array, ""], int], Array]:
    """The generator ``(key, count) -> (count,)`` of a law of entries named as in `ENTRIES`.

    Raises:
        InputError: for an unknown name or a parameter that is not admissible.
    """
    name, _, parameter = law.partition(":")
    plain = {"gaussian": _gaussian, "rademacher": _rademacher, "uniform": _uniform}
    if name in plain:
        if parameter:
            raise InputError(f"entries = {law!r}: {name} has no parameter")
        return plain[name]
    if name not in ENTRIES:
        raise unknown("entries", law, ENTRIES)
    low, high, default = (2.0, math.inf, 5.0) if name == "student-t" else (0.0, 1.0, 0.1)
    try:
        value = float(parameter) if parameter else default
    except ValueError:
        value = math.nan
    if not (low < value <= high and math.isfinite(value)):
        allowed = "a finite ν > 2" if name == "student-t" else "0 < q ≤ 1"
        raise InputError(f"entries = {law!r}: must be {name}:number with {allowed}")
    function = _student_t if name == "student-t" else _sparse
    return lambda key, count: function(key, count, value)


@float64(keep=("key", "shape", "law", "dtype"))
def entries(
    key: Key[Array, ""], shape: tuple[int, ...], law: str = "gaussian", dtype=jnp.float64
) -> Float[Array, "..."]:
    """A matrix of independent entries of mean 0 and variance 1.

    Args:
        key: a typed PRNG key.
        shape: of the matrix.
        law: one of `ENTRIES`, with its parameter after a colon.
        dtype: of the result; the draws themselves are made in float64.
    """
    return parse_entries(law)(key, math.prod(shape)).astype(dtype).reshape(shape)
