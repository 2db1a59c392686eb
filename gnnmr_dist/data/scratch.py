"""Arrays larger than memory should hold: on nameless files, in the directory for temporary files (``TMPDIR``).

They are arrays like any other, but their pages belong to a file: the system writes them out when memory runs
short, and they are gone when the last view is. A disk that is full is an OSError at once, not a crash later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_ROWS = 1 << 20  # rows looked at in one go, so that temporary arrays stay small


def scratch(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike, directory: str | None = None
) -> npt.NDArray[Any]:
    """A new array of zeros on a nameless file, in ``directory`` if one is given.

    Raises:
        OSError: the disk has no room for it.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    with TemporaryFile(dir=directory) as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+", shape=shape).view(np.ndarray)


class Growing:
    """A scratch array [n, ...] of which n is known only at the end; ``row`` is the shape of one row."""

    def __init__(self, dtype: npt.DTypeLike, row: tuple[int, ...] = ()) -> None:
        self.dtype, self.row, self.size = np.dtype(dtype), row, 0
        self._file = TemporaryFile()  # noqa: SIM115 (closed by array, or with the last reference)

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # there is none if it could not be made
            self._file.close()

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add rows behind those there are.

        Raises:
            OSError: the disk is full.
        """
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.size += len(values)

    def array(self) -> npt.NDArray[Any]:
        """All rows, mapped; nothing can be added afterwards."""
        self._file.flush()
        with self._file as file:
            if not self.size:
                return np.empty((0, *self.row), self.dtype)
            return np.memmap(file, self.dtype, "r+", shape=(self.size, *self.row)).view(np.ndarray)


def blocks(size: int, rows: int | None = None) -> Iterator[slice]:
    """The rows 0..size-1 as slices of at most ``rows`` (default: ``BLOCK_ROWS``)."""
    rows = rows or BLOCK_ROWS
    for start in range(0, size, rows):
        yield slice(start, min(start + rows, size))
