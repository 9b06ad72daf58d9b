"""Encoders in Flax NNX: BERT and RoBERTa, their checkpoints and tokenisers."""

from rmtjax.checkpoints import model_folder
from rmtjax.models._fast_cpu import DropoutKey
from rmtjax.models.checkpoint import LoadReport, load_classifier, load_encoder, save_model
from rmtjax.models.classifier import SequenceClassifier
from rmtjax.models.config import EncoderConfig
from rmtjax.models.encoder import Encoder
from rmtjax.models.functions import plain_functions

__all__ = [
    "DropoutKey",
    "Encoder",
    "EncoderConfig",
    "LoadReport",
    "SequenceClassifier",
    "load_classifier",
    "load_encoder",
    "model_folder",
    "plain_functions",
    "save_model",
]
