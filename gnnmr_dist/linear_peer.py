"""The linear peer of a finished run: which one, and how much it weighs, both chosen on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from gnnmr_dist.baselines import EASE_GRID, BaselineSkipped, ease_too_large
from gnnmr_dist.closed_form import value_on
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.evaluation import Relevant, relevant_items
from gnnmr_dist.fusion import WEIGHTS, FusedScorer, Fusion, LinearPeer, fit_linear_peer
from gnnmr_dist.loaded import LoadedRun
from gnnmr_dist.ranking import EmbeddingScorer, Scorer

NORMALISATIONS = ((0.0, 0.0), (0.5, 0.2))
"""(user_power, item_power) that are tried: EASE itself, and what was best over a grid on two of three data sets
(docs/decisions.md)."""

FIRST_L2 = 100.0
"""Where the search for l2 begins."""

_CHOSEN: dict[tuple[str, str], LinearPeer] = {}
"""Linear peers by data digest and metric: they depend on nothing else, and choosing takes a minute for 5,000 items."""


def choose_linear_peer(
    graph: Graph, valid: Relevant, *, metric: str = "Recall@20"
) -> LinearPeer | BaselineSkipped:
    """The linear peer that is best alone by ``metric`` on validation; of equals the first tried.

    Under each of NORMALISATIONS l2 climbs in EASE_GRID, from where the one before ended, for as long as that helps:
    about seven fits instead of sixteen. :class:`BaselineSkipped` where its matrix has no room.
    """
    if (why := ease_too_large(graph)) is not None:
        return why
    values: dict[LinearPeer, float] = {}

    def value(peer: LinearPeer) -> float:
        if peer not in values:
            values[peer] = value_on(valid, fit_linear_peer(graph, peer), graph, metric)
        return values[peer]

    l2 = FIRST_L2
    for user_power, item_power in NORMALISATIONS:
        l2 = _climb(LinearPeer(l2, user_power, item_power), value).l2
    return max(values, key=lambda peer: values[peer])


def _climb(peer: LinearPeer, value: Callable[[LinearPeer], float]) -> LinearPeer:
    """Move l2 along EASE_GRID, in either direction, for as long as the value grows."""
    for step in (1, -1):
        place = EASE_GRID.index(peer.l2) + step
        while 0 <= place < len(EASE_GRID):
            other = replace(peer, l2=EASE_GRID[place])
            if value(other) <= value(peer):
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
    peer = _CHOSEN.get((dataset.digest, metric)) or choose_linear_peer(dataset.graph, valid, metric=metric)
    if isinstance(peer, BaselineSkipped):
        return peer
    _CHOSEN[(dataset.digest, metric)] = peer
    networks, linear = run.embeddings("concatenation"), fit_linear_peer(dataset.graph, peer)
    weight = choose_weight(networks, len(run.members), linear, dataset.graph, valid, metric=metric)
    return Fusion(peer, weight)
