"""`rmtjax finetune`. Its options are the fields of `rmtjax.finetune.Settings`, with their help and their defaults."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from rmtjax._startup import choose_platform, chosen_devices, device_for_each_core
from rmtjax.cli._app import Devices, Json, Platform, console_for
from rmtjax.finetune.settings import Settings

__all__ = ["finetune", "register", "with_settings"]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose first parameters, the settings and the names of those given explicitly, become options.

    A list of names is one text with commas. A field's metadata hold its help, and may hold a metavar and further flags.
    """
    kinds = typing.get_type_hints(Settings)
    fields = dataclasses.fields(Settings)
    lists = {field.name for field in fields if isinstance(field.default, tuple)}
    options = []
    for field in fields:
        metadata, default, kind = field.metadata, field.default, kinds[field.name]
        text = metadata["help"]
        if field.name in lists:
            kind, default, text = str, ",".join(default), f"{text.removesuffix('.')}, with commas."
        flags = (f"--{field.name.replace('_', '-')}", *metadata["flags"]) if "flags" in metadata else ()
        option = typer.Option(*flags, metavar=metadata.get("metavar"), help=text)
        options.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
                annotation=Annotated[kind, option],
            )
        )
    _, _, *others = inspect.signature(command, eval_str=True).parameters.values()
    others = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in others]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @functools.wraps(command)
    def with_options(context: typer.Context, **values: Any) -> None:
        explicit = {field.name for field in fields if context.get_parameter_source(field.name).name != "DEFAULT"}
        settings = {field.name: values.pop(field.name) for field in fields}
        for name in lists:
            settings[name] = tuple(part.strip() for part in settings[name].split(",") if part.strip())
        command(Settings(**settings), explicit, **values)

    parameters = [context, *options, *others]
    with_options.__signature__ = inspect.Signature(parameters)
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


@with_settings
def finetune(
    settings: Settings,
    explicit: Collection[str],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder for checkpoints, adapter, metrics, curves; TASK-ADAPTER-SEED by default."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; an epoch by default.")] = None,
    json: Json = None,
    platform: Platform = None,
    devices: Devices = None,
) -> None:
    """Fine-tune BERT or RoBERTa on a GLUE task with LoRA, α-LoRA or one of their relatives."""
    from rmtjax._files import prepare_file, write_json
    from rmtjax.finetune import finetune
    from rmtjax.report import finetune as report

    choose_platform(platform, devices)
    device_for_each_core()
    local = chosen_devices(platform, devices)
    settings = settings.checked(explicit)
    target = None if json is None else prepare_file("json", json)
    console = console_for(target)
    out = settings.run_name if out is None else out
    result = finetune(
        settings,
        out,
        resume=resume,
        save_every=save_every,
        devices=local,
        announce=lambda run: console.print(f"{run}\n"),
    )
    if target is not None:
        write_json(target, result)
    console.print(report.table(result))
    console.print(f"\n{report.summary(result)}")
    console.print(f"wrote {', '.join(report.files(out))} into {out}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(finetune)
