"""Adapters for any NNX model: LoRA and its relatives, α on top of any of them, and the optax transformations they need."""

from rmtjax.adapters.apply import apply_adapters
from rmtjax.adapters.count import Count, count_parameters
from rmtjax.adapters.layers import AdaptedLinear, merge_weights, unmerge_weights
from rmtjax.adapters.merging import merged_copy
from rmtjax.adapters.optimizers import alpha_updater, project_spectral_norm, stiefel
from rmtjax.adapters.params import TRAINABLE, AdapterConstant, AdapterParam, AlphaParam, OrthogonalParam, TrainedParam
from rmtjax.adapters.peft_io.read import load_peft
from rmtjax.adapters.peft_io.write import save_peft
from rmtjax.checkpoints import read_peft

__all__ = [
    "TRAINABLE",
    "AdaptedLinear",
    "AdapterConstant",
    "AdapterParam",
    "AlphaParam",
    "Count",
    "OrthogonalParam",
    "TrainedParam",
    "alpha_updater",
    "apply_adapters",
    "count_parameters",
    "load_peft",
    "merge_weights",
    "merged_copy",
    "project_spectral_norm",
    "read_peft",
    "save_peft",
    "stiefel",
    "unmerge_weights",
]
