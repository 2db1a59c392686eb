"""The k best items of every user from tiles of scores that arrive one after the other: compiled, one thread, no GIL.

Each user has a level that only rises: k of the items so far score at least that much, so a later item that does not
exceed it can never be among the k best. A tile is read once, 64 scores at a time, and only what exceeds the level is
looked at; now and then the worst of it is thrown away. Axes: b users, w items of a tile, k places.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

UInt64Array = npt.NDArray[np.uint64]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

ROOM = 3
"""Candidates kept per place before the worst are thrown away (measured: 2 to 4 are alike)."""

LANES = 64
"""Scores compared at once: the bits of one machine word."""

PIECE = 16
"""Words compared before the hits among them are gone through (measured: 8 to 32 are alike)."""

GROUP, FIRST = 16, 2048
"""The first level comes from the bests of groups of so many of the first items (measured: a fifth less time)."""

_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_SIGN = np.int32(0x7FFFFFFF)
_PLACE = np.int64(0xFFFFFFFF)
_LOWEST = np.int32(-0x7F800001)  # the key of -inf


class TopK:
    """The k best items of b users, from scores offered in ascending order of items; ties: the smaller item first.

    Exact: :meth:`best` gives what sorting all scores would give. A score of -inf is never taken.
    """

    def __init__(self, k: int, num_items: int, indptr: Int64Array, masked: Int64Array) -> None:
        """``masked[indptr[r]:indptr[r + 1]]`` are the items to leave out for user r, ascending; ``indptr`` [b + 1]."""
        shape = (indptr.size - 1, min(ROOM * k, num_items))
        self._k, self._indptr, self._masked = min(k, num_items), indptr, masked
        self._next = indptr[:-1].copy()
        self._level = np.full(shape[0], -np.inf, np.float32)
        self._count = np.zeros(shape[0], np.int64)
        self._values, self._items = np.empty(shape, np.float32), np.empty(shape, np.int64)

    def offer(self, scores: Float32Array, offset: Float32Array, first: int) -> None:
        """Take in the scores [b, w] of items first..first + w - 1; ``offset`` [w] is added to every user's.

        Raises:
            ValueError: a score is NaN.
        """
        state = (self._next, self._level, self._count, self._values, self._items)
        if _offer(scores, offset, first, self._indptr, self._masked, *state, self._k):
            raise ValueError("a score is NaN")

    def best(self) -> tuple[Int64Array, Float32Array]:
        """Items and scores [b, min(k, num_items)], best first; -1 and -inf where a user has fewer."""
        order = np.sort(_finish(self._count, self._values, self._items, self._k), axis=1) & _PLACE
        return np.take_along_axis(self._items, order, axis=1), np.take_along_axis(self._values, order, axis=1)


@intrinsic
def _above(_: Any, scores: Any, offset: Any, start: Any, level: Any) -> Any:
    """Bit j: scores[start + j] + offset[start + j] > level, or is NaN. Vector code for whatever the machine has."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        floats, index = ir.VectorType(ir.FloatType(), LANES), ir.IntType(32)
        sides = []
        for kind, value in zip(signature.args[:2], values[:2], strict=True):
            place = builder.gep(context.make_array(kind)(context, builder, value).data, [values[2]])
            sides.append(builder.load(builder.bitcast(place, floats.as_pointer()), align=4))
        undefined = ir.Constant(floats, ir.Undefined)
        level = builder.insert_element(undefined, values[3], ir.Constant(index, 0))
        level = builder.shuffle_vector(
            level, undefined, ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
        )
        return builder.bitcast(builder.fcmp_unordered(">", builder.fadd(*sides), level), ir.IntType(LANES))

    return types.uint64(scores, offset, start, level), build


@intrinsic
def _lowest_bit(_: Any, word: Any) -> Any:
    """Place of the lowest bit that is set in ``word``, which is not 0."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(word), build


@numba.njit(nogil=True, cache=True)
def _offer(
    scores: Float32Array,
    offset: Float32Array,
    first: int,
    indptr: Int64Array,
    masked: Int64Array,
    next_masked: Int64Array,
    levels: Float32Array,
    count: Int64Array,
    values: Float32Array,
    items: Int64Array,
    k: int,
) -> bool:
    """See :meth:`TopK.offer`; whether a NaN was met, which ends the work."""
    width, room = scores.shape[1], values.shape[1]
    words, places = np.empty(PIECE + 1, np.uint64), np.empty(PIECE + 1, np.int64)
    for r in range(scores.shape[0]):
        level, n, m, end = levels[r], count[r], next_masked[r], indptr[r + 1]
        row, best, names = scores[r], values[r], items[r]
        if level == -np.inf:
            seen = np.searchsorted(
                masked[m:end], first + FIRST
            )  # so many groups may have a best that is masked
            level = _first_level(row[:FIRST], offset[:FIRST], k + seen)
        for piece in range(0, width, PIECE * LANES):
            hits = _compare(row, offset, piece, min(piece + PIECE * LANES, width), level, words, places)
            for hit in range(hits):
                word = words[hit]
                while word != 0:
                    j = places[hit] + _lowest_bit(word)
                    word &= word - np.uint64(1)
                    score = row[j] + offset[j] + np.float32(0)  # -0.0, which equals 0.0, becomes 0.0
                    if score != score:
                        return True
                    while m < end and masked[m] < first + j:
                        m += 1
                    if score <= level or (m < end and masked[m] == first + j):
                        continue
                    if n == room:
                        level, n = _shrink(best, names, n, k, k + k // 4)
                    best[n], names[n] = score, first + j
                    n += score > level
        levels[r], count[r], next_masked[r] = level, n, m
    return False


@numba.njit(inline="always", cache=True)
def _compare(
    row: Float32Array,
    offset: Float32Array,
    begin: int,
    end: int,
    level: np.float32,
    words: UInt64Array,
    places: Int64Array,
) -> int:
    """Note the words among items begin..end - 1 that have a hit, and where they start; how many there are.

    Without a branch per word: the processor would guess wrong at every hit.
    """
    hits = 0
    for start in range(begin, end - LANES + 1, LANES):
        words[hits], places[hits] = _above(row, offset, start, level), start
        hits += words[hits] != 0
    rest = (end - begin) % LANES
    if rest:  # the last word is cut short: all its items are looked at
        words[hits], places[hits] = _ONES >> np.uint64(LANES - rest), end - rest
        hits += 1
    return hits


@numba.njit(nogil=True, cache=True)
def _first_level(row: Float32Array, offset: Float32Array, rank: int) -> np.float32:
    """A score that at least ``rank`` items exceed, as so many groups' bests do; -inf where that is not sure."""
    groups = row.size // GROUP
    if groups < rank:
        return np.float32(-np.inf)
    maxima = np.empty(groups, np.float32)
    for g in range(groups):
        scores, added = row[g * GROUP : (g + 1) * GROUP], offset[g * GROUP : (g + 1) * GROUP]
        best = np.float32(-np.inf)
        for j in range(GROUP):
            best = max(best, scores[j] + added[j])
        maxima[g] = best + np.float32(0)
    level, _ = _divide(_keys(maxima), rank, rank + rank // 4)
    level -= 2  # what reaches it exceeds this; 1 less than 0.0 would be -0.0
    if level <= _LOWEST:
        return np.float32(-np.inf)
    bits = np.array([level], np.int32)
    bits[0] ^= (bits[0] >> 31) & _SIGN
    return np.float32(bits.view(np.float32)[0])


@numba.njit(nogil=True, cache=True)
def _shrink(values: Float32Array, items: Int64Array, n: int, k: int, enough: int) -> tuple[np.float32, int]:
    """Throw away some of n candidates that k others beat, until at most ``enough`` >= k are left, still in order.

    Of candidates that tie at the border the first stay. Returns the least score that is left, and how many are.
    """
    keys = _keys(values[:n])
    level, at_least = _divide(keys, k, enough)
    ties = n if at_least <= enough else k - _count(keys, level + 1)
    kept = 0
    for i in range(n):  # without branches: which candidate stays cannot be guessed
        values[kept], items[kept] = values[i], items[i]
        tied = keys[i] == level
        kept += (keys[i] > level) | (tied & (ties > 0))
        ties -= tied
    return values[:kept].min(), kept


@numba.njit(nogil=True, cache=True)
def _keys(values: Float32Array) -> Int32Array:
    """The scores' bits as integers of the same order."""
    bits, keys = values.view(np.int32), np.empty(values.size, np.int32)
    for i in range(values.size):
        keys[i] = bits[i] ^ ((bits[i] >> 31) & _SIGN)
    return keys


@numba.njit(nogil=True, cache=True)
def _divide(keys: Int32Array, k: int, enough: int) -> tuple[np.int64, int]:
    """A level that at least k keys reach, and how many do: at most ``enough``, unless keys tie at the k-th.

    Halves the range between the least and the greatest key; a try counts in one pass without branches.
    """
    low, high, at_least = np.int64(keys.min()), np.int64(keys.max()) + 1, keys.size
    while at_least > enough and high - low > 1:
        middle = (low + high) >> 1
        total = _count(keys, middle)
        if total >= k:
            low, at_least = middle, total
        else:
            high = middle
    return low, at_least


@numba.njit(nogil=True, cache=True)
def _count(keys: Int32Array, level: int | np.int64) -> np.int32:
    """How many keys reach ``level``."""
    bound, total = np.int32(level), np.int32(0)
    for i in range(keys.size):
        total = np.int32(total + np.int32(keys[i] >= bound))  # in 32 bits: twice as many at once
    return total


@numba.njit(nogil=True, cache=True)
def _finish(count: Int64Array, values: Float32Array, items: Int64Array, k: int) -> Int64Array:
    """Bring every user's candidates down to k, or fill up to k; codes [b, k] that order them, each with its place."""
    codes = np.empty((count.size, k), np.int64)
    for r in range(count.size):
        if count[r] > k:
            _shrink(values[r], items[r], count[r], k, k)
        else:
            values[r, count[r] : k] = -np.inf
            items[r, count[r] : k] = -1
        keys = _keys(values[r, :k])
        for place in range(k):
            codes[r, place] = (-np.int64(keys[place]) << 32) | place
    return codes
