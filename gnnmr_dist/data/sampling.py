"""Neighbour sampling in layer blocks: what a seed sees is a pure function of (seed, epoch, step, hop, node).

Hop h expands every node known so far with a key of its own, so no draw depends on which other seeds share
the call, on threads or on earlier calls. Layer L-h of an encoder uses the edges of hop h only.

Axes: n nodes of the sampled graph, e edges of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gnnmr_dist.data import _kernels
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.randomness import Purpose, derive

Int64Array = npt.NDArray[np.int64]
Edges = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]


@dataclass(frozen=True)
class Block:
    """The edges of one hop as a CSR over its destinations.

    Attributes:
        indptr: int64 [num_dst + 1].
        indices: int64 [e], places in ``n_id[:num_src]``; within a row in ascending node number, the graph's
            own order, so that float sums run in one order whatever the batch.
        num_dst, num_src: destinations are ``n_id[:num_dst]``, sources ``n_id[:num_src]``; num_dst <= num_src.
    """

    indptr: Int64Array
    indices: Int64Array
    num_dst: int
    num_src: int


@dataclass(frozen=True)
class SampledGraph:
    """Everything the seeds need for as many layers as there are blocks.

    Attributes:
        n_id: int64 [n], node numbers: the seeds in the order given, then nodes in order of discovery.
        blocks: hop 0 (the seeds' own neighbours) first, outermost last; each block's num_dst is the
            num_src of the one before.
        degree: int64 [n], degree in the whole train graph less the excluded edges at that node.
    """

    n_id: Int64Array
    blocks: tuple[Block, ...]
    degree: Int64Array


@dataclass(frozen=True)
class Exclusion:
    """Excluded edges by row: node ``nodes[s]`` lacks the places ``places[ptr[s]:ptr[s+1]]`` of its row."""

    nodes: Int64Array
    ptr: Int64Array
    places: Int64Array


_NO_TABLE = np.empty(0, np.int32)
_NO_EXCLUSION = Exclusion(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64))


def find_exclusion(graph: Graph, excluded: Edges | None) -> Exclusion:
    """The places that ``excluded`` = (users [k], items [k]) occupies, in the users' and in the items' rows.

    Pairs that are not train edges, and repetitions, have no effect.

    Raises:
        ValueError: lengths differ or a number is out of range.
    """
    if excluded is None or excluded[0].size == 0 == excluded[1].size:
        return _NO_EXCLUSION
    users, items = (np.asarray(ids, dtype=np.int64) for ids in excluded)
    if users.shape != items.shape:
        raise ValueError(f"{users.size} excluded users but {items.size} items")
    _check_range("excluded users", users, graph.num_users)
    _check_range("excluded items", items, graph.num_items)
    items = items + graph.num_users
    rows, columns = np.concatenate([users, items]), np.concatenate([items, users])
    indptr = _kernels.read_only(graph.indptr)
    entries = _kernels.find_entries(indptr, _kernels.read_only(graph.indices), rows, columns)
    entries, at = np.unique(entries, return_index=True)  # ascending entries = rows one after the other
    present = entries >= 0
    entries, rows = entries[present], rows[at[present]]
    nodes, first = np.unique(rows, return_index=True)
    ptr = np.append(first, rows.size).astype(np.int64)
    return Exclusion(nodes, ptr, entries - indptr[rows])


def _check_range(name: str, ids: Int64Array, bound: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= bound):
        raise ValueError(f"{name} must lie in 0..{bound - 1}")


def _degree(graph: Graph, n_id: Int64Array, exclusion: Exclusion, slot: npt.NDArray[np.int32]) -> Int64Array:
    ptr = _kernels.count_neighbors(_kernels.read_only(graph.indptr), n_id, slot, exclusion.ptr, -1)
    degree: Int64Array = np.diff(ptr)
    return degree


@dataclass
class _Tables:
    """Node number -> local number, and node number -> row of the exclusion; -1 everywhere between calls."""

    local: npt.NDArray[np.int32]
    slot: npt.NDArray[np.int32]


class NeighborSampling:
    """Uniform neighbour sampling without replacement over one graph.

    Several threads may call one instance: each call borrows tables of N numbers from a pool that grows to as
    many as were ever in use at once, and gives them back clean. Compiled code runs without the GIL.
    """

    def __init__(self, graph: Graph, num_neighbors: Sequence[int], seed: int) -> None:
        """Sampling with fan-out ``num_neighbors[h]`` at hop h; -1 = all neighbours.

        Raises:
            ValueError: a fan-out is neither -1 nor positive.
        """
        if any(k < 1 and k != -1 for k in num_neighbors):
            raise ValueError(f"each fan-out must be -1 or positive, got {list(num_neighbors)}")
        self.graph = graph
        self.num_neighbors = tuple(num_neighbors)
        self.seed = seed
        self._indptr = _kernels.read_only(graph.indptr)
        self._indices = _kernels.read_only(graph.indices)
        self._pool: list[_Tables] = []

    def sample(
        self, seeds: npt.NDArray[np.integer], epoch: int, step: int, excluded: Edges | None = None
    ) -> SampledGraph:
        """Blocks for distinct ``seeds`` (node numbers [s]).

        A node with no more remaining neighbours than the fan-out gets all of them. Edges of ``excluded`` =
        (users [k], items [k]) and their reverses are in no block: samples are drawn from the ranks that
        remain. Pass the whole global batch's edges, not one replica's share, or replicas will differ.

        Raises:
            ValueError: a seed stands twice or is out of range, or ``excluded`` is malformed.
        """
        n_id = np.array(seeds, dtype=np.int64)
        _check_range("seeds", n_id, self.graph.num_nodes)
        exclusion = find_exclusion(self.graph, excluded)
        tables = self._borrow(with_slots=exclusion.nodes.size > 0)
        twice = _kernels.label_seeds(n_id, tables.local)
        if twice >= 0:
            _kernels.forget(n_id[:twice], tables.local)
            self._pool.append(tables)
            raise ValueError(f"seed {n_id[twice]} stands twice")
        slot = tables.slot if exclusion.nodes.size else _NO_TABLE
        slot[exclusion.nodes] = np.arange(exclusion.nodes.size, dtype=np.int32)
        blocks = []
        for hop, fan_out in enumerate(self.num_neighbors):
            key = np.uint64(derive(self.seed, Purpose.NEIGHBOURS, epoch, step, hop))
            n_id, block = self._expand(n_id, fan_out, key, exclusion, slot, tables.local)
            blocks.append(block)
        degree = _degree(self.graph, n_id, exclusion, slot)
        _kernels.forget(n_id, tables.local)
        _kernels.forget(exclusion.nodes, tables.slot)
        self._pool.append(tables)
        return SampledGraph(n_id, tuple(blocks), degree)

    def _borrow(self, *, with_slots: bool) -> _Tables:
        try:
            tables = self._pool.pop()
        except IndexError:
            tables = _Tables(np.full(self.graph.num_nodes, -1, np.int32), _NO_TABLE)
        if with_slots and not tables.slot.size:
            tables.slot = np.full(self.graph.num_nodes, -1, np.int32)
        return tables

    def _expand(
        self,
        nodes: Int64Array,
        fan_out: int,
        key: np.uint64,
        exclusion: Exclusion,
        slot: npt.NDArray[np.int32],
        local: npt.NDArray[np.int32],
    ) -> tuple[Int64Array, Block]:
        ptr = _kernels.count_neighbors(self._indptr, nodes, slot, exclusion.ptr, fan_out)
        entries = _kernels.draw_entries(self._indptr, nodes, slot, exclusion.ptr, exclusion.places, ptr, key)
        n_id = np.empty(min(nodes.size + entries.size, self.graph.num_nodes), np.int64)
        n_id[: nodes.size] = nodes
        sources, known = _kernels.label_sources(self._indices, entries, local, n_id, nodes.size)
        return n_id[:known].copy(), Block(ptr, sources, nodes.size, known)


def full_blocks(graph: Graph, num_layers: int, excluded: Edges | None = None) -> SampledGraph:
    """The whole graph as ``num_layers`` equal blocks: seeds are all nodes 0..N-1, every neighbour is kept.

    Raises:
        ValueError: ``excluded`` is malformed.
    """
    exclusion = find_exclusion(graph, excluded)
    n_id = np.arange(graph.num_nodes, dtype=np.int64)
    slot = np.full(graph.num_nodes if exclusion.nodes.size else 0, -1, np.int32)
    slot[exclusion.nodes] = np.arange(exclusion.nodes.size, dtype=np.int32)
    indptr = _kernels.read_only(graph.indptr)
    ptr = _kernels.count_neighbors(indptr, n_id, slot, exclusion.ptr, -1)
    entries = _kernels.draw_entries(indptr, n_id, slot, exclusion.ptr, exclusion.places, ptr, np.uint64(0))
    block = Block(ptr, graph.indices[entries].astype(np.int64), graph.num_nodes, graph.num_nodes)
    return SampledGraph(n_id, (block,) * num_layers, np.diff(ptr))
