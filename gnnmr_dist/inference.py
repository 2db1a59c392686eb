"""Embeddings of every node, layer by layer, exact and in bounded memory.

Each layer is computed for all nodes before the next, in slices of rows whose edges fit a budget, with the encoder's
own ``transform`` and ``aggregate``: the result is the full-graph forward, without its memory. Axes: N nodes, I items,
d width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from gnnmr_dist.data.dataset import FeatureTable
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.steps import gather_rows, slice_block
from gnnmr_dist.models.blocks import make_block
from gnnmr_dist.models.encoder import Encoder
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.models.layers import Layer, Rows

ROWS_AT_ONCE = 1 << 16
EDGES_AT_ONCE = 1 << 20


@torch.no_grad()
def embed_all(
    encoder: Encoder,
    graph: Graph,
    table: FeatureTable,
    *,
    rows_at_once: int | None = None,
    edges_at_once: int = EDGES_AT_ONCE,
    make: Maker = torch.zeros,
) -> Tensor:
    """Embeddings of all nodes, float32 [N, d]: users first, then items.

    Users without train interactions get the mean embedding of the users that have some (sketched: large effect), since
    their own ID vector was never trained. Beyond the N rows of every layer, of what one layer sends and of the result,
    memory is that of ``rows_at_once`` feature rows (None: ROWS_AT_ONCE) or ``edges_at_once`` edges (and of one row, if
    it has more). ``make`` makes what has N rows.
    """
    rows_at_once = rows_at_once or ROWS_AT_ONCE
    degree = torch.from_numpy(graph.degree().astype(np.float32))
    h = _inputs(encoder, graph, table, rows_at_once, make)
    layers = [h]
    for layer in encoder.layers:
        assert isinstance(layer, Layer)
        h = _one_layer(encoder, layer, h, graph, degree, rows_at_once, edges_at_once, make)
        layers.append(h)
    parts = (
        (encoder.combine([h[part.start : part.stop] for h in layers]),)
        for part in _ranges(graph.num_nodes, rows_at_once)
    )
    return mean_user_fallback(_joined(parts, graph.num_nodes, make)[0], degree[: graph.num_users])


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


def _inputs(encoder: Encoder, graph: Graph, table: FeatureTable, rows_at_once: int, make: Maker) -> Tensor:
    device = next(encoder.parameters()).device

    def parts() -> Iterator[Rows]:
        for part in _ranges(graph.num_users, rows_at_once):
            yield (encoder.users(torch.arange(part.start, part.stop, device=device)),)
        for part in _ranges(graph.num_items, rows_at_once):
            items = np.arange(part.start, part.stop)
            rows = gather_rows(table, items).to(device)
            yield (encoder.items(torch.from_numpy(items).to(device), rows),)

    return _joined(parts(), graph.num_nodes, make)[0]


def _one_layer(
    encoder: Encoder,
    layer: Layer,
    h: Tensor,
    graph: Graph,
    degree: Tensor,
    rows_at_once: int,
    edges_at_once: int,
    make: Maker,
) -> Tensor:
    chunks = (layer.transform(h[part.start : part.stop]) for part in _ranges(h.shape[0], rows_at_once))
    source = _joined(chunks, h.shape[0], make)
    blocks = (
        slice_block(graph, nodes, degree).to(h.device)
        for nodes in _slices(graph, rows_at_once, edges_at_once)
    )
    sums = ((encoder.activate(layer.aggregate(source, block)),) for block in blocks)
    return _joined(sums, h.shape[0], make)[0]


def _ranges(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


def _slices(graph: Graph, rows: int, edges: int) -> Iterator[range]:
    """Consecutive ranges of nodes, each of at most ``rows`` rows and ``edges`` edges, but at least one row."""
    start = 0
    while start < graph.num_nodes:
        stop = int(np.searchsorted(graph.indptr, graph.indptr[start] + edges, side="right")) - 1
        stop = min(max(stop, start + 1), start + rows, graph.num_nodes)
        yield range(start, stop)
        start = stop


@torch.no_grad()
def embed_unlinked_items(encoder: Encoder, rows: ItemRows) -> Tensor:
    """Embeddings [n, d] of items that have features and no interactions, e.g. new ones the data set does not know."""
    h = encoder.items(None, rows)
    nothing = torch.zeros(0, dtype=torch.int64, device=h.device)
    degree = h.new_zeros(h.shape[0])
    block = make_block(torch.zeros(h.shape[0] + 1, dtype=torch.int64, device=h.device), nothing, degree)
    layers = [h]
    for layer in encoder.layers:
        h = encoder.activate(layer(h, block))
        layers.append(h)
    return encoder.combine(layers)
