r"""Full fine-tuning as a perturbation: W + Δ with Δ dense and small, to first and second order, and how small that is.

For a symmetric W with eigenvalues :math:`\lambda_i` and orthonormal eigenvectors :math:`v_i`, let
:math:`M_{ji} = v_j^\top\Delta v_i`. The series of Rayleigh and Schrödinger begins with (*Intruder Dimensions*, §III-C, which
stops at the first order)

.. math::
    \lambda_i^{(1)} &= M_{ii}, &
    v_i^{(1)} &= \sum_{j\ne i}\frac{M_{ji}}{\lambda_i-\lambda_j}\,v_j, \\
    \lambda_i^{(2)} &= \sum_{j\ne i}\frac{M_{ji}^2}{\lambda_i-\lambda_j}, &
    v_i^{(2)} &= \sum_{j\ne i}\Big[\sum_{k\ne i}\frac{M_{jk}M_{ki}}{(\lambda_i-\lambda_j)(\lambda_i-\lambda_k)}
        - \frac{M_{ii}M_{ji}}{(\lambda_i-\lambda_j)^2}\Big]v_j - \tfrac12\|v_i^{(1)}\|^2v_i .

Singular values and vectors of a rectangular W follow from the symmetric matrix with W and :math:`W^\top` off its diagonal, whose
eigenvalues are :math:`\pm\sigma_i` and zeros.

**Where it holds.** Let Δ be a Wigner matrix of size δ, entries of variance :math:`\delta^2/N`, independent of W. Then
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
of the bulk's, unless the update is smaller than :math:`N^{-1/2}` times the matrix. What a larger one does is not chaos:
eigenvectors mix with neighbours within a distance of about :math:`\delta^2`, `overlap`, and the spectrum as a whole moves only
by the factor :math:`\sqrt{1+\delta^2}`, `scale`.

Functions of eigenvalues and vectors return the corrections, not the sums; they run in float64 and are differentiable. Eigenvalues
must be simple.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rmtjax._checks import finite, is_traced, numbers, whole
from rmtjax._errors import InputError
from rmtjax._precision import float64

__all__ = [
    "Rotation",
    "Vectors",
    "breakdown_delta",
    "first_order_eigenvalues",
    "first_order_eigenvectors",
    "first_order_singular_values",
    "first_order_singular_vectors",
    "largest_valid_delta",
    "overlap",
    "rotation",
    "scale",
    "second_order_eigenvalues",
    "second_order_eigenvectors",
    "second_order_singular_values",
    "singular_rotation",
]

Symmetric = Float[Array, "N N"] | tuple[Float[Array, "N"], Float[Array, "N N"]]
"""A symmetric matrix, or its eigenvalues and its eigenvectors as columns."""

Rectangular = Float[Array, "n m"] | tuple[Float[Array, "n k"], Float[Array, "k"], Float[Array, "k m"]]
"""A matrix, or U, σ and Vᵀ of its thin singular value decomposition."""


def _finite(name: str, a: Array) -> None:
    if a.size == 0:
        raise InputError(f"{name} has shape {a.shape}: must not be empty")
    finite(name, a)


def _simple(name: str, values: Array, slack: float = 0.0) -> None:
    if not is_traced(values):
        sizes = np.max(np.abs(values), axis=-1, keepdims=True, initial=0.0)
        if np.any(np.diff(np.sort(values, axis=-1)) <= slack * sizes):
            rounded = " up to rounding" if slack else ""
            raise InputError(f"{name} has equal entries{rounded}: perturbation theory needs them simple")


_ROUNDED = 32 * float(np.finfo(np.float64).eps)
"""Multiple of the largest value up to which values from a decomposition may be equal ones."""


def _separate(values: Array) -> Array:
    """Return values from a decomposition, all NaN where two may be equal ones that rounding keeps apart."""
    ordered = jnp.sort(values)
    equal = jnp.any(jnp.diff(ordered) <= _ROUNDED * jnp.max(jnp.abs(values)))
    return jnp.where(equal, jnp.nan, values)


def _inverse_gaps(values: Float[Array, "N"]) -> Float[Array, "N N"]:
    """Return 1/(λ_i − λ_j) at (j, i), 0 on the diagonal."""
    itself = jnp.eye(values.size, dtype=bool)
    return jnp.where(itself, 0.0, 1 / jnp.where(itself, 1.0, values - values[:, None]))


def _eigen(base: Symmetric, Delta: Array) -> tuple[Array, Array, Array]:
    """Return eigenvalues, eigenvectors and M."""
    if isinstance(base, (tuple, list)):
        values, vectors = base
        _finite("values", values)
        _finite("vectors", vectors)
        if vectors.shape != 2 * values.shape or values.ndim != 1:
            raise InputError(f"base has shapes {values.shape} and {vectors.shape}: must be (N,) and (N, N)")
    else:
        _finite("W", base)
        if base.ndim != 2 or base.shape[0] != base.shape[1]:
            raise InputError(f"W has shape {base.shape}: must be (N, N)")
        _symmetric("W", base)
        values, vectors = jnp.linalg.eigh(base)
        _simple("values", values, _ROUNDED)
        values = _separate(values) if is_traced(values) else values
    _finite("Delta", Delta)
    if Delta.shape != vectors.shape:
        raise InputError(f"Delta has shape {Delta.shape}: must be {vectors.shape} like W")
    _symmetric("Delta", Delta)
    _simple("values", values)
    return values, vectors, vectors.T @ Delta @ vectors


def _symmetric(name: str, a: Array) -> None:
    if not is_traced(a):
        gap, size = float(np.max(np.abs(a - a.T))), float(np.max(np.abs(a)))
        if gap > 1e-12 * size:
            raise InputError(f"{name} is off its transpose by {gap:.3g}: must be symmetric")


@float64(trees=("base",))
def first_order_eigenvalues(base: Symmetric, Delta: Float[Array, "n n"]) -> Float[Array, "N"]:
    r"""Return the first-order shifts :math:`\lambda_i^{(1)} = v_i^\top\Delta v_i`, in ascending order of :math:`\lambda_i`.

    Source: *Intruder Dimensions*, §III-C.

    Args:
        base: W, or its eigenvalues and eigenvectors (as columns), in whose order the answer then is.
        Delta: the symmetric update.

    Raises:
        InputError: for shapes that do not fit, asymmetric or non-finite matrices, or equal eigenvalues.
    """
    return jnp.diagonal(_eigen(base, Delta)[2])


@float64(trees=("base",))
def second_order_eigenvalues(base: Symmetric, Delta: Float[Array, "n n"]) -> Float[Array, "N"]:
    r"""Return the second-order shifts :math:`\lambda_i^{(2)} = \sum_{j\ne i}(v_j^\top\Delta v_i)^2/(\lambda_i - \lambda_j)`.

    Args:
        base, Delta: as in `first_order_eigenvalues`.

    Raises:
        InputError: as `first_order_eigenvalues`.

    Examples:
        >>> [float(x) for x in second_order_eigenvalues(np.diag([0.0, 2.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))]
        [-0.5, 0.5]
    """
    values, _, M = _eigen(base, Delta)
    return jnp.sum(M * (M * _inverse_gaps(values)), 0)


@float64(trees=("base",))
def first_order_eigenvectors(base: Symmetric, Delta: Float[Array, "n n"]) -> Float[Array, "N N"]:
    r"""Return the changes :math:`v_i^{(1)} = \sum_{j\ne i}v_j\,v_j^\top\Delta v_i/(\lambda_i - \lambda_j)` as columns.

    Source: *Intruder Dimensions*, §III-C.

    Args:
        base, Delta: as in `first_order_eigenvalues`. Given W, signs are those of `jnp.linalg.eigh`.

    Raises:
        InputError: as `first_order_eigenvalues`.
    """
    values, vectors, M = _eigen(base, Delta)
    return vectors @ (M * _inverse_gaps(values))


@float64(trees=("base",))
def second_order_eigenvectors(base: Symmetric, Delta: Float[Array, "n n"]) -> Float[Array, "N N"]:
    r"""Return the second-order changes of the eigenvectors as columns, of eigenvectors kept at length 1 (see the module).

    Args:
        base, Delta: as in `first_order_eigenvalues`.

    Raises:
        InputError: as `first_order_eigenvalues`.

    Examples:
        >>> change = second_order_eigenvectors(np.diag([0.0, 2.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))
        >>> [float(x) for x in np.abs(np.diagonal(change))]  # −½‖v⁽¹⁾‖² along each vector itself
        [0.125, 0.125]
    """
    values, vectors, M = _eigen(base, Delta)
    inverse = _inverse_gaps(values)
    first = M * inverse
    mixing = (M @ first - jnp.diagonal(M) * first) * inverse
    return vectors @ (mixing - jnp.diag(jnp.sum(first**2, 0)) / 2)


class Vectors(NamedTuple):
    """Changes of the left and right singular vectors, as columns, shapes (n, k) and (m, k)."""

    left: Float[Array, "n k"]
    right: Float[Array, "m k"]


class _Singular(NamedTuple):
    u: Array
    s: Array
    v: Array
    A: Array
    left: Array
    right: Array


def _singular(base: Rectangular, Delta: Array) -> _Singular:
    """Return U, σ, V, UᵀΔV, and what ΔV and ΔᵀU have outside the spans of U and V."""
    if isinstance(base, (tuple, list)):
        u, s, vh = base
        for name, a in (("U", u), ("values", s), ("Vh", vh)):
            _finite(name, a)
        if s.ndim != 1 or u.ndim != 2 or vh.ndim != 2 or not u.shape[1] == s.size == vh.shape[0]:
            raise InputError(f"base has shapes {u.shape}, {s.shape} and {vh.shape}: must be (n, k), (k,) and (k, m)")
        if s.size != min(u.shape[0], vh.shape[1]):
            raise InputError(f"base has {s.size} singular values: must have all {min(u.shape[0], vh.shape[1])}")
    else:
        _finite("W", base)
        if base.ndim != 2:
            raise InputError(f"W has shape {base.shape}: must be (n, m)")
        u, s, vh = jnp.linalg.svd(base, full_matrices=False)
        _simple("values", s, _ROUNDED)
        s = _separate(s) if is_traced(s) else s
    _finite("Delta", Delta)
    if Delta.shape != (u.shape[0], vh.shape[1]):
        raise InputError(f"Delta has shape {Delta.shape}: must be {(u.shape[0], vh.shape[1])} like W")
    _simple("values", s)
    if not is_traced(s) and u.shape[0] != vh.shape[1] and np.any(np.asarray(s) == 0):
        raise InputError("values has an entry 0: of a rectangular matrix it is not simple")
    right, left = Delta @ vh.T, Delta.T @ u
    A = u.T @ right
    return _Singular(u, s, vh.T, A, right - u @ A, left - vh.T @ A.T)


@float64(trees=("base",))
def first_order_singular_values(base: Rectangular, Delta: Float[Array, "rows cols"]) -> Float[Array, "k"]:
    r"""Return the first-order shifts :math:`\sigma_i^{(1)} = u_i^\top\Delta v_i`, in descending order of :math:`\sigma_i`.

    Args:
        base: W, n×m, or U, σ and :math:`V^\top` of its thin singular value decomposition.
        Delta: the update, n×m.

    Raises:
        InputError: for shapes that do not fit, non-finite matrices, or singular values that are not simple.
    """
    return jnp.diagonal(_singular(base, Delta).A)


@float64(trees=("base",))
def second_order_singular_values(base: Rectangular, Delta: Float[Array, "rows cols"]) -> Float[Array, "k"]:
    r"""Return the second-order shifts of the singular values.

    With :math:`A_{ji} = u_j^\top\Delta v_i` and P, Q the projections off the spans of U and V,

    .. math::
        \sigma_i^{(2)} = \sum_{j\ne i}\frac{(A_{ji}+A_{ij})^2}{4(\sigma_i-\sigma_j)} + \sum_{j\ne i}\frac{(A_{ji}-A_{ij})^2}
        {4(\sigma_i+\sigma_j)} + \frac{\|P\Delta v_i\|^2 + \|Q\Delta^\top u_i\|^2}{2\sigma_i}.

    Args:
        base, Delta: as in `first_order_singular_values`.

    Raises:
        InputError: as `first_order_singular_values`.

    Examples:
        >>> [float(x) for x in second_order_singular_values(np.diag([2.0, 1.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))]
        [1.0, -1.0]
    """
    _, s, _, A, left, right = _singular(base, Delta)
    even, odd = (A + A.T) / 2, (A - A.T) / 2
    within = jnp.sum(even * (even * _inverse_gaps(s)) + odd * (odd * _inverse_sums(s)), 0)
    return within + (jnp.sum(left * (left * _inverse(s)), 0) + jnp.sum(right * (right * _inverse(s)), 0)) / 2


def _inverse_sums(s: Array) -> Array:
    """Return 1/(σ_i + σ_j), 0 on the diagonal."""
    itself = jnp.eye(s.size, dtype=bool)
    return jnp.where(itself, 0.0, 1 / jnp.where(itself, 1.0, s + s[:, None]))


def _inverse(s: Array) -> Array:
    """Return 1/σ; 0 at 0, which occurs for square matrices alone, where nothing lies outside the spans."""
    return jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1.0), 0.0)


@float64(trees=("base",))
def first_order_singular_vectors(base: Rectangular, Delta: Float[Array, "rows cols"]) -> Vectors:
    r"""Return the first-order changes of the singular vectors.

    .. math::
        u_i^{(1)} &= \sum_{j\ne i}\frac{\sigma_iA_{ji}+\sigma_jA_{ij}}{\sigma_i^2-\sigma_j^2}\,u_j
        + \frac{P\Delta v_i}{\sigma_i}, \\
        v_i^{(1)} &= \sum_{j\ne i}\frac{\sigma_jA_{ji}+\sigma_iA_{ij}}{\sigma_i^2-\sigma_j^2}\,v_j
        + \frac{Q\Delta^\top u_i}{\sigma_i}.

    Args:
        base, Delta: as in `first_order_singular_values`. Given W, signs are those of `jnp.linalg.svd`.

    Raises:
        InputError: as `first_order_singular_values`.
    """
    u, s, v, A, left, right = _singular(base, Delta)
    # The fractions of both sums, apart: no squares, and no difference of products.
    even, odd = (A + A.T) / 2 * _inverse_gaps(s), (A - A.T) / 2 * _inverse_sums(s)
    return Vectors(u @ (even + odd) + left * _inverse(s), v @ (even - odd) + right * _inverse(s))


# -- the range in which it holds ---------------------------------------------------------------------------------------


def _spectrum(name: str, values: Array) -> None:
    if values.ndim == 0:
        raise InputError(f"{name} has shape {values.shape}: must be (..., N)")
    _finite(name, values)
    _simple(name, values)


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
    r"""Return the δ at which an eigenvector in a Wigner matrix's bulk has rotated by `limit`, were the spectrum equally spaced.

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
    r"""Return the σ of the bulk after a dense update, :math:`\sqrt{\sigma^2+\delta^2}`: all that happens to the whole spectrum.

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
