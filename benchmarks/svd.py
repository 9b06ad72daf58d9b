"""Decompositions of batches: every algorithm of ours beside jax.numpy, NumPy, SciPy, PyTorch and CuPy, with a figure.

`python -m benchmarks.svd --save` keeps the table of the default shapes under the hardware's name; `--shapes 64x64,16x512x128
--out DIR` measures others.
"""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks._common import save as save_result
from benchmarks._svd_cases import bench_svd, read_shapes
from benchmarks._svd_table import svd_summary, svd_table, write_svd
from rmtjax import InputError
from rmtjax._console import Console
from rmtjax._files import prepare_folder, write_json
from rmtjax._progress import Reporter
from rmtjax._startup import choose_platform, chosen_devices

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    shapes: Annotated[
        str | None,
        typer.Option(help="Such as 64x64,16x512x128: N, NxM or BATCHxNxM. By default 4 to 1024, on a GPU to 4096."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Matrices of a shape that does not say how many (64).")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64, complex64 or complex128.")] = "float32",
    operations: Annotated[
        str, typer.Option(help="Some of svd, svdvals, eigh, eigvalsh and top, separated by commas.")
    ] = "svd,svdvals,eigh,eigvalsh,top",
    top: Annotated[int, typer.Option(help="k of the operation top.")] = 10,
    repeats: Annotated[int, typer.Option(help="Rounds whose median is reported.")] = 5,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Write the numbers and a figure there.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the results under benchmarks/results.")] = False,
    platform: Annotated[
        str | None, typer.Option(help="cpu, gpu, cuda, rocm or tpu; what JAX prefers by default.")
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Devices that share each batch; all by default, on processors one, with all cores."),
    ] = None,
) -> None:
    choose_platform(platform, devices)
    if batch is not None and (batch < 1 or shapes is None):
        raise InputError(f"batch = {batch}: must be 1 or more, and is for --shapes of one or two numbers")
    wanted = None if shapes is None else read_shapes(shapes, batch)
    folder = None if out is None else prepare_folder("out", out)
    names = [name.strip() for name in operations.split(",") if name.strip()]
    limits = {"most_s": 6.0, "more": 5} if save else {}
    with Reporter(1, "cases", unit="cases") as bar:
        result = bench_svd(
            wanted, dtype=dtype, operations=names, top=top, repeats=repeats,
            devices=chosen_devices(platform, devices), progress=bar.show, **limits,
        )  # fmt: skip
    written = []
    if folder is not None:
        write_json(folder / "svd.json", result)
        written = [folder / "svd.json", *write_svd(result, folder)]
    if save:
        file = save_result(f"svd-{dtype}", result)
        written += [file, *write_svd(result, file.parent, file.stem)]
    console = Console(width=200)
    console.print(svd_table(result))
    console.print(f"\n{svd_summary(result)}", soft_wrap=True)
    for file in written:
        console.print(f"wrote {file}", soft_wrap=True)


if __name__ == "__main__":
    app()
