"""Compiled draws without replacement: k distinct ranks of 0..n-1, every subset equally likely (Floyd; Bentley 1987).

Draw j is uniform on 0..n-k+j; where it is taken already, n-k+j itself is chosen, which cannot be. The functions
``ranks_*`` make the same draws and the same choice; they differ in how they remember what is taken, which decides
their speed. All of it stands in one module because numba's cache of a function notices changes in its own file only.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator,no-any-return"

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gnnmr_dist.randomness import absorb, bounded, mix64

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

WORD = 64
LARGEST_BIT_SET = 2048
"""Rows longer than this many neighbours are searched, not marked in a set of bits, which would have to be cleared."""


@numba.njit(inline="always", cache=True)
def draw(state: np.uint64, j: int, n: int) -> np.int64:
    """Draw j of the stream that starts at ``state``, uniform on 0..n-1 (SplitMix64's j-th output)."""
    return bounded(mix64(state + np.uint64(j + 1) * np.uint64(0x9E3779B97F4A7C15)), np.uint64(n))


@numba.njit(inline="always", cache=True)
def _draw_all(state: np.uint64, values: Int64Array, count: int, n: int) -> None:
    for j in range(count):  # apart from what follows, so that it is done for several j at once
        values[j] = draw(state, j, n - count + j + 1)


@numba.njit(inline="always", cache=True)
def _bits_set(word: np.uint64) -> np.int64:
    """How many bits of a word are set; compilers know this form and make it one instruction."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(inline="always", cache=True)
def ranks_in_word(
    state: np.uint64, values: Int64Array, out: Int64Array, begin: int, count: int, n: int, first: int
) -> None:
    """``first`` + each of ``count`` ranks of 0..n-1, n <= 64, into out[begin:]: the set is one word.

    ``values`` [>= count] is room to work in. No branch depends on the draws.
    """
    one = np.uint64(1)
    _draw_all(state, values, count, n)
    taken, top = np.uint64(0), one << np.uint64(n - count)
    for j in range(count):
        rank = np.uint64(values[j])
        again = np.uint64(0) - ((taken >> rank) & one)  # all bits if it is taken already
        taken |= (one << rank) | (top & again)
        top <<= one
    for place in range(begin, begin + count):
        out[place] = first + _bits_set(~taken & (taken - one))  # below the lowest bit
        taken &= taken - one


@numba.njit(inline="always", cache=True)
def ranks_in_words(
    state: np.uint64,
    values: Int64Array,
    taken: UInt64Array,
    before: Int64Array,
    out: Int64Array,
    begin: int,
    count: int,
    n: int,
    first: int,
) -> None:
    """The same for n <= LARGEST_BIT_SET: a rank's place is the number of bits set below it.

    ``taken`` and ``before`` [LARGEST_BIT_SET / 64] are room to work in.
    """
    one = np.uint64(1)
    _draw_all(state, values, count, n)
    num_words = (n + 63) >> 6
    for i in range(num_words):
        taken[i] = 0
    for j in range(count):
        rank = values[j]
        again = np.int64((taken[rank >> 6] >> np.uint64(rank & 63)) & one)
        rank ^= -again & (rank ^ (n - count + j))
        taken[rank >> 6] |= one << np.uint64(rank & 63)
        values[j] = rank
    place = begin
    for i in range(num_words):
        before[i] = place
        place += _bits_set(taken[i])
    for j in range(count):
        rank = values[j]
        below = taken[rank >> 6] & ((one << np.uint64(rank & 63)) - one)
        out[before[rank >> 6] + _bits_set(below)] = first + rank


@numba.njit(inline="always", cache=True)
def ranks_searched(
    state: np.uint64,
    chosen: Int32Array,
    out: Int64Array,
    begin: int,
    count: int,
    n: int,
    first: int,
) -> None:
    """The same for any n below 2^31: every draw is compared with those before it. ``chosen`` [>= count] is room."""
    for j in range(count):
        value = np.int32(draw(state, j, n - count + j + 1))
        taken = False
        for i in range(j):
            taken |= chosen[i] == value
        chosen[j] = n - count + j if taken else value
    for j in range(count):
        value = chosen[j]
        place = begin
        for i in range(count):
            place += chosen[i] < value
        out[place] = first + value


@numba.njit(nogil=True, cache=True)
def draw_entries(
    nodes: Int64Array,
    start: Int64Array,
    remaining: Int64Array,
    sample_ptr: Int64Array,
    key: np.uint64,
    max_fan_out: int,
) -> Int64Array:
    """Sampled places of every node's row as start + rank, ascending in each row, without replacement.

    ``nodes`` keys the draws; row j of the answer is ``sample_ptr[j]:sample_ptr[j+1]``.
    """
    out = np.empty(sample_ptr[nodes.size], np.int64)
    values, chosen = np.empty(max(max_fan_out, 0), np.int64), np.empty(max(max_fan_out, 0), np.int32)
    taken, before = np.empty(LARGEST_BIT_SET // WORD, np.uint64), np.empty(LARGEST_BIT_SET // WORD, np.int64)
    for j in range(nodes.size):
        begin, count = sample_ptr[j], sample_ptr[j + 1] - sample_ptr[j]
        n, first = remaining[j], start[j]
        if count == n:
            for i in range(count):
                out[begin + i] = first + i
            continue
        state = absorb(key, np.uint64(nodes[j]))
        if n <= WORD:
            ranks_in_word(state, values, out, begin, count, n, first)
        elif n <= LARGEST_BIT_SET:
            ranks_in_words(state, values, taken, before, out, begin, count, n, first)
        else:
            ranks_searched(state, chosen, out, begin, count, n, first)
    return out


@numba.njit(nogil=True, cache=True)
def draw_distinct(key: np.uint64, count: int, n: int) -> Int64Array:
    """``count`` distinct numbers of 0..n-1, ascending, every subset equally likely (Floyd; Bentley 1987)."""
    size = 16
    while size < 4 * count:
        size *= 2
    taken = np.full(size, -1, np.int64)  # open addressing
    out = np.empty(count, np.int64)
    for j in range(count):
        top = n - count + j
        value = draw(key, j, top + 1)
        for _ in range(2):
            place = np.int64(mix64(np.uint64(value)) & np.uint64(size - 1))
            while taken[place] >= 0 and taken[place] != value:
                place = (place + 1) & (size - 1)
            if taken[place] < 0:
                break
            value = top  # the draw was taken already; top itself cannot be
        taken[place] = value
        out[j] = value
    return np.sort(out)
