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

from gnnmr_dist.data import _draws, _kernels
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
    """Excluded edges from both ends: node ``nodes[s]`` lacks ``entries[ptr[s]:ptr[s+1]]`` of ``indices``."""

    nodes: Int64Array
    ptr: Int64Array
    entries: Int64Array


_NO_EXCLUSION = Exclusion(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64))


def find_exclusion(graph: Graph, excluded: Edges | None) -> Exclusion:
    """The entries that ``excluded`` = (users [k], items [k]) occupies, in the users' and in the items' rows.

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
    indptr, indices = _kernels.read_only(graph.indptr), _kernels.read_only(graph.indices)
    entries, at = np.unique(_kernels.find_entries(indptr, indices, rows, columns), return_index=True)
    present = entries >= 0
    nodes, first = np.unique(rows[at[present]], return_index=True)  # ascending entries: row after row
    entries = entries[present]
    return Exclusion(nodes, np.append(first, entries.size).astype(np.int64), entries)


def _check_range(name: str, ids: Int64Array, bound: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= bound):
        raise ValueError(f"{name} must lie in 0..{bound - 1}")


@dataclass
class NodeTable:
    """Node -> local number within one call: node v is known if ``numbers[v] >= base``, and has the difference.

    The next call takes a base above all numbers given out, so nothing need be cleared.
    """

    numbers: npt.NDArray[np.int32]
    base: int

    def local(self, nodes: Int64Array) -> Int64Array:
        """Local numbers of ``nodes`` [k], negative where not known."""
        return self.numbers[nodes].astype(np.int64) - self.base


class TablePool:
    """Tables node -> local number, 4 bytes per node, for calls on one graph.

    Taking and giving back are atomic, so threads may share a pool; it grows to as many tables as were ever in
    use at once.
    """

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        self._spare: list[NodeTable] = []

    def take(self, seeds: Int64Array) -> NodeTable:
        """A table in which the seeds are numbered 0.. in order, and nothing else.

        Raises:
            ValueError: a seed stands twice or is out of range.
        """
        _check_range("seeds", seeds, self.num_nodes)
        try:
            table = self._spare.pop()
        except IndexError:
            table = NodeTable(np.zeros(self.num_nodes, np.int32), 1)
        twice = _kernels.label_seeds(seeds, table.numbers, table.base)
        if twice >= 0:
            self.give(table, twice)
            raise ValueError(f"seed {seeds[twice]} stands twice")
        return table

    def give(self, table: NodeTable, used: int) -> None:
        """Put a table back in which ``used`` nodes are numbered; from here on it knows none."""
        table.base += used
        if table.base > np.iinfo(np.int32).max - self.num_nodes:
            table.numbers.fill(0)
            table.base = 1
        self._spare.append(table)


class _Expansion:
    """The state of one call: nodes found so far, their rows, and what is excluded from them."""

    def __init__(self, graph: Graph, n_id: Int64Array, exclusion: Exclusion, table: NodeTable) -> None:
        self.indptr, self.indices = _kernels.read_only(graph.indptr), _kernels.read_only(graph.indices)
        self.exclusion, self.table = exclusion, table
        self.n_id = self.start = self.remaining = np.empty(0, np.int64)
        self._take_up(n_id)

    def _take_up(self, n_id: Int64Array) -> None:
        """Look the rows of newly found nodes up; ``n_id`` are all nodes, the new ones last and numbered already."""
        known = self.n_id.size
        start, remaining = np.empty(n_id.size, np.int64), np.empty(n_id.size, np.int64)
        start[:known], remaining[:known] = self.start, self.remaining
        _kernels.row_bounds(self.indptr, n_id[known:], start[known:], remaining[known:])
        rows = self.table.local(self.exclusion.nodes)
        new = rows >= known
        remaining[rows[new]] -= np.diff(self.exclusion.ptr)[new]
        self.n_id, self.start, self.remaining = n_id, start, remaining

    def hop(self, fan_out: int, key: np.uint64) -> Block:
        """Expand every node known so far."""
        num_dst, table, exclusion = self.n_id.size, self.table, self.exclusion
        ptr = _kernels.sample_pointers(self.remaining, fan_out)
        entries = _draws.draw_entries(self.n_id, self.start, self.remaining, ptr, key, fan_out)
        rows = table.local(exclusion.nodes)
        _kernels.skip_excluded(rows, exclusion.ptr, exclusion.entries, ptr, entries)
        n_id = np.empty(min(num_dst + entries.size, table.numbers.size) + 1, np.int64)
        n_id[:num_dst] = self.n_id
        new = _kernels.label_sources(
            self.indices, entries, table.numbers, table.base, num_dst, n_id[num_dst:]
        )
        self._take_up(n_id[: num_dst + new])
        return Block(ptr, entries, num_dst, self.n_id.size)


def check_fan_outs(num_neighbors: Sequence[int]) -> tuple[int, ...]:
    """The fan-outs as a tuple.

    Raises:
        ValueError: a fan-out is neither -1 nor positive.
    """
    if any(k < 1 and k != -1 for k in num_neighbors):
        raise ValueError(f"each fan-out must be -1 or positive, got {list(num_neighbors)}")
    return tuple(num_neighbors)


class NeighborSampling:
    """Uniform neighbour sampling without replacement over one graph.

    Several threads may call one instance; compiled code runs without the GIL.
    """

    def __init__(self, graph: Graph, num_neighbors: Sequence[int], seed: int) -> None:
        """Sampling with fan-out ``num_neighbors[h]`` at hop h; -1 = all neighbours.

        Raises:
            ValueError: a fan-out is neither -1 nor positive.
        """
        self.graph = graph
        self.num_neighbors = check_fan_outs(num_neighbors)
        self.seed = seed
        self._tables = TablePool(graph.num_nodes)

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
        exclusion = find_exclusion(self.graph, excluded)
        table = self._tables.take(n_id)
        expansion = _Expansion(self.graph, n_id, exclusion, table)
        blocks = tuple(
            expansion.hop(fan_out, np.uint64(derive(self.seed, Purpose.NEIGHBOURS, epoch, step, hop)))
            for hop, fan_out in enumerate(self.num_neighbors)
        )
        self._tables.give(table, expansion.n_id.size)
        return SampledGraph(expansion.n_id, blocks, expansion.remaining)


def full_blocks(graph: Graph, num_layers: int, excluded: Edges | None = None) -> SampledGraph:
    """The whole graph as ``num_layers`` equal blocks: seeds are all nodes 0..N-1, every neighbour is kept.

    Raises:
        ValueError: ``excluded`` is malformed.
    """
    nodes = np.arange(graph.num_nodes, dtype=np.int64)
    expansion = _Expansion(
        graph, nodes, find_exclusion(graph, excluded), NodeTable(nodes.astype(np.int32), 0)
    )
    block = expansion.hop(-1, np.uint64(0))
    return SampledGraph(expansion.n_id, (block,) * num_layers, expansion.remaining)
