"""Methods in closed form, which need no training loop: popularity, item-kNN and EASE, all as scorers.

Axes: U users, I items, n users asked for. X [U, I] is the binary train matrix; every score has
``popularity_offset`` added, so that ties and users without train interactions fall back to popularity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from gnnmr_dist.data.graph import Graph
from gnnmr_dist.ease import (
    COLUMNS_PER_BLOCK,
    MEMORY_LIMIT,
    BaselineSkipped,
    ItemWeightScorer,
    ease_too_large,
    fit_ease,
    limited,
    train_matrix,
)
from gnnmr_dist.ranking import (
    Float32Array,
    Int64Array,
    Scorer,
    popularity_offset,
    train_counts,
)

EASE_GRID = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
"""Regularisation strengths tried on validation."""

NEIGHBOURS = (10.0, 20.0, 50.0, 100.0, 200.0, -1.0)
"""Numbers of item-kNN's neighbours tried on validation; -1 = all."""


@dataclass(frozen=True)
class PopularityScorer:
    """score(u, i) = ``item_scores[i]`` for every user; ``item_scores`` float32 [I]."""

    item_scores: Tensor

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I]: the same row n times."""
        return self.item_scores.repeat(users.size, 1)


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
    train = train_matrix(graph)
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
    return ItemWeightScorer(
        train.astype(np.float32), weights, popularity_offset(graph), np.zeros(graph.num_items, np.float32)
    )


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

    def skipped(self, graph: Graph, limit: int = MEMORY_LIMIT) -> BaselineSkipped | None:
        """Why it has no room on this graph; None where it has."""
        return self.too_large(graph, limit)

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
    return limited("item-kNN", f"{size} x {size} similarities", 4 * size**2, limit)


CLOSED_FORM = {
    "popularity": ClosedForm("", (0.0,), _fit_popularity, _never_too_large),
    "item-knn": ClosedForm("neighbours", NEIGHBOURS, _fit_item_knn, _item_knn_too_large),
    "ease": ClosedForm("l2", EASE_GRID, fit_ease, ease_too_large),
}
"""The methods in closed form, in the order of the tables."""


def _keep_largest(rows: Float32Array, count: int) -> None:
    """Zero all but the ``count`` largest of each row [n, I], in place; of equals at the cut the first stay."""
    cut = np.partition(rows, -count, axis=1)[:, -count, None]
    for row in np.flatnonzero((cut[:, 0] > 0) & ((rows >= cut).sum(axis=1) > count)):
        equal = np.flatnonzero(rows[row] == cut[row])
        rows[row, equal[count - int((rows[row] > cut[row]).sum()) :]] = 0.0
    rows[rows < cut] = 0.0
