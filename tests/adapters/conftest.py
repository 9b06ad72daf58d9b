"""As for the models: their programs are too small to be optimised."""

import jax
import pytest

NAME = "jax_disable_most_optimizations"


@pytest.fixture(autouse=True, scope="package")
def quick_compilation():
    before = jax.config.values[NAME]
    jax.config.update(NAME, True)
    yield
    jax.config.update(NAME, before)
