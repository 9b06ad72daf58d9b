r"""The outlier of a spiked Gaussian matrix and its largest cosine with a singular vector of the base, sampled exactly.

In the singular bases of W the spike's directions are independent of the spectrum and uniform on their spheres. So neither
W nor an eigenvector is needed: the spectrum comes from a tridiagonal matrix (Dumitriu & Edelman 2002), the outlier from
the secular equation of the update, and the overlaps in closed form. With a and b the directions in the bases of W,

.. math::
    \theta\sum_j\frac{a_j^2}{\lambda-\lambda_j} = 1, \qquad \langle w_j,\hat v\rangle \propto \frac{a_j}{\lambda-\lambda_j}

for :math:`W + \theta uu^\top`, and for :math:`W + \theta uv^\top`

.. math::
    \det\begin{pmatrix} A & C - 1/\theta \\ C - 1/\theta & B\end{pmatrix} = 0, \qquad
    A = \sum_j\frac{\sigma a_j^2}{\sigma^2-s_j^2},\quad B = \sum_j\frac{\sigma b_j^2}{\sigma^2-s_j^2},\quad
    C = \sum_j\frac{s_ja_jb_j}{\sigma^2-s_j^2}, \\
    \langle u_j,\hat u\rangle \propto \frac{\sigma\beta a_j + s_j\alpha b_j}{\sigma^2-s_j^2}, \qquad
    \langle v_j,\hat v\rangle \propto \frac{\sigma\alpha b_j + s_j\beta a_j}{\sigma^2-s_j^2},

:math:`s_j = 0` in the null space of the longer side and :math:`(\beta, \alpha)` the matrix's null vector. The cost is that
of all N eigenvalues by bisection, :math:`O(N^2)`. The dense versions form W and its singular vectors and are for checking.
The law of what is drawn here is `rmtjax.laws.intruders`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Real

from rmtjax._checks import numbers, whole
from rmtjax._precision import float64
from rmtjax.ensembles._counter import normal
from rmtjax.ensembles.haar import unit_vector
from rmtjax.ensembles.wigner import goe, hermite
from rmtjax.ensembles.wishart import iid, laguerre
from rmtjax.linalg import sturm
from rmtjax.linalg.roots import bisect

__all__ = [
    "Intruder",
    "RectangularIntruder",
    "dense_rectangular_intruder",
    "dense_wigner_intruder",
    "rectangular_intruder",
    "wigner_intruder",
]

_HALVINGS = 60
"""Number of bisections of the interval that holds the largest singular value, which reach rounding."""

_STEPS = 200
"""Largest number of Newton steps, never reached since each step nearly doubles the outlier's correct digits."""


class Intruder(NamedTuple):
    """The largest eigenvalue of :math:`W + θuu^⊤` and its eigenvector's cosines with the eigenvectors of W.

    Attributes:
        outlier: the eigenvalue λ, of the shape of θ.
        cosine: :math:`\\max_j|⟨w_j, v̂⟩|`, likewise.
        intruder: 1 if that is below ε, else 0; of the shape of θ and ε together.
    """

    outlier: Float[Array, "..."]
    cosine: Float[Array, "..."]
    intruder: Float[Array, "..."]


class RectangularIntruder(NamedTuple):
    """The largest singular value of :math:`W + θuv^⊤`, and the cosines of its left and right singular vectors with those of W.

    They are compared with the min(n, m) vectors of a reduced SVD of W.
    """

    outlier: Float[Array, "..."]
    cosine_left: Float[Array, "..."]
    cosine_right: Float[Array, "..."]
    intruder_left: Float[Array, "..."]
    intruder_right: Float[Array, "..."]


def _spike(theta, eps):
    """Return checked θ and ε as float64 arrays; traced ones pass unchecked."""
    numbers("theta", theta, 0, open_low=True)
    numbers("eps", eps, 0, 1, open_low=True, open_high=True)
    return jnp.asarray(theta, jnp.float64), jnp.asarray(eps, jnp.float64)


def _judged(cosine, eps):
    return (cosine < eps).astype(jnp.float64)


@jax.jit
@functools.partial(jnp.vectorize, signature="(n),(n),()->(),()")
def _wigner_secular(eigenvalues, t, theta):
    """Return the outlier and the largest cosine of :math:`Λ + θtt^⊤/|t|^2`, the eigenvalues descending."""
    below = eigenvalues[0] - eigenvalues
    share = t**2 / jnp.sum(t**2)

    def step(state):
        count, x, _ = state
        terms = share / (x + below)
        first, second = jnp.sum(terms), jnp.sum(terms / (x + below))
        # Newton on 1/Σ − θ, which is increasing and concave: started on the left, it stays there.
        move = (theta * first - 1) * first / second
        return count + 1, x + move, jnp.abs(move) <= 1e-14 * x

    # The top eigenvector alone already pushes the outlier this far.
    start = jnp.maximum(theta * share[0], 1e-300)
    _, x, _ = jax.lax.while_loop(lambda s: (s[0] < _STEPS) & ~s[2], step, (0, start, jnp.zeros((), bool)))
    overlap = share / (x + below) ** 2
    return eigenvalues[0] + x, jnp.sqrt(jnp.max(overlap) / jnp.sum(overlap))


@jax.jit
@functools.partial(jnp.vectorize, signature="(r),(n),(m),()->(),(),()")
def _rectangular_secular(s, a, b, theta):
    """Return the largest singular value and cosines of :math:`S + θab^⊤/|a||b|`, S n×m with s on its diagonal, descending."""
    r = s.shape[0]
    below = s[0] - s
    a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    free_a, free_b = jnp.sum(a[r:] ** 2), jnp.sum(b[r:] ** 2)
    a, b = a[:r], b[:r]

    def secular(x):
        sigma = s[0] + x
        inverse = 1 / ((x + below) * (sigma + s))
        return (
            sigma * jnp.sum(a**2 * inverse) + free_a / sigma,
            sigma * jnp.sum(b**2 * inverse) + free_b / sigma,
            jnp.sum(s * a * b * inverse) - 1 / theta,
            inverse,
        )

    def is_below(x):
        A, B, C, _ = secular(x)
        # Signature of the matrix: between s₂ and s₁, where the outlier may lie, one positive direction puts it above x;
        # beyond s₁ it takes two.
        definite = A * B > C**2
        return jnp.where(x > 0, definite & (A > 0), ~(definite & (A < 0)))

    low, high = bisect(is_below, -below[1], 1.001 * theta, _HALVINGS)
    x = (low + high) / 2
    A, B, C, inverse = secular(x)
    larger = jnp.abs(A) > jnp.abs(B)
    beta, alpha = jnp.where(larger, -C, B), jnp.where(larger, A, -C)
    sigma = s[0] + x
    left = ((sigma * beta * a + s * alpha * b) * inverse) ** 2
    right = ((sigma * alpha * b + s * beta * a) * inverse) ** 2
    cosine_left = jnp.sqrt(jnp.max(left) / (jnp.sum(left) + (beta / sigma) ** 2 * free_a))
    cosine_right = jnp.sqrt(jnp.max(right) / (jnp.sum(right) + (alpha / sigma) ** 2 * free_b))
    return sigma, cosine_left, cosine_right


@float64(keep=("key", "N", "theta", "eps"))
def wigner_intruder(
    key: Key[Array, ""], N: int, theta: Real[ArrayLike, "..."], eps: Real[ArrayLike, "..."]
) -> Intruder:
    r"""Draw once for :math:`W + \theta uu^\top`, W from the GOE of order N (variance 1/N), u Haar. Exact in law.

    Args:
        key: a typed PRNG key.
        N: order of the matrix, at least 2, static.
        theta: strengths θ > 0, may be traced. All of an array are tried on the same W and u.
        eps: tolerances ε in (0, 1), likewise; broadcast with θ.

    Raises:
        InputError: for arguments that are not admissible.
    """
    N = whole("N", N, 2)
    return _wigner_intruder(key, N, *_spike(theta, eps))


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _wigner_intruder(key, N, theta, eps):
    spectrum_key, direction_key = jax.random.split(key)
    matrix = hermite(spectrum_key, N)
    eigenvalues = sturm.eigenvalues(matrix.diagonal, matrix.off_diagonal)[::-1]
    outlier, cosine = _wigner_secular(eigenvalues, normal(direction_key, N), theta)
    return Intruder(outlier, cosine, _judged(cosine, eps))


@float64(keep=("key", "N", "theta", "eps"))
def dense_wigner_intruder(
    key: Key[Array, ""], N: int, theta: Real[ArrayLike, "..."], eps: Real[ArrayLike, "..."]
) -> Intruder:
    """Draw `wigner_intruder` from full matrices, by eigendecompositions. Arguments and errors as there."""
    N = whole("N", N, 2)
    theta, eps = _spike(theta, eps)
    base_key, direction_key = jax.random.split(key)
    base, u = goe(base_key, N), unit_vector(direction_key, N)
    values, vectors = jnp.linalg.eigh(base + theta[..., None, None] * jnp.outer(u, u))
    cosine = jnp.max(jnp.abs(vectors[..., -1] @ jnp.linalg.eigh(base)[1]), -1)
    return Intruder(values[..., -1], cosine, _judged(cosine, eps))


@float64(keep=("key", "n", "m", "theta", "eps"))
def rectangular_intruder(
    key: Key[Array, ""], n: int, m: int, theta: Real[ArrayLike, "..."], eps: Real[ArrayLike, "..."]
) -> RectangularIntruder:
    r"""Draw once for :math:`W + \theta uv^\top`, W n×m Gaussian of variance 1/m, u and v independent and Haar.

    Args:
        key: a typed PRNG key.
        n, m: rows and columns, at least 2, static.
        theta: strengths θ > 0, may be traced. All of an array are tried on the same W, u and v.
        eps: tolerances ε in (0, 1), likewise; broadcast with θ.

    Raises:
        InputError: for arguments that are not admissible.
    """
    n, m = whole("n", n, 2), whole("m", m, 2)
    return _rectangular_intruder(key, n, m, *_spike(theta, eps))


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _rectangular_intruder(key, n, m, theta, eps):
    spectrum_key, left_key, right_key = jax.random.split(key, 3)
    matrix = laguerre(spectrum_key, min(n, m), max(n, m), sigma=jnp.sqrt(max(n, m) / m))
    s = sturm.singular_values(matrix.diagonal, matrix.subdiagonal)[::-1]
    sigma, left, right = _rectangular_secular(s, normal(left_key, n), normal(right_key, m), theta)
    return RectangularIntruder(sigma, left, right, _judged(left, eps), _judged(right, eps))


@float64(keep=("key", "n", "m", "theta", "eps"))
def dense_rectangular_intruder(
    key: Key[Array, ""], n: int, m: int, theta: Real[ArrayLike, "..."], eps: Real[ArrayLike, "..."]
) -> RectangularIntruder:
    """Draw `rectangular_intruder` from full matrices, by SVDs. Arguments and errors as there."""
    n, m = whole("n", n, 2), whole("m", m, 2)
    theta, eps = _spike(theta, eps)
    base_key, left_key, right_key = jax.random.split(key, 3)
    base = iid(base_key, n, m)
    spike = jnp.outer(unit_vector(left_key, n), unit_vector(right_key, m))
    U, _, Vt = jnp.linalg.svd(base, full_matrices=False)
    u, s, vt = jnp.linalg.svd(base + theta[..., None, None] * spike, full_matrices=False)
    left = jnp.max(jnp.abs(u[..., 0] @ U), -1)
    right = jnp.max(jnp.abs(vt[..., 0, :] @ Vt.T), -1)
    return RectangularIntruder(s[..., 0], left, right, _judged(left, eps), _judged(right, eps))
