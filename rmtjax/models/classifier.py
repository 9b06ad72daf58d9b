"""An encoder with a head that classifies or rates a sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rmtjax._checks import whole
from rmtjax.models._fast_cpu import DropoutKey
from rmtjax.models.config import EncoderConfig
from rmtjax.models.encoder import Encoder, linear
from rmtjax.models.functions import dropout

__all__ = ["SequenceClassifier"]

_HEAD = 1 << 16  # positions of the head's dropouts, beyond those of any encoder


class RobertaHead(nnx.Module):
    """RoBERTa's head: dropout, dense, tanh, dropout, dense, on the first token."""

    def __init__(self, config: EncoderConfig, outputs: int, dtype, rngs: nnx.Rngs) -> None:
        self.dense = linear(config.hidden_size, config.hidden_size, config, dtype, rngs)
        self.out_proj = linear(config.hidden_size, outputs, config, dtype, rngs)
        self.rate = config.head_dropout

    def __call__(self, x, dropout_key: DropoutKey | None):
        x = jnp.tanh(self.dense(dropout(x, self.rate, dropout_key, _HEAD)))
        return self.out_proj(dropout(x, self.rate, dropout_key, _HEAD + 1))


class SequenceClassifier(nnx.Module):
    """BERT or RoBERTa with its classification head; one output is a regression.

    The encoder is the attribute `bert` or `roberta` and the head is `classifier`, as in Hugging Face's
    `BertForSequenceClassification` and `RobertaForSequenceClassification`.

    Args:
        config: sizes.
        num_labels: classes, or 1 for a regression.
        dtype: of activations.
        remat: see `Encoder`.
        rngs: random keys of the weights.
    """

    def __init__(
        self,
        config: EncoderConfig,
        num_labels: int = 2,
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        whole("num_labels", num_labels)
        bert = config.architecture == "bert"
        self.config = config
        self.num_labels = num_labels
        setattr(self, config.architecture, Encoder(config, pooler=bert, dtype=dtype, remat=remat, rngs=rngs))
        if bert:
            self.classifier = linear(config.hidden_size, num_labels, config, dtype, rngs)
        else:
            self.classifier = RobertaHead(config, num_labels, dtype, rngs)

    @property
    def backbone(self) -> Encoder:
        """The encoder without the head."""
        return getattr(self, self.config.architecture)

    def __call__(
        self,
        ids: Int[Array, "batch length"],
        mask: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
        *,
        dropout_key: DropoutKey | None = None,
    ) -> Float[Array, "batch outputs"]:
        """Return logits in float32 (for a regression, the value). Arguments as for `Encoder`."""
        first = self.backbone(ids, mask, token_types, dropout_key=dropout_key, first_only=True)[:, 0]
        if self.config.architecture == "bert":
            first = self.backbone.pooler(first)
            logits = self.classifier(dropout(first, self.config.head_dropout, dropout_key, _HEAD))
        else:
            logits = self.classifier(first, dropout_key)
        return logits.astype(jnp.float32)
