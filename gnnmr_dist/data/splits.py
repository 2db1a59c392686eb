"""Splits: each row of the interactions becomes TRAIN, VALID or TEST.

Every function returns parts int8 [n]. Rows are expected in a fixed order (by user, then item), so that a
split depends on the interactions and the seed, never on the order of the rows in a file. Arrays of n rows lie in
scratch files; what is looked at in memory follows users and items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from gnnmr_dist.data.filters import counts
from gnnmr_dist.data.scratch import BLOCK_ROWS, blocks, scratch
from gnnmr_dist.randomness import Purpose, generator

TRAIN, VALID, TEST = 0, 1, 2

IntArray = npt.NDArray[np.integer]
Parts = npt.NDArray[np.int8]
Ratios = tuple[float, float, float]


def _bounds(n: int, ratios: Ratios) -> tuple[int, int]:
    """Rows before the first and before the second cut, each rounded to the nearest."""
    return int(np.floor(ratios[0] * n + 0.5)), int(np.floor((ratios[0] + ratios[1]) * n + 0.5))


def random_split(n: int, ratios: Ratios, seed: int) -> Parts:
    """Rows drawn at random; the counts are the ratios' shares of n, rounded."""
    order = scratch(n, np.int32 if n < 2**31 else np.int64)
    for block in blocks(n):
        order[block] = np.arange(block.start, block.stop)
    generator(seed, Purpose.SPLIT).shuffle(order)  # the order that permutation(n) gives, at half its size
    first, second = _bounds(n, ratios)
    parts = scratch(n, np.int8)
    for begin, end, part in ((first, second, VALID), (second, n, TEST)):
        for block in blocks(end - begin):
            parts[order[begin + block.start : begin + block.stop]] = part
    return parts


def user_time_split(users: IntArray, times: IntArray, ratios: Ratios) -> Parts:
    """Each user's latest rows are test and the rows before them valid, by shares of the user's history.

    Rows are in ascending order of users. A user with c rows gives round(ratio * c) of them to test and to valid, but
    always keeps the earliest in train. Rows of the same moment are taken in the order given.
    """

    def held(count: IntArray) -> tuple[IntArray, IntArray]:
        test = np.minimum(np.floor(ratios[2] * count + 0.5).astype(np.int64), np.maximum(count - 1, 0))
        share = np.floor(ratios[1] * count + 0.5).astype(np.int64)
        return np.minimum(share, np.maximum(count - 1 - test, 0)), test

    return _latest(users, times, held)


def leave_latest_split(users: IntArray, times: IntArray, leave: int) -> Parts:
    """Each user's last ``leave`` rows are test, the ``leave`` before them valid.

    Rows are in ascending order of users; users with fewer than 2 * ``leave`` + 1 rows stay wholly in train.
    """

    def held(count: IntArray) -> tuple[IntArray, IntArray]:
        each = np.where(count > 2 * leave, leave, 0)
        return each, each

    return _latest(users, times, held)


def _latest(users: IntArray, times: IntArray, held: Callable[[IntArray], tuple[IntArray, IntArray]]) -> Parts:
    """Parts from the numbers of valid and test rows, which ``held`` tells for users [k] with so many rows."""
    parts = scratch(users.size, np.int8)
    for rows in _whole_users(users, BLOCK_ROWS):
        _, user, count = np.unique(users[rows], return_inverse=True, return_counts=True)
        valid, test = held(count)
        order = np.lexsort((times[rows], user))
        from_end = np.cumsum(count)[user] - np.arange(user.size)  # 1 = the user's last row
        part = np.where(from_end <= (valid + test)[user], VALID, TRAIN)
        part[from_end <= test[user]] = TEST
        parts[rows][order] = part
    return parts


def _whole_users(users: IntArray, rows: int) -> Iterator[slice]:
    """Slices of ascending ``users`` of about so many rows that never part a user."""
    start = 0
    while start < users.size:
        last = users[min(start + rows, users.size) - 1]
        stop = start + int(np.searchsorted(users[start:], last, side="right"))
        yield slice(start, stop)
        start = stop


def global_time_cuts(times: IntArray, ratios: Ratios) -> tuple[int, int]:
    """The first timestamps of valid and of test that come nearest to the ratios (n >= 1 rows)."""
    last = times.size - 1
    first, second = (min(bound, last) for bound in _bounds(times.size, ratios))
    ordered = scratch(times.size, times.dtype)
    ordered[:] = times
    ordered.partition([first, second])
    return int(ordered[first]), int(ordered[second])


def global_time_split(times: IntArray, cuts: tuple[int, int]) -> Parts:
    """Train before ``cuts[0]``, test from ``cuts[1]`` on, valid between; one moment is never cut."""
    parts = scratch(times.size, np.int8)
    for block in blocks(times.size):
        parts[block] = (times[block] >= cuts[0]).astype(np.int8) + (times[block] >= cuts[1])
    return parts


def cold_item_split(items: IntArray, share: float, seed: int) -> Parts:
    """``share`` of the items (of those with rows) held out with all their rows: half valid, half test.

    round(share * count) items are drawn at random; of an odd number test gets one more.
    """
    count = counts(items)
    known = np.flatnonzero(count)
    held = generator(seed, Purpose.SPLIT).permutation(known)[: int(np.floor(share * known.size + 0.5))]
    part = np.full(count.size, TRAIN, np.int8)
    part[held] = TEST
    part[held[: held.size // 2]] = VALID
    parts = scratch(items.size, np.int8)
    for block in blocks(items.size):
        parts[block] = part[items[block]]
    return parts
