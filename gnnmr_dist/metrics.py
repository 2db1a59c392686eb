"""Ranking metrics: per user first, then sums and counts that merge over shards and are divided once.

Axes: n users, K cut-off (``ks`` lists several), I items. Definitions and formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gnnmr_dist.ranking import Int64Array, ItemLists

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def _hits(ranked: Int64Array, relevant: ItemLists) -> BoolArray:
    """Whether each ranked item is one of its user's relevant items, bool [n, K]; padding never is."""
    n = ranked.shape[0]
    rows, items = relevant.pairs(np.arange(n))
    width = int(max(ranked.max(initial=0), items.max(initial=0))) + 1
    keys = np.sort(rows * width + items)
    asked = np.arange(n)[:, None] * width + ranked
    found = np.searchsorted(keys, asked)
    match = keys[np.minimum(found, keys.size - 1)] == asked if keys.size else np.zeros(ranked.shape, np.bool_)
    return np.asarray(match & (ranked >= 0))


def rank_metrics(
    ranked: Int64Array,
    relevant: ItemLists,
    ks: Sequence[int],
    item_counts: npt.NDArray[np.integer] | None = None,
) -> dict[str, FloatArray]:
    """Every metric of every user: ``{"Recall@20": float64 [n], ...}``; NaN for users without a relevant item.

    With hits h_1..h_K in {0, 1} along the list and T relevant items:
    Recall = sum h / T; Precision = sum h / K; HitRate = 1 if any h, else 0;
    MRR = 1 / first position with h = 1, else 0;
    NDCG = sum h_p / log2(p + 1) over its value for min(K, T) leading hits (Järvelin and Kekäläinen 2002);
    AveragePopularity (only with ``item_counts``) = mean train count of the list's items, 0 for an empty list.

    Args:
        ranked: items [n, at least max(ks)], best first; -1 is padding.
        relevant: the n users' test (or validation) items, row j for user j of ``ranked``.
        ks: cut-offs.
        item_counts: train interactions of every item [I], or None.

    Raises:
        ValueError: rows differ in number, or a cut-off is not in 1..number of ranked positions.
    """
    if relevant.num_rows != ranked.shape[0]:
        raise ValueError(f"{ranked.shape[0]} ranked lists but {relevant.num_rows} lists of relevant items")
    if min(ks, default=0) < 1 or max(ks) > ranked.shape[1]:
        raise ValueError(f"cut-offs must lie in 1..{ranked.shape[1]}, got {list(ks)}")
    hits = _hits(ranked, relevant)
    total = relevant.counts().astype(np.float64)
    total[total == 0] = np.nan
    result: dict[str, FloatArray] = {}
    for k in ks:
        result |= {f"{name}@{k}": values for name, values in _accuracy(hits[:, :k], total).items()}
        if item_counts is not None:
            mean = _mean_popularity(ranked[:, :k], item_counts)
            result[f"AveragePopularity@{k}"] = np.where(np.isnan(total), np.nan, mean)
    return result


def _accuracy(hits: BoolArray, total: FloatArray) -> dict[str, FloatArray]:
    """The metrics of hits [n, K] at that one cut-off; ``total`` [n] relevant items, NaN where none."""
    k = hits.shape[1]
    known = total / total
    found = hits.sum(axis=1) * known
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(np.nan_to_num(total, nan=1.0), k).astype(np.int64) - 1]
    first = np.argmax(hits, axis=1)
    return {
        "Recall": found / total,
        "NDCG": (hits @ discount) / ideal * known,
        "Precision": found / k,
        "HitRate": (found > 0) * known,
        "MRR": hits.any(axis=1) / (first + 1.0) * known,
    }


def _mean_popularity(ranked: Int64Array, item_counts: npt.NDArray[np.integer]) -> FloatArray:
    real = ranked >= 0
    counts = np.where(real, item_counts[ranked], 0).sum(axis=1, dtype=np.float64)
    return np.asarray(counts / np.maximum(real.sum(axis=1), 1))


def cover(covered: npt.NDArray[np.int32], ranked: Int64Array, ks: Sequence[int]) -> None:
    """Set to 1 in ``covered`` [len(ks), I] what ``ranked`` [n, K] (-1 = padding) shows at each cut-off."""
    for row, k in zip(covered, ks, strict=True):
        shown = ranked[:, :k]
        row[shown[shown >= 0]] = 1


def mean_metrics(
    names: Sequence[str], sums: FloatArray, num_users: int, ks: Sequence[int], covered: BoolArray
) -> dict[str, float]:
    """Mean of every metric over the counted users, and ``Coverage@K`` = covered items / I.

    Args:
        names: of the metrics.
        sums: float64 [len(names)], over the counted users.
        num_users: how many were counted.
        ks: cut-offs.
        covered: [len(ks), I], items recommended to any counted user at each cut-off.

    Raises:
        ValueError: no user was counted, so no mean exists.
    """
    if num_users == 0:
        raise ValueError("no user has a relevant item: nothing to average")
    means = dict(zip(names, (sums / num_users).tolist(), strict=True))
    shares = covered.mean(axis=1).tolist()
    return means | {f"Coverage@{k}": share for k, share in zip(ks, shares, strict=True)}


def per_user_table(users: Int64Array, relevant: ItemLists, metrics: Mapping[str, FloatArray]) -> pa.Table:
    """One row per user: ``user``, ``num_test_items``, then every metric (null where not counted)."""
    columns = {"user": pa.array(users), "num_test_items": pa.array(relevant.counts())}
    return pa.table(columns | {name: pa.array(values, from_pandas=True) for name, values in metrics.items()})
