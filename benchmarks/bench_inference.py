"""Embeddings of every node against the bare matrix products they contain.

``embed_all`` over a data set of ``large_graph.py`` (one dense modality of 384 numbers, d = 64, two GAT layers, all
neighbours), and, in turns with it, the products alone: the projection of all items' features and W h of all nodes in
each layer. The rest is what a product does not do: widening features, looking up ID vectors, softmax and sum over all
edges of both layers, which read a row of d numbers per edge from all over the table.

Headline: time of the bare products / ours.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from large_graph import large_dataset
from measure import Report, parser, ratio, side_by_side, spread, use_threads

from gnnmr_dist.config import Settings
from gnnmr_dist.data.dataset import Dataset, open_dataset
from gnnmr_dist.data.steps import slice_block
from gnnmr_dist.inference import embed_all
from gnnmr_dist.memory import memory_now
from gnnmr_dist.models.attention import additive_attention
from gnnmr_dist.models.encoder import Encoder
from gnnmr_dist.networks import build_network

FEATURES = 384


@dataclass(frozen=True)
class Parts:
    """Matrices of the right shapes: features [I, F], their weights [d, F], nodes [N, d], a layer's weights [d, d]."""

    features: torch.Tensor
    projection: torch.Tensor
    nodes: torch.Tensor
    square: torch.Tensor
    layers: int

    def products(self) -> float:
        """Seconds of the products alone."""
        started = time.perf_counter()
        torch.mm(self.features, self.projection.T)
        for _ in range(self.layers):
            torch.mm(self.nodes, self.square)
        return time.perf_counter() - started

    def sums(self, dataset: Dataset) -> float:
        """Seconds of all layers' softmax and sum over edges."""
        graph = dataset.graph
        block = slice_block(
            graph, range(graph.num_nodes), torch.from_numpy(graph.degree().astype(np.float32))
        )
        halves = torch.zeros(graph.num_nodes, 2)
        started = time.perf_counter()
        for _ in range(self.layers):
            additive_attention(
                self.nodes.unsqueeze(1), halves, block, loop=True, slope=0.2, degree_scaling=True
            )
        return time.perf_counter() - started


def encoder_of(dataset: Dataset) -> Encoder:
    info, settings = dataset.modalities[0], Settings()
    shape = (dataset.num_users, dataset.num_items)
    layers = len(settings.sampling.num_neighbors)
    return build_network(*shape, [(info.kind, info.dim)], settings.model, layers, key=0)


def whole(encoder: Encoder, dataset: Dataset) -> float:
    """Seconds of all embeddings."""
    table = dataset.features(dataset.modalities[0].name)
    started = time.perf_counter()
    embed_all(encoder, dataset.graph, [table])
    return time.perf_counter() - started


@torch.no_grad()
def measure(dataset: Dataset, edges: int, report: Report) -> float:
    encoder, nodes = encoder_of(dataset), dataset.graph.num_nodes
    width, layers = encoder.user_input.table.shape[1], len(encoder.layers)
    features = torch.randn(dataset.num_items, FEATURES)
    parts = Parts(
        features, torch.randn(width, FEATURES), torch.randn(nodes, width), torch.randn(width, width), layers
    )
    before = memory_now()["peak_rss_mib"]
    whole(encoder, dataset)
    grown = memory_now()["peak_rss_mib"] - before
    sides = {
        "ours": lambda: whole(encoder, dataset),
        "bare products": parts.products,
        "softmax and sums over edges": lambda: parts.sums(dataset),
    }
    seconds = side_by_side(sides, rounds=report.options.rounds)
    report.say(
        f"{nodes:,} nodes, {edges:,} train edges, {FEATURES} features, d = {width}, {layers} layers, "
        f"{report.options.threads} thread(s)."
    )
    report.table(("", "ms"), [(name, spread([s * 1e3 for s in found])) for name, found in seconds.items()])
    ours, quotient = median(seconds["ours"]), ratio(seconds["bare products"], seconds["ours"])
    share = ratio(seconds["softmax and sums over edges"], seconds["ours"])
    report.say(
        f"{ours / (2 * edges * layers) * 1e9:.1f} ns per edge entry and layer, {nodes / ours:,.0f} nodes per second. "
        f"Sums over edges take {share:.0%} of the time, products {quotient:.0%}."
    )
    report.say(f"Peak memory grew by {grown:.0f} MiB; the result has {nodes * width * 4 / 2**20:.0f} MiB.")
    return quotient


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--edges", type=float, help="train edges [2e6; with --quick 2e5]")
    options = made.parse_args()
    use_threads(options.threads)
    report = Report("inference", "Embeddings of all nodes", options)
    edges = int(options.edges or (2e5 if options.quick else 2e6))
    with tempfile.TemporaryDirectory() as directory:
        large_dataset(Path(directory, "large"), edges=edges, dims=(FEATURES,))
        dataset = open_dataset(Path(directory, "large"), verify="structure")
        report.close(measure(dataset, edges, report))


if __name__ == "__main__":
    main()
