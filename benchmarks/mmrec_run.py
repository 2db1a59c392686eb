"""One model of an MMRec checkout, trained by its own quick_start, one JSON line per epoch (bench_peer.py starts this).

``python benchmarks/mmrec_run.py CHECKOUT CONFIG``: CONFIG is a JSON object with ``model``, ``dataset``, ``threads``
and what else MMRec's own config_dict takes. Its working directory must hold a link ``configs`` to the checkout's. After
each epoch it waits for a line on its input, so that whoever started it decides when it may compute.

The checkout is not changed. What it needs of older versions, or imports without using it here, is put in place first:
the names ``numpy.float`` and ``dok_matrix._update``, and empty modules where image libraries and the like are missing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import logging
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch_geometric  # noqa: F401  before modules are made up: it asks which ones exist

UNUSED = ("lmdb", "torchvision", "PIL", "matplotlib")
"""What MMRec imports when it starts and does not call when features are given."""

TRAINED = re.compile(r"epoch (\d+) training \[time: ([\d.]+)s")
VALIDATED = re.compile(r"epoch (\d+) evaluating \[time: ([\d.]+)s, valid_score: ([\d.]+)\]")


class Empty(ModuleType):
    """A module that has every name, each of them nothing."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), dict.fromkeys(("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS", "HAMMING", "BOX")))


class EmptyFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the modules of UNUSED that are not installed, and everything below them."""

    def __init__(self) -> None:
        self.names = tuple(name for name in UNUSED if importlib.util.find_spec(name) is None)

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] in self.names else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class Pacer(logging.Handler):
    """Reads MMRec's own log: tells every epoch's figures on ``out`` and waits for the word to go on."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self.out, self.seconds = out, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if trained := TRAINED.search(message):
            self.seconds = float(trained[2])
        elif validated := VALIDATED.search(message):
            line = {"epoch": int(validated[1]), "seconds": self.seconds, "valid": float(validated[3])}
            print(json.dumps(line), file=self.out, flush=True)
            sys.stdin.readline()


def old_names() -> None:
    """Names that newer versions of numpy and scipy have dropped."""
    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]
    if not hasattr(scipy.sparse.dok_matrix, "_update"):
        scipy.sparse.dok_matrix._update = lambda self, entries: self._dict.update(entries)


def main() -> None:
    checkout, config = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(config.pop("threads"))
    out, sys.stdout = sys.stdout, sys.stderr
    old_names()
    sys.meta_path.append(EmptyFinder())
    sys.path.insert(0, f"{checkout}/src")
    quick_start = importlib.import_module("utils.quick_start").quick_start
    logging.getLogger().addHandler(Pacer(out))
    logging.getLogger().setLevel(logging.INFO)
    sys.stdin.readline()
    quick_start(config.pop("model"), config.pop("dataset"), config, save_model=False)


if __name__ == "__main__":
    main()
