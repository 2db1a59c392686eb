"""The compiled selection against a stable sort of whole rows, whatever the tiles, ties, masks and lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.top_k import FIRST, GROUP, LANES, ROOM, TopK


def ranked(
    scores: np.ndarray, masked: np.ndarray, k: int, width: int, offset: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The lists from tiles of ``width`` items; ``masked`` bool [b, I]."""
    users, num_items = scores.shape
    indptr = np.concatenate([[0], np.cumsum(masked.sum(axis=1))])
    top = TopK(k, num_items, indptr, np.nonzero(masked)[1])
    offset = np.zeros(num_items, np.float32) if offset is None else offset
    for first in range(0, num_items, width):
        part = slice(first, first + width)
        top.offer(np.ascontiguousarray(scores[:, part]), offset[part], first)
    assert users == scores.shape[0]
    return top.best()


def sorted_lists(scores: np.ndarray, masked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: a stable sort by falling score; -inf is no item."""
    scores = np.where(masked, np.float32(-np.inf), scores)
    items = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, items, axis=1)
    return np.where(np.isneginf(values), -1, items), values


def same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_hand_case() -> None:
    scores = np.array([[1, 3, 2, 3, -np.inf], [-np.inf, 0, -0.0, 5, 0]], np.float32)
    masked = np.zeros((2, 5), bool)
    masked[1, 3] = True
    items, values = ranked(scores, masked, 4, 2)
    assert items.tolist() == [[1, 3, 2, 0], [1, 2, 4, -1]]
    assert values.tolist() == [[3, 3, 2, 1], [0, 0, 0, -np.inf]]


@given(
    seed=st.integers(0, 2**32),
    users=st.integers(1, 4),
    num_items=st.integers(1, 500),
    k=st.integers(1, 80),
    width=st.integers(1, 300),
    levels=st.sampled_from([1, 2, 5, 50, 10**6]),
)
def test_equals_a_stable_sort(seed: int, users: int, num_items: int, k: int, width: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = ((rng.integers(0, levels, (users, num_items)) - levels // 2) / 7).astype(np.float32)
    for value, share in (
        (-np.inf, 0.1),
        (np.inf, 0.02),
        (-0.0, 0.1),
        (0.0, 0.1),
        (3e38, 0.02),
        (-1e-45, 0.02),
    ):
        scores[rng.random(scores.shape) < share * rng.random()] = value
    masked = rng.random(scores.shape) < rng.random()
    same(ranked(scores, masked, k, width), sorted_lists(scores, masked, k))


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "random", "blocks", "nothing"])
@pytest.mark.parametrize("k", [1, 7, FIRST // GROUP - 1, FIRST // GROUP, 1000])
def test_many_items_in_any_order(order: str, k: int) -> None:
    """Long enough for the first level and for throwing candidates away many times."""
    num_items = 3 * FIRST + LANES + 5
    rng = np.random.default_rng(k)
    row = {
        "rising": np.arange(num_items),
        "falling": -np.arange(num_items),
        "equal": np.zeros(num_items),
        "random": rng.standard_normal(num_items),
        "blocks": np.arange(num_items) // (ROOM * k) % 3,
        "nothing": np.where(np.arange(num_items) % 500, -np.inf, 1),
    }[order].astype(np.float32)
    scores = np.stack([row, np.where(np.isinf(row), row, -row), np.where(np.isinf(row), row, 0)])
    masked = rng.random(scores.shape) < np.array([[0], [0.5], [0.01]])
    for width in (FIRST, 777, num_items):
        same(ranked(scores, masked, k, width), sorted_lists(scores, masked, k))


def test_the_first_level_counts_no_masked_item() -> None:
    """The best of every group but the last is masked: what is left must all be found."""
    scores = np.tile(np.arange(GROUP, dtype=np.float32), (1, FIRST // GROUP))
    masked = scores == GROUP - 1
    masked[0, -1] = False
    same(ranked(scores, masked, 100, FIRST), sorted_lists(scores, masked, 100))


def test_the_offset_is_added_before_comparing() -> None:
    rng = np.random.default_rng(0)
    scores, offset = rng.standard_normal((3, 5000), np.float32), rng.standard_normal(5000, np.float32)
    masked = np.zeros(scores.shape, bool)
    same(ranked(scores, masked, 20, 2048, offset), sorted_lists(scores + offset, masked, 20))


@pytest.mark.parametrize("place", [0, 63, 64, 130, 2500])
def test_nan_is_refused_wherever_it_stands(place: int) -> None:
    scores = np.zeros((2, 2501), np.float32)
    scores[:, 0] = 1
    scores[1, place] = np.nan
    with pytest.raises(ValueError, match="a score is NaN"):
        ranked(scores, np.zeros(scores.shape, bool), 1, 1000)
