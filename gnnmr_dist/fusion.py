"""Late fusion with a linear peer: the networks' ensemble and EASE, weighted on validation.

EASE (a linear item-item model, :func:`gnnmr_dist.baselines.fit_ease`) holds what no embedding of d numbers can: which
items go with which, one by one. Networks see features and paths. Their errors differ, so the sum is better than both.
Axes: U users, I items, n users asked for, M members.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from gnnmr_dist.ranking import EmbeddingScorer, Int64Array, Scorer

FUSED = "fused"
"""Row of the results: the sum of the networks and the linear peer."""

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
"""Weights of the linear peer against one network, tried on validation."""


@dataclass(frozen=True)
class Fusion:
    """What validation chose: EASE's ``l2``, and the ``weight`` of its scores against the mean score of the networks."""

    l2: float
    weight: float


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
