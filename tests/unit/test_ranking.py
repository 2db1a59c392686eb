"""Exact top-k: masks, ties, padding and blocks, against a sort in plain Python."""

from collections.abc import Iterator
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
    _rank_rows,
    among,
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


def test_only_items_that_are_kept_are_ranked() -> None:
    torch.manual_seed(0)
    users, items, kept = torch.randn(5, 4), torch.randn(3000, 4), np.arange(3000) % 7 == 3
    scorer = EmbeddingScorer(users, items, torch.rand(3000))
    seen, everyone = lists([[3, 10], [], [], [17], []]), np.arange(5)
    matrix = scorer.scores(everyone).numpy()
    for some in (scorer, Fixed(torch.from_numpy(matrix))):
        found, scores = rank_top_k(among(some, kept), everyone, seen, 6)
        for user in range(5):
            hidden = (
                set(np.flatnonzero(~kept).tolist()) | {3, 10} if user == 0 else set(np.flatnonzero(~kept))
            )
            hidden |= {17} if user == 3 else set()
            assert found[user].tolist() == naive(matrix[user], hidden, 6)
        assert np.allclose(scores, np.take_along_axis(matrix, found, 1))
    few, _ = rank_top_k(among(scorer, np.arange(3000) < 2), everyone, seen, 4)
    assert (few[:, 2:] == -1).all()


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
    block=st.sampled_from([1, 2, 5, 128]),
)
def test_equals_a_sort_whatever_the_ties(
    seed: int, num_users: int, num_items: int, k: int, levels: int, block: int
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


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def embeddings(num_users: int, num_items: int, ties: bool) -> EmbeddingScorer:
    """Vectors whose products are exact in float32 where ``ties``, so that no order of sums changes them."""
    generator = torch.Generator().manual_seed(num_items)
    sides = [torch.randn(n, 8, generator=generator) for n in (num_users, num_items)]
    if ties:
        sides = [(side * 2).round() for side in sides]
    return EmbeddingScorer(sides[0], sides[1], torch.arange(num_items) % 3 / 4)


@pytest.mark.parametrize("num_items", [3, 2048, 2049, 5000])
def test_embeddings_in_tiles_equal_a_sort_of_whole_rows(num_items: int) -> None:
    scorer, users = embeddings(200, num_items, ties=True), np.arange(199, -1, -1)
    rng = np.random.default_rng(0)
    rows = [
        np.sort(rng.choice(num_items, min(num_items, u % 40), replace=False)).tolist() for u in range(200)
    ]
    items, values = rank_top_k(scorer, users, lists(rows), 10)
    whole = scorer.scores(users).numpy()
    assert items.tolist() == [naive(whole[j], set(rows[u]), 10) for j, u in enumerate(users)]
    real = items >= 0
    assert (values[real] == whole[np.nonzero(real)[0], items[real]]).all()


@pytest.mark.usefixtures("two_threads")
def test_the_same_bits_on_two_threads_and_in_shares_of_whole_blocks() -> None:
    scorer, seen, users = (
        embeddings(1000, 3000, ties=False),
        lists([[u % 7] for u in range(1000)]),
        np.arange(1000),
    )
    items, values = rank_top_k(scorer, users, seen, 20)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    for shares in ([users], [users[:128], users[128:]], [users[:640], users[640:896], users[896:]]):
        parts = [rank_top_k(scorer, share, seen, 20) for share in shares]
        assert np.array_equal(np.concatenate([i for i, _ in parts]), items)
        assert np.array_equal(np.concatenate([v for _, v in parts]), values)


@pytest.mark.usefixtures("two_threads")
def test_an_error_on_a_thread_reaches_the_caller_and_threads_are_as_before() -> None:
    scorer = embeddings(1000, 100, ties=False)
    scorer.user_embeddings[700] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        rank_top_k(scorer, np.arange(1000), lists([[]] * 1000), 5)
    assert torch.get_num_threads() == 2


def test_vectors_that_want_gradients_or_have_other_types() -> None:
    scorer = embeddings(5, 9, ties=True)
    seen, users = lists([[]] * 5), np.arange(5)
    expected = rank_top_k(scorer, users, seen, 4)[0]
    for change in (lambda t: t.double(), lambda t: t.half(), lambda t: t.clone().requires_grad_()):
        other = EmbeddingScorer(
            change(scorer.user_embeddings), change(scorer.item_embeddings), scorer.item_offset
        )
        assert np.array_equal(rank_top_k(other, users, seen, 4)[0], expected)


@given(
    seed=st.integers(0, 2**31), num_items=st.integers(1, 40), k=st.integers(1, 50), levels=st.integers(1, 5)
)
def test_torch_operations_for_other_devices_give_the_same(
    seed: int, num_items: int, k: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy((rng.integers(0, levels, (3, num_items)) - 1).astype(np.float32))
    matrix[torch.from_numpy(rng.random((3, num_items)) < 0.1)] = -torch.inf
    rows = [np.flatnonzero(rng.random(num_items) < 0.3).tolist() for _ in range(3)]
    expected = rank_top_k(Fixed(matrix), np.arange(3), lists(rows), k)
    items, values = _rank_rows(matrix.clone(), np.arange(3), [lists(rows)], k)
    assert np.array_equal(items, expected[0][:, : items.shape[1]])
    assert np.array_equal(values, expected[1][:, : items.shape[1]])
    assert (expected[0][:, items.shape[1] :] == -1).all()


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
