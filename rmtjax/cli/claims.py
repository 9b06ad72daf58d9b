"""`rmtjax claims`."""

from __future__ import annotations

import typer

from rmtjax.cli._app import console_for

__all__ = ["claims", "register"]


def claims() -> None:
    """List every claim with its equation, parameters and samplers."""
    from rich.text import Text

    from rmtjax.claims import CLAIMS
    from rmtjax.report.text import plain_equation

    console = console_for()
    for claim in CLAIMS.values():
        console.print(Text(claim.name, "bold"), Text(f" {claim.source}", "dim"), sep="")
        console.print(Text(f"  {plain_equation(claim.equation)}"))
        console.print(Text(f"  parameters: {', '.join(claim.params)}"))
        console.print(Text(f"  samplers:   {', '.join(claim.samplers)}\n"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(claims)
