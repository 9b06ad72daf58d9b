r"""Spiked random matrices: position, alignment and fluctuation of the outlier (BBP transition).

Four models, noise of variance σ² = 1 unless it is named, θ > 0 the strength of the spike, u and v unit vectors:

- symmetric, :math:`W + \theta uu^\top`, W Wigner of variance 1/N: threshold 1, edge 2;
- rectangular, :math:`W + \theta uv^\top`, W n×m of variance 1/m, :math:`c = n/m`: threshold :math:`c^{1/4}`, edge
  :math:`1 + \sqrt c`, for singular values;
- sample covariance with one population eigenvalue ℓ, :math:`c = p/n`: threshold :math:`1 + \sqrt c`, edge
  :math:`(1+\sqrt c)^2`;
- square i.i.d., the *eigenvalues* of :math:`W + \theta uv^\top`: outlier :math:`\theta v^\top u` where its modulus is above 1.

Below its threshold a spike leaves no outlier: the largest value sits at the edge and its vector forgets the spike. Orthogonal
spikes of different strengths do not interact, so every function works elementwise on arrays of strengths;
degenerate or oblique ones act through the singular values of the whole update, `update_strengths`. All functions broadcast,
run in float64 and are differentiable away from the threshold; there the derivative from below is taken.

Sources: Baik, Ben Arous & Péché (Ann. Probab. 33, 2005); Péché (PTRF 134, 2006); Paul (Statist. Sinica 17, 2007);
Benaych-Georges & Nadakuditi (Adv. Math. 227, 2011; J. Multivariate Anal. 111, 2012); Tao (PTRF 155, 2013);
*Intruder Dimensions*, §II-B and §IV, with its errata.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtjax._checks import one_of
from rmtjax._errors import InputError
from rmtjax._precision import float64

__all__ = [
    "covariance_outlier",
    "covariance_overlap",
    "covariance_strength",
    "covariance_threshold",
    "covariance_variance",
    "iid_eigenvalue_outlier",
    "rectangular_outlier",
    "rectangular_overlap",
    "rectangular_strength",
    "rectangular_threshold",
    "rectangular_variance",
    "update_strengths",
    "wigner_outlier",
    "wigner_overlap",
    "wigner_strength",
    "wigner_variance",
]

_Array = Float[Array, "..."]


def _excess(value, edge):
    """Return the height of a value above an edge; 0 if only rounding puts it below, NaN if it is below."""
    excess = value - edge
    return jnp.where(excess < -8 * jnp.finfo(jnp.float64).eps * edge, jnp.nan, jnp.maximum(excess, 0.0))


@float64
def wigner_outlier(theta: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the largest eigenvalue :math:`\theta + \sigma^2/\theta` for θ > σ, else the edge 2σ.

    Args:
        theta: strength θ > 0.
        sigma: :math:`\sigma^2/N` is the variance of the entries.

    Source:
        *Intruder Dimensions*, §IV-B; Péché 2006.

    Examples:
        >>> float(wigner_outlier(2.0))
        2.5
    """
    strong = jnp.maximum(theta, sigma)
    return strong + sigma**2 / strong


@float64
def wigner_overlap(theta: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the squared overlap :math:`1 - \sigma^2/\theta^2` of the top eigenvector with the spike; 0 below the threshold.

    Args:
        theta: strength θ > 0.
        sigma: as in `wigner_outlier`.
    """
    return jnp.where(theta > sigma, 1 - (sigma / jnp.maximum(theta, sigma)) ** 2, 0.0)


@float64
def wigner_variance(theta: _Array, *, sigma: _Array | float = 1.0, beta: _Array | float = 1.0) -> _Array:
    r"""Return the limit :math:`\frac2\beta\sigma^2(1 - \sigma^2/\theta^2)` of N times the outlier's variance; NaN at and below σ.

    For Gaussian W, or a spike spread over many coordinates. At the threshold the fluctuation changes to the larger scale
    :math:`N^{-2/3}` of Tracy and Widom.

    Args:
        theta: strength θ > σ.
        beta: 1 for real, 2 for complex, 4 for quaternion entries.
        sigma: as in `wigner_outlier`.
    """
    return jnp.where(theta > sigma, 2 / beta * sigma**2 * (1 - (sigma / jnp.maximum(theta, sigma)) ** 2), jnp.nan)


@float64
def wigner_strength(outlier: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the strength θ > σ that explains an outlier :math:`\lambda`, the inverse of `wigner_outlier`; NaN below 2σ."""
    excess = _excess(outlier, 2 * sigma)
    return outlier / 2 + jnp.sqrt(excess) * jnp.sqrt(excess + 4 * sigma) / 2


@float64
def rectangular_threshold(c: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the strength :math:`\sigma c^{1/4}` above which a spike of a rectangular matrix has an outlier.

    Args:
        c: aspect ratio n/m of rows to columns.
        sigma: :math:`\sigma^2/m` is the variance of the entries.
    """
    return sigma * c**0.25


@float64
def rectangular_outlier(theta: _Array, c: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the largest singular value :math:`\sqrt{(\sigma^2+\theta^2)(c\sigma^2+\theta^2)}/\theta` above the threshold.

    Else the edge :math:`\sigma(1+\sqrt c)`. For c = 1 it is :math:`\theta + \sigma^2/\theta`.

    Args:
        theta: strength θ > 0.
        c, sigma: as in `rectangular_threshold`.

    Source:
        Benaych-Georges & Nadakuditi 2012; *Intruder Dimensions*, §IV-C, for c = 1.
    """
    strong = jnp.maximum(theta / sigma, c**0.25)
    return sigma * jnp.sqrt((1 + strong**2) * (c + strong**2)) / strong


def _above(theta, c):
    """Return θ² and θ⁴ − c in factors, which rounding cannot make negative at or above the threshold."""
    root = c**0.25
    theta = jnp.maximum(theta, root)
    return theta**2, (theta - root) * (theta + root) * (theta**2 + root**2)


@float64(keep=("side",))
def rectangular_overlap(theta: _Array, c: _Array, *, side: str = "left", sigma: _Array | float = 1.0) -> _Array:
    r"""Return the squared overlap of the top singular vector of one side with the spike's; 0 below the threshold.

    .. math::
        |\langle u,\hat u\rangle|^2 \to 1 - \frac{c(1+\theta^2)}{\theta^2(\theta^2+c)}, \qquad
        |\langle v,\hat v\rangle|^2 \to 1 - \frac{c+\theta^2}{\theta^2(\theta^2+1)}, \qquad \sigma = 1 .

    Args:
        theta: strength θ > 0.
        c, sigma: as in `rectangular_threshold`.
        side: "left" for u or "right" for v.

    Raises:
        InputError: for any other side.
    """
    one_of("side", side, ("left", "right"))
    t2, above = _above(theta / sigma, c)
    return jnp.where(theta > sigma * c**0.25, above / (t2 * (t2 + (c if side == "left" else 1))), 0.0)


@float64
def rectangular_variance(
    theta: _Array, c: _Array, *, sigma: _Array | float = 1.0, beta: _Array | float = 1.0
) -> _Array:
    r"""Return the limit of m times the variance of the outlying singular value :math:`\lambda`; NaN at and below the threshold.

    .. math::
        \frac{\sigma^2}\beta\Big(1 - \frac{c}{\theta^4}\Big)\frac{\theta^2 + \frac{1+c}2}{\lambda^2}, \qquad
        \lambda^2 = \frac{(1+\theta^2)(c+\theta^2)}{\theta^2} \quad(\theta, \lambda \text{ in units of } \sigma)

    Ours: first-order fluctuations carried through the tridiagonal recursion, ``docs/derivations.md``.

    Args:
        theta: strength :math:`\theta > \sigma c^{1/4}`.
        c, sigma: as in `rectangular_threshold`.
        beta: 1 for real, 2 for complex entries.
    """
    t2, above = _above(theta / sigma, c)
    limit = above / t2 * (t2 + (1 + c) / 2) / ((1 + t2) * (c + t2))
    return jnp.where(theta > sigma * c**0.25, sigma**2 / beta * limit, jnp.nan)


@float64
def rectangular_strength(outlier: _Array, c: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the strength θ that explains an outlying singular value, the inverse of `rectangular_outlier`; NaN below the edge.

    :math:`\theta^2 = \frac12\big(q + \sqrt{q^2 - 4c}\big)`, :math:`q = \lambda^2 - 1 - c`, in units of σ.
    """
    value, root = outlier / sigma, jnp.sqrt(c)
    # q ∓ 2√c are λ² − (1 ± √c)², in factors.
    excess = _excess(value, 1 + root)
    below, above = excess * (value + 1 + root), (value - (1 - root)) * (value + (1 - root))
    return sigma * jnp.sqrt(root + below / 2 + jnp.sqrt(below) * jnp.sqrt(above) / 2)


@float64
def covariance_threshold(c: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the population eigenvalue :math:`\sigma^2(1+\sqrt c)` above which the sample covariance has an outlier.

    Args:
        c: dimension over samples, p/n.
        sigma: :math:`\sigma^2` is every other population eigenvalue.
    """
    return sigma**2 * (1 + jnp.sqrt(c))


@float64
def covariance_outlier(ell: _Array, c: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the largest eigenvalue :math:`\ell\big(1 + \frac{c\sigma^2}{\ell-\sigma^2}\big)` above the threshold.

    Else the edge :math:`\sigma^2(1+\sqrt c)^2`.

    Args:
        ell: population eigenvalue ℓ > 0.
        c, sigma: as in `covariance_threshold`.

    Source:
        Baik & Silverstein, J. Multivariate Anal. 97 (2006).
    """
    strong = jnp.maximum(ell / sigma**2, 1 + jnp.sqrt(c))
    return sigma**2 * strong * (1 + c / (strong - 1))


@float64
def covariance_overlap(ell: _Array, c: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the squared overlap :math:`\big(1 - \frac c{(\ell-1)^2}\big)/\big(1 + \frac c{\ell-1}\big)`, σ = 1.

    0 below the threshold.

    Args:
        ell: population eigenvalue ℓ > 0.
        c, sigma: as in `covariance_threshold`.

    Source:
        Paul 2007.
    """
    root = jnp.sqrt(c)
    above = jnp.maximum(ell / sigma**2 - 1, root)
    return jnp.where(ell / sigma**2 - 1 > root, (1 - root / above) * (1 + root / above) / (1 + c / above), 0.0)


@float64
def covariance_variance(ell: _Array, c: _Array, *, sigma: _Array | float = 1.0, beta: _Array | float = 1.0) -> _Array:
    r"""Return the limit :math:`\frac2\beta\ell^2\big(1 - \frac c{(\ell-1)^2}\big)` of n times the outlier's variance, σ = 1.

    NaN at and below the threshold.

    Args:
        ell: population eigenvalue ℓ.
        c, sigma: as in `covariance_threshold`.
        beta: 1 for real, 2 for complex data.

    Source:
        Paul 2007.
    """
    root = jnp.sqrt(c)
    above = jnp.maximum(ell / sigma**2 - 1, root)
    limit = 2 / beta * ell**2 * (1 - root / above) * (1 + root / above)
    return jnp.where(ell > sigma**2 * (1 + jnp.sqrt(c)), limit, jnp.nan)  # as `covariance_threshold` rounds


@float64
def covariance_strength(outlier: _Array, c: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the population eigenvalue ℓ that explains an outlier, the inverse of `covariance_outlier`; NaN below the edge."""
    root = jnp.sqrt(c)
    excess = _excess(outlier / sigma**2, (1 + root) ** 2)  # q − 2√c
    return sigma**2 * (1 + root + (excess + jnp.sqrt(excess) * jnp.sqrt(excess + 4 * root)) / 2)


@float64
def iid_eigenvalue_outlier(theta: _Array, cosine: _Array, *, sigma: _Array | float = 1.0) -> _Array:
    r"""Return the modulus of the outlying eigenvalue :math:`\theta v^\top u` of a square i.i.d. W plus :math:`\theta uv^\top`.

    Else the radius σ of the circular law. There is no shift, unlike for singular values.

    Args:
        theta: strength θ > 0.
        cosine: :math:`v^\top u`.
        sigma: :math:`\sigma^2/N` is the variance of the entries.

    Source:
        Tao 2013.
    """
    return jnp.maximum(jnp.abs(theta * cosine), sigma)


@float64
def update_strengths(
    theta: Float[Array, "r"], left: Float[Array, "n k"], right: Float[Array, "m l"] | None = None
) -> Float[Array, "r"]:
    r"""Return the effective strengths of an update of rank r, for any directions, in descending order.

    The singular values of :math:`\sum_k\theta_ku_kv_k^\top`, to which the laws of the rectangular matrix apply one by one;
    without `right` the eigenvalues of :math:`\sum_k\theta_ku_ku_k^\top`, for those of the symmetric one. For orthonormal
    directions they are the :math:`|\theta_k|`, or the :math:`\theta_k`. No n×m matrix is formed. Derivatives are taken inside
    ``jax.enable_x64(True)``: JAX cannot transpose a decomposition in float64 outside of it.

    Args:
        theta: θ of either sign.
        left: the columns u_k, which need be neither orthogonal nor of unit norm.
        right: the columns v_k.

    Raises:
        InputError: for shapes that do not fit, or a rank above the dimension.
    """
    if theta.ndim != 1:
        raise InputError(f"theta has shape {theta.shape}: must be (r,)")
    r = theta.shape[0]
    for name, columns in (("left", left), ("right", right)):
        if columns is not None and (columns.ndim != 2 or columns.shape[1] != r or columns.shape[0] < r):
            raise InputError(f"{name} has shape {columns.shape}: must be (n, {r}), n ≥ {r}, a column for each strength")
    first = jnp.linalg.qr(left, "r") * theta
    if right is None:
        return jnp.linalg.eigvalsh(first @ jnp.linalg.qr(left, "r").T)[::-1]
    return jnp.linalg.svd(first @ jnp.linalg.qr(right, "r").T, full_matrices=False, compute_uv=False)
