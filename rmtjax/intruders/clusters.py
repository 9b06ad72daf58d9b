r"""Verdicts for coinciding singular values, whose singular vectors are an arbitrary basis of a space.

Of a matrix that is known to a rounding error E, the vectors of singular values that are closer than :math:`|u_i^\top Ev_j|` are
known only as the space that they span. A verdict on a vector holds if it holds for every basis of these spaces: with p the norm
of the projection of a tuned vector onto a space of d vectors of before, the largest cosine with a vector of a basis is at most p,
and at least p/√d, whatever the basis.
"""

from __future__ import annotations

import numpy as np

__all__ = ["close_values", "cosine_range"]


def close_values(values: np.ndarray, gap: float) -> list[slice]:
    """Return the groups of descending values in which neighbours differ by at most a gap, single values included.

    >>> close_values(np.array([5.0, 3.0, 2.9, 1.0]), 0.2)
    [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)]
    """
    ends = [*(np.flatnonzero(-np.diff(values) > gap) + 1).tolist(), len(values)]
    return [slice(first, end) for first, end in zip([0, *ends[:-1]], ends, strict=True)]


def cosine_range(overlaps: np.ndarray, before: list[slice], after: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds on the largest cosine of each tuned vector with a base vector, over all bases of the groups.

    Args:
        overlaps: inner products, shape (base vectors, tuned vectors).
        before, after: groups of vectors that are known as a space only.

    Returns:
        Lower and upper bounds, one for each tuned vector.
    """
    lower, upper = (np.zeros(overlaps.shape[1]) for _ in range(2))
    singles = np.array([group.start for group in before if group.stop - group.start == 1], int)
    spaces = [group for group in before if group.stop - group.start > 1]
    for group in after:
        width = group.stop - group.start
        least, most = [], []
        if len(singles):
            of_singles = np.abs(overlaps[singles, group])
            # Within a space of several tuned vectors one can be chosen that is orthogonal to a single base vector.
            most.append(np.max(np.linalg.norm(of_singles, axis=1)))
            least.append(np.max(of_singles) if width == 1 else 0.0)
        for space in spaces:
            projections = np.linalg.svd(overlaps[space, group], compute_uv=False)
            dimension = space.stop - space.start
            most.append(projections[0])
            least.append(projections[-1] / np.sqrt(dimension) if dimension >= width else 0.0)
        lower[group], upper[group] = max(least, default=0.0), max(most, default=0.0)
    return lower, upper
