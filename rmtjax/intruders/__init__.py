"""Intruder singular vectors in fine-tuned checkpoints: scanned, predicted, mended, and training that makes none."""

from rmtjax.intruders.limits import intruder_limits, strength_limit
from rmtjax.intruders.mitigate import mend
from rmtjax.intruders.pairs import Pair, Pairs, Skipped
from rmtjax.intruders.predict import Prediction, predict
from rmtjax.intruders.scan import LayerScan, Scan, scan, scan_layer

__all__ = [
    "LayerScan",
    "Pair",
    "Pairs",
    "Prediction",
    "Scan",
    "Skipped",
    "intruder_limits",
    "mend",
    "predict",
    "scan",
    "scan_layer",
    "strength_limit",
]
