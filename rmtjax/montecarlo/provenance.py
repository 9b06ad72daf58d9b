"""Provenance: how a result was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jax

from rmtjax._provenance import commit, hardware, versions
from rmtjax._random import GENERATOR

__all__ = ["provenance"]


def provenance(
    seed: int,
    sampler: str,
    options: Mapping[str, str],
    trials: int,
    workers: Sequence[jax.Device],
    wall_s: float,
    compile_s: float,
) -> dict[str, Any]:
    """Return how a run was made, as plain values for a dataset's attributes."""
    return {
        "seed": seed,
        "method": sampler,
        **{f"option_{name}": value for name, value in options.items()},
        "trials_per_cell": trials,
        "device": hardware(workers),
        "versions": versions(),
        "git_commit": commit(),
        "generator": GENERATOR,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": wall_s,
        "compile_s": compile_s,
    }
