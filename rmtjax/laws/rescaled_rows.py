r"""A spike on a matrix whose rows are rescaled, as α-LoRA rescales its frozen base before it adds an update.

The matrix is :math:`\operatorname{diag}(a)W + \theta uv^\top`. W is n×m with independent entries of variance 1/m,
:math:`c = n/m`; u and v are unit vectors of no special direction. With :math:`t_i = a_i^2` and w a number from 0 to
:math:`1/\max t`, the squared singular values have the edge :math:`z(w_e)` of their bulk and an outlier :math:`z(w_\theta)`,
where (``docs/derivations.md``)

.. math::
    z(w) = \frac1w + c\,\langle\frac t{1-tw}\rangle, \qquad
    w_e^2\,\langle\frac{t^2}{(1-tw_e)^2}\rangle = \frac1c, \qquad
    \langle\frac{w_\theta}{1-tw_\theta}\rangle = \frac1{\theta^2},

angle brackets for the mean over rows. There is an outlier where :math:`w_\theta < w_e`. At :math:`a = 1` all of it is the law of
the rectangular matrix in `rmtjax.laws.spikes`.

Every function takes the factors a along the last axis of ``scales``; other arguments broadcast against the axes before it.
All run in float64 and are differentiable away from the threshold.

Sources: Silverstein & Choi (J. Multivariate Anal. 54, 1995) for the bulk; Benaych-Georges & Nadakuditi (J. Multivariate
Anal. 111, 2012) for the spike.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax._checks import finite, is_traced, numbers
from rmtjax._errors import InputError
from rmtjax._precision import float64
from rmtjax.linalg.roots import bisect

__all__ = ["companion_transform", "edge", "outlier", "overlap_left", "overlap_right", "threshold"]

_Array = Float[Array, "..."]
_HALVINGS = 80


def _squares(scales, c):
    """Return t = a² in units of its largest entry, and that entry; with the checks of both arguments."""
    if jnp.ndim(scales) == 0 or scales.shape[-1] == 0:
        raise InputError(f"scales has shape {jnp.shape(scales)}: must be (..., n), a factor for each row")
    finite("scales", scales)
    numbers("c", c, 0, open_low=True)
    squares = scales**2
    largest = squares.max(-1)
    if not is_traced(largest) and not largest.all():
        raise InputError("scales has only zeros: at least one row must not vanish")
    return squares / largest[..., None], largest


def _root(function, target, low, high):
    """Return the root of an increasing function between two bounds; its derivative is that of the equation."""

    def search(_, start):
        ends = bisect(lambda y: function(y) < target, low + 0 * start, high + 0 * start, _HALVINGS)
        return (ends[0] + ends[1]) / 2

    start = jnp.zeros(jnp.broadcast_shapes(jnp.shape(target), jnp.shape(low), jnp.shape(high))) + high / 2
    return jax.lax.custom_root(
        lambda y: function(y) - target, start, search, lambda g, value: value / g(jnp.ones_like(value))
    )


def _mean(values):
    return values.mean(-1)


def _edge_root(t, c):
    r"""Return w of the bulk's edge in units of 1/max t."""

    def roughness(y):
        share = y[..., None] * t / (1 - t * y[..., None])
        return _mean(share**2)

    shape = jnp.broadcast_shapes(jnp.shape(c), t.shape[:-1])
    return _root(roughness, jnp.broadcast_to(1 / c, shape), jnp.zeros(shape), jnp.ones(shape))


def _height(y, t, c):
    """Return z in units of max t."""
    return 1 / y + c * _mean(t / (1 - t * y[..., None]))


def _strength(y, t):
    r"""Return :math:`\langle w/(1-tw)\rangle` in units of 1/max t, the inverse square of the strength whose outlier is at w."""
    return _mean(y[..., None] / (1 - t * y[..., None]))


def _spike_root(theta, t, largest, c):
    """Return w of a strength's outlier in units of 1/max t, that of the edge, and whether there is an outlier."""
    edge_root = _edge_root(t, c)
    shape = jnp.broadcast_shapes(jnp.shape(theta), edge_root.shape)
    edge_root = jnp.broadcast_to(edge_root, shape)
    wanted = largest / jnp.broadcast_to(theta, shape) ** 2
    is_out = wanted < _strength(edge_root, t)
    # Below the threshold any strength will do that has an outlier; its value is not used.
    inside = jnp.where(is_out, wanted, jax.lax.stop_gradient(_strength(edge_root, t)) / 2)
    root = _root(lambda y: _strength(y, t), inside, jnp.zeros(shape), jax.lax.stop_gradient(edge_root))
    return root, edge_root, is_out


@float64
def edge(scales: Float[Array, "... n"], c: _Array) -> _Array:
    r"""Return the upper edge of the singular values of :math:`\operatorname{diag}(a)W`, :math:`\sqrt{z(w_e)}`.

    Args:
        scales: factors a of the rows; their signs do not matter.
        c: aspect ratio n/m of rows to columns, > 0.

    Raises:
        InputError: for factors that are not finite or all 0, or c ≤ 0.

    Examples:
        >>> float(edge([1.0, 1.0], 1.0))
        2.0
    """
    t, largest = _squares(scales, c)
    return jnp.sqrt(largest * _height(_edge_root(t, c), t, c))


@float64
def companion_transform(z: _Array, scales: Float[Array, "... n"], c: _Array) -> _Array:
    r"""Return :math:`w(z) = \frac1m\operatorname{tr}(z - A^\top A)^{-1}` of the bulk, :math:`A = \operatorname{diag}(a)W`.

    It determines the bulk: the distribution of the squared singular values has no other w(z), which solves
    :math:`z = z(w)`.

    Args:
        z: a real number right of the bulk, above the square of its `edge`; NaN for any other.
        scales: factors a of the rows.
        c: aspect ratio n/m, > 0.

    Raises:
        InputError: as `edge`.

    Source:
        Silverstein & Choi 1995.

    Examples:
        >>> print(f"{companion_transform(6.25, [1.0, 1.0], 1.0):.6f}")
        0.200000
    """
    t, largest = _squares(scales, c)
    edge_root = _edge_root(t, c)
    shape = jnp.broadcast_shapes(jnp.shape(z), edge_root.shape)
    edge_root, wanted = jnp.broadcast_to(edge_root, shape), jnp.broadcast_to(z, shape) / largest
    is_right = wanted > _height(edge_root, t, c)
    inside = jnp.where(is_right, wanted, jax.lax.stop_gradient(2 * _height(edge_root, t, c)))
    # −z(w) increases up to the edge.
    root = _root(lambda y: -_height(y, t, c), -inside, jnp.zeros(shape), jax.lax.stop_gradient(edge_root))
    return jnp.where(is_right, root / largest, jnp.nan)


@float64
def threshold(scales: Float[Array, "... n"], c: _Array) -> _Array:
    r"""Return the strength θ above which a spike has an outlier, :math:`\langle w_e/(1-tw_e)\rangle^{-1/2}`.

    Args:
        scales: factors a of the rows.
        c: aspect ratio n/m, > 0.

    Raises:
        InputError: as `edge`.

    Examples:
        >>> print(f"{threshold([1.0, 1.0], 0.0625):.6f}")
        0.500000
    """
    t, largest = _squares(scales, c)
    return jnp.sqrt(largest / _strength(_edge_root(t, c), t))


@float64
def outlier(theta: _Array, scales: Float[Array, "... n"], c: _Array) -> _Array:
    r"""Return the largest singular value, :math:`\sqrt{z(w_\theta)}` above the threshold, else the edge.

    Args:
        theta: strength θ > 0.
        scales: factors a of the rows.
        c: aspect ratio n/m, > 0.

    Raises:
        InputError: as `edge`, or θ ≤ 0.

    Examples:
        >>> print(f"{outlier(2.0, [1.0, 1.0], 1.0):.6f}")
        2.500000
    """
    numbers("theta", theta, 0, open_low=True)
    t, largest = _squares(scales, c)
    root, edge_root, is_out = _spike_root(theta, t, largest, c)
    return jnp.sqrt(largest * _height(jnp.where(is_out, root, edge_root), t, c))


def _overlap(theta, scales, c, divisor):
    numbers("theta", theta, 0, open_low=True)
    t, largest = _squares(scales, c)
    y, _, is_out = _spike_root(theta, t, largest, c)
    rest = 1 - t * y[..., None]
    slope = (1 / y**2 - c * _mean((t / rest) ** 2)) / _mean(1 / rest**2)
    return jnp.where(is_out, divisor(y, theta**2 / largest, _height(y, t, c)) * slope, 0.0)


@float64
def overlap_left(theta: _Array, scales: Float[Array, "... n"], c: _Array) -> _Array:
    r"""Return the squared overlap of the outlier's left vector with u, of n coordinates; 0 below the threshold.

    .. math::
        |\langle u, \hat u\rangle|^2 = \frac1{\theta^4wz}\cdot
            \frac{w^{-2} - c\,\langle t^2/(1-tw)^2\rangle}{\langle(1-tw)^{-2}\rangle}, \qquad w = w_\theta, \quad z = z(w_\theta)

    Args:
        theta: strength θ > 0.
        scales: factors a of the rows.
        c: aspect ratio n/m, > 0.

    Raises:
        InputError: as `outlier`.

    Examples:
        >>> print(f"{overlap_left(2.0, [1.0, 1.0], 1.0):.6f}")
        0.750000
    """
    return _overlap(theta, scales, c, lambda w, square, z: 1 / (square**2 * w * z))


@float64
def overlap_right(theta: _Array, scales: Float[Array, "... n"], c: _Array) -> _Array:
    r"""Return the squared overlap of the outlier's right vector with v, of m coordinates; 0 below the threshold.

    .. math::
        |\langle v, \hat v\rangle|^2 = \frac w{\theta^2}\cdot
            \frac{w^{-2} - c\,\langle t^2/(1-tw)^2\rangle}{\langle(1-tw)^{-2}\rangle}, \qquad w = w_\theta

    Args:
        theta: strength θ > 0.
        scales: factors a of the rows.
        c: aspect ratio n/m, > 0.

    Raises:
        InputError: as `outlier`.

    Examples:
        >>> print(f"{overlap_right(2.0, [1.0, 1.0], 1.0):.6f}")
        0.750000
    """
    return _overlap(theta, scales, c, lambda w, square, z: w / square)
