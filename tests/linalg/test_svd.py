"""Decompositions by every algorithm against NumPy's in double precision, their derivatives, and who has BLAS's threads."""

import itertools
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from rmtjax import InputError
from rmtjax.linalg.svd import (
    EIGH_ALGORITHMS,
    SINGLE,
    SVD,
    SVD_ALGORITHMS,
    eigh,
    eigvalsh,
    jacobi,
    lanczos,
    one_blas_thread,
    select_algorithm,
    svd,
    svdvals,
)
from rmtjax.linalg.svd.api import is_sound
from rmtjax.linalg.svd.lapack import numpy_symmetric

FULL = ("auto", "library", "threads", "jacobi", "gram", "polar")
VALUES = ("auto", "library", "threads", "jacobi", "gram")
ALSO_SINGLE = "gram64"  # which is for nothing else
SYMMETRIC = ("auto", *EIGH_ALGORITHMS)
DTYPES = ("float32", "float64", "complex64", "complex128")


@pytest.fixture(autouse=True)
def one_thread():
    """Many small decompositions: waking LAPACK's threads would take longer than the work."""
    with threadpool_limits(1, user_api="blas"):
        yield


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    a = rng.normal(size=shape)
    return (a + 1j * rng.normal(size=shape) if "complex" in dtype else a).astype(dtype)


def goe(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Matrices (..., N, N) with off-diagonal variance 1/N."""
    a = rng.normal(size=(*shape, shape[-1]))
    return (a + a.swapaxes(-1, -2)) / np.sqrt(2 * shape[-1])


def adjoint(a: np.ndarray) -> np.ndarray:
    return np.asarray(a).swapaxes(-1, -2).conj()


def check(factors: SVD, a: np.ndarray, tolerance: float) -> None:
    """Factors of the right shape and dtype, orthonormal, in order, and A when multiplied."""
    u, s, vh = map(np.asarray, factors)
    k = min(a.shape[-2:])
    assert u.dtype == vh.dtype == a.dtype and s.dtype == a.real.dtype
    assert (
        u.shape == (*a.shape[:-1], k) and s.shape == (*a.shape[:-2], k) and vh.shape == (*a.shape[:-2], k, a.shape[-1])
    )
    u, s, vh = u.astype(complex), s.astype(float), vh.astype(complex)  # so that what is seen is their error
    scale = np.float64(max(np.linalg.norm(a.astype(complex), 2, (-2, -1)).max(), 1e-300))
    assert np.all(np.diff(s, axis=-1) <= 0) and np.all(s >= 0)
    np.testing.assert_allclose(s / scale, np.linalg.svd(a.astype(complex), compute_uv=False) / scale, atol=tolerance)
    np.testing.assert_allclose((u * s[..., None, :]) @ vh / scale, a / scale, atol=tolerance)
    for q in (u, adjoint(vh)):
        np.testing.assert_allclose(adjoint(q) @ q, np.broadcast_to(np.eye(k), (*a.shape[:-2], k, k)), atol=tolerance)


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.first(2)
@pytest.mark.parametrize("algorithm", (*FULL, ALSO_SINGLE))
@pytest.mark.parametrize("dtype", DTYPES)
def test_svd(dtype, algorithm):
    rng = np.random.default_rng(0)
    if algorithm == ALSO_SINGLE and dtype not in SINGLE:
        for function in (svd, svdvals):
            with pytest.raises(InputError, match=f"matrix has dtype {dtype}: must be float32 or complex64 for gram64"):
                function(np.eye(3, dtype=dtype), algorithm=algorithm)
        return
    for shape in ((3, 2, 5, 8), (2, 7, 6)) if "64" in dtype else ((2, 1, 1), (1, 9), (4, 9, 1)):
        a = normal(rng, shape, dtype)
        check(svd(a, algorithm=algorithm), a, 60 * np.finfo(dtype).eps)


@pytest.mark.first(2)
@pytest.mark.parametrize("algorithm", FULL)
def test_svd_of_singular_matrices(algorithm):
    """Vectors of null spaces are orthonormal all the same."""
    rng = np.random.default_rng(1)
    low = normal(rng, (9, 2)) @ normal(rng, (2, 6))
    a = np.stack([low, np.zeros((9, 6)), np.eye(9, 6), 1e200 * low, 1e-200 * low, np.ones((9, 6))])
    tolerance = 1e-6 if algorithm == "gram" else 1e-13  # whose small singular values are off by √ε
    for one, *found in zip(a, *svd(a, algorithm=algorithm), strict=True):
        check(SVD(*found), one, tolerance)


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("dtype", "algorithm"),
    [*itertools.product(DTYPES, VALUES), *((dtype, ALSO_SINGLE) for dtype in SINGLE)],
)
def test_svdvals(dtype, algorithm):
    a = normal(np.random.default_rng(2), (3, 2, 6, 4), dtype)
    for one in (a, a.swapaxes(-1, -2)):
        got = svdvals(one, algorithm=algorithm)
        assert got.dtype == a.real.dtype and got.shape == (3, 2, 4)
        np.testing.assert_allclose(got, np.linalg.svd(one, compute_uv=False), atol=100 * np.finfo(dtype).eps)


@pytest.mark.first(2)
@pytest.mark.parametrize("algorithm", SYMMETRIC)
@pytest.mark.parametrize("dtype", DTYPES)
def test_eigh(dtype, algorithm):
    rng = np.random.default_rng(3)
    for n in (1, 7) if "64" in dtype else (2,):
        a = normal(rng, (3, 2, n, n), dtype)
        a = a + adjoint(a)
        wanted, tolerance = np.linalg.eigvalsh(a), 100 * np.finfo(dtype).eps
        values, v = map(np.asarray, eigh(a, algorithm=algorithm))
        assert values.dtype == a.real.dtype and v.dtype == a.dtype and v.shape == a.shape
        np.testing.assert_allclose(values, wanted, atol=tolerance)
        np.testing.assert_allclose((v * values[..., None, :]) @ adjoint(v), a, atol=2 * tolerance)
        np.testing.assert_allclose(adjoint(v) @ v, np.broadcast_to(np.eye(n), v.shape), atol=tolerance)
        np.testing.assert_allclose(eigvalsh(a, algorithm=algorithm), wanted, atol=tolerance)
        # Only the lower triangle is read, where a program cannot check that the other one is the same.
        lower = np.tril(a)
        with jax.enable_x64(True):
            got = jax.jit(lambda x: eigvalsh(x, algorithm=algorithm))(jax.device_put(lower))
        np.testing.assert_allclose(got, wanted, atol=tolerance)


def test_jacobi_is_precise_relative_to_each_value():
    """Columns of very different sizes: LAPACK's small values are rounding of the large ones, those of Jacobi are not."""
    rng = np.random.default_rng(4)
    a = (normal(rng, (5, 12, 8)) * np.geomspace(1e-6, 1, 8)).astype(np.float32)
    exact = np.linalg.svd(a.astype(float), compute_uv=False)  # of float64, whose rounding is far below
    off = np.abs(np.asarray(jacobi.one_sided(jax.device_put(a))[1]) / exact - 1).max()
    assert off < 2e-6
    assert np.abs(np.asarray(svdvals(a, algorithm="library")) / exact - 1).max() > 10 * off


def test_jacobi_goes_on_until_it_is_done():
    """Values that fall to the precision take several times the sweeps of Gaussian ones."""
    rng = np.random.default_rng(18)
    u, v = (np.linalg.qr(normal(rng, (96, 96)))[0] for _ in range(2))
    a = (u * np.geomspace(1, 1e-14, 96)) @ v
    with jax.enable_x64(True):
        av, s, _ = map(np.asarray, jacobi.one_sided(jax.device_put(a[None])))
    cosines = (av[0].T @ av[0]) / s[0] / s[0][:, None] - np.eye(96)
    assert np.abs(cosines).max() < 1e-13 * 96


def test_large_singular_values_of_gram_are_precise():
    """And the documentation is right about the small ones: they are off by √ε σ₁ at most."""
    rng = np.random.default_rng(5)
    u, vh = np.linalg.qr(normal(rng, (40, 10)))[0], np.linalg.qr(normal(rng, (10, 10)))[0]
    s = np.geomspace(1, 1e-7, 10)
    got = svd((u * s @ vh).astype(np.float32), algorithm="gram").S
    np.testing.assert_allclose(got[:4], s[:4], rtol=2e-4)
    np.testing.assert_allclose(got, s, atol=2 * np.sqrt(np.finfo(np.float32).eps))


@pytest.mark.parametrize("dtype", SINGLE)
def test_gram_in_double_precision_rounds_the_decomposition(dtype):
    """Whatever the condition: values, product and orthogonality are off by a rounding or two, LAPACK's in single by ten."""
    rng = np.random.default_rng(19)
    u, v = (
        np.linalg.qr(normal(rng, (6, side, 24), "complex128" if "complex" in dtype else "float64"))[0]
        for side in (40, 24)
    )
    s = np.stack([
        np.geomspace(1, 10.0**-decades, 24) for decades in (1, 4, 8, 20)
    ] + [np.append(np.ones(5), np.zeros(19)), np.append(1, np.full(23, 1e-5))])  # fmt: skip
    a = ((u * s[:, None]) @ adjoint(v)).astype(dtype)
    a = np.concatenate(
        [a, 1e30 * a[:3], 1e-30 * a[:3], np.zeros((1, 40, 24), dtype), np.ones((1, 40, 24), dtype)]
    ).astype(dtype)
    eps = np.finfo(np.float32).eps
    for one in (a, a.swapaxes(-1, -2)):
        for part in np.split(one, len(one)):  # each against its own largest value
            check(svd(part, algorithm="gram64"), part, 2 * eps)
        check(svd(one[:6], algorithm="gram64"), one[:6], 2 * eps)  # some of a batch ill-conditioned, some not
    exact = np.linalg.svd(a.astype(np.complex128), compute_uv=False)
    off = np.abs(np.asarray(svdvals(a, algorithm="gram64")) - exact).max(1) / np.maximum(exact[:, 0], 1e-300)
    assert off.max() < eps


# -- the largest -------------------------------------------------------------------------------------------------------


@pytest.mark.first(2)
@pytest.mark.parametrize("shape", [(2, 90, 60), (60, 90)])
@pytest.mark.parametrize("algorithm", ["auto", "library", "jacobi", "randomized", "lanczos"])
def test_top(shape, algorithm):
    rng = np.random.default_rng(6)
    u, _, vh = np.linalg.svd(normal(rng, shape), full_matrices=False)
    s = 0.6 ** np.arange(60)
    a = u * s @ vh
    found = SVD(*map(np.asarray, svd(a, k=5, algorithm=algorithm, tolerance=1e-6)))
    assert found.U.shape == (*shape[:-1], 5) and found.Vh.shape == (*shape[:-2], 5, shape[-1])
    np.testing.assert_allclose(found.S, np.broadcast_to(s[:5], found.S.shape), rtol=1e-9)
    for got, wanted in ((found.U, u[..., :5]), (adjoint(found.Vh), adjoint(vh)[..., :5])):
        np.testing.assert_allclose(np.abs(np.sum(got * wanted, -2)), 1, atol=1e-8)
    np.testing.assert_allclose(
        (found.U * found.S[..., None, :]) @ found.Vh, (u * s)[..., :5] @ vh[..., :5, :], atol=1e-4
    )


def test_power_iterations_are_what_helps():
    a = normal(np.random.default_rng(7), (120, 120))
    exact = np.linalg.svd(a, compute_uv=False)[:3]
    off = [np.abs(np.asarray(svd(a, k=3, algorithm="randomized", iterations=i).S) - exact).max() for i in (0, 2, 8)]
    assert off[0] > 3 * off[1] > 9 * off[2]


# -- in programs -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("n", [1, 40])
def test_under_jit_and_vmap(n):
    rng = np.random.default_rng(8)
    with jax.enable_x64(True):
        a = jax.device_put(goe(rng, 3, 5, n))
        wanted = np.linalg.eigvalsh(a)
        for f in (jax.jit(eigvalsh), jax.vmap(eigvalsh), jax.jit(jax.vmap(jax.vmap(eigvalsh)))):
            np.testing.assert_allclose(f(a), wanted, atol=1e-13)
        exact = np.linalg.svd(a, compute_uv=False)
        for algorithm in VALUES:

            def values(a, algorithm=algorithm):
                return svdvals(a, algorithm=algorithm), svd(a, algorithm=algorithm).S

            for got in (*jax.jit(values)(a), *jax.jit(jax.vmap(values))(a)):
                np.testing.assert_allclose(got, exact, atol=1e-7 if algorithm == "gram" else 1e-13)
        np.testing.assert_allclose(jax.lax.map(svdvals, a), exact, atol=1e-13)
        single = a.astype(jnp.float32)
        u, s, vh = jax.jit(jax.vmap(lambda a: svd(a, algorithm="gram64")))(single)
        np.testing.assert_allclose(s, exact, atol=1e-6)
        np.testing.assert_allclose((u * s[..., None, :]) @ vh, a, atol=1e-6)


def test_gradients_of_values():
    rng = np.random.default_rng(9)
    with jax.enable_x64(True):
        a, b, c = goe(rng, 6), goe(rng, 6), rng.normal(size=(2, 4, 6))
        for f, at, along in ((eigvalsh, a, b), (svdvals, c[0], c[1]), (svdvals, c[0].T, c[1].T)):
            _, got = jax.jit(lambda at, along, f=f: jax.jvp(f, (at,), (along,)))(at, along)
            step = 1e-6
            wanted = (np.asarray(f(at + step * along)) - np.asarray(f(at - step * along))) / (2 * step)
            np.testing.assert_allclose(got, wanted, atol=1e-8)
        # The sum of squared eigenvalues is the sum of squared entries, of which one triangle is looked at.
        slope = jax.jit(jax.grad(lambda x: jnp.sum(eigvalsh(x) ** 2)))(a)
        np.testing.assert_allclose(np.tril(slope), np.tril(2 * a + 2 * np.tril(a, -1)), atol=1e-12)
        batch = jax.jit(jax.vmap(jax.grad(lambda x: svdvals(x)[0])))(c)
        u, _, vh = np.linalg.svd(c)
        np.testing.assert_allclose(batch, u[:, :, :1] * vh[:, :1], atol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("algorithm", ["library", "threads", "jacobi", "gram", "polar"])
@pytest.mark.parametrize(("shape", "dtype"), [((2, 6, 4), "complex128"), ((4, 6), "float64")])
def test_derivatives_of_vectors(algorithm, shape, dtype):
    """Of u₀v₀*, which no choice of signs or phases changes, forwards and backwards; and of A itself, which is dA."""
    rng = np.random.default_rng(10)
    with jax.enable_x64(True):
        a, da = (jax.device_put(normal(rng, shape, dtype)) for _ in range(2))

        def leading(a):
            u, _, vh = svd(a, algorithm=algorithm)
            return u[..., :, :1] @ vh[..., :1, :]

        def whole(a):
            u, s, vh = svd(a, algorithm=algorithm)
            return (u * s[..., None, :]) @ vh

        step = 1e-6
        wanted = (leading(a + step * da) - leading(a - step * da)) / (2 * step)
        np.testing.assert_allclose(jax.jvp(leading, (a,), (da,))[1], wanted, atol=1e-7)
        np.testing.assert_allclose(jax.jvp(whole, (a,), (da,))[1], da, atol=1e-10)
        weight = jax.device_put(normal(rng, a.shape, dtype))
        slope = jax.grad(lambda a: jnp.sum(weight * leading(a)).real)(a)
        np.testing.assert_allclose(jnp.sum(slope * da).real, jnp.sum(weight * wanted).real, atol=1e-6)


@pytest.mark.thorough
def test_derivatives_of_eigenvectors():
    rng = np.random.default_rng(11)
    with jax.enable_x64(True):
        for dtype in ("float64", "complex128"):
            a, da = (normal(rng, (2, 5, 5), dtype) for _ in range(2))
            a, da = (jax.device_put(x + adjoint(x)) for x in (a, da))
            for algorithm in EIGH_ALGORITHMS:

                def projector(a, algorithm=algorithm):
                    v = eigh(a, algorithm=algorithm).eigenvectors[..., :2]
                    return v @ jnp.swapaxes(v, -1, -2).conj()

                step = 1e-6
                wanted = (projector(a + step * da) - projector(a - step * da)) / (2 * step)
                np.testing.assert_allclose(jax.jvp(projector, (a,), (da,))[1], wanted, atol=1e-7)


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_callers_in_many_threads():
    """Eight at once get their own answers, and BLAS has as many threads afterwards as before."""
    rng = np.random.default_rng(12)
    a = goe(rng, 8, 6, 60)
    wanted = np.linalg.eigvalsh(a)
    with threadpool_limits(2, user_api="blas"):
        before = [(i["filepath"], i["num_threads"]) for i in threadpool_info()]
        results = [None] * 8

        def work(i):
            for _ in range(3):
                results[i] = np.asarray(eigvalsh(a[i])), np.asarray(svd(a[i], algorithm="threads").S)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert [(i["filepath"], i["num_threads"]) for i in threadpool_info()] == before
    for (values, singular), exact in zip(results, wanted, strict=True):
        np.testing.assert_allclose(values, exact, atol=1e-13)
        np.testing.assert_allclose(np.sort(singular), np.sort(np.abs(exact)), atol=1e-13)


def test_blas_has_its_threads_back_whatever_the_program(monkeypatch):
    """One thread while LAPACK works, all of them after it: in loops, branches, and where part of a result is not used."""
    rng = np.random.default_rng(13)
    x = jax.device_put(normal(rng, (6, 40, 40), "float32"))
    wanted = np.linalg.svd(np.asarray(x), compute_uv=False)
    seen = []
    limit = one_blas_thread._set

    def values(a):
        return svdvals(a, algorithm="threads")

    programs = {
        "alone": (values, 1),
        "in a loop that it does not depend on": (
            lambda a: jax.lax.fori_loop(0, 5, lambda i, s: s + (i + 1) * values(a), jnp.zeros((6, 40))), 15
        ),
        "in a branch": (lambda a: jax.lax.cond(a[0, 0, 0] < 1e9, values, lambda a: 2 * values(a), a), 1),
        "twice": (lambda a: values(a) + svd(a, algorithm="threads").S, 2),
        "without its values": (
            lambda a: jnp.linalg.norm(svd(a, algorithm="threads").U, axis=-2) * wanted, 1
        ),
        "slope": (lambda a: jnp.linalg.norm(jax.jacobian(lambda a: values(a)[0, 0])(a)) * wanted, 1),
    }  # fmt: skip
    monkeypatch.setattr(one_blas_thread, "_set", lambda: (seen.append(1), limit()))
    for name, (program, times) in programs.items():
        seen.clear()
        np.testing.assert_allclose(jax.jit(program)(x), times * wanted, rtol=1e-4, err_msg=name)
        assert seen and one_blas_thread._inside == 0, name


WAITING = """
import jax, jax.numpy as jnp
from rmtjax.linalg.svd import eigh, eigvalsh, svd, svdvals

def both(function, key):
    total = 0.0
    for key, n in zip(jax.random.split(key), (80, 70)):
        a = jax.random.normal(key, (16, n, n))
        total += sum(jnp.sum(x) for x in jax.tree.leaves(function(a @ a.mT)))
    return total

for x64 in (False, True):
    with jax.enable_x64(x64):
        for decompose in (svd, svdvals, eigh, eigvalsh):
            for function in (decompose, jax.vmap(decompose)):
                program = jax.jit(lambda keys: jax.lax.map(lambda key: both(function, key), keys))
                jax.block_until_ready(program(jax.random.split(jax.random.key(0), 20)))
print("done")
"""


@pytest.mark.thorough
def test_decompositions_do_not_wait_for_each_other():
    """Batches of one program that need nothing of each other, on as few threads as there are batches (see the module)."""
    done = subprocess.run(
        [sys.executable, "-c", WAITING], capture_output=True, text=True, timeout=300, env={**os.environ, "NPROC": "2"}
    )
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("algorithm", ("library", "threads", "gram64"))
def test_what_cannot_be_decomposed_is_nan_inside_programs(algorithm):
    rng = np.random.default_rng(19)
    a = normal(rng, (9, 20, 12), "float32")
    a[4, 3, 2] = np.nan
    both = jax.jit(lambda a: (svd(a, algorithm=algorithm).S, svdvals(a, algorithm=algorithm)))(a)
    good = np.arange(9) != 4
    exact = np.linalg.svd(a[good].astype("f8"), compute_uv=False)
    for values in map(np.asarray, both):
        assert np.isnan(values[4]).any()
        np.testing.assert_allclose(values[good], exact, rtol=1e-5)
    if algorithm != "gram64":
        square = a[:, :12] + a[:, :12].swapaxes(-1, -2)
        values = np.asarray(jax.jit(lambda a: eigh(a, algorithm=algorithm))(square).eigenvalues)
        assert np.isnan(values[4]).any() and np.isfinite(values[good]).all()


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_eigenvalues_without_numpys_inner_functions(dtype, monkeypatch):
    """In single precision LAPACK's own; by way of double precision where NumPy does not show these."""
    a = goe(np.random.default_rng(21), 6, 40).astype(dtype)
    if dtype == "complex64":
        a = a + 1j * np.triu(a, 1)
        a = (a + adjoint(a)).astype(dtype)
    exact = np.linalg.eigvalsh(a.astype("c16"))
    direct, vectors = numpy_symmetric("eigvalsh")(a)[0], numpy_symmetric("eigh")(a)[1]
    assert direct.dtype == np.float32 and vectors.dtype == dtype
    np.testing.assert_allclose(direct, exact, atol=5e-6)
    monkeypatch.delattr(np.linalg, "_umath_linalg")
    np.testing.assert_array_equal(numpy_symmetric("eigvalsh")(a)[0], np.linalg.eigvalsh(a))
    for got, wanted in zip(numpy_symmetric("eigh")(a), np.linalg.eigh(a), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_program_under_vmap_takes_what_is_best_for_all():
    x = goe(np.random.default_rng(20), 40, 30).astype("float32")
    for function in (svd, svdvals, eigh, eigvalsh):
        for got, wanted in zip(jax.tree.leaves(jax.vmap(function)(x)), jax.tree.leaves(function(x)), strict=True):
            np.testing.assert_array_equal(got, wanted)
        batched = jax.jit(jax.vmap(jax.vmap(function))).lower(x.reshape(8, 5, 30, 30)).as_text()
        assert "lapack" not in batched and "lapack" in jax.jit(function).lower(x[0]).as_text()
    slopes = jax.vmap(jax.grad(lambda a: svd(a).S[0]))(x)
    u, _, vh = np.linalg.svd(x)
    np.testing.assert_allclose(slopes, u[:, :, :1] * vh[:, :1], atol=1e-4)


# -- which one ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_auto_is_one_of_them():
    rng = np.random.default_rng(14)
    for shape in ((20, 3, 3), (2, 3, 3), (20, 20, 20), (3, 70, 70), (40, 40, 5)):
        a = normal(rng, shape, "float32")
        name = select_algorithm(shape)
        for got, wanted in zip(svd(a), svd(a, algorithm=name), strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=f"{shape} {name}")
        name = select_algorithm(shape, vectors=False, precise=False)
        np.testing.assert_array_equal(svdvals(a, precise=False), svdvals(a, algorithm=name))
    for shape, dtype, wanted in (
        ((2000, 3, 3), "float32", "jacobi"), ((2000, 3, 3), "float64", "jacobi"), ((3, 70, 70), "float32", "gram64"),
        ((20, 3, 3), "float32", "library"), ((50, 16, 16), "float32", "jacobi"), ((100, 16, 16), "float32", "gram64"),
        ((2000, 40, 3), "float32", "jacobi"), ((9000, 50, 3), "float32", "gram64"),
        ((3, 70, 70), "float64", "threads"), ((3, 20, 20), "complex64", "gram64"), ((3, 20, 20), "float64", "threads"),
        ((60, 60), "float32", "library"), ((2, 3, 3), "float64", "library"), ((70, 70), "float32", "gram64"),
    ):  # fmt: skip
        assert select_algorithm(shape, dtype, platform="cpu") == wanted
    assert select_algorithm((20, 20, 20), platform="cpu", symmetric=True) == "threads"
    for platform in ("cpu", "gpu", "tpu"):
        for n in (2, 50, 2000):
            for batch in (1, 1000):
                for precise in (True, False):
                    name = select_algorithm((batch, n, n), precise=precise, platform=platform)
                    assert name in SVD_ALGORITHMS and (name != "gram" or not precise)
                    assert name not in ("threads", "gram64") or platform == "cpu"
                    symmetric = select_algorithm((batch, n, n), symmetric=True, platform=platform)
                    assert symmetric in EIGH_ALGORITHMS


@pytest.mark.parametrize("kind", ["ones", "rank", "falling", "zeros", "huge", "tiny"])
def test_the_largest_of_what_has_few(kind):
    """If a Krylov space cannot decide, or squares leave the range of numbers, the values are those of a full decomposition."""
    random = np.random.default_rng(8)
    a, k = random.standard_normal((512, 512)), 8
    if kind == "falling":
        u, _, vt = np.linalg.svd(a)
        a, k = (u * np.exp(-np.arange(512) / 3)) @ vt, 30
    elif kind == "rank":
        a = a[:, :3] @ a[:3]
    elif kind in ("huge", "tiny"):
        a = a * (1e25 if kind == "huge" else 1e-25)
    else:
        a = np.full_like(a, kind == "ones")
    a = a.astype(np.float32)
    u, s, vh = map(np.asarray, svd(jax.device_put(a), k=k, algorithm="lanczos"))
    wanted = np.linalg.svd(a.astype(float), compute_uv=False)[:k]
    np.testing.assert_allclose(s, wanted, atol=3e-6 * wanted[0])
    for side in (u.T @ u, vh @ vh.T):
        np.testing.assert_allclose(side, np.eye(k), atol=2e-5)
    best = np.sqrt((np.linalg.svd(a.astype(float), compute_uv=False)[k:] ** 2).sum())
    assert np.linalg.norm(a - (u.astype(float) * s) @ vh) <= best + 1e-5 * wanted[0]


def test_what_rounding_leaves_of_the_angles_is_no_reason_to_decompose_all(monkeypatch):
    """Of a Gaussian matrix the bounds on the angles stay at some 10⁻⁴, which is rounding: the vectors are as good as LAPACK's."""
    a = normal(np.random.default_rng(0), (512, 512), "float32")
    monkeypatch.setattr(lanczos, "differentiable_svd", lambda *_: pytest.fail("a whole decomposition"))
    u, s, _ = map(np.asarray, svd(a, k=10, algorithm="lanczos"))
    left, values, _ = np.linalg.svd(np.asarray(a, float))
    np.testing.assert_allclose(s, values[:10], rtol=1e-6)
    cosines = np.abs(np.sum(u * left[:, :10], 0))
    assert np.sqrt(np.maximum(1 - cosines**2, 0)).max() < 1e-3


def test_auto_for_the_largest():
    """The reported algorithm is the one used: Krylov spaces for few of many, a full decomposition where they cannot run."""
    a = normal(np.random.default_rng(17), (800, 800), "float32")
    name = select_algorithm(a.shape, a.dtype, k=4)
    assert name == "lanczos"
    for got, wanted in zip(svd(a, k=4), svd(a, k=4, algorithm=name), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert select_algorithm(a.shape, a.dtype, k=4, precise=False) == "randomized"
    assert select_algorithm(a.shape, np.complex64, k=4) not in ("lanczos", "randomized")
    assert select_algorithm(a.shape, a.dtype, k=400) == select_algorithm((300, 300), k=4) == "gram64"
    inside = jax.jit(lambda a: svd(a, k=4).S)(a)
    np.testing.assert_allclose(inside, svd(a, k=4).S, rtol=1e-4)


def test_rounding_is_no_asymmetry():
    rng = np.random.default_rng(15)
    for dtype in ("float32", "float64"):
        a = rng.normal(size=(4, 50, 50)).astype(dtype)
        product = a * np.arange(50, dtype=dtype) @ a.swapaxes(-1, -2)  # off by a few roundings
        assert np.any(product != product.swapaxes(-1, -2))
        eigvalsh(product)
    np.testing.assert_array_equal(eigvalsh(np.zeros((3, 3))), np.zeros(3))
    np.testing.assert_allclose(eigvalsh(np.diag([1e308, -1e308])), [-1e308, 1e308])


def test_what_accelerators_check_is_what_the_host_checks():
    """Their memory is not copied to look at it: one program says whether all is well."""
    a = goe(np.random.default_rng(16), 3, 6)
    with jax.enable_x64(True):
        for symmetric in (True, False):
            assert is_sound(jax.device_put(a), symmetric)
            broken = a.copy()
            broken[1, 2, 3] = np.nan
            assert not is_sound(jax.device_put(broken), symmetric)
        crooked = a.copy()
        crooked[1, 2, 3] += 1e-6
        crooked = jax.device_put(crooked)
        assert is_sound(crooked, False) and not is_sound(crooked, True)


I3 = np.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eigvalsh(np.eye(3, dtype=int)), "matrix has dtype int64: must be float32, float64, complex64"),
        (lambda: svdvals(np.eye(3, dtype=np.float16)), "matrix has dtype float16: must be float32, float64"),
        (lambda: eigvalsh(np.ones((2, 3))), r"matrix has shape \(2, 3\): must be \(..., N, N\)"),
        (lambda: eigh(np.ones(3)), r"matrix has shape \(3,\)"),
        (lambda: eigvalsh(np.ones((0, 0))), r"matrix has shape \(0, 0\): must not be empty"),
        (lambda: svdvals(np.ones((2, 0, 3))), r"matrix has shape \(2, 0, 3\): must not be empty"),
        (lambda: eigvalsh(I3 + 1e-9 * np.tri(3, k=-1)), "matrix differs from its transpose by 1e-09: must be symmetric"),
        (lambda: eigvalsh(np.stack([I3, np.triu(np.ones((3, 3)))])), "matrix differs from its transpose by 1"),
        (lambda: eigh(np.array([[0, 1j], [1j, 0]])), "matrix differs from its transpose by 2"),
        (lambda: eigvalsh(I3 * np.nan), "matrix has an entry .*nan.*: all must be finite"),
        (lambda: svdvals(I3 + np.inf), "matrix has an entry .*inf.*: all must be finite"),
        (lambda: svd(I3, algorithm="jacoby"), "algorithm 'jacoby' is unknown; did you mean 'jacobi'"),
        (lambda: svdvals(I3, algorithm="polar"), "algorithm 'polar' is unknown"),
        (lambda: eigh(I3, algorithm="gram"), "algorithm 'gram' is unknown"),
        (lambda: svd(I3, k=4), "k = 4: must be a whole number from 1 to 3"),
        (lambda: svd(I3, k=True), "k = True: must be a whole number from 1 to 3"),
        (lambda: svd(I3, algorithm="lanczos"), "k is not given: lanczos needs the number of largest values"),
        (lambda: svd(I3, k=1, algorithm="lanczos"), "k = 1: must be 1 to 0 for 3 rows or columns"),
        (lambda: svd(I3, k=1, algorithm="randomized", iterations=-1), "iterations = -1: must be a whole number"),
        (lambda: svd(1j * I3, k=1, algorithm="lanczos"), "matrix has dtype complex128: must be real for lanczos"),
        (
            lambda: jax.jit(lambda a: svd(a, k=1, algorithm="lanczos"))(I3),
            "algorithm = lanczos: cannot run inside jit, vmap or grad; use randomized there",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
