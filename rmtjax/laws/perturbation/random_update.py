r"""The rotation of singular vectors by a random dense update, and the update's size up to which first order holds.

Let Δ be a Wigner matrix of size δ, entries of variance :math:`\delta^2/N`, independent of W. Then
:math:`EM_{ji}^2 = \delta^2/N` for :math:`j \ne i` and the expected first-order rotation is

.. math::
    E\|v_i^{(1)}\|^2 = \frac{\delta^2}N\sum_{j\ne i}\frac1{(\lambda_i-\lambda_j)^2} .

The nearest eigenvalues make up most of the sum. Inside the bulk of a random matrix of order N they are
:math:`1/(N\rho)` away, ρ the density of the law there. Equally spaced, the sum is :math:`\frac{\pi^2}3(N\rho)^2` and the
rotation :math:`\frac{\pi^2}3N\rho^2\delta^2`. So for an eigenvector of the bulk the first order holds for
:math:`\delta \ll N^{-1/2}` only. At the edge gaps are of order :math:`N^{-2/3}`, the sum of order :math:`N^{4/3}`, and the
condition is :math:`\delta \ll N^{-1/6}`. An outlier, a distance of order 1 from the bulk, is safe up to δ of order 1.
`largest_valid_delta` gives the δ of each eigenvector of a given spectrum, `breakdown_delta` that of equal spacing.

That a dense update "induces only a small rotation of the eigenbasis" (§III-C) is thus true of the leading directions and false
of the bulk's, unless the update is smaller than :math:`N^{-1/2}` times the matrix. A larger one does not cause chaos:
eigenvectors mix with neighbours within a distance of about :math:`\delta^2`, `overlap`, and the spectrum as a whole moves only
by the factor :math:`\sqrt{1+\delta^2}`, `scale`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rmtjax._checks import numbers, whole
from rmtjax._errors import InputError
from rmtjax._precision import float64
from rmtjax.laws.perturbation._given import check_array, check_simple

__all__ = [
    "Rotation",
    "breakdown_delta",
    "largest_valid_delta",
    "overlap",
    "rotation",
    "scale",
    "singular_rotation",
]


def _spectrum(name: str, values: Array) -> None:
    if values.ndim == 0:
        raise InputError(f"{name} has shape {values.shape}: must be (..., N)")
    check_array(name, values)
    check_simple(name, values)


def _positive(**values: ArrayLike) -> None:
    for name, value in values.items():
        numbers(name, value, 0, open_low=True)


def _crowding(values: Float[Array, "... N"]) -> Float[Array, "... N"]:
    """Return Σ_{j≠i} 1/(λ_i − λ_j)²."""
    itself = jnp.eye(values.shape[-1], dtype=bool)
    gaps = jnp.where(itself, 1.0, values[..., :, None] - values[..., None, :])
    return jnp.sum(jnp.where(itself, 0.0, 1 / gaps**2), -1)


@float64
def rotation(values: Float[Array, "... N"], delta: Float[Array, "..."]) -> Float[Array, "... N"]:
    r"""Return the expected rotation :math:`1 - \langle v_i, v_i'\rangle^2` by a Wigner update of size δ, to first order.

    .. math::
        E\|v_i^{(1)}\|^2 = \frac{\delta^2}N\sum_{j\ne i}\frac1{(\lambda_i-\lambda_j)^2}

    Exact for a Gaussian update, entries of variance :math:`\delta^2/N`; for others up to terms of relative order
    :math:`\sum_av_{ia}^2v_{ja}^2`.

    Args:
        values: all eigenvalues of W, shape (..., N).
        delta: δ ≥ 0, shape (...).

    Raises:
        InputError: for values that are not finite or not simple.
    """
    _spectrum("values", values)
    return jnp.asarray(delta)[..., None] ** 2 / values.shape[-1] * _crowding(values)


@float64
def largest_valid_delta(values: Float[Array, "... N"], *, limit: Float[ArrayLike, ""] = 0.1) -> Float[Array, "... N"]:
    r"""Return the size δ of a Wigner update at which the expected first-order rotation of each eigenvector is `limit`.

    .. math::
        \delta_i = \Big(\frac{N\cdot\text{limit}}{\sum_{j\ne i}(\lambda_i-\lambda_j)^{-2}}\Big)^{1/2}

    Below it first-order perturbation theory describes eigenvector i. In the bulk of a random matrix it is of order
    :math:`N^{-1/2}`, at the edge :math:`N^{-1/6}` (see the module). A single eigenvalue has no limit, ∞.

    Args:
        values: all eigenvalues of W, shape (..., N).
        limit: the rotation :math:`\|v^{(1)}\|^2` still called small, > 0.

    Raises:
        InputError: for values that are not finite or not simple, or a limit that is not positive.
    """
    _spectrum("values", values)
    _positive(limit=limit)
    crowding = _crowding(values)
    alone = values.shape[-1] == 1
    return jnp.full_like(values, jnp.inf) if alone else jnp.sqrt(limit * values.shape[-1] / crowding)


@float64
def breakdown_delta(
    x: Float[Array, "..."],
    N: Float[Array, "..."],
    *,
    limit: Float[ArrayLike, "..."] = 0.1,
    sigma: Float[ArrayLike, "..."] = 1.0,
) -> Float[Array, "..."]:
    r"""Return the δ at which an eigenvector in a Wigner matrix's bulk has rotated by `limit` if the spectrum is equally spaced.

    .. math::
        \delta = \Big(\frac{3\,\text{limit}}{\pi^2N\rho(x)^2}\Big)^{1/2}
        = 2\sigma^2\Big(\frac{3\,\text{limit}}{N(4\sigma^2-x^2)}\Big)^{1/2},
        \qquad \rho(x) = \frac{\sqrt{4\sigma^2-x^2}}{2\pi\sigma^2},

    from :math:`\sum_{j\ne0}j^{-2} = \pi^2/3`. Eigenvalues that fluctuate come closer than that: of the GOE the median
    eigenvector with :math:`|x| < \sigma` breaks down at 0.82 of it, for N from 40 to 800. 0 at and beyond the edge, where gaps
    have another scale.

    Args:
        x: place in the bulk.
        N: order of the matrix.
        limit: as in `largest_valid_delta`.
        sigma: σ > 0 of the Wigner matrix.

    Raises:
        InputError: for N, σ or a limit that is not positive.
    """
    _positive(N=N, sigma=sigma, limit=limit)
    room = 4 * sigma**2 - jnp.asarray(x) ** 2
    inside = room > 0
    return jnp.where(inside, 2 * sigma**2 * jnp.sqrt(3 * limit / (N * jnp.where(inside, room, 1.0))), 0.0)


class Rotation(NamedTuple):
    """Expected first-order rotations of the left and right singular vectors, shape (..., k)."""

    left: Float[Array, "... k"]
    right: Float[Array, "... k"]


@float64(keep=("n", "m"))
def singular_rotation(values: Float[Array, "... k"], delta: Float[Array, "..."], n: int, m: int) -> Rotation:
    r"""Return the expected rotation of the singular vectors of an n×m matrix by a dense update of variance δ²/m.

    .. math::
        E\|u_i^{(1)}\|^2 = \frac{\delta^2}m\Big[\sum_{j\ne i}\frac{\sigma_i^2+\sigma_j^2}{(\sigma_i^2-\sigma_j^2)^2}
        + \frac{n-k}{\sigma_i^2}\Big], \qquad k = \min(n, m),

    and the same with :math:`m-k` for :math:`v_i`. Hence the scales are those of `rotation`: :math:`N^{-1/2}` in the bulk,
    :math:`N^{-1/6}` at the upper edge.

    Args:
        values: all singular values of W, shape (..., k).
        delta: δ ≥ 0, shape (...).
        n, m: sides of W.

    Raises:
        InputError: for sides that do not fit, or values that are not finite, not simple or not positive.
    """
    _spectrum("values", values)
    k = values.shape[-1]
    for name, side in (("n", n), ("m", m)):
        whole(name, side, k)
    if min(n, m) != k:
        raise InputError(f"values has {k} entries: must have all min(n, m) = {min(n, m)}")
    _positive(values=values)
    squares = values**2
    mine, other = squares[..., :, None], squares[..., None, :]
    gap2 = (mine - other) ** 2 + jnp.eye(k)
    crowding = jnp.sum((mine + other) * (1 - jnp.eye(k)) / gap2, -1)
    size = jnp.asarray(delta)[..., None] ** 2 / m
    return Rotation(size * (crowding + (n - k) / squares), size * (crowding + (m - k) / squares))


@float64
def scale(delta: Float[Array, "..."], *, sigma: Float[ArrayLike, "..."] = 1.0) -> Float[Array, "..."]:
    r"""Return the σ of the bulk after a dense update, :math:`\sqrt{\sigma^2+\delta^2}`, its only effect on the whole spectrum.

    For a Wigner (or i.i.d. rectangular) W of size σ and an independent update of size δ the sum is one of that size: edges
    and density stretch by :math:`\sqrt{1+\delta^2/\sigma^2}`, and an outlier of strength θ goes from
    :math:`\theta+\sigma^2/\theta` to :math:`\theta+(\sigma^2+\delta^2)/\theta`.

    Args:
        delta: δ ≥ 0.
        sigma: σ > 0.

    Examples:
        >>> float(scale(0.75))
        1.25
    """
    return jnp.hypot(jnp.asarray(sigma, jnp.float64), delta)


@float64
def overlap(
    new: Float[Array, "..."],
    old: Float[Array, "..."],
    delta: Float[Array, "..."],
    *,
    sigma: Float[ArrayLike, "..."] = 1.0,
) -> Float[Array, "..."]:
    r"""Return N times the mean squared overlap of an eigenvector of W + Δ at λ′ with one of W at λ, for any dense update.

    .. math::
        N\,E\langle v, v'\rangle^2 \to \frac{\delta^2}{|\lambda' - \lambda - \delta^2m(\lambda')|^2}, \qquad
        m(\lambda') = \frac{\lambda' - i\sqrt{4s^2-\lambda'^2}}{2s^2}, \quad s^2 = \sigma^2+\delta^2 ,

    a Cauchy line of half-width :math:`\delta^2\pi\rho(\lambda')`, for W a Wigner matrix of size σ. It is what takes the place of
    the first order, :math:`\delta^2/(\lambda-\lambda')^2`, where eigenvalues are closer than that. From the subordination
    :math:`G_{W+\Delta}(z) \simeq G_W(z - \delta^2m(z))`; Ledoit & Péché, *PTRF* 151, 2011; Allez & Bouchaud, *PRE* 86,
    2012.

    Args:
        new: λ′, inside the new bulk, :math:`|\lambda'| < 2s`; the law at the edge beyond.
        old: λ.
        delta: δ > 0.
        sigma: σ > 0.
    """
    s2 = sigma**2 + delta**2
    room = 4 * s2 - new**2
    inside = room > 0
    imaginary = jnp.where(inside, jnp.sqrt(jnp.where(inside, room, 1.0)), 0.0) / (2 * s2)
    edge = 2 * jnp.sqrt(s2)
    real = jnp.clip(new, -edge, edge) / (2 * s2)
    return delta**2 / ((new - old - delta**2 * real) ** 2 + (delta**2 * imaginary) ** 2)
