"""Fine-tuning of encoders on GLUE: settings, batches, the compiled step, the run with its checkpoints."""

import importlib
from typing import TYPE_CHECKING, Any

from rmtjax.finetune.settings import Settings

if TYPE_CHECKING:
    from rmtjax.finetune.loop import finetune
    from rmtjax.finetune.run import Run
    from rmtjax.finetune.step import Trainer, TrainState

__all__ = ["Run", "Settings", "TrainState", "Trainer", "finetune"]

_HOMES = {"Run": "run", "finetune": "loop", "TrainState": "step", "Trainer": "step"}


def __getattr__(name: str) -> Any:
    # The command line lists the settings, and answers `--help` before JAX is imported.
    if name in _HOMES:
        return getattr(importlib.import_module(f"rmtjax.finetune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'rmtjax.finetune' has no attribute {name!r}")
