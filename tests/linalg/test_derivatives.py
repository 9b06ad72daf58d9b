"""Derivatives of every decomposition by every algorithm: against differences of NumPy's, and where there are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax.linalg import dense

DTYPES = ("float32", "float64", "complex64", "complex128")
SVD = ("auto", "library", "threads", "jacobi", "gram", "gram64", "polar", "randomized")
"""All that run inside programs: `lanczos` refuses to."""
EIGH = ("auto", *dense.EIGH_ALGORITHMS)


def normal(rng, shape, dtype="float64"):
    a = rng.normal(size=shape)
    return (a + 1j * rng.normal(size=shape) if "complex" in dtype else a).astype(dtype)


def symmetric(rng, n, dtype="float64"):
    a = normal(rng, (n, n), dtype)
    return a + a.conj().T


def adjoint(a):
    return jnp.swapaxes(a, -1, -2).conj()


def known_dtypes(algorithm):
    return dense.SINGLE if algorithm == "gram64" else DTYPES


def leading(xp, u, s, vh):
    """What no choice of phases changes: the leading triplet's projector, the second's times its value, and the values."""
    first, second = (u[..., :, i : i + 1] @ vh[..., i : i + 1, :] for i in (0, 1))
    return first + second * s[..., 1, None, None], s


def projectors(xp, values, v):
    first = v[..., :1] @ xp.swapaxes(v[..., :1], -1, -2).conj()
    return first * values[..., :1, None], values


def differences(function, a, da, step=1e-5):
    """A central difference, in double precision."""
    a, da = (np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64) for x in (a, da))
    return [
        (one - other) / (2 * step) for one, other in zip(function(a + step * da), function(a - step * da), strict=True)
    ]


def forwards_and_backwards(function, a, da, weights):
    """Tangents of a function of pairs, and the rate of their weighted sum by the gradient."""

    @jax.jit
    def both(a, da):
        def total(a):
            return sum(jnp.sum(w * x).real for w, x in zip(weights, function(a), strict=True))

        return jax.jvp(function, (a,), (da,))[1], jnp.sum(jax.grad(total)(a) * da).real

    return both(a, da)


def check(function, by_numpy, a, da, tolerance):
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        wanted = differences(by_numpy, a, da)
        weights = [normal(rng, x.shape) for x in wanted]
        tangents, rate = forwards_and_backwards(function, jnp.asarray(a), jnp.asarray(da), weights)
    for got, right in zip(tangents, wanted, strict=True):
        np.testing.assert_allclose(got, right, atol=tolerance * np.abs(right).max())
    right = sum(np.sum(w * x).real for w, x in zip(weights, wanted, strict=True))
    size = sum(np.abs(w * x).sum() for w, x in zip(weights, wanted, strict=True))
    np.testing.assert_allclose(rate, right, atol=tolerance * size)


def tolerance_of(dtype):
    return 2e-7 if dtype in ("float64", "complex128") else 2e-4


# The shapes are such that XLA vectorises and contracts products: at (2, 2) it may not.
@pytest.mark.parametrize("shape", [(7, 4), (5, 5)])
@pytest.mark.parametrize(("algorithm", "dtype"), [(a, d) for a in SVD for d in known_dtypes(a)])
def test_svd(algorithm, dtype, shape):
    """At ordinary scale; before, off by 10⁷ to 10¹⁷ where a difference of squares was tested for 0."""
    rng = np.random.default_rng(0)
    a, da = normal(rng, shape, dtype), normal(rng, shape, dtype)
    options = {"k": 3, "iterations": 6} if algorithm == "randomized" else {}

    def function(a):
        u, s, vh = dense.svd(a, algorithm=algorithm, **options)
        return leading(jnp, u, s[:3], vh)

    def by_numpy(a):
        u, s, vh = np.linalg.svd(a, full_matrices=False)
        return leading(np, u, s[:3], vh)

    check(function, by_numpy, a, da, tolerance_of(dtype))
    if shape == (7, 4):
        check(lambda a: function(adjoint(a)), lambda a: by_numpy(a.conj().T), a, da, tolerance_of(dtype))


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [(a, d) for a in ("auto", "library", "threads", "jacobi", "gram", "gram64") for d in known_dtypes(a)],
)
def test_svdvals(algorithm, dtype):
    rng = np.random.default_rng(1)
    a, da = normal(rng, (6, 4), dtype), normal(rng, (6, 4), dtype)
    check(
        lambda a: (dense.svdvals(a, algorithm=algorithm),),
        lambda a: (np.linalg.svd(a, compute_uv=False),), a, da, tolerance_of(dtype),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", EIGH)
def test_eigh_and_eigvalsh(algorithm, dtype):
    """Before, TypeError in single precision."""
    rng = np.random.default_rng(2)
    a, da = symmetric(rng, 5, dtype), symmetric(rng, 5, dtype)

    def function(a):
        return *projectors(jnp, *dense.eigh(a, algorithm=algorithm)), dense.eigvalsh(a, algorithm=algorithm)

    def by_numpy(a):
        return *projectors(np, *np.linalg.eigh(a)), np.linalg.eigvalsh(a)

    check(function, by_numpy, a, da, tolerance_of(dtype))


@pytest.mark.parametrize("n", [16, 32, 48])
def test_algorithms_that_size_chooses(n):
    """From some 32 columns on other loops are compiled, and `auto` takes other algorithms."""
    rng = np.random.default_rng(3)
    for dtype in ("float32", "float64"):
        a, da = normal(rng, (n, n), dtype), normal(rng, (n, n), dtype)
        by_numpy = lambda a: leading(np, *np.linalg.svd(a, full_matrices=False))  # noqa: E731
        for algorithm in ("auto", "library"):
            function = lambda a, algorithm=algorithm: leading(jnp, *dense.svd(a, algorithm=algorithm))  # noqa: E731
            with jax.enable_x64(True):
                got = jax.jvp(function, (jnp.asarray(a),), (jnp.asarray(da),))[1]
            for one, right in zip(got, differences(by_numpy, a, da), strict=True):
                np.testing.assert_allclose(
                    one, right, atol=(1e-6 if dtype == "float64" else 1e-3) * np.abs(right).max()
                )


# -- scale -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["library", "threads", "jacobi", "gram", "polar"])
@pytest.mark.parametrize(("dtype", "scales"), [("float32", (1e-30, 1e30)), ("float64", (1e-200, 1e200))])
def test_scale_does_not_matter(dtype, scales, algorithm):
    """Vectors of cA in the direction cD move as those of A do in the direction D; before, squares left the range."""
    rng = np.random.default_rng(4)
    a, da = normal(rng, (5, 3), dtype), normal(rng, (5, 3), dtype)
    b, db = symmetric(rng, 4, dtype), symmetric(rng, 4, dtype)

    @jax.jit
    def tangents(a, da, b, db):
        def vectors(a, b):
            u, _, vh = dense.svd(a, algorithm=algorithm)
            v = dense.eigh(b, algorithm=algorithm if algorithm in EIGH else "library").vectors
            return u[:, :2] @ vh[:2], v[:, :1] @ v[:, :1].T

        def total(a, b):
            return sum(jnp.sum(x**2 * jnp.arange(x.shape[0])[:, None]) for x in vectors(a, b))

        size = jnp.max(jnp.abs(a))
        back = [x * size for x in jax.grad(total, (0, 1))(a, b)]
        return jax.jvp(vectors, (a, b), (da, db))[1], back

    with jax.enable_x64(True):
        wanted = jax.tree.leaves(tangents(*map(jnp.asarray, (a, da, b, db))))
        for scale in scales:
            got = tangents(*(jnp.asarray(x * np.asarray(scale, dtype)) for x in (a, da, b, db)))
            for one, right in zip(jax.tree.leaves(got), wanted, strict=True):
                np.testing.assert_allclose(one, right, atol=100 * np.finfo(dtype).eps * np.abs(right).max())


# -- again, and in batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("what", ["svd", "randomized", "eigh"])
def test_second_derivatives(what, dtype):
    """Forwards over backwards and backwards over backwards, against differences of the gradient; and of a batch."""
    rng = np.random.default_rng(6)
    batch = np.stack([symmetric(rng, 4, dtype) if what == "eigh" else normal(rng, (5, 4), dtype) for _ in range(2)])
    da = symmetric(rng, 4, dtype) if what == "eigh" else normal(rng, (5, 4), dtype)
    weight = normal(rng, da.shape, dtype)

    def function(a):
        if what == "eigh":
            values, v = dense.eigh(a)
            return jnp.sum(weight * ((v[:, :2] * jnp.exp(values[:2])) @ adjoint(v[:, :2]))).real
        u, s, vh = dense.svd(a, **({} if what == "svd" else dict(k=2, algorithm="randomized", iterations=40)))
        return jnp.sum(weight * ((u[:, :2] * jnp.exp(s[:2])) @ vh[:2])).real

    slope = jax.jit(lambda a: jnp.sum(jax.grad(function)(a) * da).real)
    with jax.enable_x64(True):
        a, da = jnp.asarray(batch), jnp.asarray(da)
        forwards = jax.jit(jax.vmap(lambda a: jax.jvp(slope, (a,), (da,))[1]))(a)
        backwards = jax.vmap(jax.grad(slope))(a)
        for i in range(2):
            wanted = (slope(a[i] + 1e-5 * da) - slope(a[i] - 1e-5 * da)) / 2e-5
            np.testing.assert_allclose(forwards[i], wanted, rtol=1e-6)
            np.testing.assert_allclose(jnp.sum(backwards[i] * da).real, wanted, rtol=1e-6)


# -- where there are none ----------------------------------------------------------------------------------------------


def orthogonal(rng, n, m=None):
    return np.linalg.qr(rng.normal(size=(n, m or n)))[0]


def degenerate(rng, dtype):
    """Matrices with equal singular values, or some that are 0, by name."""
    repeated = orthogonal(rng, 5) * np.array([3.0, 2, 2, 1, 0.5]) @ orthogonal(rng, 5)
    low = normal(rng, (6, 2)) @ normal(rng, (2, 5))
    matrices = {
        "identity": np.eye(4), "permutation": np.eye(4)[[2, 0, 3, 1]], "orthogonal": orthogonal(rng, 5),
        "isometry": orthogonal(rng, 6, 3), "repeated": repeated, "low": low, "exactly low": np.diag([2.0, 1, 0, 0]),
        "exactly low and long": np.eye(5, 3) * np.array([2.0, 1, 0]), "nothing": np.zeros((4, 3)), "ones": np.ones((4, 4)),
        "tiny": 1e-25 * np.eye(4),
    }  # fmt: skip
    return {name: a.astype(dtype) for name, a in matrices.items()}


def never_wrong(got, wanted, tolerance, name):
    """NaN or right, number by number."""
    got = np.asarray(got)
    close = np.abs(got - wanted) <= tolerance * (1 + np.abs(wanted).max())
    assert np.all(np.isnan(got) | close), (name, got, wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("algorithm", ["library", "threads", "jacobi", "gram", "polar"])
def test_equal_singular_values_give_nan_or_what_is_right(algorithm, dtype):
    """Never a wrong number: of A = U diag(s) V*, whose derivative is dA, of the polar factor of an isometry Q, and of sums.

    The polar factor of Q moves by Q K + (1 − QQᵀ) dA where K is the skew part of QᵀdA.
    """
    rng = np.random.default_rng(7)
    tolerance = 2e-3 if dtype == "float32" else 1e-6

    def whole(a):
        u, s, vh = dense.svd(a, algorithm=algorithm)
        return (u * s) @ vh

    def polar(a):
        u, _, vh = dense.svd(a, algorithm=algorithm)
        return u @ vh

    def run(function, a, da, weight):
        back = jax.jit(jax.grad(lambda a: jnp.sum(weight * function(a))))(a)
        return jax.jit(lambda a, da: jax.jvp(function, (a,), (da,))[1])(a, da), back

    with jax.enable_x64(True):
        for name, a in degenerate(rng, dtype).items():
            da, weight = normal(rng, a.shape, dtype), normal(rng, a.shape, dtype)
            along, back = run(whole, jnp.asarray(a), jnp.asarray(da), weight)
            never_wrong(along, da, tolerance, name)
            never_wrong(back, weight, tolerance, name)
            # The sum of squares of singular values is that of the entries.
            total = jax.jit(jax.grad(lambda a: jnp.sum(dense.svd(a, algorithm=algorithm).s ** 2)))(jnp.asarray(a))
            size = max(np.abs(a).max(), 1e-300)
            np.testing.assert_allclose(total / size, 2 * a / size, atol=tolerance)
            if name in ("identity", "permutation", "orthogonal", "isometry"):
                inner = a.T @ da
                right = a @ ((inner - inner.T) / 2) + da - a @ inner
                along, back = run(polar, jnp.asarray(a), jnp.asarray(da), weight)
                never_wrong(along, right, tolerance, name)
                inner = a.T @ weight
                never_wrong(back, a @ ((inner - inner.T) / 2) + weight - a @ inner, tolerance, name)
                skew = a @ ((da.T @ a - a.T @ da) / 2)  # along which the singular values stay equal
                if name in ("identity", "permutation"):  # where rounding keeps nothing of the symmetric part
                    along, _ = run(polar, jnp.asarray(a), jnp.asarray(skew), weight)
                    np.testing.assert_allclose(along, skew, atol=tolerance)


@pytest.mark.parametrize("algorithm", ["library", "threads", "jacobi", "gram", "polar"])
def test_vectors_of_their_own_have_derivatives_beside_equal_ones(algorithm):
    """The leading ones of a matrix of low rank, forwards and backwards; and only the equal ones are NaN."""
    rng = np.random.default_rng(8)
    low = degenerate(rng, "float64")["low"]
    da = normal(rng, low.shape)
    with jax.enable_x64(True):
        function = lambda a: leading(jnp, *dense.svd(a, algorithm=algorithm))[:1]  # noqa: E731
        by_numpy = lambda a: leading(np, *np.linalg.svd(a, full_matrices=False))[:1]  # noqa: E731
        check(function, by_numpy, low, da, 1e-6)
        tangents = jax.jvp(lambda a: dense.svd(a, algorithm=algorithm), (jnp.asarray(low),), (jnp.asarray(da),))[1]
        for columns in (tangents.u, tangents.vh.T):
            assert np.isnan(columns).any(0).tolist() == [False, False, True, True, True]
        assert np.isfinite(tangents.s).all()


@pytest.mark.parametrize("algorithm", dense.EIGH_ALGORITHMS)
def test_equal_eigenvalues_give_nan_or_what_is_right(algorithm):
    rng = np.random.default_rng(9)
    q = orthogonal(rng, 5)
    repeated = q * np.array([3.0, 2, 2, 1, -1]) @ q.T
    matrices = {
        "identity": np.eye(4), "nothing": np.zeros((3, 3)), "diagonal": np.diag([2.0, 0, 0, 1]), "low": q[:, :1] @ q[:, :1].T,
        "repeated": (repeated + repeated.T) / 2,
    }  # fmt: skip
    with jax.enable_x64(True):
        for name, a in matrices.items():
            da, weight = symmetric(rng, len(a)), symmetric(rng, len(a))
            a, da = jnp.asarray(a), jnp.asarray(da)

            def whole(a):
                values, v = dense.eigh(a, algorithm=algorithm)
                return (v * values) @ v.T

            def trace(a):
                return jnp.sum(dense.eigvalsh(a, algorithm=algorithm) ** 3)

            never_wrong(jax.jvp(whole, (a,), (da,))[1], da, 1e-6, name)
            back = jax.grad(lambda a, weight: jnp.sum(weight * whole(a)))(a, weight)
            never_wrong(jnp.sum(back * da), np.sum(weight * da), 1e-6, name)
            right = 3 * np.sum((a @ a) * da)
            np.testing.assert_allclose(jax.jvp(trace, (a,), (da,))[1], right, atol=1e-9)
            np.testing.assert_allclose(jnp.sum(jax.grad(trace)(a) * da), right, atol=1e-9)
        # One eigenvector of its own beside equal ones.
        v = lambda a: (lambda v: v[:, -1:] @ v[:, -1:].T)(dense.eigh(a, algorithm=algorithm).vectors)  # noqa: E731
        by_numpy = lambda a: (lambda v: v[:, -1:] @ v[:, -1:].T)(np.linalg.eigh(a)[1])  # noqa: E731
        a, da = matrices["repeated"], symmetric(rng, 5)
        check(lambda a: (v(a),), lambda a: (by_numpy(a),), a, da, 1e-6)


def test_randomized_of_a_matrix_of_lower_rank_than_its_range():
    """Differentiating its QR decompositions gives noise there, of 10⁸; the derivative is that of the exact triplets."""
    rng = np.random.default_rng(10)
    low, da = normal(rng, (60, 4)) @ normal(rng, (4, 40)), normal(rng, (60, 40))
    function = lambda a: leading(jnp, *dense.svd(a, k=2, algorithm="randomized"))  # noqa: E731

    def by_numpy(a):
        u, s, vh = np.linalg.svd(a, full_matrices=False)
        return leading(np, u, s[:2], vh)

    check(function, by_numpy, low, da, 1e-6)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["auto", "library", "threads", "gram", "gram64"])
@pytest.mark.parametrize("shape", [(300_000, 8), (8, 300_000)])
def test_singular_values_of_long_matrices_take_no_square_of_memory(shape, algorithm):
    """A square of the longer side would be 360 GB; what the program takes is known before it runs."""
    given = jax.ShapeDtypeStruct(shape, jnp.float32)
    function = functools.partial(dense.svdvals, algorithm=algorithm)
    for one in (function, jax.grad(lambda a: jnp.sum(function(a)))):
        needed = jax.jit(one).lower(given).compile().memory_analysis().temp_size_in_bytes
        assert needed < 20 * 4 * 300_000 * 8
