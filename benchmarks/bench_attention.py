"""The GAT layer, forward and backward, against PyTorch Geometric's GATConv on the same graph, weights and threads.

A random bipartite graph of E entries (both directions counted), 20 per node on average, self-loops included on both
sides. Outputs and gradients of both are compared before anything is timed. A size at which PyG would need more memory
than there is free is measured for us alone and says so: it keeps some five [E, d] tensors.

Headline: the smallest over sizes of PyG's time / ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import torch
from measure import Report, parser, ratio, side_by_side, spread, use_threads
from torch import Tensor
from torch_geometric.nn import GATConv

from gnnmr_dist.data.graph import build_graph
from gnnmr_dist.models.blocks import Block, make_block
from gnnmr_dist.models.layers import GATLayer

DEGREE = 20
TENSORS_OF_PYG = 5  # [E, d] at once in backward; measured: 2.7 GB at 10^6 entries, d = 128


def graph_of(entries: int, seed: int = 0) -> Block:
    """About ``entries`` entries between two sides of equal size."""
    side = max(entries // DEGREE // 2, DEGREE)
    keys = np.unique(np.random.default_rng(seed).integers(0, side * side, entries // 2))
    graph = build_graph(keys // side, keys % side, side, side)
    source = torch.from_numpy(graph.indices.astype(np.int64))
    return make_block(
        torch.from_numpy(np.asarray(graph.indptr)),
        source,
        torch.from_numpy(graph.degree().astype(np.float32)),
    )


def layers(block: Block, width: int) -> tuple[GATLayer, GATConv, Tensor]:
    """Both layers with the same weights, and PyG's edge_index."""
    torch.manual_seed(0)
    ours, pyg = GATLayer(width, self_loops=True), GATConv(width, width, add_self_loops=True, bias=False)
    with torch.no_grad():
        pyg.lin.weight.copy_(ours.linear.weight)
        pyg.att_src.copy_(ours.att_source.view_as(pyg.att_src))
        pyg.att_dst.copy_(ours.att_destination.view_as(pyg.att_dst))
    return ours, pyg, torch.stack([block.source, block.destination])


def timed(forward: Callable[[], Tensor], h: Tensor, grad: Tensor, parts: list[tuple[float, float]]) -> float:
    """Seconds of one forward and one backward pass, also kept apart in ``parts``."""
    h.grad = None
    started = time.perf_counter()
    out = forward()
    middle = time.perf_counter()
    out.backward(grad)
    ended = time.perf_counter()
    parts.append((middle - started, ended - middle))
    return ended - started


def check(ours: Callable[[], Tensor], pyg: Callable[[], Tensor], h: Tensor, grad: Tensor) -> None:
    """Outputs and gradients alike, or no measurement.

    In norm, not number by number: among 10^7 logits one lies so near 0 that rounding decides the side of LeakyReLU.
    """
    found = []
    for forward in (ours, pyg):
        h.grad = None
        out = forward()
        out.backward(grad)
        found.append((out.detach(), h.grad))
    for got, want in zip(*found, strict=True):
        assert torch.linalg.vector_norm(got - want) < 1e-4 * torch.linalg.vector_norm(want)


def measure(entries: int, width: int, rounds: int) -> tuple[list[object], float | None]:
    block = graph_of(entries)
    ours, pyg, edge_index = layers(block, width)
    h = torch.randn(block.num_destinations, width, requires_grad=True)
    grad = torch.randn(block.num_destinations, width)
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(h, block),
        "PyG": lambda: pyg(h, edge_index),
    }
    needed = TENSORS_OF_PYG * block.num_edges * width * 4
    if needed > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        del sides["PyG"]
    else:
        check(sides["ours"], sides["PyG"], h, grad)
    parts: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    seconds = side_by_side(
        {name: (lambda n=name, f=f: timed(f, h, grad, parts[n])) for name, f in sides.items()}, rounds=rounds
    )
    cells: list[object] = [f"{block.num_edges:.1e}", width]
    for name in ("ours", "PyG"):
        if name not in sides:
            cells += [f"needs {needed / 1e9:.0f} GB", ""]
            continue
        both = np.median(np.array(parts[name][1:]), axis=0) * 1e3
        cells += [spread([s * 1e3 for s in seconds[name]]), f"{both[0]:.3g} + {both[1]:.3g}"]
    quotient = ratio(seconds["PyG"], seconds["ours"]) if "PyG" in sides else None
    cells += [
        "" if quotient is None else f"{quotient:.1f}",
        f"{np.median(seconds['ours']) / block.num_edges * 1e9:.1f}",
    ]
    return cells, quotient


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--entries", type=float, nargs="+", help="sizes [1e5 1e6 1e7; with --quick 1e5]")
    made.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    options = made.parse_args()
    use_threads(options.threads)
    report = Report("attention", "The GAT layer against PyG's GATConv", options)
    report.say(f"{options.threads} thread(s), {options.rounds} rounds; milliseconds, forward + backward.")
    sizes = options.entries or ([1e5] if options.quick else [1e5, 1e6, 1e7])
    found = [measure(int(entries), width, options.rounds) for entries in sizes for width in options.dims]
    columns = (
        "entries",
        "d",
        "ours",
        "forward + backward",
        "PyG",
        "forward + backward",
        "PyG / ours",
        "ours, ns per entry",
    )
    report.table(columns, [cells for cells, _ in found])
    report.close(min(quotient for _, quotient in found if quotient is not None))


if __name__ == "__main__":
    main()
