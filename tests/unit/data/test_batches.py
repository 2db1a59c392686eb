"""Global batches against brute force on small dense matrices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from gnnmr_dist.data._draws import draw_distinct
from gnnmr_dist.data._kernels import complement_item
from gnnmr_dist.data.batches import (
    GlobalBatch,
    global_batch,
    known_candidates,
    slice_rows,
    steps_per_epoch,
    trained_items,
)
from gnnmr_dist.data.graph import Graph, build_graph

ALL = np.empty(0, np.int64)


def matrix_and_graph(seed: int, num_users: int, num_items: int, density: float) -> tuple[npt.NDArray, Graph]:
    interacted = np.random.default_rng(seed).random((num_users, num_items)) < density
    interacted[0, 0] = True
    users, items = np.nonzero(interacted)
    return interacted, build_graph(users, items, num_users, num_items)


def epoch_of(graph: Graph, epoch: int, batch_size: int, seed: int = 5) -> list[GlobalBatch]:
    steps = steps_per_epoch(graph.num_edges, batch_size)
    return [
        global_batch(graph, seed, epoch, s, batch_size=batch_size, num_candidates=6) for s in range(steps)
    ]


def test_an_epoch_has_every_edge_once_and_a_short_last_batch() -> None:
    interacted, graph = matrix_and_graph(0, 12, 9, 0.4)
    batches = epoch_of(graph, 2, 7)
    assert [b.size for b in batches[:-1]] == [7] * (len(batches) - 1)
    assert batches[-1].size == graph.num_edges - 7 * (len(batches) - 1)
    pairs = np.concatenate([np.stack([b.users, b.items], 1) for b in batches])
    assert sorted(map(tuple, pairs)) == sorted(map(tuple, np.argwhere(interacted)))
    other = np.concatenate([b.users for b in epoch_of(graph, 3, 7)])
    assert not np.array_equal(other, pairs[:, 0])


@given(st.integers(0, 1000), st.sampled_from([0.05, 0.5, 0.9, 1.0]), st.integers(1, 50))
def test_rows_against_the_matrix(seed: int, density: float, batch_size: int) -> None:
    interacted, graph = matrix_and_graph(seed, 6, 8, density)
    for batch in epoch_of(graph, 0, batch_size):
        assert interacted[batch.users, batch.items].all()
        full = interacted[batch.users].all(axis=1)
        assert np.array_equal(batch.negatives == -1, full)
        assert not interacted[batch.users[~full], batch.negatives[~full]].any()
        known = known_candidates(graph, batch.users, batch.candidates)
        assert np.array_equal(known, interacted[batch.users][:, batch.candidates])
        assert np.unique(batch.candidates).size == batch.candidates.size == 6


@given(st.sets(st.integers(0, 11)))
def test_complement_is_exact_at_every_density(row: set[int]) -> None:
    offset = 4  # users before the items' node numbers
    indices = np.array(sorted(row), np.int32) + offset
    mapped = [complement_item(indices, 0, indices.size, offset, ALL, r) for r in range(12 - len(row))]
    assert mapped == sorted(set(range(12)) - row)


def test_negatives_are_uniform_over_the_complement() -> None:
    num_items = 10
    row = np.array([0, 3, 4, 9])
    graph = build_graph(np.zeros(4, np.int64), row, 1, num_items)
    negatives = np.concatenate(
        [global_batch(graph, 1, e, 0, batch_size=4, num_candidates=0).negatives for e in range(1500)]
    )
    counts = np.bincount(negatives, minlength=num_items)
    assert counts[row].sum() == 0
    assert chisquare(np.delete(counts, row)).pvalue > 1e-3


@given(st.integers(0, 1000), st.sampled_from([0.05, 0.2, 0.6]))
def test_items_nobody_has_are_not_drawn_from_a_pool_of_trained_items(seed: int, density: float) -> None:
    interacted, graph = matrix_and_graph(seed, 6, 12, density)
    trained = np.flatnonzero(interacted.any(axis=0))
    pool = trained_items(graph)
    assert (pool is None) == (trained.size == 12)
    full = interacted[:, trained].all(axis=1)
    for e in range(3):
        batch = global_batch(graph, seed, e, 0, batch_size=50, num_candidates=9, pool=pool)
        assert np.array_equal(batch.negatives == -1, full[batch.users])
        drawn = batch.negatives[~full[batch.users]]
        assert np.isin(drawn, trained).all()
        assert not interacted[batch.users[~full[batch.users]], drawn].any()
        assert np.isin(batch.candidates, trained).all()
        assert np.unique(batch.candidates).size == min(9, trained.size)
        free = global_batch(graph, seed, e, 0, batch_size=50, num_candidates=9)
        assert np.array_equal(batch.users, free.users)
        assert np.array_equal(batch.items, free.items)


def test_negatives_from_a_pool_are_uniform_over_its_complement() -> None:
    graph = build_graph(np.array([0, 0, 1, 1, 1, 1, 1]), np.array([2, 7, 2, 3, 5, 8, 9]), 2, 11)
    pool = trained_items(graph)
    assert pool is not None
    assert pool.items.tolist() == [2, 3, 5, 7, 8, 9]
    found = [global_batch(graph, 1, e, 0, batch_size=9, num_candidates=0, pool=pool) for e in range(1500)]
    of_first = np.concatenate([batch.negatives[batch.users == 0] for batch in found])
    values, counts = np.unique(of_first, return_counts=True)
    assert values.tolist() == [3, 5, 8, 9]
    assert chisquare(counts).pvalue > 1e-3


def test_candidates_are_uniform_single_and_in_pairs() -> None:
    draws = np.stack([draw_distinct(np.uint64(key * 77 + 1), 3, 7) for key in range(7000)])
    assert (np.diff(draws, axis=1) > 0).all()
    subsets = (1 << draws).sum(axis=1)
    values, counts = np.unique(subsets, return_counts=True)
    assert values.size == 35  # all of 7 choose 3
    assert chisquare(counts).pvalue > 1e-3


@given(st.integers(0, 2**63), st.integers(0, 300))
def test_distinct_draws_reach_every_size(key: int, count: int) -> None:
    out = draw_distinct(np.uint64(key), count, 300)
    assert out.size == count == np.unique(out).size
    assert count < 300 or np.array_equal(out, np.arange(300))


def test_more_candidates_than_items_gives_all_items() -> None:
    _, graph = matrix_and_graph(1, 5, 8, 0.4)
    batch = global_batch(graph, 0, 0, 0, batch_size=3, num_candidates=100)
    assert np.array_equal(batch.candidates, np.arange(8))


def test_batch_larger_than_the_edges_is_the_whole_epoch() -> None:
    _, graph = matrix_and_graph(1, 5, 8, 0.4)
    assert steps_per_epoch(graph.num_edges, 1000) == 1
    assert global_batch(graph, 0, 0, 0, batch_size=1000, num_candidates=2).size == graph.num_edges


def test_batches_are_pure_functions_of_their_place() -> None:
    _, graph = matrix_and_graph(2, 20, 15, 0.3)
    late = global_batch(graph, 9, 4, 3, batch_size=8, num_candidates=5)
    for _ in epoch_of(graph, 0, 8, seed=9):
        again = global_batch(graph, 9, 4, 3, batch_size=8, num_candidates=5)
    for name in ("users", "items", "negatives", "candidates"):
        assert np.array_equal(getattr(late, name), getattr(again, name))


def test_negatives_belong_to_the_place_in_the_epoch_not_to_the_batch_size() -> None:
    _, graph = matrix_and_graph(2, 20, 15, 0.3)
    small, large = epoch_of(graph, 1, 4), epoch_of(graph, 1, 16)
    for name in ("users", "items", "negatives"):
        joined = [np.concatenate([getattr(b, name) for b in batches]) for batches in (small, large)]
        assert np.array_equal(*joined)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 12])
def test_shares_join_to_the_batch(parts: int) -> None:
    _, graph = matrix_and_graph(3, 9, 9, 0.5)
    batch = global_batch(graph, 0, 0, 0, batch_size=10, num_candidates=4)
    shares = [slice_rows(batch, part, parts) for part in range(parts)]
    assert max(s.size for s in shares) - min(s.size for s in shares) <= 1
    for name in ("users", "items", "negatives"):
        joined = np.concatenate([getattr(share, name) for share in shares])
        assert np.array_equal(joined, getattr(batch, name))
    assert all(np.array_equal(share.candidates, batch.candidates) for share in shares)


def test_bad_arguments_are_refused() -> None:
    _, graph = matrix_and_graph(3, 4, 4, 0.5)
    empty = build_graph(np.empty(0, np.int64), np.empty(0, np.int64), 2, 2)
    with pytest.raises(ValueError, match="batch_size"):
        steps_per_epoch(5, 0)
    with pytest.raises(ValueError, match="step must lie"):
        global_batch(graph, 0, 0, 99, batch_size=4, num_candidates=1)
    with pytest.raises(ValueError, match="step must lie"):
        global_batch(empty, 0, 0, 0, batch_size=4, num_candidates=1)
    with pytest.raises(ValueError, match="num_candidates"):
        global_batch(graph, 0, 0, 0, batch_size=4, num_candidates=-1)
    with pytest.raises(ValueError, match="part must lie"):
        slice_rows(global_batch(graph, 0, 0, 0, batch_size=4, num_candidates=1), 2, 2)
    assert steps_per_epoch(0, 4) == 0
