"""Fine-tuning of encoders on GLUE: settings, batches, the compiled step, the run with its checkpoints."""

import importlib
from typing import Any

from rmtjax.finetune.settings import Settings

_EXPORTS = {"Run": "run", "finetune": "loop", "TrainState": "step", "Trainer": "step"}

__all__ = ["Settings", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    # The command line lists the settings, and answers `--help` before JAX is imported.
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"rmtjax.finetune.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'rmtjax.finetune' has no attribute {name!r}")
