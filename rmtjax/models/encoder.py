"""BERT and RoBERTa as Flax NNX modules.

Attributes bear the names that Hugging Face's checkpoints give their weights (`encoder.layer.0.attention.self.query`), so
a weight's path in the module is its name in the file, and a pattern for PEFT selects the same modules here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rmtjax._errors import InputError
from rmtjax.models._fast_cpu import DropoutKey
from rmtjax.models.config import EncoderConfig
from rmtjax.models.functions import activation, attention, dropout, layer_norm

__all__ = ["Encoder", "LayerNorm"]


def linear(inputs: int, outputs: int, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a dense layer initialised like Hugging Face's: normal weights, zero bias."""
    start = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(inputs, outputs, kernel_init=start, dtype=dtype, rngs=rngs)


def _embedding(count: int, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> nnx.Embed:
    start = nnx.initializers.normal(config.initializer_range)
    return nnx.Embed(count, config.hidden_size, embedding_init=start, dtype=dtype, rngs=rngs)


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias over the last axis."""

    def __init__(self, features: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class Embeddings(nnx.Module):
    """Words, positions and token types, summed and normalised."""

    def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> None:
        self.word_embeddings = _embedding(config.vocab_size, config, dtype, rngs)
        self.position_embeddings = _embedding(config.max_position_embeddings, config, dtype, rngs)
        self.token_type_embeddings = _embedding(config.type_vocab_size, config, dtype, rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.rate = config.hidden_dropout_prob
        # RoBERTa counts positions from pad_token_id + 1 on, over tokens that are not padding.
        self.counted_from = config.pad_token_id if config.architecture == "roberta" else None

    def __call__(self, ids, token_types, dropout_key: DropoutKey | None, places: Iterator[int]):
        if self.counted_from is None:
            positions = jnp.arange(ids.shape[1])[None]
        else:
            real = (ids != self.counted_from).astype(jnp.int32)
            positions = jnp.cumsum(real, axis=1) * real + self.counted_from
        x = self.word_embeddings(ids) + self.token_type_embeddings(token_types) + self.position_embeddings(positions)
        return dropout(self.LayerNorm(x), self.rate, dropout_key, next(places))


class SelfAttention(nnx.Module):
    """Scaled dot-product attention over all heads."""

    def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> None:
        d = config.hidden_size
        self.query = linear(d, d, config, dtype, rngs)
        self.key = linear(d, d, config, dtype, rngs)
        self.value = linear(d, d, config, dtype, rngs)
        self.heads = config.num_attention_heads
        self.rate = config.attention_probs_dropout_prob

    def __call__(self, asking, x, bias, dropout_key: DropoutKey | None, places: Iterator[int]):
        def split(y):
            return y.reshape(*y.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

        query, key, value = split(self.query(asking)), split(self.key(x)), split(self.value(x))
        y = attention(query, key, value, bias, self.rate, dropout_key, next(places))
        return y.transpose(0, 2, 1, 3).reshape(asking.shape)


class Output(nnx.Module):
    """The end of a sublayer: dense, dropout, and the sum with its input normalised."""

    def __init__(self, inputs: int, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> None:
        self.dense = linear(inputs, config.hidden_size, config, dtype, rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.rate = config.hidden_dropout_prob

    def __call__(self, x, residual, dropout_key: DropoutKey | None, places: Iterator[int]):
        return self.LayerNorm(dropout(self.dense(x), self.rate, dropout_key, next(places)) + residual)


class Attention(nnx.Module):
    """The attention sublayer."""

    def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> None:
        self.self = SelfAttention(config, dtype, rngs)
        self.output = Output(config.hidden_size, config, dtype, rngs)

    def __call__(self, asking, x, bias, dropout_key, places):
        return self.output(self.self(asking, x, bias, dropout_key, places), asking, dropout_key, places)


class Intermediate(nnx.Module):
    """The wide half of the feed-forward sublayer."""

    def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> None:
        self.dense = linear(config.hidden_size, config.intermediate_size, config, dtype, rngs)
        self.activation = activation(config.hidden_act)

    def __call__(self, x):
        return self.activation(self.dense(x))


class Layer(nnx.Module):
    """One layer: attention and feed-forward, each with its residual."""

    def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> None:
        self.attention = Attention(config, dtype, rngs)
        self.intermediate = Intermediate(config, dtype, rngs)
        self.output = Output(config.intermediate_size, config, dtype, rngs)

    def __call__(self, asking, x, bias, dropout_key: DropoutKey | None, places: Iterator[int]):
        x = self.attention(asking, x, bias, dropout_key, places)
        return self.output(self.intermediate(x), x, dropout_key, places)


class Layers(nnx.Module):
    """The layers one after another."""

    def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> None:
        self.layer = nnx.List([Layer(config, dtype, rngs) for _ in range(config.num_hidden_layers)])


class Pooler(nnx.Module):
    """tanh of a dense layer over the first token."""

    def __init__(self, config: EncoderConfig, dtype, rngs: nnx.Rngs) -> None:
        self.dense = linear(config.hidden_size, config.hidden_size, config, dtype, rngs)

    def __call__(self, first):
        return jnp.tanh(self.dense(first))


class Encoder(nnx.Module):
    """A BERT or RoBERTa encoder (Devlin et al. 2019; Liu et al. 2019).

    Args:
        config: its sizes.
        pooler: whether it has BERT's pooler.
        dtype: of activations; layer norms and softmax take their sums in float32. Weights are float32.
        remat: whether to keep only each layer's input for the gradient, and compute the rest again.
        rngs: random keys of the weights.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        pooler: bool = False,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.embeddings = Embeddings(config, dtype, rngs)
        self.encoder = Layers(config, dtype, rngs)
        self.pooler = Pooler(config, dtype, rngs) if pooler else nnx.data(None)
        self.remat = remat

    def __call__(
        self,
        ids: Int[Array, "batch length"],
        mask: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
        *,
        dropout_key: DropoutKey | None = None,
        first_only: bool = False,
    ) -> Float[Array, "batch length d"]:
        """Return the states of the last layer.

        Args:
            ids: tokens.
            mask: 1 where a token is to be attended to, 0 where it is padding; all by default.
            token_types: 0 for the first text and 1 for the second; all 0 by default.
            dropout_key: the source of the dropout masks; None is no dropout.
            first_only: the state of the first token alone, (batch, 1, d). The last layer then computes one token only,
                which for 6 layers saves a seventh of the work.

        Raises:
            InputError: if a sequence is longer than there are positions.
        """
        if ids.shape[1] > self.config.max_length:
            raise InputError(
                f"ids has sequences of {ids.shape[1]} tokens: must be at most {self.config.max_length}, the model's positions"
            )
        places = itertools.count()
        token_types = jnp.zeros_like(ids) if token_types is None else token_types
        bias = None
        if mask is not None:
            bias = jnp.where(mask[:, None, None, :] > 0, 0.0, jnp.finfo(jnp.float32).min)
        x = self.embeddings(ids, token_types, dropout_key, places)
        last = len(self.encoder.layer) - 1
        for i, layer in enumerate(self.encoder.layer):
            x = self._layer(layer, x[:, :1] if first_only and i == last else x, x, bias, dropout_key, places)
        return x

    def _layer(self, layer: Layer, asking, x, bias, dropout_key, places: Iterator[int]):
        layer_places = [next(places) for _ in range(3)]

        def run(asking, x):
            return layer(asking, x, bias, dropout_key, iter(layer_places))

        run_it: Callable = jax.checkpoint(run) if self.remat else run
        return run_it(asking, x)
