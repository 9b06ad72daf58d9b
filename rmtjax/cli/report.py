"""`rmtjax report`."""

from __future__ import annotations

from typing import Annotated

import typer

from rmtjax.cli._app import console_for

__all__ = ["register", "report"]


def report(
    store: Annotated[list[str], typer.Argument(metavar="STORE.zarr...", help="Stores written by sweep --out.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for report.html.")],
    claim: Annotated[
        list[str] | None, typer.Option(metavar="FILE.py", help="Python file that defines claims of the stores.")
    ] = None,
    level: Annotated[float, typer.Option(help="Probability that anything true is refuted.")] = 0.01,
) -> None:
    """Write stored runs as one HTML page, which needs no network: verdicts, equations, figures, data."""
    from rmtjax._files import prepare_folder
    from rmtjax.claims import find_claims
    from rmtjax.montecarlo import judge, open_result
    from rmtjax.report.page import write_page

    known = [*find_claims([]), *(find_claims(claim) if claim else [])]
    results = [open_result(path).assign_attrs(store=path) for path in store]
    folder = prepare_folder("out", out)
    path = write_page(judge(results, known, level=level), folder / "report.html", known)
    console_for().print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
