"""Weights on disk, whoever wrote them: safetensors files, model folders, PEFT adapters."""

from rmtjax.checkpoints.folders import model_folder, open_weights
from rmtjax.checkpoints.peft import PeftFile, PeftLayer, read_peft
from rmtjax.checkpoints.tensors import TensorFile

__all__ = ["PeftFile", "PeftLayer", "TensorFile", "model_folder", "open_weights", "read_peft"]
