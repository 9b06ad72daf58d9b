r"""First and second order of eigenvalues and eigenvectors of a symmetric matrix; see `rmtjax.laws.perturbation`."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax._checks import is_traced
from rmtjax._errors import InputError
from rmtjax._precision import float64
from rmtjax.laws.perturbation._given import ROUNDED, check_array, check_simple, check_symmetric, inverse_gaps, separate

__all__ = [
    "first_order_eigenvalues",
    "first_order_eigenvectors",
    "second_order_eigenvalues",
    "second_order_eigenvectors",
]

Symmetric = Float[Array, "N N"] | tuple[Float[Array, "N"], Float[Array, "N N"]]
"""A symmetric matrix, or its eigenvalues and its eigenvectors as columns."""


def _eigen(base: Symmetric, Delta: Array) -> tuple[Array, Array, Array]:
    """Return eigenvalues, eigenvectors and M."""
    if isinstance(base, (tuple, list)):
        values, vectors = base
        check_array("values", values)
        check_array("vectors", vectors)
        if vectors.shape != 2 * values.shape or values.ndim != 1:
            raise InputError(f"base has shapes {values.shape} and {vectors.shape}: must be (N,) and (N, N)")
    else:
        check_array("W", base)
        if base.ndim != 2 or base.shape[0] != base.shape[1]:
            raise InputError(f"W has shape {base.shape}: must be (N, N)")
        check_symmetric("W", base)
        values, vectors = jnp.linalg.eigh(base)
        check_simple("values", values, ROUNDED)
        values = separate(values) if is_traced(values) else values
    check_array("Delta", Delta)
    if Delta.shape != vectors.shape:
        raise InputError(f"Delta has shape {Delta.shape}: must be {vectors.shape} like W")
    check_symmetric("Delta", Delta)
    check_simple("values", values)
    return values, vectors, vectors.T @ Delta @ vectors


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
        >>> import numpy as np
        >>> [float(x) for x in second_order_eigenvalues(np.diag([0.0, 2.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))]
        [-0.5, 0.5]
    """
    values, _, M = _eigen(base, Delta)
    return jnp.sum(M * (M * inverse_gaps(values)), 0)


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
    return vectors @ (M * inverse_gaps(values))


@float64(trees=("base",))
def second_order_eigenvectors(base: Symmetric, Delta: Float[Array, "n n"]) -> Float[Array, "N N"]:
    r"""Return the second-order changes of the eigenvectors as columns, of eigenvectors kept at length 1 (see the module).

    Args:
        base, Delta: as in `first_order_eigenvalues`.

    Raises:
        InputError: as `first_order_eigenvalues`.

    Examples:
        >>> import numpy as np
        >>> change = second_order_eigenvectors(np.diag([0.0, 2.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))
        >>> [float(x) for x in np.abs(np.diagonal(change))]  # −½‖v⁽¹⁾‖² along each vector itself
        [0.125, 0.125]
    """
    values, vectors, M = _eigen(base, Delta)
    inverse = inverse_gaps(values)
    first = M * inverse
    mixing = (M @ first - jnp.diagonal(M) * first) * inverse
    return vectors @ (mixing - jnp.diag(jnp.sum(first**2, 0)) / 2)
