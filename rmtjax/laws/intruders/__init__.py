"""Intruder dimensions: the probability that the outlier of a spiked matrix stays far from every singular vector of the base.

The law and its accuracy are in `rmtjax.laws.intruders.probability`.
"""

from rmtjax.laws.intruders._common import SMALLEST
from rmtjax.laws.intruders.probability import (
    rectangular_intruder_probability,
    wigner_independent_intruder_probability,
    wigner_intruder_probability,
)
from rmtjax.laws.intruders.profile import rectangular_overlap_profile, wigner_overlap_profile
from rmtjax.laws.intruders.threshold import rectangular_intruder_threshold, wigner_intruder_threshold

__all__ = [
    "SMALLEST",
    "rectangular_intruder_probability",
    "rectangular_intruder_threshold",
    "rectangular_overlap_profile",
    "wigner_independent_intruder_probability",
    "wigner_intruder_probability",
    "wigner_intruder_threshold",
    "wigner_overlap_profile",
]
