"""`rmtjax verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from rmtjax._startup import choose_platform, chosen_devices, join_hosts
from rmtjax.cli._app import Coordinator, Devices, Json, Platform, Process, Processes, Seed, console_for

__all__ = ["register", "verify"]


def verify(
    claim: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLAIM|GROUP|FILE.py]...",
            help="Claims by name, groups (transfer, spectra, updates, errata), or Python files that define some; all by default.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Draws per cell; by default the number of each sampler.")] = None,
    seed: Seed = 0,
    level: Annotated[float, typer.Option(help="Probability that anything true is refuted.")] = 0.01,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write a page, a table and figures into this folder.")
    ] = None,
    json: Json = None,
    coordinator: Coordinator = None,
    num_processes: Processes = None,
    process_id: Process = None,
    platform: Platform = None,
    devices: Devices = None,
) -> None:
    """Test laws against Monte Carlo. Exit status 1 if one is refuted, or a known misprint is not."""
    from rmtjax._files import prepare_file, prepare_folder, write_json
    from rmtjax.claims import find_claims
    from rmtjax.montecarlo import verify
    from rmtjax.report import verdict as report
    from rmtjax.report.verdict_files import write_report

    choose_platform(platform, devices)
    is_first = join_hosts(coordinator, num_processes, process_id)
    local = chosen_devices(platform, devices)
    chosen = find_claims(claim or [])
    folder = None if out is None or not is_first else prepare_folder("out", out)
    target = None if json is None or not is_first else prepare_file("json", json)
    console = console_for(target, quiet=not is_first)
    verdict = verify(chosen, trials=trials, seed=seed, level=level, progress=None if is_first else False, devices=local)
    written = [] if folder is None else write_report(verdict, chosen, folder)
    if target is not None:
        write_json(target, verdict.to_dict())
    console.print(report.table(verdict))
    console.print(f"\n{report.summary(verdict)}")
    if written:
        console.print(f"wrote {len(written)} files into {folder}")
    if not verdict.holds:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(verify)
