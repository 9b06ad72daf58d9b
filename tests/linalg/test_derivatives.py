"""Derivatives of every decomposition by every algorithm: against differences of NumPy's, and where there are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax.linalg.svd import EIGH_ALGORITHMS, SINGLE, eigh, eigvalsh, select_algorithm, svd, svdvals

DTYPES = ("float32", "float64", "complex64", "complex128")
SVD = ("auto", "library", "threads", "jacobi", "gram", "gram64", "polar", "randomized")
"""All that run inside programs: `lanczos` refuses to."""
EIGH = ("auto", *EIGH_ALGORITHMS)


def normal(rng, shape, dtype="float64"):
    a = rng.normal(size=shape)
    return (a + 1j * rng.normal(size=shape) if "complex" in dtype else a).astype(dtype)


def symmetric(rng, n, dtype="float64"):
    a = normal(rng, (n, n), dtype)
    return a + a.conj().T


def adjoint(a):
    return jnp.swapaxes(a, -1, -2).conj()


def known_dtypes(algorithm):
    return SINGLE if algorithm == "gram64" else DTYPES


def leading(xp, u, s, vh):
    """Return quantities that no choice of phases changes: the first projector, the second one times its value, and the values."""
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
@pytest.mark.first(4)
@pytest.mark.parametrize(
    ("algorithm", "dtype", "shape"),
    [
        (a, d, s)
        for a in SVD
        for d in known_dtypes(a)
        for s in ((7, 4), (5, 5))
        if s == (7, 4) or d in ("float64", "complex64")
    ],
)
def test_svd(algorithm, dtype, shape):
    """At ordinary scale; before, off by 10⁷ to 10¹⁷ where a difference of squares was tested for 0."""
    rng = np.random.default_rng(0)
    a, da = normal(rng, shape, dtype), normal(rng, shape, dtype)
    options = {"k": 3, "iterations": 6} if algorithm == "randomized" else {}

    def function(a):
        u, s, vh = svd(a, algorithm=algorithm, **options)
        return leading(jnp, u, s[:3], vh)

    def by_numpy(a):
        u, s, vh = np.linalg.svd(a, full_matrices=False)
        return leading(np, u, s[:3], vh)

    check(function, by_numpy, a, da, tolerance_of(dtype))
    if shape == (7, 4):
        check(lambda a: function(adjoint(a)), lambda a: by_numpy(a.conj().T), a, da, tolerance_of(dtype))


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [(a, d) for a in ("auto", "library", "threads", "jacobi", "gram", "gram64") for d in known_dtypes(a)],
)
def test_svdvals(algorithm, dtype):
    rng = np.random.default_rng(1)
    a, da = normal(rng, (6, 4), dtype), normal(rng, (6, 4), dtype)
    check(
        lambda a: (svdvals(a, algorithm=algorithm),),
        lambda a: (np.linalg.svd(a, compute_uv=False),), a, da, tolerance_of(dtype),
    )  # fmt: skip


@pytest.mark.first(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", EIGH)
def test_eigh_and_eigvalsh(algorithm, dtype):
    """Before, TypeError in single precision."""
    rng = np.random.default_rng(2)
    a, da = symmetric(rng, 5, dtype), symmetric(rng, 5, dtype)

    def function(a):
        return *projectors(jnp, *eigh(a, algorithm=algorithm)), eigvalsh(a, algorithm=algorithm)

    def by_numpy(a):
        return *projectors(np, *np.linalg.eigh(a)), np.linalg.eigvalsh(a)

    check(function, by_numpy, a, da, tolerance_of(dtype))


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "algorithm"), [(48, "library"), (72, "auto")])
def test_algorithms_that_size_chooses(n, algorithm, dtype):
    """From some 32 columns on other loops are compiled, and from 65 on `auto` leaves a matrix to other algorithms."""
    assert select_algorithm((n, n), dtype, platform="cpu") != "library" or algorithm == "library"
    rng = np.random.default_rng(3)
    a, da = normal(rng, (n, n), dtype), normal(rng, (n, n), dtype)
    by_numpy = lambda a: leading(np, *np.linalg.svd(a, full_matrices=False))  # noqa: E731
    function = lambda a: leading(jnp, *svd(a, algorithm=algorithm))  # noqa: E731
    with jax.enable_x64(True):
        got = jax.jvp(function, (jnp.asarray(a),), (jnp.asarray(da),))[1]
    for one, right in zip(got, differences(by_numpy, a, da), strict=True):
        np.testing.assert_allclose(one, right, atol=(1e-6 if dtype == "float64" else 1e-3) * np.abs(right).max())


# -- scale -------------------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
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
            u, _, vh = svd(a, algorithm=algorithm)
            v = eigh(b, algorithm=algorithm if algorithm in EIGH else "library").eigenvectors
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


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("what", "dtype"),
    [("svd", "float64"), ("svd", "complex128"), ("randomized", "complex128"), ("eigh", "complex128")],
)
def test_second_derivatives(what, dtype):
    """Forwards over backwards and backwards over backwards, against differences of the gradient; and of a batch."""
    rng = np.random.default_rng(6)
    batch = np.stack([symmetric(rng, 4, dtype) if what == "eigh" else normal(rng, (5, 4), dtype) for _ in range(2)])
    da = symmetric(rng, 4, dtype) if what == "eigh" else normal(rng, (5, 4), dtype)
    weight = normal(rng, da.shape, dtype)

    def function(a):
        if what == "eigh":
            values, v = eigh(a)
            return jnp.sum(weight * ((v[:, :2] * jnp.exp(values[:2])) @ adjoint(v[:, :2]))).real
        u, s, vh = svd(a, **({} if what == "svd" else dict(k=2, algorithm="randomized", iterations=40)))
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
    """Matrices with equal singular values, or some that are 0, by name; of two shapes, for which programs are compiled."""
    repeated = orthogonal(rng, 4) * np.array([3.0, 2, 2, 0.5]) @ orthogonal(rng, 4)
    matrices = {
        "identity": np.eye(4), "permutation": np.eye(4)[[2, 0, 3, 1]], "orthogonal": orthogonal(rng, 4),
        "repeated": repeated, "low": normal(rng, (4, 2)) @ normal(rng, (2, 4)), "exactly low": np.diag([2.0, 1, 0, 0]),
        "ones": np.ones((4, 4)), "tiny": 1e-25 * np.eye(4), "isometry": orthogonal(rng, 5, 3), "nothing": np.zeros((5, 3)),
        "low and long": normal(rng, (5, 2)) @ normal(rng, (2, 3)), "exactly low and long": np.eye(5, 3) * np.array([2.0, 1, 0]),
    }  # fmt: skip
    return {name: a.astype(dtype) for name, a in matrices.items()}


def never_wrong(got, wanted, tolerance, name):
    """NaN or right, number by number."""
    got = np.asarray(got)
    close = np.abs(got - wanted) <= tolerance * (1 + np.abs(wanted).max())
    assert np.all(np.isnan(got) | close), (name, got, wanted)


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("algorithm", ["library", "threads", "jacobi", "gram", "polar"])
def test_equal_singular_values_give_nan_or_what_is_right(algorithm, dtype):
    """Never a wrong number: of A = U diag(s) V*, whose derivative is dA, of the polar factor of an isometry Q, and of sums.

    The polar factor of Q moves by Q K + (1 − QQᵀ) dA where K is the skew part of QᵀdA.
    """
    rng = np.random.default_rng(7)
    tolerance = 2e-3 if dtype == "float32" else 1e-6

    def whole_and_polar(a):
        u, s, vh = svd(a, algorithm=algorithm)
        return jnp.stack([(u * s) @ vh, u @ vh])

    @jax.jit
    def derivatives(a, da, weight):
        along, back = jax.jvp(whole_and_polar, (a,), (da,))[1], jax.vjp(whole_and_polar, a)[1]
        none = jnp.zeros_like(weight)
        squares = jax.grad(lambda a: jnp.sum(svd(a, algorithm=algorithm).S ** 2))(a)
        return along, back(jnp.stack([weight, none]))[0], back(jnp.stack([none, weight]))[0], squares

    def polar_rate(q, da):
        inner = q.T @ da
        return q @ ((inner - inner.T) / 2) + da - q @ inner

    with jax.enable_x64(True):
        for name, a in degenerate(rng, dtype).items():
            da, weight = normal(rng, a.shape, dtype), normal(rng, a.shape, dtype)
            (whole, polar), whole_back, polar_back, squares = derivatives(a, da, weight)
            never_wrong(whole, da, tolerance, name)
            never_wrong(whole_back, weight, tolerance, name)
            # The sum of squares of singular values is that of the entries.
            size = np.abs(a).max() or 1.0
            np.testing.assert_allclose(squares / size, 2 * a / size, atol=tolerance)
            if name in ("identity", "permutation", "orthogonal", "isometry"):
                never_wrong(polar, polar_rate(a, da), tolerance, name)
                never_wrong(polar_back, polar_rate(a, weight), tolerance, name)
            if (
                name in ("identity", "permutation") and algorithm != "polar"
            ):  # values stay equal, and nothing is rounded
                skew = a @ ((da.T @ a - a.T @ da) / 2)
                np.testing.assert_allclose(derivatives(a, skew, weight)[0][1], skew, atol=tolerance)


@pytest.mark.thorough
@pytest.mark.parametrize("algorithm", ["library", "threads", "jacobi", "gram", "polar"])
def test_vectors_of_their_own_have_derivatives_beside_equal_ones(algorithm):
    """The leading ones of a matrix of low rank, forwards and backwards; and only the equal ones are NaN."""
    rng = np.random.default_rng(8)
    low = normal(rng, (6, 2)) @ normal(rng, (2, 5))
    da = normal(rng, low.shape)
    with jax.enable_x64(True):
        function = lambda a: leading(jnp, *svd(a, algorithm=algorithm))[:1]  # noqa: E731
        by_numpy = lambda a: leading(np, *np.linalg.svd(a, full_matrices=False))[:1]  # noqa: E731
        check(function, by_numpy, low, da, 1e-6)
        tangents = jax.jvp(lambda a: svd(a, algorithm=algorithm), (jnp.asarray(low),), (jnp.asarray(da),))[1]
        for columns in (tangents.U, tangents.Vh.T):
            assert np.isnan(columns).any(0).tolist() == [False, False, True, True, True]
        assert np.isfinite(tangents.S).all()


@pytest.mark.first(1)
@pytest.mark.parametrize("algorithm", EIGH_ALGORITHMS)
def test_equal_eigenvalues_give_nan_or_what_is_right(algorithm):
    rng = np.random.default_rng(9)
    q = orthogonal(rng, 5)
    repeated = q * np.array([3.0, 2, 2, 1, -1]) @ q.T
    matrices = {
        "identity": np.eye(5), "nothing": np.zeros((5, 5)), "diagonal": np.diag([2.0, 0, 0, 1, 0]),
        "low": q[:, :1] @ q[:, :1].T, "repeated": (repeated + repeated.T) / 2,
    }  # fmt: skip

    def whole(a):
        values, v = eigh(a, algorithm=algorithm)
        return (v * values) @ v.T

    def cubes(a):
        return jnp.sum(eigvalsh(a, algorithm=algorithm) ** 3)

    @jax.jit
    def derivatives(a, da, weight):
        back = jax.grad(lambda a: jnp.sum(weight * whole(a)))(a)
        return (
            jax.jvp(whole, (a,), (da,))[1],
            jnp.sum(back * da),
            jax.jvp(cubes, (a,), (da,))[1],
            jnp.sum(jax.grad(cubes)(a) * da),
        )

    with jax.enable_x64(True):
        for name, a in matrices.items():
            da, weight = symmetric(rng, 5), symmetric(rng, 5)
            along, back, *of_cubes = derivatives(a, da, weight)
            never_wrong(along, da, 1e-6, name)
            never_wrong(back, np.sum(weight * da), 1e-6, name)
            np.testing.assert_allclose(of_cubes, 3 * np.sum((a @ a) * da), atol=1e-9)
        # One eigenvector of its own beside equal ones.
        v = lambda a: (lambda v: v[:, -1:] @ v[:, -1:].T)(eigh(a, algorithm=algorithm).eigenvectors)  # noqa: E731
        by_numpy = lambda a: (lambda v: v[:, -1:] @ v[:, -1:].T)(np.linalg.eigh(a)[1])  # noqa: E731
        a, da = matrices["repeated"], symmetric(rng, 5)
        check(lambda a: (v(a),), lambda a: (by_numpy(a),), a, da, 1e-6)


@pytest.mark.thorough
def test_randomized_of_a_matrix_of_lower_rank_than_its_range():
    """Differentiating its QR decompositions gives noise there, of 10⁸; the derivative is that of the exact triplets."""
    rng = np.random.default_rng(10)
    low, da = normal(rng, (60, 4)) @ normal(rng, (4, 40)), normal(rng, (60, 40))
    function = lambda a: leading(jnp, *svd(a, k=2, algorithm="randomized"))  # noqa: E731

    def by_numpy(a):
        u, s, vh = np.linalg.svd(a, full_matrices=False)
        return leading(np, u, s[:2], vh)

    check(function, by_numpy, low, da, 1e-6)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.first(2)
@pytest.mark.parametrize("algorithm", ["auto", "library", "threads", "gram", "gram64"])
@pytest.mark.parametrize("shape", [(300_000, 8), (8, 300_000)])
def test_singular_values_of_long_matrices_take_no_square_of_memory(shape, algorithm):
    """A square of the longer side would be 360 GB; what the program takes is known before it runs."""
    given = jax.ShapeDtypeStruct(shape, jnp.float32)
    function = functools.partial(svdvals, algorithm=algorithm)
    for one in (function, jax.grad(lambda a: jnp.sum(function(a)))):
        needed = jax.jit(one).lower(given).compile().memory_analysis().temp_size_in_bytes
        assert needed < 20 * 4 * 300_000 * 8
