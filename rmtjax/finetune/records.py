"""The records of a run beside its checkpoints, and the checks before another call resumes it."""

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
        InputError: if it holds a run that was not to be resumed, or a different run.
    """
    path = out / RUN
    if not path.exists():
        ours = [name for name in ("checkpoints", METRICS, *_FILES) if (out / name).exists()]
        if ours:
            raise InputError(f"out = {out}: holds {ours[0]} without {RUN}; choose another folder")
        return
    if not resume:
        raise InputError(f"out = {out}: already holds a run; resume it with --resume, or choose another folder")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"out = {out}: {RUN} cannot be read ({shown(str(error))})") from None
    if not (isinstance(before, dict) and isinstance(before.get("settings"), dict)):
        raise InputError(f"out = {out}: {RUN} cannot be read (it names no settings)")
    old, new = ({**i["settings"], **{k: v for k, v in i.items() if k != "settings"}} for i in (before, identity))
    # The location of files may change, but not their content. Earlier versions recorded any value of a setting without effect.
    free = {"data", "model", *without_effect(identity["settings"])}
    old = {"generator": GENERATOR} | old  # for runs from before there was a second generator
    for name in new:
        if name not in free and old.get(name) != new[name]:
            raise InputError(
                f"out = {out}: holds a different run: {name} = {shown(old.get(name))}, here {shown(new[name])};"
                " choose another folder"
            )


def read_history(folder: Path, step: int, per_epoch: int) -> list[dict[str, Any]]:
    """Return the measurements up to a step.

    Raises:
        InputError: if any of them is missing.
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
        raise InputError(f"out = {folder}: {METRICS} lacks some of the {epochs} epochs before the checkpoint")
    return lines
