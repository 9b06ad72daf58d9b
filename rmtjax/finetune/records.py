"""What a run leaves beside its checkpoints, and what another call may resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rmtjax._errors import InputError, shown
from rmtjax._random import GENERATOR
from rmtjax.finetune.settings import without_effect

__all__ = ["METRICS", "RESULT", "RUN", "check_existing", "read_history"]

RUN, METRICS, RESULT = "run.json", "metrics.jsonl", "result.json"
_FILES = (RESULT, "adapter", "model", "curves.png")


def check_existing(out: Path, identity: dict[str, Any], resume: bool) -> None:
    """Check a folder for the run of an earlier call.

    Raises:
        InputError: if it holds one that was not to be resumed, or another one.
    """
    path = out / RUN
    if not path.exists():
        ours = [name for name in ("checkpoints", METRICS, *_FILES) if (out / name).exists()]
        if ours:
            raise InputError(f"out = {out}: holds {ours[0]} without {RUN}; choose another folder")
        return
    if not resume:
        raise InputError(f"out = {out}: holds a run already; --resume goes on with it, or choose another folder")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"out = {out}: {RUN} cannot be read ({shown(str(error))})") from None
    if not (isinstance(before, dict) and isinstance(before.get("settings"), dict)):
        raise InputError(f"out = {out}: {RUN} cannot be read (it names no settings)")
    old, new = ({**i["settings"], **{k: v for k, v in i.items() if k != "settings"}} for i in (before, identity))
    # Where files lie may change; what they hold may not. Earlier versions recorded any value of a setting without an effect.
    free = {"data", "model", *without_effect(identity["settings"])}
    old = {"generator": GENERATOR} | old  # of runs before there was another
    for name in new:
        if name not in free and old.get(name) != new[name]:
            raise InputError(
                f"out = {out}: holds the run of another {name} ({shown(old.get(name))}, now {shown(new[name])});"
                " its checkpoints cannot be resumed with these settings"
            )


def read_history(folder: Path, step: int, per_epoch: int) -> list[dict[str, Any]]:
    """Return what was measured up to a step.

    Raises:
        InputError: if it is not all there.
    """
    path, epochs = folder / METRICS, step // per_epoch
    if not epochs:
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:epochs]]
        steps = [line["step"] for line in lines]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"out = {folder}: {METRICS} cannot be read ({shown(str(error))})") from None
    if steps != [per_epoch * (k + 1) for k in range(epochs)]:
        raise InputError(
            f"out = {folder}: {METRICS} lacks some of the {epochs} epochs that the checkpoint has behind it"
        )
    return lines
