"""Shapes in annotations are checked while the tests run, and compiled programs are kept for the next run."""

import ctypes
import gc
import os
import sys
import zlib
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from rmtjax._startup import cache_folder

# By default the tests run the programs that users run. RMTJAX_TEST_QUICK=1 compiles others, with fewer optimisations, in some
# less time. They round differently: with these flags a difference of products is 0 where with XLA's own it is not. XLA ends
# on a flag that it does not know, so other versions go without.
if os.environ.get("RMTJAX_TEST_QUICK") == "1" and version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true")

# JAX keeps what it compiles in a folder that all workers, the processes that tests start, and the next run share. A program from
# there is the one that was compiled. The processor's features are in the folder's name, as in that of the command line.
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs" / Path(cache_folder()).name
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

_GROWTH = 250 * 2**20
"""Bytes by which a process may grow before its programs are freed."""

_memory = {}

if os.environ.get("RMTJAX_TEST_SHAPES") != "0":  # users have no such hook: `make fuzz` does without it
    install_import_hook(("rmtjax.laws", "rmtjax.linalg", "rmtjax.ensembles"), "beartype.beartype").__enter__()


def pytest_addoption(parser):
    """Let the thorough and the golden cases be run in parts."""
    parser.addoption(
        "--part", metavar="K/N", help="of the thorough and golden cases only the k-th of n parts, such as 2/4"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest drops the tests that the command line's markers exclude
def pytest_collection_modifyitems(config, items):
    """Mark as thorough the cases that `make test` leaves out, by the markers `each_value` and `first`.

    With `--part`, those of the thorough and golden cases that are not in it are left out. A case is in the same part on every
    machine.
    """
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        rest = []
        if cases[0].get_closest_marker("each_value"):
            values = [{(name, repr(value)) for name, value in case.callspec.params.items()} for case in cases]
            unseen, rest = set().union(*values), list(range(len(cases)))
            while unseen:
                best = max(rest, key=lambda i: len(values[i] & unseen))
                rest.remove(best)
                unseen -= values[best]
        elif first := cases[0].get_closest_marker("first"):
            rest = range(*first.args, len(cases))
        for i in rest:
            cases[i].add_marker(pytest.mark.thorough)
    if part := config.getoption("part"):
        number, count = map(int, part.split("/"))
        others = [item for item in items if zlib.crc32(item.nodeid.encode()) % count != number - 1]
        others = [item for item in others if item.get_closest_marker("thorough") or item.get_closest_marker("golden")]
        config.hook.pytest_deselected(items=others)
        dropped = set(others)
        items[:] = [item for item in items if item not in dropped]


def _resident() -> int:
    """Return the bytes of memory that this process holds, 0 if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _free() -> None:
    """Free compiled programs, and give the memory back."""
    import jax

    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # glibc would keep most of what was freed


@pytest.fixture(autouse=True)
def _bounded_memory():
    """Free the programs of the tests so far once they exceed the memory of a small machine.

    Linux also lets a process have 65,530 memory mappings, of which each compiled program takes several: one process that kept
    the programs of all tests would end with a segmentation fault.
    """
    _memory.setdefault("start", _resident())
    yield
    if _resident() > _memory["start"] + _GROWTH:
        _free()
        _memory["start"] = _resident()


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    """Keep colours and terminal width of the environment out of the command line's output."""
    for name in ("FORCE_COLOR", "COLUMNS", "RMTJAX_DATA"):
        if name in os.environ and name != "RMTJAX_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: (exit status, standard output, standard error)."""
    from rmtjax.cli import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rmtjax", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return call
