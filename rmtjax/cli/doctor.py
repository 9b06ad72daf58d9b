"""`rmtjax doctor`."""

from __future__ import annotations

import typer

from rmtjax.cli._app import Json, console_for

__all__ = ["doctor", "register"]


def doctor(json: Json = None) -> None:
    """Report devices, memory and versions, and problems with suggested fixes. Exit status 1 if there is a problem."""
    from rmtjax._files import prepare_file, write_json
    from rmtjax.doctor import examine
    from rmtjax.report import doctor as report

    target = None if json is None else prepare_file("json", json)
    console = console_for(target)
    diagnosis = examine()
    if target is not None:
        write_json(target, diagnosis.to_dict())
    console.print(report.table(diagnosis))
    console.print(report.problems(diagnosis))
    if diagnosis.problems:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)
