"""The items' features as one matrix: unit rows by hand, missing rows, repeated codes, blocks."""

import numpy as np
import pytest

from gnnmr_dist.data import item_matrix as module
from gnnmr_dist.data.feature_tables import BagTable, CategoryTable, DenseTable
from gnnmr_dist.data.item_matrix import item_matrix, size

PRESENT = np.array([True, True, False])
DENSE = DenseTable(np.array([[3, 0], [1, 2], [0, 0]], np.float16), PRESENT)
CATEGORY = CategoryTable(np.array([2, 0, -1], np.int32), PRESENT)
BAG = BagTable(np.array([0, 1, 3, 3]), np.array([1, 0, 3], np.int32), PRESENT)


def test_by_hand() -> None:
    half = 0.5**0.5
    # the mean of the present dense rows is (2, 1): (1, -1) and (-1, 1) are left
    dense = np.array([[half, -half], [-half, half], [0, 0]])
    category = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    bag = np.array([[0, 1, 0, 0], [half, 0, 0, half], [0, 0, 0, 0]])
    for tables, expected in (
        ([DENSE], dense),
        ([CATEGORY], category),
        ([BAG], bag),
        ([DENSE, CATEGORY, BAG], np.hstack([dense, category, bag]) / 3**0.5),
    ):
        matrix = item_matrix(tables)
        assert matrix.dtype == np.float32
        columns, entries = size(tables)
        assert matrix.shape[1] == columns
        assert matrix.nnz <= entries
        np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-6)


def test_rows_have_length_one_where_all_is_present() -> None:
    lengths = np.sqrt(item_matrix([DENSE, CATEGORY, BAG]).power(2).sum(axis=1))
    np.testing.assert_allclose(np.ravel(lengths), [1, 1, 0], atol=1e-6)


def test_new_items_have_the_catalogues_means_and_columns() -> None:
    tables = [DENSE, CATEGORY, BAG]
    known = item_matrix(tables)
    np.testing.assert_array_equal(item_matrix(tables, catalogue=tables).toarray(), known.toarray())
    one = [
        DenseTable(DENSE.values[:1], PRESENT[:1]),
        CategoryTable(np.array([0], np.int32), PRESENT[:1]),
        BagTable(np.array([0, 1]), np.array([1], np.int32), PRESENT[:1]),
    ]
    new = item_matrix(one, catalogue=tables)
    assert new.shape == (1, known.shape[1])
    np.testing.assert_allclose(new.toarray()[0, :2], known.toarray()[0, :2])
    assert new.toarray()[0, 2:5].tolist() == pytest.approx([3**-0.5, 0, 0])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = DenseTable(rng.random((50, 3), dtype=np.float32), np.ones(50, bool))
    whole = item_matrix([table]).toarray()
    monkeypatch.setattr(module, "_BLOCK", 7)
    np.testing.assert_allclose(item_matrix([table]).toarray(), whole, atol=1e-6)


def test_nothing_present_and_no_table() -> None:
    nothing = np.zeros(3, bool)
    empty = [
        DenseTable(np.zeros((3, 2), np.float32), nothing),
        CategoryTable(np.full(3, -1, np.int32), nothing),
        BagTable(np.zeros(4, np.int64), np.array([], np.int32), nothing),
    ]
    matrix = item_matrix(empty)
    assert matrix.shape == (3, 2)
    assert matrix.nnz == 0 or not matrix.toarray().any()
    with pytest.raises(ValueError, match="one feature table"):
        item_matrix([])


def test_rows_of_any_size_have_length_one() -> None:
    values = np.array([[1e25, 2e25], [1e-30, 0], [3e25, 1e25]], np.float32)
    for rows in (values[[0, 2]], values[[1]] * np.array([[1], [2]], np.float32)):
        lengths = np.linalg.norm(item_matrix([DenseTable(rows, np.ones(2, bool))]).toarray(), axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)
