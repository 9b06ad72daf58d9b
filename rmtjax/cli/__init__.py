"""The command line. Each file holds one command, which calls one public function; slow imports happen inside it."""

from __future__ import annotations

import sys

from rmtjax._errors import HostError, InputError
from rmtjax._startup import collect_garbage_less_often, keep_programs, leave
from rmtjax._text import prepare_streams, say
from rmtjax.cli import claims, doctor, finetune, intruders, merge, report, sweep, transfer, verify
from rmtjax.cli._app import app, end_without_reader

__all__ = ["app", "main"]

for _command in (
    claims,
    verify,
    report,
    sweep,
    merge,
    transfer,
    finetune,
    doctor,
    intruders,
):  # the order of the help
    _command.register(app)


def main() -> None:
    """Run the command line; bad input ends with one line and exit status 2."""
    collect_garbage_less_often()
    keep_programs()
    prepare_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # an error is reported here; at the interpreter's exit it would print a traceback
    except InputError as error:
        say(f"error: {error}")
        leave(2)
    except HostError as error:
        say(f"error: {error}; a run with --out resumes when all processes are started again")
        leave(1)
    except BrokenPipeError:
        end_without_reader()
    except (
        OSError,
        MemoryError,
        RuntimeError,
    ) as error:  # such as a full disk: a store stays valid up to its last chunk
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        say(f"error: {'out of memory: ' * (not isinstance(error, OSError))}{reason}".rstrip(": "))
        leave(1)
