"""Models with adapters, made in one expression."""

from typing import Any, TypeVar

import numpy as np
from flax import nnx

from rmtjax.adapters import apply_adapters, load_peft
from tests.helpers import array

Model = TypeVar("Model", bound=nnx.Module)


def set_to(variable: nnx.Variable, value: np.ndarray) -> None:
    """Exchange the numbers of a variable for others of NumPy."""
    variable.set_value(array(value, variable.dtype))


def with_adapters(model: Model, *arguments: Any, **options: Any) -> Model:
    """Return the model after `apply_adapters`."""
    apply_adapters(model, *arguments, **options)
    return model


def with_peft(model: Model, *arguments: Any, **options: Any) -> Model:
    """Return the model after `load_peft`."""
    load_peft(model, *arguments, **options)
    return model
