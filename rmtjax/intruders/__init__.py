"""Intruder singular vectors in fine-tuned checkpoints: scanned, predicted, mitigated, and training that makes none."""

from rmtjax.intruders.limits import intruder_limits, strength_limit
from rmtjax.intruders.mitigate import Mitigation, mitigate
from rmtjax.intruders.pair import Pair, Skipped
from rmtjax.intruders.pairs import Pairs
from rmtjax.intruders.predict.prediction import Prediction, predict
from rmtjax.intruders.scan.checkpoint import scan
from rmtjax.intruders.scan.layer import scan_layer
from rmtjax.intruders.scan.result import LayerScan, Scan
from rmtjax.intruders.scan.verdict import ScanLimits

__all__ = [
    "LayerScan",
    "Mitigation",
    "Pair",
    "Pairs",
    "Prediction",
    "Scan",
    "ScanLimits",
    "Skipped",
    "intruder_limits",
    "mitigate",
    "predict",
    "scan",
    "scan_layer",
    "strength_limit",
]
