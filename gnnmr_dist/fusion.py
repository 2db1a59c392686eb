"""Late fusion with a linear peer: the networks' ensemble and a linear item-item model, weighted on validation.

The linear peer is EASE normalised by degrees and with the items' features (:func:`gnnmr_dist.ease.fit_ease`). It holds
what no embedding of d numbers can: which items go with which, one by one. Networks see paths. Their errors differ, so
the sum is better than both. Axes: U users, I items, F feature columns, n users asked for, M members.
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy.sparse as sp
from torch import Tensor
from torch.nn import functional

from gnnmr_dist.data.graph import Graph
from gnnmr_dist.ease import BaselineSkipped, ItemWeightScorer, RowWeightScorer, fit_ease
from gnnmr_dist.ranking import EmbeddingScorer, Int64Array, Scorer

FUSED = "fused"
"""Row of the results: the sum of the networks and the linear peer."""

LINEAR = "linear-peer"
"""Row of the results: the linear peer alone."""

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 50.0, 100.0)
"""Weights of the linear peer against one network, tried on validation."""


@dataclass(frozen=True)
class LinearPeer:
    """The arguments of :func:`gnnmr_dist.ease.fit_ease` that validation chose."""

    l2: float
    user_power: float = 0.0
    item_power: float = 0.0
    feature_weight: float = 0.0


@dataclass(frozen=True)
class Fusion:
    """What validation chose: the linear peer, and its scores' ``weight`` against the mean score of the networks."""

    linear: LinearPeer
    weight: float

    def text(self) -> str:
        """For people."""
        peer = self.linear
        powers = f"powers of degrees {peer.user_power:g} (users) and {peer.item_power:g} (items)"
        return f"l2 = {peer.l2:g}, {powers}, features {peer.feature_weight:g}, {self.weight:g} times a network in fused"


def fit_linear_peer(
    graph: Graph, peer: LinearPeer, features: sp.csr_matrix | None
) -> ItemWeightScorer | RowWeightScorer:
    """The scorer of a linear peer, fitted on train; only where :func:`choose_linear_peer` found room for its matrix.

    ``features`` [I, F] are those that it was chosen with; not looked at where its ``feature_weight`` is 0.
    """
    scorer = fit_ease(
        graph,
        peer.l2,
        user_power=peer.user_power,
        item_power=peer.item_power,
        features=features if peer.feature_weight else None,
        feature_weight=peer.feature_weight,
    )
    assert not isinstance(scorer, BaselineSkipped)
    return scorer


@dataclass(frozen=True)
class FusedScorer:
    """score(u, i) = sum over the M members of s^m(u, i) + M ``weight`` x linear(u, i).

    ``networks`` scores I' >= I items; those the linear peer does not know (new items) have nothing from it.
    """

    networks: EmbeddingScorer
    linear: Scorer
    scale: float

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I']."""
        own, more = self.networks.scores(users), self.linear.scores(users).to(self.networks.offset.device)
        return own.add_(functional.pad(more, (0, own.shape[1] - more.shape[1])), alpha=self.scale)
