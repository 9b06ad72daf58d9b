r"""Entries of dense random matrices: independent and symmetric, of mean 0 and variance 1 unless the law is `HEAVY`.

The bulk of the bits comes from Philox, which XLA runs several times faster than threefry on a processor; each matrix
has its own counter range, derived from its key. Normals are Box–Muller's, Student's t is Bailey's (Math. Comp. 62, 1994)
polar form, so every law costs a fixed number of words and nothing is rejected.

Heavy tails. Student's t with ν degrees of freedom has :math:`P(|x| > t) \sim Kt^{-\nu}`. For ν > 4 a Wigner matrix of such
entries is like a Gaussian one. For 2 < ν < 4 (``student-t:ν``) the variance exists and the bulk is the semicircle, but the
largest eigenvalues leave the edge: they follow the largest entries, on the scale :math:`N^{2/\nu - 1/2}` (Auffinger, Ben
Arous & Péché, *Ann. IHP* 45, 2009). For ν ≤ 2 there is no variance to divide by, and the bulk is not a semicircle either;
``heavy:ν`` takes the tail as the unit instead, :math:`P(|x| > t) \sim t^{-\nu}`, in which the largest of M entries is
:math:`M^{1/\nu}` times a Fréchet variable, of distribution function :math:`\exp(-s^{-\nu})` (for ν < 2: Soshnikov, *Elect.
Comm. Prob.* 9, 2004; Ben Arous & Guionnet, *CMP* 278, 2008). With 52 random bits in the radius, the tail is exact to
:math:`2^{-42}` at relative precision :math:`2^{-10}`, and ends at :math:`2^{52/\nu}` times its scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Inexact, Key, UInt64

from rmtjax._errors import InputError, shown, unknown
from rmtjax._precision import float64
from rmtjax.ensembles._counter import box_muller, cos_turn, fast_log, unit

__all__ = ["ENTRIES", "HEAVY", "entries", "parse_entries"]


def bulk_words(key: Key[Array, ""], count: int) -> UInt64[Array, "count"]:
    """Return `count` words of 64 random bits from a typed key. Under `vmap` keys are processed one after another."""

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


def _polar_t(key, count, dof, scale2):
    radius, angle = jnp.split(unit(bulk_words(key, 2 * count)), 2)
    r2 = dof * jnp.expm1(fast_log(radius) * (-2 / dof))
    return jnp.sqrt(r2 * scale2) * cos_turn(angle)


def _student_t(key, count, dof):
    return _polar_t(key, count, dof, (dof - 2) / dof)


def _heavy(key, count, dof):
    # P(|t| > x) ~ K x^{-ν} with log K as here, so |t| K^{-1/ν} has the tail x^{-ν}.
    log_k = math.log(2) + math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)
    log_k += (dof - 2) / 2 * math.log(dof) - math.log(math.pi) / 2
    return _polar_t(key, count, dof, math.exp(-2 / dof * log_k))


def _sparse(key, count, density):
    mask_key, normal_key = jax.random.split(key)
    is_kept = unit(bulk_words(mask_key, count)) <= density
    return jnp.where(is_kept, _gaussian(normal_key, count) / math.sqrt(density), 0.0)


ENTRIES: dict[str, str] = {
    "gaussian": "N(0, 1)",
    "rademacher": "±1 with equal probability",
    "uniform": "uniform on [−√3, √3]",
    "student-t": "Student's t with ν degrees of freedom over its standard deviation; `student-t:ν`, ν > 2, 5 if not said",
    "sparse": "N(0, 1/q) with probability q, else 0; `sparse:q`, 0 < q ≤ 1, 0.1 if not said",
}
"""The laws of entries of variance 1 by name."""

HEAVY: dict[str, str] = {
    "heavy": "Student's t with ν degrees of freedom, scaled to P(|x| > t) ~ t^−ν; `heavy:ν`, ν ≥ 0.11, 1 (Cauchy) if not said",
}
"""The laws of entries that are normalised by their tail, so that they need no finite variance."""

_LEAST_HEAVY = {"float64": 0.11, "float32": 0.85}
"""From this ν on, the square of the largest possible draw is finite in the dtype."""

_WITH_PARAMETER = {
    "student-t": (_student_t, 5.0, lambda nu: nu > 2, "a finite ν > 2 (heavy:ν takes ν ≤ 2)"),
    "sparse": (_sparse, 0.1, lambda q: 0 < q <= 1, "0 < q ≤ 1"),
    "heavy": (_heavy, 1.0, lambda nu: nu >= _LEAST_HEAVY["float64"], "a finite ν ≥ 0.11"),
}


def parse_entries(law: str) -> Callable[[Key[Array, ""], int], Array]:
    """Return the generator ``(key, count) -> (count,)`` of a law of entries named as in `ENTRIES` or `HEAVY`.

    Raises:
        InputError: for an unknown name or a parameter that is not admissible.
    """
    name, _, parameter = law.partition(":")
    plain = {"gaussian": _gaussian, "rademacher": _rademacher, "uniform": _uniform}
    if name in plain:
        if parameter:
            raise InputError(f"entries = {law!r}: {name} has no parameter")
        return plain[name]
    if name not in _WITH_PARAMETER:
        raise unknown("entries", law, [*ENTRIES, *HEAVY])
    function, default, admissible, allowed = _WITH_PARAMETER[name]
    try:
        value = float(parameter) if parameter else default
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and admissible(value)):
        raise InputError(f"entries = {law!r}: must be {name}:number with {allowed}")
    return lambda key, count: function(key, count, value)


@float64(keep=("key", "shape", "law", "dtype"))
def entries(
    key: Key[Array, ""], shape: tuple[int, ...], law: str = "gaussian", dtype=jnp.float64
) -> Inexact[Array, "..."]:
    r"""Draw a matrix of independent entries, of mean 0 and variance 1 unless the law is `HEAVY`.

    Complex entries are :math:`(x + iy)/\sqrt2` with x and y independent of the law, so :math:`E|z|^2 = 1`,
    :math:`Ez^2 = 0`.

    Args:
        key: a typed PRNG key.
        shape: of the matrix.
        law: one of `ENTRIES` or `HEAVY`, with its parameter after a colon.
        dtype: of the result, float32, float64, complex64 or complex128; the draws themselves are made in float64.

    Raises:
        InputError: for a law or dtype that cannot be drawn.
    """
    dtype = floating(dtype)
    parse_entries(law)
    name, _, parameter = law.partition(":")
    real = np.finfo(dtype).dtype.name
    if name in HEAVY and float(parameter or 1) < _LEAST_HEAVY[real]:
        raise InputError(f"entries = {law!r}: must have ν ≥ {_LEAST_HEAVY[real]} in {real}, or squares overflow")
    return _entries(key, shape, law, dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _entries(key, shape, law, dtype):
    draw, count = parse_entries(law), math.prod(shape)
    if dtype.kind == "f":
        return draw(key, count).astype(dtype).reshape(shape)
    x, y = draw(key, 2 * count).reshape(2, *shape) * math.sqrt(0.5)
    return jax.lax.complex(x, y).astype(dtype)


def floating(dtype, kinds: str = "fc", name: str = "") -> np.dtype:
    """Return a dtype that matrices may have; `kinds` "f" allows only real ones, "c" only complex ones.

    `name` is that of a given array, where the dtype is not an argument of its own.

    Raises:
        InputError: for any other.
    """
    names = [known for known in ("float32", "float64", "complex64", "complex128") if known[0] in kinds]
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = None
    if result is None or result.name not in names:
        value = shown(dtype) if result is None else result.name
        raise InputError(f"{f'{name} has dtype' if name else 'dtype ='} {value}: must be {' or '.join(names)}")
    return result


def positive(name: str, value: Any, *, zero: bool = False) -> Array:
    """Return a checked float64 scalar that is finite and > 0 (≥ 0 with `zero`); a traced one passes unchecked.

    Raises:
        InputError: for any other.
    """
    if not isinstance(value, jax.core.Tracer):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
            raise InputError(f"{name} = {shown(value)}: must be a finite number {'≥' if zero else '>'} 0")
    return jnp.asarray(value, jnp.float64)
