"""A transfer task without a download: tell two handwritten digits apart after learning on two others."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from rmtjax._errors import InputError, shown
from rmtjax.datasets.pair import TransferPair


def load_default(source: tuple[int, int] = (6, 8), target: tuple[int, int] = (5, 9), seed: int = 0) -> TransferPair:
    """Return a transfer pair from scikit-learn's bundled 8×8 digits.

    The default task was chosen among all pairs of digits for what transfer can add: the classifier of 6 against 8
    tells 5 from 9 in about three cases of four, and with 8 target samples it takes the target classifier from about
    0.90 to about 0.95 (ridge, γ = γ̃ = 1).

    Args:
        source: The two digits of the source problem; the first is labelled −1, the second +1.
        target: The two digits of the target problem, none of them in the source.
        seed: Seed of the split of the target's images into a pool and a test half.

    Returns:
        The pair, dense float64, p = 64 pixels, about 360 source samples and 180 in either half of the target. Source
        and target are scaled per pixel, each by its own train split.

    Raises:
        InputError: The four digits are not four different integers from 0 to 9.

    Source:
        UCI optical recognition of handwritten digits (Alpaydin & Kaynak 1998), as bundled with scikit-learn.
    """
    digits = (*source, *target)
    if len(digits) != 4 or set(digits) - set(range(10)) or len(set(digits)) != 4:
        raise InputError(
            f"source = {shown(source)} and target = {shown(target)}: must be "
            f"two digits each, four different integers from 0 to 9"
        )
    images, names = load_digits(return_X_y=True)

    def problem(pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.isin(names, pair)
        return images[rows], np.where(names[rows] == pair[1], 1.0, -1.0)

    source_X, source_y = problem(source)
    target_X, target_y = problem(target)
    order = np.random.default_rng(seed).permutation(len(target_y))
    pool, test = np.array_split(order, 2)
    scaler = StandardScaler().fit(target_X[pool])
    return TransferPair(
        source=f"digits {source[0]} against {source[1]}",
        target=f"digits {target[0]} against {target[1]}",
        features="64 pixels",
        source_X=StandardScaler().fit_transform(source_X),
        source_y=source_y,
        target_X=scaler.transform(target_X[pool]),
        target_y=target_y[pool],
        test_X=scaler.transform(target_X[test]),
        test_y=target_y[test],
    )
