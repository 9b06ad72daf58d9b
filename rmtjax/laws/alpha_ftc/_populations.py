r"""Covariances in the forms that a user may have, with the few functions of them that the laws need.

A law meets a covariance Σ only through its resolvent :math:`C = (\Sigma+\kappa)^{-1}`: in products of C, Σ and vectors, in the
degrees of freedom :math:`\operatorname{tr}\Sigma C` and :math:`\operatorname{tr}(\Sigma C)^2`, and in
:math:`\operatorname{tr}(C\Sigma C\,\tilde C\tilde\Sigma\tilde C)` with a second covariance of the same form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import dot  # unlike `@`, it has derivatives in float64 where they are taken in a program without it
from jaxtyping import Array, Float

from rmtjax._checks import finite, is_traced, number, numbers
from rmtjax._errors import InputError, shown
from rmtjax._precision import as_array
from rmtjax.laws.alpha_ftc.forms import RepeatedEigenvalues, SpikedCovariance
from rmtjax.linalg.inverse import positive_definite_inverse

__all__ = ["At", "Diagonal", "Matrix", "Population", "Spiked", "populations"]

_ORTHONORMAL = 1e-8
"""Largest entry of :math:`U^\top U - I` of a basis that counts as orthonormal."""


class At(NamedTuple):
    r"""A covariance at one κ.

    Attributes:
        df2: :math:`\operatorname{tr}(\Sigma C)^2`.
        multiply: products of Σ with vectors, a vector a column.
        solve: products of C with them.
        spread: :math:`C\Sigma C`, in the form that `overlap` of the population takes.
    """

    df2: Array
    multiply: Any
    solve: Any
    spread: Any


class Matrix(NamedTuple):
    """A covariance given as a matrix."""

    sigma: Float[Array, "p p"]

    def _resolvent(self, kappa):
        return positive_definite_inverse(self.sigma + kappa * jnp.eye(len(self.sigma)))

    def mean_eigenvalue(self):
        return jnp.trace(self.sigma) / len(self.sigma)

    def mean_square_eigenvalue(self):
        return jnp.sum(self.sigma**2) / len(self.sigma)

    def size(self):
        return len(self.sigma)

    def degrees(self, kappa):
        """Return tr ΣC and tr (ΣC)², the latter with an absolute error of p rounding errors."""
        C = self._resolvent(kappa)
        first = jnp.sum(self.sigma * C)
        return first, first - kappa * (jnp.trace(C) - kappa * jnp.sum(C * C))

    def at(self, kappa):
        C = self._resolvent(kappa)
        product = dot(self.sigma, C)
        return At(jnp.sum(product * product.T), lambda x: dot(self.sigma, x), lambda x: dot(C, x), dot(C, product))

    def overlap(self, spread, other):
        return jnp.sum(spread * other)

    def inner(self, x, y):
        return dot(x.T, y)


class Diagonal(NamedTuple):
    """A covariance that is diagonal where the means' coordinates are given; each entry stands for a number of coordinates."""

    eigenvalues: Float[Array, "g"]
    counts: Float[Array, "g"]

    def mean_eigenvalue(self):
        return jnp.sum(self.counts * self.eigenvalues) / self.counts.sum()

    def mean_square_eigenvalue(self):
        return jnp.sum(self.counts * self.eigenvalues**2) / self.counts.sum()

    def size(self):
        return self.counts.sum()

    def degrees(self, kappa):
        share = self.eigenvalues / (self.eigenvalues + kappa)
        return jnp.sum(self.counts * share), jnp.sum(self.counts * share**2)

    def at(self, kappa):
        column = self.eigenvalues[:, None]
        C = 1 / (column + kappa)
        return At(self.degrees(kappa)[1], lambda x: column * x, lambda x: C * x, (column * C**2)[:, 0])

    def overlap(self, spread, other):
        return jnp.sum(self.counts * spread * other)

    def inner(self, x, y):
        return dot(x.T, y)


class _Function(NamedTuple):
    """A function of a spiked covariance: its value on all directions, and by how much it differs on those of the basis."""

    common: Array
    extra: Float[Array, "r"]


@partial(jax.tree_util.register_dataclass, data_fields=("eigenvalues", "scale", "p", "gram"), meta_fields=("start",))
@dataclasses.dataclass(frozen=True)
class Spiked:
    r"""A spiked covariance; vectors are coefficients of given vectors Z, of which the products :math:`Z^\top Z` are known.

    Attributes:
        eigenvalues: of the directions of the basis, (r,).
        scale: of all others.
        p: dimension.
        gram: :math:`Z^\top Z`, (q, q).
        start: the basis is columns ``start`` to ``start + r`` of Z.
    """

    eigenvalues: Float[Array, "r"]
    scale: Float[Array, ""]
    p: Float[Array, ""]
    gram: Float[Array, "q q"]
    start: int

    def _columns(self):
        return slice(self.start, self.start + len(self.eigenvalues))

    def _function(self, f):
        common = f(self.scale)
        return _Function(common, f(self.eigenvalues) - common)

    def _trace(self, f):
        return (self.p - len(self.eigenvalues)) * f(self.scale) + f(self.eigenvalues).sum()

    def mean_eigenvalue(self):
        return self._trace(lambda x: x) / self.p

    def mean_square_eigenvalue(self):
        return self._trace(lambda x: x**2) / self.p

    def size(self):
        return self.p

    def degrees(self, kappa):
        return self._trace(lambda x: x / (x + kappa)), self._trace(lambda x: (x / (x + kappa)) ** 2)

    def at(self, kappa):
        sigma, C = self._function(lambda x: x), self._function(lambda x: 1 / (x + kappa))
        return At(
            self._trace(lambda x: (x / (x + kappa)) ** 2),
            lambda x: self._apply(sigma, x),
            lambda x: self._apply(C, x),
            (self._function(lambda x: x / (x + kappa) ** 2), self.start),
        )

    def _apply(self, function, x):
        columns = self._columns()
        return (function.common * x).at[columns].add(function.extra[:, None] * dot(self.gram[columns], x))

    def overlap(self, spread, other):
        (mine, start), (theirs, other_start) = spread, other
        angles = self.gram[start : start + len(mine.extra), other_start : other_start + len(theirs.extra)] ** 2
        return (
            self.p * mine.common * theirs.common
            + mine.common * theirs.extra.sum()
            + theirs.common * mine.extra.sum()
            + jnp.sum(mine.extra[:, None] * angles * theirs.extra)
        )

    def inner(self, x, y):
        return dot(dot(x.T, self.gram), y)


Population = Matrix | Diagonal | Spiked


def populations(
    sigmas: Sequence[tuple[str, Any]], vectors: Sequence[tuple[str, Any]]
) -> tuple[list[Population], list[Float[Array, "q"]]]:
    """Bring covariances into one form, and vectors into the coordinates of that form.

    Args:
        sigmas: names and covariances: each a number, eigenvalues (p,), a matrix (p, p), a `SpikedCovariance` or
            `RepeatedEigenvalues`.
        vectors: names and vectors.

    Returns:
        The covariances, and the vectors as they are multiplied with them.

    Raises:
        InputError: naming the argument, where a covariance or a vector cannot be used, or they do not fit together.
    """
    sigmas = [(name, _array(name, sigma)) for name, sigma in sigmas]
    vectors = [(name, _vector(name, vector)) for name, vector in vectors]
    k = len(vectors[0][1])
    for name, vector in vectors[1:]:
        if len(vector) != k:
            raise InputError(f"{name} has {len(vector)} coordinates: must be {k}, as many as {vectors[0][0]}")
    for name, sigma in sigmas:
        _check(name, sigma, k)
    kinds = [_kind(sigma) for _, sigma in sigmas]
    if "matrix" in kinds:
        for (name, sigma), kind in zip(sigmas, kinds, strict=True):
            if kind == "repeated" or (kind == "spiked" and sigma.p is not None and sigma.p != k):
                raise InputError(
                    f"{name} does not have {k} coordinates of its own, as the covariance that is a matrix has"
                )
        return [Matrix(_as_matrix(sigma, k)) for _, sigma in sigmas], [vector for _, vector in vectors]
    if "spiked" in kinds:
        for (name, _), kind in zip(sigmas, kinds, strict=True):
            if kind not in ("spiked", "number"):
                raise InputError(
                    f"{name} is not a SpikedCovariance, but another covariance is: give both in the same form"
                )
        return _spiked(sigmas, vectors, k)
    counts = [(name, sigma.counts) for (name, sigma), kind in zip(sigmas, kinds, strict=True) if kind == "repeated"]
    for (name, sigma), kind in zip(sigmas, kinds, strict=True):
        if counts and kind == "eigenvalues":
            raise InputError(f"{name} has no counts, as {counts[0][0]} has: give both as RepeatedEigenvalues")
        if kind == "repeated" and not is_traced(sigma.counts, counts[0][1]) and np.any(sigma.counts != counts[0][1]):
            raise InputError(f"{name}.counts differ from {counts[0][0]}.counts: must be the same, of a common basis")
    each = counts[0][1] if counts else jnp.ones(k)
    values = [
        sigma.eigenvalues if kind == "repeated" else sigma for (_, sigma), kind in zip(sigmas, kinds, strict=True)
    ]
    return [Diagonal(jnp.broadcast_to(value, k), each) for value in values], [vector for _, vector in vectors]


def _spiked(sigmas, vectors, k):
    given = [(name, sigma.p) for name, sigma in sigmas if isinstance(sigma, SpikedCovariance) and sigma.p is not None]
    p = given[0][1] if given else k
    for name, size in given[1:]:
        if not is_traced(size, p) and size != p:
            raise InputError(f"{name}.p = {shown(size)}: must be {shown(p)}, as {given[0][0]}.p")
    spiked = [
        sigma if isinstance(sigma, SpikedCovariance) else SpikedCovariance(jnp.zeros(0), jnp.zeros((k, 0)), sigma)
        for _, sigma in sigmas
    ]
    columns = jnp.concatenate([*(sigma.basis for sigma in spiked), jnp.stack([v for _, v in vectors], 1)], 1)
    gram = dot(columns.T, columns)
    starts = np.cumsum([0, *(sigma.basis.shape[1] for sigma in spiked)]).tolist()
    members = [
        Spiked(sigma.eigenvalues, sigma.scale, jnp.asarray(p, float), gram, start)
        for sigma, start in zip(spiked, starts, strict=False)
    ]
    return members, list(jnp.eye(len(gram))[starts[-1] :])


def _kind(sigma: Any) -> str:
    if isinstance(sigma, SpikedCovariance):
        return "spiked"
    return "repeated" if isinstance(sigma, RepeatedEigenvalues) else ("number", "eigenvalues", "matrix")[sigma.ndim]


def _as_matrix(sigma, k):
    if isinstance(sigma, SpikedCovariance):
        return sigma.scale * jnp.eye(k) + dot(sigma.basis * (sigma.eigenvalues - sigma.scale), sigma.basis.T)
    return sigma if sigma.ndim == 2 else jnp.diag(jnp.broadcast_to(sigma, k))


def _array(name: str, sigma: Any) -> Any:
    if isinstance(sigma, SpikedCovariance):
        return sigma._replace(**{field: jnp.asarray(getattr(sigma, field), float) for field in sigma._fields[:3]})
    if isinstance(sigma, RepeatedEigenvalues):
        return RepeatedEigenvalues(*(jnp.asarray(field, float) for field in sigma))
    array = jnp.asarray(as_array(name, sigma) if type(sigma) in (list, tuple) else sigma, float)
    if array.ndim > 2:
        raise InputError(f"{name} has shape {array.shape}: must be a number, eigenvalues (p,) or a matrix (p, p)")
    return array


def _vector(name: str, vector: Any) -> Array:
    array = jnp.asarray(as_array(name, vector) if type(vector) in (list, tuple) else vector, float)
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}: must be a vector (p,)")
    finite(name, array)
    return array


def _check(name: str, sigma: Any, k: int) -> None:
    """Raise InputError where a covariance is none, or has another size than the vectors."""
    if isinstance(sigma, SpikedCovariance):
        _check_spiked(name, sigma, k)
        return
    if isinstance(sigma, RepeatedEigenvalues):
        for field, values in sigma._asdict().items():
            if values.shape != (k,):
                raise InputError(
                    f"{name}.{field} has shape {values.shape}: must be ({k},), as the means have {k} coordinates"
                )
            numbers(f"{name}.{field}", values, int(field == "counts"))
        return
    finite(name, sigma)
    if sigma.ndim and sigma.shape != (k,) * sigma.ndim:
        raise InputError(
            f"{name} has shape {sigma.shape}: must be {(k,) * sigma.ndim}, as the means have {k} coordinates"
        )
    if sigma.ndim < 2:
        numbers(name, sigma, 0)
        return
    if is_traced(sigma):
        return
    host = np.asarray(sigma)
    scale = np.abs(host).max(initial=0.0)
    gap = np.abs(host - host.T).max(initial=0.0)
    if gap > 1e-10 * scale:
        raise InputError(f"{name} is not symmetric: entries across the diagonal differ by up to {gap:.3g}")
    rounding = 1e-12 * len(host) * scale
    try:
        np.linalg.cholesky(host + rounding * np.eye(len(host)))
    except np.linalg.LinAlgError:
        least = np.linalg.eigvalsh(host)[0]
        if least < -rounding:
            raise InputError(f"{name} has the eigenvalue {least:.6g}: a covariance has none below 0") from None


def _check_spiked(name: str, sigma: SpikedCovariance, k: int) -> None:
    if sigma.eigenvalues.ndim != 1 or sigma.basis.shape != (k, len(sigma.eigenvalues)):
        shapes = f"eigenvalues {sigma.eigenvalues.shape} and a basis {sigma.basis.shape}"
        raise InputError(f"{name} has {shapes}: must be (r,) and ({k}, r), as the means have {k} coordinates")
    numbers(f"{name}.eigenvalues", sigma.eigenvalues, 0)
    numbers(f"{name}.scale", sigma.scale, 0)
    finite(f"{name}.basis", sigma.basis)
    if sigma.p is not None and not is_traced(sigma.p):
        number(f"{name}.p", sigma.p, k)
    if not is_traced(sigma.basis):
        host = np.asarray(sigma.basis)
        worst = np.abs(host.T @ host - np.eye(host.shape[1])).max(initial=0.0)
        if worst > _ORTHONORMAL:
            raise InputError(
                f"{name}.basis is not orthonormal: its columns' products differ from 0 and 1 by up to {worst:.3g}"
            )
