"""Methods in closed form, which need no training loop: popularity, item-kNN and EASE, all as scorers.

Axes: U users, I items, n users asked for. X [U, I] is the binary train matrix; every score has
``popularity_offset`` added, so that ties and users without train interactions fall back to popularity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnmr_dist.data.graph import Graph
from gnnmr_dist.ranking import Float32Array, Int64Array, Scorer, popularity_offset, train_counts

EASE_GRID = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Regularisation strengths tried on validation."""

NEIGHBOURS = (10.0, 20.0, 50.0, 100.0, 200.0, -1.0)
"""Numbers of item-kNN's neighbours tried on validation; -1 = all."""

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
    if skipped := _item_knn_too_large(graph, memory_limit):
        return skipped
    train = _train_matrix(graph)
    norm = np.sqrt(np.maximum(train_counts(graph), 1))
    unit = (train @ sp.diags_array(1.0 / norm)).tocsc()
    weights = np.empty((graph.num_items, graph.num_items), np.float32)
    for start in range(0, graph.num_items, COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, graph.num_items)
        cosine = (unit[:, start:stop].T @ unit).toarray()
        cosine[np.arange(stop - start), np.arange(start, stop)] = 0.0
        if neighbours is not None and neighbours < graph.num_items:
            _keep_largest(cosine, neighbours)
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
    if skipped := _ease_too_large(graph, memory_limit):
        return skipped
    train = _train_matrix(graph)
    if graph.num_items <= graph.num_users:
        return _ease_by_items(train, l2, popularity_offset(graph))
    return _ease_by_users(train, l2, popularity_offset(graph))


TooLarge = Callable[[Graph, int], BaselineSkipped | None]


@dataclass(frozen=True)
class ClosedForm:
    """A method in closed form: one value, which validation chooses, then a function of the train graph.

    ``choice`` names the value (empty: nothing to choose), ``values`` are tried in this order, of equals the first is
    taken; ``fit(graph, value)`` is for what is not ``too_large(graph, bytes)``.
    """

    choice: str
    values: tuple[float, ...]
    fit: Callable[[Graph, float], Scorer | BaselineSkipped]
    too_large: TooLarge

    def named(self, value: float) -> dict[str, float]:
        """The value under its name; nothing where nothing is chosen."""
        return {self.choice: int(value) if value == int(value) else value} if self.choice else {}

    def text(self, value: float) -> str:
        """The value for people: ``l2 = 100``, ``neighbours = all``, or nothing."""
        return "".join(
            f"{name} = {'all' if some < 0 else f'{some:g}'}" for name, some in self.named(value).items()
        )


def _fit_popularity(graph: Graph, value: float) -> Scorer:
    del value
    return fit_popularity(graph)


def _fit_item_knn(graph: Graph, value: float) -> Scorer | BaselineSkipped:
    return fit_item_knn(graph, neighbours=None if value < 0 else int(value))


def _never_too_large(graph: Graph, limit: int) -> None:
    del graph, limit


def _item_knn_too_large(graph: Graph, limit: int) -> BaselineSkipped | None:
    size = graph.num_items
    return _limited("item-kNN", f"{size} x {size} similarities", 4 * size**2, limit)


def _ease_too_large(graph: Graph, limit: int) -> BaselineSkipped | None:
    side = min(graph.num_users, graph.num_items)
    return _limited("EASE", f"a {side} x {side} Gram matrix", 24 * side**2, limit)


CLOSED_FORM = {
    "popularity": ClosedForm("", (0.0,), _fit_popularity, _never_too_large),
    "item-knn": ClosedForm("neighbours", NEIGHBOURS, _fit_item_knn, _item_knn_too_large),
    "ease": ClosedForm("l2", EASE_GRID, fit_ease, _ease_too_large),
}
"""The methods in closed form, in the order of the tables."""


def _keep_largest(rows: Float32Array, count: int) -> None:
    """Zero all but the ``count`` largest of each row [n, I], in place; of equals at the cut the first stay."""
    cut = np.partition(rows, -count, axis=1)[:, -count, None]
    for row in np.flatnonzero((cut[:, 0] > 0) & ((rows >= cut).sum(axis=1) > count)):
        equal = np.flatnonzero(rows[row] == cut[row])
        rows[row, equal[count - int((rows[row] > cut[row]).sum()) :]] = 0.0
    rows[rows < cut] = 0.0


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


def _limited(name: str, what: str, needed: int, limit: int) -> BaselineSkipped | None:
    if needed <= limit:
        return None
    return BaselineSkipped(f"{name} skipped: {what} need {needed >> 20} MiB, the limit is {limit >> 20} MiB")
