"""Delimited text files (CSV, TSV) as tables of text; its meaning is for the reader of a column to say."""

from __future__ import annotations

import csv
import re

import pyarrow as pa
import pyarrow.csv as pacsv

from gnnmr_dist.errors import InputError, bad_input

FROM_TEXT = {b"gnnmr": b"text"}  # schema metadata of tables whose numbers are still text


def read_text_table(stream: pa.NativeFile, file: str, delimiter: str, *, quotes: bool = True) -> pa.Table:
    """A delimited text file with a header, every column as text (int64 and float are read on demand).

    Raises:
        InputError: not UTF-8, a repeated column, or a row with another number of fields.
    """
    try:
        content = stream.read_buffer()
        first, _, rest = bytes(memoryview(content)[: 1 << 20]).partition(b"\n")
        header = first.decode("utf-8-sig").rstrip("\r")
        names = next(
            csv.reader(
                [header], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
            ),
            [],
        )
        if not names or len(set(names)) < len(names):
            raise bad_input(file, "a header that names every column once", repr(header[:80]))
        if not rest:
            return pa.table({name: pa.array([], pa.string()) for name in names}).replace_schema_metadata(
                FROM_TEXT
            )
        table = _parse_text(content, names, delimiter, quotes)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _text_fault(error, file) from None
    return table.replace_schema_metadata(FROM_TEXT)


def _parse_text(content: pa.Buffer, names: list[str], delimiter: str, quotes: bool) -> pa.Table:
    def parse(threads: bool) -> pa.Table:
        return pacsv.read_csv(
            pa.BufferReader(content),
            read_options=pacsv.ReadOptions(column_names=names, skip_rows=1, use_threads=threads),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quotes else False, newlines_in_values=quotes
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )

    try:
        return parse(True)
    except pa.ArrowInvalid:
        return parse(False)  # fails again, and only one thread can say in which row


def _text_fault(error: Exception, file: str) -> InputError:
    found = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", str(error))
    if found:
        row = int(found[1]) - 2  # the parser counts lines from 1, and the header is line 1
        return bad_input(file, f"{found[2]} fields", found[3], row=row)
    return bad_input(file, "delimited UTF-8 text", first_sentence(error))


def first_sentence(error: Exception) -> str:
    """The first sentence of a library's message."""
    return str(error).split("\n")[0].split(". ")[0].rstrip(".")
