"""Every default of a command is that of the function it calls."""

import dataclasses
import inspect

import click
import pytest
import typer

from rmtjax.cli import app
from rmtjax.finetune import Settings, finetune
from rmtjax.intruders import mitigate, scan
from rmtjax.montecarlo import RunConfig, judge, run, verify
from rmtjax.transfer.domains import run_transfer

SHELL_ONLY = {
    "claim", "claims", "help", "json", "out", "platform", "devices", "coordinator", "num_processes", "process_id", "data",
    "set_", "dry_run", "entries", "option", "store", "stores", "sampler", "base", "tuned", "task",
}  # fmt: skip
"""Arguments without a default of their own, what the shell passes on in another form, and where output goes."""


def defaults_of(function) -> dict:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def settings() -> dict:
    fields = {field.name: field.default for field in dataclasses.fields(Settings)}
    return {**defaults_of(finetune), **fields, "target_modules": ",".join(Settings.target_modules)}


def run_settings() -> dict:
    """Return the defaults of the keywords that `run` and `verify` pass on."""
    return {field.name: field.default for field in dataclasses.fields(RunConfig)}


COMMANDS = {
    ("verify",): lambda: {**run_settings(), **defaults_of(verify)},
    ("report",): lambda: defaults_of(judge),
    ("sweep",): lambda: {**run_settings(), **defaults_of(run)},
    ("merge",): dict,
    ("transfer",): lambda: defaults_of(run_transfer),
    ("finetune",): settings,
    ("intruders", "scan"): lambda: defaults_of(scan),
    ("intruders", "mitigate"): lambda: defaults_of(mitigate),
    ("claims",): dict,
    ("doctor",): dict,
}


def commands(group: click.Group, path: tuple = ()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(app)))


def test_every_command_is_compared():
    assert set(ALL) == set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_defaults_are_those_of_python(path):
    python = COMMANDS[path]()
    options = {option.name: option.default for option in ALL[path].params if option.name not in SHELL_ONLY}
    assert options.keys() <= python.keys()
    for name, default in options.items():
        assert (default or None) == (python[name] or None), (
            name
        )  # an option that is not given any value is None or empty


def test_every_setting_is_an_option():
    options = {option.name: option for option in ALL["finetune",].params}
    for field in dataclasses.fields(Settings):
        assert field.name in options and field.metadata["help"].removesuffix(".") in options[field.name].help
    assert "-T" in options["alpha_every"].opts
