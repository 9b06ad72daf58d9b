"""Where data sets are looked for."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["data_folder"]


def data_folder(name: str) -> Path | None:
    """Return the folder of a data set, or None if it does not exist.

    It is looked for in `$RMTJAX_DATA`, then in `../shared/data` seen from the current directory and from the repository's root.

    Args:
        name: of the folder, such as "glue".
    """
    shared = Path("..", "shared", "data")
    roots = [Path.cwd() / shared, Path(__file__).resolve().parents[2] / shared]
    if os.environ.get("RMTJAX_DATA"):
        roots.insert(0, Path(os.environ["RMTJAX_DATA"]))
    return next((root / name for root in roots if (root / name).is_dir()), None)
