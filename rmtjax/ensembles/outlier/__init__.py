"""Outliers of spiked Gaussian matrices, sampled exactly: rank one, rank r, and the edge without a spike."""

from rmtjax.ensembles.outlier.edge import wigner_edge
from rmtjax.ensembles.outlier.rank_one import (
    Outlier,
    RectangularOutlier,
    covariance_outlier,
    rectangular_outlier,
    wigner_outlier,
)
from rmtjax.ensembles.outlier.rank_r import (
    LARGEST_RANK,
    Outliers,
    RectangularOutliers,
    covariance_outliers,
    rectangular_outliers,
    wigner_outliers,
)
from rmtjax.ensembles.outlier.recursion import TOLERANCE, outlier_depth

__all__ = [
    "LARGEST_RANK",
    "TOLERANCE",
    "Outlier",
    "Outliers",
    "RectangularOutlier",
    "RectangularOutliers",
    "covariance_outlier",
    "covariance_outliers",
    "outlier_depth",
    "rectangular_outlier",
    "rectangular_outliers",
    "wigner_edge",
    "wigner_outlier",
    "wigner_outliers",
]
