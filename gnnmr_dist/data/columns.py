"""Columns of raw tables as numbers, times and ids, checked; ids among a list of known ones.

A table may be a batch of its file: ``rows`` are then the file's rows, for messages.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator,no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnmr_dist.data.text_tables import FROM_TEXT
from gnnmr_dist.errors import bad_input

Rows = Sequence[int] | npt.NDArray[np.integer] | None


def first_row(mask: npt.NDArray[np.bool_] | pa.ChunkedArray) -> int | None:
    """The first row where ``mask`` holds, or None."""
    values = mask if isinstance(mask, np.ndarray) else np.asarray(mask.to_numpy())
    return int(values.argmax()) if values.size and values.any() else None


def plain(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column without dictionary encoding, text as large_string."""
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    return column


def is_text(column: pa.ChunkedArray) -> bool:
    """Whether a plain column holds text."""
    return bool(pa.types.is_large_string(column.type))


def id_column(table: pa.Table, file: str, name: str) -> pa.ChunkedArray:
    """Ids as int64 or large_string; ids of text files that are all whole numbers without padding are int64.

    Raises:
        InputError: a null id, or a column that is neither integer nor text.
    """
    return settled_ids(id_values(table, file, name), from_text=table.schema.metadata == FROM_TEXT)


def id_values(table: pa.Table, file: str, name: str, rows: Rows = None) -> pa.ChunkedArray:
    """Ids of some rows as int64 or large_string: those of text files are text until all of them are known.

    Raises:
        InputError: a null id, or a column that is neither integer nor text.
    """
    column = plain(table, name)
    if (row := first_row(column.is_null())) is not None:
        raise bad_input(file, f"an id in column {name!r}", "null", row=_place(rows, row))
    if is_text(column):
        return column
    if not pa.types.is_integer(column.type):
        raise bad_input(file, f"integer or text ids in column {name!r}", f"type {column.type}")
    return _cast(column, pa.int64(), file, name, "ids that fit 64 signed bits", rows)


def settled_ids(ids: pa.ChunkedArray, *, from_text: bool) -> pa.ChunkedArray:
    """Ids of a text file as int64 if all are whole numbers without padding; other ids as they are."""
    if not (from_text and is_text(ids)):
        return ids
    numbers, whole = whole_numbers(ids)
    return pa.chunked_array([pa.array(numbers)]) if whole.all() else ids


def whole_numbers(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Texts (large_string, no nulls) as int64 where they are whole numbers that come back as the same text.

    That is up to 18 digits without padding, perhaps behind a minus; the second array [n] says where.
    """
    numbers, whole = np.empty(len(column), np.int64), np.empty(len(column), bool)
    first = 0
    for chunk in column.chunks:
        _parse(*text_buffers(chunk), numbers[first : first + len(chunk)], whole[first : first + len(chunk)])
        first += len(chunk)
    return numbers, whole


def text_buffers(chunk: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets int64 [n+1] and UTF-8 bytes of a large_string array."""
    _, offsets, data = chunk.buffers()
    places = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    return places, np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)


@numba.njit(nogil=True, cache=True)
def _parse(
    offsets: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    numbers: npt.NDArray[np.int64],
    whole: npt.NDArray[np.bool_],
) -> None:
    for row in range(numbers.size):
        begin, end = offsets[row], offsets[row + 1]
        negative = end > begin and data[begin] == 45  # "-"
        first = begin + 1 if negative else begin
        value = np.int64(0)
        fits = 0 < end - first <= 18 and (data[first] != 48 or (end - first == 1 and not negative))
        for place in range(first, end if fits else first):
            digit = np.int64(data[place]) - 48
            fits = fits and 0 <= digit <= 9
            value = 10 * value + digit
        numbers[row], whole[row] = -value if negative else value, fits


def unify(one: pa.ChunkedArray, other: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Two id columns of one type: both text if either is."""
    if one.type == other.type:
        return one, other
    return one.cast(pa.large_string()), other.cast(pa.large_string())


def number(values: pa.ChunkedArray, ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Position of each value among ``ids``, -1 where it is none of them."""
    values, ids = unify(values, ids)
    found = pc.fill_null(pc.index_in(values, value_set=ids.combine_chunks()), -1)
    return np.asarray(found.to_numpy(), np.int64)


def unique_ids(ids: pa.ChunkedArray, file: str, name: str) -> None:
    """Check that no id of a table stands twice.

    Raises:
        InputError: the first row that repeats an id.
    """
    position = number(ids, pa.chunked_array([pc.unique(ids)]))
    _, first = np.unique(position, return_index=True)
    repeated = np.ones(position.size, bool)
    repeated[first] = False
    if (row := first_row(repeated)) is not None:
        raise bad_input(file, f"every id in column {name!r} once", f"{ids[row].as_py()!r} again", row=row)


def sorted_ids(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The distinct ids, ascending (text by its UTF-8 bytes)."""
    distinct = pc.unique(ids)
    return pa.chunked_array([distinct.take(pc.array_sort_indices(distinct))])


def _cast(
    column: pa.ChunkedArray,
    kind: pa.DataType,
    file: str,
    name: str,
    expected: str,
    rows: Rows = None,
) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        row = _first_failing(column, lambda part: part.cast(kind))
        got = repr(column[row].as_py())
        raise bad_input(file, f"{expected} in column {name!r}", got, row=_place(rows, row)) from None


def _first_failing(column: pa.ChunkedArray, convert: Callable[[pa.ChunkedArray], object]) -> int:
    low, high = 0, len(column)  # rows before low convert; a row in low..high-1 does not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            convert(column.slice(low, middle - low))
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


def _place(rows: Rows, row: int) -> int:
    return row if rows is None else int(rows[row])


def float_column(table: pa.Table, file: str, name: str, rows: Rows = None) -> npt.NDArray[np.float64]:
    """Finite numbers, float64.

    Raises:
        InputError: a null, a non-number or a value that is not finite.
    """
    column = plain(table, name)
    if not (is_text(column) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise bad_input(file, f"numbers in column {name!r}", f"type {column.type}")
    if (row := first_row(column.is_null())) is not None:
        raise bad_input(file, f"a number in column {name!r}", "null", row=_place(rows, row))
    column = _cast(column, pa.float64(), file, name, "a number", rows)
    values = np.asarray(column.to_numpy(), np.float64)
    if (row := first_row(~np.isfinite(values))) is not None:
        got = column[row].as_py()
        raise bad_input(file, f"a finite number in column {name!r}", got, row=_place(rows, row))
    return values


def time_column(table: pa.Table, file: str, name: str, rows: Rows = None) -> npt.NDArray[np.int64]:
    """Timestamps as int64: fractions rounded down, dates and times as Unix seconds.

    Raises:
        InputError: a null, or something that is no number, date or time.
    """
    column = plain(table, name)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = pc.cast(column, pa.timestamp("s"), safe=False).cast(pa.int64())
    if is_text(column):
        return _times_of_text(table, column, file, name, rows)
    if pa.types.is_integer(column.type):
        if (row := first_row(column.is_null())) is not None:
            raise bad_input(file, f"a timestamp in column {name!r}", "null", row=_place(rows, row))
        column = _cast(column, pa.int64(), file, name, "a timestamp that fits 64 signed bits", rows)
        return np.asarray(column.to_numpy(), np.int64)
    return _floored(float_column(table, file, name, rows), file, name, rows)


def _times_of_text(
    table: pa.Table, column: pa.ChunkedArray, file: str, name: str, rows: Rows
) -> npt.NDArray[np.int64]:
    """Whole numbers exactly, as int64; the others by way of a double."""
    if (row := first_row(column.is_null())) is not None:
        raise bad_input(file, f"a timestamp in column {name!r}", "null", row=_place(rows, row))
    exact, whole = whole_numbers(column)
    if whole.all():
        return exact
    return np.where(whole, exact, _floored(float_column(table, file, name, rows), file, name, rows))


def _floored(values: npt.NDArray[np.float64], file: str, name: str, rows: Rows) -> npt.NDArray[np.int64]:
    if (row := first_row(np.abs(values) >= 2.0**63)) is not None:
        raise bad_input(file, f"a timestamp in column {name!r}", values[row], row=_place(rows, row))
    return np.floor(values).astype(np.int64)
