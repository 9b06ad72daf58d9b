"""The content of a Hugging Face `config.json` of an encoder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtjax._checks import number, whole
from rmtjax._errors import InputError, shown
from rmtjax.models.functions import activation

__all__ = ["ARCHITECTURES", "EncoderConfig"]

ARCHITECTURES = {"bert": "bert", "roberta": "roberta", "camembert": "roberta", "xlm-roberta": "roberta"}
"""`model_type` → architecture, which is also the prefix of its weights' names."""

_POSITIVE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and rates of a BERT or RoBERTa encoder, under their names in Hugging Face's `config.json`.

    Attributes:
        model_type: bert, roberta, xlm-roberta or camembert.
        vocab_size: tokens.
        hidden_size: d, a multiple of `num_attention_heads`.
        num_hidden_layers: layers.
        num_attention_heads: heads.
        intermediate_size: width of the feed-forward layer.
        hidden_act: its activation.
        hidden_dropout_prob: dropout of embeddings and of each sublayer's output.
        attention_probs_dropout_prob: dropout of attention probabilities.
        classifier_dropout: dropout of the head; None is `hidden_dropout_prob`.
        max_position_embeddings: positions; for RoBERTa `pad_token_id + 1` of them are never used.
        type_vocab_size: token types.
        layer_norm_eps: added to variances.
        initializer_range: standard deviation of new weights.
        pad_token_id: token of padding.
        others: the rest of the file, kept for writing it back.
    """

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model_type, str) or self.model_type not in ARCHITECTURES:
            allowed = ", ".join(ARCHITECTURES)
            raise InputError(
                f"model_type = {shown(self.model_type)}: this architecture is not supported (supported: {allowed})"
            )
        for name in _POSITIVE:
            whole(name, getattr(self, name))
        whole("pad_token_id", self.pad_token_id, 0, self.vocab_size - 1)
        for name in ("layer_norm_eps", "initializer_range"):
            number(name, getattr(self, name), 0)
        for name in _RATES:
            if not (name == "classifier_dropout" and getattr(self, name) is None):
                number(name, getattr(self, name), 0, 1, open_high=True)
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size = {self.hidden_size}: must be a multiple of num_attention_heads = {self.num_attention_heads}"
            )
        if self.max_length < 1:
            raise InputError(
                f"max_position_embeddings = {self.max_position_embeddings}: must exceed pad_token_id + 1 ="
                f" {self.pad_token_id + 1} in {self.model_type}"
            )
        activation(self.hidden_act)

    @property
    def architecture(self) -> str:
        """Either bert or roberta."""
        return ARCHITECTURES[self.model_type]

    @property
    def max_length(self) -> int:
        """Longest sequence that has positions."""
        unused = self.pad_token_id + 1 if self.architecture == "roberta" else 0
        return self.max_position_embeddings - unused

    @property
    def head_dropout(self) -> float:
        """Dropout of the classification head."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @classmethod
    def read(cls, folder: str | Path) -> EncoderConfig:
        """Return the content of a folder's `config.json`.

        Raises:
            InputError: if it is missing, no JSON, or describes something that is not built here.
        """
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"model = {folder}: holds no config.json") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"model = {folder}: config.json cannot be read ({shown(str(error))})") from None
        if not isinstance(values, dict) or "model_type" not in values:
            raise InputError(f"model = {folder}: config.json has no model_type (supported: {', '.join(ARCHITECTURES)})")
        refused = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
        for name, allowed in refused.items():
            if values.get(name, allowed) != allowed:
                raise InputError(
                    f"model = {folder}: {name} = {shown(values[name])} is not supported; must be {allowed!r}"
                )
        names = {f.name for f in dataclasses.fields(cls)} - {"others"}
        fields = {name: values[name] for name in names if name in values}
        if fields.get("pad_token_id") is None:  # null equals a missing key
            fields["pad_token_id"] = 0 if values["model_type"] == "bert" else 1
        try:
            return cls(**fields, others={k: v for k, v in values.items() if k not in names})
        except InputError as error:
            raise InputError(f"model = {folder}: config.json: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the content for `config.json`."""
        values = dataclasses.asdict(self)
        return {**values.pop("others"), **values}
