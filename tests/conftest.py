"""Shapes in annotations are checked while the tests run."""

import os
from importlib.metadata import version

import pytest
from jaxtyping import install_import_hook

# The engine's own choice of emitter (rmtjax/montecarlo/program.py) for the tests too, which compile more than they compute: it
# saves a quarter of their time. Versions of XLA that may have dropped it, and a caller's own flags, are left alone.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

_hook = install_import_hook(("rmtjax.laws", "rmtjax.linalg", "rmtjax.ensembles"), "beartype.beartype")
_hook.__enter__()


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    """No colours or terminal width from the environment in what the command line prints."""
    for name in ("FORCE_COLOR", "COLUMNS", "RMTJAX_DATA"):
        if name in os.environ and name != "RMTJAX_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
