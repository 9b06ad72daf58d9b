"""The claims of *α-LoRA* about its classifier, and what they become where classes have any covariance."""

from rmtjax.claims.alpha_lora.classifier import CLAIMS as CLASSIFIER
from rmtjax.claims.alpha_lora.covariance import CLAIMS as COVARIANCE

__all__ = ["CLAIMS"]

CLAIMS = CLASSIFIER + COVARIANCE
"""Every claim of this package."""
