"""The limits of a run: sizes of chunks, calls and queues. None of them changes the results."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Sizes of chunks, calls and queues. The defaults suit all known runs; tests choose smaller ones.

    Attributes:
        chunks: approximate number of chunks of a run; a kill loses at most one chunk's share of the run.
        short: a chunk has at least 1/`short` of a block's trials as tiles, since tiles of few trials are the long ones.
        first_trials: trials of every cell before its estimated variance is trusted.
        growth: the largest factor by which a cell's trials grow from one round to the next.
        constant_trials: trials of every cell before it counts as constant.
        spare: factor on the number of trials that the estimated variance requires.
        tiles_per_call: the largest number of tiles that one call of a program takes.
        call_bytes: the largest size of one call's results, in bytes.
        call_s: target duration of one call, in seconds: long enough to amortise dispatch, short enough for a smooth
            progress bar.
        unwritten: the largest number of finished chunks that wait for the disk.
        programs: number of compiled programs that a process keeps.
    """

    chunks: int = 256
    short: int = 16
    first_trials: int = 256
    growth: int = 4
    constant_trials: int = 4096
    spare: float = 1.02
    tiles_per_call: int = 64
    call_bytes: int = 64 << 20
    call_s: float = 0.2
    unwritten: int = 8
    programs: int = 64
