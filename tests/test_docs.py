"""The documentation: tutorials run as they stand, the reference leaves nothing out, the site builds without a warning."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rmtjax.report.mathml import mathml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def _run(script, folder, *arguments):
    done = subprocess.run(
        [sys.executable, DOCS / "tutorials" / script, *arguments], cwd=folder, capture_output=True, text=True, timeout=600,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.docs
def test_a_law_of_your_own(tmp_path):
    said = _run("own_law_checked.py", tmp_path)
    assert said.startswith("goe-fourth-moment holds") and "the law says 2.000" in said
    assert (tmp_path / "moment.zarr/result").is_dir()


@pytest.mark.docs
def test_a_sweep_on_many_hosts(tmp_path):
    said = _run("many_hosts.py", tmp_path)
    assert "2 processes" in said and said.endswith("the same bytes: True\n")


@pytest.mark.docs
def test_fine_tune_and_scan(tmp_path):
    said = _run("finetune_and_scan.py", tmp_path)
    found, mended = (
        int(re.search(rf"(\d+) {what}", said)[1]) for what in ("intruders in 12 layers", "after mitigation")
    )
    guarded = int(re.search(r"guarded: accuracy .*, intruders: (\d+)", said)[1])
    assert found >= 4 and mended < found and guarded < found
    assert (tmp_path / "mitigated/adapter_model.safetensors").exists()


@pytest.mark.docs
@pytest.mark.parametrize("page", ["README.md", "docs/guides/spikes.md", "docs/guides/decompositions.md"])
def test_the_examples_of_a_page_run(page, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    if page == "README.md":
        sampled, law = map(float, capsys.readouterr().out.split())
        assert law == pytest.approx(13 / 6) and abs(sampled - law) < 5e-6  # 17 standard errors


@pytest.mark.docs
@pytest.mark.parametrize("name", ["law_against_monte_carlo", "scan_of_an_adapter"])
def test_notebooks_run(name, tmp_path):
    """They hold no outputs of their own, so that none can be stale."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / f"notebooks/{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    printing = [cell for cell in notebook.cells if cell.get("outputs")]
    assert len(printing) >= 2
    assert not any(output["output_type"] == "error" for cell in printing for output in cell["outputs"])


def test_tutorials_show_code_that_is_tested():
    for name, includes in (("own_law", 6), ("many_hosts", 1), ("finetune_and_scan", 4)):
        page = DOCS / f"tutorials/{name}.md"
        found = re.findall(r'--8<-- "tutorials/([\w.]+)(:(\w+))?"', page.read_text("utf-8"))
        assert len(found) == includes
        for file, _, section in found:
            text = (DOCS / "tutorials" / file).read_text("utf-8")
            assert not section or f"# --8<-- [start:{section}]" in text, (page.name, section)


def test_the_formulas_of_the_derivations_can_be_set(monkeypatch):
    pytest.importorskip("mkdocstrings")
    monkeypatch.syspath_prepend(DOCS)
    formula = importlib.import_module("hooks").FORMULA
    for name in ("derivations", "intruder-law"):
        page = (DOCS / f"{name}.md").read_text("utf-8")
        found = [block or inline for _, block, inline in formula.findall(page)]
        assert len(found) > 100
        for latex in found:
            made = mathml(latex)
            assert made is not None and "\\" not in made, latex  # what is unknown stays as it is
        left = formula.sub("", page)
        assert "$" not in left and not re.search(r"\n\n {4,}\S", left)  # an indented block
        assert not re.search(r"`[^`\n]*[^\x00-\x7f`][^`\n]*`", left)  # mathematics as code


def test_the_reference_has_everything_public():
    """Every module that is not a part of a package which shows its names itself."""
    shown = {
        name for page in DOCS.glob("api/*.md") for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.M)
    }
    for package in ("laws", "ensembles", "linalg"):
        for file in (ROOT / "rmtjax" / package).glob("[a-z]*.py"):
            assert f"rmtjax.{package}.{file.stem}" in shown, file
    for package in ("montecarlo", "models", "adapters", "finetune", "intruders"):
        assert f"rmtjax.{package}" in shown and importlib.import_module(f"rmtjax.{package}").__all__
    import rmtjax

    homes = {
        getattr(rmtjax, name).__module__ for name in rmtjax.__all__ if hasattr(getattr(rmtjax, name), "__module__")
    }
    covered = (*shown, "rmtjax._errors")
    for home in homes:
        assert any(home == name or home.startswith(f"{name}.") for name in covered), home


@pytest.mark.docs
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path / "site"], cwd=ROOT, text=True,
        capture_output=True, timeout=600, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "site/api/laws/index.html").read_text("utf-8")
    assert html.count("<math") > 150 and "math-block:" not in html and ":math:" not in html
    for name, code in (("own_law", "moment"), ("many_hosts", "initialize"), ("finetune_and_scan", "guarded")):
        assert code in re.sub("<[^>]+>", "", (tmp_path / f"site/tutorials/{name}/index.html").read_text("utf-8"))
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text("utf-8")
        assert "--8" not in text
        assert not re.search(r'(src|href)="https?://(fonts|cdn|unpkg|cdnjs)', text), f"{page} needs the network"
    assert (tmp_path / "site/claims/index.html").read_text("utf-8").count("<math") >= 40
