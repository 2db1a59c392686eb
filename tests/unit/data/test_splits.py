from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.data.splits import (
    TEST,
    TRAIN,
    VALID,
    cold_item_split,
    global_time_cuts,
    global_time_split,
    leave_latest_split,
    random_split,
    user_time_split,
)

RATIOS = st.sampled_from([(0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.34, 0.33, 0.33), (0.1, 0.45, 0.45)])
SEEDS = st.integers(0, 2**40)
HISTORIES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=80)


def columns(history: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    users, times = np.array(sorted(history, key=lambda row: row[0])).T
    return users, times


def assert_latest_are_held_out(users: np.ndarray, times: np.ndarray, parts: np.ndarray) -> None:
    for user in np.unique(users):
        ordered = [times[(users == user) & (parts == part)] for part in (TRAIN, VALID, TEST)]
        ordered = [part for part in ordered if part.size]
        assert all(one.max() <= other.min() for one, other in pairwise(ordered))


@given(st.integers(0, 500), RATIOS, SEEDS)
def test_random_split_gives_the_rounded_shares(n: int, ratios: tuple[float, float, float], seed: int) -> None:
    parts = random_split(n, ratios, seed)
    sizes = np.bincount(parts, minlength=3)
    assert parts.shape == (n,)
    assert sizes.sum() == n
    assert np.all(np.abs(sizes - np.array(ratios) * n) <= 1)


def test_random_split_depends_on_the_seed_alone() -> None:
    one = random_split(1000, (0.8, 0.1, 0.1), 3)
    assert np.array_equal(one, random_split(1000, (0.8, 0.1, 0.1), 3))
    assert not np.array_equal(one, random_split(1000, (0.8, 0.1, 0.1), 4))


def test_random_split_is_the_one_published_with_this_seed() -> None:
    """A golden value: data sets made by an older version must come out the same."""
    assert random_split(10, (0.6, 0.2, 0.2), 0).tolist() == [0, 2, 1, 0, 1, 2, 0, 0, 0, 0]


@given(HISTORIES, RATIOS)
def test_user_time_split_holds_out_the_latest(
    history: list[tuple[int, int]], ratios: tuple[float, float, float]
) -> None:
    users, times = columns(history)
    parts = user_time_split(users, times, ratios)
    assert_latest_are_held_out(users, times, parts)
    for user in np.unique(users):
        train, valid, test = np.bincount(parts[users == user], minlength=3)
        count = train + valid + test
        assert train >= 1
        assert test == min(int(np.floor(ratios[2] * count + 0.5)), count - 1)
        assert valid == min(int(np.floor(ratios[1] * count + 0.5)), count - 1 - test)


@given(HISTORIES, st.integers(1, 3))
def test_leave_latest_split_counts(history: list[tuple[int, int]], leave: int) -> None:
    users, times = columns(history)
    parts = leave_latest_split(users, times, leave)
    assert_latest_are_held_out(users, times, parts)
    for user in np.unique(users):
        sizes = np.bincount(parts[users == user], minlength=3)
        count = sizes.sum()
        held = leave if count > 2 * leave else 0
        assert sizes.tolist() == [count - 2 * held, held, held]


def test_user_time_split_by_hand() -> None:
    users = np.array([0, 0, 0, 0, 0, 1])
    times = np.array([50, 10, 40, 30, 20, 7])
    assert user_time_split(users, times, (0.6, 0.2, 0.2)).tolist() == [TEST, 0, VALID, 0, 0, 0]


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=100), RATIOS)
def test_no_train_row_is_later_than_a_held_out_one(
    moments: list[int], ratios: tuple[float, float, float]
) -> None:
    times = np.array(moments)
    cuts = global_time_cuts(times, ratios)
    parts = global_time_split(times, cuts)
    for earlier, later in ((TRAIN, VALID), (TRAIN, TEST), (VALID, TEST)):
        if (parts == earlier).any() and (parts == later).any():
            assert times[parts == earlier].max() < times[parts == later].min()


def test_global_time_split_meets_the_ratios_where_moments_differ() -> None:
    times = np.random.default_rng(0).permutation(100)
    parts = global_time_split(times, global_time_cuts(times, (0.8, 0.1, 0.1)))
    assert np.bincount(parts).tolist() == [80, 10, 10]
    assert np.array_equal(global_time_split(times, (80, 90)), parts)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.floats(0.05, 0.95), SEEDS)
def test_cold_items_leave_train_with_all_their_rows(numbers: list[int], share: float, seed: int) -> None:
    items = np.array(numbers)
    parts = cold_item_split(items, share, seed)
    sets = [set(items[parts == part].tolist()) for part in (TRAIN, VALID, TEST)]
    assert sum(map(len, sets)) == len(set(numbers))  # every item in one part only
    held = int(np.floor(share * len(set(numbers)) + 0.5))
    assert [len(sets[VALID]), len(sets[TEST])] == [held // 2, held - held // 2]


@pytest.mark.parametrize("seed", [0, 1])
def test_cold_items_depend_on_the_seed_alone(seed: int) -> None:
    items = np.arange(50).repeat(3)
    assert np.array_equal(cold_item_split(items, 0.3, seed), cold_item_split(items, 0.3, seed))
    assert not np.array_equal(cold_item_split(items, 0.3, seed), cold_item_split(items, 0.3, seed + 2))
