"""The item-item graph by hand, and contexts drawn from it."""

from __future__ import annotations

import numpy as np

from gnnmr_dist.data.graph import build_graph
from gnnmr_dist.data.item_graph import SECOND_HOP, Ranked, co_interactions, two_hops

# users: 0 has items 0, 1; 1 has 0, 1, 2; item 3 stands alone (user 2)
GRAPH = build_graph(np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 0, 1, 2, 3]), 3, 4)


def test_co_interactions_by_hand() -> None:
    near = co_interactions(GRAPH, 2)
    assert near.items.tolist() == [[1, 2], [0, 2], [0, 1], [-1, -1]]
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(near.weights, [[1, half], [1, half], [half, half], [0, 0]])


def test_two_hops_by_hand() -> None:
    near = Ranked(np.array([[1, -1], [0, 2], [1, -1]]), np.array([[2.0, 0], [3, 1], [1, 0]]))
    both = two_hops(near, 2)  # P = [0 1 0; .75 0 .25; 0 1 0]; PP[0] = [.75 0 .25]
    assert both.items.tolist() == [[1, 2], [0, 2], [1, 0]]
    np.testing.assert_allclose(both.weights[0], [1, SECOND_HOP * 0.25])
    np.testing.assert_allclose(both.weights[2], [1, SECOND_HOP * 0.75])


def test_samples_are_neighbours_once_each_in_order_and_by_weight() -> None:
    many = Ranked(np.array([[4, 7, 9]]), np.array([[6.0, 3.0, 1.0]]))
    drawn = many.sample(np.zeros(20_000, np.int64), 1, np.random.default_rng(0))[:, 0]
    np.testing.assert_allclose([(drawn == item).mean() for item in (4, 7, 9)], [0.6, 0.3, 0.1], atol=0.02)
    two = many.sample(np.zeros(100, np.int64), 2, np.random.default_rng(1))
    assert (two[:, 0] < two[:, 1]).all()
    all_four = many.sample(np.zeros(1, np.int64), 4, np.random.default_rng(2))
    assert all_four.tolist() == [[4, 7, 9, -1]]


def test_missing_neighbours_are_never_drawn_before_real_ones() -> None:
    few = Ranked(np.array([[4, -1, -1]]), np.array([[0.01, 0, 0]]))
    assert few.sample(np.zeros(50, np.int64), 1, np.random.default_rng(0)).tolist() == [[4]] * 50
    assert few.first(np.zeros(1, np.int64), 2).tolist() == [[4, -1]]
