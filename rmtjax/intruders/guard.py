"""Training that makes no intruders: how strong an update of each layer may be, from the layer's own spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flax import nnx

from rmtjax._errors import InputError, shown
from rmtjax.adapters.linear import adapted_layers
from rmtjax.intruders.predict import predict
from rmtjax.intruders.scan import _all_values, _edge
from rmtjax.linalg.spectra import bulk_fit, one_blas_thread

__all__ = ["intruder_limits", "strength_limit"]


def strength_limit(
    singular_values: np.ndarray,
    shape: tuple[int, int],
    *,
    probability: float = 0.05,
    threshold: float = 0.5,
    top: int = 10,
) -> float:
    """The largest strength at which an update in a direction of its own is an intruder with at most this probability.

    From `predict`, by bisection; never below the threshold of Baik, Ben Arous and Péché, under which there is no outlier.

    Args:
        singular_values: of the base, all of them.
        shape: (n, m).
        probability: of an intruder, in (0, 1).
        threshold: ε.
        top: leading vectors that count.
    """
    if not (isinstance(probability, (int, float)) and 0 < probability < 1):
        raise InputError(f"probability = {shown(probability)}: must be between 0 and 1")
    s = np.asarray(singular_values, float)
    edge = _edge(s, bulk_fit(s, *shape))
    low = predict(np.zeros(1), s, shape, edge).threshold
    high = 4 * s[0] + low
    for _ in range(24):
        middle = (low + high) / 2
        chance = predict(np.array([middle]), s, shape, edge, threshold, top=top).probabilities[0]
        low, high = (low, middle) if chance > probability else (middle, high)
    return float(low)


def intruder_limits(
    model: nnx.Module,
    *,
    probability: float = 0.05,
    threshold: float = 0.5,
    top: int = 10,
    layers: Sequence[str] | None = None,
) -> dict[str, float]:
    """`strength_limit` of every adapted layer of a model, by dotted path: what `rmtjax.adapters.keep_below` takes.

    Args:
        model: with adapters.
        probability, threshold, top: see `strength_limit`.
        layers: paths; by default all layers that have an update.
    """
    found = {}
    with one_blas_thread():
        for path, layer in adapted_layers(model).items():
            if layer.update is not None and (layers is None or path in layers):
                kernel = np.asarray(layer.base.kernel[...], np.float32).T
                found[path] = strength_limit(
                    _all_values(kernel), kernel.shape, probability=probability, threshold=threshold, top=top
                )
    return found
