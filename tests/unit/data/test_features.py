from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.data.categories import bag, category
from gnnmr_dist.data.features import Catalogue, load_modality
from gnnmr_dist.data.recipe import BagModality, parse_recipe
from gnnmr_dist.data.tables import open_source
from gnnmr_dist.data.writer import ModalityData
from gnnmr_dist.errors import InputError

MATRIX = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, -1.0], [5.0, 12.0]], np.float32)
IDS = ["a", "b", "c", "d"]


def load(
    folder: Path, modality: dict[str, Any], *, kept: tuple[int, ...] = (0, 1, 2, 3), table: Any = None
) -> list[ModalityData]:
    recipe = parse_recipe(
        {
            "name": "x",
            "interactions": {"file": "a.csv"},
            "split": {"method": "random"},
            "modality": [modality],
        },
        "recipe.toml",
    )
    table = pa.table({"item": IDS}) if table is None else table
    ids = pa.chunked_array([IDS])
    return load_modality(
        recipe.modality[0], Catalogue(open_source(str(folder)), ids, np.array(kept), table, "items")
    )


def dense(folder: Path, matrix: np.ndarray = MATRIX, **settings: Any) -> ModalityData:
    np.save(folder / "f.npy", matrix)
    return load(folder, {"name": "f", "kind": "dense", "file": "f.npy"} | settings)[0]


def test_rows_get_length_one_and_zero_rows_are_missing(tmp_path: Path) -> None:
    data = dense(tmp_path, dtype="float32")
    assert data.present.tolist() == [True, False, True, True]
    assert data.values is not None
    half = np.sqrt(0.5)
    np.testing.assert_allclose(data.values, [[0.6, 0.8], [0, 0], [half, -half], [5 / 13, 12 / 13]], rtol=1e-6)


def test_standardised_columns_have_mean_0_and_deviation_1_over_present_rows(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(5, 3, (4, 6)).astype(np.float32)
    matrix[1], matrix[:, 2] = 0.0, 7.0
    matrix[1] = 0.0
    data = dense(tmp_path, matrix, normalise="standardise", dtype="float32")
    assert data.values is not None
    there = data.values[data.present]
    np.testing.assert_allclose(there.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(there.std(axis=0), [1, 1, 0, 1, 1, 1], atol=1e-6)
    assert not data.values[1].any()


def test_values_can_stay_as_they_are(tmp_path: Path) -> None:
    data = dense(tmp_path, normalise="none", zero_is_missing=False)
    assert data.present.all()
    assert data.values is not None
    assert data.values.dtype == np.float16
    assert np.array_equal(data.values, MATRIX)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float64", "float16"])
def test_any_numbers_will_do(tmp_path: Path, dtype: str) -> None:
    data = dense(tmp_path, np.eye(4, 3, dtype=dtype), normalise="none")
    assert data.values is not None
    assert np.array_equal(data.values, np.eye(4, 3))


def test_only_kept_items_come_out_and_in_their_order(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", MATRIX)
    modality = {"name": "f", "kind": "dense", "file": "f.npy", "normalise": "none"}
    (data,) = load(tmp_path, modality, kept=(0, 3))
    assert data.values is not None
    assert data.values.tolist() == [[3, 4], [5, 12]]


def test_the_four_places_of_vectors_agree(tmp_path: Path) -> None:
    order = [3, 0, 2]
    np.save(tmp_path / "f.npy", MATRIX)
    np.save(tmp_path / "rows.npy", MATRIX[order])
    np.save(tmp_path / "ids.npy", np.array([IDS[i] for i in order]))
    (tmp_path / "ids.csv").write_text("key\n" + "\n".join(IDS[i] for i in order) + "\n")
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float64()), pa.large_list(pa.float16())):
        vectors = pa.array(MATRIX[order].astype(np.float16).tolist(), pa.list_(pa.float64())).cast(kind)
        name = f"{str(kind).split('<')[0]}.parquet"
        pq.write_table(pa.table({"id": [IDS[i] for i in order], "vector": vectors}), tmp_path / name)
    (tmp_path / "each").mkdir()
    for i in order:
        np.save(tmp_path / "each" / f"{IDS[i]}.npy", MATRIX[i])
    places: list[dict[str, Any]] = [
        {"file": "f.npy"},
        {"file": "rows.npy", "ids": "ids.npy"},
        {"file": "rows.npy", "ids": "ids.csv", "id": "key"},
        *({"file": path.name} for path in sorted(tmp_path.glob("*.parquet"))),
        {"file": "each"},
    ]
    assert len(places) == 7
    loaded = [load(tmp_path, {"name": "f", "kind": "dense"} | place)[0] for place in places]
    for data in loaded:
        assert data.values is not None
        assert loaded[0].values is not None
        assert data.present.tolist() == [True, False, True, True]
        assert np.array_equal(data.values, loaded[0].values)


def test_features_of_unknown_items_can_be_skipped(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["z", "b"], "vector": [[1.0], [2.0]]}), tmp_path / "f.parquet")
    modality = {"name": "f", "kind": "dense", "file": "f.parquet", "unknown_ids": "skip"}
    assert load(tmp_path, modality)[0].present.tolist() == [False, True, False, False]


def test_large_matrices_come_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dense(tmp_path, normalise="standardise").values
    monkeypatch.setattr("gnnmr_dist.data.features._BLOCK_ROWS", 3)
    assert whole is not None
    assert np.array_equal(dense(tmp_path, normalise="standardise").values, whole)


@pytest.mark.parametrize(
    ("values", "vocabulary", "codes"),
    [
        (["b", "", "a", None], ["a", "b"], [1, -1, 0, -1]),
        ([10, -1, 9, None], ["9", "10"], [1, -1, 0, -1]),
        ([10.0, float("nan"), 9.0, None], ["9", "10"], [1, -1, 0, -1]),
        ([True, False, None, True], ["0", "1"], [1, 0, -1, 1]),
        (["-1", "0", "0", "x"], ["0", "x"], [-1, 0, 0, 1]),
    ],
)
def test_categories(values: list[object], vocabulary: list[str], codes: list[int]) -> None:
    data = category("f", pa.chunked_array([pa.array(values)]).cast(_large(values)), np.arange(4), 1, "t", "x")
    assert data.values is not None
    assert (data.vocabulary, data.values.tolist(), data.dim) == (vocabulary, codes, len(vocabulary))
    assert data.present.tolist() == [code >= 0 for code in codes]


def _large(values: list[object]) -> pa.DataType:
    kind = pa.array(values).type
    return pa.large_string() if pa.types.is_string(kind) else kind


def test_rare_categories_are_missing(tmp_path: Path) -> None:
    table = pa.table({"x": ["a", "b", "a", "c"]})
    (data,) = load(tmp_path, {"name": "f", "kind": "category", "column": "x", "min_count": 2}, table=table)
    assert data.values is not None
    assert (data.vocabulary, data.values.tolist()) == (["a"], [0, -1, 0, -1])


def test_columns_of_codes_and_of_the_table_become_modalities_each(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.array([[0, 5], [1, -1], [-1, 3], [0, 3]], np.int16))
    (tmp_path / "names.json").write_text(json.dumps({"one": {"n": 2}, "two": {"n": 2}}))
    matrix = {"kind": "categories", "file": "codes.npy", "names": "names.json", "prefix": "p_"}
    one, two = load(tmp_path, matrix)
    assert one.values is not None
    assert two.values is not None
    assert (one.name, one.vocabulary, one.values.tolist()) == ("p_one", ["0", "1"], [0, 1, -1, 0])
    assert (two.name, two.vocabulary, two.values.tolist()) == ("p_two", ["3", "5"], [1, -1, 0, 0])
    table = pa.table({"one": [0, 1, None, 0], "two": [5, None, 3, 3]})
    columns = load(tmp_path, {"kind": "categories", "columns": ["one", "two"], "prefix": "p_"}, table=table)
    for mine, other in zip((one, two), columns, strict=True):
        assert (mine.name, mine.vocabulary) == (other.name, other.vocabulary)
        assert np.array_equal(mine.values, other.values)


def rows_of(data: ModalityData) -> list[set[str]]:
    assert data.offsets is not None
    assert data.codes is not None
    assert data.vocabulary is not None
    parts = np.split(data.codes, data.offsets[1:-1])
    return [{data.vocabulary[code] for code in part} for part in parts]


TAGS = st.lists(st.none() | st.lists(st.sampled_from(["a", "b", "c", "d", ""]), max_size=6), min_size=1)


@given(TAGS, st.integers(1, 3))
def test_bags_hold_the_frequent_values_of_each_item_once(tags: list[Any], min_count: int) -> None:
    sets = [set(row or ()) - {""} for row in tags]
    frequent = {tag for tag in "abcd" if sum(tag in row for row in sets) >= min_count}
    recipe = BagModality(kind="bag", name="f", columns=("x",), min_count=min_count)
    column = pa.chunked_array(
        [pa.array(tags[:2], pa.list_(pa.string())), pa.array(tags[2:], pa.list_(pa.string()))]
    )
    if not frequent:
        with pytest.raises(Exception, match="none \\(every row is missing\\)"):
            bag(recipe, [column], np.arange(len(tags)), "t")
        return
    data = bag(recipe, [column], np.arange(len(tags)), "t")
    assert data.vocabulary == sorted(frequent)
    assert rows_of(data) == [row & frequent for row in sets]
    assert data.present.tolist() == [bool(row & frequent) for row in sets]
    assert data.codes is not None
    assert data.codes.size == sum(len(row & frequent) for row in sets)


def test_bags_of_several_columns_tell_them_apart(tmp_path: Path) -> None:
    table = pa.table({"genre": [["x"], ["y", "x"], None, []], "year": [1999, None, 2001, -1]})
    (data,) = load(tmp_path, {"name": "f", "kind": "bag", "columns": ["genre", "year"]}, table=table)
    assert rows_of(data) == [{"genre=x", "year=1999"}, {"genre=x", "genre=y"}, {"year=2001"}, set()]
    assert data.present.tolist() == [True, True, True, False]


def test_bags_of_separated_text(tmp_path: Path) -> None:
    table = pa.table({"cast": ["Ann | Bob", "", None, "Bob"]})
    modality = {"name": "f", "kind": "bag", "columns": ["cast"], "separator": "|"}
    assert rows_of(load(tmp_path, modality, table=table)[0]) == [{"Ann", "Bob"}, set(), set(), {"Bob"}]


def test_a_bad_value_is_told_with_its_row_in_the_table(tmp_path: Path) -> None:
    table = pa.table({"x": [[1.0], [2.0], [3.0], [4.0, 4.5]]})
    with pytest.raises(Exception, match=r"items, row 3: expected a whole number .* got 4.5"):
        load(tmp_path, {"name": "f", "kind": "bag", "columns": ["x"]}, table=table, kept=(1, 3))


def test_vectors_of_a_table_come_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnnmr_dist.data.tables._BATCH_ROWS", 1)
    settings = {"name": "v", "kind": "dense", "file": "v.parquet", "normalise": "none"}
    vectors = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    pq.write_table(pa.table({"id": ["c", "a", "d"], "vector": vectors}), tmp_path / "v.parquet")
    data = load(tmp_path, settings)[0]
    assert data.values is not None
    assert data.values.tolist() == [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0], [5.0, 6.0]]
    assert data.present.tolist() == [True, False, True, True]
    for spoilt, message in (([7.0], "vectors of length 2, got length 1"), ([7.0, None], "numbers in column")):
        table = pa.table({"id": ["c", "a", "d"], "vector": [*vectors[:2], spoilt]})
        pq.write_table(table, tmp_path / "v.parquet")
        with pytest.raises(InputError, match=f"row 2: expected {message}"):
            load(tmp_path, settings)
