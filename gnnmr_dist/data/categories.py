"""Category and bag modalities: columns of values as codes of a sorted vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnmr_dist.data.columns import first_row, is_text
from gnnmr_dist.data.recipe import BagModality
from gnnmr_dist.data.writer import ModalityData
from gnnmr_dist.errors import bad_input

IntArray = npt.NDArray[np.integer]

_MISSING_TEXT = pa.array(["", "-1"], pa.large_string())


def category(
    name: str, values: pa.ChunkedArray, rows: IntArray, min_count: int, file: str, column: str
) -> ModalityData:
    """A category per item: text, whole numbers or booleans; ``rows`` [I] are the values' rows in the file.

    Null, empty text and -1 are missing; so are values of fewer than ``min_count`` items. Codes follow the
    sorted vocabulary (numbers by size, text by its UTF-8 bytes).

    Raises:
        InputError: values of another type, fractions, or all missing.
    """
    return _category_of(name, _scalars(values, rows, file, column), min_count, file, column)


def code_column(
    name: str, codes: IntArray, rows: IntArray, min_count: int, file: str, column: int
) -> ModalityData:
    """A category per item from integer codes [I]; -1 is missing; ``rows`` [I] are their rows in the file.

    Raises:
        InputError: a code below -1, or all missing.
    """
    if (row := first_row(codes < -1)) is not None:
        raise bad_input(
            file, f"codes from 0 and -1 for missing in column {column}", codes[row], row=rows[row]
        )
    values = pa.chunked_array([pa.array(np.asarray(codes, np.int64), mask=np.asarray(codes < 0))])
    return _category_of(name, values, min_count, file, str(column))


def _category_of(name: str, values: pa.ChunkedArray, min_count: int, file: str, column: str) -> ModalityData:
    vocabulary = _vocabulary(values, min_count)
    if not len(vocabulary):
        expected = f"a value of at least {min_count} item(s) in column {column!r}"
        raise bad_input(file, expected, "none (every row is missing)")
    codes = _codes(values, vocabulary)
    return ModalityData(
        name, "category", len(vocabulary), codes >= 0, codes, None, None, _as_text(vocabulary)
    )


def bag(recipe: BagModality, columns: list[pa.ChunkedArray], rows: IntArray, file: str) -> ModalityData:
    """The set of values per item, of one column or of several.

    A value that stands twice in an item counts once. With several columns values read ``column=value``.

    Raises:
        InputError: values of another type, or all missing.
    """
    items, texts = [], []
    for name, column in zip(recipe.columns, columns, strict=True):
        item, text = _flat(column, rows, recipe.separator, file, name)
        prefix = pa.scalar(f"{name}=" if len(columns) > 1 else "", pa.large_string())
        texts.append(pc.binary_join_element_wise(prefix, text, pa.scalar("", pa.large_string())))
        items.append(item)
    item, text = (
        np.concatenate(items),
        pa.chunked_array([c for t in texts for c in t.chunks], pa.large_string()),
    )
    item, text = _once_per_item(item, text)
    vocabulary = _vocabulary(text, recipe.min_count)
    if not len(vocabulary):
        expected = f"a value of at least {recipe.min_count} item(s) in {', '.join(recipe.columns)}"
        raise bad_input(file, expected, "none (every row is missing)")
    return _packed(recipe.name, item, _codes(text, vocabulary), len(columns[0]), _as_text(vocabulary))


def _packed(
    name: str,
    item: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int32],
    num_items: int,
    vocabulary: list[str],
) -> ModalityData:
    item, codes = item[codes >= 0], codes[codes >= 0]
    order = np.lexsort((codes, item))
    offsets = np.zeros(num_items + 1, np.int64)
    np.cumsum(np.bincount(item, minlength=num_items), out=offsets[1:])
    present = np.diff(offsets) > 0
    return ModalityData(name, "bag", len(vocabulary), present, None, offsets, codes[order], vocabulary)


def _flat(
    column: pa.ChunkedArray, rows: IntArray, separator: str | None, file: str, name: str
) -> tuple[npt.NDArray[np.int64], pa.ChunkedArray]:
    """(item, value as text) of every value of a column of lists, separated text or single values."""
    if separator is not None:
        if not is_text(column):
            raise bad_input(
                file, f"text separated by {separator!r} in column {name!r}", f"type {column.type}"
            )
        column = pc.split_pattern(column, separator)
    column = pa.chunked_array([column.combine_chunks()])
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        item = pc.list_parent_indices(column)
        values = pc.list_flatten(column)
    else:
        item, values = pa.chunked_array([pa.array(np.arange(len(column)))]), column
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(values.type):
        values = values.cast(pa.large_string())
    if separator is not None:
        values = pc.utf8_trim_whitespace(values)
    values = _scalars(values, rows[item.to_numpy()], file, name)
    there = values.is_valid()
    return np.asarray(item.filter(there).to_numpy(), np.int64), values.filter(there).cast(pa.large_string())


def _once_per_item(
    item: npt.NDArray[np.int64], text: pa.ChunkedArray
) -> tuple[npt.NDArray[np.int64], pa.ChunkedArray]:
    distinct = pc.unique(text)
    code = np.asarray(pc.index_in(text, value_set=distinct).to_numpy(), np.int64)
    _, first = np.unique(item * max(len(distinct), 1) + code, return_index=True)
    return item[first], text.take(first)


def _scalars(values: pa.ChunkedArray, rows: IntArray, file: str, column: str) -> pa.ChunkedArray:
    """Values as large_string or int64 with null for every missing value."""
    if pa.types.is_null(values.type):
        return values.cast(pa.int64())
    if is_text(values):
        return pc.if_else(pc.is_in(values, value_set=_MISSING_TEXT), pa.scalar(None, values.type), values)
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int64()).cast(pa.large_string())
    if pa.types.is_floating(values.type):
        values = _whole_numbers(values, rows, file, column)
    if not pa.types.is_integer(values.type):
        raise bad_input(file, f"text or whole numbers in column {column!r}", f"type {values.type}")
    values = values.cast(pa.int64())
    return pc.if_else(pc.equal(values, -1), pa.scalar(None, pa.int64()), values)


def _whole_numbers(values: pa.ChunkedArray, rows: IntArray, file: str, column: str) -> pa.ChunkedArray:
    """Floats that are whole numbers as int64; NaN counts as null."""
    numbers = np.asarray(pc.fill_null(values, np.nan).to_numpy(), np.float64)
    missing = np.isnan(numbers)
    whole = missing | ((np.floor(numbers) == numbers) & (np.abs(numbers) < 2.0**53))
    if (row := first_row(~whole)) is not None:
        expected = f"a whole number (a category code) in column {column!r}"
        raise bad_input(file, expected, numbers[row], row=rows[row])
    return pa.chunked_array([pa.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)])


def _vocabulary(values: pa.ChunkedArray, min_count: int) -> pa.Array:
    counts = pc.value_counts(values.drop_null())
    frequent = counts.field("values").filter(pc.greater_equal(counts.field("counts"), min_count))
    return frequent.take(pc.array_sort_indices(frequent))


def _codes(values: pa.ChunkedArray, vocabulary: pa.Array) -> npt.NDArray[np.int32]:
    found: Any = pc.fill_null(pc.index_in(values, value_set=vocabulary), -1)
    return np.asarray(found.to_numpy(), np.int32)


def _as_text(vocabulary: pa.Array) -> list[str]:
    return [str(value) for value in vocabulary.to_pylist()]
