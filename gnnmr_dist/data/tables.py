"""Reading the raw files of a source: tables (Parquet, CSV, TSV) batch by batch, and arrays (``.npy``)."""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from gnnmr_dist.data.text_tables import TextLayout, first_sentence, require_columns, text_batches
from gnnmr_dist.errors import bad_input
from gnnmr_dist.storage import resolve

_BATCH_ROWS = 1 << 20
_BUFFER_BYTES = 1 << 23  # of a column fetched in one go
_LAYOUTS = {".csv": TextLayout(","), ".tsv": TextLayout("\t")}


@dataclass(frozen=True)
class Source:
    """A directory of raw files, local or on any pyarrow file system.

    ``tables`` are those already parsed; ``layouts`` say how text files of other suffixes than .csv and .tsv read.
    """

    name: str
    filesystem: pafs.FileSystem
    root: str
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    layouts: Mapping[str, TextLayout] = field(default_factory=dict)

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

    def batches(self, relative: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The named columns of a table, some rows at a time in the file's order; there is at least one row.

        If no column is named, there are others: of a table without columns nobody could tell the rows.
        Columns of CSV and TSV files come as text; an empty field is null.

        Raises:
            InputError: no such file or column, not a table, or no rows.
        """
        empty = True
        for table in self._batches(relative, list(dict.fromkeys(columns))):
            if table.num_rows:
                empty = False
                yield table
        if empty:
            raise bad_input(self.label(relative), "at least one row", "an empty table")

    def _batches(self, relative: str, columns: list[str]) -> Iterator[pa.Table]:
        label = self.label(relative)
        layout = self.layouts.get(relative) or _LAYOUTS.get(posixpath.splitext(relative)[1])
        if relative in self.tables:
            require_columns(self.tables[relative].column_names, label, columns)
            yield self.tables[relative].select(columns or self.tables[relative].column_names[:1])
        elif layout is not None:
            with self.read(relative) as file:
                yield from text_batches(file, label, layout, columns)
        elif relative.endswith(".parquet"):
            with self.read(relative) as file:
                yield from _parquet_batches(file, label, columns)
        else:
            raise bad_input(label, "a .parquet, .csv or .tsv file", "another suffix")

    def table(self, relative: str, columns: Sequence[str]) -> pa.Table:
        """The named columns of a whole table, as :meth:`batches` reads them."""
        return pa.concat_tables(self.batches(relative, columns))

    def array(self, relative: str) -> npt.NDArray[Any]:
        """A ``.npy`` array, mapped into memory (one that is not local from a copy); pickled objects are never loaded.

        Raises:
            InputError: no such file, or not a whole ``.npy`` file of plain numbers or text.
        """
        with self.read(relative) as file:
            try:
                if isinstance(self.filesystem, pafs.LocalFileSystem):
                    array = np.load(self.path(relative), mmap_mode="r", allow_pickle=False)
                else:
                    array = _copied_array(file)
            except (ValueError, EOFError, OSError) as error:
                raise bad_input(self.label(relative), "a .npy array of numbers", _npy_fault(error)) from None
        if not isinstance(array, np.ndarray):
            raise bad_input(self.label(relative), "a .npy array", "an .npz archive")
        return array


def _copied_array(stream: pa.NativeFile) -> npt.NDArray[Any]:
    """An array of a file that is not local: its bytes go to a temporary file whose name is gone at once."""
    with NamedTemporaryFile(suffix=".npy") as copy:
        shutil.copyfileobj(stream, copy, 1 << 22)
        copy.flush()
        return np.load(copy.name, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


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


def _parquet_batches(stream: pa.NativeFile, file: str, columns: list[str]) -> Iterator[pa.Table]:
    try:
        # without these a file is kept whole once read: pyarrow fetches all of it ahead
        parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        require_columns(parquet.schema_arrow.names, file, columns)
        wanted = columns or parquet.schema_arrow.names[:1]
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=wanted):
            yield pa.table(batch).select(wanted)
    except (pa.ArrowException, OSError) as error:
        raise bad_input(file, "a Parquet file", first_sentence(error)) from None
