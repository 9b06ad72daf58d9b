"""Sentiment transfer between four Amazon review domains (Blitzer et al. 2007), the α-LoRA paper's linear task.

The files hold the preprocessing of Chen et al. (2012): counts of the 5,000 most frequent words and word pairs, sorted
by the number of reviews that hold them, label +1 for a favourable review and −1 for an unfavourable one. They are read
in place.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.datasets import load_svmlight_file
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import StandardScaler

from rmtjax._checks import one_of, whole
from rmtjax._errors import InputError, shown
from rmtjax.datasets._folders import data_folder
from rmtjax.datasets.pair import TransferPair

DOMAINS = ("books", "dvd", "electronics", "kitchen")
SPLITS = ("train", "test")
FEATURES = ("counts", "log", "binary", "tfidf")
WORDS = 5000

_FOLDER = "amazon_reviews"


def find_data(path: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the folder of the eight `<domain>_<split>.svmlight` files.

    Looks at `path` alone where one is given; else in `$RMTJAX_DATA/amazon_reviews`, then in
    `../shared/data/amazon_reviews` seen from the current directory and from the repository's root.

    Args:
        path: The folder itself, or None to search.

    Returns:
        The folder, or None where no `path` is given and nothing is found.

    Raises:
        InputError: `path` is given and is not a folder.
    """
    return _folder(path) if path is not None else data_folder(_FOLDER)


def load_domain(folder: str | os.PathLike[str], domain: str, split: str) -> tuple[csr_matrix, np.ndarray]:
    """Return one split of one domain.

    Args:
        folder: Folder of the svmlight files (zero-based indices).
        domain: One of `DOMAINS`.
        split: `"train"` or `"test"`.

    Returns:
        Word counts, CSR (samples, 5000), float64; and labels, (samples,), int, each −1 or +1.

    Raises:
        InputError: The domain or split is unknown; the folder or file is missing; the file is empty, unparsable, or
            holds a word index outside 0…4999, a NaN, infinite or negative value, or a label other than ±1.
    """
    one_of("domain", domain, DOMAINS)
    one_of("split", split, SPLITS)
    file = _folder(folder) / f"{domain}_{split}.svmlight"
    if not file.is_file():
        raise InputError(f"file {file} is missing; the Amazon folder needs <domain>_<split>.svmlight for {domain}")
    try:
        # Without n_features, so that the error below can name an index that is too large.
        X, y = load_svmlight_file(str(file), zero_based=True)
    except (ValueError, OverflowError, IndexError, OSError) as error:
        raise InputError(f"file {file} cannot be read ({shown(str(error), 120)}); allowed: svmlight text") from error
    if not y.size:
        raise InputError(f"file {file} is empty; allowed: one review per line")
    if X.shape[1] > WORDS:
        raise InputError(f"file {file} holds the feature index {X.shape[1] - 1}; allowed: 0 to {WORDS - 1}")
    odd = X.data[~(np.isfinite(X.data) & (X.data >= 0))]
    if odd.size:
        raise InputError(f"file {file} holds the value {odd[0]:g}; allowed: finite counts, 0 or more")
    odd = y[~np.isin(y, (-1, 1))]
    if odd.size:
        raise InputError(f"file {file} holds the label {odd[0]:g}; allowed: -1 or 1")
    X.resize(len(y), WORDS)
    return csr_matrix(X), y.astype(int)


def load_pair(
    folder: str | os.PathLike[str], source: str, target: str, features: str = "counts", words: int = WORDS
) -> TransferPair:
    """Return a transfer: a source domain's train split, and a target domain's train and test splits.

    Each domain is scaled to mean 0 and variance 1 per word by its own train split; `tfidf` weights come from that
    split too. Only the inputs of the split are used for that, never its labels. So the scaler sees the whole target
    pool, of which a few-shot classifier then draws n labelled samples; the paper does not say what its scaler saw.

    Args:
        folder: Folder of the svmlight files, as `find_data` returns it.
        source: Source domain, one of `DOMAINS`.
        target: Target domain, another one.
        features: `"counts"`; `"log"`, log(1 + count); `"binary"`, whether the word occurs; `"tfidf"`, scikit-learn's
            tf-idf with unit rows.
        words: Number of words to keep, 1 to 5000: those that occur in the most reviews of all domains.

    Returns:
        The pair, dense float64: 2,000 source samples, 2,000 in the target pool, 3,586 to 5,945 to test on. With all
        5,000 words it takes 300 to 400 MB.

    Raises:
        InputError: An unknown or repeated domain, an unknown feature, `words` out of range, or as `load_domain`.

    Source:
        Blitzer, Dredze & Pereira (2007); the protocol is §5.1 of the α-LoRA paper, which does not name its features.
    """
    one_of("features", features, FEATURES)
    whole("words", words, 1, WORDS)
    for domain in (source, target):
        one_of("domain", domain, DOMAINS)
    if source == target:
        raise InputError(f"source and target are both {source!r}; allowed: two different domains")
    (source_X,), (source_y,) = scaled_splits(folder, source, ("train",), features, words)
    (target_X, test_X), (target_y, test_y) = scaled_splits(folder, target, ("train", "test"), features, words)
    description = f"{features} of the {words} most frequent words"
    return TransferPair(source, target, description, source_X, source_y, target_X, target_y, test_X, test_y)


def _folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; allowed: the folder of <domain>_<split>.svmlight files")
    return folder


def scaled_splits(
    folder: str | os.PathLike[str], domain: str, splits: tuple[str, ...], features: str, words: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return features and labels of a domain's splits, scaled by the first of them; arguments as for `load_pair`."""
    raw = [load_domain(folder, domain, split) for split in splits]
    # The columns are sorted by document frequency over all domains, so the first ones are the most frequent words.
    counts = [X[:, :words] for X, _ in raw]
    if features == "tfidf":
        weigh = TfidfTransformer().fit(counts[0])
        counts = [weigh.transform(X) for X in counts]
    elif features == "log":
        counts = [X.log1p() for X in counts]
    elif features == "binary":
        counts = [X.sign() for X in counts]
    dense = [X.toarray() for X in counts]
    scaler = StandardScaler(copy=False).fit(dense[0])
    return [scaler.transform(X) for X in dense], [y.astype(float) for _, y in raw]
