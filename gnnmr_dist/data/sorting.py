"""Interactions put in (user, item) order and rid of repeated pairs, in memory that follows users and items only.

First every row goes to the bucket of its user: buckets are ranges of the columns, each written from its beginning to
its end. Then each bucket, about ``BUCKET_ROWS`` rows of neighbouring users, is sorted in memory. Both steps keep the
file's order among equal pairs.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator,no-any-return"

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import numpy.typing as npt

from gnnmr_dist.data.raw import Columns
from gnnmr_dist.data.scratch import blocks, scratch

BUCKET_ROWS = 1 << 20

IntArray = npt.NDArray[np.integer]


def in_order(raw: Columns, user_rank: IntArray, item_rank: IntArray, keep: str) -> tuple[Columns, int | None]:
    """The rows by (user, item), of a repeated pair only the ``keep`` ("first" or "last") of the file.

    The numbers of ``raw`` give way to their ranks (``user_rank[number]``). Rows that are not ``enough`` are dropped
    after that. With ``keep`` "error" also the first row of the file that repeats an earlier one's pair, None if none
    does.
    """
    buckets = _Buckets(raw.users, user_rank)
    out = raw.each(lambda column: scratch(column.size, column.dtype))
    for block, place in buckets.places():
        out.users[place] = user_rank[raw.users[block]]
        out.items[place] = item_rank[raw.items[block]]
        for name in ("times", "weights", "parts", "enough"):
            if (column := getattr(raw, name)) is not None:
                getattr(out, name)[place] = column[block]
    end = 0
    repeated: list[IntArray] = []
    for start, stop in buckets.ranges():
        rows = out.each(lambda column, rows=slice(start, stop): column[rows])  # type: ignore[misc]
        chosen, again = _sorted_rows(rows, int(item_rank.max()) + 1, keep)
        repeated += [start + again] if keep == "error" else []
        for column, values in zip(out.present(), rows.present(), strict=True):
            column[end : end + chosen.size] = values[chosen]
        end += chosen.size
    return out.each(lambda column: column[:end]), buckets.first_row(repeated)


class _Buckets:
    """Where each row of a column of users goes."""

    def __init__(self, users: IntArray, rank: IntArray) -> None:
        self.users, self.rank = users, rank
        count = np.zeros(int(rank.max(initial=-1)) + 1, np.int64)
        for block in blocks(users.size):
            count += np.bincount(rank[users[block]], minlength=count.size)
        before = np.cumsum(count) - count
        self.of_rank = (before // BUCKET_ROWS).astype(np.int32)
        sizes = np.bincount(self.of_rank, weights=count).astype(np.int64)
        self.bounds = np.concatenate([[0], np.cumsum(sizes)])

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and last + 1 place of every bucket that has rows."""
        yield from ((int(a), int(b)) for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True) if a < b)

    def places(self) -> Iterator[tuple[slice, IntArray]]:
        """Some rows of the file and the place int64 of each."""
        cursor = self.bounds[:-1].copy()
        for block in blocks(self.users.size):
            bucket = self.of_rank[self.rank[self.users[block]]]
            yield block, _next_places(bucket, cursor)

    def first_row(self, places: list[IntArray]) -> int | None:
        """The first row of the file that went to one of some places; None if there are no places."""
        if not any(some.size for some in places):
            return None
        wanted = scratch(self.users.size, np.bool_)
        wanted[np.concatenate(places)] = True
        return next(
            block.start + int(np.argmax(wanted[place]))
            for block, place in self.places()
            if wanted[place].any()
        )


def _sorted_rows(rows: Columns, num_items: int, keep: str) -> tuple[IntArray, IntArray]:
    """The rows of a bucket to keep, in order, and those whose pair stands in an earlier row."""
    first = int(rows.users.min())
    key = (rows.users.astype(np.int64) - first) * num_items + rows.items
    order, key = _stable_order(key)
    same = key[1:] == key[:-1]
    kept = np.ones(key.size, bool)
    (kept[:-1] if keep == "last" else kept[1:])[same] = False
    if rows.enough is not None:
        kept &= rows.enough[order]
    return (order if kept.all() else order[kept]), order[1:][same]


def _stable_order(key: npt.NDArray[np.int64]) -> tuple[IntArray, npt.NDArray[np.int64]]:
    """The order that sorts keys [n] >= 0 and leaves equal ones as they are, and the sorted keys.

    Where key and row fit one word, they are sorted as one: the row breaks ties, and plain sorting is several times
    faster than any that returns an order.
    """
    bits = key.size.bit_length()
    if int(key.max()).bit_length() + bits > 63:
        order = np.argsort(key, kind="stable")
        return order, key[order]
    words = (key << bits) | np.arange(key.size)
    words.sort()
    return words & ((1 << bits) - 1), words >> bits


@numba.njit(nogil=True, cache=True)
def _next_places(bucket: IntArray, cursor: IntArray) -> IntArray:
    out = np.empty(bucket.size, np.int64)
    for j in range(bucket.size):
        out[j] = cursor[bucket[j]]
        cursor[bucket[j]] += 1
    return out
