"""The house: no module uses another's private names, and imports go down the layers (`lint-imports`, in `make lint`)."""

import ast
import builtins
import dis
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [file for folder in ("rmtjax", "experiments", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_imports(file):
    """Yield the private names that a file imports from a module, and private modules of another package."""
    package = ".".join(file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            not isinstance(node, ast.ImportFrom)
            or not node.module
            or node.module.split(".")[0] not in ("rmtjax", "experiments")
        ):
            continue
        for alias in node.names:
            source = ROOT / node.module.replace(".", "/")
            is_module = (source / f"{alias.name}.py").is_file() or (source / alias.name).is_dir()
            if is_private(alias.name) and not (is_module and package.startswith(node.module)):
                yield f"{node.module}.{alias.name}"
        parents = node.module.split(".")
        for i, part in enumerate(parents):
            owner = ".".join(parents[:i])
            if is_private(part) and owner != "rmtjax" and not package.startswith(owner):
                yield node.module


@pytest.mark.parametrize("file", FILES, ids=[file.relative_to(ROOT).as_posix() for file in FILES])
def test_private_names_stay_at_home(file):
    assert list(private_imports(file)) == []


def test_a_private_name_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name in ("rmtjax/laws/one.py", "rmtjax/laws/_two.py", "rmtjax/linalg/three.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "rmtjax/linalg/three.py").write_text("from rmtjax.laws.one import _f\nfrom rmtjax.laws import _two\n")
    assert list(private_imports(tmp_path / "rmtjax/linalg/three.py")) == ["rmtjax.laws.one._f", "rmtjax.laws._two"]
    (tmp_path / "rmtjax/laws/one.py").write_text("from rmtjax.laws import _two\nfrom rmtjax.laws._two import g\n")
    assert list(private_imports(tmp_path / "rmtjax/laws/one.py")) == []


def missing_globals(code, names):
    """Yield the global names that code loads and nothing defines; names of axes in annotations hide them from linters."""
    for instruction in dis.get_instructions(code):
        is_global = instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        if is_global and instruction.argval not in names and not hasattr(builtins, instruction.argval):
            yield instruction.argval
    for constant in code.co_consts:
        if (
            isinstance(constant, types.CodeType) and constant.co_flags & 1
        ):  # functions; class bodies have names of their own
            yield from missing_globals(constant, names)
        elif isinstance(constant, types.CodeType):
            yield from (
                n
                for inner in constant.co_consts
                if isinstance(inner, types.CodeType)
                for n in missing_globals(inner, names)
            )


@pytest.mark.parametrize("file", sorted(ROOT.glob("rmtjax/**/*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_name_is_defined(file):
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    code = compile(file.read_text(encoding="utf-8"), file, "exec")
    assert not set(missing_globals(code, {*vars(module), "__file__", "__class__"}))


def test_a_name_that_nothing_defines_would_be_found():
    code = compile("import os\ndef f():\n    return os.getcwd() + shown(1)\n", "text", "exec")
    assert list(missing_globals(code, {"os", "f"})) == ["shown"]


def test_importing_starts_no_device():
    """A program chooses platform, devices and hosts after its imports: laws are evaluated when a claim is used."""
    modules = ("claims", "cli", "adapters", "finetune", "intruders", "spectra", "transfer.estimator", "report.sweep")
    text = "".join(f"import rmtjax.{name}\n" for name in modules) + "import jax\nprint(jax._src.xla_bridge._backends)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{}"
