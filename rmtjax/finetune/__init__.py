"""Fine-tuning of encoders on GLUE: settings, batches, the compiled step, the run with its checkpoints."""

from rmtjax.finetune.run import Run, finetune
from rmtjax.finetune.settings import Settings
from rmtjax.finetune.step import Trainer, TrainState

__all__ = ["Run", "Settings", "TrainState", "Trainer", "finetune"]
