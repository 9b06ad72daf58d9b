"""The README says what the files of results say, and its example is the one that is tested."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_tables_are_those_of_the_results():
    done = subprocess.run([sys.executable, "-m", "docs._generate", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.thorough
def test_the_users_example_holds_and_would_fail_if_it_were_wrong(tmp_path):
    from rmtjax import load_claims, verify

    assert verify(load_claims(ROOT / "docs/tutorials/own_law.py"), trials=4000).holds
    text = (ROOT / "docs/tutorials/own_law.py").read_text(encoding="utf-8")
    (tmp_path / "wrong.py").write_text(text.replace("2 + 5 / N + 5 / N**2", "2 + 4 / N + 5 / N**2"), encoding="utf-8")
    assert not verify(load_claims(tmp_path / "wrong.py"), trials=20_000).holds


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_every_file_that_a_page_shows_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / name).exists(), name


def test_every_heading_that_the_readme_points_at_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for name in re.findall(r"\]\(#([^)]+)\)", text):
        assert name in anchors, name


def test_no_block_of_results_is_without_its_page():
    """Every generated block stands on a page, and only once."""
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    source = (ROOT / "docs/_generate.py").read_text(encoding="utf-8")
    names = re.search(r"parts = \((.*?)\)", source, re.S)[1].replace(" ", "").replace("\n", "").strip(",").split(",")
    assert len(names) > 15
    for name in names:
        assert sum(page.count(f"<!-- {name} -->") for page in pages) == 1, name


def test_the_readme_is_short():
    """A newcomer reads it whole: at most 130 lines of 100 columns."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 100] == []
