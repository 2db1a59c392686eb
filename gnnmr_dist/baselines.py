"""Baselines that need no training loop: popularity, item-kNN and EASE, all as scorers.

Axes: U users, I items, n users asked for. X [U, I] is the binary train matrix; every score has
``popularity_offset`` added, so that ties and users without train interactions fall back to popularity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnmr_dist.data.graph import Graph
from gnnmr_dist.metrics import metric_sums
from gnnmr_dist.ranking import (
    Float32Array,
    Int64Array,
    ItemLists,
    Scorer,
    popularity_offset,
    rank_top_k,
    train_counts,
    train_items,
    users_at_once,
)

EASE_GRID = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Regularisation strengths tried on validation."""

MEMORY_LIMIT = 4 << 30
"""Bytes that the dense matrices of one baseline may take, unless told otherwise."""

COLUMNS_PER_BLOCK = 1024
"""Items whose dense columns are held at once while fitting."""


@dataclass(frozen=True)
class BaselineSkipped:
    """Why a baseline was left out, in one sentence."""

    reason: str


@dataclass(frozen=True)
class PopularityScorer:
    """score(u, i) = ``item_scores[i]`` for every user; ``item_scores`` float32 [I]."""

    item_scores: Tensor

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I]: the same row n times."""
        return self.item_scores.repeat(users.size, 1)


@dataclass(frozen=True)
class ItemWeightScorer:
    """scores = X_u ``weights`` + ``item_offset``; ``train`` is X, ``weights`` float32 [I, I], offset [I]."""

    train: sp.csr_matrix
    weights: Float32Array
    item_offset: Tensor

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I]; costs I additions per train interaction of the users."""
        return torch.from_numpy(self.train[users] @ self.weights) + self.item_offset


@dataclass(frozen=True)
class UserWeightScorer:
    """scores = X_u - (K_u X) / d + ``item_offset``: EASE through the users' Gram matrix.

    ``train`` is X, ``kernel`` K float32 [U, U], ``diagonal`` d float32 [I], offset [I]; see :func:`fit_ease`.
    """

    train: sp.csr_matrix
    kernel: Float32Array
    diagonal: Float32Array
    item_offset: Tensor

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I]; costs n additions per train interaction of anybody."""
        projected = (self.train.T @ self.kernel[users].T).T
        return torch.from_numpy(self.train[users] - projected / self.diagonal) + self.item_offset


def fit_popularity(graph: Graph) -> PopularityScorer:
    """score(u, i) = train interactions of i x 1e-6: the fallback of all methods, alone."""
    return PopularityScorer(popularity_offset(graph))


def fit_item_knn(
    graph: Graph, *, neighbours: int | None = None, memory_limit: int = MEMORY_LIMIT
) -> ItemWeightScorer | BaselineSkipped:
    """score(u, i) = sum over train items j != i of u of cos(x_j, x_i), x_i the column of item i in X.

    Item-based nearest neighbours (Sarwar 2001), cosine similarity. ``neighbours`` None uses all items with
    a positive cosine (the variant of the project's reference points); a number keeps only that many nearest j
    of each scored item i (equal similarities at the cut: smaller item number first). Dense weights, 4 I^2
    bytes: :class:`BaselineSkipped` where that exceeds ``memory_limit``.

    Raises:
        ValueError: ``neighbours`` is not positive.
    """
    if neighbours is not None and neighbours < 1:
        raise ValueError(f"neighbours must be positive, got {neighbours}")
    needed = 4 * graph.num_items**2
    if needed > memory_limit:
        return _skipped(
            "item-kNN", f"{graph.num_items} x {graph.num_items} similarities", needed, memory_limit
        )
    train = _train_matrix(graph)
    norm = np.sqrt(np.maximum(train_counts(graph), 1))
    unit = (train @ sp.diags_array(1.0 / norm)).tocsc()
    weights = np.empty((graph.num_items, graph.num_items), np.float32)
    for start in range(0, graph.num_items, COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, graph.num_items)
        cosine = (unit[:, start:stop].T @ unit).toarray()
        cosine[np.arange(stop - start), np.arange(start, stop)] = 0.0
        if neighbours is not None and neighbours < graph.num_items:
            nearest = np.argsort(-cosine, axis=1, kind="stable")[:, neighbours:]
            np.put_along_axis(cosine, nearest, 0.0, axis=1)
        weights[:, start:stop] = cosine.T
    return ItemWeightScorer(train.astype(np.float32), weights, popularity_offset(graph))


def fit_ease(
    graph: Graph, l2: float, *, memory_limit: int = MEMORY_LIMIT
) -> ItemWeightScorer | UserWeightScorer | BaselineSkipped:
    """EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"): scores = X_u B.

    B minimises ||X - X B||_F^2 + l2 ||B||_F^2 with zero diagonal: B = I - P diag(1 / diag P) with
    P = (X^T X + l2 I)^-1. With fewer users than items the same scores come from K = (X X^T + l2 I)^-1 [U, U],
    as X P = K X (Woodbury): scores = X_u - (K_u X) / d with d_j = P_jj = (1 - x_j^T K x_j) / l2.
    Cholesky in float64; then P in float32 (weights within 2e-6 of float64 at l2 = 10, 5,155 items; half the
    time), K in float64 because d is a difference. :class:`BaselineSkipped` where the smaller of U and I needs
    more than ``memory_limit`` bytes: 24 per entry of the squared side (Gram matrix, factor, inverse).

    Raises:
        ValueError: l2 is not positive.
    """
    if l2 <= 0:
        raise ValueError(f"l2 must be positive, got {l2}")
    side = min(graph.num_users, graph.num_items)
    needed = 24 * side**2
    if needed > memory_limit:
        return _skipped("EASE", f"a {side} x {side} Gram matrix", needed, memory_limit)
    train = _train_matrix(graph)
    if graph.num_items <= graph.num_users:
        return _ease_by_items(train, l2, popularity_offset(graph))
    return _ease_by_users(train, l2, popularity_offset(graph))


def choose_ease(
    graph: Graph,
    valid: ItemLists,
    grid: Sequence[float] = EASE_GRID,
    *,
    metric: str = "Recall@20",
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[Scorer, float] | BaselineSkipped:
    """The EASE whose l2 is best by ``metric`` on validation (train masked), and that l2; of equals the first.

    Args:
        graph: the train graph.
        valid: validation items of every user, U lists.
        grid: values of l2.
        metric: name and cut-off, as in :func:`gnnmr_dist.metrics.rank_metrics`.
        memory_limit: as in :func:`fit_ease`.

    Raises:
        ValueError: the grid is empty or holds a value that is not positive; no user has a validation item.
    """
    best: tuple[float, Scorer, float] | None = None
    for l2 in grid:
        scorer = fit_ease(graph, l2, memory_limit=memory_limit)
        if isinstance(scorer, BaselineSkipped):
            return scorer
        value = value_on(valid, scorer, graph, metric)
        if best is None or value > best[0]:
            best = value, scorer, l2
    if best is None:
        raise ValueError("the grid of l2 is empty")
    return best[1], best[2]


def value_on(lists: ItemLists, scorer: Scorer, graph: Graph, metric: str) -> float:
    """One metric (``Recall@20``) over the users with at least one of the items to be found, train items masked."""
    users, k = np.flatnonzero(lists.counts() > 0), int(metric.rpartition("@")[2])
    block = users_at_once(scorer, graph.num_items)
    ranked, _ = rank_top_k(scorer, users, train_items(graph), k, block=block)
    return metric_sums(ranked, lists.select(users), [k], train_counts(graph)).result()[metric]


def _train_matrix(graph: Graph) -> sp.csr_matrix:
    items = graph.indices[: graph.num_edges] - graph.num_users
    indptr = graph.indptr[: graph.num_users + 1]
    shape = (graph.num_users, graph.num_items)
    return sp.csr_matrix((np.ones(items.size), items, indptr), shape=shape)


def _regularised_inverse(gram: sp.csr_matrix, l2: float, dtype: torch.dtype) -> Tensor:
    """(gram + l2 I)^-1, inverted in ``dtype`` from a factor of float64."""
    dense = torch.from_numpy(gram.toarray())
    dense.diagonal().add_(l2)
    return torch.cholesky_inverse(torch.linalg.cholesky(dense).to(dtype))


def _ease_by_items(train: sp.csr_matrix, l2: float, offset: Tensor) -> ItemWeightScorer:
    weights = _regularised_inverse(train.T @ train, l2, torch.float32)
    weights /= -weights.diagonal().clone()
    weights.diagonal().zero_()
    return ItemWeightScorer(train.astype(np.float32), weights.numpy(), offset)


def _ease_by_users(train: sp.csr_matrix, l2: float, offset: Tensor) -> UserWeightScorer:
    kernel = _regularised_inverse(train @ train.T, l2, torch.float64).numpy()
    columns = train.tocsc()
    diagonal = np.empty(train.shape[1])
    for start in range(0, diagonal.size, COLUMNS_PER_BLOCK):
        block = columns[:, start : start + COLUMNS_PER_BLOCK].toarray()
        diagonal[start : start + COLUMNS_PER_BLOCK] = 1.0 - (block * (kernel @ block)).sum(axis=0)
    single = (kernel.astype(np.float32), (diagonal / l2).astype(np.float32))
    return UserWeightScorer(train.astype(np.float32), *single, offset)


def _skipped(name: str, what: str, needed: int, limit: int) -> BaselineSkipped:
    return BaselineSkipped(f"{name} skipped: {what} need {needed >> 20} MiB, the limit is {limit >> 20} MiB")
