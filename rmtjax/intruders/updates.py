"""The matrices that an adapter's layers make from those of the base."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rmtjax._errors import InputError
from rmtjax.checkpoints.peft import PeftLayer
from rmtjax.checkpoints.shares import Share
from rmtjax.intruders.pair import Pair, Skipped
from rmtjax.linalg.krylov import LowRankUpdated

__all__ = ["updated_pair"]


def _host(value) -> np.ndarray:
    return np.asarray(value).astype(np.float32, copy=False)


def _balanced(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same product with factors whose largest entries agree up to a factor of 4."""
    sizes = [math.frexp(float(np.max(np.abs(x), initial=0)))[1] for x in (left, right)]
    shift = (sizes[1] - sizes[0]) // 2 if left.any() and right.any() else 0
    return np.ldexp(left, shift), np.ldexp(right, -shift)


def updated_pair(
    name: str,
    base: np.ndarray,
    pieces: Sequence[tuple[Share, PeftLayer]],
    factors: Sequence[tuple[np.ndarray, np.ndarray]],
    rounding: float,
    where: str,
) -> Pair | Skipped:
    """Return a matrix of the base and its adapted form, diag(scale) W + BA.

    Args:
        name: of the matrix.
        base: W.
        pieces: the shares that the adapter's layers have in it, with the layers.
        factors: B and A of each share that has them.
        rounding: unit roundoff of the type that W is stored in.
        where: the adapter, at the beginning of a message.

    Raises:
        InputError: if α or a magnitude does not fit the matrix.
    """
    n = len(base)
    left = right = scale = None
    if factors:
        factors = [_balanced(*both) for both in factors]
        left, right = (
            np.concatenate(side, axis) for side, axis in zip(zip(*factors, strict=True), (1, 0), strict=True)
        )
        size = math.sqrt(max(np.einsum("ij,ij->", left.T @ left, right @ right.T), 0.0))
        if not size <= float(np.linalg.norm(base)) / float(np.finfo(np.float32).eps):
            return Skipped(name, f"an update of norm {size:.1e}, which leaves nothing of the base")
        left, right = _host(left), _host(right)
    vectors = {}
    for part in ("alpha", "magnitude"):
        for share, layer in pieces:
            vector = getattr(layer, part)
            if vector is None:
                continue
            if share.rows is not None:
                vector = vector[slice(*share.rows)]
            first, end = share.within or (0, n)
            if vector.shape != (end - first,):
                raise InputError(
                    f"{where}: {share.layer}: {part} has shape {list(vector.shape)}; must be [{end - first}]"
                )
            vectors.setdefault(part, np.full(n, np.nan, np.float32))[first:end] = _host(vector)
    if "alpha" in vectors:
        scale = np.where(np.isnan(vectors["alpha"]), np.float32(1), vectors["alpha"])
    if "magnitude" in vectors:
        # m/‖W'‖ by rows, W' = diag(α)W + BA, whose norms need no W': ‖w‖² + 2⟨w, ba⟩ + ‖ba‖².
        rows = base if scale is None else scale[:, None] * base
        squares = np.einsum("ij,ij->i", rows, rows)
        squares += 2 * np.einsum("ir,ir->i", rows @ right.T, left)
        squares += np.einsum("ir,rs,is->i", left, right @ right.T, left)
        turn = vectors["magnitude"] / np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny))
        turn = np.where(np.isnan(vectors["magnitude"]), np.float32(1), turn)
        scale = turn if scale is None else turn * scale
        left = turn[:, None] * left
    factors = (left, right) if scale is None else None
    return Pair(name, base, LowRankUpdated(base, scale, left, right), factors, rounding)
