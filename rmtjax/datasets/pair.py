"""One transfer task: a source problem, a similar target problem, and target points to test on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rmtjax._checks import finite
from rmtjax._errors import InputError, shown


@dataclass(frozen=True, eq=False)
class TransferPair:
    """Two binary problems over the same features, each scaled by its own train split.

    Attributes:
        source: Name of the source problem.
        target: Name of the target problem.
        features: Description of the columns.
        source_X: Source samples, (N, p), float64, one sample a row; every column has mean 0 and variance 1, or is
            constant 0.
        source_y: Source labels, (N,), float64, each −1.0 or +1.0.
        target_X: The pool that target samples are drawn from, (n_pool, p), scaled likewise by its own columns.
        target_y: Its labels, (n_pool,).
        test_X: Target points that no classifier is fitted on, (n_test, p), scaled as the target pool was.
        test_y: Their labels, (n_test,).

    Raises:
        InputError: An array has the wrong shape, a label other than ±1, only one label, or a NaN or infinite entry.
    """

    source: str
    target: str
    features: str
    source_X: np.ndarray
    source_y: np.ndarray
    target_X: np.ndarray
    target_y: np.ndarray
    test_X: np.ndarray
    test_y: np.ndarray

    def __post_init__(self) -> None:
        for part in ("source", "target", "test"):
            X, y = getattr(self, f"{part}_X"), getattr(self, f"{part}_y")
            if X.ndim != 2 or y.shape != X.shape[:1] or X.shape[1] != self.p:
                raise InputError(
                    f"{part}_X and {part}_y have shapes {X.shape} and {y.shape}; "
                    f"allowed: (samples, {self.p}) and (samples,), the same {self.p} features in all parts"
                )
            if set(np.unique(y)) != {-1.0, 1.0}:
                raise InputError(
                    f"{part}_y holds the labels {shown(np.unique(y).tolist())}; allowed: both −1 and 1, no other"
                )
            finite(f"{part}_X", X)

    @property
    def p(self) -> int:
        """Number of features."""
        return self.source_X.shape[-1]

    def target_sample(self, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw `n` distinct samples from the target pool, uniformly at random.

        Args:
            n: Number of samples, at least 1 and at most the pool's size.
            seed: Seed of the draw. With one seed, a smaller draw is the beginning of a larger one.

        Returns:
            The samples, (n, p), and their labels, (n,).

        Raises:
            InputError: `n` is outside 1…n_pool.
        """
        pool = len(self.target_y)
        if not 1 <= n <= pool:
            raise InputError(f"n = {shown(n)} target samples cannot be drawn; allowed: 1 to {pool}, the pool's size")
        rows = np.random.default_rng(seed).permutation(pool)[:n]
        return self.target_X[rows], self.target_y[rows]
