"""Small encoders and batches, and PyTorch's results for them."""

import copy
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmtjax import InputError
from rmtjax.models import EncoderConfig, SequenceClassifier
from tests.helpers import array

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "initializer_range": 0.2,
}


def refused(*parts: str):
    """Expect a one-line InputError that contains every part."""
    pattern = "".join(f"(?=.*{re.escape(part)})" for part in parts)
    return pytest.raises(InputError, match=rf"\A{pattern}[^\n]*\Z")


def config_of(model_type: str = "bert", **changes) -> EncoderConfig:
    pad = 0 if model_type == "bert" else 1
    return EncoderConfig(**{**SIZES, "model_type": model_type, "pad_token_id": pad, **changes})


def filled(build: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> nnx.Module:
    """Return a model whose weights are all random, biases and layer norms too, so that none can be left out unnoticed.

    They are drawn by NumPy: Flax's initialisers are some ten programs that XLA would compile first.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    rng, weights = np.random.default_rng(seed), {}
    for path, variable in nnx.to_flat_state(state):
        value = 0.2 * rng.normal(size=variable.shape) + (path[-1] in ("scale", "var"))
        weights[path] = variable.replace(array(value, variable.dtype))
    return nnx.merge(graph, nnx.from_flat_state(weights))


@functools.cache
def _classifier(config: EncoderConfig, outputs: int, seed: int, options: tuple) -> SequenceClassifier:
    return filled(lambda rngs: SequenceClassifier(config, outputs, rngs=rngs, **dict(options)), seed)


def classifier(model_type: str = "bert", outputs: int = 2, seed: int = 0, options: dict | None = None, **changes):
    """Return a classifier with random weights."""
    return nnx.clone(_classifier(config_of(model_type, **changes), outputs, seed, tuple((options or {}).items())))


def batch(config: EncoderConfig, size: int = 4, length: int = 9, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return tokens, mask and token types; the last row has one token, the first no padding."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, config.vocab_size, (size, length)).astype(np.int32)
    lengths = np.linspace(length, 1, size).astype(int)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = np.where(mask, ids, config.pad_token_id).astype(np.int32)
    types = (np.arange(length) >= (lengths[:, None] + 1) // 2) * mask if config.type_vocab_size > 1 else 0 * mask
    return ids, mask, types.astype(np.int32)


logits = nnx.jit(lambda model, *args: model(*args))
"""The compiled outputs of a model."""


@nnx.jit
def gradients(model, ids, mask, types, labels):
    """Return gradients of the mean cross-entropy, as a state of all weights."""

    def loss(trained):
        out = nnx.merge(graph, trained, rest)(ids, mask, types)
        return -jnp.take_along_axis(jax.nn.log_softmax(out), labels[:, None], 1).mean()

    graph, own, rest = nnx.split(model, nnx.Param, ...)
    return jax.grad(loss)(own)


def weights(model: nnx.Module | nnx.State, kind: type = nnx.Param) -> dict[str, np.ndarray]:
    """Return weights of a kind by dotted path."""
    state = model if isinstance(model, nnx.State) else nnx.state(model, kind)
    return {".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(state)}


def relative(got, wanted) -> float:
    """Return ‖got − wanted‖/‖wanted‖."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def train(model: nnx.Module, tx, batches, kind) -> list[float]:
    """Take steps of an optimizer on the variables of a kind, in place; return the losses. No dropout."""
    import optax

    graph, own, rest = nnx.split(model, kind, ...)

    @jax.jit
    def step(variables, state, batch):
        def loss(trained):
            out = nnx.merge(graph, trained, rest)(*batch[:-1])
            if out.shape[-1] == 1:
                return jnp.square(out[:, 0] - batch[-1]).mean()
            return optax.softmax_cross_entropy_with_integer_labels(out, batch[-1]).mean()

        value, gradient = jax.value_and_grad(loss)(variables)
        updates, state = tx.update(gradient, state, variables)
        return optax.apply_updates(variables, updates), state, value

    state, losses = tx.init(own), []
    for one in batches:
        own, state, value = step(own, state, one)
        losses.append(float(value))
    nnx.update(model, own)
    return losses


# -- PyTorch -----------------------------------------------------------------------------------------------------------


def torch_classifier(config: EncoderConfig, outputs: int = 2, seed: int = 0, **changes):
    """Return a sequence classifier of `transformers` with all weights random, in evaluation mode."""
    import torch
    import transformers

    values = {k: v for k, v in config.to_dict().items() if k != "model_type"} | {"num_labels": outputs, **changes}
    own = transformers.AutoConfig.for_model(config.model_type, **values)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_config(own)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def tensors(*arrays, dtype=None):
    import torch

    return [torch.as_tensor(np.array(a), dtype=dtype or torch.long) for a in arrays]


def torch_outputs(model, ids, mask, types=None):
    """Return the outputs of a `transformers` model for a batch, in double precision.

    In single precision its own rounding reaches 1 to 2·10⁻⁵ in MiniLM’s hidden states, by what kernels the processor has.
    """
    import torch

    arguments = tensors(ids, mask) if types is None else tensors(ids, mask, types)
    with torch.no_grad():
        return copy.deepcopy(model).double()(
            **dict(zip(("input_ids", "attention_mask", "token_type_ids"), arguments, strict=False))
        )


def torch_logits(model, *batch) -> np.ndarray:
    return torch_outputs(model, *batch).logits.numpy()
