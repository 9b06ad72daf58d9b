"""`rmtjax transfer`."""

from __future__ import annotations

from typing import Annotated

import typer

from rmtjax.cli._app import Json, console_for

__all__ = ["register", "transfer"]


def transfer(
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the Amazon reviews; by default found, else digits.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Only this source domain: books, dvd, electronics or kitchen.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Only this target domain.")] = None,
    n: Annotated[int | None, typer.Option("-n", "--samples", help="Target samples; 100 reviews or 8 digits.")] = None,
    gamma: Annotated[float, typer.Option(help="Ridge parameter of the target.")] = 1.0,
    source_gamma: Annotated[float, typer.Option(help="Ridge parameter of the source.")] = 1.0,
    features: Annotated[str, typer.Option(help="counts, log, binary or tfidf.")] = "counts",
    words: Annotated[int, typer.Option(help="Most frequent words kept, 1 to 5000.")] = 5000,
    seeds: Annotated[int, typer.Option(help="Draws of the target samples.")] = 5,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write the table and a figure into this folder.")
    ] = None,
    json: Json = None,
) -> None:
    """Transfer a classifier between Amazon review domains: Table 1 and Figure 3 of the α-LoRA paper."""
    from rmtjax._files import prepare_file, prepare_folder, write_json
    from rmtjax.report import transfer as report
    from rmtjax.transfer.domains import run_transfer

    folder = None if out is None else prepare_folder("out", out)
    file = None if json is None else prepare_file("json", json)
    console = console_for(file)
    result = run_transfer(
        data,
        source=source,
        target=target,
        n=n,
        gamma=gamma,
        source_gamma=source_gamma,
        features=features,
        words=words,
        seeds=seeds,
    )
    written = [] if folder is None else report.write_report(result, folder)
    if file is not None:
        write_json(file, report.to_dict(result))
    if result.attrs["data"] != "amazon":
        console.print(
            "No folder of Amazon reviews was found (--data DIR); these are scikit-learn's handwritten digits.\n"
        )
    console.print(report.table(result))
    console.print(f"\n{report.gains(result)}")
    if written:
        console.print(f"wrote {len(written)} files into {folder}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(transfer)
