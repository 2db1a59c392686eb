"""Splits: each row of the interactions becomes TRAIN, VALID or TEST.

Every function returns parts int8 [n]. Rows are expected in a fixed order (by user, then item), so that a
split depends on the interactions and the seed, never on the order of the rows in a file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
    order = generator(seed, Purpose.SPLIT).permutation(n)
    first, second = _bounds(n, ratios)
    parts = np.full(n, TRAIN, np.int8)
    parts[order[first:second]] = VALID
    parts[order[second:]] = TEST
    return parts


def user_time_split(users: IntArray, times: IntArray, ratios: Ratios) -> Parts:
    """Each user's latest rows are test and the rows before them valid, by shares of the user's history.

    A user with c rows gives round(ratio * c) of them to test and to valid, but always keeps the earliest in
    train. Rows of the same moment are taken in the order given.
    """
    count = np.bincount(users)
    test = np.minimum(np.floor(ratios[2] * count + 0.5).astype(np.int64), np.maximum(count - 1, 0))
    valid = np.minimum(np.floor(ratios[1] * count + 0.5).astype(np.int64), np.maximum(count - 1 - test, 0))
    return _latest(users, times, valid, test)


def leave_latest_split(users: IntArray, times: IntArray, leave: int) -> Parts:
    """Each user's last ``leave`` rows are test, the ``leave`` before them valid.

    Users with fewer than 2 * ``leave`` + 1 rows stay wholly in train.
    """
    held = np.where(np.bincount(users) > 2 * leave, leave, 0)
    return _latest(users, times, held, held)


def _latest(users: IntArray, times: IntArray, valid: IntArray, test: IntArray) -> Parts:
    """Parts from the number of valid and test rows per user [U]."""
    order = np.lexsort((times, users))
    ordered = users[order]
    end = np.cumsum(np.bincount(users))
    from_end = end[ordered] - np.arange(users.size)  # 1 = the user's last row
    parts = np.full(users.size, TRAIN, np.int8)
    parts[order[from_end <= (valid + test)[ordered]]] = VALID
    parts[order[from_end <= test[ordered]]] = TEST
    return parts


def global_time_cuts(times: IntArray, ratios: Ratios) -> tuple[int, int]:
    """The first timestamps of valid and of test that come nearest to the ratios (n >= 1 rows)."""
    first, second = _bounds(times.size, ratios)
    ordered = np.sort(times)
    last = times.size - 1
    return int(ordered[min(first, last)]), int(ordered[min(second, last)])


def global_time_split(times: IntArray, cuts: tuple[int, int]) -> Parts:
    """Train before ``cuts[0]``, test from ``cuts[1]`` on, valid between; one moment is never cut."""
    return (np.asarray(times >= cuts[0], np.int8) + np.asarray(times >= cuts[1], np.int8)).astype(np.int8)


def cold_item_split(items: IntArray, share: float, seed: int) -> Parts:
    """``share`` of the items (of those with rows) held out with all their rows: half valid, half test.

    round(share * count) items are drawn at random; of an odd number test gets one more.
    """
    known = np.unique(items)
    held = generator(seed, Purpose.SPLIT).permutation(known)[: int(np.floor(share * known.size + 0.5))]
    part = np.full(int(items.max(initial=-1)) + 1, TRAIN, np.int8)
    part[held] = TEST
    part[held[: held.size // 2]] = VALID
    return part[items]
