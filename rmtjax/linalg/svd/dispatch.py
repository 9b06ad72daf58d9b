"""Singular values and vectors of matrices of any shape by every algorithm, and by the fastest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from rmtjax.linalg.svd._common import (
    SVD,
    adjoint,
)
from rmtjax.linalg.svd.gram import gram64_svd, gram64_svdvals, gram_svd, gram_svdvals
from rmtjax.linalg.svd.jacobi import jacobi_svd, jacobi_svdvals
from rmtjax.linalg.svd.lapack import library_svd, library_svdvals, threads_svd, threads_svdvals
from rmtjax.linalg.svd.polar import polar_svd
from rmtjax.linalg.svd.select import fastest

__all__ = ["SVDVALS_TABLE", "SVD_TABLE", "run_svd"]

SVD_TABLE: dict[str, Callable[[Array], SVD]] = {
    "library": library_svd,
    "threads": threads_svd,
    "jacobi": jacobi_svd,
    "gram": gram_svd,
    "gram64": gram64_svd,
    "polar": polar_svd,
}

SVDVALS_TABLE: dict[str, Callable[[Array], Array]] = {
    "library": library_svdvals,
    "threads": threads_svdvals,
    "jacobi": jacobi_svdvals,
    "gram": gram_svdvals,
    "gram64": gram64_svdvals,
}


def run_svd(table: dict[str, Callable], algorithm: str, a: Array, precise: bool, vectors: bool) -> Any:
    """Run an algorithm on matrices of any shape; algorithms for tall matrices get the transpose of wide ones."""
    if algorithm == "auto":
        function = functools.partial(fastest, table, precise=precise, vectors=vectors)
    elif algorithm in ("threads", "gram64"):  # LAPACK exists only on the host
        function = functools.partial(jax.lax.platform_dependent, cpu=table[algorithm], default=table["library"])
    else:
        function = table[algorithm]
    if a.shape[-2] >= a.shape[-1] or algorithm in ("library", "threads"):
        return function(a)
    if not vectors:
        return function(adjoint(a))
    u, s, vh = function(adjoint(a))
    return SVD(adjoint(vh), s, adjoint(u))
