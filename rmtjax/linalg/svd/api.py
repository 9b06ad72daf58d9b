r"""Singular value and eigenvalue decompositions of batches of dense matrices, by an algorithm of choice.

| algorithm | what it does | meant for | error of σ |
| --- | --- | --- | --- |
| `library` | `jnp.linalg`: LAPACK, cuSOLVER, XLA | one small matrix; large ones on accelerators | ε σ₁ |
| `threads` | LAPACK, a matrix for each core; SVDs in double precision | batches on processors | ε σ₁ |
| `jacobi` | one-sided Jacobi, the batch in step (`rmtjax.linalg.svd.jacobi`) | tiny matrices; accelerators | ε σ |
| `gram` | eigh of AᵀA or AAᵀ, then AV | long ones, large σ only | ε σ₁²/σ |
| `gram64` | the same in double precision, of matrices in single | batches on processors | ε σ₁/2 |
| `polar` | QDWH: A = UH, then eigh of H | accelerators with fast GEMM | ε σ₁ |
| `randomized` | range finder with power iterations (top k) | k ≪ n, decaying σ | by decay |
| `lanczos` | block Lanczos, stopped by its error bound (top k) | k ≪ n | by tolerance |

A Gram matrix halves the number of correct digits, and double precision has twice those of single precision, so `gram64`
computes A's decomposition rounded, with a tenth of the error of LAPACK in single precision, which takes longer.

All of them run inside `jit`, `vmap` and `grad`, except `lanczos`, which stops when it is done and needs the numbers; derivatives
are NaN where there are none, see `svd`. `auto` takes on processors what `benchmarks/svd.py` found fastest among those whose error
is ε σ₁, with `precise=False` among all; its choices on accelerators have not been measured yet. A batch that is sharded
over devices by its first axis is computed where it lies, except by `lanczos`.

`library` on processors is for one matrix, or for few tiny ones. JAX (0.10 on) deals larger batches out to the threads that run
its programs, and waits for them on one of these: two independent batches in one program can then deadlock, and on two cores
they do (`jnp.linalg` itself does). `auto` leaves batches to a pool of threads of its own.

Golub & Van Loan, *Matrix Computations*; Nakatsukasa & Higham, *SIAM J. Sci. Comput.* 35 (2013), for QDWH; Halko, Martinsson &
Tropp, *SIAM Review* 53 (2011), for `randomized`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Key, Num

from rmtjax._checks import finite, is_traced, one_of, whole
from rmtjax._errors import InputError
from rmtjax._random import key_of
from rmtjax.linalg.svd._common import (
    EIGH_ALGORITHMS,
    SINGLE,
    SVD,
    SVD_ALGORITHMS,
    Eigh,
    adjoint,
)
from rmtjax.linalg.svd.derivatives import (
    differentiable_eigh,
    differentiable_eigvalsh,
    differentiable_svd,
    differentiable_svdvals,
)
from rmtjax.linalg.svd.dispatch import SVDVALS_TABLE
from rmtjax.linalg.svd.lanczos import lanczos_svd
from rmtjax.linalg.svd.randomized import randomized_svd
from rmtjax.linalg.svd.select import select_algorithm

__all__ = ["eigh", "eigvalsh", "is_sound", "svd", "svdvals"]


def _elsewhere(a: Any) -> bool:
    """Return whether an array is on an accelerator, from where reading it would take longer than computing its spectrum."""
    return isinstance(a, jax.Array) and next(iter(a.devices())).platform != "cpu"


@functools.partial(jax.jit, static_argnums=1)
def is_sound(a: Array, symmetric: bool) -> Array:
    """Return whether matrices are finite and, if need be, symmetric up to rounding."""
    finite = jnp.all(jnp.isfinite(a))
    if not symmetric:
        return finite
    slack = 1e3 * jnp.finfo(a.dtype).eps * jnp.linalg.norm(a, axis=(-2, -1))
    return finite & jnp.all(jnp.max(jnp.abs(a - adjoint(a)), (-2, -1)) <= slack)


@functools.cache
def _program(function: Callable, arguments: tuple, mesh: Mesh | None, axis: Any) -> Callable:
    def program(a):
        return function(a, *arguments)

    if mesh is not None:
        place = PartitionSpec(axis)
        program = jax.shard_map(program, mesh=mesh, in_specs=place, out_specs=place, check_vma=False)
    return jax.jit(program)


def _run(function: Callable, a: Array, *arguments: Any) -> Any:
    """Return a function of matrices as a compiled program; a sharded batch is computed on the devices that hold it."""
    place = None if is_traced(a) else a.sharding
    spec = place.spec if isinstance(place, NamedSharding) and a.ndim > 2 else ()
    if spec and spec[0] is not None and not any(spec[1:]):
        return _program(function, arguments, place.mesh, spec[0])(a)
    return _program(function, arguments, None, None)(a)


def _matrices(name: str, matrix: Any, symmetric: bool) -> Any:
    """Return the matrices as an array of their own dtype, or raise an error if they have no spectrum."""
    a = matrix if isinstance(matrix, jax.Array) else np.asarray(matrix)
    if a.dtype.name not in ("float32", "float64", "complex64", "complex128"):
        raise InputError(f"{name} has dtype {a.dtype}: must be float32, float64, complex64 or complex128")
    if a.ndim < 2 or (symmetric and a.shape[-1] != a.shape[-2]):
        raise InputError(f"{name} has shape {a.shape}: must be (..., {'N, N' if symmetric else 'n, m'})")
    if 0 in a.shape:
        raise InputError(f"{name} has shape {a.shape}: must not be empty")
    if not is_traced(a) and not (_elsewhere(a) and bool(is_sound(a, symmetric))):
        # Products with one generic vector reveal both defects at a fraction of the spectrum's cost.
        host = np.asarray(a)
        x = np.random.default_rng(0).normal(size=a.shape[-1]).astype(host.dtype)
        with np.errstate(all="ignore"):
            right = np.einsum("...ij,j->...i", host, x)  # not `@`, which would wake BLAS's threads
            if not np.all(np.isfinite(right)):
                finite(name, host)
            if symmetric:
                left = np.einsum("...ji,j->...i", host, x).conj()
                slack = 1e3 * np.finfo(host.dtype).eps * np.linalg.norm(x) * np.max(np.abs(right), -1, keepdims=True)
                if np.any(np.abs(right - left) > slack):
                    gap = np.max(np.abs(host - np.swapaxes(host, -1, -2).conj()))
                    raise InputError(f"{name} differs from its transpose by {gap:.3g}: must be symmetric")
    return a


def _algorithm(name: Any, known: Sequence[str], matrix: Any = None) -> None:
    one_of("algorithm", name, ("auto", *known))
    if name == "gram64" and matrix.dtype.name not in SINGLE:
        raise InputError(f"matrix has dtype {matrix.dtype}: must be {' or '.join(SINGLE)} for gram64")


def svd(
    matrix: Num[ArrayLike, "..."],
    *,
    k: int | None = None,
    algorithm: str = "auto",
    precise: bool = True,
    iterations: int = 4,
    tolerance: float = 1e-4,
    key: Key[Array, ""] | None = None,
) -> SVD:
    r"""Return thin singular value decompositions of matrices in their own precision.

    For the algorithms see the module.

    Args:
        matrix: shape (..., n, m), floating point.
        k: number of singular triplets, the largest first; None for all min(n, m).
        algorithm: one of `SVD_ALGORITHMS`, or "auto".
        precise: keep `auto` to algorithms with an error of ε σ₁; otherwise small singular values may be off by √ε σ₁, and
            their vectors anything.
        iterations: power iterations of `randomized`; each squares the ratios of singular values.
        tolerance: of `lanczos`: an angle between singular vectors. Where rounding keeps it from ten times that, or the k-th
            singular value is negligible, the matrix is decomposed whole.
        key: a typed PRNG key for the random start of `randomized` and `lanczos`; that of seed 0 if not given.

    Returns:
        `SVD`. Differentiable by all algorithms but `lanczos`, forwards, backwards and again, at any scale; `randomized` has the
        derivatives of the exact triplets, by a whole decomposition.

        Where two singular values are equal, vectors have no derivative, nor where one is 0 and the matrix is not square, or
        complex. Equal means up to 32 ε σ₁; for `gram`, and for `auto` that is not precise, up to 64 ε σ₁²/(σᵢ + σⱼ). There the
        tangents of these two vectors are NaN, unless the matrix moves so that they stay; and backwards the gradient is, if
        the function depends on them. Functions of all vectors that are smooth all the same, such as the polar factor U V*,
        have NaN there, too; functions of other vectors have their derivatives, such as of the leading vectors of a matrix of
        low rank. Singular values have derivatives everywhere: where some are equal those of one order of them, whose sums
        are right, and at 0 that of one sign.

    Raises:
        InputError: for integers, fewer than two axes, empty or non-finite matrices, an unknown algorithm, k outside
            1 … min(n, m), none for an algorithm that needs it, `lanczos` inside a program or on complex matrices, and
            `gram64` in double precision.

    Examples:
        >>> U, S, Vh = svd(np.array([[3.0, 0.0], [4.0, 5.0]]))
        >>> [round(float(s), 6) for s in S]
        [6.708204, 2.236068]
    """
    a = _matrices("matrix", matrix, False)
    _algorithm(algorithm, SVD_ALGORITHMS, a)
    least = min(a.shape[-2:])
    if k is not None:
        k = whole("k", k, 1, least)
    if algorithm == "auto" and k is not None:
        selected = select_algorithm(a.shape, a.dtype, k=k, precise=precise)
        algorithm = selected if selected == "randomized" or (selected == "lanczos" and not is_traced(a)) else "auto"
    with jax.enable_x64(True):
        a = jnp.asarray(a)
        if algorithm in ("randomized", "lanczos"):
            rng = 0 if key is None else np.asarray(jax.random.key_data(key)).tolist()
            key = key_of(0) if key is None else key
            if k is None:
                raise InputError(f"k is not given: {algorithm} needs the number of largest values")
            if algorithm == "randomized":
                return randomized_svd(a, k, whole("iterations", iterations, 0), 10, key)
            if is_traced(a):
                raise InputError("algorithm = lanczos: cannot run inside jit, vmap or grad; use randomized there")
            if jnp.iscomplexobj(a):
                raise InputError(f"matrix has dtype {a.dtype}: must be real for lanczos")
            return lanczos_svd(a, k, tolerance, rng)
        u, s, vh = _run(differentiable_svd, a, algorithm, bool(precise))
        return SVD(u, s, vh) if k is None else SVD(u[..., :k], s[..., :k], vh[..., :k, :])


def svdvals(matrix: Num[ArrayLike, "..."], *, algorithm: str = "auto", precise: bool = True) -> Num[Array, "..."]:
    r"""Return the singular values of matrices, descending, in the matrices' own precision; see `svd`.

    Args:
        matrix: shape (..., n, m), floating point.
        algorithm: `library`, `threads`, `jacobi`, `gram`, `gram64` or "auto".
        precise: see `svd`.

    Returns:
        Shape (..., min(n, m)), real. Differentiable as those of `svd`: where some are equal, symmetric functions of them
        have their derivatives.

    Raises:
        InputError: for integers, fewer than two axes, empty or non-finite matrices, an unknown algorithm, and `gram64` in
            double precision.
    """
    a = _matrices("matrix", matrix, False)
    _algorithm(algorithm, tuple(SVDVALS_TABLE), a)
    with jax.enable_x64(True):
        return _run(differentiable_svdvals, jnp.asarray(a), algorithm, bool(precise))


def eigh(matrix: Num[ArrayLike, "..."], *, algorithm: str = "auto") -> Eigh:
    r"""Return eigenvalues and eigenvectors of symmetric or Hermitian matrices in the matrices' own precision.

    Inside `jit`, where symmetry cannot be checked, only the lower triangle of the matrix counts.

    Args:
        matrix: shape (..., N, N), floating point; symmetric up to rounding.
        algorithm: one of `EIGH_ALGORITHMS`, or "auto".

    Returns:
        `Eigh`. Differentiable, forwards, backwards and again, at any scale. Where two eigenvalues are equal, up to 32 ε
        times the largest, their eigenvectors have no derivative: tangents are NaN, unless the matrix moves so that the two
        stay, and gradients are if the function depends on them (matrix functions V f(Λ) V* included). Sums of equal
        eigenvalues have the right derivatives.

    Raises:
        InputError: for integers, shapes that are not square, empty, non-finite or asymmetric matrices, and an unknown
            algorithm.
    """
    _algorithm(algorithm, EIGH_ALGORITHMS)
    with jax.enable_x64(True):
        return _run(differentiable_eigh, jnp.asarray(_matrices("matrix", matrix, True)), algorithm)


def eigvalsh(matrix: Num[ArrayLike, "..."], *, algorithm: str = "auto") -> Num[Array, "..."]:
    r"""Return the eigenvalues of symmetric or Hermitian matrices, ascending, in their own precision; see `eigh`.

    On processors by LAPACK's divide and conquer without vectors, the matrices of a batch spread over the cores, alone and
    inside `jit`, `vmap` and `grad`. Inside `jit` only the lower triangle of the matrix counts.

    Args:
        matrix: shape (..., N, N), floating point; symmetric up to rounding.
        algorithm: one of `EIGH_ALGORITHMS`, or "auto".

    Returns:
        Shape (..., N), real.

    Raises:
        InputError: as `eigh`.
    """
    _algorithm(algorithm, EIGH_ALGORITHMS)
    with jax.enable_x64(True):
        return _run(differentiable_eigvalsh, jnp.asarray(_matrices("matrix", matrix, True)), algorithm)
