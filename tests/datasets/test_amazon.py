"""The Amazon transfer pairs: what is read, how it is scaled, and one clear line for every file that cannot be used."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import issparse

from rmtjax._errors import InputError
from rmtjax.datasets import _folders
from rmtjax.datasets.amazon import DOMAINS, FEATURES, find_data, load_domain, load_pair
from rmtjax.datasets.digits import load_default
from rmtjax.datasets.pair import TransferPair

DATA = find_data()
needs_data = pytest.mark.skipif(DATA is None, reason="no Amazon reviews under RMTJAX_DATA or ../shared/data")

GOOD = "1 0:2 3:1\n-1 1:4\n1 0:1 2:3\n-1 1:1 3:5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of small files, one for every domain and split."""
    path = tmp_path / "amazon_reviews"
    path.mkdir()
    for domain in DOMAINS:
        for split in ("train", "test"):
            (path / f"{domain}_{split}.svmlight").write_text(GOOD)
    return path


def refused(*parts: str):
    """Expect an InputError of one line that holds every part."""
    pattern = "".join(f"(?=.*{part})" for part in parts)
    return pytest.raises(InputError, match=rf"\A{pattern}[^\n]*\Z")


def ridge(X: np.ndarray, y: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """Ridge classifier (XᵀX/n + γ)⁻¹Xᵀy/n for samples as rows."""
    n = len(y)
    return X.T @ np.linalg.solve(X @ X.T / n + gamma * np.eye(n), y) / n


# --- finding the folder -------------------------------------------------------------------------------------------


def test_explicit_path_wins_over_the_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RMTJAX_DATA", str(tmp_path / "elsewhere"))
    assert find_data(str(folder)) == folder


def test_environment_wins_over_the_shared_folder(folder, monkeypatch):
    monkeypatch.setenv("RMTJAX_DATA", str(folder.parent))
    assert find_data() == folder


def test_shared_folder_is_found_from_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("RMTJAX_DATA", raising=False)
    data = tmp_path / "shared" / "data" / "amazon_reviews"
    work = tmp_path / "work"
    data.mkdir(parents=True)
    work.mkdir()
    monkeypatch.chdir(work)
    assert find_data().resolve() == data.resolve()


def test_shared_folder_is_found_from_the_repository_root(tmp_path, monkeypatch):
    monkeypatch.delenv("RMTJAX_DATA", raising=False)
    data = tmp_path / "shared" / "data" / "amazon_reviews"
    data.mkdir(parents=True)
    module = tmp_path / "repository" / "rmtjax" / "tasks" / "amazon.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(_folders, "__file__", str(module))
    (tmp_path / "far" / "away").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "far" / "away")
    assert find_data().resolve() == data.resolve()


def test_nothing_found_is_none(tmp_path, monkeypatch):
    work = tmp_path / "repository" / "rmtjax" / "tasks"
    work.mkdir(parents=True)
    monkeypatch.setenv("RMTJAX_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(_folders, "__file__", str(work / "amazon.py"))
    monkeypatch.chdir(work)
    assert find_data() is None


def test_missing_explicit_folder(tmp_path):
    with refused("no_such_folder", "does not exist", "allowed"):
        find_data(tmp_path / "no_such_folder")
    with refused("no_such_folder", "does not exist", "allowed"):
        load_domain(tmp_path / "no_such_folder", "books", "train")


# --- reading a file -----------------------------------------------------------------------------------------------


def test_load_domain_reads_zero_based_counts(folder):
    X, y = load_domain(folder, "books", "train")
    assert issparse(X) and X.format == "csr" and X.shape == (4, 5000)
    assert y.dtype.kind == "i" and y.tolist() == [1, -1, 1, -1]
    expected = [[2, 0, 0, 1], [0, 4, 0, 0], [1, 0, 3, 0], [0, 1, 0, 5]]
    np.testing.assert_array_equal(X[:, :4].toarray(), expected)
    assert X[:, 4:].nnz == 0


def test_missing_file(folder):
    (folder / "dvd_test.svmlight").unlink()
    with refused("dvd_test.svmlight", "missing"):
        load_domain(folder, "dvd", "test")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty", "allowed"]),
        ("\n\n", ["empty"]),
        ("# a comment alone\n", ["empty"]),
        ("1 0:2\nnot svmlight\n", ["cannot be read", "svmlight"]),
        ("1 0:two\n", ["cannot be read"]),
        ("1 0\n", ["cannot be read"]),
        ("1 3:1 2:1\n", ["cannot be read", "sorted"]),
        ("1 -1:1\n", ["cannot be read", "-1"]),
        ("1 99999999999999999999:1\n", ["cannot be read"]),
        ("1 0:1\n-1 5000:1\n", ["index 5000", "0 to 4999"]),
        ("1 0:nan\n", ["value nan", "finite"]),
        ("1 0:1\n-1 4:inf\n", ["value inf", "finite"]),
        ("1 0:-2\n", ["value -2", "0 or more"]),
        ("1 0:1\n0 0:1\n", ["label 0", "-1 or 1"]),
        ("1 0:1\n2 0:1\n", ["label 2", "-1 or 1"]),
        ("nan 0:1\n", ["label nan", "-1 or 1"]),
    ],
)
def test_unusable_file(folder, text, parts):
    (folder / "books_train.svmlight").write_text(text)
    with refused("books_train.svmlight", *parts):
        load_domain(folder, "books", "train")


def test_binary_file(folder):
    (folder / "books_train.svmlight").write_bytes(b"\x00\x01\xff\xfe\x80 garbage\n")
    with refused("books_train.svmlight", "cannot be read"):
        load_domain(folder, "books", "train")


def test_unknown_domain_and_split_suggest_the_nearest(folder):
    with refused("domain 'book'", "did you mean 'books'", "kitchen"):
        load_domain(folder, "book", "train")
    with refused("domain 'kitchens'", "did you mean 'kitchen'"):
        load_pair(folder, "books", "kitchens")
    with refused("split 'tests'", "did you mean 'test'"):
        load_domain(folder, "books", "tests")


# --- making a pair ------------------------------------------------------------------------------------------------


def test_load_pair_refuses_its_options(folder):
    with refused("features 'count'", "did you mean 'counts'", "tfidf"):
        load_pair(folder, "books", "dvd", features="count")
    with refused("source and target are both 'dvd'", "allowed: two different"):
        load_pair(folder, "dvd", "dvd")
    for words in (0, 5001, 2.5):
        with refused(f"words = {words}", "1 to 5000"):
            load_pair(folder, "books", "dvd", words=words)


def test_pair_of_one_label_is_refused(folder):
    (folder / "books_train.svmlight").write_text("1 0:1\n1 1:1\n")
    with refused("source_y", r"\[1.0\]", "both"):
        load_pair(folder, "books", "dvd", words=4)


def test_target_test_split_is_scaled_by_the_train_split(folder):
    (folder / "dvd_test.svmlight").write_text("1 0:7\n-1 3:1\n")
    pair = load_pair(folder, "books", "dvd", words=4)
    raw = load_domain(folder, "dvd", "train")[0][:, :4].toarray()
    test = load_domain(folder, "dvd", "test")[0][:, :4].toarray()
    np.testing.assert_allclose(pair.test_X, (test - raw.mean(0)) / raw.std(0), rtol=1e-12)
    np.testing.assert_allclose(pair.target_X, (raw - raw.mean(0)) / raw.std(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("features", "transform"),
    [("counts", lambda X: X), ("log", np.log1p), ("binary", lambda X: (X > 0).astype(float))],
)
def test_features_are_transformed_before_scaling(folder, features, transform):
    pair = load_pair(folder, "books", "dvd", features=features, words=4)
    raw = transform(load_domain(folder, "books", "train")[0][:, :4].toarray())
    np.testing.assert_allclose(pair.source_X, (raw - raw.mean(0)) / raw.std(0), rtol=1e-12)


def test_words_that_a_domain_never_uses_are_zero(folder):
    pair = load_pair(folder, "books", "dvd", words=10)
    assert pair.p == 10 and not pair.source_X[:, 4:].any()


def test_target_sample_is_nested_and_reproducible(folder):
    pair = load_pair(folder, "books", "dvd", words=4)
    X, y = pair.target_sample(2, seed=3)
    bigger, labels = pair.target_sample(4, seed=3)
    np.testing.assert_array_equal(bigger[:2], X)
    np.testing.assert_array_equal(labels[:2], y)
    np.testing.assert_array_equal(np.sort(bigger, axis=0), np.sort(pair.target_X, axis=0))
    for n in (0, 5):
        with refused(f"n = {n}", "1 to 4"):
            pair.target_sample(n)


def test_pair_checks_its_arrays(folder):
    pair = load_pair(folder, "books", "dvd", words=4)
    with refused("test_X", "shapes"):
        dataclasses.replace(pair, test_y=pair.test_y[:-1])
    with refused("target_X", "shapes", "4 features"):
        dataclasses.replace(pair, target_X=pair.target_X[:, :3])
    with refused("source_X has an entry", "all must be finite"):
        dataclasses.replace(pair, source_X=np.full_like(pair.source_X, np.nan))
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.source = "other"


# --- the bundled default ------------------------------------------------------------------------------------------


def test_default_pair_transfers_well_but_not_perfectly():
    pair = load_default()
    assert isinstance(pair, TransferPair) and pair.p == 64
    assert pair.source_X.dtype == pair.test_X.dtype == np.float64
    source = ridge(pair.source_X, pair.source_y)
    alone = np.mean(pair.test_y * (pair.test_X @ source) > 0)
    assert 0.65 < alone < 0.9
    few, tuned = [], []
    for seed in range(20):
        X, y = pair.target_sample(8, seed)
        w = ridge(X, y)
        tuned_w = w + source - ridge(X, X @ source)  # α = 1, by γQw̃ = w̃ − QXXᵀw̃/n
        few.append(np.mean(pair.test_y * (pair.test_X @ w) > 0))
        tuned.append(np.mean(pair.test_y * (pair.test_X @ tuned_w) > 0))
    assert np.mean(tuned) > np.mean(few) + 0.02


def test_default_pair_is_reproducible_and_its_halves_are_disjoint():
    first, again, other = load_default(), load_default(), load_default(seed=1)
    np.testing.assert_array_equal(first.test_X, again.test_X)
    assert not np.array_equal(first.test_y, other.test_y)
    assert abs(len(first.target_y) - len(first.test_y)) <= 1
    np.testing.assert_allclose(first.target_X.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(first.source_X.mean(0), 0, atol=1e-12)


@pytest.mark.parametrize(("source", "target"), [((1, 1), (2, 3)), ((1, 2), (2, 3)), ((1, 10), (2, 3)), ((1,), (2, 3))])
def test_default_pair_refuses_digits(source, target):
    with refused("source = ", "four different integers from 0 to 9"):
        load_default(source, target)


# --- the real reviews ---------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("domain", DOMAINS)
def test_real_domain(domain):
    X, y = load_domain(DATA, domain, "train")
    assert X.shape == (2000, 5000) and set(y) == {-1, 1} and abs(y.mean()) < 0.01


@needs_data
def test_real_columns_are_sorted_by_document_frequency():
    holds = sum(load_domain(DATA, domain, split)[0].getnnz(axis=0) for domain in DOMAINS for split in ("train", "test"))
    assert np.corrcoef(np.argsort(np.argsort(-holds)), np.arange(5000))[0, 1] > 0.999


@needs_data
@pytest.mark.parametrize("features", FEATURES)
def test_real_pair_is_scaled(features):
    pair = load_pair(DATA, "dvd", "kitchen", features=features, words=300)
    assert pair.source_X.shape == pair.target_X.shape == (2000, 300) and pair.test_X.shape == (5945, 300)
    for X in (pair.source_X, pair.target_X):
        np.testing.assert_allclose(X.mean(0), 0, atol=1e-10)
        used = X.any(axis=0)  # a few words never occur in a domain's train split
        assert used.mean() > 0.97
        np.testing.assert_allclose(X[:, used].std(0), 1, atol=1e-10)
    assert np.abs(pair.test_X.mean(0)).max() < 0.2


@needs_data
def test_real_transfer_is_near_the_papers_table():
    """The paper's dvd → kitchen: 69.24 without transfer, 78.11 at α = 1; its n, γ and features are not printed."""
    pair = load_pair(DATA, "dvd", "kitchen")
    source = ridge(pair.source_X, pair.source_y)
    few, tuned = [], []
    for seed in range(5):
        X, y = pair.target_sample(100, seed)
        w = ridge(X, y)
        few.append(np.mean(pair.test_y * (pair.test_X @ w) > 0))
        tuned.append(np.mean(pair.test_y * (pair.test_X @ (w + source - ridge(X, X @ source))) > 0))
    assert abs(np.mean(few) - 0.6924) < 0.05
    assert abs(np.mean(tuned) - 0.7811) < 0.03
