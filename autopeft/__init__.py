"""autopeft: which parameters to fine-tune, and how. Searches the front of accuracy against trainable parameters.

Public names are resolved when first used, so that importing the package loads no heavy library.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "run": "app",
    "open_run": "app",
    "Run": "app",
    "load": "training.export",
    "AutoPEFTClassifier": "estimator",
    "AutoPEFTRegressor": "estimator",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autopeft.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
