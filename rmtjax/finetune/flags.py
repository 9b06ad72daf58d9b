"""The flags of JAX under which a run computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rmtjax._precision import single
from rmtjax._random import pinned

__all__ = ["default_flags"]


@contextlib.contextmanager
def default_flags() -> Iterator[None]:
    """Set JAX's flags to their defaults, single precision among them: a run follows from its settings and files alone."""
    with pinned(), single():
        yield
