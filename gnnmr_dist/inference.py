"""Embeddings of every node, layer by layer, exact and in bounded memory.

Each layer is computed for all nodes before the next, in slices of rows whose edges fit a budget, with the encoder's
own ``transform`` and ``aggregate``: the result is the full-graph forward, without its memory. Axes: N nodes, I items,
d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gnnmr_dist.data.dataset import FeatureTable
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.steps import gather_rows, slice_block
from gnnmr_dist.models.blocks import make_block
from gnnmr_dist.models.encoder import Encoder, Network
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.models.layers import Layer

ROWS_AT_ONCE = 1 << 16
EDGES_AT_ONCE = 1 << 20


@torch.no_grad()
def embed_all(
    network: Network,
    graph: Graph,
    tables: Sequence[FeatureTable],
    *,
    rows_at_once: int = ROWS_AT_ONCE,
    edges_at_once: int = EDGES_AT_ONCE,
) -> Tensor:
    """Embeddings of all nodes, float32 [N, d]: users first, then items.

    Users without train interactions get the mean embedding of the users that have some (sketched: large effect), since
    their own ID vector was never trained. Beyond the N rows of every layer, of what one layer sends and of the result,
    memory is that of ``rows_at_once`` feature rows or ``edges_at_once`` edges (and of one row, if it has more).

    Args:
        network: of one member.
        graph: the train graph.
        tables: of the modalities that the member reads.
    """
    degree = torch.from_numpy(graph.degree().astype(np.float32))
    slices = _Slices(graph, degree, rows_at_once, edges_at_once)
    parts = [_propagated(encoder, slices, [tables[m] for m in reads]) for encoder, reads in network.branches]
    return mean_user_fallback(network.fuse(parts), degree[: graph.num_users])


@dataclass(frozen=True)
class _Slices:
    """The graph, its degrees as floats, and how much of it to take at once."""

    graph: Graph
    degree: Tensor
    rows: int
    edges: int


def _propagated(encoder: Encoder, slices: _Slices, tables: Sequence[FeatureTable]) -> Tensor:
    """One encoder's embeddings [N, d] of all nodes."""
    h = _inputs(encoder, slices.graph, tables, slices.rows)
    layers = [h]
    for layer in encoder.layers:
        assert isinstance(layer, Layer)
        h = encoder.activate(_one_layer(layer, h, slices))
        layers.append(h)
    parts = [
        encoder.combine([h[part.start : part.stop] for h in layers])
        for part in _ranges(slices.graph.num_nodes, slices.rows)
    ]
    return torch.cat(parts)


def mean_user_fallback(embeddings: Tensor, user_degree: Tensor) -> Tensor:
    """[N, d] with the rows of users of degree 0 set to the mean of the other users' rows; unchanged if all are 0."""
    known = user_degree > 0
    unknown = (~known).nonzero().squeeze(1)
    if unknown.numel() and bool(known.any()):
        users = embeddings[: user_degree.numel()]
        embeddings[unknown] = users[known].mean(dim=0)
    return embeddings


def _inputs(encoder: Encoder, graph: Graph, tables: Sequence[FeatureTable], rows_at_once: int) -> Tensor:
    parts = []
    device = next(encoder.parameters()).device
    for part in _ranges(graph.num_users, rows_at_once):
        parts.append(encoder.users(torch.arange(part.start, part.stop, device=device)))
    for part in _ranges(graph.num_items, rows_at_once):
        items = np.arange(part.start, part.stop)
        rows = [gather_rows(table, items).to(device) for table in tables]
        parts.append(encoder.items(torch.from_numpy(items).to(device), rows))
    return torch.cat(parts)


def _one_layer(layer: Layer, h: Tensor, slices: _Slices) -> Tensor:
    chunks = [layer.transform(h[part.start : part.stop]) for part in _ranges(h.shape[0], slices.rows)]
    source = tuple(torch.cat(tensors) for tensors in zip(*chunks, strict=True))
    out = h.new_empty(h.shape)
    for nodes in _node_slices(slices.graph, slices.rows, slices.edges):
        block = slice_block(slices.graph, nodes, slices.degree).to(h.device)
        out[nodes.start : nodes.stop] = layer.aggregate(source, block)
    return out


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
