"""What one replica needs for one step, as tensors: nodes, blocks, rows of features, and where the scores' columns are.

Axes: b rows of this replica, p own columns (positive[, negative]), n users, C shared candidates, s seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gnnmr_dist.config import SamplingSettings
from gnnmr_dist.data._kernels import read_only, widen_rows
from gnnmr_dist.data.batches import GlobalBatch, known_candidates, slice_rows
from gnnmr_dist.data.feature_tables import CategoryTable, DenseTable, FeatureTable
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.sampling import NeighborSampling, SampledGraph
from gnnmr_dist.models.blocks import Block, make_block
from gnnmr_dist.models.encoder import NodeBatch
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.step_losses import Cells

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


def make_sampler(graph: Graph, sampling: SamplingSettings, seed: int) -> Sampler:
    """The neighbour sampler of the settings.

    Raises:
        InputError: PyG's sampler is asked for and neither pyg-lib nor torch-sparse is installed.
    """
    if sampling.sampler == "builtin":
        return NeighborSampling(graph, sampling.num_neighbors, seed)
    from gnnmr_dist.data.pyg_sampler import PyGBlocks  # imports torch_geometric, which takes seconds

    return PyGBlocks(graph, sampling.num_neighbors, seed)


@dataclass(frozen=True)
class StepData:
    """One replica's part of one step.

    ``nodes`` gives embeddings of the seeds [s]. Places among the seeds, int64: ``users`` [n], the rows' users, each
    once; ``own`` [b, p], each row's own items (the positive; with BPR a negative); ``candidates`` [C], for all rows.
    ``cells`` says which user each row has and which cells are masked; ``own_items`` [b, p] and ``candidate_items`` [C]
    are item numbers; ``total`` is the number of rows of the global batch.
    """

    nodes: NodeBatch
    users: Tensor
    own: Tensor
    candidates: Tensor
    cells: Cells
    own_items: Tensor
    candidate_items: Tensor
    total: int

    def to(self, device: torch.device) -> StepData:
        """The same data on a device."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value if name == "total" else value.to(device) for name, value in vars(self).items()
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
    columns = [part.items, np.maximum(part.negatives, 0)] if with_negatives else [part.items]
    unusable = [np.zeros(part.size, bool), part.negatives < 0][: len(columns)]
    own_items = np.stack(columns, axis=1)
    distinct, row_user = np.unique(part.users, return_inverse=True)
    items, place = np.unique(np.concatenate([own_items.ravel(), batch.candidates]), return_inverse=True)
    place += distinct.size  # users are smaller node numbers than items: together they are in order, each once
    seeds = np.concatenate([distinct, items + graph.num_users])
    excluded = (batch.users, batch.items) if exclude_supervision else None
    sampled = sampler.sample(seeds, batch.epoch, batch.step, excluded)
    masked = (np.stack(unusable, axis=1), known_candidates(graph, distinct, batch.candidates))
    return StepData(
        nodes=node_batch(sampled, graph.num_users),
        users=torch.arange(distinct.size),
        own=torch.from_numpy(place[: own_items.size].reshape(own_items.shape)),
        candidates=torch.from_numpy(place[own_items.size :]),
        cells=Cells(torch.from_numpy(row_user), (torch.from_numpy(masked[0]), torch.from_numpy(masked[1]))),
        own_items=torch.from_numpy(own_items),
        candidate_items=torch.from_numpy(batch.candidates),
        total=batch.size,
    )


def node_batch(sampled: SampledGraph, num_users: int) -> NodeBatch:
    """A sampled graph as the encoder takes it: users and items apart, and their places among the blocks' nodes."""
    is_user = sampled.n_id < num_users
    user_places, item_places = (torch.from_numpy(np.flatnonzero(places)) for places in (is_user, ~is_user))
    users, items = (torch.from_numpy(sampled.n_id[places]) for places in (is_user, ~is_user))
    degree = torch.from_numpy(sampled.degree.astype(np.float32))
    blocks = tuple(
        make_block(torch.from_numpy(b.indptr), torch.from_numpy(b.indices), degree[: b.num_src])
        for b in sampled.blocks
    )
    return NodeBatch(users, items - num_users, user_places, item_places, blocks)


def slice_block(graph: Graph, nodes: range, degree: Tensor) -> Block:
    """Rows ``nodes`` of the whole graph as a block whose sources are all N nodes; ``degree`` float [N]."""
    indptr = np.asarray(graph.indptr[nodes.start : nodes.stop + 1])
    source = np.asarray(graph.indices[indptr[0] : indptr[-1]], dtype=np.int64)
    start = torch.from_numpy(indptr - indptr[0])
    return make_block(start, torch.from_numpy(source), degree, nodes.start)


def gather_rows(table: FeatureTable, items: Int64Array) -> ItemRows:
    """One modality's rows of ``items`` [n] out of its memory-mapped table; only those rows are read."""
    present = np.asarray(table.present[items])
    offsets = None
    if isinstance(table, DenseTable):
        values = gather_single(table.values, items)
    elif isinstance(table, CategoryTable):
        values = table.codes[items].astype(np.int64)
    else:
        begin, length = table.offsets[items], table.offsets[items + 1] - table.offsets[items]
        ends = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        where = np.arange(ends[-1]) + np.repeat(begin - ends[:-1], length)
        values, offsets = table.codes[where].astype(np.int64), torch.from_numpy(ends)
    return ItemRows(torch.from_numpy(present), torch.from_numpy(values), offsets, bool(present.all()))


def gather_single(values: npt.NDArray[np.floating], rows: Int64Array) -> npt.NDArray[np.float32]:
    """``values[rows]`` [n, F] as float32; half precision is read and widened in one pass."""
    if values.dtype == np.float16:
        out = np.empty((rows.size, values.shape[1]), np.float32)
        widen_rows(read_only(values.view(np.uint16)), rows, out)
        return out
    return values[rows].astype(np.float32, copy=False)
