"""The user-item graph as one symmetric CSR, memory-mapped so that all workers of a node share its pages.

Node numbers: users are 0..U-1, item i is U+i. Row v lists the neighbours of v, ascending and unique, so
membership is a binary search and train edge e (0 <= e < E) is simply entry e of the users' rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    """The graph of unique pairs (users[j], items[j]).

    Raises:
        ValueError: lengths differ, a number is out of range, or a pair stands twice.
    """
    if users.shape != items.shape:
        raise ValueError(f"{users.size} users but {items.size} items")
    for name, ids, bound in (("user", users, num_users), ("item", items, num_items)):
        if ids.size and (ids.min() < 0 or ids.max() >= bound):
            raise ValueError(f"{name} numbers must lie in 0..{bound - 1}")
    by_user = np.lexsort((items, users))
    by_item = np.lexsort((users, items))
    u, i = users[by_user], items[by_user]
    if u.size and bool(np.any((u[1:] == u[:-1]) & (i[1:] == i[:-1]))):
        raise ValueError("a user-item pair stands twice")
    degree = np.concatenate(
        [np.bincount(users, minlength=num_users), np.bincount(items, minlength=num_items)]
    )
    indptr = np.zeros(num_users + num_items + 1, np.int64)
    np.cumsum(degree, out=indptr[1:])
    indices = np.concatenate([i + num_users, users[by_item]]).astype(np.int32)
    return Graph(indptr, indices, num_users, num_items)


def save_graph(graph: Graph, directory: Path) -> None:
    """Write ``indptr.npy`` and ``indices.npy`` into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "indptr.npy", graph.indptr, allow_pickle=False)
    np.save(directory / "indices.npy", graph.indices, allow_pickle=False)


def open_graph(directory: Path, num_users: int, num_items: int) -> Graph:
    """Map the two arrays into memory, read-only; nothing is copied."""
    indptr = np.load(directory / "indptr.npy", mmap_mode="r", allow_pickle=False)
    indices = np.load(directory / "indices.npy", mmap_mode="r", allow_pickle=False)
    return Graph(indptr, indices, num_users, num_items)
