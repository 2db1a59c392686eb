"""Reading the raw files of a source: tables (Parquet, CSV, TSV), arrays (``.npy``), ids and numbers."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from gnnmr_dist.data.text_tables import FROM_TEXT, first_sentence, read_text_table
from gnnmr_dist.errors import bad_input
from gnnmr_dist.storage import resolve

_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Source:
    """A directory of raw files, local or on any pyarrow file system; ``tables`` are those already parsed."""

    name: str
    filesystem: pafs.FileSystem
    root: str
    tables: Mapping[str, pa.Table] = field(default_factory=dict)

    def label(self, relative: str) -> str:
        """The file's name in messages."""
        return posixpath.join(self.name, relative)

    def path(self, relative: str) -> str:
        """The file's path on the file system."""
        return posixpath.join(self.root, relative)

    def is_directory(self, relative: str) -> bool:
        """Whether ``relative`` is a directory of the source."""
        info = self.filesystem.get_file_info(self.path(relative))
        return bool(info.type == pafs.FileType.Directory)

    def names(self, relative: str = "") -> list[str]:
        """Names of the files directly inside a directory, sorted."""
        selector = pafs.FileSelector(self.path(relative) if relative else self.root)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.File)

    def read(self, relative: str) -> pa.NativeFile:
        """The file, opened for random access.

        Raises:
            InputError: there is no such file.
        """
        info = self.filesystem.get_file_info(self.path(relative))
        if info.type != pafs.FileType.File:
            got = "a directory" if info.type == pafs.FileType.Directory else "no such file"
            raise bad_input(self.label(relative), "a file", got)
        return self.filesystem.open_input_file(self.path(relative))

    def table(self, relative: str, columns: Sequence[str]) -> pa.Table:
        """The named columns of a table with at least one row.

        Columns of CSV and TSV files come as text; an empty field is null.

        Raises:
            InputError: no such file or column, not a table, or no rows.
        """
        if relative in self.tables:
            table = _select(self.tables[relative], self.label(relative), columns)
        elif relative.endswith(".parquet"):
            table = _read_parquet(self.read(relative), self.label(relative), columns)
        elif posixpath.splitext(relative)[1] in _DELIMITERS:
            delimiter = _DELIMITERS[posixpath.splitext(relative)[1]]
            with self.read(relative) as file:
                text = read_text_table(file, self.label(relative), delimiter)
            table = _select(text, self.label(relative), columns)
        else:
            raise bad_input(self.label(relative), "a .parquet, .csv or .tsv file", "another suffix")
        if table.num_rows == 0:
            raise bad_input(self.label(relative), "at least one row", "an empty table")
        return table

    def array(self, relative: str) -> npt.NDArray[Any]:
        """A ``.npy`` array, memory-mapped where the file is local; pickled objects are never loaded.

        Raises:
            InputError: no such file, or not a whole ``.npy`` file of plain numbers or text.
        """
        with self.read(relative) as file:
            try:
                if isinstance(self.filesystem, pafs.LocalFileSystem):
                    array = np.load(self.path(relative), mmap_mode="r", allow_pickle=False)
                else:
                    array = np.load(io.BytesIO(file.read()), allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise bad_input(self.label(relative), "a .npy array of numbers", _npy_fault(error)) from None
        if not isinstance(array, np.ndarray):
            raise bad_input(self.label(relative), "a .npy array", "an .npz archive")
        return array


def _npy_fault(error: Exception) -> str:
    if "Object arrays" in str(error) or "Python objects" in str(error):
        return "Python objects (a pickle), which are never loaded"
    if "pickled" in str(error):
        return "another kind of file"
    return f"a broken file ({error})"


def open_source(name: str) -> Source:
    """Open a directory: a local path, or a URI of any pyarrow file system (``s3://...``).

    Raises:
        InputError: not a directory, or an unknown scheme.
    """
    location = resolve(name)
    kind = location.filesystem.get_file_info(location.path).type
    if kind != pafs.FileType.Directory:
        raise bad_input(name, "a directory", "a file" if kind == pafs.FileType.File else "no such directory")
    return Source(name, location.filesystem, location.path)


def _select(table: pa.Table, file: str, columns: Sequence[str]) -> pa.Table:
    for name in columns:
        if name not in table.column_names:
            raise bad_input(file, f"a column {name!r}", f"columns {', '.join(table.column_names)}")
    return table.select(list(dict.fromkeys(columns)))


def _read_parquet(stream: pa.NativeFile, file: str, columns: Sequence[str]) -> pa.Table:
    with stream:
        try:
            parquet = pq.ParquetFile(stream)
            _select(parquet.schema_arrow.empty_table(), file, columns)
            return parquet.read(list(dict.fromkeys(columns)))
        except (pa.ArrowException, OSError) as error:
            raise bad_input(file, "a Parquet file", first_sentence(error)) from None


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
    column = plain(table, name)
    if (row := first_row(column.is_null())) is not None:
        raise bad_input(file, f"an id in column {name!r}", "null", row=row)
    if is_text(column):
        canonical = (
            table.schema.metadata == FROM_TEXT
            and pc.all(pc.match_substring_regex(column, _CANONICAL_INTEGER)).as_py()
        )
        return column.cast(pa.int64()) if canonical else column
    if not pa.types.is_integer(column.type):
        raise bad_input(file, f"integer or text ids in column {name!r}", f"type {column.type}")
    return _cast(column, pa.int64(), file, name, "ids that fit 64 signed bits")


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
    rows: npt.NDArray[np.integer] | None = None,
) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        row = _first_failing(column, lambda part: part.cast(kind))
        place = row if rows is None else int(rows[row])
        raise bad_input(
            file, f"{expected} in column {name!r}", repr(column[row].as_py()), row=place
        ) from None


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


def float_column(
    table: pa.Table, file: str, name: str, rows: npt.NDArray[np.integer] | None = None
) -> npt.NDArray[np.float64]:
    """Finite numbers, float64; ``rows`` are the file's rows where the table is not the file's own.

    Raises:
        InputError: a null, a non-number or a value that is not finite.
    """
    column = plain(table, name)
    if not (is_text(column) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise bad_input(file, f"numbers in column {name!r}", f"type {column.type}")
    if (row := first_row(column.is_null())) is not None:
        raise bad_input(file, f"a number in column {name!r}", "null", row=row)
    column = _cast(column, pa.float64(), file, name, "a number", rows)
    values = np.asarray(column.to_numpy(), np.float64)
    if (row := first_row(~np.isfinite(values))) is not None:
        place = row if rows is None else int(rows[row])
        raise bad_input(file, f"a finite number in column {name!r}", column[row].as_py(), row=place)
    return values


def time_column(table: pa.Table, file: str, name: str) -> npt.NDArray[np.int64]:
    """Timestamps as int64: fractions rounded down, dates and times as Unix seconds.

    Raises:
        InputError: a null, or something that is no number, date or time.
    """
    column = plain(table, name)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = pc.cast(column, pa.timestamp("s"), safe=False).cast(pa.int64())
    elif is_text(column):
        whole = pc.all(pc.match_substring_regex(column, _CANONICAL_INTEGER)).as_py()
        column = column.cast(pa.int64()) if whole else column
    if pa.types.is_integer(column.type):
        if (row := first_row(column.is_null())) is not None:
            raise bad_input(file, f"a timestamp in column {name!r}", "null", row=row)
        column = _cast(column, pa.int64(), file, name, "a timestamp that fits 64 signed bits")
        return np.asarray(column.to_numpy(), np.int64)
    values = float_column(table, file, name)
    if (row := first_row(np.abs(values) >= 2.0**63)) is not None:
        raise bad_input(file, f"a timestamp in column {name!r}", values[row], row=row)
    return np.floor(values).astype(np.int64)
