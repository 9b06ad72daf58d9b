"""Covariances of any dimension, given by a few numbers."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float

__all__ = ["RepeatedEigenvalues", "SpikedCovariance"]


class SpikedCovariance(NamedTuple):
    r"""A covariance with few eigenvalues of its own and one for all other directions.

    .. math::
        \Sigma = s\,(I - UU^\top) + U\Lambda U^\top

    It is what `sklearn.decomposition.PCA` fits: ``explained_variance_``, the columns of ``components_.T`` and
    ``noise_variance_``.

    Attributes:
        eigenvalues: the diagonal of Λ, shape (r,), ≥ 0.
        basis: U with orthonormal columns, shape (k, r). Where k < p, the rows are the first k coordinates; the others are 0.
        scale: the eigenvalue s ≥ 0 of every direction orthogonal to U.
        p: dimension; by default k. The means that go with it have k coordinates as well, and 0 in the others.

    Examples:
        >>> import numpy as np
        >>> from rmtjax.laws import alpha_ftc
        >>> spiked = alpha_ftc.SpikedCovariance([5.0], [[1.0], [0.0]], 1.0, p=10**9)
        >>> law = alpha_ftc.covariance_scalars(spiked, [0.6, 0.8], 5e8, 1.0, spiked, [0.0, 1.0], 2e9, 1.0)
        >>> print(f"{alpha_ftc.accuracy(law, 1.0):.4f}")
        0.7220
    """

    eigenvalues: Float[Array, "r"]
    basis: Float[Array, "k r"]
    scale: Float[Array, ""] = 1.0
    p: int | None = None


class RepeatedEigenvalues(NamedTuple):
    r"""A covariance with few distinct eigenvalues, each of any number of coordinates.

    The means that go with it have a coordinate for each eigenvalue: they lie along one of its directions. An eigenvalue
    may be listed again, for a second direction of its eigenspace.

    Attributes:
        eigenvalues: ≥ 0, shape (g,).
        counts: how often each is repeated, ≥ 1, shape (g,); the dimension p is their sum.

    Examples:
        Half of a billion coordinates have variance 4 and the others 1; both means lie in the first half.

        >>> from rmtjax.laws import alpha_ftc
        >>> half = alpha_ftc.RepeatedEigenvalues([4.0, 4.0, 1.0], [1, 5e8 - 1, 5e8])
        >>> law = alpha_ftc.covariance_scalars(half, [0.6, 0.8, 0.0], 5e8, 1.0, half, [1.0, 0.0, 0.0], 2e9, 1.0)
        >>> print(f"{alpha_ftc.accuracy(law, 1.0):.4f}")
        0.5810
    """

    eigenvalues: Float[Array, "g"]
    counts: Float[Array, "g"]
