"""Verdicts by bounds against those of two decompositions; what is reported beside them; what theory expects."""

import warnings

import jax
import numpy as np
import pytest

from rmtjax._errors import InputError
from rmtjax.intruders import Pair, ScanLimits, predict, scan_layer
from rmtjax.intruders.predict.drawn import drawn_intruders
from rmtjax.intruders.predict.prediction import predict_beyond
from rmtjax.intruders.scan.spectra import gram_values, stand_in_values
from rmtjax.laws import marchenko_pastur, spikes
from rmtjax.linalg.krylov import LowRankUpdated, largest_cosines
from rmtjax.linalg.svd import one_blas_thread
from rmtjax.spectra.bulk_fit import bulk_fit

SHAPES = [(160, 160), (260, 130), (130, 260)]
KINDS = ["gaussian", "power law", "spikes"]


def base(kind, shape, random):
    w = random.standard_normal(shape) / np.sqrt(shape[1])
    if kind != "gaussian":
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        if kind == "power law":
            s = 3 / np.arange(1, s.size + 1) ** 0.6
        else:
            s[:6] = [4, 3.6, 3.2, 3.19, 2.8, 2.4]
        w = (u * s) @ vt
    return w.astype(np.float32)


def low_rank(shape, strengths, random):
    left, right = (np.linalg.qr(random.standard_normal((side, len(strengths))))[0] for side in shape)
    return (left * strengths).astype(np.float32), right.T.astype(np.float32)


def pair_of(kind, shape, update, random):
    w = base(kind, shape, random)
    if update == "dense":
        return Pair(
            "w",
            w,
            LowRankUpdated(w + (0.3 * random.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)),
            None,
        )
    b, a = low_rank(shape, np.array([0.5, 1.0, 1.4, 2.0, 3.0, 4.5])[: random.integers(1, 7)], random)
    if update == "scaled":  # as α-LoRA's
        return Pair(
            "w", w, LowRankUpdated(w, (1 + 0.1 * random.standard_normal(shape[0])).astype(np.float32), b, a), None
        )
    return Pair("w", w, LowRankUpdated(w, None, b, a), (b, a))


OPTIONS = {}


def scanned(pair, **options):
    """`scan_layer` with the limits that the test is for."""
    return scan_layer(pair, **OPTIONS, **options)


@pytest.fixture(autouse=True)
def small_matrices(request, monkeypatch):
    """BLAS's own threads only get in each other's way here. By Krylov spaces though small, unless a test says otherwise."""
    chosen = getattr(request.node, "callspec", None)
    by_eigh = chosen is not None and chosen.params.get("method") == "eigh"
    monkeypatch.setitem(OPTIONS, "limits", ScanLimits() if by_eigh else ScanLimits(eigh_side=0))
    with one_blas_thread():
        yield


@pytest.mark.first(1)
@pytest.mark.parametrize("method", ["bounds", "eigh"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_verdict_is_that_of_the_decompositions(kind, method):
    """All thresholds on a grid and just beside every cosine, where only a decomposition can tell."""
    random = np.random.default_rng(KINDS.index(kind))
    cases = decided = near = 0
    for shape in SHAPES:
        for update in ("low rank", "scaled", "dense"):
            pair = pair_of(kind, shape, update, random)
            cosines = scanned(pair, exact=True, threshold_epsilon=0.5).cosines
            beside = cosines[random.choice(10, 2, replace=False)] + random.choice([-1e-5, 1e-4, -2e-3], 2)
            for threshold in (0.3, 0.5, 0.7, *np.clip(beside, 0.01, 0.99)):
                found = scanned(pair, threshold_epsilon=float(threshold))
                expected = scanned(pair, threshold_epsilon=float(threshold), exact=True)
                assert found.verdicts == expected.verdicts, (shape, update, threshold)
                assert expected.verdicts == tuple("intruder" if c < threshold else "matched" for c in cosines)
                cases += 1
                decided += found.algorithm == method
                near += float(threshold) in beside
    assert cases == 45 and near >= 14
    assert decided >= {"bounds": 12, "eigh": 24}[method]  # they do the work, and not the SVDs behind them


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("update", ["low rank", "scaled", "dense"])
def test_in_the_memory_of_a_device(shape, update):
    """As accelerators do it: JAX's arrays all the way, the same numbers and verdicts."""
    pair = pair_of("power law", shape, update, np.random.default_rng(3))
    there = pair.on_device()
    assert isinstance(there.tuned.weight, jax.Array)
    assert (there.tuned.weight is there.base) == (pair.tuned.weight is pair.base)
    for exact in (False, True):
        here, found = scanned(pair, exact=exact), scanned(there, exact=exact)
        assert found.verdicts == here.verdicts and found.algorithm == here.algorithm
        np.testing.assert_allclose(found.cosines, here.cosines, atol=5e-3)
        np.testing.assert_allclose(found.values, here.values, rtol=1e-4)
        np.testing.assert_allclose(found.base_values, here.base_values, rtol=1e-4)
        assert found.update.effective_rank == pytest.approx(here.update.effective_rank, rel=1e-3)
        assert found.predicted == pytest.approx(here.predicted, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("update", ["low rank", "scaled", "dense"])
@pytest.mark.parametrize("method", ["bounds", "eigh"])
def test_what_is_reported_is_what_the_decompositions_say(shape, update, method):
    random = np.random.default_rng(7)
    pair = pair_of("spikes", shape, update, random)
    found, exact = scanned(pair, threshold_epsilon=0.4), scanned(pair, threshold_epsilon=0.4, exact=True)
    assert exact.algorithm == "svd" and (found.algorithm == method or update == "dense")
    np.testing.assert_allclose(found.values, exact.values, rtol=1e-5)
    np.testing.assert_allclose(found.base_values, exact.base_values, rtol=1e-5)
    slack = 0 if method == "eigh" else 1e-3
    assert (found.lower <= exact.cosines + slack).all() and (exact.cosines <= found.upper + slack).all()
    if found.algorithm == "eigh":
        np.testing.assert_allclose(found.cosines, exact.cosines, atol=2e-4)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * exact.vectors, 0)), 1, atol=1e-4)
    np.testing.assert_allclose(found.similarity[:, :6], exact.similarity[:, :6], atol=0.08)  # the spikes stand apart
    for one in ("sigma", "upper", "count"):
        assert getattr(found.bulk, one) == pytest.approx(getattr(exact.bulk, one), rel=1e-4)
    delta = np.linalg.svd(pair.update().astype(float), compute_uv=False)
    share = delta[delta > 1e-6 * delta[0]] / delta[delta > 1e-6 * delta[0]].sum()
    for one in (found, exact):
        k = len(one.update.strengths)
        np.testing.assert_allclose(one.update.strengths, delta[:k], rtol=1e-4)
        assert one.update.frobenius == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert one.update.stable_rank == pytest.approx((delta**2).sum() / delta[0] ** 2, rel=1e-4)
        assert one.update.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)


@pytest.mark.parametrize("method", ["bounds", "eigh"])
def test_a_null_space_is_nobodys_vector(method):
    """W of rank 60 has no vectors where the update lives; any decomposition makes some up there."""
    random = np.random.default_rng(3)
    u, v = (np.linalg.qr(random.standard_normal((200, 60)))[0] for _ in range(2))
    w = ((u * np.linspace(2, 1, 60)) @ v.T).astype(np.float32)
    outside = random.standard_normal(200)
    outside -= u @ (u.T @ outside)
    b = (3 * outside / np.linalg.norm(outside))[:, None].astype(np.float32)
    a = np.linalg.qr(random.standard_normal((200, 1)))[0].T.astype(np.float32)
    for exact in (False, True):
        found = scanned(Pair("w", w, LowRankUpdated(w, None, b, a), (b, a)), exact=exact)
        assert found.verdicts == ("intruder",) + ("matched",) * 9
        assert found.cosines[0] < 0.2


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["line", "power law", "uniform"])
def test_vectors_made_of_neighbours_inside_the_spectrum(kind):
    """An update in the direction of several singular vectors whose values all but coincide: a Krylov space takes some of them
    for one, so such a verdict is not its to give. Thresholds are above each of the cosines, about 1/√c.
    """
    random = np.random.default_rng(1)
    n, others = 440, {"line": np.linspace(2, 0.2, 440), "power law": 3 / np.sqrt(np.arange(1, 441))}
    u, v = (np.linalg.qr(random.standard_normal((n, n)))[0] for _ in range(2))
    methods = []
    for _ in range(30):
        s = others[kind].copy() if kind in others else np.sort(random.uniform(0, 2, n))[::-1].copy()
        count, at, spread = random.integers(2, 7), random.integers(5, 380), 10 ** random.uniform(-4.5, -3)
        s[at : at + count] = s[at] * (1 + spread * np.sort(random.uniform(0, 1, count))[::-1])
        w, mix = ((u * s) @ v.T).astype(np.float32), np.full(count, 1 / np.sqrt(count))
        b = (random.uniform(3, 6) * u[:, at : at + count] @ mix)[:, None].astype(np.float32)
        a = (v[:, at : at + count] @ mix)[None].astype(np.float32)
        pair = Pair("w", w, LowRankUpdated(w, None, b, a), (b, a))
        # Rounding to single precision has turned these vectors.
        before, after = (np.linalg.svd(x.astype(float))[0] for x in (w, w + b @ a))
        cosines = np.abs(before.T @ after[:, :2]).max(0)
        for threshold in 1 / np.sqrt(count) + np.array([0.05, 0.1, 0.2]):
            found = scanned(pair, top_k=2, threshold_epsilon=float(threshold))
            wanted = tuple(np.where(cosines < threshold, "intruder", "matched"))
            assert found.verdicts == wanted, (count, threshold, found.algorithm)
            methods.append(found.algorithm)
    assert kind == "power law" or "bounds" in methods


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (500, 450)])
def test_a_matrix_of_small_rank_has_no_more_vectors(shape, exact):
    """If values vanish after tuning, any vectors would do: five directions, and one that is planted."""
    random = np.random.default_rng(4)
    u, v = (np.linalg.qr(random.standard_normal((side, 6)))[0] for side in shape)
    w = ((u[:, :5] * [5, 4, 3, 2, 1]) @ v[:, :5].T).astype(np.float32)
    for strength, verdicts in ((0, ["matched"] * 5 + ["null"] * 5), (9, ["intruder"] + ["matched"] * 5 + ["null"] * 4)):
        b, a = (strength * u[:, 5:]).astype(np.float32), v[:, 5:].T.astype(np.float32)
        for tuned in (LowRankUpdated(w, None, b, a), LowRankUpdated(w + b @ a)):
            found = scanned(Pair("w", w, tuned, (b, a) if tuned.left is not None else None), exact=exact)
            assert list(found.verdicts) == verdicts


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(60, 40), (450, 420)])
def test_units_do_not_matter(shape, exact):
    """Numbers whose squares single precision cannot hold."""
    random = np.random.default_rng(6)
    w = base("spikes", shape, random)
    b, a = low_rank(shape, (9.0, 4.0), random)
    plain = scanned(Pair("w", w, LowRankUpdated(w, None, b, a), (b, a)), exact=exact)
    assert plain.intruders > 0
    for exponent in (-100, 120):
        big, left = (np.ldexp(x, exponent).astype(np.float32) for x in (w, b))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = [
                scanned(Pair("w", big, LowRankUpdated(big, None, left, a), (left, a)), exact=exact),
                scanned(Pair("w", big, LowRankUpdated(big + left @ a), None), exact=exact),
            ]
        for one in found:
            assert one.verdicts == plain.verdicts
            unit = 2.0**exponent
            np.testing.assert_allclose(one.values / unit, plain.values, rtol=1e-4)
            np.testing.assert_allclose(one.base_values / unit, plain.base_values, rtol=1e-4)
            np.testing.assert_allclose(one.prediction.outliers[:2] / unit, plain.prediction.outliers, rtol=1e-3)
            np.testing.assert_allclose(one.update.strengths[:2] / unit, plain.update.strengths, rtol=1e-3)
            for part in ("sigma", "sigma_error", "lower", "upper", "threshold"):
                np.testing.assert_allclose(getattr(one.bulk, part) / unit, getattr(plain.bulk, part), rtol=1e-3)


@pytest.mark.parametrize("method", ["bounds", "eigh"])
def test_nothing_added_leaves_nothing_to_find(method):
    random = np.random.default_rng(0)
    w = base("spikes", (160, 160), random)
    for pair in (
        Pair("w", w, LowRankUpdated(w.copy()), None),
        Pair("w", w, LowRankUpdated(w, None, np.zeros((160, 2), np.float32), np.ones((2, 160), np.float32)), None),
    ):
        found = scanned(pair)
        assert found.intruders == 0 and found.predicted == 0 and found.update.frobenius == 0
        np.testing.assert_allclose(found.cosines, 1, atol=5e-3)


@pytest.mark.thorough
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(160, 160), (200, 120), (120, 200)])
@pytest.mark.parametrize("method", ["bounds", "eigh"])
def test_layers_of_zeros_and_of_small_rank(shape, method):
    """Before, after, and both; what has no singular vectors makes all of the other's new, and has none that count."""
    random = np.random.default_rng(0)
    left, right = (random.standard_normal(size).astype(np.float32) for size in ((shape[0], 20), (20, shape[1])))
    nothing, small, whole = np.zeros(shape, np.float32), left @ right, random.standard_normal(shape).astype(np.float32)
    for before, after, expected in (
        (nothing, LowRankUpdated(nothing, None, left, right), "intruder"),
        (nothing, LowRankUpdated(whole), "intruder"),
        (nothing, LowRankUpdated(nothing), "null"),
        (small, LowRankUpdated(nothing), "null"),
        (whole, LowRankUpdated(nothing), "null"),
        (small, LowRankUpdated(small + 0.01 * whole), "matched"),
        (small, LowRankUpdated(small, None, left, 0.1 * right), "matched"),
    ):
        pair = Pair("w", before, after, None)
        for one in (scanned(pair), scanned(pair, exact=True), scanned(pair.on_device())):
            assert set(one.verdicts) == {expected}


@pytest.mark.parametrize("of", ["base", "tuned"])
@pytest.mark.parametrize("method", ["eigh"])
def test_vectors_that_any_decomposition_turns_are_left_to_the_svds(of, method):
    """Four singular values that single precision cannot tell apart: which vectors they have is the SVD's own choice."""
    random = np.random.default_rng(1)
    u, v = (np.linalg.qr(random.standard_normal((120, 120)))[0] for _ in range(2))
    apart = np.linspace(4, 1, 120)
    alike = np.append(5 * (1 + 1e-8 * np.arange(4)), apart[4:])
    before = (u * (alike if of == "base" else apart)) @ v.T
    u[:, :4] = u[:, :4] @ np.linalg.qr(random.standard_normal((4, 4)))[0]
    after = (u * (apart if of == "base" else alike)) @ v.T
    found = scanned(
        Pair("w", before.astype(np.float32), LowRankUpdated(after.astype(np.float32)), None), threshold_epsilon=0.8
    )
    assert found.algorithm == "svd"


@pytest.mark.first(1)
@pytest.mark.parametrize("seed", [3, 30, 71, 88])
def test_vectors_that_rounding_all_but_hides_are_not_intruders(seed):
    """Vectors at 0.7 to 0.95 of singular vectors of the base whose σ, 5e-5 to 3e-4 of the largest, squares to less than the
    rounding of AAᵀ; where rounding was taken for what is left in the next block, bounds were below the truth.
    """
    random = np.random.default_rng(seed)
    n = 420

    def columns(k):
        return np.linalg.qr(random.standard_normal((n, k)))[0]

    s = np.exp(-np.arange(n) / random.uniform(40, 50))
    w = ((columns(n) * s) @ columns(n).T).astype(np.float32)
    u, s, _ = np.linalg.svd(w.astype(float))
    real = int((s > s[0] * n * 1.19e-7).sum())
    for _ in range(2):
        x = np.zeros((n, 10))
        for j in range(10):
            share = random.uniform(0.7, 0.95)
            which = random.integers(int(0.8 * real), real)
            x[:, j] = share * u[:, which] + np.sqrt((1 - share**2) / n) * random.standard_normal(n)
        left = (np.linalg.qr(x)[0] * np.linspace(3, 1.5, 10) * s[0]).astype(np.float32)
        right = columns(10).T.astype(np.float32)
        pair = Pair("w", w, LowRankUpdated(w, None, left, right), (left, right))
        exact = scanned(pair, exact=True)
        for threshold in (0.75, 0.85):
            found = scanned(pair, threshold_epsilon=threshold)
            wanted = tuple("intruder" if cosine < threshold else "matched" for cosine in exact.cosines)
            assert found.verdicts == wanted, (threshold, found.algorithm, found.upper, exact.cosines)


@pytest.mark.parametrize("shape", SHAPES)
def test_prediction_is_the_law_on_a_gaussian_base(shape):
    """Outliers and overlaps from one drawn spectrum against the closed formulas, to a few standard deviations of 1/√N."""
    n, m = shape
    c = n / m
    s = np.linalg.svd(base("gaussian", shape, np.random.default_rng(0)).astype(float), compute_uv=False)
    theta = np.array([0.7, 1.6, 2.5, 4.0]) * c**0.25
    found = predict_beyond(theta, s, shape, edge=s[0] + 0.02)
    assert np.isnan(found.outliers[0]) and found.probabilities[0] < 0.05
    assert found.threshold == pytest.approx(c**0.25, rel=0.2)  # 0.06 is its standard deviation
    assert 0.75 * c**0.25 < found.threshold < 1.3 * c**0.25
    np.testing.assert_allclose(found.outliers[1:], spikes.rectangular_outlier(theta[1:], c), rtol=0.02)
    np.testing.assert_allclose(found.overlaps[1:], spikes.rectangular_overlap(theta[1:], c, side="left"), atol=0.03)


@pytest.mark.parametrize(("spike", "theta"), [(3.0, 2.6), (3.0, 4.0), (None, 1.35)])
def test_prediction_against_dense_draws(spike, theta):
    """An outlier that meets a spike of the base, passes it, or is near the threshold: chance of an intruder and its place.

    150 draws: the standard error of a frequency is at most 0.041, so 0.15 is 3.6 of them; false alarms below 1 in 1,000.
    """
    random = np.random.default_rng(5)
    n, m = 130, 150
    w = (random.standard_normal((n, m)) / np.sqrt(m)).astype(float)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    if spike:
        s[0] = spike
        w = (u * s) @ vt
    edge = s[1] + 0.05 if spike else s[0] + 0.02
    found = predict_beyond(np.array([theta]), s, (n, m), edge, 0.5, top_k=10, draws=400)
    hits, places = [], []
    for _ in range(150):
        a, b = (x / np.linalg.norm(x) for x in (random.standard_normal(n), random.standard_normal(m)))
        tuned, values, _ = np.linalg.svd(w + theta * np.outer(a, b), full_matrices=False)
        own = np.argmax(np.abs(a @ tuned))
        hits.append(np.abs(u.T @ tuned[:, own]).max() < 0.5)
        places.append(values[own])
    assert abs(np.mean(hits) - found.probabilities[0]) < 0.15
    assert abs(np.mean(places) - found.outliers[0]) < 0.06 * theta


@pytest.mark.parametrize(("kind", "shape", "top", "threshold"), [
    ("power law", (130, 150), 10, 0.8), ("spikes", (200, 120), 10, 0.7), ("gaussian", (120, 180), 40, 0.5),
    ("spikes", (700, 150), 30, 0.6),
])  # fmt: skip
def test_all_intruders_are_expected_where_many_are_base_vectors_that_mixed(kind, shape, top, threshold):
    """High thresholds, many leading vectors: the drawn mean against dense draws.

    40 of one and 64 of the other, so a difference of 4 standard errors is seen in 6 of 100,000.
    """
    random = np.random.default_rng(3)
    w = base(kind, shape, random).astype(float)
    u, s, _ = np.linalg.svd(w, full_matrices=False)
    theta = np.array([1.6, 1.2, 0.9, 0.6]) * (shape[0] / shape[1]) ** 0.25
    counts = []
    for _ in range(40):
        left, right = low_rank(shape, theta, random)
        tuned = np.linalg.svd(w + left @ right, full_matrices=False)[0][:, :top]
        counts.append((np.abs(u.T @ tuned).max(0) < threshold).sum())
    found = drawn_intruders(theta, s, shape, threshold, top_k=top, draws=64)
    error = np.std(counts, ddof=1) * np.sqrt(1 / 40 + 1 / 64)
    assert np.mean(counts) > 5 * error > 0
    assert abs(np.mean(counts) - found) < 4 * error
    few = predict_beyond(theta, s, shape, s[0] + 0.05, threshold, top_k=top)
    assert abs(np.mean(counts) - few.intruders) < 4 * np.std(counts, ddof=1) * np.sqrt(1 / 40 + 1 / 16)


@pytest.mark.parametrize(("times", "count"), [((40,), 14), ((1.2, 1.6), 12), ((2.0, 2.6), 24), ((0.5, 0.9), 40)])
def test_many_directions_at_once(times, count):
    """More of them than vectors: each outlier is ahead of what weaker ones make, and many weak ones turn the base's vectors
    together. Against 60 draws of the whole; each within four of their errors, and 0.1.
    """
    n, m, top, rng = 150, 200, 5, np.random.default_rng(0)
    base = rng.standard_normal((n, m)) / np.sqrt(m)
    u0, s, _ = np.linalg.svd(base, full_matrices=False)
    theta = np.linspace(times[-1], times[0], count) * (n / m) ** 0.25
    told = predict(theta, s, (n, m), bulk_fit(s, n, m), 0.5, top_k=top).intruders
    found = []
    for _ in range(60):
        a, b = (np.linalg.qr(rng.standard_normal((side, count)))[0] for side in (n, m))
        vectors = np.linalg.svd(base + (a * theta) @ b.T, full_matrices=False)[0][:, :top]
        found.append((np.abs(u0.T @ vectors).max(0) < 0.5).sum())
    error = np.std(found) / np.sqrt(len(found))
    assert told <= top and abs(told - np.mean(found)) < 4 * error + 0.1


def test_an_outlier_that_dissolves_among_spikes_is_nowhere():
    """Its place is told of one that stays itself, whatever the threshold of an intruder; 0.03 is four standard errors."""
    random = np.random.default_rng(0)
    alone = np.linalg.svd(random.standard_normal((200, 200)) / np.sqrt(200), compute_uv=False)
    crowd = np.concatenate([np.linspace(3.6, 2.4, 40), alone[40:]])
    theta = np.array([6.0, 2.6])
    places, kept = [], []
    for _ in range(12):
        left, right = low_rank((200, 200), theta, random)
        vectors, values, _ = np.linalg.svd(np.diag(crowd) + left @ right)
        places.append(values[0])
        kept.append(((left[:, 1] / theta[1]) @ vectors).max() ** 2)
    assert np.mean(kept) < 0.3  # of the second one
    for threshold in (0.2, 0.5, 0.9):
        found = predict_beyond(theta, crowd, (200, 200), 2.1, threshold, top_k=10)
        assert found.outliers[0] == pytest.approx(np.mean(places), rel=0.03)
        assert np.isnan(found.outliers[1])
    found = predict_beyond(theta, alone, (200, 200), 2.05, 0.5, top_k=10)
    assert found.outliers[1] == pytest.approx(float(spikes.rectangular_outlier(2.6, 1.0)), rel=0.05)


def test_numbers_that_stand_in_for_a_spectrum_have_its_distribution():
    """Of a large matrix only a quadrature is known; fit and prediction from it are those of the spectrum."""
    random = np.random.default_rng(0)
    for n, m in ((900, 900), (1200, 600), (600, 1200)):
        w = base("gaussian", (n, m), random) + sum(np.outer(*low_rank((n, m), [x], random)) for x in (3.0, 4.0))
        start = np.linalg.qr(random.standard_normal((n, 10)))[0].astype(np.float32)
        found = largest_cosines(LowRankUpdated(w), start, n_random=4, max_blocks=14)
        stand_in, exact = stand_in_values(found.ritz, 10 + np.arange(4), w), gram_values(w)
        assert stand_in.shape == exact.shape and (np.diff(stand_in) <= 1e-9).all()
        np.testing.assert_allclose(stand_in[:2], exact[:2], rtol=1e-4)
        assert np.abs(stand_in - exact).mean() < 0.03
        assert (stand_in**2).sum() == pytest.approx((exact**2).sum(), rel=3e-3)
        edge = float(marchenko_pastur.singular_support(n / m)[1]) + 0.05
        one, other = (predict_beyond(np.array([2.0, 5.0]), s, (n, m), edge) for s in (stand_in, exact))
        np.testing.assert_allclose(one.outliers, other.outliers, rtol=0.02)


def test_what_a_layer_alone_is_asked_must_make_sense():
    random = np.random.default_rng(0)
    w = base("gaussian", (30, 20), random)
    pair = Pair("w", w, LowRankUpdated(w + 1), None)
    assert scanned(pair, top_k=np.int64(3), threshold_epsilon=np.float32(0.5)).values.shape == (3,)
    for question in ({"threshold_epsilon": 2.0}, {"top_k": 0}, {"top_k": 21}):
        name = next(iter(question))
        with pytest.raises(InputError, match=f"{name} = {question[name]}: must be"):
            scanned(pair, **question)
    broken = w.copy()
    broken[3, 4] = np.nan
    for bad in (Pair("w", broken, LowRankUpdated(w), None), Pair("w", w, LowRankUpdated(broken), None)):
        for exact in (False, True):
            with pytest.raises(InputError, match="w: holds NaN or infinite numbers"):
                scanned(bad, exact=exact)
