"""The scan of one layer: by bounds if they decide, otherwise by full decompositions."""

from __future__ import annotations

import math
import time

import numpy as np

from rmtjax._errors import InputError
from rmtjax.intruders.pair import Pair, largest
from rmtjax.intruders.predict.prediction import check_question, predict
from rmtjax.intruders.scan.bounds import by_bounds
from rmtjax.intruders.scan.eigh import by_eigh
from rmtjax.intruders.scan.exact import by_svd
from rmtjax.intruders.scan.result import LayerScan
from rmtjax.intruders.scan.spectra import update_of
from rmtjax.intruders.scan.verdict import ScanLimits
from rmtjax.spectra.bulk_fit import bulk_fit

__all__ = ["scan_layer"]


def scan_layer(
    pair: Pair,
    *,
    top_k: int = 10,
    threshold_epsilon: float = 0.5,
    exact: bool = False,
    limits: ScanLimits = ScanLimits(),  # noqa: B008, it is frozen
) -> LayerScan:
    r"""Return the intruders of one layer.

    Intruders are those of the `top_k` leading left singular vectors after tuning whose absolute cosine with every left singular
    vector before tuning is below the threshold (Shuttleworth et al. 2024).

    An intruder's cosines are bounded from above by the Christoffel function of a block Lanczos process, which assumes nothing
    but that its products are exact to single precision; the others' from below by a Ritz vector that has converged among the
    leading ones, all of which the process has seen (`rmtjax.linalg.krylov.cosine_lower_bounds`). If that leaves a
    verdict open, as it does for vectors of small singular values of the base, the layer is done by two
    SVDs. Vectors of a null space, before or after, are not counted. On a processor, small matrices are decomposed
    by way of their Gram matrices, which takes less time than either. SVDs do those, too, whose smaller side is below
    8 (top_k + 2), where Krylov spaces have no room.

    Args:
        pair: the layer before and after.
        top_k: k, at most min(n, m).
        threshold_epsilon: ε in (0, 1).
        exact: whether to compute full SVDs.
        limits: sizes at which the algorithm changes.

    Returns:
        `LayerScan`.

    Raises:
        InputError: for a threshold outside (0, 1), a `top_k` that the layer does not have, or numbers that are not finite.
    """
    check_question(top_k, threshold_epsilon)
    if top_k > min(pair.shape):
        raise InputError(f"top_k = {top_k}: must be at most {min(pair.shape)}, the smaller side of {pair.name}")
    parts = (pair.base, pair.tuned.weight, pair.tuned.scale, pair.tuned.left, pair.tuned.right)
    for part in parts[1:] if pair.tuned.weight is pair.base else parts:
        if part is not None and not math.isfinite(largest(part)):
            raise InputError(f"{pair.name}: holds NaN or infinite numbers")
    began = time.perf_counter()
    pair, unit = pair.plain()
    n, m = pair.shape
    update = update_of(pair, top_k)
    cosines, algorithm = None, "svd"
    if not exact and min(n, m) <= limits.eigh_side and isinstance(pair.base, np.ndarray):
        cosines, algorithm = by_eigh(pair, top_k, threshold_epsilon), "eigh"
    elif not exact and min(n, m) >= 8 * (top_k + 2):
        cosines, algorithm = by_bounds(pair, top_k, threshold_epsilon, limits), "bounds"
    if cosines is None:
        cosines, algorithm = by_svd(pair, top_k, threshold_epsilon), "svd"
    null = cosines.values <= cosines.values[0] * max(n, m) * np.finfo(np.float32).eps
    intruding, matched = cosines.upper < threshold_epsilon, cosines.lower >= threshold_epsilon
    sure = np.where(intruding, "intruder", np.where(matched, "matched", "undecidable"))
    bulk = bulk_fit(cosines.base_values, n, m)
    prediction = predict(update.strengths, cosines.base_values, (n, m), bulk, threshold_epsilon, top_k=top_k)
    scan = LayerScan(
        name=pair.name,
        shape=(n, m),
        values=cosines.values,
        cosines=cosines.cosines,
        lower=cosines.lower,
        upper=cosines.upper,
        verdicts=tuple(np.where(null, "null", sure).tolist()),
        algorithm=algorithm,
        similarity=cosines.similarity,
        base_values=cosines.base_values[:top_k],
        update=update,
        bulk=bulk,
        prediction=prediction,
        vectors=cosines.vectors,
        seconds=time.perf_counter() - began,
    )
    return scan if unit == 1 else scan.scaled(unit)
