from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.data.filters import core

PAIRS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60)


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def peeled(pairs: list[tuple[int, int]], per_user: int, per_item: int) -> list[tuple[int, int]]:
    """The core the slow way: one offending row at a time."""
    left = list(pairs)
    while True:
        for pair in left:
            users = sum(user == pair[0] for user, _ in left)
            items = sum(item == pair[1] for _, item in left)
            if users < per_user or items < per_item:
                left.remove(pair)
                break
        else:
            return left


@given(PAIRS, st.integers(1, 4), st.integers(1, 4))
def test_core_is_the_set_left_by_peeling(pairs: list[tuple[int, int]], per_user: int, per_item: int) -> None:
    unique = sorted(set(pairs))
    users, items = columns(unique)
    kept = core(users, items, per_user, per_item)
    assert [pair for pair, keep in zip(unique, kept, strict=True) if keep] == peeled(
        unique, per_user, per_item
    )


@given(PAIRS, st.integers(1, 4))
def test_core_is_a_fixed_point(pairs: list[tuple[int, int]], k: int) -> None:
    users, items = columns(sorted(set(pairs)))
    kept = core(users, items, k, k)
    assert core(users[kept], items[kept], k, k).all()
