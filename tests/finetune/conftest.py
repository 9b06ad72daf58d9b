"""A tiny model and a toy task that all tests of fine-tuning share."""

import os

import pytest

from .helpers import write_base, write_task


@pytest.fixture(scope="package")
def programs():
    """Return the folder in which compiled programs are kept."""
    return os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture(scope="package")
def base(tmp_path_factory):
    """Return a tiny BERT."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    """Return the toy task, with 21 examples to train on and 9 to evaluate."""
    return write_task(tmp_path_factory.mktemp("glue"))
