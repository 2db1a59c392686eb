"""The linear peer of a finished run: which one, and how much it weighs, both chosen on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import scipy.sparse as sp

from gnnmr_dist.baselines import EASE_GRID
from gnnmr_dist.closed_form import value_on
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.ease import BaselineSkipped, ease_too_large
from gnnmr_dist.evaluation import Relevant, relevant_items
from gnnmr_dist.fusion import WEIGHTS, FusedScorer, Fusion, LinearPeer, fit_linear_peer
from gnnmr_dist.loaded import LoadedRun
from gnnmr_dist.members import item_features, modalities_of
from gnnmr_dist.ranking import EmbeddingScorer, Scorer

NORMALISATIONS = ((0.0, 0.0), (0.5, 0.2))
"""(user_power, item_power) that are tried: EASE itself, and what was best over a grid on two of three data sets
(docs/decisions.md)."""

FIRST_L2 = 100.0
"""Where the search for l2 begins."""

FEATURE_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Weights of the items' features that the search climbs."""

_CHOSEN: dict[tuple[str, ...], LinearPeer] = {}
"""Linear peers by data digest, metric and modalities: they depend on nothing else, and choosing takes a minute or two
for 5,000 items."""


def choose_linear_peer(
    graph: Graph, valid: Relevant, features: sp.csr_matrix | None, *, metric: str = "Recall@20"
) -> LinearPeer | BaselineSkipped:
    """The linear peer that is best alone by ``metric`` on validation; of equals the first tried.

    Under each of NORMALISATIONS l2 climbs in EASE_GRID, from where the one before ended, for as long as that does no
    harm; then the weight of the ``features`` [I, F], l2 and that weight once more. Some twenty fits.
    :class:`BaselineSkipped` where its matrix has no room.
    """
    if (why := ease_too_large(graph)) is not None:
        return why
    values: dict[LinearPeer, float] = {}

    def value(peer: LinearPeer) -> float:
        if peer not in values:
            values[peer] = value_on(valid, fit_linear_peer(graph, peer, features), graph, metric)
        return values[peer]

    l2 = FIRST_L2
    for user_power, item_power in NORMALISATIONS:
        best = _climb(LinearPeer(l2, user_power, item_power), "l2", EASE_GRID, value)
        l2 = best.l2
        for name, grid in (("feature_weight", FEATURE_WEIGHTS), ("l2", EASE_GRID)) * 2:
            best = best if features is None else _climb(best, name, grid, value)
    return max(values, key=lambda peer: values[peer])


def _climb(
    peer: LinearPeer, name: str, grid: Sequence[float], value: Callable[[LinearPeer], float]
) -> LinearPeer:
    """Move one of the peer's arguments along its grid, in either direction, for as long as the value does not fall."""
    for step in (1, -1):
        place = grid.index(getattr(peer, name)) + step
        while 0 <= place < len(grid):
            other = replace(peer, **{name: grid[place]})
            if value(other) < value(peer):
                break
            peer, place = other, place + step
    return peer


def choose_weight(
    networks: EmbeddingScorer,
    num_members: int,
    linear: Scorer,
    graph: Graph,
    valid: Relevant,
    *,
    metric: str = "Recall@20",
    weights: Sequence[float] = WEIGHTS,
) -> float:
    """The linear peer's weight that is best for the sum on validation; of equals the smallest.

    Args:
        networks: the concatenation of M members.
        num_members: M.
        linear: the linear peer's scorer.
        graph: the train graph (train items are masked).
        valid: users and items of validation.
        metric: name and cut-off, as in :func:`gnnmr_dist.metrics.rank_metrics`.
        weights: to try, ascending.
    """
    values = [
        value_on(valid, FusedScorer(networks, linear, num_members * weight), graph, metric)
        for weight in weights
    ]
    return weights[values.index(max(values))]


def fuse_with_linear_peer(run: LoadedRun) -> Fusion | BaselineSkipped:
    """The fusion of a run's best model and a linear peer, chosen on validation; this process must host all members."""
    dataset, metric = run.dataset, run.settings.evaluation.select_metric
    valid = relevant_items(dataset.interactions("valid"), dataset.num_users)
    features = item_features(dataset, run.members)
    key = (dataset.digest, metric, *(info.name for info in modalities_of(run.members)))
    peer = _CHOSEN.get(key) or choose_linear_peer(dataset.graph, valid, features, metric=metric)
    if isinstance(peer, BaselineSkipped):
        return peer
    _CHOSEN[key] = peer
    networks, linear = run.embeddings("concatenation"), fit_linear_peer(dataset.graph, peer, features)
    weight = choose_weight(networks, len(run.members), linear, dataset.graph, valid, metric=metric)
    return Fusion(peer, weight)
