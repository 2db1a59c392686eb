from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.data.columns import float_column, id_column, number, sorted_ids, time_column, unique_ids
from gnnmr_dist.data.tables import open_source
from gnnmr_dist.errors import InputError


def column(values: object, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"x": pa.array(values, kind)})


def csv_column(folder: Path, *values: str) -> pa.Table:
    (folder / "t.csv").write_text("\n".join(["x,y", *(f"{value},1" for value in values)]) + "\n")
    return open_source(str(folder)).table("t.csv", ["x"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["7", "12", "-3"], [7, 12, -3]),
        (["7", "012"], ["7", "012"]),  # padding is part of an id
        (["7", "1e3"], ["7", "1e3"]),
        (["7", "1" * 19], ["7", "1" * 19]),  # beyond 18 digits int64 might not do
    ],
)
def test_ids_of_text_files_are_numbers_only_if_nothing_is_lost(
    tmp_path: Path, values: list[str], expected: list[object]
) -> None:
    assert id_column(csv_column(tmp_path, *values), "t.csv", "x").to_pylist() == expected


def test_ids_of_parquet_keep_their_type() -> None:
    assert id_column(column(["7", "12"]), "t", "x").to_pylist() == ["7", "12"]
    assert id_column(column([7, 12], pa.uint8()), "t", "x").type == pa.int64()
    assert id_column(column(pa.array(["b", "a", "b"]).dictionary_encode()), "t", "x").to_pylist() == list(
        "bab"
    )


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1) | st.lists(st.text(min_size=1), min_size=1))
def test_ids_survive_numbering(values: list[int] | list[str]) -> None:
    ids = id_column(column(values), "t", "x")
    known = sorted_ids(ids)
    unique_ids(known, "t", "x")
    assert known.take(number(ids, known)).to_pylist() == values
    assert known.to_pylist() == sorted(set(values), key=lambda v: v.encode() if isinstance(v, str) else v)


def test_numbers_and_text_meet_as_text() -> None:
    assert number(pa.chunked_array([["2", "x"]]), pa.chunked_array([[1, 2]])).tolist() == [1, -1]


def test_times_of_every_kind(tmp_path: Path) -> None:
    moment = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    seconds = int(moment.timestamp())
    assert time_column(column([moment], pa.timestamp("ms", "UTC")), "t", "x").tolist() == [seconds]
    assert time_column(column([moment.date()]), "t", "x").tolist() == [seconds]
    assert time_column(column([1.9, -0.5]), "t", "x").tolist() == [1, -1]
    assert time_column(column([5], pa.int8()), "t", "x").dtype == np.int64
    assert time_column(csv_column(tmp_path, "12345678901234567", "2"), "t", "x")[0] == 12345678901234567
    assert time_column(csv_column(tmp_path, "978824330.0", "2.5"), "t", "x").tolist() == [978824330, 2]


@given(st.integers(1, 40), st.data())
def test_the_row_of_a_bad_number_is_named(size: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, size - 1))
    values = [str(number) for number in range(size)]
    values[bad] = "x"
    with pytest.raises(InputError, match=rf"t, row {bad}: expected a number in column 'x', got 'x'"):
        float_column(column(values), "t", "x")


def test_a_text_file_may_quote_and_end_lines_as_it_likes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes('\ufeffx,y\r\n"a, b",1\r\n"c\nd",\r\n'.encode())
    table = open_source(str(tmp_path)).table("t.csv", ["x", "y"])
    assert table.to_pydict() == {"x": ["a, b", "c\nd"], "y": ["1", None]}


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2], "c": [3]}), tmp_path / "t.parquet")
    assert open_source(str(tmp_path)).table("t.parquet", ["c", "a", "c"]).column_names == ["c", "a"]


def test_a_source_may_be_a_uri(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    source = open_source(f"file://{tmp_path}")
    assert source.array("a.npy").tolist() == [0, 1, 2]
    assert source.names() == ["a.npy"]
