"""Models with adapters, made in one expression."""

from typing import Any, TypeVar

from flax import nnx

from rmtjax.adapters import apply_adapters, load_peft

Model = TypeVar("Model", bound=nnx.Module)


def with_adapters(model: Model, *arguments: Any, **options: Any) -> Model:
    """Return the model after `apply_adapters`."""
    apply_adapters(model, *arguments, **options)
    return model


def with_peft(model: Model, *arguments: Any, **options: Any) -> Model:
    """Return the model after `load_peft`."""
    load_peft(model, *arguments, **options)
    return model
