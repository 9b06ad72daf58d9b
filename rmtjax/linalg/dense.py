r"""Singular value and eigenvalue decompositions of batches of dense matrices, by an algorithm of choice.

| algorithm | what it does | meant for | error of σ |
| --- | --- | --- | --- |
| `library` | `jnp.linalg`: LAPACK, cuSOLVER, XLA | one small matrix; large ones on accelerators | ε σ₁ |
| `threads` | LAPACK, a matrix for each core; SVDs in double precision | batches on processors | ε σ₁ |
| `jacobi` | one-sided Jacobi, the batch in step (`rmtjax.linalg.jacobi`) | tiny matrices; accelerators | ε σ |
| `gram` | eigh of AᵀA or AAᵀ, then AV | long ones, large σ only | ε σ₁²/σ |
| `gram64` | the same in double precision, of matrices in single | batches on processors | ε σ₁/2 |
| `polar` | QDWH: A = UH, then eigh of H | accelerators with fast GEMM | ε σ₁ |
| `randomized` | range finder with power iterations (top k) | k ≪ n, decaying σ | by decay |
| `lanczos` | block Lanczos, stopped by its error bound (top k) | k ≪ n | by tolerance |

A Gram matrix has a decomposition's digits halved, and double precision has twice those of single precision: what `gram64`
computes is A's decomposition rounded, with a tenth of the error of LAPACK in single precision, which takes longer.

All of them run inside `jit`, `vmap` and `grad`, except `lanczos`, which stops when it is done and needs the numbers; derivatives
are NaN where there are none, see `svd`. `auto` takes on processors what `benchmarks/svd.py` found fastest among those whose error
is ε σ₁, with `precise=False` among all; what it takes on accelerators has not been measured there yet. A batch that is sharded
over devices by its first axis is computed where it lies, but by `lanczos`.

`library` on processors is for one matrix, or for few tiny ones. JAX (0.10 on) deals larger batches out to the threads that run
its programs, and waits for them on one of these: two batches of a program that need nothing of each other can then wait for
each other for ever, and on two cores they do (so `jnp.linalg` itself). `auto` leaves batches to threads of its own.

Golub & Van Loan, *Matrix Computations*; Nakatsukasa & Higham, *SIAM J. Sci. Comput.* 35 (2013), for QDWH; Halko, Martinsson &
Tropp, *SIAM Review* 53 (2011), for `randomized`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental.buffer_callback import buffer_callback
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Num
from threadpoolctl import ThreadpoolController

from rmtjax._errors import InputError, shown, unknown
from rmtjax._machine import cores
from rmtjax._random import fixed_normal, key_of, pinned
from rmtjax.linalg import jacobi, krylov

__all__ = [
    "EIGH_ALGORITHMS",
    "SINGLE",
    "SVD",
    "SVD_ALGORITHMS",
    "Eigh",
    "chosen_algorithm",
    "eigh",
    "eigvalsh",
    "one_blas_thread",
    "svd",
    "svdvals",
]

SVD_ALGORITHMS = ("library", "threads", "jacobi", "gram", "gram64", "polar", "randomized", "lanczos")
"""Names for `svd`; the last two are for the k largest."""
SINGLE = ("float32", "complex64")
"""Dtypes of matrices that `gram64` is for."""
EIGH_ALGORITHMS = ("library", "threads", "jacobi")
"""Names for `eigh` and `eigvalsh`."""


class SVD(NamedTuple):
    r""":math:`A = U\,\mathrm{diag}(s)\,V^*`.

    Attributes:
        u: left singular vectors as columns, shape (..., n, k).
        s: singular values, descending, shape (..., k).
        vh: right singular vectors as rows, conjugated, shape (..., k, m).
    """

    u: Array
    s: Array
    vh: Array


class Eigh(NamedTuple):
    r""":math:`A = V\,\mathrm{diag}(\lambda)\,V^*`.

    Attributes:
        values: ascending, shape (..., N).
        vectors: as columns, shape (..., N, N).
    """

    values: Array
    vectors: Array


# -- LAPACK on the host's cores ----------------------------------------------------------------------------------------

_BLAS_ALONE = 1024
"""Order from which BLAS's own threads speed a single matrix up; below it they cost more than they bring."""


class _OneThread:
    """BLAS on one thread while anyone is inside, put back when the last one leaves.

    A thread of its own turns the switch, since threadpoolctl lets only the thread that has set a limit take it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="rmtjax-blas")
        self._limit = contextlib.ExitStack()

    def _set(self) -> None:
        self._limit.enter_context(_controller().limit(limits=1, user_api="blas"))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._keeper.submit(self._set).result()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._keeper.submit(self._limit.close).result()


one_blas_thread = _OneThread()


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg.cython_lapack  # noqa: F401 (the LAPACK that JAX calls; only what is loaded is seen)

    return ThreadpoolController()


def _spread(shape: tuple[int, ...]) -> bool:
    """Whether a batch (B, n, m) is better off with a matrix for each core than with BLAS's own threads."""
    return shape[0] >= cores() or min(shape[1:]) < _BLAS_ALONE


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="rmtjax-lapack")


def _by_numpy(function: Callable[[np.ndarray], Sequence[np.ndarray]], a: Array, *results: jax.ShapeDtypeStruct) -> Any:
    """A function of a batch by NumPy, whose decompositions let go of the interpreter, on a matrix for each core.

    LAPACK has one thread meanwhile, unless there are fewer large matrices than cores: its threads would wait for one another.
    What LAPACK cannot decompose is NaN in the results, as it is from JAX. (`jax.pure_callback` was seen to wait for ever; a
    buffer callback is handed the memory itself.)
    """

    def call(_, out, given):
        given = np.asarray(given)
        batch = given.reshape(-1, *given.shape[-2:])
        core = given.ndim - 2
        filled = [np.asarray(x) for x in out]
        filled = [x.reshape(len(batch), *x.shape[core:]) for x in filled]

        def part(chunk: slice) -> None:
            try:
                parts = function(batch[chunk])
            except np.linalg.LinAlgError:
                if chunk.stop - chunk.start == 1:
                    parts = [np.nan] * len(filled)
                else:
                    for i in range(chunk.start, chunk.stop):
                        part(slice(i, i + 1))
                    return
            for x, found in zip(filled, parts, strict=True):
                x[chunk] = found

        if not _spread(batch.shape):
            part(slice(0, len(batch)))
            return
        with one_blas_thread():
            if len(batch) < 2 or cores() < 2:
                part(slice(0, len(batch)))
            else:
                ends = np.linspace(0, len(batch), min(len(batch), 4 * cores()) + 1).astype(int)
                list(_pool().map(part, map(slice, ends[:-1], ends[1:])))

    return buffer_callback(call, results, vmap_method="expand_dims")(a)


def _real(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype


def _svd_kinds(a: Array) -> list[jax.ShapeDtypeStruct]:
    """What the thin SVD of matrices is made of: u, s, vh."""
    *batch, n, m = a.shape
    k = min(n, m)
    kinds = ((*batch, n, k), a.dtype), ((*batch, k), _real(a.dtype)), ((*batch, k, m), a.dtype)
    return [jax.ShapeDtypeStruct(*kind) for kind in kinds]


def _host_svd(a: Array) -> SVD:
    return SVD(*_by_numpy(lambda batch: np.linalg.svd(batch, full_matrices=False), a, *_svd_kinds(a)))


def _host_svdvals(a: Array) -> Array:
    (s,) = _by_numpy(lambda batch: (np.linalg.svd(batch, compute_uv=False),), a, _svd_kinds(a)[1])
    return s


def _symmetric(name: str) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """`numpy.linalg`'s eigh or eigvalsh, of single precision in single precision.

    NumPy has LAPACK's routines for it, behind functions that turn everything to double precision first; where these are no
    longer what they were, the functions do.
    """
    direct = getattr(getattr(np.linalg, "_umath_linalg", None), f"{name}_lo", None)
    signatures = {kind[0]: kind for kind in getattr(direct, "types", ())}

    def function(batch):
        signature = signatures.get(batch.dtype.char) if batch.dtype.name in SINGLE else None
        if signature is None:
            found = getattr(np.linalg, name)(batch)
        else:
            with np.errstate(all="ignore"):
                found = direct(batch, signature=signature)
        return tuple(found) if isinstance(found, tuple) else (found,)

    return function


def _host_eigh(a: Array) -> Eigh:
    kinds = jax.ShapeDtypeStruct(a.shape[:-1], _real(a.dtype)), jax.ShapeDtypeStruct(a.shape, a.dtype)
    return Eigh(*_by_numpy(_symmetric("eigh"), a, *kinds))


def _host_eigvalsh(a: Array) -> Array:
    """Without the vectors, which JAX's computes too."""
    (values,) = _by_numpy(_symmetric("eigvalsh"), a, jax.ShapeDtypeStruct(a.shape[:-1], _real(a.dtype)))
    return values


_ILL = 1e-4
"""Ratio of singular values below which the Gram matrix in double precision leaves their left vectors to be made orthogonal:
they are so up to 10⁻¹⁶ (σ₁/σ)²."""


def _in_double(batch: np.ndarray) -> np.ndarray:
    return batch.astype(np.complex128 if np.iscomplexobj(batch) else np.float64)


def _numpy_gram_svd(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = _in_double(batch)
    squares, v = np.linalg.eigh(a.conj().swapaxes(-1, -2) @ a)
    s, v = np.sqrt(np.maximum(squares[:, ::-1], 0)), v[:, :, ::-1]
    u = a @ v
    ill = np.flatnonzero(s[:, -1] <= _ILL * s[:, 0])
    if ill.size:
        norms = np.linalg.norm(u[ill], axis=1)
        order = np.argsort(-norms, axis=1, kind="stable")
        s[ill], v[ill] = np.take_along_axis(norms, order, 1), np.take_along_axis(v[ill], order[:, None], 2)
        # Column after column QR keeps what is orthogonal, up to its phase, and turns the rest until it is.
        q, r = np.linalg.qr(np.take_along_axis(u[ill], order[:, None], 2))
        size = np.diagonal(r, axis1=1, axis2=2)
        turned = q * np.where(size == 0, 1, size / np.where(size == 0, 1, np.abs(size)))[:, None]
    u /= np.where(s == 0, 1, s)[:, None]
    if ill.size:
        u[ill] = turned
    return u, s, v.conj().swapaxes(-1, -2)


def _host_gram_svd(a: Array) -> SVD:
    """From the Gram matrix in double precision, of matrices in single precision: half the time of LAPACK's own."""
    return SVD(*_by_numpy(_numpy_gram_svd, a, *_svd_kinds(a)))


def _host_gram_svdvals(a: Array) -> Array:
    def values(batch):
        wide = _in_double(batch)
        squares = np.linalg.eigvalsh(wide.conj().swapaxes(-1, -2) @ wide)
        return (np.sqrt(np.maximum(squares[:, ::-1], 0)),)

    (s,) = _by_numpy(values, a, _svd_kinds(a)[1])
    return s


# -- algorithms, for matrices with no fewer rows than columns ------------------------------------------------------------


def _h(a: Array) -> Array:
    return jnp.swapaxes(a, -1, -2).conj()


def _diagonal(square: Array) -> Array:
    return jnp.diagonal(square, axis1=-2, axis2=-1)


def _batched(a: Array) -> Array:
    return a.reshape(-1, *a.shape[-2:])


def _completed(u: Array, s: Array) -> Array:
    """Orthonormal columns (..., m, n): those of singular values that are next to nothing may be anything, and are replaced."""
    m, n = u.shape[-2:]
    lost = (s <= max(m, n) * jnp.finfo(s.dtype).eps * s[..., :1])[..., None, :]

    def complete(u):
        # Column after column QR keeps what is orthonormal, up to its sign, and turns the rest until it is.
        q, r = jnp.linalg.qr(jnp.where(lost, fixed_normal(0, (m, n), s.dtype), u))
        size = _diagonal(r)
        turn = jnp.where(size == 0, 1.0, size / jnp.where(size == 0, 1.0, jnp.abs(size)))
        return jnp.where(lost, q, q * turn[..., None, :])

    return jax.lax.cond(jnp.any(lost), complete, lambda u: u, u)


def _normalised(columns: Array, norms: Array) -> Array:
    """Orthogonal columns (..., m, n) over their descending norms."""
    return _completed(columns / jnp.where(norms == 0, 1.0, norms)[..., None, :], norms)


def _library_svd(a: Array) -> SVD:
    return SVD(*jnp.linalg.svd(a, full_matrices=False))


def _library_svdvals(a: Array) -> Array:
    # Without vectors, too, JAX has LAPACK's routine keep room for square matrices of them unless told otherwise.
    return jnp.linalg.svd(a, full_matrices=False, compute_uv=False)


def _jacobi_svd(a: Array) -> SVD:
    av, norms, v = jacobi.one_sided(_batched(a))
    av, s, v = (x.reshape(*a.shape[:-2], *x.shape[1:]) for x in (av, norms, v))
    return SVD(_normalised(av, s), s, _h(v))


def _jacobi_svdvals(a: Array) -> Array:
    return jacobi.one_sided(_batched(a), vectors=False)[1].reshape(*a.shape[:-2], a.shape[-1])


def _gram_matrix(a: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return _h(a) @ a


def _gram_svd(a: Array) -> SVD:
    scale = _scale(a)
    v = _fast_eigh(_gram_matrix(a / scale)).vectors
    with jax.default_matmul_precision("highest"):
        av = (a / scale) @ v
    norms = jnp.linalg.norm(av, axis=-2)
    order = jnp.argsort(-norms, axis=-1, stable=True)
    norms = jnp.take_along_axis(norms, order, -1)
    av, v = (jnp.take_along_axis(x, order[..., None, :], -1) for x in (av, v))
    # Columns of small ones are orthogonal only as far as their squares are above the rounding of the largest.
    return SVD(_normalised(av, norms), norms * scale[..., 0], _h(v))


def _gram_svdvals(a: Array) -> Array:
    scale = _scale(a)
    return jnp.sqrt(jnp.maximum(_fast_eigvalsh(_gram_matrix(a / scale))[..., ::-1], 0)) * scale[..., 0]


def _scale(a: Array) -> Array:
    largest = jnp.max(jnp.abs(a), (-1, -2), keepdims=True)
    return jnp.where(largest > 0, largest, 1.0)


def _polar_svd(a: Array) -> SVD:
    scale = _scale(a)

    def one(a):
        u, h, _, _ = jax.lax.linalg.qdwh(a, is_hermitian=False)
        values, v = jnp.linalg.eigh(h)
        v = v[:, ::-1]
        return u @ v, jnp.maximum(values[::-1], 0), _h(v)

    with jax.default_matmul_precision("highest"):
        u, s, vh = (x.reshape(*a.shape[:-2], *x.shape[1:]) for x in jax.lax.map(one, _batched(a / scale)))
    return SVD(_completed(u, s), s * scale[..., 0], vh)


_FULL: dict[str, Callable[[Array], SVD]] = {
    "library": _library_svd,
    "threads": _host_svd,
    "jacobi": _jacobi_svd,
    "gram": _gram_svd,
    "gram64": _host_gram_svd,
    "polar": _polar_svd,
}
_VALUES: dict[str, Callable[[Array], Array]] = {
    "library": _library_svdvals,
    "threads": _host_svdvals,
    "jacobi": _jacobi_svdvals,
    "gram": _gram_svdvals,
    "gram64": _host_gram_svdvals,
}


def _library_eigh(a: Array) -> Eigh:
    return Eigh(*jnp.linalg.eigh(a, UPLO="L", symmetrize_input=False))


def _library_eigvalsh(a: Array) -> Array:
    return jnp.linalg.eigvalsh(a, UPLO="L", symmetrize_input=False)


def _jacobi_eigh(a: Array) -> Eigh:
    """By the SVD of A + cI, positive definite with c = ‖A‖_F: an error of ε‖A‖_F."""
    lower = jnp.tril(a, -1)
    a = lower + _h(lower) + jnp.eye(a.shape[-1], dtype=a.dtype) * _diagonal(a).real[..., None, :]
    scale = _scale(a)
    shift = jnp.linalg.norm(a / scale, axis=(-2, -1), keepdims=True) * 1.25
    shifted = _batched(a / scale + shift * jnp.eye(a.shape[-1], dtype=a.dtype))
    _, norms, v = jacobi.one_sided(shifted)
    values = (norms.reshape(a.shape[:-1]) - shift[..., 0]) * scale[..., 0]
    return Eigh(values[..., ::-1], v.reshape(a.shape)[..., ::-1])


_EIGH: dict[str, Callable[[Array], Eigh]] = {
    "library": _library_eigh,
    "threads": _host_eigh,
    "jacobi": _jacobi_eigh,
}


# -- which one -----------------------------------------------------------------------------------------------------------


def chosen_algorithm(
    shape: tuple[int, ...],
    dtype: Any = np.float32,
    *,
    symmetric: bool = False,
    vectors: bool = True,
    k: int | None = None,
    precise: bool = True,
    platform: str | None = None,
) -> str:
    """What `auto` stands for.

    Args:
        shape: of the batch, (..., n, m).
        dtype: of its entries.
        symmetric: for `eigh`, else for `svd`.
        vectors: whether they are wanted.
        k: how many, None for all; `lanczos` only where the numbers are known and real.
        precise: see `svd`.
        platform: "cpu", "gpu" or "tpu"; None for that of JAX's first device.
    """
    platform = jax.default_backend() if platform is None else platform
    short, long = sorted(shape[-2:])
    if k is not None and short >= _KRYLOV and k * _SHARE <= short:
        if not precise:
            return "randomized"
        if not np.issubdtype(dtype, np.complexfloating):
            return "lanczos"
    batch = int(np.prod(shape[:-2]))
    if platform == "cpu":
        if (batch == 1 and short <= _ALONE) or batch * short**2 * long <= _AT_ONCE:
            return "library"
        tiny = short <= (_TINY if vectors or not symmetric else _TINY - 2) and short * long <= 2 * _TINY**2
        if tiny or (short <= 2 * _TINY and batch * short**3 * long <= _SOON):
            return "jacobi"
        if not symmetric and np.dtype(dtype).name in SINGLE:
            return "gram64"
        if not symmetric and not precise and (not vectors or long >= _LONG * short):
            return "gram"
        return "threads"
    if not symmetric and not precise and batch > 1:
        return "gram"
    return "jacobi" if not symmetric and batch >= _IN_STEP and short <= _ACCELERATED else "library"


_TINY = 8
"""Smaller side up to which Jacobi in step beats LAPACK on each core, of matrices that are not long."""
_ALONE, _AT_ONCE, _SOON = 64, 10_000, 4_500_000
"""Smaller side up to which a single matrix, and size of a batch (in products) up to which all of it, is done by LAPACK before
the host's threads have been woken, JAX doing both on the thread that it is on; and size of a batch of
sides up to twice `_TINY` (in products of all sweeps) that Jacobi is done with by then."""
_IN_STEP = 16
"""Number of matrices from which an accelerator does them by Jacobi."""
_KRYLOV, _SHARE = 512, 32
"""Smaller side from which, and its ratio to k from which, Krylov spaces are faster than a whole SVD."""
_LONG = 2
"""Ratio of the sides from which the Gram matrix pays although vectors are wanted."""
_ACCELERATED = 128
"""Smaller side up to which an accelerator does batches by Jacobi."""


def _fast(table: dict[str, Callable], a: Array, **options: Any) -> Any:
    """The algorithm of choice, for whatever platform the program is compiled; under `vmap`, that for the whole batch."""

    @custom_vmap
    def of_all(a):
        def on(platform):
            return table[chosen_algorithm(a.shape, a.dtype, platform=platform, **options)]

        return jax.lax.platform_dependent(a, cpu=on("cpu"), tpu=on("tpu"), default=on("gpu"))

    @of_all.def_vmap
    def _(_size, _batched, a):
        found = of_all(a)
        return found, jax.tree.map(lambda _: True, found)

    return of_all(a)


def _fast_eigh(a: Array) -> Eigh:
    return _fast(_EIGH, a, symmetric=True)


def _fast_eigvalsh(a: Array) -> Array:
    return _fast(_EIGENVALUES, a, symmetric=True, vectors=False)


_EIGENVALUES: dict[str, Callable[[Array], Array]] = {
    "library": _library_eigvalsh,
    "threads": _host_eigvalsh,
    "jacobi": lambda a: _jacobi_eigh(a).values,
}


def _on_its_side(table: dict[str, Callable], algorithm: str, a: Array, precise: bool, vectors: bool) -> Any:
    """An algorithm on matrices of any shape: those for long ones are given wide ones turned."""
    if algorithm == "auto":
        function = functools.partial(_fast, table, precise=precise, vectors=vectors)
    elif algorithm in ("threads", "gram64"):  # there is no LAPACK but on the host
        function = functools.partial(jax.lax.platform_dependent, cpu=table[algorithm], default=table["library"])
    else:
        function = table[algorithm]
    if a.shape[-2] >= a.shape[-1] or algorithm in ("library", "threads"):
        return function(a)
    if not vectors:
        return function(_h(a))
    u, s, vh = function(_h(a))
    return SVD(_h(vh), s, _h(u))


# -- with their derivatives ------------------------------------------------------------------------------------------------

_TIE = 32
"""Multiple of ε σ₁ up to which two singular values, or two eigenvalues, count as equal: LAPACK, Jacobi and QDWH put gaps of
up to 5 ε σ₁ between values that are equal, whatever the order (measured up to 256)."""


def _divided(numerator: Array, denominator: Array, tie: Array) -> Array:
    return numerator / jnp.where(tie, 1.0, denominator).astype(numerator.dtype)


def _undefined_as_nan(
    vectors: tuple[Array, ...], values: Array, rates: Array, undivided: Sequence[tuple[Array, Array]]
) -> tuple[tuple[Array, ...], Array]:
    """Tangents of vectors, NaN in the columns that have no derivative, and of values, as they are.

    A column has none where a numerator is not 0 and its denominator counts as 0. Backwards, numerators cannot be known: there a
    column has none if anything depends on it. What depends on it is its cotangent; but a function such as U diag(s) V*, which
    multiplies the column by a value of exactly 0, hides it, and is seen by its depending on that value as well as on vectors.

    Args:
        vectors: tangents of vectors as columns, each of shape (..., n, k), from quotients of denominators that are not 0.
        values: shape (..., k).
        rates: their tangents.
        undivided: pairs of a mask (..., i, k), true where a denominator counts as 0, and the numerators there.
    """
    masks = [jax.lax.stop_gradient(mask) for mask, _ in undivided]
    bad = functools.reduce(jnp.logical_or, [jnp.any(mask, -2) for mask in masks])
    values = jax.lax.stop_gradient(values)
    parts = [*vectors, rates[..., None, :].astype(vectors[0].dtype), *(x for _, x in undivided)]
    ends = np.cumsum([x.shape[-2] for x in parts])[:-1].tolist()

    def gone(stacked, lost):
        rows = np.arange(stacked.shape[-2])[:, None] < sum(x.shape[-2] for x in vectors)
        return jnp.where(rows & lost[..., None, :], jnp.asarray(jnp.nan, stacked.dtype), stacked)

    def forwards(_, stacked):
        numerators = jnp.split(stacked, ends, -2)[len(vectors) + 1 :]
        lost = [jnp.any(mask & (x != 0), -2) for mask, x in zip(masks, numerators, strict=True)]
        return gone(stacked, functools.reduce(jnp.logical_or, lost))

    def backwards(_, stacked):
        *columns, rates = jnp.split(stacked, ends, -2)[: len(vectors) + 1]
        used = functools.reduce(jnp.logical_or, [jnp.any(x != 0, -2) for x in columns])
        every = jnp.any(used, -1, keepdims=True) | jnp.all(values == 0, -1, keepdims=True)
        return gone(stacked, bad & (used | (every & (values == 0) & (rates[..., 0, :] != 0))))

    # For JAX this is a linear function, which can be transposed, batched and differentiated again; of one array, since it
    # fails to differentiate those of several of which some are constant.
    stacked = jax.lax.custom_linear_solve(lambda x: x, jnp.concatenate(parts, -2), forwards, backwards)
    *columns, rates = jnp.split(stacked, ends, -2)[: len(vectors) + 1]
    return tuple(columns), rates[..., 0, :].real


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _svd(a: Array, algorithm: str, precise: bool) -> SVD:
    return _on_its_side(_FULL, algorithm, a, precise, True)


@_svd.defjvp
def _svd_jvp(algorithm, precise, primals, tangents):
    r"""Townsend, *Differentiating the singular value decomposition* (2016); the phase of complex vectors is JAX's.

    With :math:`U^*dA\,V = H + K`, H Hermitian and K its contrary, :math:`U^*dU = \Omega + \Psi` and
    :math:`V^*dV = \Omega - \Psi` with :math:`\Omega_{ij} = H_{ij}/(s_j - s_i)`, :math:`\Psi_{ij} = K_{ij}/(s_j + s_i)`:
    no squares, which would leave the range of numbers, and no difference of products, which the compiler may round once only.
    """
    (a,), (da,) = primals, tangents
    u, s, vh = _svd(a, algorithm, precise)
    v = _h(vh)
    n, m, k = *a.shape[-2:], s.shape[-1]
    scale = jax.lax.stop_gradient(jnp.where(s[..., :1] > 0, s[..., :1], 1.0))
    s_ = s / scale
    gap, total = s_[..., None, :] - s_[..., :, None], s_[..., None, :] + s_[..., :, None]
    close = far = _TIE * float(jnp.finfo(s.dtype).eps)
    if algorithm == "gram" or (algorithm == "auto" and not precise):  # whose errors are those of the squares
        close, far = 2 * close / jnp.maximum(total, close), close**0.5
    itself = jnp.eye(k, dtype=bool)
    tie, nothing = (jnp.abs(gap) <= close) & ~itself, total <= far
    with jax.default_matmul_precision("highest"):
        da_v, da_u = da @ v, _h(da) @ u
        inner = _h(u) @ da_v
        rates = _diagonal(inner).real.astype(s.dtype)
        part = inner / scale[..., None]
        hermitian, skew = (part + _h(part)) / 2, (part - _h(part)) / 2
        hermitian = jnp.where(itself, 0.0, hermitian)
        psi = _divided(skew, total, nothing)
        omega = _divided(hermitian, gap, tie | itself) + jnp.where(itself, psi, 0.0)  # the phase is all in u
        du, dv = u @ (omega + psi), v @ (omega - psi)
        undivided = [(tie, hermitian), (nothing, skew)]
        none = (s_ <= far)[..., None, :]
        if n > k:
            outside = (da_v - u @ inner) / scale[..., None]
            du = du + _divided(outside, s_[..., None, :], none)
            undivided.append((none, outside))
        if m > k:
            outside = (da_u - v @ _h(inner)) / scale[..., None]
            dv = dv + _divided(outside, s_[..., None, :], none)
            undivided.append((none, outside))
    if not jnp.iscomplexobj(a):
        undivided[1] = nothing & ~itself, skew  # on the diagonal there is nothing to divide
    (du, dv), rates = _undefined_as_nan((du, dv), s, rates, undivided)
    return SVD(u, s, vh), SVD(du, rates, _h(dv))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _svdvals(a: Array, algorithm: str, precise: bool) -> Array:
    return _on_its_side(_VALUES, algorithm, a, precise, False)


@_svdvals.defjvp
def _svdvals_jvp(algorithm, precise, primals, tangents):
    u, s, vh = _svd(primals[0], algorithm, precise)
    with jax.default_matmul_precision("highest"):
        return s, jnp.sum(u.conj() * (tangents[0] @ _h(vh)), -2).real


def _of_symmetric(table: dict[str, Callable], algorithm: str, a: Array, vectors: bool) -> Any:
    if algorithm == "auto":
        return _fast(table, a, symmetric=True, vectors=vectors)
    if algorithm == "threads":
        return jax.lax.platform_dependent(a, cpu=table["threads"], default=table["library"])
    return table[algorithm](a)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _eigh(a: Array, algorithm: str) -> Eigh:
    return _of_symmetric(_EIGH, algorithm, a, True)


def _lower(a: Array) -> Array:
    """The Hermitian matrix whose lower triangle is given: the only part that is looked at."""
    lower = jnp.tril(a, -1)
    return lower + _h(lower) + jnp.where(jnp.eye(a.shape[-1], dtype=bool), a.real, 0.0)


@_eigh.defjvp
def _eigh_jvp(algorithm, primals, tangents):
    values, v = _eigh(primals[0], algorithm)
    largest = jnp.max(jnp.abs(values), -1, keepdims=True)
    scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    scaled = values / scale
    gap = scaled[..., None, :] - scaled[..., :, None]
    itself = jnp.eye(values.shape[-1], dtype=bool)
    tie = (jnp.abs(gap) <= _TIE * float(jnp.finfo(values.dtype).eps)) & ~itself
    with jax.default_matmul_precision("highest"):
        inner = _h(v) @ _lower(tangents[0]) @ v
        rates = _diagonal(inner).real
        between = jnp.where(itself, 0.0, inner / scale[..., None])
        dv = v @ _divided(between, gap, tie | itself)
    (dv,), rates = _undefined_as_nan((dv,), values, rates, [(tie, between)])
    return Eigh(values, v), Eigh(rates, dv)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _eigvalsh(a: Array, algorithm: str) -> Array:
    return _of_symmetric(_EIGENVALUES, algorithm, a, False)


@_eigvalsh.defjvp
def _eigvalsh_jvp(algorithm, primals, tangents):
    values, v = _eigh(primals[0], algorithm)
    with jax.default_matmul_precision("highest"):
        return values, jnp.sum(v.conj() * (_lower(tangents[0]) @ v), -2).real


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _range_finder(a: Array, k: int, iterations: int, oversampling: int, key: Array) -> SVD:
    """Halko, Martinsson & Tropp, algorithm 4.4, then the small SVD of what is left."""
    n, m = a.shape[-2:]
    if n < m:
        u, s, vh = _range_finder(_h(a), k, iterations, oversampling, key)
        return SVD(_h(vh), s, _h(u))
    width = min(k + oversampling, m)
    with jax.default_matmul_precision("highest"):
        with pinned():
            start = jax.random.normal(key, (m, width), jnp.finfo(a.dtype).dtype).astype(a.dtype)
        q = jnp.linalg.qr(a @ start)[0]
        for _ in range(iterations):
            q = jnp.linalg.qr(a @ jnp.linalg.qr(_h(a) @ q)[0])[0]
        right, small = jnp.linalg.qr(_h(a) @ q)  # A ≈ q (right small)* = q small* right*
        u, s, vh = _svd(_h(small), "auto", True)
        return SVD((q @ u)[..., :k], s[..., :k], (vh @ _h(right))[..., :k, :])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _randomized(a: Array, k: int, iterations: int, oversampling: int, key: Array) -> SVD:
    return _range_finder(a, k, iterations, oversampling, key)


@_randomized.defjvp
def _randomized_jvp(k, iterations, oversampling, primals, tangents):
    """Those of the exact triplets. The range finder's own ones are noise where the matrix has a lower rank than the range."""
    approximate = _randomized(primals[0], k, iterations, oversampling, primals[1])
    exact, rates = jax.jvp(lambda a: _svd(a, "auto", True), primals[:1], tangents[:1])
    match = jax.lax.stop_gradient(jnp.sum(exact.u[..., :k].conj() * approximate.u, -2))
    size = jnp.abs(match)
    phase = jnp.where(size > 0, match / jnp.where(size > 0, size, 1.0), 1.0)
    left, right = rates.u[..., :k] * phase[..., None, :], phase.conj()[..., :, None] * rates.vh[..., :k, :]
    return approximate, SVD(left, rates.s[..., :k], right)


_ROUNDED = 10
"""Of the tolerance, how much may be left of an angle by rounding, whose bound is some times what it is."""


def _lanczos(a: Array, k: int, tolerance: float, seed: int) -> SVD:
    found = []
    on_host = next(iter(a.devices())).platform == "cpu"
    for matrix in _batched(a):
        # A power of two, so that squares of what is huge or tiny stay in range and nothing is rounded.
        scale = float(jnp.ldexp(jnp.ones((), a.dtype), jnp.frexp(jnp.max(jnp.abs(matrix)))[1] - 1)) or 1.0
        operator = krylov.Operator(np.asarray(matrix) / scale if on_host else matrix / scale)
        top = krylov.top_singular(operator, k, tolerance=tolerance, width=min(4, k + 2), most=288, seed=seed)
        # The process sees squares: below the root of their rounding there is nothing to be known of singular values.
        small = top.values[-1] <= 30 * np.sqrt(np.finfo(a.dtype).eps) * top.values[0]
        if small or not top.errors.max() <= _ROUNDED * tolerance:
            whole = _svd(matrix, "auto", True)
            found.append((whole.u[:, :k], whole.s[:k], whole.vh[:k]))
            continue
        along = operator.transposed(top.vectors)
        norms = np.linalg.norm(np.asarray(along), axis=0)
        found.append((top.vectors, scale * top.values.astype(along.dtype), (along / norms).T))
    return SVD(*(jnp.stack(x).reshape(*a.shape[:-2], *x[0].shape) for x in zip(*found, strict=True)))


# -- what users call -----------------------------------------------------------------------------------------------------


def _known(*arrays: Any) -> bool:
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def _elsewhere(a: Any) -> bool:
    """Whether an array is in an accelerator's memory, from where looking at it would take longer than its spectrum."""
    return isinstance(a, jax.Array) and next(iter(a.devices())).platform != "cpu"


@functools.partial(jax.jit, static_argnums=1)
def _sound(a: Array, symmetric: bool) -> Array:
    finite = jnp.all(jnp.isfinite(a))
    if not symmetric:
        return finite
    slack = 1e3 * jnp.finfo(a.dtype).eps * jnp.linalg.norm(a, axis=(-2, -1))
    return finite & jnp.all(jnp.max(jnp.abs(a - _h(a)), (-2, -1)) <= slack)


@functools.cache
def _program(function: Callable, how: tuple, mesh: Mesh | None, axis: Any) -> Callable:
    def program(a):
        return function(a, *how)

    if mesh is not None:
        place = PartitionSpec(axis)
        program = jax.shard_map(program, mesh=mesh, in_specs=place, out_specs=place, check_vma=False)
    return jax.jit(program)


def _done(function: Callable, a: Array, *how: Any) -> Any:
    """A function of matrices, compiled: each device that holds some of a batch does these."""
    place = a.sharding if _known(a) else None
    spec = place.spec if isinstance(place, NamedSharding) and a.ndim > 2 else ()
    if spec and spec[0] is not None and not any(spec[1:]):
        return _program(function, how, place.mesh, spec[0])(a)
    return _program(function, how, None, None)(a)


def _matrices(name: str, matrix: Any, symmetric: bool) -> Any:
    """The matrices as an array of their own dtype, refused if a spectrum of them makes no sense."""
    a = matrix if isinstance(matrix, jax.Array) else np.asarray(matrix)
    if a.dtype.name not in ("float32", "float64", "complex64", "complex128"):
        raise InputError(f"{name} has dtype {a.dtype}: must be float32, float64, complex64 or complex128")
    if a.ndim < 2 or (symmetric and a.shape[-1] != a.shape[-2]):
        raise InputError(f"{name} has shape {a.shape}: must be (..., {'N, N' if symmetric else 'n, m'})")
    if 0 in a.shape:
        raise InputError(f"{name} has shape {a.shape}: must not be empty")
    if _known(a) and not (_elsewhere(a) and bool(_sound(a, symmetric))):
        # Products with one vector of no special direction tell of both defects for a fraction of the spectrum's cost.
        host = np.asarray(a)
        x = np.random.default_rng(0).normal(size=a.shape[-1]).astype(host.dtype)
        with np.errstate(all="ignore"):
            right = np.einsum("...ij,j->...i", host, x)  # not `@`, whose threads would have to be woken
            if not np.all(np.isfinite(right)) and not np.all(np.isfinite(host)):
                raise InputError(f"{name} has an entry {shown(host[~np.isfinite(host)][0])}: all must be finite")
            if symmetric:
                left = np.einsum("...ji,j->...i", host, x).conj()
                slack = 1e3 * np.finfo(host.dtype).eps * np.linalg.norm(x) * np.max(np.abs(right), -1, keepdims=True)
                if np.any(np.abs(right - left) > slack):
                    gap = np.max(np.abs(host - np.swapaxes(host, -1, -2).conj()))
                    raise InputError(f"{name} is off its transpose by {gap:.3g}: must be symmetric")
    return a


def _algorithm(name: Any, known: Sequence[str], matrix: Any = None) -> None:
    if name != "auto" and name not in known:
        raise unknown("algorithm", str(name), ("auto", *known))
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
    seed: int = 0,
) -> SVD:
    r"""Singular value decompositions of matrices, thin, in the matrices' own precision. For the algorithms see the module.

    Args:
        matrix: shape (..., n, m), floating point.
        k: how many singular triplets, the largest first; None for all min(n, m).
        algorithm: one of `SVD_ALGORITHMS`, or "auto".
        precise: keep `auto` to algorithms with an error of ε σ₁; otherwise small singular values may be off by √ε σ₁, and
            their vectors anything.
        iterations: power iterations of `randomized`; each squares the ratios of singular values.
        tolerance: of `lanczos`: an angle between singular vectors. Where rounding keeps it from ten times that, or the k-th
            singular value is next to nothing, the matrix is decomposed whole.
        seed: of the random start of `randomized` and `lanczos`.

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
    """
    a = _matrices("matrix", matrix, False)
    _algorithm(algorithm, SVD_ALGORITHMS, a)
    least = min(a.shape[-2:])
    if k is not None and (isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= least):
        raise InputError(f"k = {shown(k)}: must be 1 to {least}, the smaller side")
    if algorithm == "auto" and k is not None:
        taken = chosen_algorithm(a.shape, a.dtype, k=int(k), precise=precise)
        algorithm = taken if taken == "randomized" or (taken == "lanczos" and _known(a)) else "auto"
    with jax.enable_x64(True):
        a = jnp.asarray(a)
        if algorithm in ("randomized", "lanczos"):
            if k is None:
                raise InputError(f"k is not given: {algorithm} computes the k largest")
            if algorithm == "randomized":
                if isinstance(iterations, bool) or not isinstance(iterations, (int, np.integer)) or iterations < 0:
                    raise InputError(f"iterations = {shown(iterations)}: must be a whole number, 0 or more")
                return _randomized(a, int(k), int(iterations), 10, key_of(seed))
            if not _known(a):
                raise InputError("algorithm = lanczos: cannot run inside jit, vmap or grad; take randomized there")
            if jnp.iscomplexobj(a):
                raise InputError(f"matrix has dtype {a.dtype}: must be real for lanczos")
            return _lanczos(a, int(k), tolerance, seed)
        u, s, vh = _done(_svd, a, algorithm, bool(precise))
        return SVD(u, s, vh) if k is None else SVD(u[..., :k], s[..., :k], vh[..., :k, :])


def svdvals(matrix: Num[ArrayLike, "..."], *, algorithm: str = "auto", precise: bool = True) -> Num[Array, "..."]:
    r"""Singular values of matrices, descending, in the matrices' own precision; see `svd`.

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
    _algorithm(algorithm, tuple(_VALUES), a)
    with jax.enable_x64(True):
        return _done(_svdvals, jnp.asarray(a), algorithm, bool(precise))


def eigh(matrix: Num[ArrayLike, "..."], *, algorithm: str = "auto") -> Eigh:
    r"""Eigenvalues and eigenvectors of symmetric or Hermitian matrices, in the matrices' own precision.

    Inside `jit`, where it cannot be looked at, a matrix that is not symmetric is taken for what its lower triangle says.

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
        return _done(_eigh, jnp.asarray(_matrices("matrix", matrix, True)), algorithm)


def eigvalsh(matrix: Num[ArrayLike, "..."], *, algorithm: str = "auto") -> Num[Array, "..."]:
    r"""Eigenvalues of symmetric or Hermitian matrices, ascending, in the matrices' own precision; see `eigh`.

    On processors by LAPACK's divide and conquer without vectors, the matrices of a batch spread over the cores, alone and
    inside `jit`, `vmap` and `grad`. Inside `jit` a matrix that is not symmetric is taken for what its lower triangle says.

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
        return _done(_eigvalsh, jnp.asarray(_matrices("matrix", matrix, True)), algorithm)
