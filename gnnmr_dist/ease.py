"""EASE, a linear item-item model in closed form, and the same normalised by degrees and with the items' features.

Axes: U users, I items, F feature columns, n users asked for. X [U, I] is the binary train matrix; every score has
``popularity_offset`` added, so that ties and users without train interactions fall back to popularity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnmr_dist.data.graph import Graph
from gnnmr_dist.ranking import Float32Array, Float64Array, Int64Array, popularity_offset

MEMORY_LIMIT = 4 << 30
"""Bytes that the dense matrices of one baseline may take, unless told otherwise."""

DENSE_FROM = 0.1
"""Share of entries that are not zero from which features are multiplied as a dense array."""

COLUMNS_PER_BLOCK = 1024
"""Columns that are held dense at once while fitting."""


@dataclass(frozen=True)
class BaselineSkipped:
    """Why a baseline was left out, in one sentence."""

    reason: str


@dataclass(frozen=True)
class ItemWeightScorer:
    """scores = X_u ``weights`` + ``item_offset``; ``train`` is X, ``weights`` float32 [I, I], offset [I].

    ``similarity_scale`` float32 [I] is for :class:`NewItemScorer`.
    """

    train: sp.csr_matrix
    weights: Float32Array
    item_offset: Tensor
    similarity_scale: Float32Array

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I]; costs I additions per train interaction of the users."""
        return torch.from_numpy(self.train[users] @ self.weights) + self.item_offset


@dataclass(frozen=True)
class RowWeightScorer:
    """scores = X_u - (K_u [X; E]) / d + ``item_offset``: EASE through the Gram matrix of the rows.

    ``train`` is X, ``features`` E [F, I] (F = 0 where there are none; dense where few entries are zero, as a product
    with it is then seven times faster), ``kernel`` K float32 [U, U + F], ``diagonal`` d float32 [I], offset [I]; see
    :func:`fit_ease`. ``similarity_scale`` as above.
    """

    train: sp.csr_matrix
    features: sp.csr_matrix | Float32Array
    kernel: Float32Array
    diagonal: Float32Array
    item_offset: Tensor
    similarity_scale: Float32Array

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I]; costs n additions per train interaction of anybody and per entry of the features."""
        kernel, num_users = self.kernel[users], self.train.shape[0]
        projected = (self.train.T @ kernel[:, :num_users].T).T
        if self.features.shape[0]:
            projected += (self.features.T @ kernel[:, num_users:].T).T
        return torch.from_numpy(self.train[users] - projected / self.diagonal) + self.item_offset


@dataclass(frozen=True)
class NewItemScorer:
    """EASE over I known items and n more that it was not fitted with, known by their features alone.

    B's column for an item that nobody has is the ridge regression of its features on those of all others. With the
    residual r_u = X_u - scores (offset left out), which is X_u P / diag P but for scales, score(u, new) = r_u V where
    V = w l2 (diag P / D_i^(2 item_power)) * F f_new [I, n]: what EASE fitted with one such item gives it
    (tests/unit/test_baselines.py).

    ``similarity`` float32 [I, n] is F f_new. Where ``known`` was fitted without features new items have nothing.
    """

    known: ItemWeightScorer | RowWeightScorer
    similarity: Float32Array

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I + n]: known items' scores as they are, new items without an offset."""
        known, scale = self.known.scores(users), self.known.similarity_scale
        residual = torch.from_numpy(self.known.train[users].toarray()) - (known - self.known.item_offset)
        new = residual @ torch.from_numpy(scale[:, None] * self.similarity)
        return torch.cat([known, new], dim=1)


def fit_ease(
    graph: Graph,
    l2: float,
    *,
    user_power: float = 0.0,
    item_power: float = 0.0,
    features: sp.csr_matrix | None = None,
    feature_weight: float = 0.0,
    memory_limit: int = MEMORY_LIMIT,
) -> ItemWeightScorer | RowWeightScorer | BaselineSkipped:
    """EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"): scores = X_u B.

    B minimises ||X - X B||_F^2 + l2 ||B||_F^2 with zero diagonal: B = I - P diag(1 / diag P) with
    P = (X^T X + l2 I)^-1. With fewer users than items the same scores come from K = (X X^T + l2 I)^-1 [U, U],
    as X P = K X (Woodbury): scores = X_u - (K_u X) / d with d_j = P_jj = (1 - x_j^T K x_j) / l2.
    Cholesky in float64; then P in float32 (weights within 2e-6 of float64 at l2 = 10, 5,155 items; half the
    time), K in float64 because d is a difference. :class:`BaselineSkipped` as :func:`ease_too_large` says.

    Powers other than 0 normalise by degrees first, as GF-CF (Shen et al. 2021) does before its filter: with
    Y = D_u^(-user_power / 2) X D_i^-item_power, B = D_i^-item_power S D_i^item_power, where S is EASE's solution for Y
    and l2 is scaled by ||Y||_F^2 / ||X||_F^2. So a user with many interactions counts less for each, and an item's
    popularity is partly left to the offset.

    A ``feature_weight`` w > 0 lets B explain the items' ``features`` [I, F] too: each column counts as one more user,
    with the weight w l2 (CEASE of Jeunen, Van Balen and Goethals 2020, "Closed-Form Models for Collaborative
    Filtering with Side-Information"; the weight relative to l2 is ours, so that one grid serves all data). Then items
    that few users know lean on those that are like them. The scores are still of the user's train items alone.

    Raises:
        ValueError: l2 is not positive, or features and their weight do not come together.
    """
    if l2 <= 0:
        raise ValueError(f"l2 must be positive, got {l2}")
    if (features is None) != (feature_weight == 0) or feature_weight < 0:
        raise ValueError(f"features need a weight above 0 and no features 0, got {feature_weight}")
    extra = _no_rows(graph) if features is None else features.T.tocsr()
    if skipped := ease_too_large(graph, memory_limit, extra.shape[0], extra.nnz):
        return skipped
    train, (users, items) = train_matrix(graph), _degree_scales(graph, user_power, item_power)
    scaled = (sp.diags_array(1 / users) @ train @ sp.diags_array(1 / items)).tocsr()
    if train.nnz:
        l2 *= float((scaled.data**2).sum()) / train.nnz
    problem = _Problem(train, scaled, extra, users, items, l2, feature_weight * l2, popularity_offset(graph))
    return (_by_items if graph.num_items <= graph.num_users + extra.shape[0] else _by_rows)(problem)


def ease_too_large(
    graph: Graph, limit: int = MEMORY_LIMIT, num_columns: int = 0, num_entries: int = 0
) -> BaselineSkipped | None:
    """Why :func:`fit_ease` would be skipped on this graph; None where it has room.

    It needs 24 bytes per entry of the squared smaller side of I and U + F, F = ``num_columns`` (Gram matrix, factor,
    inverse), and 60 per entry of the features that is not zero (measured: the copies that are made of them).
    """
    side = min(graph.num_users + num_columns, graph.num_items)
    needed = 24 * side**2 + 60 * num_entries
    what = f"a {side} x {side} Gram matrix" + (f" and {num_columns} feature columns" if num_columns else "")
    return limited("EASE", what, needed, limit)


def limited(name: str, what: str, needed: int, limit: int) -> BaselineSkipped | None:
    """Why a method is skipped that needs so many bytes; None within the limit."""
    if needed <= limit:
        return None
    return BaselineSkipped(f"{name} skipped: {what} need {needed >> 20} MiB, the limit is {limit >> 20} MiB")


def train_matrix(graph: Graph) -> sp.csr_matrix:
    """X, float64 [U, I]."""
    items = graph.indices[: graph.num_edges] - graph.num_users
    indptr = graph.indptr[: graph.num_users + 1]
    shape = (graph.num_users, graph.num_items)
    return sp.csr_matrix((np.ones(items.size), items, indptr), shape=shape)


def _no_rows(graph: Graph) -> sp.csr_matrix:
    return sp.csr_matrix((0, graph.num_items), dtype=np.float32)


def _degree_scales(graph: Graph, user_power: float, item_power: float) -> tuple[Float64Array, Float64Array]:
    """D_u^(user_power / 2) [U] and D_i^item_power [I]; degree 0 counts as 1."""
    degrees = np.maximum(graph.degree(), 1).astype(np.float64)
    return degrees[: graph.num_users] ** (user_power / 2), degrees[graph.num_users :] ** item_power


def _regularised_inverse(gram: Float64Array, l2: float, dtype: torch.dtype) -> Tensor:
    """(gram + l2 I)^-1, inverted in ``dtype`` from a factor of float64; ``gram`` is overwritten."""
    dense = torch.from_numpy(gram)
    dense.diagonal().add_(l2)
    return torch.cholesky_inverse(torch.linalg.cholesky(dense).to(dtype))


def _gram(matrix: sp.csr_matrix) -> Float64Array:
    """matrix @ matrix.T, dense; its columns in blocks, for a sparse product of full columns would take far longer."""
    total, columns = np.zeros((matrix.shape[0],) * 2), matrix.tocsc()
    for start in range(0, matrix.shape[1], COLUMNS_PER_BLOCK):
        block = columns[:, start : start + COLUMNS_PER_BLOCK].toarray()
        total += block @ block.T
    return total


@dataclass(frozen=True)
class _Problem:
    """``train`` X, ``scaled`` Y = W^-1 X V^-1, ``features`` F^T [F, I].

    ``users`` W = D_u^(user_power / 2) [U], ``items`` V = D_i^item_power [I]; ``l2`` is scaled, ``strength`` w l2,
    ``offset`` float32 [I].
    """

    train: sp.csr_matrix
    scaled: sp.csr_matrix
    features: sp.csr_matrix
    users: Float64Array
    items: Float64Array
    l2: float
    strength: float
    offset: Tensor

    def similarity_scale(self, diagonal: Float64Array) -> Float32Array:
        """Of :class:`NewItemScorer` from diag P [I]."""
        scale: Float32Array = (self.strength * diagonal / self.items**2).astype(np.float32)
        return scale


def _by_items(problem: _Problem) -> ItemWeightScorer:
    gram = (problem.scaled.T @ problem.scaled).toarray()
    if problem.features.shape[0]:
        gram += problem.strength * _gram((problem.features @ sp.diags_array(1 / problem.items)).T.tocsr())
    inverse = _regularised_inverse(gram, problem.l2, torch.float32)
    weights = inverse.contiguous()  # row by row, as a product reads them
    diagonal = weights.diagonal().clone()
    weights /= -diagonal
    weights.diagonal().zero_()
    factor = torch.from_numpy(problem.items.astype(np.float32))
    weights.mul_(factor).div_(factor[:, None])
    scale = problem.similarity_scale(diagonal.double().numpy())
    return ItemWeightScorer(problem.train.astype(np.float32), weights.numpy(), problem.offset, scale)


def _by_rows(problem: _Problem) -> RowWeightScorer:
    """scores = X_u - W_u (K_u [Y; E V^-1]) V / d = X_u - W_u (K_u [W^-1 X; E]) / d, where E = sqrt(w l2) F^T."""
    num_users, users = problem.train.shape[0], problem.users
    extra = problem.features * problem.strength**0.5
    rows = sp.vstack([problem.scaled, extra @ sp.diags_array(1 / problem.items)], format="csr")
    gram = np.empty((rows.shape[0],) * 2)
    gram[:num_users] = (rows[:num_users] @ rows.T).toarray()
    gram[num_users:, :num_users] = gram[:num_users, num_users:].T
    gram[num_users:, num_users:] = _gram(rows[num_users:])
    kernel = _regularised_inverse(gram, problem.l2, torch.float64).numpy()
    diagonal = _diagonal(rows.tocsc(), kernel) / problem.l2
    kernel = kernel[:num_users] * users[:, None]
    kernel[:, :num_users] /= users
    train, features = problem.train.astype(np.float32), extra.astype(np.float32)
    if features.nnz > DENSE_FROM * features.shape[0] * features.shape[1]:
        features = features.toarray()
    single = (kernel.astype(np.float32), diagonal.astype(np.float32))
    return RowWeightScorer(train, features, *single, problem.offset, problem.similarity_scale(diagonal))


def _diagonal(columns: sp.csc_matrix, kernel: Float64Array) -> Float64Array:
    """1 - z_j^T K z_j of every column z_j [I]."""
    diagonal = np.empty(columns.shape[1])
    for start in range(0, diagonal.size, COLUMNS_PER_BLOCK):
        block = columns[:, start : start + COLUMNS_PER_BLOCK].toarray()
        diagonal[start : start + COLUMNS_PER_BLOCK] = 1.0 - (block * (kernel @ block)).sum(axis=0)
    return diagonal
