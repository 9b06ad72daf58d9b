"""Runs that several processes share, on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax._startup import join_hosts
from rmtjax.montecarlo import open_result

CLAIM = """
import jax, jax.numpy as jnp
from rmtjax import Claim, Sampler, positive, real
mean = Claim(
    name="mean", equation="E x = \\\\mu", source="any textbook", params=dict(n=positive(), mu=real()),
    law=lambda n, mu: mu + 0 * n,
    samplers=dict(direct=Sampler(lambda key, n, mu: mu + jax.random.normal(key) / jnp.sqrt(n), block=64)),
    grid=dict(n=[0.1, 1, 100], mu=[1.0, 2.0]),
)
"""
COMMAND = """
import functools, sys
from rmtjax import montecarlo
if {slow}:
    limits = montecarlo.Limits(chunks=100_000, short=100_000, tiles_per_call=1)
    montecarlo.run = functools.partial(montecarlo.run, limits=limits)
from rmtjax.cli import main
main()
"""
LIMIT_S = 120


@pytest.fixture
def start(tmp_path):
    """Start `rmtjax sweep`, or another command, as one of several processes (or alone).

    Each has a folder with the claim to itself, as on hosts that share no files; that of the first is the test's.
    """
    started = []

    def call(*arguments, of=1, which=0, port=0, slow=False, command="sweep", environment=None):
        folder = tmp_path / f"host {which}" if which else tmp_path
        folder.mkdir(exist_ok=True)
        (folder / "claim.py").write_text(CLAIM)
        hosts = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", of, "--process-id", which] if of > 1 else []
        hosts = ["--coordinator", "auto"] if environment else hosts
        line = [sys.executable, "-c", COMMAND.format(slow=slow), command, "claim.py", *arguments, *hosts]
        pipe, variables = subprocess.PIPE, {**os.environ, **(environment or {})}
        process = subprocess.Popen(list(map(str, line)), cwd=folder, stdout=pipe, stderr=pipe, text=True, env=variables)
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _files(store):
    return {
        str(f.relative_to(store)): f.read_bytes()
        for f in sorted(store.rglob("*"))
        if f.is_file() and "provenance" not in f.parts and not f.name.endswith(".partial")
    }


def _together(start, port, count, *arguments, **options):
    crew = [start(*arguments, of=count, which=i, port=port, **options) for i in range(count)]
    said = [process.communicate(timeout=LIMIT_S) for process in crew]
    return [process.returncode for process in crew], [out for out, _ in said], [err for _, err in said]


@pytest.mark.thorough
def test_three_processes_make_what_one_makes(start, port, tmp_path):
    asked = "--set", "n=1:40:40", "--trials", 3000, "--out"
    alone = start(*asked, "one.zarr", "--json", "-")
    wanted, _ = alone.communicate(timeout=LIMIT_S)
    status, out, err = _together(start, port, 3, *asked, "three.zarr", "--json", "-")
    assert status == [0, 0, 0], err
    assert json.loads(out[0])["cells"] == json.loads(wanted)["cells"]
    assert out[1] == out[2] == ""
    assert _files(tmp_path / "three.zarr") == _files(tmp_path / "one.zarr")
    assert open_result(tmp_path / "three.zarr").attrs["processes"] == 3
    for other in (1, 2):
        assert [f.name for f in (tmp_path / f"host {other}").iterdir()] == ["claim.py"]


def _slurm(which, job):
    return {
        "SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost,other", "SLURM_NTASKS": 2, "SLURM_PROCID": which,
        "SLURM_LOCALID": which,
    }  # fmt: skip


def _open_mpi(which, job):
    return {
        "OMPI_MCA_orte_hnp_uri": f"{job << 12}.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": 2,
        "OMPI_COMM_WORLD_RANK": which, "OMPI_COMM_WORLD_LOCAL_RANK": which,
    }  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("cluster", [_slurm, _open_mpi])
def test_what_a_cluster_says_of_itself(start, cluster):
    """JAX makes the port of the job's number. The variables are those that `srun` and `mpirun` set."""
    crew, job = [], 4096 + os.getpid() % 4000
    for which in (0, 1):
        said = {name: str(value) for name, value in cluster(which, job).items()}
        crew.append(start("--trials", 1000, "--json", "-", which=which, environment=said))
    (printed, err), (nothing, others) = (process.communicate(timeout=LIMIT_S) for process in crew)
    assert [process.returncode for process in crew] == [0, 0], err + others
    assert json.loads(printed)["processes"] == 2 and nothing == ""


@pytest.mark.thorough
def test_a_verdict_is_the_same_on_two(start, port):
    asked = "--trials", 5000, "--json", "-"
    alone = json.loads(start(*asked, command="verify").communicate(timeout=LIMIT_S)[0])
    status, out, err = _together(start, port, 2, *asked, command="verify")
    assert status == [0, 0], err
    assert json.loads(out[0])["findings"] == alone["findings"] and alone["holds"]
    assert out[1] == ""


@pytest.mark.thorough
def test_rounds_of_a_standard_error(start, port, tmp_path):
    """Kept in memory alone; and a store whose first round is there already, though only the first process sees it."""
    asked = "--until-se", 0.02, "--json"
    wanted = json.loads(start(*asked, "-", "--out", "one.zarr").communicate(timeout=LIMIT_S)[0])
    assert len({row["trials"] for row in wanted["cells"]}) > 2
    status, out, err = _together(start, port, 2, *asked, "-")
    assert status == [0, 0], err
    assert json.loads(out[0])["cells"] == wanted["cells"]

    whole = _files(tmp_path / "one.zarr")
    later = sorted((tmp_path / "one.zarr/tiles/count").glob("c.*"), key=lambda f: int(f.name.split(".")[1]))[2:]
    assert later
    for file in later:
        file.unlink()
    status, out, err = _together(start, port + 1, 2, *asked, "-", "--out", "one.zarr")
    assert status == [0, 0], err
    assert json.loads(out[0])["cells"] == wanted["cells"]
    assert _files(tmp_path / "one.zarr") == whole


@pytest.mark.kills
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_the_others_and_a_rerun_goes_on(start, port, tmp_path, victim):
    asked = "--set", "n=1:60:60", "--trials", 640, "--out"
    crew = [start(*asked, "s.zarr", of=2, which=i, port=port, slow=True) for i in range(2)]
    chunks = tmp_path / "s.zarr/tiles/count"
    for _ in range(20 * LIMIT_S):
        if chunks.is_dir() and len(list(chunks.iterdir())) > 80:
            break
        time.sleep(0.05)
    os.kill(crew[victim].pid, signal.SIGKILL)
    began = time.monotonic()
    _, err = crew[1 - victim].communicate(timeout=60)
    assert time.monotonic() - began < 45
    assert crew[1 - victim].returncode != 0
    if victim:
        assert "error: another process of this run has ended or cannot be reached" in err
        assert "Traceback" not in err
    else:  # without the first process, where all meet, JAX ends a process by itself, sometimes before it can speak
        assert "has ended or cannot be reached" in err or "coordination service" in err.lower(), err
    stored = sum(f.name.startswith("c.") and not f.name.endswith(".partial") for f in chunks.iterdir())
    assert 60 < stored < 1100, "the kill came too late; the test proves nothing"
    assert np.nansum(open_result(tmp_path / "s.zarr")["trials"]) == 64 * stored

    status, _, err = _together(start, port + 1, 2, *asked, "s.zarr", slow=True)
    assert status == [0, 0], err
    assert start(*asked, "one.zarr", slow=True).wait(LIMIT_S) == 0
    assert _files(tmp_path / "s.zarr") == _files(tmp_path / "one.zarr")


def test_what_one_cannot_do_none_does(start, port, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.tex").write_text("mine")
    status, _, err = _together(start, port, 2, "--out", "notes")
    assert status == [2, 2]
    assert "is not a run of rmtjax" in err[0]
    assert "process 0 could not start" in err[1]
    assert [f.name for f in (tmp_path / "notes").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None, 2, None), "num-processes = 2: needs --coordinator HOST:PORT"),
        ((None, None, 0), "process-id = 0: needs --coordinator"),
        (("here", 2, 0), "coordinator = 'here': must be HOST:PORT, or auto"),
        (("here:much", 2, 0), "coordinator = 'here:much'"),
        (("here:70000", 2, 0), "coordinator = 'here:70000'"),
        (("here:7000", None, 0), "num-processes is missing"),
        (("here:7000", 2, None), "process-id is missing"),
        (("here:7000", 0, 0), "num-processes = 0: must be at least 1"),
        (("here:7000", 2, 2), "process-id = 2: must be from 0 to 1"),
        (("here:7000", 2, -1), "process-id = -1: must be from 0 to 1"),
    ],
)
def test_arguments_that_do_not_fit_together(arguments, says):
    with pytest.raises(InputError, match=says):
        join_hosts(*arguments)


def test_where_nothing_is_found():
    """Nothing here looks like a cluster."""
    code = "from rmtjax._startup import join_hosts\njoin_hosts('auto', None, None)"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "KUBERNETES"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, env=clean)
    assert "InputError: coordinator = auto:" in done.stderr
