"""The command `rmtjax` itself, and the common options and console of its commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
import typer.core

from rmtjax._errors import InputError, Stopped
from rmtjax._startup import leave
from rmtjax._text import close_output, say

if TYPE_CHECKING:
    from rmtjax._console import Console

__all__ = [
    "Coordinator",
    "Devices",
    "Json",
    "Platform",
    "Process",
    "Processes",
    "Seed",
    "app",
    "console_for",
    "end_without_reader",
    "named_values",
]


class _Commands(typer.core.TyperGroup):
    """The group of all commands. Ctrl-C reports a command's progress, and a closed pipe causes no traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            say(str(stopped))
        except KeyboardInterrupt:
            say("stopped")
        except BrokenPipeError:
            end_without_reader()
        leave(130)


app = typer.Typer(
    cls=_Commands,
    help="Random-matrix laws checked against Monte Carlo at scale, and what they say about fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="Whole number that fixes every draw.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - for standard output.")
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Share the work of several hosts; `auto` on SLURM, Open MPI, Kubernetes, TPU pods."
    ),
]
Processes = Annotated[int | None, typer.Option("--num-processes", help="Number of processes in all.")]
Process = Annotated[int | None, typer.Option("--process-id", help="Index of this process, from 0; process 0 writes.")]
Platform = Annotated[str | None, typer.Option(help="cpu, gpu, cuda, rocm or tpu; by default JAX's choice.")]
Devices = Annotated[int | None, typer.Option(help="Number of local devices to use (cores on a CPU); all by default.")]


def console_for(json: object = None, *, quiet: bool = False) -> Console:
    """Return the console of a command, quiet if its numbers go to standard output.

    A table in a file or a pipe is as wide as it needs to be; a terminal wraps it.

    Args:
        json: file for the numbers, as `prepare_file` returns it.
        quiet: whether nothing is printed in any case.
    """
    from rmtjax._console import Console

    return Console(quiet=quiet or json == "-", width=None if sys.stdout.isatty() else 200)


def end_without_reader() -> None:
    """End like a program that writes into a closed pipe."""
    close_output()
    leave(141)


def named_values(option: str, texts: list[str]) -> dict[str, str]:
    """Return the values of an option that is given as NAME=VALUE, by name.

    Raises:
        InputError: for a text of another form, or a name that is given twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InputError(f"{option} = {text!r}: must be NAME=VALUE")
        if name.strip() in pairs:
            raise InputError(f"{option} = {text!r}: {name.strip()} is given twice")
        pairs[name.strip()] = value.strip()
    return pairs
