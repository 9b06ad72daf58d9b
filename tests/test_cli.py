"""The command line as a user meets it: what it prints, what it leaves, how it ends."""

import json
import os
import re
import subprocess
import sys

import pytest

LAW = """
import jax, jax.numpy as jnp
from rmtjax import Claim, positive, size

mean = Claim(
    name="mean", equation=r"E\\bar x = \\mu", source="mine",
    params=dict(n=size(), mu=positive()),
    law=lambda n, mu: {shift} + mu + 0 * n,
    samplers=dict(direct=lambda key, n, mu: mu + jax.random.normal(key) / jnp.sqrt(n)),
    grid=dict(n=[1, 100], mu=[1.0, 2.0]),
)
"""


@pytest.fixture
def run(command):
    """The command line."""
    return command


@pytest.fixture
def law(tmp_path):
    """A user's file with a claim that is off by `shift`."""

    def write(shift=0.0, name="mylaw.py"):
        path = tmp_path / name
        path.write_text(LAW.replace("{shift}", str(shift)))
        return path

    return write


def test_help_needs_no_jax():
    code = "import sys; sys.argv = ['rmtjax', '--help']\nfrom rmtjax.cli import main\n"
    code += "try: main()\nexcept SystemExit: assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.thorough
@pytest.mark.parametrize("chosen", [True, False])
def test_compiled_programs_are_kept_for_the_next_command(law, tmp_path, chosen):
    """In the user's cache folder, or where JAX was told to keep them; and they give the same numbers again."""
    elsewhere = tmp_path / "elsewhere"
    environment = {
        **{k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **({"JAX_COMPILATION_CACHE_DIR": str(elsewhere)} if chosen else {}),
    }
    code = "from rmtjax.cli import main; main()"
    command = [sys.executable, "-c", code, "sweep", law(), "--trials", "50", "--json", "-"]
    once, again = (
        json.loads(subprocess.run(command, env=environment, timeout=100, check=True, capture_output=True).stdout)
        for _ in range(2)
    )
    assert once["cells"] == again["cells"]
    kept = elsewhere if chosen else tmp_path / "cache"
    assert any(path.name.startswith("jit_tiles") for path in kept.rglob("*-cache"))
    assert chosen == elsewhere.exists()


def test_claims_lists_every_claim(run):
    from rmtjax import CLAIMS

    status, out, _ = run("claims")
    assert status == 0
    for claim in CLAIMS.values():
        assert claim.name in out
        assert claim.source in out
        assert all(sampler in out for sampler in claim.samplers)
    assert "acc(α) = Φ((m₀ + α m₁)/√(v₀ + 2α v₁ + α² v₂))" in out


def test_a_users_law_that_holds(run, law, tmp_path):
    status, out, _ = run("verify", law(), "--trials", 2000, "--json", tmp_path / "v.json", "--out", tmp_path / "report")
    assert status == 0
    assert "1 of 1 claims hold" in out
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["holds"] is True
    assert found["findings"][0]["claim"] == "mean"
    names = {"report.html", "verdict.md", "verdict.json", "mean.png"}
    assert {f.name for f in (tmp_path / "report").iterdir()} == names
    assert "| mean |" in (tmp_path / "report/verdict.md").read_text()


def test_a_users_law_that_fails(run, law):
    status, out, _ = run("verify", law(0.1), "--trials", 2000)
    assert status == 1
    assert "REFUTED" in out
    assert "mean is refuted (direct / law): at n = 100, mu = " in out


def test_sweep_writes_what_scripts_rely_on(run, law, tmp_path):
    status, out, _ = run(
        "sweep", law(), "--set", "n=4", "--set", "mu=1:3:5", "--trials", 500, "--seed", 3, "--json", tmp_path / "s.json",
        "--out", tmp_path / "s.zarr",
    )  # fmt: skip
    assert status == 0
    assert "5 cells × 500 trials" in out
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["claim"] == "mean"
    assert found["wall_s"] > 0
    assert "compile_s" in found
    assert [cell["mu"] for cell in found["cells"]] == [1, 1.5, 2, 2.5, 3]
    for cell in found["cells"]:
        assert set(cell) == {"n", "mu", "trials", "mean", "se", "law", "z"}
        assert cell["z"] == pytest.approx((cell["mean"] - cell["law"]) / cell["se"], abs=1e-9)
    again, _, _ = run(
        "sweep", law(), "--set", "n=4", "--set", "mu=1:3:5", "--trials", 500, "--seed", 3, "--json", "-",
        "--out", tmp_path / "s.zarr",
    )  # fmt: skip
    assert again == 0


def test_sweep_to_standard_output_is_json_alone(run, law):
    status, out, _ = run("sweep", law(), "--trials", 100, "--json", "-")
    assert status == 0
    assert len(json.loads(out)["cells"]) == 4


@pytest.mark.thorough
def test_alpha_ftc_by_its_names(run, tmp_path):
    sets = ["p=1e6", "n=5e5", "N=2e6", "beta=0.8", "mu=1", "mu_perp=0.6", "gamma=1", "gamma_source=1", "alpha=-3:6:4"]
    status, _, _ = run(
        "sweep", "alpha-ftc", *(a for s in sets for a in ("--set", s)), "--trials", 2000, "--json", tmp_path / "a.json"
    )
    assert status == 0
    cells = json.loads((tmp_path / "a.json").read_text())["cells"]
    assert [c["alpha"] for c in cells] == [-3, 0, 3, 6]
    assert all(abs(c["z"]) < 4.5 for c in cells)


@pytest.mark.thorough
def test_entries_choose_the_sampler_that_has_them(run, tmp_path):
    sets = ["p=20", "n=10", "N=40", "alpha=0,1"]
    arguments = [*(a for s in sets for a in ("--set", s)), "--trials", "64", "--json", tmp_path / "d.json"]
    status, _, _ = run("sweep", "alpha-ftc", *arguments, "--entries", "rademacher")
    assert status == 0
    made = json.loads((tmp_path / "d.json").read_text())
    assert made["method"] == "dense"
    assert made["option_entries"] == "rademacher"


SWEEP = ("sweep", "alpha-ftc")
SMALL = ("--set", "p=20", "--set", "n=10", "--set", "N=40", "--trials", "4")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("verify", "alpha-ftx"), "claim 'alpha-ftx' is unknown; did you mean 'alpha-ftc'?"),
        (("verify", "nowhere.py"), "claims file nowhere.py does not exist"),
        (("verify", "--level", "2"), "level = 2.0: must be a finite number in (0, 1)"),
        (("verify", "--trials", "0"), "trials = 0: must be a whole number from 2 to 4294967296"),
        (("verify", "--seed", "-1"), "seed = -1: must be a whole number from 0 to 4294967295"),
        (("sweep", "alfa-ftc"), "claim 'alfa-ftc' is unknown; did you mean 'alpha-ftc'?"),
        ((*SWEEP, "--set", "gama=1"), "parameter 'gama' is unknown; did you mean 'gamma'?"),
        ((*SWEEP, "--set", "gamma"), "set = 'gamma': must be NAME=VALUE"),
        ((*SWEEP, "--set", "gamma="), "set = 'gamma=': must be NAME=VALUE"),
        ((*SWEEP, "--set", "gamma=1", "--set", "gamma=2"), "gamma is given twice"),
        ((*SWEEP, "--set", "gamma=one"), "gamma = 'one': must be a number, a,b,c or start:stop:count"),
        ((*SWEEP, "--set", "alpha=0:1:0"), "alpha = '0:1:0': the count must be at least 1"),
        ((*SWEEP, "--set", "p=0"), "p = 0: must be a whole number ≥ 1"),
        ((*SWEEP, "--set", "p=-5"), "p = -5: must be a whole number ≥ 1"),
        ((*SWEEP, "--set", "p=2.5"), "p = 2.5: must be a whole number ≥ 1"),
        ((*SWEEP, "--set", "n=0"), "n = 0: must be a whole number ≥ 1"),
        ((*SWEEP, "--set", "N=0"), "N = 0: must be a whole number ≥ 1"),
        ((*SWEEP, "--set", "mu=0"), "mu = 0: must be a finite number > 0"),
        ((*SWEEP, "--set", "mu=-1"), "mu = -1: must be a finite number > 0"),
        ((*SWEEP, "--set", "mu_perp=-1"), "mu_perp = -1: must be a finite number ≥ 0"),
        ((*SWEEP, "--set", "mu_perp=0", "--set", "beta=0"), "one must differ from 0"),
        ((*SWEEP, "--set", "p=1"), "mu_perp = 0.6: must be 0 for p = 1"),
        ((*SWEEP, "--set", "gamma=0"), "gamma = 0: must be a finite number > 0"),
        ((*SWEEP, "--set", "gamma=-1"), "gamma = -1: must be a finite number > 0"),
        ((*SWEEP, "--set", "gamma_source=0"), "gamma_source = 0: must be a finite number > 0"),
        ((*SWEEP, "--set", "beta=nan"), "beta = nan: must be a finite number"),
        ((*SWEEP, "--set", "alpha=inf"), "alpha = inf: must be a finite number"),
        ((*SWEEP, "--set", "alpha=1,nan"), "alpha = nan: must be a finite number"),
        (("sweep", "alpha-star", "--set", "beta=1.5"), "beta = 1.5: must be within ±mu_beta/mu = ±1"),
        (("sweep", "alpha-star", "--set", "beta=-1.5"), "beta = -1.5: must be within ±mu_beta/mu = ±1"),
        (("sweep", "alpha-ftc-arbitrary", "--set", "cosine=1.5"), "cosine = 1.5: must be a finite number in [-1, 1]"),
        (("sweep", "alpha-ftc-sources", "--set", "p=3"), "p = 3: must be a whole number ≥ 4"),
        (("sweep", "bbp-wigner", "--set", "theta=0"), "theta = 0: must be a finite number > 0"),
        (("sweep", "bbp-rectangular", "--set", "c=0"), "c = 0: must be a finite number > 0"),
        (("sweep", "bbp-rectangular", "--set", "c=inf"), "c = inf: must be a finite number > 0"),
        (("sweep", "bbp-rectangular", "--set", "c=0.3", "--set", "N=3"), "c·N must be a whole number ≥ 1"),
        (("sweep", "bbp-covariance", "--set", "theta=-1"), "theta = -1: must be a finite number > 0"),
        (("sweep", "bbp-wigner-fluctuation", "--set", "theta=1"), "theta = 1: must be above the threshold 1"),
        (("sweep", "bbp-wigner-fluctuation", "--set", "beta=0"), "beta = 0: must be a finite number > 0"),
        (("sweep", "tracy-widom", "--set", "beta=3"), "beta = 3: must be 1, 2 or 4"),
        (("sweep", "marchenko-pastur", "--set", "c=nan"), "c = nan: must be a finite number > 0"),
        (("sweep", "bbp-rank-two", "--set", "cosine=1"), "cosine = 1: must be a finite number in (-1, 1)"),
        (("sweep", "intruder", "--set", "eps=1"), "eps = 1: must be a finite number in (0, 1)"),
        (("sweep", "intruder", "--set", "N=8"), "N = 8: must be a whole number ≥ 32"),
        (("sweep", "heavy-tails", "--set", "nu=2"), "nu = 2: must be a finite number in (2, 4)"),
        ((*SWEEP, "--trials", "1"), "trials = 1: must be a whole number from 2 to 4294967296"),
        ((*SWEEP, "--seed", "4294967296"), "seed = 4294967296: must be a whole number from 0 to 4294967295"),
        ((*SWEEP, "--sampler", "compresed"), "sampler 'compresed' is unknown; did you mean 'compressed'?"),
        ((*SWEEP, *SMALL, "--entries", "gausian"), "entries 'gausian' is unknown; did you mean 'gaussian'?"),
        ((*SWEEP, *SMALL, "--entries", "student-t:2"), "entries = 'student-t:2': must be student-t:number"),
        ((*SWEEP, *SMALL, "--entries", "sparse:0"), "entries = 'sparse:0': must be sparse:number"),
        (
            (*SWEEP, "--sampler", "compressed", "--entries", "uniform"),
            "entries = 'uniform': this sampler has no such option",
        ),
        ((*SWEEP, *SMALL, "--option", "test=none"), "test = 'none': must be 'exact' or the number of test points"),
        ((*SWEEP, *SMALL, "--option", "tets=3"), "tets = '3': this sampler has no such option"),
        (
            (*SWEEP, "--sampler", "dense", "--set", "p=1e6", "--set", "n=5e5", "--set", "N=2e6"),
            "memory: 'alpha-ftc' at p = 1e+06, n = 500000, N = 2e+06 needs",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, arguments, says):
    status, out, err = run(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert out == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "defines no claim"),
        ("import nosuchmodule\n", "line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("x = 1\ny = (\n", "SyntaxError"),
        ("x = 1\n\n1/0\n", "line 3: ZeroDivisionError"),
        (LAW.replace("{shift}", "0").replace("mu=[1.0, 2.0]", "mu=[0.0]"), "mu = 0: must be a finite number > 0"),
    ],
)
def test_files_that_define_no_claim(run, tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    status, _, err = run("verify", path)
    assert status == 2
    assert says in err
    assert err.count("\n") == 1


def test_what_was_there_stays(run, law, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.tex").write_text("mine")
    status, _, err = run("sweep", law(), "--trials", 10, "--out", tmp_path / "notes")
    assert status == 2
    assert "is not a run of rmtjax" in err
    assert [f.name for f in (tmp_path / "notes").iterdir()] == ["thesis.tex"]
    store = tmp_path / "s.zarr"
    assert run("sweep", law(), "--trials", 10, "--out", store)[0] == 0
    before = {f: f.read_bytes() for f in store.rglob("*") if f.is_file()}
    status, _, err = run("sweep", law(), "--trials", 10, "--seed", 1, "--out", store)
    assert status == 2
    assert "holds a different run: its seed is 0, here it is 1" in err
    assert {f: f.read_bytes() for f in store.rglob("*") if f.is_file()} == before


def test_results_that_cannot_be_written_are_known_before_the_run(run, law, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = run("sweep", law(), "--json", tmp_path / "file" / "x.json")
    assert status == 2
    assert "json = " in err
    status, _, err = run("verify", law(), "--out", tmp_path / "file")
    assert status == 2
    assert "out = " in err
    status, _, err = run("sweep", law(), "--json", tmp_path)
    assert status == 2
    assert "is a folder" in err


def test_a_full_disk_is_one_line_and_the_store_stays_good(run, law, tmp_path, monkeypatch):
    import errno

    from rmtjax.montecarlo.store import Store

    write, left = Store.write, [2]

    def full(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments)

    monkeypatch.setattr(Store, "write", full)
    asked = "sweep", law(), "--set", "n=1:600:600", "--trials", 3000, "--out", tmp_path / "a.zarr", "--json"
    status, out, err = run(*asked, tmp_path / "none.json")
    assert status == 1
    assert err == "error: [Errno 28] No space left on device\n"
    assert not out
    monkeypatch.setattr(Store, "write", write)
    assert run(*asked, tmp_path / "a.json")[0] == 0
    assert run(*asked[:-3], "--json", tmp_path / "b.json")[0] == 0
    ours, undisturbed = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert ours["cells"] == undisturbed["cells"]


def test_ctrl_c_says_what_is_done_and_how_it_goes_on(run, law, tmp_path, monkeypatch):
    from rmtjax.montecarlo.store import Store

    write, left = Store.write, [2]

    def interrupted(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(self, *arguments)

    monkeypatch.setattr(Store, "write", interrupted)
    asked = "sweep", law(), "--set", "n=1:600:600", "--trials", 3000, "--out", tmp_path / "a.zarr"
    status, out, err = run(*asked)
    assert (status, out) == (130, "")
    done = re.fullmatch(r"stopped: ([\d,]+) of 3,600,000 trials are in (.*); run it again to resume\n", err)
    assert done and done[2] == str(tmp_path / "a.zarr") and 0 < int(done[1].replace(",", "")) < 3_600_000
    monkeypatch.setattr(Store, "write", write)
    assert run(*asked)[0] == 0


def test_ctrl_c_while_compiling(run, law, tmp_path, monkeypatch):
    """Says as much of what was drawn before."""
    from rmtjax.montecarlo.programs import Programs
    from rmtjax.montecarlo.store import Store

    def interrupted(*_):
        raise KeyboardInterrupt

    write, compiled, left = Store.write, Programs.compile, [3]

    def some(self, *arguments):
        left[0] -= 1
        (write if left[0] else interrupted)(self, *arguments)

    asked = "sweep", law(), "--set", "n=1:600:600", "--trials", 3000, "--out", tmp_path / "a.zarr"
    monkeypatch.setattr(Programs, "compile", interrupted)
    assert run(*asked) == (130, "", "stopped before anything was drawn\n") and not (tmp_path / "a.zarr").exists()
    monkeypatch.setattr(Programs, "compile", compiled)
    monkeypatch.setattr(Store, "write", some)
    before = run(*asked)
    monkeypatch.setattr(Programs, "compile", interrupted)
    assert before[0] == 130 and "trials are in" in before[2] and run(*asked) == before


def test_a_plan_leaves_nothing_behind(run, law, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new", "deep/new"):
        status, out, _ = run("sweep", law(), "--trials", 100, "--dry-run", "--out", tmp_path / place)
        assert status == 0 and "cells" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "mylaw.py"]
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "error: out of memory\n"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n\ttrace"),
         "error: out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n"),
    ],
)  # fmt: skip
def test_memory_that_runs_out_is_one_line(run, law, monkeypatch, error, says):
    from rmtjax.montecarlo.programs import Programs

    def full(*_):
        raise error

    monkeypatch.setattr(Programs, "compute", full)
    assert run("sweep", law(), "--trials", 100) == (1, "", says)


def test_a_sweep_until_a_standard_error(run, law, tmp_path):
    status, out, _ = run("sweep", law(), "--until-se", 0.02, "--json", tmp_path / "s.json")
    assert status == 0 and "4 cells × 1,024 to " in out
    rows = json.loads((tmp_path / "s.json").read_text())["cells"]
    assert all(row["se"] <= 0.02 for row in rows)
    assert {row["n"]: row["trials"] for row in rows}[100] == 1024 < {row["n"]: row["trials"] for row in rows}[1]
    assert "ended at --trials" not in out
    for asked in (0.02, "value=0.02"):
        status, out, _ = run("sweep", law(), "--until-se", asked, "--trials", 1024)
        found = re.search(
            r"\n(\w+): (\d) of 4 cells ended at --trials before their standard error was 0.02; the largest is (.*)\n",
            out,
        )
        assert status == 0 and 1 <= int(found[2]) < 4 and 0.02 < float(found[3]) < 0.1
    for text, says in (
        ("much", "until-se = 'much': must be a number > 0"),
        ("-1", "until_se = -1"),
        ("x=1", "output 'x'"),
    ):
        status, _, err = run("sweep", law(), "--until-se", text)
        assert status == 2 and says in err and err.count("\n") == 1


def test_a_dry_run_says_what_it_would_take(run, law, tmp_path):
    asked = "sweep", law(), "--trials", 5000, "--out", tmp_path / "s.zarr", "--dry-run"
    status, out, _ = run(*asked, "--json", tmp_path / "plan.json")
    assert (
        status == 0
        and "4 cells, 20,000 trials\n" in out
        and "1 program\n" in out
        and not (tmp_path / "s.zarr").exists()
    )
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["trials"] == 20_000 and found["done"] == 0 and found["seconds"] > 0
    assert run(*asked[:-1])[0] == 0
    status, out, _ = run(*asked)
    assert status == 0 and "20,000 trials, 20,000 of them stored already" in out


def test_runs_of_several_seeds_are_one(run, law, tmp_path):
    stores = [tmp_path / f"{seed}.zarr" for seed in (1, 2)]
    for seed, store in enumerate(stores, 1):
        assert run("sweep", law(), "--trials", 500 * seed, "--seed", seed, "--out", store)[0] == 0
    status, out, _ = run("merge", *stores, "--out", tmp_path / "both.zarr", "--json", tmp_path / "both.json")
    assert status == 0 and "seeds 1, 2" in out
    found = json.loads((tmp_path / "both.json").read_text())
    assert found["seeds"] == [1, 2] and all(row["trials"] == 1500 for row in found["cells"])
    status, _, err = run("merge", stores[0], stores[0], "--out", tmp_path / "again.zarr")
    assert status == 2 and "seed = 1 is in two results" in err and not (tmp_path / "again.zarr").exists()
    status, _, err = run("merge", *stores, "--out", tmp_path / "both.zarr")
    assert status == 2 and "already exists" in err
