"""Exact top-k: masks, ties, padding and blocks, against a sort in plain Python."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.data.graph import build_graph
from gnnmr_dist.ranking import (
    EmbeddingScorer,
    ItemLists,
    item_lists,
    popularity_offset,
    rank_top_k,
    train_counts,
    train_items,
)


@dataclass
class Fixed:
    matrix: torch.Tensor

    def scores(self, users: np.ndarray) -> torch.Tensor:
        return self.matrix[torch.from_numpy(users)].clone()


def lists(rows: list[list[int]]) -> ItemLists:
    users = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    return item_lists(users, np.array([i for r in rows for i in r], np.int64), len(rows))


def naive(row: np.ndarray, seen: set[int], k: int) -> list[int]:
    order = sorted((i for i in range(row.size) if i not in seen), key=lambda i: (-row[i], i))[:k]
    return order + [-1] * (k - len(order))


def test_hand_case() -> None:
    matrix = torch.tensor([[0.5, 0.9, 0.9, 0.1], [1.0, 2.0, 3.0, 4.0]])
    items, scores = rank_top_k(Fixed(matrix), np.array([0, 1]), lists([[], [3, 1]]), 3)
    assert items.tolist() == [[1, 2, 0], [2, 0, -1]]
    assert scores.tolist() == [pytest.approx([0.9, 0.9, 0.5]), [3.0, 1.0, -np.inf]]
    assert items.dtype == np.int64
    assert scores.dtype == np.float32


def test_users_in_any_order_take_their_own_mask() -> None:
    matrix = torch.tensor([[3.0, 2.0, 1.0]]).repeat(3, 1)
    items, _ = rank_top_k(Fixed(matrix), np.array([2, 0]), lists([[0], [1], [2]]), 1, block=1)
    assert items.tolist() == [[0], [1]]


def test_also_masked_hides_more_items() -> None:
    matrix = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    items, _ = rank_top_k(Fixed(matrix), np.array([0]), lists([[0]]), 2, also_masked=lists([[1]]))
    assert items.tolist() == [[2, 3]]


def test_more_places_than_items_and_no_users() -> None:
    items, scores = rank_top_k(Fixed(torch.ones(1, 2)), np.array([0]), lists([[]]), 4)
    assert items.tolist() == [[0, 1, -1, -1]]
    assert np.isneginf(scores[0, 2:]).all()
    items, _ = rank_top_k(Fixed(torch.ones(1, 2)), np.empty(0, np.int64), lists([[]]), 4)
    assert items.shape == (0, 4)


def test_minus_zero_ties_with_zero() -> None:
    items, _ = rank_top_k(Fixed(torch.tensor([[-0.0, 0.0, -0.0, 0.0]])), np.array([0]), lists([[]]), 3)
    assert items.tolist() == [[0, 1, 2]]


def test_nan_and_bad_k_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        rank_top_k(Fixed(torch.tensor([[1.0, float("nan"), 2.0]])), np.array([0]), lists([[]]), 1)
    for k, block in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="positive"):
            rank_top_k(Fixed(torch.ones(1, 2)), np.array([0]), lists([[]]), k, block=block)


@given(
    seed=st.integers(0, 2**31),
    num_users=st.integers(1, 6),
    num_items=st.integers(1, 40),
    k=st.integers(1, 12),
    levels=st.integers(1, 6),
    block=st.sampled_from([None, 1, 2, 5]),
)
def test_equals_a_sort_whatever_the_ties(
    seed: int, num_users: int, num_items: int, k: int, levels: int, block: int | None
) -> None:
    rng = np.random.default_rng(seed)
    matrix = (rng.integers(0, levels, (num_users, num_items)) - levels // 2).astype(np.float32) / 3
    rows = [np.flatnonzero(rng.random(num_items) < rng.random()).tolist() for _ in range(num_users)]
    users = rng.permutation(num_users)
    items, scores = rank_top_k(Fixed(torch.from_numpy(matrix)), users, lists(rows), k, block=block)
    assert items.tolist() == [naive(matrix[u], set(rows[u]), k) for u in users]
    real = items >= 0
    assert (scores[real] == matrix[users][np.nonzero(real)[0], items[real]]).all()
    assert np.isneginf(scores[~real]).all()


def test_embedding_scorer_is_dot_product_plus_offset() -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    offset = torch.arange(5.0)
    asked = np.array([2, 0])
    expected = torch.stack([users[[2, 0]] @ h for h in items], dim=1)
    torch.testing.assert_close(EmbeddingScorer(users, items).scores(asked), expected)
    torch.testing.assert_close(EmbeddingScorer(users, items, offset).scores(asked), expected + offset)


def test_graph_rows_are_the_train_items() -> None:
    graph = build_graph(np.array([0, 0, 2]), np.array([3, 1, 1]), 3, 4)
    rows, items = train_items(graph).pairs(np.array([2, 1, 0]))
    assert rows.tolist() == [0, 2, 2]
    assert items.tolist() == [1, 1, 3]
    assert train_items(graph).select(np.array([0, 1])).counts().tolist() == [2, 0]
    assert train_counts(graph).tolist() == [0, 2, 0, 1]
    assert popularity_offset(graph).tolist() == pytest.approx([0, 2e-6, 0, 1e-6])


def test_item_lists_refuse_bad_pairs() -> None:
    one = np.array([0, 0])
    with pytest.raises(ValueError, match="twice"):
        item_lists(one, one, 1)
    with pytest.raises(ValueError, match="user numbers"):
        item_lists(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="2 users but 1 items"):
        item_lists(one, np.array([0]), 1)
