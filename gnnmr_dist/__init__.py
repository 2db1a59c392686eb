"""Distributed mutual learning of graph networks for multi-modal recommendation (GNNMR).

``open_dataset``, ``fit``, ``load_run`` and ``Run`` (docs/api.md) are imported when first used: importing this package
alone takes no time and loads no torch.
"""

import os
from importlib import import_module
from typing import Any

# torch reads it once, before its first large tensor: huge pages for tensors of 2 MB and more. A step on 5 x 10^7 edges
# is 10 to 15 % faster with them (docs/performance.md), a small one the same.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
_API = ("Run", "fit", "load_run", "open_dataset")


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
