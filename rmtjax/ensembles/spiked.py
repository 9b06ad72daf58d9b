r"""Spikes: a random base and a low-rank update, the models of Baik, Ben Arous and Péché.

.. math::
    W + \sum_k \theta_k u_ku_k^*, \qquad W + \sum_k \theta_k u_kv_k^*, \qquad \Sigma^{1/2}X, \quad
    \Sigma = I + \sum_k(\ell_k - 1)u_ku_k^* .

The base is any matrix, from `wigner`, `wishart` or elsewhere, so every ensemble can carry every spike; the result has its
dtype. Directions are given as columns of unit norm or drawn from Haar measure with a key, which must not be the base's.
The units are those of a base with σ = 1: the spike shows in the spectrum for θ > 1, θ > c^{1/4} and ℓ > 1 + √c.

Sources: Baik, Ben Arous & Péché, *Ann. Prob.* 33 (2005); Péché, *PTRF* 134 (2006); Benaych-Georges & Nadakuditi, *Adv.
Math.* 227 (2011) and *J. Multivariate Anal.* 111 (2012).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Inexact, Key

from rmtjax._checks import finite, is_traced
from rmtjax._errors import InputError, shown
from rmtjax._precision import float64
from rmtjax.ensembles.entries import floating
from rmtjax.ensembles.haar import orthogonal, unitary

__all__ = ["low_rank_update", "spiked_covariance", "spiked_rectangular", "spiked_wigner"]

_ALL = ("base", "theta", "ell", "directions", "left", "right", "key", "u", "v")


def _matrix(name, value, *, hermitian=False):
    """Return a checked base and its real dtype."""
    value = value if isinstance(value, jax.Array) else np.asarray(value)
    if value.ndim != 2 or 0 in value.shape:
        raise InputError(f"{name} has shape {value.shape}: must be a matrix with at least one row and column")
    if hermitian and value.shape[0] != value.shape[1]:
        raise InputError(f"{name} has shape {value.shape}: must be square")
    real = np.finfo(floating(value.dtype, name=name)).dtype
    finite(name, value)
    if not is_traced(value):
        matrix = np.asarray(value)
        asymmetry = np.abs(matrix - matrix.conj().T).max() if hermitian else 0.0
        if asymmetry > 100 * np.finfo(real).eps * np.abs(matrix).max():
            raise InputError(f"{name} differs from its adjoint by {asymmetry:.3g}: must be Hermitian")
    return jnp.asarray(value), real


def _strengths(name, value, rank_limit, dtype, neutral):
    """Return θ or ℓ as an array (r,) of the base's real dtype, after a check that no value makes a trivial spike."""
    known = not is_traced(*jax.tree.leaves(value))
    value = value if known else jnp.asarray(value)
    shape = np.shape(value)
    if len(shape) > 1:
        raise InputError(f"{name} has shape {shape}: must be one number or a one-dimensional list")
    rank = shape[0] if shape else 1
    if rank == 0:
        raise InputError(f"{name} is empty: must hold at least one strength")
    if rank > rank_limit:
        raise InputError(f"{name} holds {rank} strengths: must hold at most {rank_limit}, the dimension")
    if known:
        strengths = np.atleast_1d(np.asarray(value))
        if strengths.dtype.kind not in "iuf":
            raise InputError(f"{name} = {shown(value)}: must be real numbers")
        with np.errstate(over="ignore"):
            converted = strengths.astype(dtype)
        bad = ~np.isfinite(converted) | (converted == neutral) | ((converted <= 0) if neutral else False)
        if bad.any():
            allowed = "finite, > 0 and not 1, which is no spike" if neutral else "finite and not 0, which is no spike"
            raise InputError(f"{name} = {strengths[bad][0]:g}: must be {allowed}, in {dtype.name}")
    return jnp.atleast_1d(jnp.asarray(value, dtype))


def _directions(name, value, key, n, r, dtype, *, orthogonal_only=False):
    """Return unit columns (n, r) of the base's dtype: the given ones, or a Haar frame."""
    if value is None:
        if key is None:
            raise InputError(f"{name} is None: must be given, or a key to draw Haar directions")
        return (orthogonal if dtype.kind == "f" else unitary)(key, n, r, dtype)
    value = value if isinstance(value, jax.Array) else np.asarray(value)
    if value.dtype.kind not in "iufc":
        raise InputError(f"{name} = {shown(value)}: must be numbers")
    columns = value[:, None] if value.ndim == 1 else value
    if columns.shape != (n, r):
        raise InputError(f"{name} has shape {value.shape}: must be ({n}, {r}), a unit column for each strength")
    if columns.dtype.kind == "c" and dtype.kind == "f":
        raise InputError(f"{name} has dtype {columns.dtype.name}: must be real for a real base")
    if not is_traced(columns):
        host = np.asarray(columns)
        exact = host.astype(np.complex128 if host.dtype.kind == "c" else np.float64)
        tolerance = max(1e-6, 100 * float(jnp.finfo(host.dtype).eps) if host.dtype.kind in "fc" else 0.0)
        gram = exact.conj().T @ exact
        norms = np.sqrt(np.diagonal(gram).real)
        bad = ~(np.abs(norms - 1) <= tolerance)
        if bad.any():
            k = int(np.argmax(bad))
            raise InputError(f"{name}: column {k} has norm {norms[k]:.7g}; must be 1")
        overlap = np.abs(gram - np.diag(np.diagonal(gram)))
        if orthogonal_only and overlap.max() > tolerance:
            j, k = sorted(np.unravel_index(np.argmax(overlap), overlap.shape))
            raise InputError(f"{name}: columns {j} and {k} have inner product {overlap[j, k]:.7g}; must be orthogonal")
    return jnp.asarray(columns).astype(dtype)


@float64(keep=_ALL)
def low_rank_update(
    u: ArrayLike, theta: ArrayLike | Sequence[ArrayLike], v: ArrayLike | None = None
) -> Inexact[Array, "n m"]:
    r"""Return :math:`\sum_k\theta_ku_kv_k^*`; Hermitian (up to rounding) if v is omitted and taken to be u.

    Nothing is asked of the columns: neither unit norms nor orthogonality.

    Args:
        u: columns :math:`u_k`, shape (n, r).
        theta: real strengths, shape (r,).
        v: columns :math:`v_k`, shape (m, r).

    Raises:
        InputError: for columns of a dtype that matrices cannot have.
    """
    u = jnp.asarray(u)
    v = u if v is None else jnp.asarray(v)
    real = jnp.finfo(floating(u.dtype, name="u")).dtype
    floating(v.dtype, name="v")
    return jnp.matmul(u * jnp.asarray(theta, real), v.conj().T, precision=jax.lax.Precision.HIGHEST)


@float64(keep=_ALL)
def spiked_wigner(
    base: ArrayLike,
    theta: ArrayLike | Sequence[ArrayLike],
    directions: ArrayLike | None = None,
    *,
    key: Key[Array, ""] | None = None,
) -> Inexact[Array, "n n"]:
    r"""Return the spiked Wigner matrix :math:`W + \sum_k\theta_ku_ku_k^*`.

    Directions need not be orthogonal. If they are not, the update is still the sum, and its non-zero eigenvalues are not
    the :math:`\theta_k` but those of :math:`\Theta^{1/2}U^*U\Theta^{1/2}` (for θ > 0), to which the laws then apply.

    Args:
        base: the Hermitian W, shape (n, n).
        theta: θ ≠ 0 of either sign, a number or shape (r,), r ≤ n.
        directions: unit columns :math:`u_k`, shape (n, r), or (n,) where r = 1; None for a Haar frame.
        key: a typed PRNG key for the Haar frame.

    Raises:
        InputError: for a base, strengths or directions that are not admissible. Values are looked at unless traced.
    """
    base, real = _matrix("base", base, hermitian=True)
    n = base.shape[0]
    theta = _strengths("theta", theta, n, real, 0)
    return base + low_rank_update(_directions("directions", directions, key, n, theta.size, base.dtype), theta)


@float64(keep=_ALL)
def spiked_rectangular(
    base: ArrayLike,
    theta: ArrayLike | Sequence[ArrayLike],
    left: ArrayLike | None = None,
    right: ArrayLike | None = None,
    *,
    key: Key[Array, ""] | None = None,
) -> Inexact[Array, "n m"]:
    r"""Return the spiked matrix :math:`W + \sum_k\theta_ku_kv_k^*`, the weight matrix of the intruder paper after LoRA.

    Directions need not be orthogonal within a side. If they are not, the update is still the sum, and its singular values
    are not the :math:`|\theta_k|`.

    Args:
        base: W, shape (n, m).
        theta: θ ≠ 0, a number or shape (r,), r ≤ min(n, m).
        left: unit columns :math:`u_k`, shape (n, r), or (n,) where r = 1; None for a Haar frame.
        right: unit columns :math:`v_k`, shape (m, r), or (m,) where r = 1; None for a Haar frame.
        key: a typed PRNG key for the Haar frames, independent of each other.

    Raises:
        InputError: for a base, strengths or directions that are not admissible. Values are looked at unless traced.
    """
    base, real = _matrix("base", base)
    n, m = base.shape
    theta = _strengths("theta", theta, min(n, m), real, 0)
    left_key, right_key = (None, None) if key is None else jax.random.split(key)
    u = _directions("left", left, left_key, n, theta.size, base.dtype)
    v = _directions("right", right, right_key, m, theta.size, base.dtype)
    return base + low_rank_update(u, theta, v)


@float64(keep=_ALL)
def spiked_covariance(
    base: ArrayLike,
    ell: ArrayLike | Sequence[ArrayLike],
    directions: ArrayLike | None = None,
    *,
    key: Key[Array, ""] | None = None,
) -> Inexact[Array, "p n"]:
    r"""Return data :math:`\Sigma^{1/2}X` with population covariance :math:`\Sigma = I + \sum_k(\ell_k-1)u_ku_k^*`.

    :math:`\Sigma^{1/2} = I + \sum_k(\sqrt{\ell_k}-1)u_ku_k^*` is the symmetric root. `rmtjax.ensembles.wishart.
    sample_covariance` makes the sample covariance of the result. The :math:`\ell_k` are eigenvalues of Σ, so the
    directions must be orthogonal; this is not looked at where they are traced.

    Args:
        base: white data X, independent entries of variance 1, a sample a column, shape (p, n).
        ell: population eigenvalues ℓ > 0, ℓ ≠ 1, a number or shape (r,), r ≤ p.
        directions: orthonormal columns :math:`u_k`, shape (p, r), or (p,) where r = 1; None for a Haar frame.
        key: a typed PRNG key for the Haar frame.

    Raises:
        InputError: for a base, eigenvalues or directions that are not admissible. Values are looked at unless traced.
    """
    base, real = _matrix("base", base)
    p = base.shape[0]
    ell = _strengths("ell", ell, p, real, 1)
    u = _directions("directions", directions, key, p, ell.size, base.dtype, orthogonal_only=True)
    shadow = jnp.matmul(u.conj().T, base, precision=jax.lax.Precision.HIGHEST)
    return base + jnp.matmul(u, (jnp.sqrt(ell) - 1)[:, None] * shadow, precision=jax.lax.Precision.HIGHEST)
