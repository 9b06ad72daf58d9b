"""Decompositions of batches: every algorithm of ours beside jax.numpy, NumPy, SciPy, PyTorch and CuPy, with a figure.

`python -m benchmarks.svd [--quick] [--dtype float32]`: what `rmtjax bench svd` prints, kept under the hardware's name.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks._common import save
from benchmarks._svd_cases import bench_svd
from benchmarks._svd_table import svd_summary, svd_table, write_svd


def main(argv: list[str] | None = None) -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few and small, and no file, to see that it works")
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args(argv)
    how = {"shapes": [(8, 16, 16), (2, 64, 32)], "top": 2, "repeats": 1} if chosen.quick else {"most_s": 6.0, "more": 5}
    result = bench_svd(dtype=chosen.dtype, **how)
    console = Console(width=200, highlight=False)
    console.print(svd_table(result))
    console.print(svd_summary(result), soft_wrap=True)
    if not chosen.quick:
        file = save(f"svd-{chosen.dtype}", result)
        console.print(file, *write_svd(result, file.parent, file.stem))


if __name__ == "__main__":
    main()
