"""The k-core of interactions."""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator,no-any-return"

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gnnmr_dist.data._kernels import read_only
from gnnmr_dist.data.scratch import blocks, scratch

IntArray = npt.NDArray[np.integer]
BoolArray = npt.NDArray[np.bool_]


def core(users: IntArray, items: IntArray, per_user: int, per_item: int) -> BoolArray:
    """Rows [n] of the largest set in which every user has ``per_user`` rows and every item ``per_item``.

    The (p, q)-core of the bipartite graph (k-core: p = q = k): rows of too small users and items are dropped
    until none is left, which is the same set in whatever order they go.
    """
    kept = scratch(users.size, np.bool_)
    kept[:] = True
    degrees = counts(users), counts(items)
    while _drop(read_only(users), read_only(items), *degrees, per_user, per_item, kept):
        pass
    return kept


def counts(numbers: IntArray) -> npt.NDArray[np.int64]:
    """How often each of 0..max stands in ``numbers`` (all >= 0), looked at in blocks."""
    out = np.zeros(int(numbers.max(initial=-1)) + 1, np.int64)
    for block in blocks(numbers.size):
        out += np.bincount(numbers[block], minlength=out.size)
    return out


@numba.njit(nogil=True, cache=True)
def _drop(
    users: IntArray,
    items: IntArray,
    user_degree: IntArray,
    item_degree: IntArray,
    per_user: int,
    per_item: int,
    kept: BoolArray,
) -> int:
    """Drop the rows of users and items that are too small by now; how many."""
    dropped = 0
    for row in range(users.size):
        user, item = users[row], items[row]
        if kept[row] and (user_degree[user] < per_user or item_degree[item] < per_item):
            kept[row] = False
            user_degree[user] -= 1
            item_degree[item] -= 1
            dropped += 1
    return dropped
