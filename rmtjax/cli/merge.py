"""`rmtjax merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from rmtjax.cli._app import Json, console_for

__all__ = ["merge", "register"]


def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE.zarr...", help="Runs of one sweep with several seeds.")],
    out: Annotated[str, typer.Option(metavar="STORE.zarr", help="Store for the merged result.")],
    json: Json = None,
) -> None:
    """Merge runs of the same sweep with different seeds."""
    from rmtjax._files import prepare_file, write_json
    from rmtjax.montecarlo import merge_results, open_result, to_records, write_result
    from rmtjax.report import sweep as report

    target = None if json is None else prepare_file("json", json)
    console = console_for(target)
    result = merge_results([open_result(store) for store in stores])
    write_result(out, result)
    rows = to_records(result)
    if target is not None:
        write_json(target, {"claim": result.attrs["claim"], "seeds": result.attrs["seed"], "cells": rows})
    console.print(report.table(rows))
    console.print(f"\nseeds {', '.join(map(str, result.attrs['seed']))}; wrote {out}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(merge)
