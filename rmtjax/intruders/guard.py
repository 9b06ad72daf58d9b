"""Training that makes no intruders: how strong an update of each layer may be, from the layer's own spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flax import nnx

from rmtjax._errors import InputError, shown
from rmtjax.adapters.linear import adapted_layers, matrix_of
from rmtjax.intruders.predict import predict
from rmtjax.intruders.scan import _all_values, _edge
from rmtjax.linalg.dense import one_blas_thread
from rmtjax.linalg.spectra import bulk_fit

__all__ = ["intruder_limits", "strength_limit"]

_DRAWS, _PLACES = 256, 32
"""Draws for a probability, and strengths that are tried before the crossing is narrowed down."""


def strength_limit(
    singular_values: np.ndarray,
    shape: tuple[int, int],
    *,
    probability: float = 0.05,
    threshold: float = 0.5,
    top: int = 10,
) -> float:
    """The strength up to which an update in one direction is an intruder with at most this probability.

    The first crossing of `predict`'s probability, which between spikes of the base need not be monotone; never below the
    threshold of Baik, Ben Arous and Péché, under which there is no outlier.

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

    def too_strong(theta):
        found = predict(np.array([theta]), s, shape, edge, threshold, top=top, draws=_DRAWS)
        return found.probabilities[0] > probability

    low = predict(np.zeros(1), s, shape, edge).threshold
    places = np.linspace(low, low + 2 * s[0], _PLACES + 1)
    after = next((i for i in range(1, _PLACES + 1) if too_strong(places[i])), _PLACES)
    low, high = places[after - 1], places[after]
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if too_strong(middle) else (middle, high)
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
        probability: of any intruder in a layer; each of the r directions of its update is allowed 1/r of it.
        threshold, top: see `strength_limit`.
        layers: paths; by default all layers that have an update.
    """
    found = {}
    with one_blas_thread():
        for path, layer in adapted_layers(model).items():
            if layer.update is not None and (layers is None or path in layers):
                kernel = np.asarray(matrix_of(layer.base), np.float32).T
                share = probability / layer.update.rank
                found[path] = strength_limit(
                    _all_values(kernel), kernel.shape, probability=share, threshold=threshold, top=top
                )
    return found
