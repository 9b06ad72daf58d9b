"""Adapters for any NNX model: LoRA and its relatives, α on top of any of them, and the optax transformations they need."""

from rmtjax.adapters.apply import TRAINABLE, Count, adapt, count_parameters, merged
from rmtjax.adapters.layers import AdaptedLinear, merge, unmerge
from rmtjax.adapters.optimizers import AlphaUpdaterState, alpha_updater, keep_below, stiefel
from rmtjax.adapters.params import AdapterConstant, AdapterParam, AlphaParam, OrthogonalParam, TrainedParam
from rmtjax.adapters.peft_io import load_peft, save_peft
from rmtjax.checkpoints import read_peft

__all__ = [
    "TRAINABLE",
    "AdaptedLinear",
    "AdapterConstant",
    "AdapterParam",
    "AlphaParam",
    "AlphaUpdaterState",
    "Count",
    "OrthogonalParam",
    "TrainedParam",
    "adapt",
    "alpha_updater",
    "count_parameters",
    "keep_below",
    "load_peft",
    "merge",
    "merged",
    "read_peft",
    "save_peft",
    "stiefel",
    "unmerge",
]
