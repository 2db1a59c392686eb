"""Ids numbered batch by batch against a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.data.numbering import Numbering

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), min_size=1, max_size=60)
TEXTS = st.lists(st.text(max_size=3) | st.sampled_from(["a", "é", ""]), min_size=1, max_size=60)


def numbered(
    values: list[int] | list[str], kind: pa.DataType, step: int, *, from_text: bool = False
) -> tuple:
    numbering = Numbering()
    parts = [values[start : start + step] for start in range(0, len(values), step)]
    codes = [numbering.add(pa.chunked_array([pa.array(part, kind)]), from_text=from_text) for part in parts]
    return np.concatenate(codes).tolist(), numbering.ids().to_pylist()


@given(
    INTEGERS.map(lambda v: (v, pa.int64())) | TEXTS.map(lambda v: (v, pa.large_string())), st.integers(1, 9)
)
def test_numbers_are_those_of_a_dictionary(case: tuple, step: int) -> None:
    values, kind = case
    known = list(dict.fromkeys(values))
    assert numbered(values, kind, step) == ([known.index(value) for value in values], known)


@pytest.mark.parametrize("kind", [pa.int64(), pa.large_string()])
def test_tables_grow(kind: pa.DataType) -> None:
    values = np.random.default_rng(0).integers(-(2**40), 2**40, 5000).tolist() * 2
    values = values if kind == pa.int64() else [f"a long id so that the text grows too: {v}" for v in values]
    known = {value: code for code, value in enumerate(dict.fromkeys(values))}
    assert numbered(values, kind, 777) == ([known[value] for value in values], list(known))


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        (["7", "12", "-3", "7", "0"], [7, 12, -3, 0]),
        (["7", "12", "7", "07", "12"], ["7", "12", "07"]),  # padding is part of an id, so all are text
        (["x", "7", "7", "x", "7"], ["x", "7"]),
        (["7", "-0", "7", "7", "7"], ["7", "-0"]),
        (["7", "1" * 19, "7", "7", "7"], ["7", "1" * 19]),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_ids_of_text_files_have_one_type_in_all_batches(values: list[str], ids: list, step: int) -> None:
    codes, found = numbered(values, pa.large_string(), step, from_text=True)
    assert found == ids
    assert [str(found[code]) for code in codes] == values


def test_a_slice_of_a_column_is_numbered_as_itself() -> None:
    column = pa.chunked_array(
        [pa.array(["x", "a", "bb", "a"], pa.large_string()).slice(1), pa.array(["x"], pa.large_string())]
    )
    numbering = Numbering()
    assert numbering.add(column).tolist() == [0, 1, 0, 2]
    assert numbering.ids().to_pylist() == ["a", "bb", "x"]
