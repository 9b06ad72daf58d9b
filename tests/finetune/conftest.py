"""Runs here compile the same few programs over and over; JAX keeps them for the length of the tests."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from .helpers import write_base, write_task


def _set(folder, seconds):
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    compilation_cache.reset_cache()


@pytest.fixture(scope="package", autouse=True)
def programs(tmp_path_factory):
    """The folder in which compiled programs are kept."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    folder = tmp_path_factory.mktemp("programs")
    _set(str(folder), 0.1)
    yield folder
    _set(*before)


@pytest.fixture(scope="package")
def base(tmp_path_factory):
    """A tiny BERT."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    """The toy task, 21 examples to train on and 9 to try."""
    return write_task(tmp_path_factory.mktemp("glue"))
