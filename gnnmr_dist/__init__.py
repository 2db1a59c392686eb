"""Distributed mutual learning of graph networks for multi-modal recommendation (GNNMR).

``open_dataset``, ``fit``, ``load_run`` and ``Run`` (docs/api.md) are imported when first used: importing this package
alone takes no time and loads no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_API = ("Run", "fit", "load_run", "open_dataset")


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
