"""Buckets and sorting against Python's sort, with buckets and blocks of a few rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.data import scratch, sorting
from gnnmr_dist.data.raw import Columns

ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=40)


@pytest.fixture(params=[1, 3, 1000], autouse=True)
def _tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "BUCKET_ROWS", request.param)
    blocks = scratch.blocks
    monkeypatch.setattr(sorting, "blocks", lambda size: blocks(size, max(2, request.param // 2)))


def arguments(rows: list[tuple[int, int]], seed: int) -> tuple[Columns, np.ndarray, np.ndarray]:
    """Columns that remember the file's row, and ranks that reverse the numbers."""
    users, items = np.array(rows, np.int32).T
    enough = np.random.default_rng(seed).random(len(rows)) < 0.8
    columns = Columns(users, items, np.arange(len(rows)), None, None, enough)
    return columns, np.arange(7, dtype=np.int32)[::-1], np.arange(5, dtype=np.int32)[::-1]


@given(ROWS, st.sampled_from(["first", "last"]), st.integers(0, 9))
def test_rows_are_sorted_and_the_first_or_last_of_a_pair_kept(
    rows: list[tuple[int, int]], keep: str, seed: int
) -> None:
    columns, user_rank, item_rank = arguments(rows, seed)
    chosen: dict[tuple[int, int], int] = {}
    for row, (user, item) in enumerate(rows):
        pair = (6 - user, 4 - item)
        if keep == "last" or pair not in chosen:
            chosen[pair] = row
    assert columns.enough is not None
    expected = [(*pair, row) for pair, row in sorted(chosen.items()) if columns.enough[row]]
    found, repeated = sorting.in_order(columns, user_rank, item_rank, keep)
    assert found.times is not None
    assert (
        list(zip(found.users.tolist(), found.items.tolist(), found.times.tolist(), strict=True)) == expected
    )
    assert repeated is None


@given(ROWS)
def test_the_first_row_that_repeats_a_pair_is_told(rows: list[tuple[int, int]]) -> None:
    again = [row for row, pair in enumerate(rows) if pair in rows[:row]]
    _, repeated = sorting.in_order(*arguments(rows, 0), "error")
    assert repeated == (again[0] if again else None)


def test_keys_too_large_to_share_a_word_with_their_row_are_sorted_all_the_same() -> None:
    key = np.array([2**62 + 5, 3, 2**62, 3])
    order, ordered = sorting._stable_order(key)
    assert order.tolist() == [1, 3, 2, 0]
    assert ordered.tolist() == [3, 3, 2**62, 2**62 + 5]
