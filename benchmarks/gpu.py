"""All benchmarks for accelerators, in one call and one file.

`python -m benchmarks.gpu [--minutes 8] [--quick] [--out FILE]`, with whatever peers are installed: PyTorch, transformers and
PEFT, CuPy. Each part runs in a process of its own, so that one that fails or takes too long costs only itself, and writes
down each result as it comes; the file then holds all there is. It runs on processors too, where it is of less use.

Parts: the SVD bench in float32 and float64, the train step in float32 and bfloat16, the compressed and dense sweeps, spectra,
and the scan for intruders of single layers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks._common import save

Items = Iterator[tuple[str, dict]]


def svd(dtype: str, seconds: float, quick: bool) -> Items:
    """Run the benchmark of decompositions, operation by operation, the most important one first."""
    from benchmarks._svd_cases import OPERATIONS, bench_svd

    began = time.perf_counter()
    for i, what in enumerate(OPERATIONS):
        left = (seconds - (time.perf_counter() - began)) / (len(OPERATIONS) - i)
        shapes = [(2, 48, 48)] if quick else None
        how = {"repeats": 1, "top": 3} if quick else {"repeats": 5, "most_s": 4.0}
        yield what, bench_svd(shapes, dtype=dtype, operations=[what], seconds=max(left, 1.0), **how)


def train(dtype: str, seconds: float, quick: bool) -> Items:
    """Run a step of LoRA, of α-LoRA and of PEFT; batches of 32 × 128, and one that fills an accelerator."""
    from benchmarks import train_step

    if quick:  # one step each: compiling all the compared functions would take minutes
        losses = [train_step.ours("lora", 4, 16, dtype)[0](), train_step.peft(4, 16, dtype)()]
        yield "4x16", {"losses": losses}
        return
    for batch, length in ((32, 128), (256, 128)):
        yield f"{batch}x{length}", train_step.measure(batch, length, dtype, repeats=20, cycles=5, every=20)


def sweeps(_: str, seconds: float, quick: bool) -> Items:
    """Run sweeps of α-FTC, compressed and dense, and χ draws."""
    from benchmarks import transfer

    repeats = 1 if quick else 3
    yield "draws", transfer.draws(repeats, 1000 if quick else 1_000_000)
    if not quick:
        yield "compressed", transfer.compressed(repeats)
        yield "dense", transfer.dense(repeats)


def spectra(_: str, seconds: float, quick: bool) -> Items:
    """Run spiked ensembles, edges, densities and Tracy–Widom."""
    from benchmarks import spectra as parts

    if quick:
        yield "tracy_widom_cdf", parts.tracy_widom_cdf(1, None, 1000)
        return
    for part in (parts.spiked, parts.edges, parts.densities, parts.tracy_widom_cdf):
        yield part.__name__, part(3, None)


def intruders(_: str, seconds: float, quick: bool) -> Items:
    """Run scans of layers against two SVDs by PyTorch."""
    from benchmarks import intruders as parts

    for n, m in [(128, 128)] if quick else [(768, 768), (3072, 768), (768, 3072), (2048, 2048), (4096, 4096)]:
        yield f"{n}x{m}", parts.one_layer(n, m, 1 if quick else 3)


PARTS = {
    "svd-float32": (svd, "float32", 0.28),
    "train-float32": (train, "float32", 0.16),
    "train-bfloat16": (train, "bfloat16", 0.16),
    "intruders": (intruders, "", 0.10),
    "sweeps": (sweeps, "", 0.10),
    "spectra": (spectra, "", 0.08),
    "svd-float64": (svd, "float64", 0.12),
}
"""Each part with its arguments and its share of the time."""


def one_part(name: str, seconds: float, quick: bool, file: Path) -> None:
    """Run a part in this process, and write its results after each item."""
    from rmtjax._startup import device_for_each_core

    device_for_each_core()
    function, argument, _ = PARTS[name]
    found: dict[str, dict] = {}
    for item, content in function(argument, seconds, quick):
        found[item] = content
        new = file.with_suffix(".new")
        new.write_text(json.dumps(found), encoding="utf-8")
        new.replace(file)


def main(argv: list[str] | None = None) -> None:
    """Run the parts one after another, each with its share of the remaining time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (default: %(default)g)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--out", type=Path, help="file of results; by default benchmarks/results/gpu-HARDWARE.json")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.part:
        one_part(chosen.part, 60 * chosen.minutes, chosen.quick, chosen.out)
        return
    names = chosen.parts.split(",")
    if set(names) - set(PARTS):
        parser.error(f"parts: {sorted(set(names) - set(PARTS))[0]} is none of {', '.join(PARTS)}")
    end = time.perf_counter() + 60 * chosen.minutes
    content: dict[str, dict] = {}
    # Two frameworks share the memory of one device: JAX must not take most of it beforehand.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names):
            left = end - time.perf_counter()
            seconds = left * PARTS[name][2] / sum(PARTS[other][2] for other in names[i:])
            file, began = Path(folder) / f"{name}.json", time.perf_counter()
            command = [
                sys.executable,
                "-m",
                "benchmarks.gpu",
                "--part",
                name,
                "--minutes",
                str(seconds / 60),
                "--out",
                str(file),
            ]
            command += ["--quick"] if chosen.quick else []
            failed = None
            try:
                # The time that a part leaves goes to the next ones; one that needs more may take half of theirs.
                limit = seconds + (left - seconds) / 2
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=max(limit, 1))
                if done.returncode:
                    failed = "\n".join(done.stderr.strip().splitlines()[-8:])
            except subprocess.TimeoutExpired:
                failed = f"stopped after {limit:.0f} s"
            found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            content[name] = {"seconds": time.perf_counter() - began, "failed": failed, "found": found}
            print(
                f"{name}: {', '.join(found) or 'nothing'}, {content[name]['seconds']:.0f} s", failed or "", flush=True
            )
            # After each part, so that an interrupted call keeps its results.
            if chosen.out:
                _write(chosen.out, content)
            elif not chosen.quick:
                written = save("gpu", content)
    if not chosen.out and not chosen.quick:
        print(written)


def _write(file: Path, content: dict) -> None:
    from benchmarks._timing import made

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**made("gpu"), **content}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
