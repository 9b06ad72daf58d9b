"""Random-matrix laws checked against Monte Carlo at scale, and what they say about fine-tuning, in JAX."""

from __future__ import annotations

import importlib
from typing import Any

from rmtjax._errors import InputError

__version__ = "0.1.0"

_EXPORTS = {
    **dict.fromkeys(
        [
            "Claim",
            "Finding",
            "Grid",
            "Option",
            "Parameter",
            "Sampler",
            "Verdict",
            "between",
            "to_records",
            "grid",
            "nonnegative",
            "open_result",
            "positive",
            "real",
            "run",
            "size",
            "verify",
            "zipped",
        ],
        "rmtjax.montecarlo",
    ),
    "CLAIMS": "rmtjax.claims",
    "load_claims": "rmtjax.claims",
    "AlphaTransferClassifier": "rmtjax.transfer.estimator",
}

__all__ = ["InputError", "__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    # JAX is imported when something is first used, so that `rmtjax --help` answers at once.
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'rmtjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
