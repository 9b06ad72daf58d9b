"""Folders of data sets."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["data_folder"]


def data_folder(name: str) -> Path | None:
    """Return the folder of a data set, or None if it does not exist.

    The search covers `$RMTJAX_DATA`, then `../shared/data` relative to the current directory and to the repository's root.

    Args:
        name: of the folder, such as "glue".
    """
    shared = Path("..", "shared", "data")
    roots = [Path.cwd() / shared, Path(__file__).resolve().parents[2] / shared]
    if os.environ.get("RMTJAX_DATA"):
        roots.insert(0, Path(os.environ["RMTJAX_DATA"]))
    return next((root / name for root in roots if (root / name).is_dir()), None)
