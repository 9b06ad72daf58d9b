"""The tests run the programs that users run: no flag of the compiler that a user does not have."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

TESTS = Path(__file__).parent
NAMES = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
QUICK = os.environ.get("RMTJAX_TEST_QUICK") == "1"


def flags_after(quick):
    """Return the environment's flags after loading the tests' configuration, in a process that starts without flags."""
    environment = {k: v for k, v in os.environ.items() if k not in (*NAMES, "RMTJAX_TEST_QUICK")}
    environment |= {"RMTJAX_TEST_QUICK": "1"} if quick else {}
    code = f"import json, os, tests.conftest; print(json.dumps({{n: os.environ.get(n) for n in {NAMES}}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_configuration_sets_no_flag_unless_asked():
    assert flags_after(quick=False) == dict.fromkeys(NAMES)
    if jax.lib.__version__.startswith("0.10."):
        assert "xla_llvm_disable_expensive_passes" in flags_after(quick=True)["XLA_FLAGS"]


@pytest.mark.skipif(QUICK, reason="quick programs are asked for")
def test_this_session_compiles_as_users_do():
    assert not jax.config.values["jax_disable_most_optimizations"]
    assert "xla_llvm" not in os.environ.get("XLA_FLAGS", "")
    assert "fusion_emitters" not in os.environ.get("XLA_FLAGS", "")


def test_no_file_of_the_tests_turns_optimisations_off():
    others = [p for p in TESTS.rglob("*.py") if p not in (Path(__file__), TESTS / "conftest.py")]
    assert len(others) > 50
    switches = re.compile("disable_most_optimizations|xla_llvm|xla_backend_optimization", re.IGNORECASE)
    assert [p.name for p in others if switches.search(p.read_text(encoding="utf-8"))] == []
