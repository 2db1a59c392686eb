"""Feature tables, one per modality: memory-mapped Arrow files, so all workers of a node share their pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gnnmr_dist.data.format import ModalityInfo
from gnnmr_dist.errors import bad_input
from gnnmr_dist.storage import Address

_BLOCK = 1 << 22  # values looked at in one go


@dataclass(frozen=True)
class DenseTable:
    """``values`` float16 or float32 [I, dim], read-only, zeros where missing; ``present`` bool [I]."""

    values: npt.NDArray[np.floating]
    present: npt.NDArray[np.bool_]

    @property
    def num_rows(self) -> int:
        """I, the number of items."""
        return int(self.present.size)


@dataclass(frozen=True)
class CategoryTable:
    """``codes`` int32 [I], -1 where missing; ``present`` bool [I]."""

    codes: npt.NDArray[np.int32]
    present: npt.NDArray[np.bool_]

    @property
    def num_rows(self) -> int:
        """I, the number of items."""
        return int(self.present.size)


@dataclass(frozen=True)
class BagTable:
    """Item i has the codes ``codes[offsets[i]:offsets[i + 1]]``.

    ``offsets`` int64 [I+1], ``codes`` int32; ``present`` bool [I] is False where an item has no codes.
    """

    offsets: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int32]
    present: npt.NDArray[np.bool_]

    @property
    def num_rows(self) -> int:
        """I, the number of items."""
        return int(self.present.size)


FeatureTable = DenseTable | CategoryTable | BagTable


def arrow_type(info: ModalityInfo) -> Any:
    """The Arrow type of a modality's column ``value``."""
    if info.kind == "dense":
        return pa.list_(pa.float16() if info.dtype == "float16" else pa.float32(), info.dim)
    return pa.int32() if info.kind == "category" else pa.list_(pa.int32())


def open_features(file: Path, info: ModalityInfo, num_items: int) -> FeatureTable:
    """The feature table in ``file``, its values mapped into memory and not copied.

    Raises:
        InputError: not an Arrow IPC file, another column or type, not exactly one record batch, compressed,
            or not ``num_items`` rows.
    """
    source = pa.memory_map(str(file))
    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowException as error:
        raise bad_input(file, "an Arrow IPC file", "bytes of another or a damaged format") from error
    if reader.schema.names != ["value"]:
        raise bad_input(file, 'one column "value"', ", ".join(reader.schema.names) or "no columns")
    column_type, wanted = reader.schema.field("value").type, arrow_type(info)
    if not _same_type(column_type, wanted):
        raise bad_input(file, f'column "value" of type {_type_text(wanted)}', _type_text(column_type))
    if reader.num_record_batches != 1:
        raise bad_input(file, "exactly one record batch", reader.num_record_batches)
    column = _first_column(file, reader)
    if len(column) != num_items:
        raise bad_input(file, f"{num_items} rows", len(column))
    _check_mapped(file, source, column)
    check_inner_nulls(file, column)
    return to_features(column)


def to_features(column: Any) -> FeatureTable:
    """The Arrow array ``column`` (one of :func:`arrow_type`'s types) as a table that shares its memory."""
    present = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(column.type):
        return DenseTable(_raw(column.values).reshape(len(column), column.type.list_size), present)
    if pa.types.is_integer(column.type):
        return CategoryTable(column.fill_null(-1).to_numpy(zero_copy_only=True), present)
    offsets = column.offsets.to_numpy(zero_copy_only=True).astype(np.int64)
    return BagTable(offsets, _raw(column.values), present & (np.diff(offsets) > 0))


def check_inner_nulls(file: Path, column: Any) -> None:
    """Raise InputError if a row that is not null has a null inside (row named)."""
    if not pa.types.is_nested(column.type) or not column.values.null_count:
        return
    nulls = column.values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(column.type):
        rows = np.flatnonzero(nulls) // column.type.list_size
    else:
        rows = np.searchsorted(column.offsets.to_numpy(), np.flatnonzero(nulls), side="right") - 1
    bad = rows[column.is_valid().to_numpy(zero_copy_only=False)[rows]]
    if bad.size:
        raise bad_input(file, "no null inside a row", "null", row=int(bad[0]))


def check_features(file: Address, table: FeatureTable, info: ModalityInfo) -> None:
    """Read every value of a feature table and check it against ``info``.

    Raises:
        InputError: a value is not finite or a code out of range (row named), a missing dense row is not
            zeros, a missing bag has codes, or the count of missing rows is not the one promised.
    """
    if isinstance(table, DenseTable):
        _check_dense(file, table)
    elif isinstance(table, CategoryTable):
        bad = table.present & ((table.codes < 0) | (table.codes >= info.dim))
        if bad.any():
            row = int(np.argmax(bad))
            raise bad_input(file, f"a code in 0..{info.dim - 1}", table.codes[row], row=row)
    else:
        _check_bag(file, table, info.dim)
    missing = int(table.num_rows - np.count_nonzero(table.present))
    if missing != info.missing:
        raise bad_input(file, f"{info.missing} missing rows", missing)


def _check_dense(file: Address, table: DenseTable) -> None:
    for rows in _blocks(table.num_rows, table.values.shape[1]):
        values = table.values[rows]
        finite = np.isfinite(values)
        if not finite.all():
            row, column = (int(place) for place in np.argwhere(~finite)[0])
            got = f"{values[row, column]} in position {column}"
            raise bad_input(file, "finite values", got, row=rows.start + row)
        filled = values.any(axis=1) & ~table.present[rows]
        if filled.any():
            row = rows.start + int(np.argmax(filled))
            raise bad_input(file, "zeros below a null", "other values", row=row)


def _check_bag(file: Address, table: BagTable, dim: int) -> None:
    lengths = np.diff(table.offsets)
    if table.offsets[0] < 0 or table.offsets[-1] > table.codes.size or (lengths < 0).any():
        row = int(np.argmax((lengths < 0) | (table.offsets[1:] > table.codes.size)))
        raise bad_input(file, f"ascending offsets up to {table.codes.size}", table.offsets[row + 1], row=row)
    filled = ~table.present & (lengths > 0)
    if filled.any():
        raise bad_input(file, "no codes below a null", "codes", row=int(np.argmax(filled)))
    bad = (table.codes < 0) | (table.codes >= dim)
    if bad.any():
        position = int(np.argmax(bad))
        row = int(np.searchsorted(table.offsets, position, side="right")) - 1
        raise bad_input(file, f"codes in 0..{dim - 1}", table.codes[position], row=row)


def _first_column(file: Path, reader: Any) -> Any:
    try:
        column = reader.get_batch(0).column(0)
        column.validate()
    except (pa.ArrowException, OSError) as error:
        raise bad_input(file, "a sound record batch", "a damaged one") from error
    return column


def _raw(values: Any) -> npt.NDArray[Any]:
    """The numbers of an Arrow array, whatever stands below its nulls, without a copy."""
    buffers = [None, values.buffers()[1]]
    plain = pa.Array.from_buffers(values.type, len(values), buffers, offset=values.offset)
    return np.asarray(plain.to_numpy(zero_copy_only=True))


def _check_mapped(file: Path, source: Any, column: Any) -> None:
    """Raise InputError if a buffer lies outside the mapped file, which is what decompression does."""
    source.seek(0)
    whole = source.read_buffer(source.size())
    end = whole.address + whole.size
    for buffer in column.buffers():
        if buffer is not None and buffer.size and not whole.address <= buffer.address < end:
            raise bad_input(file, "uncompressed buffers", "compressed ones")


def _blocks(num_rows: int, dim: int) -> Iterator[slice]:
    step = max(1, _BLOCK // dim)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _same_type(got: Any, wanted: Any) -> bool:
    """Whether two column types are equal but for the names of list items."""
    if pa.types.is_fixed_size_list(wanted):
        return bool(
            pa.types.is_fixed_size_list(got)
            and got.list_size == wanted.list_size
            and got.value_type == wanted.value_type
        )
    if pa.types.is_list(wanted):
        return bool(pa.types.is_list(got) and got.value_type == wanted.value_type)
    return bool(got == wanted)


def _type_text(kind: Any) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"fixed_size_list<{kind.value_type}>[{kind.list_size}]"
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)
