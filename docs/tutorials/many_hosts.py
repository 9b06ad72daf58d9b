"""One sweep by several processes, and by one: the results are byte-identical. Without arguments it starts all processes itself.

On a cluster each process runs the part between the marks, and `jax.distributed.initialize()` finds the others.
"""

import socket
import subprocess
import sys
from pathlib import Path


def work(store, address=None, count=1, index=0):
    """Do the work of every process."""
    # --8<-- [start:work]
    import jax

    if count > 1:
        # On SLURM, Open MPI or a TPU pod without arguments.
        jax.distributed.initialize(address, count, index)

    from rmtjax import CLAIMS, run

    claim = CLAIMS["alpha-ftc"]
    sizes = dict(p=1e6, n=5e5, N=2e6)
    cells = claim.grid.override(**sizes, beta=[0.5, 0.9], alpha=[0.0, 1.0, 2.0])
    # The first process writes; all of them get the result.
    result = run(claim, cells, trials=20_000, store=store)
    if jax.process_index() == 0:
        worst = abs(result["z"]).max().item()
        print(f"{jax.process_count()} processes: largest |z| {worst:.2f}")
    # --8<-- [end:work]
    assert result["trials"].min() == 20_000


def files(store):
    """Return the store without the record of its provenance."""
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in Path(store).rglob("*")
        if file.is_file() and "provenance" not in file.parts
    }


def main():
    """Run two processes on this machine, then one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    crew = [subprocess.Popen([sys.executable, __file__, "two.zarr", address, "2", str(i)]) for i in range(2)]
    if any(process.wait(300) for process in crew):
        sys.exit("a process failed")
    work("one.zarr")
    print("the same bytes:", files("one.zarr") == files("two.zarr"))
    sys.exit(files("one.zarr") != files("two.zarr"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
