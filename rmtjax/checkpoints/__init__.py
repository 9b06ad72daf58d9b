"""Weights on disk from any library: safetensors files, model folders, PEFT adapters."""

from rmtjax.checkpoints.folders import PACKAGED, model_folder, open_weights
from rmtjax.checkpoints.peft.file import PeftFile, PeftLayer
from rmtjax.checkpoints.peft.read import read_peft
from rmtjax.checkpoints.tensors import TensorFile

__all__ = ["PACKAGED", "PeftFile", "PeftLayer", "TensorFile", "model_folder", "open_weights", "read_peft"]
