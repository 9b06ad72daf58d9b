"""Scan of a tuned checkpoint for singular vectors that the pre-trained one did not have, layer by layer."""

from rmtjax.intruders.scan.checkpoint import scan
from rmtjax.intruders.scan.layer import scan_layer
from rmtjax.intruders.scan.result import LayerScan, Scan, Update
from rmtjax.intruders.scan.spectra import gram_values, stand_in_values
from rmtjax.intruders.scan.verdict import ScanLimits

__all__ = ["LayerScan", "Scan", "ScanLimits", "Update", "gram_values", "scan", "scan_layer", "stand_in_values"]
