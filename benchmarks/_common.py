"""The location of the benchmarks' results."""

from __future__ import annotations

from pathlib import Path

from benchmarks import _timing as timing
from benchmarks._timing import alternate, ratio, summary

__all__ = ["RESULTS", "alternate", "ratio", "save", "save_part", "summary"]

RESULTS = Path(__file__).parent / "results"


def save(name: str, content: dict) -> Path:
    """Write results with the hardware, versions and date; return the file."""
    return timing.save(RESULTS, name, content)


def save_part(name: str, part: str, content: dict) -> Path:
    """Write one part of a benchmark's results, with its own date and versions; other parts stay. Return the file."""
    return timing.save_part(RESULTS, name, part, content)
