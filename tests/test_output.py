"""Every way out: each command into streams of every kind, and names that would control a terminal or a page."""

import ast
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text

from rmtjax import Claim, InputError, cli, grid, real, verify
from rmtjax import _text as text_module
from rmtjax._console import Console, Table
from rmtjax._errors import HostError, shown, unknown
from rmtjax._files import write_json
from rmtjax._progress import Reporter
from rmtjax._text import ascii_json, prepare_streams, say, visible, visible_json
from rmtjax.intruders import scan
from rmtjax.montecarlo import judge
from rmtjax.report import intruders as intruders_report
from rmtjax.report import sweep as sweep_report
from rmtjax.report import verdict as verdict_report
from rmtjax.report.figures import law_against_monte_carlo, save
from rmtjax.report.page import csv as csv_of
from rmtjax.report.page import page
from rmtjax.report.text import markdown_table, markdown_text
from rmtjax.report.verdict_files import write_report
from tests.finetune.helpers import write_base, write_task
from tests.intruders.helpers import matrix, planted, write, write_adapter
from tests.report.test_page import check, result

LAW = """
import jax
from rmtjax import Claim, positive
mean = Claim(
    name="mean-of-μ", equation=r"E x = \\\\mu", source="Größe", params=dict(mu=positive()), law=lambda mu: mu,
    samplers=dict(direct=lambda key, mu: mu + jax.random.normal(key)), grid=dict(mu=[1.0, 2.0]),
)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Write the commands' inputs into one folder: a law, stores, a checkpoint with an adapter, a model and its task."""
    from rmtjax import CLAIMS
    from rmtjax.montecarlo import run

    folder = tmp_path_factory.mktemp("inputs")
    (folder / "law.py").write_text(LAW.replace("\\\\\\\\", "\\\\"), encoding="utf-8")
    for seed in (0, 1):
        claim = CLAIMS["bbp-wigner"]
        run(
            claim, grid(N=1000.0, theta=[1.5, 2.0]), trials=50, seed=seed, store=folder / f"{seed}.zarr", progress=False
        )
    write(folder / "base", {f"über.{i}.weight": matrix(24, 20, i) for i in range(2)})
    u, _, vt = np.linalg.svd(planted(np.zeros((24, 20), np.float32), 1.0))
    write_adapter(folder / "adapter", {"über.0": (30 * vt[:1], u[:, :1])}, r=1, lora_alpha=1)
    write_base(folder / "bert")
    write_task(folder / "glue")
    return folder


COMMANDS = {
    "help": ["--help"],
    "claims": ["claims"],
    "verify": ["verify", "{in}/law.py", "--trials", "200", "--out", "out"],
    "verify --json": ["verify", "{in}/law.py", "--trials", "200", "--json", "-"],
    "report": ["report", "{in}/0.zarr", "{in}/1.zarr", "--out", "out"],
    "sweep": ["sweep", "{in}/law.py", "--trials", "50", "--out", "out"],
    "sweep --json": ["sweep", "{in}/law.py", "--trials", "50", "--json", "-"],
    "sweep --dry-run": ["sweep", "{in}/law.py", "--trials", "50", "--dry-run"],
    "merge": ["merge", "{in}/0.zarr", "{in}/1.zarr", "--out", "out"],
    "transfer": ["transfer", "--seeds", "1", "--out", "out"],
    "finetune": [
        "finetune", "--task", "mrpc", "--data", "{in}/glue", "--model", "{in}/bert", "--rank", "2", "--epochs", "1",
        "--batch-size", "8", "--max-length", "16", "--out", "out",
    ],
    "doctor": ["doctor"],
    "doctor --json": ["doctor", "--json", "-"],
    "intruders": ["intruders", "{in}/base", "{in}/adapter", "--out", "out"],
    "intruders --json": ["intruders", "{in}/base", "{in}/adapter", "--json", "-"],
    "intruders mitigate": ["intruders", "mitigate", "{in}/base", "{in}/adapter", "--out", "out"],
    "an error": ["verify", "μ"],
}  # fmt: skip
"""Each command, and each that writes JSON to standard output, on something small. Of those with `--out` it is the folder out."""


@pytest.fixture
def call(monkeypatch, tmp_path, inputs):
    """Run a command of `COMMANDS` in an empty folder into streams of an encoding: status, output, errors as bytes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rmtjax.cli.finetune.device_for_each_core", lambda: None)  # JAX has begun long ago

    def run(name, encoding):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["rmtjax", *(a.replace("{in}", str(inputs)) for a in COMMANDS[name])])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            try:
                cli.main()
                status = 0
            except SystemExit as end:
                status = end.code or 0
        for stream in streams:
            stream.flush()
        return status, *(stream.buffer.getvalue() for stream in streams)

    return run


@pytest.mark.first(5)
@pytest.mark.parametrize(
    ("name", "encoding"),
    [*((name, "ascii") for name in COMMANDS), ("claims", "cp1252"), ("intruders --json", "cp1252")],
)
def test_no_command_fails_at_what_a_stream_cannot_encode(call, name, encoding, tmp_path):
    status, out, err = call(name, encoding)
    assert status == (2 if name == "an error" else 0), err.decode(encoding)
    assert b"Traceback" not in err
    out = out.decode(encoding)
    if "--json" in name:
        found = json.loads(out)
        if name.startswith(("verify", "sweep")):
            assert "mean-of-μ" in (found.get("claim"), *(f["claim"] for f in found.get("findings", [])))
        if name.startswith("intruders"):
            assert found["layers"][0]["name"].startswith("über")
    if "--out" in COMMANDS[name]:
        assert any((tmp_path / "out").iterdir())
    if name == "an error":
        assert err.decode(encoding).startswith("error: claim")


class Full(io.TextIOWrapper):
    """A stream whose reader has gone after what was written first."""

    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("name", ["verify", "intruders"])
def test_what_was_asked_for_is_written_before_anything_is_printed(monkeypatch, tmp_path, inputs, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rmtjax", *(a.replace("{in}", str(inputs)) for a in COMMANDS[name])])
    monkeypatch.setattr(sys, "stdout", Full(io.BytesIO(), encoding="utf-8"))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 141  # as of a program that the signal of a closed pipe has ended
    assert any(file.suffix == ".json" for file in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("arguments", [["claims"], ["--help"]])
def test_a_reader_that_leaves_early(arguments):
    """As in `rmtjax claims | head -0`: no traceback, and the status that a shell gives to a closed pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "rmtjax.cli", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=300,
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141 or arguments == ["--help"]  # which typer prints itself


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX")
def test_without_any_stream():
    code = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, sys.argv[1:])"
    arguments = [sys.executable, "-m", "rmtjax.cli", "claims"]
    assert subprocess.run([sys.executable, "-c", code, *arguments], timeout=300).returncode == 0


@pytest.mark.thorough
def test_files_in_a_locale_that_knows_ascii_alone(inputs, tmp_path):
    """Everything is read and written as UTF-8, whatever the locale's encoding is."""
    plain = {k: v for k, v in os.environ.items() if k not in ("LANG", "PYTHONIOENCODING") and not k.startswith("LC_")}
    environment = {**plain, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONWARNINGS": "ignore"}
    for name in ("verify", "intruders"):
        arguments = [a.replace("{in}", str(inputs)).replace("out", f"out-{name}", a == "out") for a in COMMANDS[name]]
        done = subprocess.run(
            [sys.executable, "-m", "rmtjax.cli", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
    page_of_law = (tmp_path / "out-verify/report.html").read_text(encoding="utf-8")
    assert "mean-of-μ" in page_of_law and "Größe" in page_of_law
    layers = json.loads((tmp_path / "out-intruders/intruders.json").read_text(encoding="utf-8"))["layers"]
    assert layers[0]["name"].startswith("über")


@pytest.mark.thorough
def test_every_module_is_imported():
    """With what rmtjax says that it needs, whatever the versions."""
    package = Path(text_module.__file__).parents[1]
    code = (
        "import importlib, pkgutil, rmtjax\n"
        "for m in pkgutil.walk_packages(rmtjax.__path__, 'rmtjax.'): importlib.import_module(m.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=package, check=True, timeout=300)


# --- names that are no names ------------------------------------------------------------------------------------------

NASTY = {
    "escape": "a\x1b[2J\x1b]0;title\x07b",
    "line break": "a\r\nb\tc\x0bd",
    "delete and C1": "a\x7f\x9b31m\x85b",
    "direction": "a\u202eb\u2066c\u200fd\u2028e",
    "markup": "<script>alert(1)</script>\"'&amp;]]>--><!-- </title></svg>",
    "rich": "[red]a[/red][/]:cat:[link=https://x]b",
    "mathematics": r"$\frac{1}$ $x^$ \unknown{ a_b $",
    "table": "a|b",
}
EVERYTHING = "".join(NASTY.values())
ESCAPES = [r"\x1b[2J", r"title\x07b", r"\r\n", r"\x7f\x9b31m\x85", r"\u202e", r"\u2066", r"\u200f", r"\u2028"]


def controls(text, keep="\n"):
    """The characters of a text that control whoever shows it."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in keep}


@pytest.fixture(scope="module")
def strange():
    """A result of a claim, all of whose texts are strange."""
    made = result({EVERYTHING: 2, "x": 3}, outputs=(EVERYTHING, "plain"), shift=1.0)
    about = dict(claim=EVERYTHING, equation=EVERYTHING, source=EVERYTHING, method=EVERYTHING, versions=EVERYTHING)
    made = made.assign_attrs(**about, device=EVERYTHING, store=EVERYTHING, option_test=EVERYTHING)
    made[EVERYTHING].attrs["long_name"] = EVERYTHING
    made["x"].attrs["long_name"] = f"{EVERYTHING} mu_b"
    return made


@pytest.fixture(scope="module")
def strange_scan(tmp_path_factory):
    """A scan of layers with strange names, of which one is skipped."""
    folder = tmp_path_factory.mktemp("strange")
    base = {f"{EVERYTHING}.{i}.weight": matrix(24, 20, i) for i in range(2)} | {
        f"plain.{EVERYTHING}.weight": matrix(9, 9)
    }
    tuned = dict(base)
    tuned[f"{EVERYTHING}.0.weight"] = planted(base[f"{EVERYTHING}.0.weight"], 40.0)
    tuned[f"plain.{EVERYTHING}.weight"] = matrix(9, 9, 1) * np.nan
    found = scan(write(folder / "base", base), write(folder / "tuned", tuned))
    return dataclasses.replace(found, remarks=(*found.remarks, f"a remark about {EVERYTHING}"))


def printed(*renderables):
    stream = io.StringIO()
    console = Console(file=stream, width=4000)
    for one in renderables:
        console.print(one)
    return stream.getvalue()


def table_of_anything():
    made = Table()
    made.add_column(EVERYTHING)
    made.add_row(EVERYTHING)
    return made


def progress_bar(capsys, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "4000"}.items():
        monkeypatch.setenv(name, value)
    with Reporter(2, EVERYTHING, progress=True) as bar:
        bar.note(EVERYTHING)
        bar.advance(1)
        bar._bar.refresh()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", capsys.readouterr().err)  # what moves and colours the bar itself


def log_line(capsys):
    say(f"error: {EVERYTHING}")
    return capsys.readouterr().err


LINES = {
    "error": lambda: str(InputError(f"{EVERYTHING} is wrong")),
    "shown": lambda: str(InputError(f"name = {shown(EVERYTHING, 10**6)}: is wrong")),
    "unknown": lambda: str(unknown("layer", "x", [EVERYTHING])),
    "host": lambda: str(HostError(EVERYTHING)),
    "markdown": lambda: markdown_text(EVERYTHING),
}


@pytest.mark.parametrize("way", LINES)
def test_what_is_said_in_a_line_stays_one(way):
    line = LINES[way]()
    assert not controls(line, keep="")
    assert way == "shown" or all(escape in line for escape in ESCAPES)


WAYS = {
    "string": lambda **_: printed(EVERYTHING.replace("\r\n", "")),
    "table": lambda **_: printed(table_of_anything()),
    "verdict": lambda strange, **_: printed(verdict_report.table(judge([strange])), verdict_report.summary(judge([strange]))),
    "sweep": lambda strange, **_: printed(sweep_report.table(
        [{EVERYTHING: i, "trials": 1, "outputs": {EVERYTHING: dict(mean=0.0, se=1.0, law=0.0, z=0.0)}} for i in range(2)]
    )),
    "layers": lambda scan, **_: printed(intruders_report.table(scan)),
    "remarks": lambda scan, **_: printed(intruders_report.summary(scan), *intruders_report.doubts(scan)),
    "Markdown table": lambda **_: markdown_table([EVERYTHING], [[EVERYTHING]]),
    "page": lambda strange, **_: page(judge([strange]), title=EVERYTHING),
    "CSV": lambda strange, **_: csv_of(strange),
    "progress bar": lambda capsys, monkeypatch, **_: progress_bar(capsys, monkeypatch),
    "log line": lambda capsys, **_: log_line(capsys),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_strange_names_control_nobody(way, strange, strange_scan, capsys, monkeypatch):
    text = WAYS[way](strange=strange, scan=strange_scan, capsys=capsys, monkeypatch=monkeypatch)
    assert not controls(text, keep="\n\t" if way == "page" else "\n")
    for escape in ESCAPES:
        assert escape in text or (escape == r"\r\n" and way == "string"), escape
    if way not in ("page", "CSV", "Markdown table"):  # as it stands, no markup understood, nothing lost
        assert NASTY["rich"] in text and NASTY["mathematics"] in text


def test_a_text_of_rich_controls_nobody():
    assert not controls(printed(Text(EVERYTHING), Text.assemble((EVERYTHING, "bold"))))


def test_a_cell_of_a_table_stays_on_its_line():
    made = Table()
    made.add_column("name")
    made.add_row(EVERYTHING)
    assert printed(made).count("\n") == 5  # with the frame and the heading


def test_json_carries_the_true_name_in_characters_that_print(tmp_path, capsys):
    content = {EVERYTHING: [EVERYTHING, "μ 𝜶 é\xa0", "\udc80", "\U000e0001"]}
    write_json(tmp_path / "a.json", content)
    write_json("-", content)
    for text in ((tmp_path / "a.json").read_text(encoding="utf-8"), capsys.readouterr().out):
        assert not controls(text)
        assert json.loads(text) == content
        assert "μ 𝜶 é\xa0" in text
        assert ascii_json(text).isascii() and json.loads(ascii_json(text)) == content
    assert visible_json('{"a": "μ"}\n') == '{"a": "μ"}\n'


def test_a_scan_of_strange_names_keeps_them(strange_scan, tmp_path):
    """Figures are drawn, though the names are no mathematics; the file has the names as they are."""
    written = intruders_report.write_report(strange_scan, tmp_path)
    assert {path.name for path in written} == {"intruders.json", "cosines.png", "similarity.png", "outliers.png"}
    layers = json.loads((tmp_path / "intruders.json").read_text(encoding="utf-8"))["layers"]
    assert {layer["name"] for layer in layers} >= {f"{EVERYTHING}.{i}.weight" for i in range(2)}


@pytest.mark.first(2)
@pytest.mark.parametrize("kind", NASTY)
def test_figures_of_strange_names(kind, tmp_path):
    name = NASTY[kind]
    made = result({name: 2, "x": 3}, outputs=(name, "plain")).assign_attrs(claim=name, source=name)
    made[name].attrs["long_name"] = made["x"].attrs["long_name"] = name
    assert save(law_against_monte_carlo(made), tmp_path / "figure.png").exists()


@pytest.mark.parametrize("kind", [*NASTY, "everything"])
def test_a_page_of_strange_names_is_a_page(kind):
    """Names, equations, sources, meanings, labels and attributes with markup are text: what is there was put there by us."""
    name = NASTY.get(kind, EVERYTHING)
    made = result({name: 2, "x": 3}, outputs=(name, "plain"), shift=1.0)
    about = dict(claim=name, equation=name, source=name, method=name, versions=name, device=name, store=name)
    made = made.assign_attrs(**about, option_test=name)
    made[name].attrs["long_name"] = made["x"].attrs["long_name"] = name
    html = page(judge([made]), title=name)
    found = check(html)
    assert not controls(html, keep="\n\t")
    ours = check(page(judge([result({"a": 2, "x": 3}, outputs=("b", "plain"), shift=1.0)])))
    kinds = {e["tag"] for e in found.elements} - {e["tag"] for e in ours.elements}
    assert kinds <= {"mtext", "ms", "mspace", "mover", "munder", "mfrac", "msub", "msup", "mstyle"}
    assert found.all("title")[0]["text"] == visible(name)
    assert found.all("h1")[0]["text"] == visible(name)
    articles = found.all("article", class_="claim")
    assert visible(name) in articles[0]["text"]
    for drawing in re.findall(r"<svg .*?</svg>", html, re.S):
        ET.fromstring(drawing)


def test_a_verdict_with_strange_names_is_written(tmp_path):
    import jax

    claim = Claim(
        name=EVERYTHING, equation=EVERYTHING, source=EVERYTHING, params={"x": real()}, law=lambda x: {EVERYTHING: x},
        samplers={EVERYTHING: lambda key, x: {EVERYTHING: x + jax.random.normal(key)}}, grid={"x": [0.0, 1.0]},
    )  # fmt: skip
    verdict = verify([claim], trials=50, progress=False)
    written = write_report(verdict, [claim], tmp_path)
    assert {path.suffix for path in written} == {".html", ".md", ".json", ".png"}
    for path in tmp_path.glob("*.[hmj]*"):
        assert not controls(path.read_text(encoding="utf-8"), keep="\n\t"), path.name
    assert "<script" not in (tmp_path / "verdict.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))["findings"][0]["claim"] == EVERYTHING


@pytest.mark.parametrize("out", ["out", None])
def test_a_checkpoint_of_a_stranger(command, tmp_path, monkeypatch, out):
    """The whole way: what a file names reaches the terminal as text, and other tools as it is."""
    monkeypatch.chdir(tmp_path)
    names = [f"{EVERYTHING}.{i}.weight" for i in range(2)]
    base = {name: matrix(24, 20, i) for i, name in enumerate(names)}
    write("base", base)
    write("tuned", base | {names[0]: planted(base[names[0]], 40.0)})
    write("other", {EVERYTHING: matrix(5, 5)})
    status, text, errors = command("intruders", "base", "tuned", "--json", "found.json")
    assert status == 0 and not controls(text + errors)
    layers = json.loads(Path("found.json").read_text(encoding="utf-8"))["layers"]
    assert {layer["name"] for layer in layers} == set(names)
    status, text, errors = command("intruders", "base", "other")
    assert status == 2 and not controls(text + errors) and errors.count("\n") == 1
    status, text, errors = command("intruders", "mitigate", "base", "tuned", "--out", "mended")
    assert status == 0 and not controls(text + errors)
    status, text, _ = command("intruders", "base", "mended", "--json", "-")
    assert {layer["name"] for layer in json.loads(text)["layers"]} == set(names)


def test_every_table_and_console_is_ours():
    """All output of rmtjax goes through `rmtjax._console`, so that no caller can forget it."""
    package = Path(text_module.__file__).parent
    for file in package.rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        if file.name != "_console.py":
            assert not re.search(r"from rich\.(table|console) import|import rich", source), file
        if file.name != "_text.py":
            calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
            assert not any(isinstance(called, ast.Name) and called.id == "print" for called in calls), file


def test_streams_that_are_chosen_stay(monkeypatch):
    """A handler that the user names, as in PYTHONIOENCODING=ascii:replace, is not changed."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_streams()
    print("α")
    stream.flush()
    assert stream.buffer.getvalue() == b"?\n"
