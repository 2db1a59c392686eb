"""Delimited text files (CSV, TSV) as tables of text; its meaning is for the reader of a column to say."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pacsv

from gnnmr_dist.errors import InputError, bad_input

FROM_TEXT = {b"gnnmr": b"text"}  # schema metadata of tables whose numbers are still text
_BLOCK_BYTES = 1 << 23  # of a file parsed in one go; a row must fit


@dataclass(frozen=True)
class TextLayout:
    """How a delimited text file reads; ``names`` are the columns where the header says more than their names."""

    delimiter: str
    quotes: bool = True
    names: Sequence[str] | None = None


def text_header(stream: pa.NativeFile, file: str, layout: TextLayout) -> list[str]:
    """The fields of the header; the stream is at its beginning again afterwards.

    Raises:
        InputError: not UTF-8, or a column without a name or named twice.
    """
    first, _, _ = stream.read(1 << 20).partition(b"\n")
    stream.seek(0)
    try:
        header = first.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise _text_fault(error, file) from None
    fields = csv.reader(
        [header],
        delimiter=layout.delimiter,
        quoting=csv.QUOTE_MINIMAL if layout.quotes else csv.QUOTE_NONE,
    )
    names = next(fields, [])
    if not names or len(set(names)) < len(names):
        raise bad_input(file, "a header that names every column once", repr(header[:80]))
    return names


def text_batches(
    stream: pa.NativeFile, file: str, layout: TextLayout, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Some columns (default: all) of a delimited text file with a header, as text, some rows at a time.

    Raises:
        InputError: no such column, not UTF-8, a repeated column, or a row with another number of fields.
    """
    header = text_header(stream, file, layout)
    names = list(layout.names or header)
    require_columns(names, file, columns or names)
    if not stream.read(1 << 20).partition(b"\n")[2]:
        return
    stream.seek(0)
    try:
        for batch in _parsed(stream, layout, names, list(columns or names)):
            yield pa.table(batch).replace_schema_metadata(FROM_TEXT)
    except pa.ArrowException as error:
        raise _text_fault(error, file) from None


def require_columns(names: Sequence[str], file: str, columns: Sequence[str]) -> None:
    """Raise InputError unless a table with the columns ``names`` has all of ``columns``."""
    for name in columns:
        if name not in names:
            raise bad_input(file, f"a column {name!r}", f"columns {', '.join(names)}")


def _parsed(
    stream: pa.NativeFile, layout: TextLayout, names: list[str], columns: list[str]
) -> Iterator[pa.RecordBatch]:
    return pacsv.open_csv(  # type: ignore[no-any-return]
        stream,
        # one thread: only then does the parser know in which row it fails, and a stream is parsed by one anyway
        read_options=pacsv.ReadOptions(
            column_names=names, skip_rows=1, use_threads=False, block_size=_BLOCK_BYTES
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=layout.delimiter,
            quote_char='"' if layout.quotes else False,
            newlines_in_values=layout.quotes,
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=columns,
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _text_fault(error: Exception, file: str) -> InputError:
    found = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", str(error))
    if found:
        row = int(found[1]) - 2  # the parser counts lines from 1, and the header is line 1
        return bad_input(file, f"{found[2]} fields", found[3], row=row)
    return bad_input(file, "delimited UTF-8 text", first_sentence(error))


def first_sentence(error: Exception) -> str:
    """The first sentence of a library's message."""
    return str(error).split("\n")[0].split(". ")[0].rstrip(".")
