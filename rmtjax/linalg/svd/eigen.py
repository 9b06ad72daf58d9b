"""Eigenvalues and eigenvectors of Hermitian matrices by every algorithm, and by the fastest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from rmtjax.linalg.svd._common import (
    Eigh,
)
from rmtjax.linalg.svd.jacobi import jacobi_eigh
from rmtjax.linalg.svd.lapack import library_eigh, library_eigvalsh, threads_eigh, threads_eigvalsh
from rmtjax.linalg.svd.select import fastest

__all__ = ["EIGH_TABLE", "EIGVALSH_TABLE", "fastest_eigh", "fastest_eigvalsh", "run_eigh"]

EIGH_TABLE: dict[str, Callable[[Array], Eigh]] = {
    "library": library_eigh,
    "threads": threads_eigh,
    "jacobi": jacobi_eigh,
}

EIGVALSH_TABLE: dict[str, Callable[[Array], Array]] = {
    "library": library_eigvalsh,
    "threads": threads_eigvalsh,
    "jacobi": lambda a: jacobi_eigh(a).eigenvalues,
}


def fastest_eigh(a: Array) -> Eigh:
    """Return eigenvalues and eigenvectors by the fastest algorithm."""
    return fastest(EIGH_TABLE, a, symmetric=True)


def fastest_eigvalsh(a: Array) -> Array:
    """Return eigenvalues by the fastest algorithm."""
    return fastest(EIGVALSH_TABLE, a, symmetric=True, vectors=False)


def run_eigh(table: dict[str, Callable], algorithm: str, a: Array, vectors: bool) -> Any:
    """Run an algorithm of a table on Hermitian matrices."""
    if algorithm == "auto":
        return fastest(table, a, symmetric=True, vectors=vectors)
    if algorithm == "threads":
        return jax.lax.platform_dependent(a, cpu=table["threads"], default=table["library"])
    return table[algorithm](a)
