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
from gnnmr_dist.data.dataset import Dataset, FeatureTable, Interactions
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.steps import gather_rows
from gnnmr_dist.distributed.mesh import Mesh, shares
from gnnmr_dist.ensemble import aligned_average, average, concatenation, procrustes_rotation
from gnnmr_dist.inference import ROWS_AT_ONCE, embed_all, embed_unlinked_items
from gnnmr_dist.members import Member
from gnnmr_dist.metrics import cover, mean_metrics, rank_metrics
from gnnmr_dist.models.encoder import Network, score_vectors
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.ranking import (
    EmbeddingScorer,
    Int64Array,
    ItemLists,
    Scorer,
    among,
    item_lists,
    popularity_offset,
    rank_top_k,
    train_counts,
    train_items,
    users_at_once,
)

ENSEMBLES = ("concatenation", "average", "aligned-average")
BLOCKS_AT_ONCE = 512
"""Blocks of users ranked before their metrics are taken: lists are larger than metrics."""


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
    encoders: Iterable[tuple[Member, Network]],
    dataset: Dataset,
    settings: ModelSettings,
    mesh: Mesh,
    make: Maker = torch.zeros,
) -> Tensor:
    """Score vectors of all nodes of all members, [M, N, d] on every worker; each computes those it hosts.

    Workers of one group split nothing here: with more replicas than one they compute the same (docs/decisions.md).
    ``make`` makes what has N rows. A node's vectors lie side by side: their concatenation is a view.
    """
    own = torch.empty(0)
    for place, (member, encoder) in enumerate(encoders):
        tables = [dataset.features(info.name) for info in member.modalities]
        embeddings = embed_all(encoder, dataset.graph, tables, make=make)
        _forget_ids_of_cold_items(embeddings, encoder, dataset.graph, tables)
        if place == 0:  # one table for all, filled as they come: never two copies of everything
            own = _side_by_side(len(mesh.hosted), embeddings, make)
        for part, into in zip(embeddings.split(ROWS_AT_ONCE), own[place].split(ROWS_AT_ONCE), strict=True):
            into.copy_(score_vectors(part, settings.score))
        del embeddings
    if mesh.groups == 1:
        return own
    everyone = _side_by_side(mesh.num_modalities, own[0], make)
    for some, into in zip(own.split(ROWS_AT_ONCE, 1), everyone.split(ROWS_AT_ONCE, 1), strict=True):
        into.copy_(mesh.gather_modalities(some))
    return everyone


def _side_by_side(count: int, table: Tensor, make: Maker) -> Tensor:
    """Room for ``count`` tables like ``table`` [N, d], as [count, N, d]."""
    num_nodes, width = table.shape
    return make((num_nodes, count, width), dtype=table.dtype, device=table.device).transpose(0, 1)


def _forget_ids_of_cold_items(
    embeddings: Tensor, encoder: Network, graph: Graph, tables: Sequence[FeatureTable]
) -> None:
    """Replace the embeddings [N, d] of items without train interactions, in place, by those of their features alone.

    Their ID vectors were trained as negatives only, which pushes them down: measured in tests/unit/test_recommend.py,
    where some rank behind disliked items with their ID vectors and none without; no visible effect on ml100k. So a cold
    item of the catalogue ranks as a new item with the same features would.
    """
    cold = np.flatnonzero(train_counts(graph) == 0)
    for start in range(0, cold.size, ROWS_AT_ONCE):
        some = cold[start : start + ROWS_AT_ONCE]
        rows = [gather_rows(table, some).to(embeddings.device) for table in tables]
        places = torch.from_numpy(some + graph.num_users).to(embeddings.device)
        embeddings[places] = embed_unlinked_items(encoder, rows, some.size)


def presence_table(dataset: Dataset, members: Sequence[Member]) -> npt.NDArray[np.bool_]:
    """Bool [M, I]: whether a member has anything to read of an item (one that reads IDs alone has, of every item)."""

    def row(member: Member) -> npt.NDArray[np.bool_]:
        read = [np.asarray(dataset.features(info.name).present) for info in member.modalities]
        return np.any(read, axis=0) if read else np.ones(dataset.num_items, np.bool_)

    return np.stack([row(member) for member in members])


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
    if row == "concatenation" and present is None:  # no copy where a node's vectors lie side by side
        return EmbeddingScorer(users.transpose(0, 1).flatten(1), items.transpose(0, 1).flatten(1), offset)
    return EmbeddingScorer(*combine(row, list(users), list(items), present), offset)


def new_item_vectors(
    row: str, names: Sequence[str], vectors: Tensor, new: Tensor, present: Tensor | None
) -> Tensor:
    """Vectors [n, d'] of items the data set does not know, to be ranked among those of ``make_scorer(row, ...)``.

    The rotations of the aligned average are those of the known nodes, so new items change no known item's score.

    Args:
        row: a modality's name or an ensemble's.
        names: the M modalities.
        vectors: [M, N, d] of the known nodes.
        new: [M, n, d] of the new items.
        present: bool [M, n] to leave missing modalities out of the concatenation, or None.
    """
    if row in names:
        return new[names.index(row)]
    if row == "aligned-average":
        rotations = [procrustes_rotation(own, vectors[0]) for own in vectors]
        return combine("average", list(new), [v @ r for v, r in zip(new, rotations, strict=True)], None)[1]
    return combine(row, list(new), list(new), present)[1]


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
    kept: npt.NDArray[np.bool_] | None = None,
) -> RowResult:
    """Rank all items, or those ``kept`` [I], for all users of a split.

    Each worker takes a contiguous share of the blocks of users. Every user's metrics reach every worker and are summed
    there in the order of users, so the result has the same bits for any number of workers.

    Raises:
        ValueError: a cut-off is not in 1..I, or a score is NaN.
    """
    scorer = scorer if kept is None else among(scorer, kept)
    block = users_at_once(scorer, graph.num_items)  # blocks start at its multiples on any number of workers
    share = shares(-(-relevant.users.size // block), mesh.world_size)[mesh.rank]
    first, stop = share.start * block, min(share.stop * block, relevant.users.size)
    seen, counts = train_items(graph), train_counts(graph)
    covered, own = np.zeros((len(ks), graph.num_items), np.int32), []
    for start in range(
        first, max(stop, first + 1), BLOCKS_AT_ONCE * block
    ):  # at least once: a share may be empty
        positions = np.arange(start, min(start + BLOCKS_AT_ONCE * block, stop), dtype=np.int64)
        users = relevant.users[positions]
        ranked, _ = rank_top_k(scorer, users, seen, max(ks), also_masked=also_masked, block=block)
        values = rank_metrics(ranked, relevant.items.select(positions), ks, counts)
        own.append(np.stack(list(values.values()), axis=1))
        cover(covered, ranked, ks)
    names = tuple(values)
    mine = torch.from_numpy(np.concatenate(own)).to(mesh.device)
    per_user = torch.cat(mesh.gather_world(mine)).cpu().numpy()
    total = torch.from_numpy(covered).to(mesh.device)
    mesh.sum_world(total)
    means = mean_metrics(names, per_user.sum(axis=0), relevant.users.size, ks, total.cpu().numpy() > 0)
    return RowResult(means, dict(zip(names, per_user.T, strict=True)))
