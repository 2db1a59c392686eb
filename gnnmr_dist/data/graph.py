"""The user-item graph as one symmetric CSR, memory-mapped so that all workers of a node share its pages.

Node numbers: users are 0..U-1, item i is U+i. Row v lists the neighbours of v, ascending and unique, so
membership is a binary search and train edge e (0 <= e < E) is simply entry e of the users' rows.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator,no-any-return"

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Graph:
    """CSR topology: ``indptr`` int64 [U+I+1], ``indices`` int32 [2E] (node numbers)."""

    indptr: IntArray
    indices: IntArray
    num_users: int
    num_items: int

    @property
    def num_nodes(self) -> int:
        """U + I."""
        return self.num_users + self.num_items

    @property
    def num_edges(self) -> int:
        """E, the number of user-item pairs (each stored in both directions)."""
        return int(self.indptr[self.num_users])

    def degree(self) -> npt.NDArray[np.int64]:
        """Number of neighbours of every node, int64 [U+I]."""
        return np.diff(self.indptr)

    def edges(self, e: IntArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Users and items (item numbers, without offset) of train edges ``e`` [k], each int64 [k]."""
        users = np.searchsorted(self.indptr[: self.num_users + 1], e, side="right") - 1
        return users.astype(np.int64), self.indices[e].astype(np.int64) - self.num_users


def build_graph(users: IntArray, items: IntArray, num_users: int, num_items: int) -> Graph:
    """The graph of unique pairs (users[j], items[j]) in any order: a counting sort, O(U + I + E).

    Raises:
        ValueError: lengths differ, a number is out of range, or a pair stands twice.
    """
    _check_pairs(users, items, num_users, num_items)
    indptr = np.zeros(num_users + num_items + 1, np.int64)
    indices = np.empty(2 * users.size, np.int32)
    _fill(_plain(users), _plain(items), num_users, indptr, indices)
    return Graph(indptr, indices, num_users, num_items)


def write_graph(directory: Path, users: IntArray, items: IntArray, num_users: int, num_items: int) -> None:
    """:func:`build_graph` right into the mapped files ``indptr.npy`` and ``indices.npy`` of ``directory``.

    Of memory that cannot be written out it takes 8 bytes per node, however many edges there are.

    Raises:
        ValueError: as :func:`build_graph`.
        OSError: the disk is full.
    """
    _check_pairs(users, items, num_users, num_items)
    directory.mkdir(parents=True, exist_ok=True)
    indptr = _new_array(directory / "indptr.npy", num_users + num_items + 1, np.int64)
    indices = _new_array(directory / "indices.npy", 2 * users.size, np.int32)
    _fill(_plain(users), _plain(items), num_users, indptr, indices)


def open_graph(directory: Path, num_users: int, num_items: int) -> Graph:
    """Map the two arrays into memory, read-only; nothing is copied."""
    indptr = np.load(directory / "indptr.npy", mmap_mode="r", allow_pickle=False)
    indices = np.load(directory / "indices.npy", mmap_mode="r", allow_pickle=False)
    return Graph(indptr, indices, num_users, num_items)


def _check_pairs(users: IntArray, items: IntArray, num_users: int, num_items: int) -> None:
    if users.shape != items.shape:
        raise ValueError(f"{users.size} users but {items.size} items")
    for name, ids, bound in (("user", users, num_users), ("item", items, num_items)):
        if ids.size and (ids.min() < 0 or ids.max() >= bound):
            raise ValueError(f"{name} numbers must lie in 0..{bound - 1}")


def _new_array(file: Path, size: int, dtype: type) -> IntArray:
    """Zeros in a new mapped ``.npy`` file whose room on the disk is taken: a full one is an error, not a crash."""
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(size,))
    if hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return np.asarray(array)


def _plain(array: IntArray) -> IntArray:
    """A read-only plain view, so that one compiled version serves mapped files and arrays in memory."""
    view = np.asarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view


def _fill(users: IntArray, items: IntArray, num_users: int, indptr: IntArray, indices: IntArray) -> None:
    """Fill the zeros ``indptr`` and ``indices`` with the CSR of checked pairs; ValueError if one stands twice."""
    ordered = _count(users, items, num_users, indptr)
    np.cumsum(indptr, out=indptr)
    if not ordered:  # by item first, then by user: each scatter keeps the order of the one before
        cursor = indptr[:-1].copy()
        _scatter(users, items, num_users, cursor, indices)
        _mirror(indptr, indices, num_users, indptr.size - 1, cursor)
    else:
        np.add(items, num_users, out=indices[: items.size], casting="unsafe")
    _mirror(indptr, indices, 0, num_users, indptr[:-1].copy())
    if _repeated(indptr, indices, num_users):
        raise ValueError("a user-item pair stands twice")


@numba.njit(nogil=True, cache=True)
def _count(users: IntArray, items: IntArray, num_users: int, indptr: IntArray) -> bool:
    """Put each node's degree one place behind it; whether the pairs are in (user, item) order."""
    ordered = True
    for e in range(users.size):
        indptr[users[e] + 1] += 1
        indptr[num_users + items[e] + 1] += 1
        if e and (users[e] < users[e - 1] or (users[e] == users[e - 1] and items[e] < items[e - 1])):
            ordered = False
    return ordered


@numba.njit(nogil=True, cache=True)
def _scatter(users: IntArray, items: IntArray, num_users: int, cursor: IntArray, indices: IntArray) -> None:
    """Put each pair's user into the item's row, in the order given."""
    for e in range(users.size):
        item = num_users + items[e]
        indices[cursor[item]] = users[e]
        cursor[item] += 1


@numba.njit(nogil=True, cache=True)
def _mirror(indptr: IntArray, indices: IntArray, first: int, last: int, cursor: IntArray) -> None:
    """Put every node of first..last-1, ascending, into the rows of its neighbours; ``cursor``: where they begin."""
    for node in range(first, last):
        for entry in range(indptr[node], indptr[node + 1]):
            other = indices[entry]
            indices[cursor[other]] = node
            cursor[other] += 1


@numba.njit(nogil=True, cache=True)
def _repeated(indptr: IntArray, indices: IntArray, num_users: int) -> bool:
    """Whether a user's row, which ascends, holds an item twice."""
    for user in range(num_users):
        for entry in range(indptr[user] + 1, indptr[user + 1]):
            if indices[entry] == indices[entry - 1]:
                return True
    return False
