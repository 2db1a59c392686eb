"""Full ranking of every ensemble and modality, sharded by user, reduced once.

Axes: M modalities, U users, I items, N = U + I, d embedding size, n evaluated users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gnnmr_dist.config import ModelSettings
from gnnmr_dist.data.dataset import Dataset, Interactions
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.distributed.mesh import Mesh, shares
from gnnmr_dist.ensemble import aligned_average, average, concatenation
from gnnmr_dist.inference import embed_all
from gnnmr_dist.metrics import MetricSums, rank_metrics
from gnnmr_dist.models.encoder import Encoder, score_vectors
from gnnmr_dist.ranking import (
    EmbeddingScorer,
    Int64Array,
    ItemLists,
    Scorer,
    item_lists,
    popularity_offset,
    rank_top_k,
    train_counts,
    train_items,
)

ENSEMBLES = ("concatenation", "average", "aligned-average")


@dataclass(frozen=True)
class Relevant:
    """The users of a split that have at least one item there, and those items (row j = ``users[j]``)."""

    users: Int64Array
    items: ItemLists


def relevant_items(interactions: Interactions, num_users: int) -> Relevant:
    """Users with at least one interaction in a split, ascending, and their items."""
    lists = item_lists(interactions.users, interactions.items, num_users)
    users = np.flatnonzero(lists.counts()).astype(np.int64)
    return Relevant(users, lists.select(users))


def modality_vectors(
    encoders: Iterable[tuple[str, Encoder]], dataset: Dataset, settings: ModelSettings, mesh: Mesh
) -> Tensor:
    """Score vectors of all nodes in all modalities, [M, N, d] on every worker; each computes those it hosts.

    Workers of one group split nothing here: with more replicas than one they compute the same (docs/decisions.md).
    """
    own = [
        score_vectors(embed_all(encoder, dataset.graph, dataset.features(name)), settings.score)
        for name, encoder in encoders
    ]
    return mesh.gather_modalities(torch.stack(own))


def presence_table(dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Bool [M, I]: whether each item has a row in each modality, in the data set's order of modalities."""
    return np.stack([np.asarray(dataset.features(info.name).present) for info in dataset.modalities])


def combine(
    name: str, users: Sequence[Tensor], items: Sequence[Tensor], present: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Users [U, d'] and items [I, d'] of one ensemble by name; raises ValueError for another name."""
    if name == "concatenation":
        return concatenation(users, items, present, weight_missing=present is not None)
    if name == "average":
        return average(users, items)
    if name == "aligned-average":
        return aligned_average(users, items)
    raise ValueError(f"unknown ensemble {name!r}")


def make_scorer(
    row: str, names: Sequence[str], vectors: Tensor, graph: Graph, present: Tensor | None
) -> EmbeddingScorer:
    """The scorer of one row of the results: a modality's name or an ensemble's.

    Args:
        row: what to score with.
        names: the M modalities.
        vectors: [M, N, d].
        graph: tells users from items, and popularity.
        present: bool [M, I] to leave missing modalities out of the concatenation, or None.
    """
    users, items = vectors[:, : graph.num_users], vectors[:, graph.num_users :]
    offset = popularity_offset(graph).to(vectors.device)
    if row in names:
        number = names.index(row)
        return EmbeddingScorer(users[number], items[number], offset)
    return EmbeddingScorer(*combine(row, list(users), list(items), present), offset)


@dataclass(frozen=True)
class RowResult:
    """Metrics of one row of the results: means, and every evaluated user's values."""

    means: Mapping[str, float]
    per_user: Mapping[str, npt.NDArray[np.float64]]


def evaluate(
    scorer: Scorer,
    graph: Graph,
    relevant: Relevant,
    ks: Sequence[int],
    mesh: Mesh,
    *,
    also_masked: ItemLists | None = None,
) -> RowResult:
    """Rank all items for all users of a split; each worker takes a contiguous share of the users.

    Every user's metrics reach every worker and are summed there in the order of users, so the result has the same bits
    for any number of workers.
    """
    share = shares(relevant.users.size, mesh.world_size)[mesh.rank]
    positions = np.arange(share.start, share.stop, dtype=np.int64)
    ranked, _ = rank_top_k(
        scorer, relevant.users[positions], train_items(graph), max(ks), also_masked=also_masked
    )
    counts = train_counts(graph)
    own = rank_metrics(ranked, relevant.items.select(positions), ks, counts)
    names = tuple(own)
    values = torch.from_numpy(np.stack(list(own.values()), axis=1)).to(mesh.device)
    per_user = torch.cat(mesh.gather_world(values)).cpu().numpy()
    covered = _covered(ranked, ks, graph.num_items, mesh)
    sums = MetricSums(names, tuple(ks), per_user.sum(axis=0), relevant.users.size, covered)
    return RowResult(sums.result(), dict(zip(names, per_user.T, strict=True)))


def _covered(ranked: Int64Array, ks: Sequence[int], num_items: int, mesh: Mesh) -> npt.NDArray[np.bool_]:
    covered = np.zeros((len(ks), num_items), np.int32)
    for row, k in zip(covered, ks, strict=True):
        shown = ranked[:, :k]
        row[shown[shown >= 0]] = 1
    total = torch.from_numpy(covered).to(mesh.device)
    mesh.sum_world(total)
    return np.asarray(total.cpu().numpy() > 0)
