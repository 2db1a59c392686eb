"""Embeddings of every node, layer by layer, exact and in bounded memory.

Each layer is computed for all nodes before the next, in slices of rows whose edges fit a budget, with the encoder's
own ``transform`` and ``aggregate``: the result is the full-graph forward, without its memory. Axes: N nodes, I items,
d width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gnnmr_dist.data.dataset import FeatureTable
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.steps import gather_rows, slice_block
from gnnmr_dist.models.blocks import make_block
from gnnmr_dist.models.encoder import Encoder, Network
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.models.layers import Layer, Rows

ROWS_AT_ONCE = 1 << 16
EDGES_AT_ONCE = 1 << 20


@torch.no_grad()
def embed_all(
    network: Network,
    graph: Graph,
    tables: Sequence[FeatureTable],
    *,
    rows_at_once: int | None = None,
    edges_at_once: int = EDGES_AT_ONCE,
    make: Maker = torch.zeros,
) -> Tensor:
    """Embeddings of all nodes, float32 [N, d]: users first, then items.

    Users without train interactions get the mean embedding of the users that have some (sketched: large effect), since
    their own ID vector was never trained. Beyond the N rows of every layer, of what one layer sends and of the result,
    memory is that of ``rows_at_once`` feature rows or ``edges_at_once`` edges (and of one row, if it has more).

    Args:
        network: of one member.
        graph: the train graph.
        tables: of the modalities that the member reads.
        rows_at_once: None = ROWS_AT_ONCE.
        edges_at_once: entries of the graph.
        make: makes what has N rows.
    """
    degree = torch.from_numpy(graph.degree().astype(np.float32))
    slices = _Slices(graph, degree, rows_at_once or ROWS_AT_ONCE, edges_at_once, make)
    parts = [_propagated(encoder, slices, [tables[m] for m in reads]) for encoder, reads in network.branches]
    fused = ((network.fuse([h[part.start : part.stop] for h in parts]),) for part in slices.of_rows())
    whole = parts[0] if isinstance(network, Encoder) else _joined(fused, graph.num_nodes, make)[0]
    return mean_user_fallback(whole, degree[: graph.num_users])


@dataclass(frozen=True)
class _Slices:
    """The graph, its degrees as floats, how much of it to take at once, and what makes tensors of N rows."""

    graph: Graph
    degree: Tensor
    rows: int
    edges: int
    make: Maker

    def of_rows(self) -> Iterator[range]:
        """All nodes, ``rows`` at a time."""
        return _ranges(self.graph.num_nodes, self.rows)


def _propagated(encoder: Encoder, slices: _Slices, tables: Sequence[FeatureTable]) -> Tensor:
    """One encoder's embeddings [N, d] of all nodes."""
    layers = [_inputs(encoder, slices, tables)]
    for layer in encoder.layers:
        assert isinstance(layer, Layer)
        layers.append(_one_layer(encoder, layer, layers[-1], slices))
    parts = ((encoder.combine([h[part.start : part.stop] for h in layers]),) for part in slices.of_rows())
    return _joined(parts, slices.graph.num_nodes, slices.make)[0]


def _joined(parts: Iterable[Rows], total: int, make: Maker) -> Rows:
    """Tensors of ``total`` rows from consecutive slices of each, as they come."""
    whole: Rows = ()
    start = 0
    for part in parts:
        whole = whole or tuple(make((total, *t.shape[1:]), dtype=t.dtype, device=t.device) for t in part)
        for into, rows in zip(whole, part, strict=True):
            into[start : start + rows.shape[0]] = rows
        start += part[0].shape[0]
    return whole


def mean_user_fallback(embeddings: Tensor, user_degree: Tensor) -> Tensor:
    """[N, d] with the rows of users of degree 0 set to the mean of the other users' rows; unchanged if all are 0."""
    known = user_degree > 0
    unknown = (~known).nonzero().squeeze(1)
    if unknown.numel() and bool(known.any()):
        total = embeddings.new_zeros(embeddings.shape[1], dtype=torch.float64)
        for part in _ranges(known.numel(), ROWS_AT_ONCE):  # not users[known], which would be a copy of them
            total += embeddings[part.start : part.stop][known[part.start : part.stop]].sum(
                dim=0, dtype=torch.float64
            )
        embeddings[unknown] = (total / known.sum()).to(embeddings.dtype)
    return embeddings


def _inputs(encoder: Encoder, slices: _Slices, tables: Sequence[FeatureTable]) -> Tensor:
    device, graph = next(encoder.parameters()).device, slices.graph

    def parts() -> Iterator[Rows]:
        for part in _ranges(graph.num_users, slices.rows):
            yield (encoder.users(torch.arange(part.start, part.stop, device=device)),)
        for part in _ranges(graph.num_items, slices.rows):
            items = np.arange(part.start, part.stop)
            rows = [gather_rows(table, items).to(device) for table in tables]
            yield (encoder.items(torch.from_numpy(items).to(device), rows),)

    return _joined(parts(), graph.num_nodes, slices.make)[0]


def _one_layer(encoder: Encoder, layer: Layer, h: Tensor, slices: _Slices) -> Tensor:
    chunks = (layer.transform(h[part.start : part.stop]) for part in slices.of_rows())
    source = _joined(chunks, h.shape[0], slices.make)
    blocks = (
        slice_block(slices.graph, nodes, slices.degree).to(h.device)
        for nodes in _node_slices(slices.graph, slices.rows, slices.edges)
    )
    sums = ((encoder.activate(layer.aggregate(source, block)),) for block in blocks)
    return _joined(sums, h.shape[0], slices.make)[0]


def _ranges(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


def _node_slices(graph: Graph, rows: int, edges: int) -> Iterator[range]:
    """Consecutive ranges of nodes, each of at most ``rows`` rows and ``edges`` edges, but at least one row."""
    start = 0
    while start < graph.num_nodes:
        stop = int(np.searchsorted(graph.indptr, graph.indptr[start] + edges, side="right")) - 1
        stop = min(max(stop, start + 1), start + rows, graph.num_nodes)
        yield range(start, stop)
        start = stop


@torch.no_grad()
def embed_unlinked_items(network: Network, rows: Sequence[ItemRows], n: int) -> Tensor:
    """Embeddings [n, d] of ``n`` items that have features and no interactions, e.g. new to the data set.

    A member that reads no modality knows nothing of them: zeros.
    """
    return network.fuse(
        [_unlinked(encoder, [rows[m] for m in reads], n) for encoder, reads in network.branches]
    )


def _unlinked(encoder: Encoder, rows: Sequence[ItemRows], n: int) -> Tensor:
    h = encoder.featured_items(rows, n)
    nothing = torch.zeros(0, dtype=torch.int64, device=h.device)
    block = make_block(torch.zeros(n + 1, dtype=torch.int64, device=h.device), nothing, h.new_zeros(n))
    layers = [h]
    for layer in encoder.layers:
        h = encoder.activate(layer(h, block))
        layers.append(h)
    return encoder.combine(layers)
