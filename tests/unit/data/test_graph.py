"""The CSR graph against a dense adjacency matrix."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnmr_dist.data.graph import build_graph, open_graph, write_graph


def dense_adjacency(users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> np.ndarray:
    adjacency = np.zeros((num_users + num_items,) * 2, bool)
    adjacency[users, num_users + items] = True
    adjacency[num_users + items, users] = True
    return adjacency


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_rows_are_the_nonzeros_of_the_adjacency(num_users: int, num_items: int, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.integers(0, num_users * num_items - 1), unique=True))
    users, items = np.divmod(np.asarray(keys, np.int64), num_items)
    graph = build_graph(users, items, num_users, num_items)
    adjacency = dense_adjacency(users, items, num_users, num_items)
    assert graph.num_nodes == num_users + num_items
    assert graph.num_edges == len(keys)
    assert graph.indices.dtype == np.int32
    assert graph.indptr.dtype == np.int64
    np.testing.assert_array_equal(graph.degree(), adjacency.sum(axis=1))
    for node in range(graph.num_nodes):
        row = graph.indices[graph.indptr[node] : graph.indptr[node + 1]]
        np.testing.assert_array_equal(row, np.flatnonzero(adjacency[node]))


def test_edge_e_is_the_eth_pair_in_user_item_order() -> None:
    users, items = np.array([4, 0, 2, 0, 2]), np.array([1, 2, 0, 0, 1])  # users 1 and 3 have none
    graph = build_graph(users, items, 5, 3)
    got_users, got_items = graph.edges(np.array([0, 1, 2, 3, 4]))
    np.testing.assert_array_equal(got_users, [0, 0, 2, 2, 4])
    np.testing.assert_array_equal(got_items, [0, 2, 0, 1, 1])
    np.testing.assert_array_equal(graph.edges(np.array([3, 0]))[1], [1, 0])


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 1], [0], "2 users but 1 items"),
        ([0, 3], [0, 0], "user numbers must lie in 0..2"),
        ([0, -1], [0, 0], "user numbers must lie in 0..2"),
        ([0, 1], [0, 2], "item numbers must lie in 0..1"),
        ([0, 1, 0], [1, 1, 1], "stands twice"),
    ],
)
def test_bad_pairs_are_refused(users: list[int], items: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_graph(np.array(users), np.array(items), 3, 2)


def test_a_written_graph_is_mapped_and_not_copied(tmp_path: Path) -> None:
    users, items = np.array([0, 1, 1]), np.array([1, 0, 1])
    graph = build_graph(users, items, 2, 2)
    write_graph(tmp_path / "graph", users, items, 2, 2)
    opened = open_graph(tmp_path / "graph", 2, 2)
    np.testing.assert_array_equal(opened.indptr, graph.indptr)
    np.testing.assert_array_equal(opened.indices, graph.indices)
    assert isinstance(opened.indices, np.memmap)
    assert not opened.indices.flags.writeable
