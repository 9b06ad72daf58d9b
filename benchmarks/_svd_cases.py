r"""Throughput of singular value and eigenvalue decompositions: every algorithm of `rmtjax.linalg.svd`, and its peers.

Operations are counted as for the textbook's algorithm, whatever was done: for n×m, k = min(n, m), l = max(n, m), a thin SVD
:math:`14lk^2 + 8k^3`, its values alone :math:`4lk^2 - \tfrac43k^3`, an eigendecomposition :math:`9n^3`, its values
:math:`\tfrac43n^3`, the k largest triplets :math:`4nmk` (two products, were the vectors known); a complex one four times as many
(Golub & Van Loan, *Matrix Computations*, §8.3 and Figure 8.6.1). The share is of the fastest matrix product of the same dtype
that the devices do in the same run.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks._timing import PAUSE, made, ratio, summary
from rmtjax._checks import one_of, whole
from rmtjax._errors import InputError, shown
from rmtjax.linalg.svd import EIGH_ALGORITHMS, SINGLE, SVD_ALGORITHMS, eigh, eigvalsh, select_algorithm, svd, svdvals

__all__ = ["DEFAULT_SHAPES", "OPERATIONS", "bench_svd", "read_shapes"]

OPERATIONS = ("svd", "svdvals", "eigh", "eigvalsh", "top")
"""With vectors, values only, the same for symmetric matrices, and the k largest triplets."""
DEFAULT_SHAPES = {
    "cpu": (
        (4096, 4, 4), (4096, 8, 8), (1024, 16, 16), (512, 32, 32), (256, 64, 64), (64, 128, 128), (16, 256, 256), (4, 512, 512),
        (1, 1024, 1024), (256, 256, 16), (64, 512, 64), (8, 2048, 128),
    ),
    "gpu": (
        (65536, 4, 4), (16384, 8, 8), (16384, 16, 16), (4096, 32, 32), (1024, 64, 64), (256, 128, 128), (64, 256, 256),
        (16, 512, 512), (1, 1024, 1024), (1, 4096, 4096), (4096, 256, 16), (512, 512, 64), (64, 2048, 128),
    ),
}  # fmt: skip
"""Default batches (B, n, m)."""
_DTYPES = ("float32", "float64", "complex64", "complex128")
_ACCURACY_OF = 2
"""Number of matrices of a batch whose decompositions are checked."""

Function = Callable[[], Any]


def read_shapes(text: str, batch: int | None = None) -> list[tuple[int, int, int]]:
    """Return shapes from a line such as `64x64,16x512x128`; those of two numbers get `batch` matrices, 64 by default.

    Raises:
        InputError: for anything that is not a shape.
    """
    if batch is not None:
        whole("batch", batch)
    shapes = []
    for word in text.split(","):
        parts = word.strip().replace("×", "x").split("x")
        if not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts) or len(parts) not in (1, 2, 3):
            raise InputError(f"shapes = {shown(word.strip())}: must be N, NxM or BATCHxNxM, with commas between")
        sizes = [int(p) for p in parts]
        sizes = sizes * 2 if len(sizes) == 1 else sizes
        shapes.append(tuple(sizes) if len(sizes) == 3 else (64 if batch is None else batch, *sizes))
    return shapes


def _operations(operation: str, n: int, m: int, k: int | None, dtype: np.dtype) -> float:
    short, long = sorted((n, m))
    count = {
        "svd": 14 * long * short**2 + 8 * short**3,
        "svdvals": 4 * long * short**2 - 4 / 3 * short**3,
        "eigh": 9 * n**3,
        "eigvalsh": 4 / 3 * n**3,
        "top": 4 * n * m * (k or 0),
    }[operation]
    return float(count * (4 if dtype.kind == "c" else 1))


def _spread(host: np.ndarray, devices: Sequence[jax.Device]) -> tuple[jax.Array, int]:
    """Return a batch on as many devices as divide it evenly, and their number."""
    count = max(d for d in range(1, len(devices) + 1) if len(host) % d == 0)
    mesh = Mesh(np.asarray(devices[:count]), ("batch",))
    return jax.device_put(host, NamedSharding(mesh, PartitionSpec("batch"))), count


def matmul_peak(dtype: np.dtype, seconds: float = 1.0) -> float:
    """Return the highest rate, in operations a second, of a product of two square matrices on JAX's first device."""
    best = 0.0
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    for n in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
        a = jnp.ones((n, n), dtype)
        product(a).block_until_ready()
        began, least = time.perf_counter(), np.inf
        while time.perf_counter() - began < seconds / 2:
            start = time.perf_counter()
            product(a).block_until_ready()
            least = min(least, time.perf_counter() - start)
        best = max(best, 2 * n**3 * (4 if dtype.kind == "c" else 1) / least)
    return best


# -- who takes part ------------------------------------------------------------------------------------------------------


def _ours(operation: str, a: jax.Array, k: int | None, host: np.ndarray) -> dict[str, Function]:
    """Return each algorithm of ours, as a function that waits for its results."""

    def ready(function):
        return lambda: jax.block_until_ready(function())

    no_use = () if host.dtype.name in SINGLE else ("gram64",)
    if operation == "svd":
        names = [n for n in SVD_ALGORITHMS if n not in ("randomized", "lanczos", *no_use)]
        return {n: ready(functools.partial(svd, a, algorithm=n)) for n in ("auto", *names)}
    if operation == "svdvals":
        names = [n for n in SVD_ALGORITHMS if n not in ("randomized", "lanczos", "polar", *no_use)]
        return {n: ready(functools.partial(svdvals, a, algorithm=n)) for n in ("auto", *names)}
    if operation == "top":
        whole = ["threads"] if no_use else ["threads", "gram64"]
        names = [*whole, "randomized"] + (["lanczos"] if host.dtype.kind == "f" else [])
        return {n: ready(functools.partial(svd, a, k=k, algorithm=n)) for n in ("auto", *names)}
    function = eigh if operation == "eigh" else eigvalsh
    return {n: ready(functools.partial(function, a, algorithm=n)) for n in ("auto", *EIGH_ALGORITHMS)}


def _peers(operation: str, a: jax.Array, k: int | None, host: np.ndarray) -> dict[str, Function]:
    """Return the installed peers: jax.numpy itself, NumPy, SciPy (a loop), PyTorch and CuPy."""
    jitted = {
        "svd": lambda a: jnp.linalg.svd(a, full_matrices=False),
        "svdvals": lambda a: jnp.linalg.svd(a, compute_uv=False),
        "eigh": jnp.linalg.eigh,
        "eigvalsh": jnp.linalg.eigvalsh,
        "top": lambda a: jnp.linalg.svd(a, full_matrices=False),
    }
    program = jax.jit(jitted[operation])
    vectors = operation not in ("svdvals", "eigvalsh")
    symmetric = operation in ("eigh", "eigvalsh")
    found: dict[str, Function] = {"jax.numpy": lambda: jax.block_until_ready(program(a))}
    if symmetric:
        found["numpy"] = functools.partial(np.linalg.eigh if vectors else np.linalg.eigvalsh, host)
        found["scipy"] = lambda: [
            scipy.linalg.eigh(x, eigvals_only=not vectors, driver="evd", check_finite=False) for x in host
        ]
    else:
        found["numpy"] = functools.partial(np.linalg.svd, host, full_matrices=False, compute_uv=vectors)
        if operation == "top" and k is not None:
            from scipy.sparse.linalg import svds

            if k < min(host.shape[1:]) - 1:
                found["scipy"] = lambda: [svds(x, k=k) for x in host]
        else:
            found["scipy"] = lambda: [
                scipy.linalg.svd(x, full_matrices=False, compute_uv=vectors, check_finite=False) for x in host
            ]
    if find_spec("torch") is not None:
        found |= _torch(operation, k, host)
    if find_spec("cupy") is not None and jax.default_backend() == "gpu":
        found |= _cupy(operation, host)
    return found


def _torch(operation: str, k: int | None, host: np.ndarray) -> dict[str, Function]:
    import torch

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    tensor = torch.from_numpy(host).to("cuda" if on_gpu else "cpu")

    def ready(function):
        def run():
            out = function()
            if on_gpu:
                torch.cuda.synchronize()
            return out

        return run

    if operation == "eigh":
        return {"torch": ready(lambda: torch.linalg.eigh(tensor))}
    if operation == "eigvalsh":
        return {"torch": ready(lambda: torch.linalg.eigvalsh(tensor))}
    if operation == "svdvals":
        return {"torch": ready(lambda: torch.linalg.svdvals(tensor))}
    if operation == "top":
        return {"torch": ready(lambda: torch.svd_lowrank(tensor, q=min(k + 10, *tensor.shape[1:]), niter=4))}
    found = {"torch": ready(lambda: torch.linalg.svd(tensor, full_matrices=False))}
    if on_gpu:
        for driver in ("gesvdj", "gesvda"):
            if driver == "gesvdj" or tensor.shape[1] >= 2 * tensor.shape[2]:
                found[f"torch {driver}"] = ready(
                    lambda driver=driver: torch.linalg.svd(tensor, full_matrices=False, driver=driver)
                )
    return found


def _cupy(operation: str, host: np.ndarray) -> dict[str, Function]:
    import cupy

    array = cupy.asarray(host)
    functions = {
        "svd": lambda: cupy.linalg.svd(array, full_matrices=False),
        "svdvals": lambda: cupy.linalg.svd(array, compute_uv=False),
        "eigh": lambda: cupy.linalg.eigh(array),
        "eigvalsh": lambda: cupy.linalg.eigvalsh(array),
        "top": lambda: cupy.linalg.svd(array, full_matrices=False),
    }

    def run():
        out = functions[operation]()
        cupy.cuda.get_current_stream().synchronize()
        return out

    return {"cupy": run}


# -- how well ------------------------------------------------------------------------------------------------------------


def _gaussian(shape: tuple[int, int, int], dtype: np.dtype, symmetric: bool, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    a = a / np.sqrt(max(shape[1:]))
    return ((a + a.swapaxes(1, 2).conj()) / 2 if symmetric else a).astype(dtype)


def _graded(shape: tuple[int, int, int], dtype: np.dtype, symmetric: bool) -> np.ndarray:
    """Return matrices whose singular values fall geometrically from 1 to ten times the precision."""
    _, n, m = shape
    k = min(n, m)
    u, _, vh = np.linalg.svd(_gaussian((_ACCURACY_OF, n, m), np.dtype("c16" if dtype.kind == "c" else "f8"), False, 1))
    s = np.geomspace(1, 10 * np.finfo(dtype).eps, k)
    left = u[:, :, :k] * s
    return (left @ u[:, :, :k].swapaxes(1, 2).conj() if symmetric else left @ vh[:, :k]).astype(dtype)


def _errors(result: Any, a: np.ndarray, symmetric: bool, k: int | None) -> dict[str, float]:
    """Return errors for some matrices: values relative to the largest, A − UΣV* relative to A, and U*U from the identity."""
    exact = a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    wanted = np.linalg.eigvalsh(exact) if symmetric else np.linalg.svd(exact, compute_uv=False)[:, :k]
    largest = np.abs(wanted).max(1, keepdims=True)
    if not isinstance(result, tuple):
        return {"values": float(np.max(np.abs(np.asarray(result) - wanted) / largest))}
    parts = [np.asarray(x).astype(exact.dtype if np.iscomplexobj(x) else np.float64) for x in result]
    u, values, vh = (parts[1], parts[0], parts[1].swapaxes(1, 2).conj()) if symmetric else parts
    found = {"values": float(np.max(np.abs(values - wanted) / largest))}
    if k is None:
        rest = np.linalg.norm((u * values[:, None]) @ vh - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
        found["residual"] = float(rest.max())
    eye = np.eye(u.shape[-1])
    found["orthogonality"] = max(
        float(np.abs(q.swapaxes(1, 2).conj() @ q - eye).max()) for q in (u, vh.swapaxes(1, 2).conj())
    )
    return found


def _accuracy(operation: str, k: int | None, names: Sequence[str], **kinds: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return errors of our algorithms on some matrices of each kind."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for kind, a in kinds.items():
        functions = _ours(operation, jnp.asarray(a), k, a)
        for name in names:
            found[name][kind] = _errors(functions[name](), a, operation in ("eigh", "eigvalsh"), k)
    return found


# -- the bench -----------------------------------------------------------------------------------------------------------


def _timed(functions: dict[str, Function], repeats: int, most_s: float, more: int = 1) -> dict[str, dict[str, Any]]:
    """Return alternating timings; functions that fail or run out of time are reported and left out of later rounds."""
    times: dict[str, float] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, function in functions.items():
        try:
            began = time.perf_counter()
            function()
            first = time.perf_counter() - began
            time.sleep(PAUSE)
            began = time.perf_counter()
            function()
            again = time.perf_counter() - began
        except Exception as error:  # a peer that cannot do this shape is no reason to stop
            found[name] = {"failed": shown(f"{type(error).__name__}: {error}", 200)}
            continue
        found[name] = {"compile_s": max(first - again, 0.0)}
        times[name] = again
    rounds = {name: [] for name, again in times.items() if again * repeats <= most_s}
    is_short = sum(times[name] + PAUSE for name in rounds) <= 1
    for _ in range(repeats * (more if is_short else 1)):
        for name, all_ in rounds.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            functions[name]()
            all_.append(time.perf_counter() - began)
    for name, again in times.items():
        found[name] |= summary(rounds.get(name, [again]))
    return found


def bench_svd(
    shapes: Sequence[tuple[int, int, int]] | None = None,
    *,
    dtype: str = "float32",
    operations: Sequence[str] = ("svd", "svdvals", "eigh", "eigvalsh", "top"),
    top: int = 10,
    repeats: int = 5,
    most_s: float = 20.0,
    more: int = 1,
    seconds: float = math.inf,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time every algorithm and peer on batches of Gaussian matrices.

    Args:
        shapes: batches (B, n, m); None for `DEFAULT_SHAPES`. Those that are not square are left out of eigh, and those
            smaller than 16·top out of top.
        dtype: float32, float64, complex64 or complex128.
        operations: of `OPERATIONS`.
        top: k of the operation top.
        repeats: rounds, each with all functions, after two that do not count.
        most_s: seconds that the rounds of one may take; what is slower is timed once.
        more: so many times the rounds where one of all takes a second or less: times of milliseconds differ by half.
        seconds: for all of it; cases that would begin later are left out.
        devices: among which JAX's batches are shared out evenly, as many of them as can; all local ones if None. Peers other
            than jax.numpy take one.
        progress: called with (cases done, cases).

    Returns:
        What `benchmarks._timing.made` says, `devices`, `peak_gflops`, how many cases were `left_out` for want of time, which
        operations and shapes are `unsuited` to each other, and `cases`: for each operation and shape on how many `devices`,
        `times` by name (`compile_s`, `median_s`, `min_s`, `times_s`, `matrices_per_s`, `gflops`, `share`, or `failed`),
        `accuracy` of ours on Gaussian and on graded matrices, `auto`, `best` of those as precise, and ratios of the others'
        times to ours.

    Raises:
        InputError: for unknown operations and dtypes, empty shapes, and numbers that cannot be.
    """
    one_of("dtype", dtype, _DTYPES)
    for what in operations:
        one_of("operation", what, OPERATIONS)
    for name, value in (("top", top), ("repeats", repeats), ("more", more)):
        whole(name, value)
    devices = jax.local_devices() if devices is None else list(devices)
    platform = jax.default_backend()
    shapes = DEFAULT_SHAPES["cpu" if platform == "cpu" else "gpu"] if shapes is None else shapes
    for shape in shapes:
        if len(shape) != 3 or not all(isinstance(x, int) and x > 0 for x in shape):
            raise InputError(f"shapes has {shown(tuple(shape))}: must be (batch, n, m), whole numbers of 1 or more")
    kind = np.dtype(dtype)
    pairs = [(what, tuple(shape)) for what in operations for shape in shapes]
    unsuited = [
        (what, shape)
        for what, shape in pairs
        if (what in ("eigh", "eigvalsh") and shape[1] != shape[2]) or (what == "top" and min(shape[1:]) < 16 * top)
    ]
    cases = [pair for pair in pairs if pair not in unsuited]
    if not cases:
        raise InputError(f"shapes = {shown(list(shapes))}: none is for {', '.join(operations)}")
    with jax.enable_x64(True):
        began, peak, done = time.perf_counter(), matmul_peak(kind), []
        for i, (what, shape) in enumerate(cases):
            if time.perf_counter() - began > seconds:
                break
            done.append(
                _case(what, shape, kind, top if what == "top" else None, (repeats, most_s, more), peak, devices)
            )
            if progress is not None:
                progress(i + 1, len(cases))
    return {
        **made("svd"),
        "dtype": dtype,
        "platform": platform,
        "devices": len(devices),
        "peak_gflops": peak / 1e9,
        "cases": done,
        "left_out": len(cases) - len(done),
        "unsuited": [[what, list(shape)] for what, shape in unsuited],
    }


def _case(
    operation: str, shape: tuple[int, int, int], dtype: np.dtype, k: int | None, rounds: tuple[int, float, int], peak: float,
    devices: Sequence[jax.Device],
) -> dict[str, Any]:  # fmt: skip
    symmetric = operation in ("eigh", "eigvalsh")
    host = _gaussian(shape, dtype, symmetric, 0)
    a, count = _spread(host, devices)
    ours, peers = _ours(operation, a, k, host), _peers(operation, a, k, host)
    if a.size * min(shape[1:]) > 3e8 and jax.default_backend() == "cpu":
        for name in ("jacobi", "polar"):  # minutes, which only accelerators can afford
            ours.pop(name, None)
    times = _timed({**{f"rmtjax {name}": f for name, f in ours.items()}, **peers}, *rounds)
    operations = _operations(operation, *shape[1:], k, dtype)
    if devices[0].platform != "cpu":  # when one device already has all cores
        peak *= count
    for one in times.values():
        if "median_s" in one:
            one["matrices_per_s"] = shape[0] / one["median_s"]
            one["gflops"] = one["matrices_per_s"] * operations / 1e9
            one["share"] = one["gflops"] * 1e9 / peak
    done = [name for name in ours if "median_s" in times[f"rmtjax {name}"]]
    accuracy = _accuracy(operation, k, done, gaussian=host[:_ACCURACY_OF], graded=_graded(shape, dtype, symmetric))
    # Each device chooses for its share.
    share = (shape[0] // count, *shape[1:])
    chosen = select_algorithm(share, dtype, symmetric=symmetric, vectors=operation not in ("svdvals", "eigvalsh"), k=k)
    slack = 10 * np.sqrt(max(shape[1:])) * np.finfo(dtype).eps
    precise = [
        name
        for name, found in accuracy.items()
        if name != "auto" and all(x <= slack for kind in found.values() for x in kind.values())
    ]
    case: dict[str, Any] = {
        "what": operation,
        "shape": list(shape),
        "k": k,
        "devices": count,
        "times": times,
        "accuracy": accuracy,
        "auto": chosen,
    }
    auto = times["rmtjax auto"]
    if precise:
        best = min(precise, key=lambda name: times[f"rmtjax {name}"]["median_s"])
        case["best"] = best
        # Of the two algorithms, both by name: the overhead of auto is part of its own times.
        taken = times.get(f"rmtjax {chosen}", auto)
        case["auto_over_best"] = ratio(taken, times[f"rmtjax {best}"])
    case["over_auto"] = {name: ratio(times[name], auto) for name in peers if "median_s" in times[name]}
    return case
