"""The doctor's diagnoses, and the choice of devices."""

import json
import os
import subprocess
import sys

import pytest

from rmtjax import InputError
from rmtjax._startup import choose_platform, chosen_devices
from rmtjax.doctor import examine

RUN = "from rmtjax.cli import main; main()"


def _call(*arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")}
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**kept, **environment})
    return done.returncode, done.stdout, done.stderr


def test_a_healthy_machine(tmp_path):
    (tmp_path / "dev").mkdir()
    report = examine(tmp_path)
    assert not report.problems
    assert report.facts["packages"].startswith("jax 0.") or report.facts["packages"].startswith("jax 1.")
    assert "cores" in report.facts["processor"] and "GB free" in report.facts["memory"]


@pytest.mark.parametrize(
    ("there", "says", "cure"),
    [
        ("proc/driver/nvidia/version", "there is an NVIDIA GPU", "rmtjax[cuda]"),
        ("dev/nvidia0", "there is an NVIDIA GPU", "rmtjax[cuda]"),
        ("dev/accel0", "there is a TPU", "rmtjax[tpu]"),
    ],
)
def test_an_accelerator_that_is_not_used(tmp_path, monkeypatch, there, says, cure):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    (problem,) = examine(tmp_path).problems
    assert problem.what.startswith(says) and cure in problem.cure


def test_a_variable_that_hides_a_gpu_comes_before_its_plugin(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr("rmtjax.doctor._version", {"jax-cuda13-plugin": "0.10.2"}.get)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert "unset JAX_PLATFORMS" in next(p.cure for p in examine(tmp_path).problems if "NVIDIA" in p.what)


def test_a_package_that_is_too_old(tmp_path, monkeypatch):
    from importlib.metadata import version

    monkeypatch.setattr("rmtjax.doctor._version", lambda name: "0.1" if name == "flax" else version(name))
    (problem,) = examine(tmp_path).problems
    assert problem.what.startswith("flax 0.1 is installed, but rmtjax needs flax>=0.12")
    assert problem.cure.startswith("pip install 'flax>=0.12")


def test_what_is_wrong_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("rmtjax.doctor._version", {"jax": "0.10.2", "jaxlib": "0.9.0"}.get)
    monkeypatch.setattr("rmtjax.doctor._SMALL_DISK", 1e18)
    monkeypatch.setattr("rmtjax.doctor._SMALL_MEMORY", 1e18)
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "cache"))
    problems = examine(tmp_path).problems
    told = [problem.what for problem in problems]
    assert told[0] == "jax 0.10.2 and jaxlib 0.9.0 are incompatible"
    assert [text.split()[0] for text in told[1:]] == ["only", str(tmp_path / "file" / "cache"), "only"]


def test_the_command(tmp_path):
    status, out, err = _call("doctor", "--json", tmp_path / "d.json")
    found = json.loads((tmp_path / "d.json").read_text())
    assert status == bool(found["problems"]), err
    assert set(found["facts"]) >= {"Python", "devices", "memory", "precision"} and "packages" in out
    status, out, err = _call("doctor", JAX_PLATFORMS="rocm")
    assert status == 1 and "JAX finds no device" in out and "unset JAX_PLATFORMS, which is rocm" in out
    assert "Traceback" not in err


SHOW = """
import sys
from rmtjax._startup import choose_platform, chosen_devices
choose_platform("cpu", int(sys.argv[1]))
import jax
devices = chosen_devices("cpu", int(sys.argv[1]))
from rmtjax.montecarlo.resources import workers
print(len(devices), len(workers(devices, 100)), devices[0].platform)
"""


@pytest.mark.thorough
def test_so_many_devices_and_threads():
    for count in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", SHOW, count], capture_output=True, text=True, timeout=300, check=True
        )
        assert done.stdout.split() == [count, count, "cpu"]


def test_devices_that_cannot_be():
    with pytest.raises(InputError, match="platform = 'abacus': must be one of cpu, gpu"):
        choose_platform("abacus", None)
    with pytest.raises(InputError, match="devices = 0: must be at least 1"):
        choose_platform(None, 0)
    with pytest.raises(InputError, match="devices = 10000: must be at most"):
        chosen_devices(None, 10_000)
    assert chosen_devices(None, None) is None


@pytest.mark.thorough
def test_a_platform_that_is_not_here():
    status, _, err = _call("sweep", "bbp-wigner", "--platform", "rocm")
    assert status == 2 and "platform = 'rocm': JAX cannot use it here" in err and err.count("\n") == 1
