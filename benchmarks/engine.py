"""The engine's overhead over the draws: `python -m benchmarks.engine [--quick] [PART …]`.

- the compressed sweep of `alpha-ftc` by one process that may use one core, and by two that share it, each on a core of its own;
- a sweep of a minute with and without a store;
- how soon a run on a store of 10⁵ chunks, of which one is missing, is ready to draw; and what reading them all takes at its end;
- how soon a sweep, and `rmtjax verify` of all claims, answer: the first start, with an empty cache of programs, and later ones;
- how soon a sweep is drawn on 1 to 64 devices, simulated on the processor, with an empty cache;
- the HTML page of all claims: its size and the time to write it, neither of which depends on the number of trials.

Compilation is apart everywhere but in those about starts and devices, whose subject it is. Where parts are named, the others
keep the results that they have.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks._common import alternate, ratio, save_part, summary
from rmtjax.claims import find_claims
from rmtjax.claims.alpha_lora.classifier import alpha_ftc
from rmtjax.montecarlo import Claim, Limits, Run, Sampler, grid, open_result, real, verify
from rmtjax.report.page import write_page

FIXED = dict(
    beta=[0.2, 0.5, 0.8, 1.0], mu=1.0, mu_perp=0.6, gamma=1.0, gamma_source=1.0, alpha=[-1.0, 0.0, 1.0, 2.0, 3.0]
)
CELLS = grid(p=[1e3, 1e6, 1e9], n=5e5, N=2e6, **FIXED)


def one(trials, core, address, count, index):
    """Run one process of the first benchmark: seconds of drawing, after compilation, to standard output."""
    os.sched_setaffinity(0, {core})
    if count > 1:
        jax.distributed.initialize(address, count, index)
    warm = Run(alpha_ftc, CELLS, trials=2048)
    warm.compile()
    warm.execute(False)
    planned = Run(alpha_ftc, CELLS, trials=trials)
    planned.compile()
    began = time.perf_counter()
    planned.execute(False)
    if index == 0:
        print(json.dumps(time.perf_counter() - began))


def together(trials, count):
    """Return the seconds that `count` processes take, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "benchmarks.engine", "--one", str(trials), address, str(count)]
    crew = [
        subprocess.Popen([*command, str(i), str(cores[i])], stdout=subprocess.PIPE, text=True) for i in range(count)
    ]
    said = [process.communicate()[0] for process in crew]
    if any(process.returncode for process in crew):
        sys.exit("a process failed")
    return json.loads(said[0].splitlines()[-1])


def storing(trials, repeats, folder):
    """Measure the same run with and without a store."""
    Run(alpha_ftc, CELLS, trials=trials).compile()
    drawn = {}

    def draw(store):
        planned = Run(alpha_ftc, CELLS, trials=trials, store=store)
        planned.compile()
        planned.execute(False)
        if store is not None:
            drawn["bytes"] = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
            shutil.rmtree(store)

    found = alternate(repeats, plain=lambda: draw(None), stored=lambda: draw(folder / "s"))
    return {**found, "over_plain": ratio(found["stored"], found["plain"]), **drawn, "trials_per_cell": trials}


MEAN = Claim(
    name="mean", equation="E x = 0", source="any textbook", params=dict(shift=real()), law=lambda shift: 0 * shift,
    samplers=dict(direct=Sampler(lambda key, shift: jax.random.normal(key) + 0 * shift, block=16)), grid=dict(shift=0.0),
)  # fmt: skip


def resuming(chunks, repeats, folder):
    """Measure resuming from a store of many chunks: links to the first one, since their content does not matter here."""
    trials, path = 16 * chunks, folder / "many"
    how = dict(trials=trials, store=path, limits=Limits(chunks=10**9, short=10**9))  # one chunk per tile
    begun = Run(MEAN, **how)
    begun.compile()
    begun.scheduler.run({0: begun.rounds.missing[0]}, begun.store.write, lambda _: None)
    begun.store.close()
    for name in ("count", "moments"):
        (first,) = (path / "tiles" / name).glob("c.0.*")
        source = first
        for i in range(1, chunks):
            target = first.with_name(first.name.replace("c.0.", f"c.{i}.", 1))
            if i % 50_000 == 0:  # file systems limit the links of a file
                source = Path(shutil.copy(source, target))
            elif i != chunks // 2 + 1:
                os.link(source, target)
    ready, compiled = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        planned = Run(MEAN, **how)
        ready.append(time.perf_counter() - began)
        planned.compile()
        compiled.append(time.perf_counter() - began)
        assert len(planned.rounds.missing) == 1
        planned.store.close()
    began = time.perf_counter()
    planned = Run(MEAN, **how)
    planned.compile()
    planned.execute(False)
    end = time.perf_counter() - began
    assert "unfinished" not in open_result(path).attrs
    return {"chunks": chunks, "ready": summary(ready), "ready_to_draw": summary(compiled), "to_the_end_s": end}


ALPHA_SWEEP = "sweep alpha-ftc --set p=1e9 --set n=5e8 --set N=2e9 --set beta=0.8 --set alpha=-3:6:41 --trials 10000"


def started(command, cache):
    """Return the seconds that a Python process takes, with a folder for compiled programs."""
    began = time.perf_counter()
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def starting(arguments, repeats, folder):
    """Measure the seconds from a command to its answer, first and later, beside those of importing JAX."""
    cache, command = folder / "cache", ["-m", "rmtjax", *arguments.split()]
    first = started(command, cache)
    times = alternate(
        repeats,
        again=lambda: started(command, cache),
        import_jax=lambda: started(["-c", "import jax"], cache),
        imports=lambda: started(["-c", "import rmtjax.cli, rmtjax.claims, rmtjax.report.sweep"], cache),
    )
    return {
        "command": arguments, "first_s": first, **times, "again_over_import_jax": ratio(times["again"], times["import_jax"])
    }  # fmt: skip


DEVICES = """
import json, sys, time
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from rmtjax.claims.alpha_lora.classifier import alpha_ftc
from rmtjax.montecarlo import Run
cells = alpha_ftc.grid.override(p=1e9, n=5e8, N=2e9, beta=0.8, alpha=np.linspace(-3, 6, 40))
began = time.perf_counter()
planned = Run(alpha_ftc, cells, trials=int(sys.argv[2]))
planned.compile()
compiled = time.perf_counter()
result = planned.execute(False)
assert len(jax.devices()) == int(sys.argv[1])
print(json.dumps({
    "total_s": time.perf_counter() - began, "compile_s": result.attrs["compile_s"], "to_draw_s": compiled - began,
    "mean": [value.hex() for value in result["mean"].values.ravel()],
}))
"""


def devices(counts, trials, repeats):
    """Measure a sweep with several numbers of simulated devices: seconds to the result and to the start of drawing."""
    runs = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            command = [sys.executable, "-c", DEVICES, str(count), str(trials)]
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
            text = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
            runs[count].append(json.loads(text.splitlines()[-1]))
    (means,) = {tuple(run.pop("mean")) for several in runs.values() for run in several}  # byte-identical results
    table = {
        count: {name: summary([run[name] for run in several]) for name in several[0]} for count, several in runs.items()
    }
    first = table[counts[0]]["total_s"]
    return {
        "cells": len(means), "trials_per_cell": trials, "devices": table,
        "over_one_device": {count: ratio(row["total_s"], first) for count, row in table.items()},
    }  # fmt: skip


def reporting(names, trials, repeats, folder):
    """Measure the page that `rmtjax verify --out` writes, of some claims or all."""
    claims = find_claims(names)
    found, times, file = verify(claims, trials=trials, progress=False), [], folder / "report.html"
    for _ in range(repeats):
        began = time.perf_counter()
        write_page(found, file, claims)
        times.append(time.perf_counter() - began)
    return {"claims": len(claims), "bytes": file.stat().st_size, **summary(times)}


def processes(trials, repeats):
    """Measure the same sweep in one process and in two."""
    times = {1: [], 2: []}
    for _ in range(repeats):
        for count in times:
            times[count].append(together(trials, count))
    one, two = summary(times[1]), summary(times[2])
    return {"trials_per_cell": trials, "one": one, "two": two, "one_over_two": ratio(one, two)}


PARTS = {
    "processes": lambda folder: processes(150_000, 5),
    "storing": lambda folder: storing(1_200_000, 5, folder),
    "resuming": lambda folder: resuming(100_000, 5, folder),
    "starting": lambda folder: starting(ALPHA_SWEEP, 5, folder),
    "verifying": lambda folder: starting("verify", 2, folder),
    "devices": lambda folder: devices([1, 2, 4, 8, 16, 64], 20_000, 3),
    "reporting": lambda folder: reporting([], 100, 5, folder),
}
QUICK = {
    "processes": lambda folder: processes(4096, 1),
    "storing": lambda folder: storing(32_768, 1, folder),
    "resuming": lambda folder: resuming(300, 1, folder),
    "starting": lambda folder: starting(ALPHA_SWEEP, 1, folder),
    "verifying": lambda folder: starting("verify bbp-wigner", 1, folder),
    "devices": lambda folder: devices([1, 8], 2500, 1),
    "reporting": lambda folder: reporting(["bbp-wigner"], 100, 1, folder),
}


def starts(row):
    """Return the times of a command's first start and of later ones in a sentence."""
    return (
        f"{row['first_s']:.1f} s at its first start, then {row['again']['median_s']:.2f} s, of which imports"
        f" {row['imports']['median_s']:.2f} s; {row['again_over_import_jax']:.2f} × import jax"
    )


SENTENCES = {
    "processes": lambda row: f"two processes: {row['one_over_two']:.2f} × one pinned to a core",
    "storing": lambda row: f"with a store: {row['over_plain']:.3f} × without",
    "resuming": lambda row: (
        f"{row['chunks']:,} chunks: ready to draw after {row['ready_to_draw']['median_s']:.1f} s,"
        f" {row['to_the_end_s']:.0f} s to the end"
    ),
    "starting": lambda row: f"a sweep: {starts(row)}",
    "verifying": lambda row: f"rmtjax {row['command']}: {starts(row)}",
    "devices": lambda row: "\n".join(
        f"{count} devices: {over:.2f} × the time of one" for count, over in row["over_one_device"].items()
    ),
    "reporting": lambda row: f"a page of {row['claims']} claims: {row['median_s']:.2f} s, {row['bytes'] / 1e6:.2f} MB",
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        trials, address, count, index, core = asked.one
        return one(int(trials), int(core), address, int(count), int(index))
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    for part in asked.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            measured = (QUICK if asked.quick else PARTS)[part](Path(folder))
        print(SENTENCES[part](measured), flush=True)
        if not asked.quick:
            print(f"wrote {save_part('engine', part, measured)}", flush=True)


if __name__ == "__main__":
    main()
