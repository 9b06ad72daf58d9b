"""Block Lanczos for a matrix times its transpose, see `rmtjax.linalg.krylov.block_lanczos`."""

from rmtjax.linalg.krylov.block_lanczos import BlockLanczos, Ritz
from rmtjax.linalg.krylov.cosine_bounds import cosine_lower_bounds, cosine_upper_bounds
from rmtjax.linalg.krylov.cosines import Cosines, largest_cosines
from rmtjax.linalg.krylov.operators import (
    OUT_OF_CACHE_ENTRIES,
    CacheLimits,
    GramOperator,
    LowRankUpdated,
    Matrix,
    Transposed,
    full_width,
)
from rmtjax.linalg.krylov.top_vectors import TopSingular, top_singular

__all__ = [
    "OUT_OF_CACHE_ENTRIES",
    "BlockLanczos",
    "CacheLimits",
    "Cosines",
    "GramOperator",
    "LowRankUpdated",
    "Matrix",
    "Ritz",
    "TopSingular",
    "Transposed",
    "cosine_lower_bounds",
    "cosine_upper_bounds",
    "full_width",
    "largest_cosines",
    "top_singular",
]
