"""All claims of the package, by name, and claims from a file of the user's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from rmtjax._errors import InputError, unknown
from rmtjax.claims.alpha_lora import CLAIMS as TRANSFER
from rmtjax.claims.errata import CLAIMS as ERRATA
from rmtjax.claims.intruder_dimensions.intruders import CLAIMS as INTRUDERS
from rmtjax.claims.intruder_dimensions.rescaled_rows import CLAIMS as RESCALED
from rmtjax.claims.intruder_dimensions.spikes import CLAIMS as SPECTRA
from rmtjax.claims.intruder_dimensions.updates import CLAIMS as UPDATES
from rmtjax.montecarlo import Claim

__all__ = ["CLAIMS", "GROUPS", "find_claims", "load_claims"]

GROUPS: dict[str, tuple[Claim, ...]] = {
    "transfer": TRANSFER,
    "spectra": SPECTRA + RESCALED,
    "updates": UPDATES + INTRUDERS,
    "errata": ERRATA,
}
"""The claims that come with the package, by topic. A group's name stands for all of its claims."""

CLAIMS: dict[str, Claim] = {claim.name: claim for group in GROUPS.values() for claim in group}
"""Every claim that comes with the package, by name."""


def load_claims(path: str | Path) -> list[Claim]:
    """Return the claims that a Python file defines at its top level, in order.

    The file is run, so load only what you would run.

    Raises:
        InputError: if it cannot be read or run, or holds no claim.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"claims file {path} does not exist")
    name = f"_rmtjax_claims_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        line = next((f.tb_lineno for f in _frames(error) if f.tb_frame.f_code.co_filename == str(path)), None)
        where = f", line {line}" if line else ""
        raise InputError(f"claims file {path}{where}: {type(error).__name__}: {error}") from None
    claims = [value for value in vars(module).values() if isinstance(value, Claim)]
    if not claims:
        raise InputError(f"claims file {path} defines no claim: assign at least one rmtjax.Claim(…) to a name")
    return claims


def _frames(error: BaseException):
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next


def find_claims(names: Sequence[str]) -> list[Claim]:
    """Return the claims of the given names, which may be groups and files (names that end in ``.py``); without names, all."""
    if not names:
        return list(CLAIMS.values())
    claims: list[Claim] = []
    for name in names:
        if name.endswith(".py"):
            claims += load_claims(name)
        elif name in GROUPS:
            claims += GROUPS[name]
        elif name in CLAIMS:
            claims.append(CLAIMS[name])
        else:
            raise unknown("claim", name, [*CLAIMS, *GROUPS])
    named: dict[str, Claim] = {}
    for claim in claims:
        if named.setdefault(claim.name, claim) is not claim:
            raise InputError(f"claim {claim.name!r} is defined twice: give each claim its own name")
    return list(named.values())
