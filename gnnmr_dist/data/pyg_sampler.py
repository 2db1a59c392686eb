"""Sampling for PyTorch Geometric's own loaders, and PyG's own sampler for our training.

PyG expands each node once, at the hop where it was found; :mod:`gnnmr_dist.data.sampling` expands every
known node at every hop. This module speaks PyG's convention in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch_geometric.typing
from torch_geometric.data import Data
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    NegativeSampling,
    NeighborSampler,
    NodeSamplerInput,
    SamplerOutput,
)
from torch_geometric.sampler.neighbor_sampler import edge_sample, node_sample

from gnnmr_dist.data import _draws, _kernels
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.sampling import Block, Edges, SampledGraph, TablePool, check_fan_outs, find_exclusion
from gnnmr_dist.errors import InputError
from gnnmr_dist.randomness import Purpose, derive

Int64Array = npt.NDArray[np.int64]


class CounterNeighborSampler(BaseSampler):  # type: ignore[misc]
    """Uniform neighbour sampling without replacement for NodeLoader, NeighborLoader, LinkNeighborLoader.

    Needs no compiled extension. Draws are keyed by (seed, epoch, step, the batch's input ids, hop, node), so
    loader workers, their number and their order change nothing.
    """

    def __init__(self, data: Data | Graph, num_neighbors: Sequence[int], seed: int) -> None:
        """A sampler over ``data.edge_index`` (messages flow row 0 -> row 1) or over a :class:`Graph`.

        Raises:
            ValueError: a fan-out is neither -1 nor positive.
        """
        self.num_neighbors = check_fan_outs(num_neighbors)
        self.seed = seed
        self._permutation: torch.Tensor | None = None
        if isinstance(data, Graph):
            self._indptr, self._indices = data.indptr, data.indices
        else:
            source, target = data.edge_index.cpu().numpy().astype(np.int64)
            order = np.lexsort((source, target))
            self._indptr = np.zeros(data.num_nodes + 1, np.int64)
            np.cumsum(np.bincount(target, minlength=data.num_nodes), out=self._indptr[1:])
            self._indices = source[order].astype(np.int32)
            self._permutation = torch.from_numpy(order)
        self.num_nodes = int(self._indptr.size - 1)
        self._tables = TablePool(self.num_nodes)
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # loader workers see it change

    def set_position(self, epoch: int, step: int = 0) -> None:
        """Where training stands; call it before iterating a loader, not while its workers run ahead."""
        self._position[0], self._position[1] = epoch, step

    def sample_from_nodes(self, index: NodeSamplerInput) -> SamplerOutput:
        """The sampled subgraph around ``index.node``, which must be distinct.

        Raises:
            ValueError: a seed stands twice, or the input has times or types.
        """
        key = self._key(index, index.node)
        return node_sample(index, lambda seed, _: self._sample(seed, key))

    def sample_from_edges(
        self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> SamplerOutput:
        """The sampled subgraph around the endpoints of the links and of PyG's negatives, keyed like the rest.

        Raises:
            ValueError: the input has times or types.
        """
        key = self._key(index, index.row)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(_kernels.fold(np.uint64(key), np.array([-1]))) >> 1)
            return edge_sample(
                index, lambda seed, _: self._sample(seed, key), self.num_nodes, False, None, neg_sampling
            )

    @property
    def edge_permutation(self) -> torch.Tensor | None:
        """Entry of the sampler's CSC -> edge of ``data.edge_index``; None over a :class:`Graph`."""
        return self._permutation

    def _key(self, index: NodeSamplerInput | EdgeSamplerInput, nodes: torch.Tensor) -> int:
        if index.time is not None or index.input_type is not None:
            raise ValueError("temporal and heterogeneous sampling are not supported")
        epoch, step = self._position.tolist()
        ids = index.input_id if index.input_id is not None else nodes
        key = np.uint64(derive(self.seed, Purpose.NEIGHBOURS, epoch, step))
        return int(_kernels.fold(key, ids.numpy().astype(np.int64)))

    def _sample(self, seeds: torch.Tensor, key: int) -> SamplerOutput:
        indptr, indices = _kernels.read_only(self._indptr), _kernels.read_only(self._indices)
        frontier = seeds.numpy().astype(np.int64)
        table = self._tables.take(frontier)
        nodes, rows, columns, edges, known = [frontier], [], [], [], frontier.size
        for hop, fan_out in enumerate(self.num_neighbors):
            start, degree = np.empty_like(frontier), np.empty_like(frontier)
            _kernels.row_bounds(indptr, frontier, start, degree)
            ptr = _kernels.sample_pointers(degree, fan_out)
            hop_key = _kernels.fold(np.uint64(key), np.array([hop]))
            entries = _draws.draw_entries(frontier, start, degree, ptr, np.uint64(hop_key), fan_out)
            columns.append(np.repeat(np.arange(known - frontier.size, known), np.diff(ptr)))
            edges.append(entries.copy())
            found = np.empty(min(entries.size, self.num_nodes - known) + 1, np.int64)
            num_found = _kernels.label_sources(indices, entries, table.numbers, table.base, known, found)
            rows.append(entries)
            frontier = found[:num_found]
            nodes.append(frontier)
            known += num_found
        self._tables.give(table, known)
        return SamplerOutput(
            node=_tensor(nodes),
            row=_tensor(rows),
            col=_tensor(columns),
            edge=_tensor(edges),
            num_sampled_nodes=[part.size for part in nodes],
            num_sampled_edges=[part.size for part in edges],
        )


def _tensor(parts: list[Int64Array]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]))


class PyGBlocks:
    """PyG's own NeighborSampler (pyg-lib or torch-sparse) behind the interface of ``NeighborSampling``.

    PyG expands each node once, so block h holds the edges of hops 0..h: every node known at hop h keeps the
    neighbours it got when it was found. Draws come from the extension's own generator: they depend on the
    other seeds, and excluded edges are removed after sampling, so a node may end with fewer than fan-out
    neighbours although more remain.
    """

    def __init__(self, graph: Graph, num_neighbors: Sequence[int], seed: int) -> None:
        """A sampler over ``graph``; PyG draws from torch's global generator, seeded per step from ``seed``.

        Raises:
            InputError: neither pyg-lib nor torch-sparse is installed.
        """
        if not (torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE):
            raise InputError(
                "PyG's neighbour sampler: expected pyg-lib or torch-sparse to be installed, got neither"
            )
        self.graph = graph
        self.num_neighbors, self.seed = check_fan_outs(num_neighbors), seed
        target = np.repeat(np.arange(graph.num_nodes), graph.degree())
        edge_index = torch.from_numpy(np.stack([np.asarray(graph.indices, np.int64), target]))
        data = Data(edge_index=edge_index, num_nodes=graph.num_nodes)
        self._sampler = NeighborSampler(data, list(num_neighbors), is_sorted=True)

    def sample(
        self, seeds: npt.NDArray[np.integer], epoch: int, step: int, excluded: Edges | None = None
    ) -> SampledGraph:
        """Blocks for distinct ``seeds`` (node numbers [s]); the edges ``excluded`` are in none of them.

        Raises:
            ValueError: a seed stands twice, or ``excluded`` is malformed.
        """
        seeds = np.array(seeds, dtype=np.int64)
        if np.unique(seeds).size != seeds.size:
            raise ValueError("a seed stands twice")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, Purpose.NEIGHBOURS, epoch, step) % 2**63)
            out = self._sampler.sample_from_nodes(NodeSamplerInput(None, torch.from_numpy(seeds)))
        n_id, source, target = out.node.numpy(), out.row.numpy(), out.col.numpy()
        order = np.lexsort((n_id[source], target))
        source, target = source[order], target[order]
        exclusion = find_exclusion(self.graph, excluded)
        indptr, indices = _kernels.read_only(self.graph.indptr), _kernels.read_only(self.graph.indices)
        entries = _kernels.find_entries(indptr, indices, n_id[target], n_id[source])
        kept = ~np.isin(entries, exclusion.entries)
        degree = np.diff(self.graph.indptr)
        degree[exclusion.nodes] -= np.diff(exclusion.ptr)
        blocks = _cumulated_blocks(source, target, kept, seeds.size, len(self.num_neighbors))
        return SampledGraph(n_id, blocks, degree[n_id])


def _cumulated_blocks(
    source: Int64Array, target: Int64Array, kept: npt.NDArray[np.bool_], num_seeds: int, num_hops: int
) -> tuple[Block, ...]:
    """Block h of edges sorted by target: those whose target was found within h hops.

    Local numbers run in order of discovery, so the sources of one hop's edges tell where its nodes end.
    """
    blocks, num_dst = [], num_seeds
    for _ in range(num_hops):
        end = int(np.searchsorted(target, num_dst))
        num_src = max(num_dst, int(source[:end].max(initial=-1)) + 1)
        inside = kept[:end]
        indptr = np.zeros(num_dst + 1, np.int64)
        np.cumsum(np.bincount(target[:end][inside], minlength=num_dst), out=indptr[1:])
        blocks.append(Block(indptr, source[:end][inside], num_dst, num_src))
        num_dst = num_src
    return tuple(blocks)
