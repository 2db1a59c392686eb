"""Tensors on mapped files, for what has a row per user and item and need not lie in memory (``cluster.id_tables``).

The files have no names: they are gone when the last tensor on them is, however the process ends. The system writes
their pages out and takes them back as it sees fit, so a step keeps the rows it touches resident, not the tables.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnnmr_dist.data.scratch import scratch
from gnnmr_dist.errors import InputError
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.sections import ClusterSettings


def table_maker(cluster: ClusterSettings, device: torch.device) -> Maker:
    """Where the settings want tables and what has as many rows: ``torch.zeros``, or :func:`mapped_zeros`.

    Raises:
        InputError: mapped tables are asked for, and the model is on a GPU.
    """
    if cluster.id_tables == "memory":
        return torch.zeros
    if device.type != "cpu":
        raise InputError(f"id_tables: expected memory where the model is on a GPU ({device}), got mapped")
    return partial(mapped_zeros, cluster.scratch or None)


def reader_maker(cluster: ClusterSettings, device: torch.device) -> Maker:
    """As :func:`table_maker`, where a finished run is opened: the machine may lack its ``scratch``, or have a GPU."""
    if device.type != "cpu":
        return torch.zeros
    here = Path(cluster.scratch).is_dir()
    return table_maker(cluster if here else cluster.model_copy(update={"scratch": ""}), device)


def mapped_zeros(
    directory: str | None, size: Sequence[int], dtype: torch.dtype = torch.float32, device: Any = None
) -> Tensor:
    """Zeros on a nameless file in ``directory`` (None: the system's for temporary files), mapped and shared.

    Raises:
        InputError: the directory cannot be used, or its disk has no room for as many bytes.
    """
    del device  # torch.zeros takes one; files are the CPU's
    numbers = torch.empty(0, dtype=dtype).numpy().dtype
    try:
        return torch.from_numpy(scratch(tuple(size), numbers, directory))
    except OSError as error:
        wanted = f"{torch.Size(size).numel() * numbers.itemsize} bytes for a table"
        place = directory or tempfile.gettempdir()
        raise InputError(f"scratch: expected room for {wanted} in {place}, got {error.strerror}") from None


def check_scratch(cluster: ClusterSettings) -> None:
    """Refuse a ``scratch`` that is no directory, before any worker starts; raises InputError."""
    if cluster.id_tables == "mapped" and cluster.scratch and not Path(cluster.scratch).is_dir():
        raise InputError(f"scratch: expected a directory on every node, got {cluster.scratch!r}")
