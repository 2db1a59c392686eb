"""User-item pairs in (user, item) order, each once, and what can be told of such in one pass.

E pairs; U users; I items. All loops are compiled and go through the pairs in order, so arrays may lie on disk.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator,no-any-return"

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from gnnmr_dist.data._kernels import read_only
from gnnmr_dist.data.graph import Graph

IntArray = npt.NDArray[np.integer]


class Pairs(NamedTuple):
    """``users`` and ``items`` int32 [E], strictly ascending by (user, item)."""

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]


def first_disorder(users: IntArray, items: IntArray) -> int:
    """The first place whose pair is not greater than the one before it; -1 if all ascend."""
    return int(_first_disorder(read_only(users), read_only(items)))


def first_shared(one: Pairs, other: Pairs) -> int:
    """The first place of ``other`` whose pair is in ``one`` too; -1 if there is none."""
    return int(_first_shared(*map(read_only, one), *map(read_only, other)))


def first_difference(graph: Graph, pairs: Pairs) -> tuple[int, int] | None:
    """The first place of ``graph.indices`` that is not the pairs' graph, and what belongs there; None if all is right.

    ``graph.indptr`` must be right already.
    """
    arrays = (read_only(graph.indptr), read_only(graph.indices), *map(read_only, pairs))
    place, expected = _first_difference(*arrays, graph.num_users)
    return None if place < 0 else (int(place), int(expected))


@numba.njit(nogil=True, cache=True)
def _first_disorder(users: IntArray, items: IntArray) -> int:
    for e in range(1, users.size):
        if users[e] < users[e - 1] or (users[e] == users[e - 1] and items[e] <= items[e - 1]):
            return e
    return -1


@numba.njit(nogil=True, cache=True)
def _first_shared(users: IntArray, items: IntArray, other_users: IntArray, other_items: IntArray) -> int:
    e = 0
    for place in range(other_users.size):
        user, item = other_users[place], other_items[place]
        while e < users.size and (users[e] < user or (users[e] == user and items[e] < item)):
            e += 1
        if e < users.size and users[e] == user and items[e] == item:
            return place
    return -1


@numba.njit(nogil=True, cache=True)
def _first_difference(
    indptr: IntArray, indices: IntArray, users: IntArray, items: IntArray, num_users: int
) -> tuple[np.int64, np.int64]:
    cursor = indptr[num_users:].copy()  # where the next user of each item belongs
    place, expected = np.int64(-1), np.int64(-1)
    for e in range(users.size):
        if indices[e] != num_users + items[e]:
            return np.int64(e), np.int64(num_users + items[e])
        entry = cursor[items[e]]
        cursor[items[e]] += 1
        if indices[entry] != users[e] and (place < 0 or entry < place):
            place, expected = entry, np.int64(users[e])
    return place, expected
