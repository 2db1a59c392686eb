"""Filters of interactions: repeated pairs and the k-core."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]


def repeated_pairs(users: IntArray, items: IntArray, keep: str) -> npt.NDArray[np.bool_]:
    """Rows [n] that repeat the pair of another row; the ``"first"`` or ``"last"`` of a pair is none."""
    step = 1 if keep == "first" else -1
    key = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    order = np.argsort(key[::step], kind="stable")
    if step == -1:
        order = key.size - 1 - order
    ordered = key[order]
    repeated = np.zeros(key.size, bool)
    repeated[order[1:][ordered[1:] == ordered[:-1]]] = True
    return repeated


def core(users: IntArray, items: IntArray, per_user: int, per_item: int) -> npt.NDArray[np.bool_]:
    """Rows [n] of the largest set in which every user has ``per_user`` rows and every item ``per_item``.

    The (p, q)-core of the bipartite graph (k-core: p = q = k): rows of too small users and items are dropped
    until none is left, which is the same set in whatever order they go.
    """
    kept = np.arange(users.size)
    while kept.size:
        user_degree = np.bincount(users[kept])
        item_degree = np.bincount(items[kept])
        enough = (user_degree[users[kept]] >= per_user) & (item_degree[items[kept]] >= per_item)
        if enough.all():
            break
        kept = kept[enough]
    mask = np.zeros(users.size, bool)
    mask[kept] = True
    return mask
