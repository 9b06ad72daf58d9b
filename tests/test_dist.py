"""The distributions that `make dist` has built, in otherwise empty environments."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from rmtjax import __version__

pytestmark = pytest.mark.dist
ROOT = Path(__file__).parents[1]
WHEEL = ROOT / f"dist/rmtjax-{__version__}-py3-none-any.whl"
SOURCE = ROOT / f"dist/rmtjax-{__version__}.tar.gz"


def _called(*command, cwd=None, status=0):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=1200, env=clean)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with the wheel and what it says that it needs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    _called(folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", WHEEL)
    return folder / "bin"


def test_the_wheel_holds_the_package_and_nothing_else():
    with zipfile.ZipFile(WHEEL) as wheel:
        held = {name for name in wheel.namelist() if not name.startswith(f"rmtjax-{__version__}.dist-info/")}
        about = wheel.read(f"rmtjax-{__version__}.dist-info/METADATA").decode()
    tracked = _called("git", "ls-files", "rmtjax", cwd=ROOT).split()
    assert held == set(tracked)
    assert f"\nVersion: {__version__}\n" in about and "Requires-Python: >=3.11" in about


def test_the_command_line(environment, tmp_path):
    assert "bbp-wigner" in _called(environment / "rmtjax", "claims", cwd=tmp_path)
    assert "jax" in _called(environment / "rmtjax", "doctor", cwd=tmp_path)
    (tmp_path / "own_law.py").write_bytes((ROOT / "docs/tutorials/own_law.py").read_bytes())
    said = _called(environment / "rmtjax", "verify", "own_law.py", "--trials", 2000, "--out", "report", cwd=tmp_path)
    assert "1 of 1 claims hold" in said
    html = (tmp_path / "report/report.html").read_text("utf-8")
    assert "<math" in html and "<svg" in html
    _called(
        environment / "rmtjax", "sweep", "bbp-wigner", "--set", "N=1e9", "--trials", 100, "--out", "s", cwd=tmp_path
    )
    assert (tmp_path / "s/result").is_dir()


def test_nothing_that_is_imported_is_missing(environment, tmp_path):
    """Every module of the package can be imported with what it asked for, and stands where it was installed."""
    code = (
        "import importlib, pkgutil, rmtjax\n"
        "for m in pkgutil.walk_packages(rmtjax.__path__, 'rmtjax.'): importlib.import_module(m.name)\n"
        "print(rmtjax.__version__, rmtjax.__file__)"
    )
    version, file = _called(environment / "python", "-c", code, cwd=tmp_path).split(maxsplit=1)
    assert version == __version__ and file.startswith(str(environment.parent))


def test_the_source_makes_the_same_wheel(tmp_path):
    with tarfile.open(SOURCE) as source:
        source.extractall(tmp_path, filter="data")
    folder = tmp_path / f"rmtjax-{__version__}"
    assert (folder / "tests/conftest.py").exists() and (folder / "docs/derivations.md").exists()
    _called(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, folder)
    with zipfile.ZipFile(WHEEL) as one, zipfile.ZipFile(tmp_path / WHEEL.name) as other:
        assert {n: one.read(n) for n in one.namelist()} == {n: other.read(n) for n in other.namelist()}
