"""Neighbour sampling, fan-out [10, 10], 6,144 random seeds: our sampled edges per second against PyG's CPU sampler.

Two random bipartite graphs: 2x10^4 nodes with 8x10^5 entries (everything fits the caches) and 10^6 nodes with 2x10^7.
PyG's side is NeighborSampler on pyg-lib or torch-sparse if one is installed, else the published 1.84 million edges per
second, and the report says which. Ours is also shown in PyG's own convention (each node expanded once). Both draw in
the calling thread, whose processor time is taken: what else the machine does counts only where it slows memory down.
Afterwards the uniformity of our draws is tested.

Headline: the smaller of the two graphs' ratios, ours / PyG's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch_geometric.typing
from measure import Report, parser, ratio, side_by_side, spread, use_threads
from scipy.stats import chi2
from torch_geometric.data import Data
from torch_geometric.sampler import NeighborSampler, NodeSamplerInput

from gnnmr_dist.data.graph import Graph, build_graph
from gnnmr_dist.data.pyg_sampler import CounterNeighborSampler
from gnnmr_dist.data.sampling import NeighborSampling

SIZES = ((20_000, 800_000), (1_000_000, 20_000_000))
QUICK = ((20_000, 800_000), (100_000, 2_000_000))
FAN_OUT, NUM_SEEDS, CALLS = [10, 10], 6_144, 5
PUBLISHED = 1.84e6
"""Edges per second of PyG's CPU sampler as published, for machines where neither extension is installed."""


def random_graph(num_nodes: int, num_entries: int) -> Graph:
    """Half users, half items, ``num_entries`` / 2 different pairs, every pair equally likely."""
    random, side, wanted = np.random.default_rng(0), num_nodes // 2, num_entries // 2
    pairs = np.unique(random.integers(0, side * side, int(wanted * 1.05) + 1000))
    pairs = random.permutation(pairs)[:wanted]
    return build_graph(*np.divmod(pairs, side), side, side)


def edges_per_second(sample: Callable[[np.ndarray, int], int], num_nodes: int) -> Callable[[], float]:
    """A side: the median rate of a few calls with fresh random seeds; ``sample`` returns how many edges it drew."""
    random, number = np.random.default_rng(1), iter(range(10**9))

    def side() -> float:
        rates = []
        for _ in range(CALLS):
            seeds = random.choice(num_nodes, NUM_SEEDS, replace=False)
            started = time.thread_time()
            edges = sample(seeds, next(number))
            rates.append(edges / (time.thread_time() - started))
        return median(rates)

    return side


def sides_of(graph: Graph) -> dict[str, Callable[[], float]]:
    blocks, convention = NeighborSampling(graph, FAN_OUT, 0), CounterNeighborSampler(graph, FAN_OUT, 0)

    def ours(seeds: np.ndarray, step: int) -> int:
        return sum(block.indices.size for block in blocks.sample(seeds, 0, step).blocks)

    def as_pyg(seeds: np.ndarray, step: int) -> int:
        convention.set_position(0, step)
        return int(convention.sample_from_nodes(NodeSamplerInput(None, torch.from_numpy(seeds))).row.numel())

    sides = {"ours": ours, "ours, PyG's convention": as_pyg}
    if torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE:
        target = np.repeat(np.arange(graph.num_nodes), graph.degree())
        edge_index = torch.from_numpy(np.stack([graph.indices.astype(np.int64), target]))
        theirs = NeighborSampler(
            Data(edge_index=edge_index, num_nodes=graph.num_nodes), FAN_OUT, is_sorted=True
        )

        def pyg(seeds: np.ndarray, step: int) -> int:
            return int(theirs.sample_from_nodes(NodeSamplerInput(None, torch.from_numpy(seeds))).row.numel())

        sides["PyG"] = pyg
    return {name: edges_per_second(side, graph.num_nodes) for name, side in sides.items()}


def uniformity(num_neighbors: int, calls: int) -> float:
    """The chance of counts at least as uneven as these if every neighbour were equally likely (chi-square test).

    2,000 users with the same items; drawing without replacement makes counts steadier by (n - k) / (n - 1).
    """
    num_users, k = 2_000, FAN_OUT[0]
    graph = build_graph(
        *np.divmod(np.arange(num_users * num_neighbors), num_neighbors), num_users, num_neighbors
    )
    sampling, counts = NeighborSampling(graph, [k], 0), np.zeros(num_neighbors)
    for step in range(calls):
        sampled = sampling.sample(np.arange(num_users), 0, step)
        counts += np.bincount(sampled.n_id[sampled.blocks[0].indices] - num_users, minlength=num_neighbors)
    expected = counts.sum() / num_neighbors
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(chi2.sf(statistic * (num_neighbors - 1) / (num_neighbors - k), num_neighbors - 1))


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    use_threads(options.threads)
    report = Report("sampler", "Neighbour sampling against PyG's CPU sampler", options)
    rows, ratios = [], []
    for nodes, entries in QUICK if options.quick else SIZES:
        found = side_by_side(sides_of(random_graph(nodes, entries)), rounds=options.rounds)
        theirs = found.pop("PyG", None)
        ratios.append(ratio(found["ours"], theirs or [PUBLISHED] * options.rounds))
        cells = [spread([rate / 1e6 for rate in rates]) for rates in found.values()]
        pyg = f"{PUBLISHED / 1e6} (published)" if theirs is None else spread([rate / 1e6 for rate in theirs])
        rows.append((f"{nodes:,} nodes, {entries:,} entries", *cells, pyg, f"{ratios[-1]:.1f}"))
    extension = "pyg-lib" if torch_geometric.typing.WITH_PYG_LIB else "torch-sparse"
    columns = ("graph", "ours: layer blocks", "ours in PyG's convention", f"PyG on {extension}", "ours / PyG")
    report.say(
        f"Millions of sampled edges per second, fan-out {FAN_OUT}, {NUM_SEEDS:,} seeds, {options.threads} thread(s);"
    )
    report.say(f"median (least to largest) of {options.rounds} rounds, each the median of {CALLS} calls.")
    report.table(columns, rows)
    calls = 5 if options.quick else 50
    values = ", ".join(f"{n:,} neighbours p = {uniformity(n, calls):.2f}" for n in (12, 40, 200, 3_000))
    report.say(f"Every neighbour equally likely, chi-square over {calls * 20_000:,} draws: {values}.")
    report.close(min(ratios))


if __name__ == "__main__":
    main()
