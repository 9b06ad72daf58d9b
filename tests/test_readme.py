"""The README says what the files of results say, and its example is the one that is tested."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tables_are_those_of_the_results():
    done = subprocess.run(
        [sys.executable, "experiments/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_users_example_holds_and_would_fail_if_it_were_wrong(tmp_path):
    from rmtjax import load_claims, verify

    assert verify(load_claims(ROOT / "docs/tutorials/own_law.py"), trials=4000).holds
    text = (ROOT / "docs/tutorials/own_law.py").read_text(encoding="utf-8")
    (tmp_path / "wrong.py").write_text(text.replace("2 + 5 / N + 5 / N**2", "2 + 4 / N + 5 / N**2"), encoding="utf-8")
    assert not verify(load_claims(tmp_path / "wrong.py"), trials=20_000).holds


def test_every_file_that_the_readme_shows_is_there():
    import re

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / name).exists(), name
