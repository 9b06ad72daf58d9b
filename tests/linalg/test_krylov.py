"""Block Lanczos: the bounds hold at every step, against full decompositions."""

import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax._errors import InputError
from rmtjax.linalg.krylov import (
    BlockLanczos,
    CacheLimits,
    LowRankUpdated,
    Ritz,
    Transposed,
    cosine_upper_bounds,
    largest_cosines,
    top_singular,
)


def gaussian(n, m, seed=0):
    return (np.random.default_rng(seed).standard_normal((n, m)) / np.sqrt(m)).astype(np.float32)


def with_spectrum(n, m, s, seed=0):
    random = np.random.default_rng(seed)
    u, v = (np.linalg.qr(random.standard_normal((side, len(s))))[0] for side in (n, m))
    return ((u * s) @ v.T).astype(np.float32)


MATRICES = {
    "square": gaussian(160, 160),
    "tall": gaussian(240, 120),
    "taller": gaussian(150, 120),
    "wide": gaussian(120, 300),
    "power law": with_spectrum(150, 150, 3 / np.arange(1, 151) ** 0.7),
    "spikes": gaussian(160, 160) + with_spectrum(160, 160, np.array([4.0, 3.9, 3.0, 2.5])),
    "strong spikes": gaussian(160, 160) + with_spectrum(160, 160, np.array([100.0, 70.0])),
    "long with a strong spike": gaussian(300, 120) + with_spectrum(300, 120, np.array([50.0])),
    "tall with small values": with_spectrum(240, 120, np.geomspace(2, 0.01, 120)),
    "low rank": with_spectrum(160, 160, np.linspace(2, 1, 40)),
    "nearly equal": with_spectrum(150, 150, np.concatenate([[2.0, 1.9999, 1.9998], np.linspace(1, 0.1, 147)])),
}


def start(matrix, kind, count=5):
    """Vectors to ask about: of a tuned matrix, at random, mixtures of a few singular vectors, or the last ones."""
    random, n = np.random.default_rng(1), matrix.shape[0]
    u, s, _ = np.linalg.svd(matrix.astype(float), full_matrices=False)
    if kind == "tuned":
        update = random.standard_normal((n, 3)) @ random.standard_normal((3, matrix.shape[1])) / n
        vectors = np.linalg.svd(matrix + 1.5 * s[0] * update)[0][:, :count]
    elif kind == "random":
        vectors = random.standard_normal((n, count))
    elif kind == "last":
        vectors = u[:, s > 1e-3 * s[0]][:, -count:]
    else:
        rank = int((s > 1e-4 * s[0]).sum())
        mix = np.zeros((u.shape[1], count))
        for i in range(count):
            mix[random.choice(min(rank, 30), 1 + i, replace=False), i] = random.standard_normal(1 + i)
        vectors = u @ mix
    vectors = np.linalg.qr(vectors)[0].astype(np.float32)
    real = s > s[0] * max(matrix.shape) * np.finfo(np.float32).eps
    return vectors, np.abs(u[:, real].T @ vectors).max(0)


LIMITS = pytest.mark.parametrize(
    "limits", [CacheLimits(), CacheLimits(entries=1, row_block=13)], ids=["in cache", "out of cache"]
)


@pytest.mark.first(2)
@LIMITS
@pytest.mark.parametrize("kind", ["tuned", "random", "mixed", "last"])
@pytest.mark.parametrize("name", MATRICES)
def test_cosines_lie_within_their_bounds_at_every_step(name, kind, limits):
    matrix = MATRICES[name]
    vectors, exact = start(matrix, kind)
    widths = []
    for most in (2, 4, 7, 12, 18, 24):  # at 18 it is a matter of rounding whether the last bound has closed
        found = largest_cosines(LowRankUpdated(matrix, limits=limits), vectors, max_blocks=most)
        assert (found.upper >= exact - 2e-4).all(), most
        assert (found.lower <= exact + 2e-4).all(), most
        widths.append((found.upper - found.lower).mean())
    assert widths[-1] <= widths[0]
    if kind == "mixed" and name in ("power law", "spikes"):
        assert widths[-1] < 0.01


def test_it_stops_when_the_verdicts_are_sure():
    matrix = MATRICES["spikes"]
    vectors, exact = start(matrix, "tuned")
    for threshold in (0.3, 0.5, 0.7):
        found = largest_cosines(LowRankUpdated(matrix), vectors, threshold=threshold)
        sure = (found.lower >= threshold) | (found.upper < threshold)
        np.testing.assert_array_equal((exact < threshold)[sure], (found.upper < threshold)[sure])
        assert sure.mean() > 0.5
    finer = largest_cosines(LowRankUpdated(matrix), vectors)
    assert largest_cosines(LowRankUpdated(matrix), vectors, threshold=0.3).steps <= finer.steps


def test_bounds_allow_for_vectors_that_are_off():
    """A vector within angle φ of the one that is meant: the bounds hold for both."""
    matrix = MATRICES["power law"]
    vectors, _ = start(matrix, "mixed")
    random = np.random.default_rng(2)
    aside = random.standard_normal(vectors.shape)
    aside -= vectors @ (vectors.T @ aside)
    aside = np.linalg.qr(aside)[0]
    sine = 0.05
    meant = (np.sqrt(1 - sine**2) * vectors + sine * aside).astype(np.float32)
    u = np.linalg.svd(matrix.astype(float))[0]
    found = largest_cosines(LowRankUpdated(matrix), vectors, errors=sine)
    for one in (vectors, meant):
        exact = np.abs(u.T @ one).max(0)
        assert (found.lower <= exact + 1e-4).all() and (exact <= found.upper + 1e-4).all()


def densely(ritz, rows, x, weight):
    """The largest value of the bound over the places x, by its formula."""
    best = np.zeros(len(rows))
    for part in np.array_split(x, 40):
        a = ritz.last / (ritz.values - part[:, None])[:, None, :]
        seen = a @ rows.T
        inner = np.eye(len(ritz.last)) + a @ a.transpose(0, 2, 1)
        value = np.sum(seen * np.linalg.solve(inner, seen), axis=1) * weight(part)[:, None]
        best = np.maximum(best, value.max(0))
    return best


@pytest.mark.first(2)
@pytest.mark.parametrize("kind", ["random", "mixed"])
@pytest.mark.parametrize("name", ["square", "power law", "spikes", "tall", "taller"])
def test_no_peak_of_the_bound_is_missed(name, kind):
    """As it is taken, against the same function at 800 places about each Ritz value and 20,000 in all.

    Where a vector is a singular one, its peak is far narrower than the residual, and there may be a second copy of it beside.
    """
    matrix = MATRICES[name]
    n, m = matrix.shape
    vectors, _ = start(matrix, kind)
    mixing, operator = np.eye(vectors.shape[1]), LowRankUpdated(matrix)
    if n > m:  # the space of the shorter side, from the images of the vectors
        vectors, mixing = np.linalg.qr(matrix.T @ vectors)
        operator = Transposed(operator)
    space = BlockLanczos(operator, vectors, 20)
    for _ in range(6):
        space.grow(2)
        ritz = space.ritz()
        rows = mixing.T @ ritz.first
        fine = np.geomspace(1e-6, 2, 400)
        near = ritz.values[:, None] + ritz.residuals[:, None] * np.concatenate([-fine, fine])
        floor = 1e-7 * ritz.values[-1]
        x = np.concatenate([near.ravel(), np.linspace(floor, ritz.values[-1] * 1.2, 20_001)])
        x = np.concatenate([x, np.geomspace(1.01 * floor, 0.99 * ritz.values[0], 1000)])
        best = densely(ritz, rows, x[x > floor], (lambda x: 1 / x) if n > m else np.ones_like)
        taken = cosine_upper_bounds(ritz, rows, floor, transposed=n > m)
        assert (taken >= np.minimum(best, 1) * (1 - 1e-6)).all()
        assert (taken <= 1.02 * best).all()  # 1 % for rounding at most, 0.75 % for what lies between


def test_a_peak_with_room_on_one_side_only_is_seen():
    """Of two Ritz values near each other, with a gap beside and residuals between: it is as narrow as the residual."""
    random = np.random.default_rng(3)
    for _ in range(200):
        rho = np.array([0.3, 0.3, 0.008, 0.005, 0.3, 0.3])
        values = np.array([1.0, 2.0, 3.899 - 0.002 * random.random(), 3.9035, 4.0 + 0.1 * random.random(), 4.6])
        last = random.standard_normal((4, 6))
        last *= rho / np.linalg.norm(last, axis=0)
        first = np.linalg.qr(random.standard_normal((6, 3)))[0].T
        ritz = Ritz(values, np.eye(6), first, last, np.zeros(6))
        fine = np.geomspace(1e-3, 2, 200)
        x = np.concatenate(
            [(values[:, None] + rho[:, None] * np.concatenate([-fine, fine])).ravel(), np.linspace(0.1, 5, 3001)]
        )
        taken = cosine_upper_bounds(ritz, first)
        assert (taken >= np.minimum(densely(ritz, first, x, np.ones_like), 1) * (1 - 1e-6)).all()


@LIMITS
@pytest.mark.parametrize("width", [None, 4])
@pytest.mark.parametrize("name", ["square", "tall", "wide", "power law", "spikes"])
def test_largest_triplets_are_those_of_the_decomposition(name, width, limits):
    matrix = MATRICES[name]
    u, s, _ = np.linalg.svd(matrix.astype(float), full_matrices=False)
    found = top_singular(LowRankUpdated(matrix, limits=limits), 6, width=width)
    assert found.errors.max() <= 2e-3
    np.testing.assert_allclose(found.values, s[:6], rtol=2e-6)
    sines = np.sqrt(np.maximum(1 - (u[:, :6] * found.vectors).sum(0) ** 2, 0))
    assert (sines <= found.errors + 1e-3).all()
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(6), atol=1e-5)


def test_an_unfinished_search_says_so():
    found = top_singular(LowRankUpdated(MATRICES["nearly equal"]), 3, max_blocks=4)
    assert found.errors.max() > 0.1


@LIMITS
def test_operators_are_the_matrices_they_stand_for(limits):
    random = np.random.default_rng(0)
    w, d, b, a = (random.standard_normal(shape) for shape in ((30, 20), (30,), (30, 3), (3, 20)))
    x, y = random.standard_normal((20, 4)), random.standard_normal((30, 4))
    for operator, dense in (
        (LowRankUpdated(w, limits=limits), w),
        (LowRankUpdated(w, d, limits=limits), d[:, None] * w),
        (LowRankUpdated(w, None, b, a, limits), w + b @ a),
        (LowRankUpdated(w, d, b, a, limits), d[:, None] * w + b @ a),
    ):
        np.testing.assert_allclose(operator.dense(), dense)
        np.testing.assert_allclose(operator @ x, dense @ x)
        np.testing.assert_allclose(operator.transposed(y), dense.T @ y)
        np.testing.assert_allclose(operator.gram(y), dense @ (dense.T @ y))
        np.testing.assert_allclose(operator.transposed_gram(x), dense.T @ (dense @ x))


def test_a_space_that_is_used_up_stays_orthonormal():
    """A matrix of rank 12 has nothing new to show after two blocks of eight."""
    matrix = with_spectrum(200, 200, np.linspace(2, 1, 12))
    space = BlockLanczos(
        LowRankUpdated(matrix), np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32), 10
    )
    space.grow(10)
    basis = np.asarray(space.combine(np.eye(80)))
    np.testing.assert_allclose(basis.T @ basis, np.eye(80), atol=1e-4)
    values = np.sqrt(np.maximum(space.ritz().values[::-1], 0))
    np.testing.assert_allclose(values[:12], np.linspace(2, 1, 12), rtol=1e-4)
    assert values[12:].max() < 2e-3


@pytest.mark.thorough
def test_arrays_of_jax_give_the_same():
    matrix = MATRICES["spikes"]
    vectors, _ = start(matrix, "tuned")
    here = top_singular(LowRankUpdated(matrix), 5)
    there = top_singular(LowRankUpdated(jnp.asarray(matrix)), 5)
    np.testing.assert_allclose(there.values, here.values, rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(np.asarray(there.vectors) * here.vectors, 0)), 1, atol=1e-4)
    here = largest_cosines(LowRankUpdated(matrix), vectors)
    there = largest_cosines(LowRankUpdated(jnp.asarray(matrix)), jnp.asarray(vectors))
    np.testing.assert_allclose(there.lower, here.lower, atol=2e-3)
    np.testing.assert_allclose(there.upper, here.upper, atol=2e-3)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"k = 0: must be 1 to 51 for 160 rows or columns"):
        top_singular(LowRankUpdated(MATRICES["square"]), 0)
    with pytest.raises(InputError, match=r"k = 60: must be 1 to 51"):
        top_singular(LowRankUpdated(MATRICES["square"]), 60)
    with pytest.raises(InputError, match=r"start has shape \[4, 2\]: must be \(160, b\)"):
        BlockLanczos(LowRankUpdated(MATRICES["square"]), np.ones((4, 2), np.float32), 3)


@pytest.mark.first(2)
@pytest.mark.parametrize("device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("rank", [0, 1, 3, 30])
def test_the_basis_stays_orthonormal_when_the_space_is_used_up(rank, device):
    """Of a matrix of small rank, and after its last direction; the Ritz values are its eigenvalues and zeros."""
    random = np.random.default_rng(4)
    left, right = (np.linalg.qr(random.standard_normal((120, max(rank, 1))))[0] for _ in range(2))
    values = np.linspace(3, 1, max(rank, 1)) * (rank > 0)
    matrix = ((left * values) @ right.T).astype(np.float32)
    block = random.standard_normal((120, 4)).astype(np.float32)
    operator = LowRankUpdated(jnp.asarray(matrix) if device else matrix)
    space = BlockLanczos(operator, jnp.asarray(block) if device else block, 20)
    space.grow(20)
    basis = np.asarray(space.combine(np.eye(space.steps * 4)))
    assert np.abs(basis.T @ basis - np.eye(len(basis.T))).max() < 1e-5
    ritz = space.ritz()
    found = np.sort(np.sqrt(np.maximum(ritz.values, 0)))[::-1]
    np.testing.assert_allclose(found[:rank], values[:rank], atol=1e-5)
    assert found[rank:].max() < 2e-3  # the root of rounding


def test_a_start_of_lower_rank_loses_no_column():
    """A zero on the diagonal of its triangular factor has no sign, which took the column away."""
    start = np.zeros((20, 2))
    start[0] = 1.0
    space = BlockLanczos(LowRankUpdated(gaussian(20, 20).astype(float)), start, 3)
    np.testing.assert_allclose(space.block.T @ space.block, np.eye(2), atol=1e-12)
