"""Singular value and eigenvalue decompositions of batches of dense matrices, see `rmtjax.linalg.svd.api`."""

from rmtjax.linalg.svd._common import EIGH_ALGORITHMS, SINGLE, SVD, SVD_ALGORITHMS, Eigh
from rmtjax.linalg.svd.api import eigh, eigvalsh, svd, svdvals
from rmtjax.linalg.svd.select import SelectionLimits, select_algorithm
from rmtjax.linalg.svd.threads import one_blas_thread

__all__ = [
    "EIGH_ALGORITHMS",
    "SINGLE",
    "SVD",
    "SVD_ALGORITHMS",
    "Eigh",
    "SelectionLimits",
    "eigh",
    "eigvalsh",
    "one_blas_thread",
    "select_algorithm",
    "svd",
    "svdvals",
]
