"""Where the benchmarks keep their results."""

from __future__ import annotations

from pathlib import Path

from benchmarks import _timing as timing
from benchmarks._timing import alternate, ratio, summary

__all__ = ["RESULTS", "alternate", "ratio", "save", "summary"]

RESULTS = Path(__file__).parent / "results"


def save(name: str, content: dict) -> Path:
    """Write results with the hardware, versions and date; returns the file."""
    return timing.save(RESULTS, name, content)
