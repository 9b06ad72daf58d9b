"""Training without intruders: the largest strength of each layer's update, from the layer's own spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flax import nnx

from rmtjax._checks import number
from rmtjax._errors import InputError, listed
from rmtjax.adapters.layers import adapted_layers, matrix_of
from rmtjax.intruders.predict.edge import lone_intruders
from rmtjax.intruders.predict.prediction import check_question, predict
from rmtjax.intruders.scan.spectra import gram_values
from rmtjax.linalg.svd import one_blas_thread
from rmtjax.spectra.bulk_fit import bulk_fit

__all__ = ["intruder_limits", "strength_limit"]

_DRAWS, _MOST, _STEPS = 256, 1024, 12
"""Smallest and largest number of draws for a probability, and steps to the BBP threshold before the crossing is narrowed down."""


def strength_limit(
    singular_values: np.ndarray,
    shape: tuple[int, int],
    *,
    probability: float = 0.05,
    threshold_epsilon: float = 0.5,
    top_k: int = 10,
) -> float:
    r"""Return the largest strength at which an update in one direction plants, on average, at most `probability` intruders.

    The largest θ such that, for no smaller one, :math:`W + \theta ab^\top` with Haar a and b has more than `probability`
    intruders among its `top_k` leading vectors in the mean. That is the first crossing of
    `rmtjax.intruders.predict.lone_intruders`, which between spikes of the base need not be monotone. It is 0 where any update
    plants one: in a matrix of a rank below `top_k`, or of equal singular values.

    Args:
        singular_values: of the base, all of them.
        shape: (n, m).
        probability: of an intruder, in (0, 1).
        threshold_epsilon: ε.
        top_k: leading vectors that count.

    Returns:
        θ, in units of the singular values.

    Raises:
        InputError: for a probability or threshold outside (0, 1), or a `top_k` below 1.
    """
    check_question(top_k, threshold_epsilon)
    number("probability", probability, 0, 1, open_low=True, open_high=True)
    s = np.sort(np.asarray(singular_values, float))[::-1]
    bbp = predict(np.zeros(1), s, shape, bulk_fit(s, *shape)).threshold
    draws = int(min(_MOST, max(_DRAWS, 4 / probability)))

    def too_strong(theta):
        return lone_intruders(np.array([theta]), s, shape, threshold_epsilon, top_k=top_k, draws=draws)[0] > probability

    step = max(bbp, 0.1 * s[0]) / _STEPS
    low = 0.0
    while low < bbp + 2 * s[0] and not too_strong(low + step):
        low += step
    high = low + step
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if too_strong(middle) else (middle, high)
    return float(low)


def intruder_limits(
    model: nnx.Module,
    *,
    probability: float = 0.05,
    threshold_epsilon: float = 0.5,
    top_k: int = 10,
    layers: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return `strength_limit` of every adapted layer of a model, by dotted path, as `project_spectral_norm` takes it.

    Args:
        model: with adapters.
        probability: of any intruder in a layer; each of the r directions of its update is allowed 1/r of it.
        threshold_epsilon, top_k: see `strength_limit`.
        layers: paths; by default all layers that have an update.

    Raises:
        InputError: for values outside what is allowed, and for a layer that no update leaves without an intruder.
    """
    check_question(top_k, threshold_epsilon)
    number("probability", probability, 0, 1, open_low=True, open_high=True)
    updated = {path: layer for path, layer in adapted_layers(model).items() if layer.update is not None}
    if not updated:
        raise InputError("model: has no layer with an adapter to guard")
    guarded = list(updated) if layers is None else [layers] if isinstance(layers, str) else list(layers)
    for path in guarded:
        if path not in updated:
            raise InputError(f"layers: {path} is not one of {listed(list(updated))}")
    limits = {}
    with one_blas_thread():
        for path, layer in updated.items():
            if path in guarded:
                kernel = np.asarray(matrix_of(layer.base), np.float32).T
                share = probability / layer.update.rank
                limit = strength_limit(
                    gram_values(kernel),
                    kernel.shape,
                    probability=share,
                    threshold_epsilon=threshold_epsilon,
                    top_k=top_k,
                )
                if limit == 0:
                    raise InputError(
                        f"top_k = {top_k}: any update of {path} plants an intruder, as in a matrix of small rank or of equal"
                        " singular values; choose other layers or a smaller top_k"
                    )
                limits[path] = limit
    return limits
