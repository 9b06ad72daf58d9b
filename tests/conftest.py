"""Shapes in annotations are checked while the tests run."""

import os
from importlib.metadata import version

import pytest
from jaxtyping import install_import_hook

# The tests compile more than they compute. The engine's own choice of emitter (rmtjax/montecarlo/program.py) saves a quarter of
# their time, fewer passes of LLVM a tenth. Only where the flags are known, since XLA ends on one that it does not know; a
# caller's own stay.
if tuple(map(int, version("jaxlib").split(".")[:2])) == (0, 10):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true")

_hook = install_import_hook(("rmtjax.laws", "rmtjax.linalg", "rmtjax.ensembles"), "beartype.beartype")
_hook.__enter__()


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    """No colours or terminal width from the environment in what the command line prints."""
    for name in ("FORCE_COLOR", "COLUMNS", "RMTJAX_DATA"):
        if name in os.environ and name != "RMTJAX_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
