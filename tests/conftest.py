"""Shapes in annotations are checked while the tests run."""

import os

import pytest
from jaxtyping import install_import_hook

_hook = install_import_hook(("rmtjax.laws", "rmtjax.linalg", "rmtjax.ensembles"), "beartype.beartype")
_hook.__enter__()


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    """No colours or terminal width from the environment in what the command line prints."""
    for name in ("FORCE_COLOR", "COLUMNS", "RMTJAX_DATA"):
        if name in os.environ and name != "RMTJAX_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
