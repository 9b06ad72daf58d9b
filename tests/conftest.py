"""Shapes in annotations are checked while the tests run."""

import gc
import os
import sys
from importlib.metadata import version

import pytest
from jaxtyping import install_import_hook

# By default the tests run the programs that users run. RMTJAX_TEST_QUICK=1 compiles others, with fewer optimisations, in some
# less time. They round differently: with these flags a difference of products is 0 where with XLA's own it is not. XLA ends
# on a flag that it does not know, so other versions go without.
if os.environ.get("RMTJAX_TEST_QUICK") == "1" and version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true")

if os.environ.get("RMTJAX_TEST_SHAPES") != "0":  # users have no such hook: `make fuzz` goes without
    install_import_hook(("rmtjax.laws", "rmtjax.linalg", "rmtjax.ensembles"), "beartype.beartype").__enter__()


@pytest.fixture(autouse=True, scope="module")
def _free_programs():
    """Free the programs of a file of tests after it.

    Linux lets a process have 65,530 memory mappings, of which each compiled program takes several: one process that kept the
    programs of all tests would end with a segmentation fault.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    """No colours or terminal width from the environment in what the command line prints."""
    for name in ("FORCE_COLOR", "COLUMNS", "RMTJAX_DATA"):
        if name in os.environ and name != "RMTJAX_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: (exit status, standard output, standard error)."""
    from rmtjax.cli import main

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # main sets it where it is not set

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rmtjax", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return call
