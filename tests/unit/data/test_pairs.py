"""One-pass comparisons of ordered pairs against Python's sets and lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.data.graph import Graph, build_graph
from gnnmr_dist.data.pairs import Pairs, first_difference, first_disorder, first_shared

LISTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30)


def columns(rows: list[tuple[int, int]]) -> Pairs:
    return Pairs(*np.array(rows, np.int32).reshape(-1, 2).T)


@given(LISTS)
def test_the_first_disorder_is_where_a_list_stops_ascending(rows: list[tuple[int, int]]) -> None:
    wrong = [e for e in range(1, len(rows)) if rows[e] <= rows[e - 1]]
    assert first_disorder(*columns(rows)) == (wrong[0] if wrong else -1)


@given(LISTS, LISTS)
def test_the_first_shared_pair_is_that_of_the_sets(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    one, other = sorted(set(one)), sorted(set(other))
    shared = [place for place, pair in enumerate(other) if pair in set(one)]
    assert first_shared(columns(one), columns(other)) == (shared[0] if shared else -1)


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1), st.data())
def test_the_first_difference_is_the_first_entry_that_differs(
    rows: set[tuple[int, int]], data: st.DataObject
) -> None:
    pairs = columns(sorted(rows))
    graph = build_graph(*pairs, 5, 4)
    assert first_difference(graph, pairs) is None
    spoilt = graph.indices.copy()
    for place in data.draw(st.sets(st.integers(0, spoilt.size - 1), min_size=1)):
        spoilt[place] += 1
    place = int(np.argmax(spoilt != graph.indices))
    found = first_difference(Graph(graph.indptr, spoilt, 5, 4), pairs)
    assert found == (place, graph.indices[place])
