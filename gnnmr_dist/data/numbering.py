"""Ids of any type numbered in the order they are first seen, batch by batch.

A hash table of our own per kind of id, because it has to outlive a batch and hold each id once: about 20 bytes for a
whole number, 28 and its UTF-8 bytes for a text.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator,no-any-return"

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gnnmr_dist.data.columns import settled_ids, text_buffers
from gnnmr_dist.randomness import mix64

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]

_LEAST = 1 << 10


class Numbering:
    """Numbers 0, 1, 2... of distinct ids, in the order first seen; all ids are int64 or all are large_string.

    Ids ``from_text`` are whole numbers as long as all of them are, without padding: ``7`` but not ``007``. So the
    ids of a text file have one type, whatever its batches are.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.size = 0
        # open addressing: the number of the id that hashes here
        self._slots = np.full(4 * _LEAST, -1, np.int32)
        # of whole numbers too: equal hashes are equal numbers
        self._hashes = np.empty(_LEAST, np.uint64)
        self._ends = np.zeros(_LEAST + 1, np.int64)
        self._text = np.empty(16 * _LEAST, np.uint8)
        self._is_text = False

    def add(self, ids: pa.ChunkedArray, *, from_text: bool = False) -> Codes:
        """The numbers int32 [n] of ids (no nulls); new ones get the next numbers."""
        if from_text and not self._is_text:
            ids = settled_ids(ids, from_text=True)
            if self.size and pa.types.is_large_string(ids.type):
                seen = self.ids().cast(pa.large_string())
                self._clear()
                self.add(seen)  # the same numbers, as text from now on
        self._is_text = bool(pa.types.is_large_string(ids.type))
        codes = np.empty(len(ids), np.int32)
        first = 0
        for chunk in ids.chunks:
            part = codes[first : first + len(chunk)]
            first += len(chunk)
            if self._is_text:
                self._add_texts(*text_buffers(chunk), part)
            else:
                self._add_integers(np.asarray(chunk.to_numpy()), part)
        return codes

    def ids(self) -> pa.ChunkedArray:
        """The distinct ids by their numbers."""
        if not self._is_text:
            return pa.chunked_array([pa.array(_unmixed(self._hashes[: self.size]))])
        buffers = [pa.py_buffer(self._ends[: self.size + 1]), pa.py_buffer(self._text)]
        return pa.chunked_array([pa.Array.from_buffers(pa.large_string(), self.size, [None, *buffers])])

    def _add_integers(self, values: Array, codes: Codes) -> None:
        row = 0
        while True:
            row, self.size = _add_integers(values, row, self._slots, self._hashes, self.size, codes)
            if row == values.size:
                return
            self._grow()

    def _add_texts(self, offsets: Array, data: Array, codes: Codes) -> None:
        row = 0
        while True:
            known = (self._slots, self._hashes, self._ends, self._text)
            row, self.size = _add_texts(offsets, data, row, *known, self.size, codes)
            if row == codes.size:
                return
            needed = int(self._ends[self.size] + offsets[row + 1] - offsets[row])
            if needed > self._text.size:
                self._text = _longer(self._text, 2 * needed)
            if self.size == self._hashes.size:
                self._grow()

    def _grow(self) -> None:
        self._hashes = _longer(self._hashes, 2 * self.size)
        if self._is_text:
            self._ends = _longer(self._ends, 2 * self.size + 1)
        self._slots = np.full(4 * self._hashes.size, -1, np.int32)
        _refill(self._slots, self._hashes, self.size)


def _longer(array: Array, size: int) -> Array:
    out = np.empty(size, array.dtype)
    out[: array.size] = array
    return out


@numba.njit(nogil=True, cache=True)
def _add_integers(
    values: Array, row: int, slots: Codes, hashes: Array, size: int, codes: Codes
) -> tuple[int, int]:
    """Number values[row:]; the row where there was no room for a new id (or the end), and the count of ids."""
    mask = np.uint64(slots.size - 1)
    while row < values.size:
        word = mix64(np.uint64(values[row]))
        place = word & mask
        code = slots[place]
        while code >= 0 and hashes[code] != word:
            place = (place + np.uint64(1)) & mask
            code = slots[place]
        if code < 0:
            if size == hashes.size:
                break
            code = size
            slots[place], hashes[code] = code, word
            size += 1
        codes[row] = code
        row += 1
    return row, size


@numba.njit(nogil=True, cache=True)
def _add_texts(
    offsets: Array,
    data: Array,
    row: int,
    slots: Codes,
    hashes: Array,
    ends: Array,
    text: Array,
    size: int,
    codes: Codes,
) -> tuple[int, int]:
    """As :func:`_add_integers`; text ``code`` is ``text[ends[code]:ends[code + 1]]``."""
    mask = np.uint64(slots.size - 1)
    while row < codes.size:
        begin, length = offsets[row], offsets[row + 1] - offsets[row]
        word = np.uint64(0xCBF29CE484222325)  # FNV-1a (Fowler, Noll, Vo)
        for j in range(begin, begin + length):
            word = (word ^ np.uint64(data[j])) * np.uint64(0x100000001B3)
        word = mix64(word)
        place = word & mask
        code = slots[place]
        while code >= 0 and not (hashes[code] == word and _same(data, begin, length, text, ends, code)):
            place = (place + np.uint64(1)) & mask
            code = slots[place]
        if code < 0:
            if size == hashes.size or ends[size] + length > text.size:
                break
            code = size
            slots[place], hashes[code] = code, word
            text[ends[code] : ends[code] + length] = data[begin : begin + length]
            size += 1
            ends[size] = ends[code] + length
        codes[row] = code
        row += 1
    return row, size


@numba.njit(inline="always", cache=True)
def _same(data: Array, begin: int, length: int, text: Array, ends: Array, code: int) -> bool:
    if ends[code + 1] - ends[code] != length:
        return False
    for j in range(length):  # noqa: SIM110 (compiled)
        if data[begin + j] != text[ends[code] + j]:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _refill(slots: Codes, hashes: Array, size: int) -> None:
    mask = np.uint64(slots.size - 1)
    for code in range(size):
        place = hashes[code] & mask
        while slots[place] >= 0:
            place = (place + np.uint64(1)) & mask
        slots[place] = code


@numba.njit(nogil=True, cache=True)
def _unmixed(hashes: Array) -> Array:
    """The whole numbers that :func:`mix64` sent to ``hashes``: its steps undone in reverse order."""
    out = np.empty(hashes.size, np.int64)
    for j in range(hashes.size):
        x = hashes[j]
        x = (x ^ (x >> np.uint64(31)) ^ (x >> np.uint64(62))) * np.uint64(0x319642B2D24D8EC3)
        x = (x ^ (x >> np.uint64(27)) ^ (x >> np.uint64(54))) * np.uint64(0x96DE1B173F119089)
        out[j] = np.int64(x ^ (x >> np.uint64(30)) ^ (x >> np.uint64(60)))
    return out
