"""Metrics against hand arithmetic, plain Python and PyG's own metrics; shards against the whole."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric import metrics as pyg

from gnnmr_dist.metrics import cover, mean_metrics, per_user_table, rank_metrics
from gnnmr_dist.ranking import ItemLists, item_lists


def lists(rows: list[list[int]]) -> ItemLists:
    users = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    return item_lists(users, np.array([i for r in rows for i in r], np.int64), len(rows))


def test_hand_case() -> None:
    ranked = np.array([[7, 3, 5, 1], [0, 1, 2, 3], [4, 6, -1, -1], [0, 1, 2, 3]])
    relevant = lists([[3, 1, 9], [8], [6], []])
    counts = np.array([10, 20, 30, 40, 50, 60, 70, 80, 90, 100])
    got = rank_metrics(ranked, relevant, [2, 4], counts)
    nan = math.nan
    log3, log5 = math.log2(3), math.log2(5)
    expected = {
        "Recall@2": [1 / 3, 0, 1, nan],
        "Recall@4": [2 / 3, 0, 1, nan],
        "Precision@2": [1 / 2, 0, 1 / 2, nan],
        "Precision@4": [2 / 4, 0, 1 / 4, nan],
        "HitRate@2": [1, 0, 1, nan],
        "HitRate@4": [1, 0, 1, nan],
        "MRR@2": [1 / 2, 0, 1 / 2, nan],
        "MRR@4": [1 / 2, 0, 1 / 2, nan],
        "NDCG@2": [(1 / log3) / (1 + 1 / log3), 0, 1 / log3, nan],  # ideal cut at K = 2 of 3 items
        "NDCG@4": [(1 / log3 + 1 / log5) / (1 + 1 / log3 + 1 / 2), 0, 1 / log3, nan],
        "AveragePopularity@2": [60, 15, 60, nan],
        "AveragePopularity@4": [50, 25, 60, nan],
    }
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-12, err_msg=name)


def naive(ranked: list[int], relevant: set[int], k: int) -> dict[str, float]:
    hits = [i >= 0 and i in relevant for i in ranked[:k]]
    ideal = sum(1 / math.log2(p + 2) for p in range(min(k, len(relevant))))
    return {
        f"Recall@{k}": sum(hits) / len(relevant),
        f"Precision@{k}": sum(hits) / k,
        f"HitRate@{k}": float(any(hits)),
        f"MRR@{k}": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        f"NDCG@{k}": sum(1 / math.log2(p + 2) for p, hit in enumerate(hits) if hit) / ideal,
    }


def random_case(
    seed: int, n: int, num_items: int, width: int, padded: bool = True
) -> tuple[np.ndarray, list[list[int]]]:
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(num_items)[:width] for _ in range(n)])
    if padded:
        for row in ranked:
            row[width - rng.integers(0, width + 1) :] = -1
    rows = [np.flatnonzero(rng.random(num_items) < rng.random()).tolist() for _ in range(n)]
    return ranked, rows


@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), num_items=st.integers(5, 20), k=st.integers(1, 5))
def test_equals_plain_python(seed: int, n: int, num_items: int, k: int) -> None:
    ranked, rows = random_case(seed, n, num_items, 5)
    got = rank_metrics(ranked, lists(rows), [k])
    for j, row in enumerate(rows):
        for name, values in got.items():
            expected = naive(ranked[j].tolist(), set(row), k)[name] if row else math.nan
            assert values[j] == pytest.approx(expected, nan_ok=True), name


def means(ranked: np.ndarray, relevant: ItemLists, ks: list[int], counts: np.ndarray) -> dict[str, float]:
    """Of the users with a relevant item, put together as :func:`gnnmr_dist.evaluation.evaluate` does."""
    values, counted = rank_metrics(ranked, relevant, ks, counts), relevant.counts() > 0
    covered = np.zeros((len(ks), counts.size), np.int32)
    cover(covered, ranked[counted], ks)
    sums = np.array([own[counted].sum() for own in values.values()])
    return mean_metrics(list(values), sums, int(counted.sum()), ks, covered > 0)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_equals_pyg(k: int) -> None:
    num_items = 60
    ranked, rows = random_case(3, 200, num_items, 10, padded=False)
    rows[4], rows[9] = [], []
    relevant = lists(rows)
    counts = np.random.default_rng(0).integers(0, 50, num_items)
    result = means(ranked, relevant, [k], counts)
    user, item = relevant.pairs(np.arange(200))
    edges = torch.from_numpy(np.stack([user, item]))
    counted = relevant.counts() > 0
    oracles = {
        "Recall": pyg.LinkPredRecall(k),
        "NDCG": pyg.LinkPredNDCG(k),
        "Precision": pyg.LinkPredPrecision(k),
        "MRR": pyg.LinkPredMRR(k),
        "HitRate": pyg.LinkPredHitRatio(k),
    }
    for name, oracle in oracles.items():
        oracle.update(torch.from_numpy(ranked), edges)
        assert result[f"{name}@{k}"] == pytest.approx(float(oracle.compute()), rel=1e-5), name
    shown = torch.from_numpy(ranked[counted])
    coverage = pyg.LinkPredCoverage(k, num_items)
    popularity = pyg.LinkPredAveragePopularity(k, torch.from_numpy(counts))
    for oracle, name in ((coverage, "Coverage"), (popularity, "AveragePopularity")):
        oracle.update(shown, edges)
        assert result[f"{name}@{k}"] == pytest.approx(float(oracle.compute()), rel=1e-5), name


def test_coverage_counts_only_users_with_a_test_item_and_no_padding() -> None:
    ranked = np.array([[0, -1], [1, 2], [0, 3]])
    result = means(ranked, lists([[0], [], [1]]), [1, 2], np.ones(5, np.int64))
    assert result["Coverage@1"] == pytest.approx(1 / 5)
    assert result["Coverage@2"] == pytest.approx(2 / 5)
    assert result["Recall@2"] == pytest.approx(1 / 2)


def test_refusals() -> None:
    ranked, relevant, counts = np.array([[0, 1]]), lists([[1]]), np.ones(2, np.int64)
    with pytest.raises(ValueError, match="1 ranked lists but 2"):
        rank_metrics(ranked, lists([[0], [1]]), [1])
    for ks in ([0], [3], []):
        with pytest.raises(ValueError, match="cut-offs"):
            rank_metrics(ranked, relevant, ks)
    with pytest.raises(ValueError, match="nothing to average"):
        means(ranked, lists([[]]), [1], counts)


def test_per_user_table_has_nulls_for_users_not_counted() -> None:
    relevant = lists([[1], []])
    metrics = rank_metrics(np.array([[0, 1], [0, 1]]), relevant, [2])
    table = per_user_table(np.array([8, 5]), relevant, metrics)
    assert table.column_names[:2] == ["user", "num_test_items"]
    assert table["user"].to_pylist() == [8, 5]
    assert table["num_test_items"].to_pylist() == [1, 0]
    assert table["Recall@2"].to_pylist() == [1.0, None]
