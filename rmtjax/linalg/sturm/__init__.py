"""Eigenvalues of tridiagonal and singular values of bidiagonal matrices by counting, see `rmtjax.linalg.sturm.tridiagonal`."""

from rmtjax.linalg.sturm.bidiagonal import singular_count_below, singular_histogram, singular_values
from rmtjax.linalg.sturm.tridiagonal import count_below, eigenvalues, histogram, largest

__all__ = [
    "count_below",
    "eigenvalues",
    "histogram",
    "largest",
    "singular_count_below",
    "singular_histogram",
    "singular_values",
]
