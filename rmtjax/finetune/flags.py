"""JAX's flags during a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rmtjax._precision import single
from rmtjax._random import pinned

__all__ = ["default_flags"]


@contextlib.contextmanager
def default_flags() -> Iterator[None]:
    """Set JAX's flags to their defaults, including single precision, so that only settings and files determine a run."""
    with pinned(), single():
        yield
