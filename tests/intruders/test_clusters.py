"""Verdicts where singular values coincide: none that depends on which basis a decomposition happens to return."""

import doctest
import json

import ml_dtypes
import numpy as np
import pytest

from rmtjax.intruders import clusters, scan, scan_layer
from rmtjax.intruders.clusters import close_values, cosine_range
from rmtjax.intruders.pair import Pair
from rmtjax.intruders.scan import exact
from rmtjax.linalg.krylov import LowRankUpdated
from rmtjax.report.intruders import table

from .helpers import matrix, planted, write


def orthogonal(n, m=None, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, m or n)))[0]


def test_examples():
    assert doctest.testmod(clusters, extraglobs={"np": np}).failed == 0


def test_bounds_hold_for_every_basis():
    """Of spaces of 1 to 4 vectors, turned at random: cosines stay between the bounds, and come near both."""
    rng = np.random.default_rng(0)
    before, after = orthogonal(12, seed=1), orthogonal(12, seed=2)[:, :5]
    of_before, of_after = [slice(0, 3), slice(3, 4), slice(4, 8), slice(8, 12)], [slice(0, 1), slice(1, 3), slice(3, 5)]
    lower, upper = cosine_range(before.T @ after, of_before, of_after)
    seen = []
    for _ in range(4000):
        turned = [x.copy() for x in (before, after)]
        for x, groups in zip(turned, (of_before, of_after), strict=True):
            for group in groups:
                x[:, group] = x[:, group] @ orthogonal(group.stop - group.start, seed=rng.integers(2**31))
        seen.append(np.abs(turned[0].T @ turned[1]).max(0))
    assert (np.min(seen, 0) >= lower - 1e-12).all() and (np.max(seen, 0) <= upper + 1e-12).all()
    assert (np.max(seen, 0) > upper - 0.05).all() and np.min(seen, 0)[0] < lower[0] + 0.05


def test_single_values_have_one_cosine():
    overlaps = orthogonal(6)[:, :3]
    lower, upper = cosine_range(
        overlaps, close_values(np.arange(6.0)[::-1], 0.5), close_values(np.arange(3.0)[::-1], 0.5)
    )
    np.testing.assert_array_equal(lower, upper)
    np.testing.assert_array_equal(lower, np.abs(overlaps).max(0))


ORTHOGONAL = {
    "float32": lambda n: orthogonal(n).astype(np.float32),
    "bfloat16": lambda n: orthogonal(n).astype(ml_dtypes.bfloat16),
    "float16": lambda n: (3 * orthogonal(n)).astype(np.float16),
}


@pytest.mark.first(3)
@pytest.mark.parametrize("n", [24, 300, 420])
@pytest.mark.parametrize("stored", ORTHOGONAL)
def test_a_base_without_vectors(stored, n, tmp_path):
    """Every vector is one of an orthogonal matrix, of which rounding makes some or other: a count would mean nothing."""
    base = ORTHOGONAL[stored](n)
    tuned = base.astype(np.float32) + np.float32(3) * np.outer(orthogonal(n, seed=3)[0], orthogonal(n, seed=4)[0])
    found = scan(
        write(tmp_path / "b", {"x.weight": base}), write(tmp_path / "t", {"x.weight": tuned.astype(np.float32)})
    )
    assert found.layers[0].verdicts == ("undecidable",) * 10 and found.intruders == 0
    (column,) = [column for column in table(found).columns if column.header == "intruders"]
    assert [str(cell) for cell in column.cells] == ["?"]
    assert json.loads(json.dumps(found.to_dict()["total"], default=float))["undecidable"] == 10


@pytest.mark.parametrize("n", [24, 300, 420])
def test_a_tuned_matrix_without_vectors(n, tmp_path):
    found = scan(
        write(tmp_path / "b", {"x.weight": matrix(n, n)}),
        write(tmp_path / "t", {"x.weight": orthogonal(n).astype(np.float32)}),
    )
    assert set(found.layers[0].verdicts) == {"undecidable"}


@pytest.mark.parametrize("n", [24, 300, 420])
def test_a_pair_of_equal_values_is_decided(n):
    """A vector of before in a plane of two, cosine 1/√2 at least whatever the basis, is known; one outside is an intruder."""
    values = np.geomspace(10, 1, n)
    values[1] = values[0]
    u, v = orthogonal(n, seed=5), orthogonal(n, seed=6)
    base = ((u * values) @ v.T).astype(np.float32)
    new = u[:, 5:].sum(1) / np.sqrt(n - 5)
    left = np.float32(40) * new[:, None].astype(np.float32)
    right = orthogonal(n, seed=7)[:1].astype(np.float32)
    found = scan_layer(Pair("w", base, LowRankUpdated(base, None, left, right), (left, right)), top_k=3)
    assert found.verdicts == ("intruder", "matched", "matched")


def test_ordinary_weights_in_half_precision_stay_decided(tmp_path):
    """Rounding to bfloat16 moves the singular values of a random matrix by far less than they are apart."""
    base = np.random.default_rng(0).standard_normal((256, 320)).astype(ml_dtypes.bfloat16)
    tuned = planted(base.astype(np.float32), 60.0, 80.0)
    found = scan(write(tmp_path / "b", {"x.weight": base}), write(tmp_path / "t", {"x.weight": tuned}))
    assert found.layers[0].verdicts[:2] == ("intruder",) * 2 and "undecidable" not in found.layers[0].verdicts


def test_fewer_values_than_lapack_was_asked_for(monkeypatch):
    """`evr` may leave some out where eigenvalues coincide; that layer is decomposed whole."""
    import scipy.linalg

    eigh = scipy.linalg.eigh
    monkeypatch.setattr(
        scipy.linalg, "eigh", lambda *args, **options: tuple(x[..., 2:] for x in eigh(*args, **options))
    )
    w, tuned = matrix(40, 30), planted(matrix(40, 30), 30.0)
    found = scan_layer(Pair("w", w, LowRankUpdated(tuned), None))
    assert found.algorithm == "svd" and found.intruders == 1


def test_a_layer_that_lapack_does_not_decompose_is_that_layers_fault(tmp_path, monkeypatch):
    decompose = exact.decompose

    def fails(w):
        if w.shape == (14, 12):
            raise np.linalg.LinAlgError("SVD did not converge")
        return decompose(w)

    monkeypatch.setattr(exact, "decompose", fails)
    weights = {"a.weight": matrix(14, 12), "b.weight": matrix(16, 13), "c.weight": matrix(12, 12)}
    tuned = {name: planted(value, 30.0) for name, value in weights.items()}
    found = scan(write(tmp_path / "b", weights), write(tmp_path / "t", tuned), exact=True)
    assert [layer.name for layer in found.layers] == ["b.weight", "c.weight"]
    assert found.skipped == (("a.weight", "LAPACK failed to decompose it (SVD did not converge)"),)
    assert found.incomplete == ("a.weight",)
