"""What one replica needs for one step, as tensors: nodes, blocks, rows of features, and where the scores' columns are.

Axes: b rows of this replica, C shared candidates, S columns of scores (positive[, negative], candidates), s seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gnnmr_dist.data.batches import GlobalBatch, slice_rows
from gnnmr_dist.data.feature_tables import CategoryTable, DenseTable, FeatureTable
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.sampling import SampledGraph
from gnnmr_dist.models.blocks import Block, make_block
from gnnmr_dist.models.encoder import NodeBatch
from gnnmr_dist.models.inputs import ItemRows

Int64Array = npt.NDArray[np.int64]


class Sampler(Protocol):
    """Anything that samples layer blocks: :class:`~gnnmr_dist.data.sampling.NeighborSampling`, or PyG's sampler."""

    def sample(
        self,
        seeds: npt.NDArray[np.integer],
        epoch: int,
        step: int,
        excluded: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]] | None = None,
    ) -> SampledGraph:
        """Blocks for distinct seeds (node numbers)."""
        ...


@dataclass(frozen=True)
class StepData:
    """One replica's part of one step.

    ``nodes`` gives embeddings of the seeds [s]; ``users``, ``positives``, ``negatives`` int64 [b] and ``candidates``
    int64 [C] are places among the seeds; ``masked`` bool [b, S]; ``columns`` int64 [b, 1 or 2] and
    ``candidate_items`` int64 [C] are the item numbers of the columns; ``total`` is the size of the global batch.
    """

    nodes: NodeBatch
    users: Tensor
    positives: Tensor
    negatives: Tensor | None
    candidates: Tensor
    masked: Tensor
    columns: Tensor
    candidate_items: Tensor
    total: int

    def to(self, device: torch.device) -> StepData:
        """The same data on a device."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device) if value is not None and name != "total" else value
            for name, value in vars(self).items()
        }
        return StepData(**moved)


def step_data(
    graph: Graph,
    sampler: Sampler,
    batch: GlobalBatch,
    *,
    replica: int = 0,
    replicas: int = 1,
    with_negatives: bool,
    exclude_supervision: bool,
) -> StepData:
    """Sample what ``replica`` of ``replicas`` needs for its share of the batch's rows.

    The whole batch's edges are excluded, whatever the share, so no row's result depends on the number of replicas.
    """
    part = slice_rows(batch, replica, replicas)
    offset = graph.num_users
    negatives = np.maximum(part.negatives, 0) if with_negatives else part.negatives[:0]
    wanted = [part.users, part.items + offset, negatives + offset, batch.candidates + offset]
    seeds, place = np.unique(np.concatenate(wanted), return_inverse=True)
    excluded = (batch.users, batch.items) if exclude_supervision else None
    sampled = sampler.sample(seeds, batch.epoch, batch.step, excluded)
    places = [torch.from_numpy(p) for p in np.split(place, np.cumsum([w.size for w in wanted])[:-1])]
    columns = [part.items, negatives] if with_negatives else [part.items]
    unusable = [np.zeros(part.size, bool), part.negatives < 0][: len(columns)]
    masked = np.concatenate([np.stack(unusable, axis=1), part.known], axis=1)
    return StepData(
        nodes=node_batch(sampled, graph.num_users),
        users=places[0],
        positives=places[1],
        negatives=places[2] if with_negatives else None,
        candidates=places[3],
        masked=torch.from_numpy(masked),
        columns=torch.from_numpy(np.stack(columns, axis=1)),
        candidate_items=torch.from_numpy(batch.candidates),
        total=batch.size,
    )


def node_batch(sampled: SampledGraph, num_users: int) -> NodeBatch:
    """A sampled graph as the encoder takes it: users and items apart, and the way back to the blocks' order."""
    n_id = sampled.n_id
    is_user = n_id < num_users
    order = np.empty(n_id.size, np.int64)
    num_found = int(is_user.sum())
    order[is_user] = np.arange(num_found)
    order[~is_user] = np.arange(num_found, n_id.size)
    degree = torch.from_numpy(sampled.degree.astype(np.float32))
    blocks = tuple(
        make_block(torch.from_numpy(b.indptr), torch.from_numpy(b.indices), degree[: b.num_src])
        for b in sampled.blocks
    )
    users, items = torch.from_numpy(n_id[is_user]), torch.from_numpy(n_id[~is_user] - num_users)
    return NodeBatch(users, items, torch.from_numpy(order), blocks)


def slice_block(graph: Graph, nodes: range, degree: Tensor) -> Block:
    """Rows ``nodes`` of the whole graph as a block whose sources are all N nodes; ``degree`` float [N]."""
    indptr = np.asarray(graph.indptr[nodes.start : nodes.stop + 1])
    source = np.asarray(graph.indices[indptr[0] : indptr[-1]], dtype=np.int64)
    start = torch.from_numpy(indptr - indptr[0])
    return make_block(start, torch.from_numpy(source), degree, nodes.start)


def gather_rows(table: FeatureTable, items: Int64Array) -> ItemRows:
    """One modality's rows of ``items`` [n] out of its memory-mapped table; only those rows are read."""
    present = torch.from_numpy(np.asarray(table.present[items]))
    if isinstance(table, DenseTable):
        return ItemRows(present, torch.from_numpy(np.asarray(table.values[items])))
    if isinstance(table, CategoryTable):
        return ItemRows(present, torch.from_numpy(table.codes[items].astype(np.int64)))
    begin, end = table.offsets[items], table.offsets[items + 1]
    length = end - begin
    offsets = np.cumsum(length) - length
    where = np.arange(int(length.sum())) + np.repeat(begin - offsets, length)
    codes = torch.from_numpy(table.codes[where].astype(np.int64))
    return ItemRows(present, codes, torch.from_numpy(offsets.astype(np.int64)))
