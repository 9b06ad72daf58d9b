"""`rmtjax sweep`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtjax._errors import InputError
from rmtjax._startup import choose_platform, chosen_devices, join_hosts
from rmtjax.cli._app import Coordinator, Devices, Json, Platform, Process, Processes, Seed, console_for, named_values

if TYPE_CHECKING:
    from rmtjax.montecarlo import Claim

__all__ = ["register", "sweep"]


def sweep(
    claim: Annotated[str, typer.Argument(help="A claim's name, or a Python file that defines one.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=SPEC", help="Values of a parameter: a number, a,b,c or start:stop:count."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Draws per cell; 10,000 by default; a maximum with --until-se.")
    ] = None,
    until_se: Annotated[
        list[str] | None,
        typer.Option(
            "--until-se", metavar="SE|OUTPUT=SE", help="Draw in each cell until its standard error reaches this."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate time and memory from a few draws, and stop.")
    ] = False,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Sampler, such as compressed or dense (`rmtjax claims` lists them); the claim's first by default."
        ),
    ] = None,
    entries: Annotated[
        str | None, typer.Option(help="Entries of dense matrices: gaussian, rademacher, uniform, student-t, sparse.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A further option of the sampler, such as test=1000.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        str | None, typer.Option(metavar="STORE.zarr", help="Store the run chunk by chunk; run again to resume it.")
    ] = None,
    json: Json = None,
    coordinator: Coordinator = None,
    num_processes: Processes = None,
    process_id: Process = None,
    platform: Platform = None,
    devices: Devices = None,
) -> None:
    """Draw a claim's sampler over a grid and compare the result with the law."""
    from rmtjax._files import prepare_file, write_json
    from rmtjax.claims import find_claims
    from rmtjax.montecarlo import Run, estimate, run, to_records
    from rmtjax.report import sweep as report

    choose_platform(platform, devices)
    is_first = join_hosts(coordinator, num_processes, process_id)
    local = chosen_devices(platform, devices)
    claims = find_claims([claim])
    if len(claims) > 1:
        raise InputError(f"claim = {claim}: the file defines {len(claims)} claims; sweep needs exactly one")
    (chosen,) = claims
    options = named_values("option", option or []) | ({} if entries is None else {"entries": entries})
    cells = chosen.grid.override(**_values(chosen, named_values("set", set_ or [])))
    target = None if json is None or not is_first else prepare_file("json", json)
    console = console_for(target, quiet=not is_first)
    until = _targets(until_se or [])
    settings: dict[str, Any] = {
        "trials": trials,
        "until_se": until,
        "seed": seed,
        "sampler": _sampler_with(chosen, options) if sampler is None and options else sampler,
        "options": options,
        "devices": local,
    }
    if dry_run:
        planned = Run(chosen, cells, store=out if out is not None and os.path.exists(out) else None, **settings)
        needs = estimate(planned)
        planned.discard()
        if target is not None:
            write_json(target, needs.to_dict())
        console.print(report.plan(planned, needs))
        return
    result = run(chosen, cells, store=out, progress=None if is_first else False, **settings)
    rows = to_records(result)
    if target is not None:
        times = {name: result.attrs[name] for name in ("wall_s", "compile_s")}
        write_json(target, {"claim": chosen.name, "cells": rows, **times, **result.attrs})
    console.print(report.table(rows))
    console.print(f"\n{report.summary(result, until)}")


def _sampler_with(claim: Claim, options: dict[str, str]) -> str | None:
    """Return the claim's first sampler that has all of the options, or None."""
    return next((name for name, sampler in claim.samplers.items() if set(options) <= set(sampler.options)), None)


def _targets(texts: list[str]) -> dict[str, float] | float | None:
    """Return the standard errors that `--until-se` gives: one for all outputs, or one for each."""

    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise InputError(f"until-se = {text!r}: must be a number > 0, or OUTPUT=NUMBER") from None

    if len(texts) == 1 and "=" not in texts[0]:
        return number(texts[0])
    return {name: number(value) for name, value in named_values("until-se", texts).items()} or None


def _values(claim: Claim, texts: dict[str, str]) -> dict[str, Any]:
    """Return the values of the claim's parameters that `--set` gives."""
    from rmtjax._checks import one_of
    from rmtjax.montecarlo.grid import parse_values

    for name in texts:
        one_of(f"claim {claim.name!r}: parameter", name, claim.params)
    return {name: parse_values(name, text) for name, text in texts.items()}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sweep)
