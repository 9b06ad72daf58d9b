"""Readers of PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, and α if there is any."""

from rmtjax.checkpoints.peft.config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ALPHA,
    DORA_EMBEDDING,
    MERGED_ALPHA,
    PREFIX,
    SHARED,
)
from rmtjax.checkpoints.peft.file import PeftFile, PeftLayer
from rmtjax.checkpoints.peft.read import finite_tensor, read_peft

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "ALPHA",
    "DORA_EMBEDDING",
    "MERGED_ALPHA",
    "PREFIX",
    "SHARED",
    "PeftFile",
    "PeftLayer",
    "finite_tensor",
    "read_peft",
]
