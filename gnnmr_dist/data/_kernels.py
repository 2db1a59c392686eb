"""Compiled loops of sampling and batches: pure functions of arrays and 64-bit keys, run without the GIL.

Names used throughout: an *entry* is a place in ``indices`` (an edge seen from the row it stands in); a
*rank* counts the neighbours of a row that remain once excluded ones are skipped.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator,no-any-return"

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gnnmr_dist.randomness import absorb, bounded

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_AT_ONCE = 1024  # look-ups at random places done together, so that the processor waits for many at a time


def read_only(array: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """A read-only plain view, so that one compiled version serves mapped files and arrays in memory."""
    view = np.asarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view


@numba.njit(inline="always", cache=True)
def _lower_bound(row: npt.NDArray[np.integer], begin: int, end: int, value: int) -> int:
    while begin < end:
        middle = (begin + end) >> 1
        if row[middle] < value:
            begin = middle + 1
        else:
            end = middle
    return begin


@numba.njit(nogil=True, cache=True)
def find_entries(
    indptr: npt.NDArray[np.integer], indices: npt.NDArray[np.integer], rows: Int64Array, columns: Int64Array
) -> Int64Array:
    """The entry of each edge (rows[j], columns[j]), or -1 where the graph has no such edge."""
    out = np.empty(rows.size, np.int64)
    for j in range(rows.size):
        end = indptr[rows[j] + 1]
        entry = _lower_bound(indices, indptr[rows[j]], end, columns[j])
        out[j] = entry if entry < end and indices[entry] == columns[j] else -1
    return out


@numba.njit(nogil=True, cache=True)
def draw_negatives(
    indptr: npt.NDArray[np.integer],
    indices: npt.NDArray[np.integer],
    users: Int64Array,
    first_position: int,
    num_users: int,
    num_items: int,
    places: Int64Array,
    key: np.uint64,
) -> Int64Array:
    """One of ``num_items`` items outside each user's row, by rank in the complement; -1 where the row holds them all.

    Items are numbered among those drawn from by ``places`` (empty: every item is).
    """
    out = np.empty(users.size, np.int64)
    for j in range(users.size):
        begin, end = indptr[users[j]], indptr[users[j] + 1]
        absent = num_items - (end - begin)
        if absent <= 0:
            out[j] = -1
            continue
        rank = bounded(absorb(key, np.uint64(first_position + j)), np.uint64(absent))
        out[j] = complement_item(indices, begin, end, num_users, places, rank)
    return out


@numba.njit(nogil=True, cache=True)
def complement_item(
    indices: npt.NDArray[np.integer], begin: int, end: int, num_users: int, places: Int64Array, rank: int
) -> int:
    """The item (by ``places``) of rank ``rank`` among those absent from the sorted row ``indices[begin:end]``."""
    low, high = 0, end - begin
    while low < high:  # smallest j with row[j] - j > rank
        middle = (low + high) >> 1
        item = indices[begin + middle] - num_users
        if (places[item] if places.size else item) - middle > rank:
            high = middle
        else:
            low = middle + 1
    return rank + low


@numba.njit(inline="always", cache=True)
def _find(table: Int64Array, word: int) -> int:
    """The row of hash table [size, 2] whose first number is ``word``, or the empty one (-1) where it belongs."""
    mask = table.shape[0] - 1
    place = np.int64((np.uint64(word) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
    while table[place, 0] >= 0 and table[place, 0] != word:
        place = (place + 1) & mask
    return place


@numba.njit(nogil=True, cache=True)
def _places(words: Int64Array) -> Int64Array:
    """A hash table [size, 2] from each of ``words`` (distinct, not negative) to its place, a quarter full at most."""
    size = 16
    while size < 4 * words.size:
        size *= 2
    table = np.full((size, 2), -1, np.int64)
    for j in range(words.size):
        place = _find(table, words[j])
        table[place, 0], table[place, 1] = words[j], j
    return table


@numba.njit(nogil=True, cache=True)
def mark_known(
    indptr: npt.NDArray[np.integer],
    indices: npt.NDArray[np.integer],
    users: Int64Array,
    candidates: Int64Array,
    num_users: int,
) -> BoolArray:
    """[n, C]: whether candidates[c] (item numbers, distinct) stands in the row of users[b]."""
    count = candidates.size
    out = np.zeros((users.size, count), np.bool_)
    columns = _places(candidates)
    for b in range(users.size):
        begin, end = indptr[users[b]], indptr[users[b] + 1]
        if end - begin < 8 * count:  # look the row's items up among the candidates, or the other way round
            for entry in range(begin, end):
                place = _find(columns, indices[entry] - num_users)
                if columns[place, 0] >= 0:
                    out[b, columns[place, 1]] = True
        else:
            for c in range(count):
                node = candidates[c] + num_users
                entry = _lower_bound(indices, begin, end, node)
                out[b, c] = entry < end and indices[entry] == node
    return out


@numba.njit(nogil=True, cache=True)
def label_seeds(seeds: Int64Array, numbers: Int32Array, base: int) -> int:
    """Give the seeds the numbers ``base``.. in order; the place of the first seed that stands twice, or -1."""
    for j in range(seeds.size):
        if numbers[seeds[j]] >= base:
            return j
        numbers[seeds[j]] = base + j
    return -1


@numba.njit(nogil=True, cache=True)
def row_bounds(
    indptr: npt.NDArray[np.integer], nodes: Int64Array, start: Int64Array, length: Int64Array
) -> None:
    """First entry and length of every node's row, into ``start`` and ``length`` [n]."""
    for j in range(nodes.size):
        start[j] = indptr[nodes[j]]
        length[j] = indptr[nodes[j] + 1] - start[j]


@numba.njit(nogil=True, cache=True)
def sample_pointers(remaining: Int64Array, fan_out: int) -> Int64Array:
    """Row pointers [n + 1] of a sample of min(fan_out, remaining) per node; fan_out -1 = all."""
    out = np.zeros(remaining.size + 1, np.int64)
    for j in range(remaining.size):
        out[j + 1] = out[j] + (remaining[j] if fan_out < 0 else min(fan_out, remaining[j]))
    return out


@numba.njit(nogil=True, cache=True)
def skip_excluded(
    rows: Int64Array, excluded_ptr: Int64Array, excluded: Int64Array, sample_ptr: Int64Array, out: Int64Array
) -> None:
    """Turn ranks into entries where a row has excluded entries: pass over those at or below, one by one.

    ``rows[s]`` is the row of ``out`` whose excluded entries, ascending, are part s; -1 = not in the sample.
    """
    for s in range(rows.size):
        if rows[s] < 0:
            continue
        first, last = excluded_ptr[s], excluded_ptr[s + 1]
        skipped = first
        for i in range(sample_ptr[rows[s]], sample_ptr[rows[s] + 1]):
            while skipped < last and excluded[skipped] <= out[i] + (skipped - first):
                skipped += 1
            out[i] += skipped - first


@numba.njit(nogil=True, cache=True)
def label_sources(
    indices: npt.NDArray[np.integer],
    entries: Int64Array,
    numbers: Int32Array,
    base: int,
    known: int,
    found: Int64Array,
) -> int:
    """Turn entries, in place, into local numbers of their nodes; the number of new nodes.

    Node v is known if ``numbers[v] >= base``, and its local number is the difference. New nodes are numbered from
    ``known`` on in order of discovery, which is the order of ``found``; that has room for one more than can be new,
    since every node is written there first: a branch on whether it is new would be a guess each time.
    """
    nodes, new = np.empty(_AT_ONCE, np.int32), 0
    for first in range(0, entries.size, _AT_ONCE):
        part = entries[first : first + _AT_ONCE]
        for j in range(part.size):
            nodes[j] = indices[part[j]]
        for j in range(part.size):  # fetched for the loop below, where each waits for the one before
            part[j] = numbers[nodes[j]]
        for j in range(part.size):
            number = np.int64(numbers[nodes[j]])
            is_new = number < base
            found[new] = nodes[j]
            numbers[nodes[j]] = base + known + new if is_new else number
            part[j] = known + new if is_new else number - base
            new += 1 if is_new else 0
    return new


@numba.njit(nogil=True, cache=True)
def fold(key: np.uint64, words: Int64Array) -> np.uint64:
    """The key after absorbing all ``words`` in order."""
    state = np.uint64(key)
    for j in range(words.size):
        state = absorb(state, np.uint64(words[j]))
    return state


@numba.njit(nogil=True, cache=True)
def widen_rows(bits: npt.NDArray[np.uint16], rows: Int64Array, out: npt.NDArray[np.float32]) -> None:
    """Fill ``out`` [n, F] with the half-precision numbers ``bits[rows]``, which must be finite, exactly.

    A half's exponent and fraction, moved to where a float has them, make a float smaller by 2^112, also below the
    normal range.
    """
    for j in range(rows.size):
        row = rows[j]
        for c in range(bits.shape[1]):
            half = np.uint32(bits[row, c])
            size = np.uint32((half & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32)
            exact = np.float32(size * np.float32(2.0**112))
            sign = np.uint32((half & np.uint32(0x8000)) << np.uint32(16))
            out[j, c] = np.uint32(exact.view(np.uint32) | sign).view(np.float32)
