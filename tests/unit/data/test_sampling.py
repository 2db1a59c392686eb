"""Neighbour sampling against brute force, and its independence from everything but its key."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from gnnmr_dist.data import _draws
from gnnmr_dist.data.graph import Graph, build_graph
from gnnmr_dist.data.sampling import Block, NeighborSampling, SampledGraph, full_blocks

NUM_USERS, NUM_ITEMS = 12, 10


def random_graph(seed: int, num_users: int, num_items: int, density: float) -> Graph:
    users, items = np.nonzero(np.random.default_rng(seed).random((num_users, num_items)) < density)
    return build_graph(users, items, num_users, num_items)


def row(graph: Graph, node: int) -> list[int]:
    return graph.indices[graph.indptr[node] : graph.indptr[node + 1]].tolist()


def neighbors(sampled: SampledGraph, block: Block, j: int) -> list[int]:
    return sampled.n_id[block.indices[block.indptr[j] : block.indptr[j + 1]]].tolist()


def reached(sampled: SampledGraph, seed: int) -> list[dict[int, list[int]]]:
    """Per hop: node -> its sampled neighbours, for the nodes that ``seed`` alone needs."""
    places = {int(v): j for j, v in enumerate(sampled.n_id)}
    known, hops = [seed], []
    for block in sampled.blocks:
        hop = {v: neighbors(sampled, block, places[v]) for v in known}
        known = sorted({w for found in hop.values() for w in found} | set(known))
        hops.append(hop)
    return hops


def digest(sampled: SampledGraph) -> str:
    state = hashlib.sha256(sampled.n_id.tobytes() + sampled.degree.tobytes())
    for block in sampled.blocks:
        state.update(block.indptr.tobytes() + block.indices.tobytes())
    return state.hexdigest()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def check_structure(sampled: SampledGraph, num_seeds: int) -> None:
    assert np.unique(sampled.n_id).size == sampled.n_id.size == sampled.degree.size
    num_dst = num_seeds
    for block in sampled.blocks:
        assert block.num_dst == num_dst == block.indptr.size - 1
        assert block.indptr[0] == 0
        assert block.indptr[-1] == block.indices.size
        assert block.indices.size == 0 or (block.indices.min() >= 0 and block.indices.max() < block.num_src)
        num_dst = block.num_src
    assert num_dst == sampled.n_id.size


@st.composite
def cases(draw: st.DrawFn) -> tuple[Graph, npt.NDArray[np.int64], tuple[npt.NDArray, npt.NDArray]]:
    graph = random_graph(
        draw(st.integers(0, 500)), NUM_USERS, NUM_ITEMS, draw(st.sampled_from([0.1, 0.4, 0.8, 1.0]))
    )
    nodes = st.integers(0, graph.num_nodes - 1)
    seeds = np.array(draw(st.lists(nodes, unique=True, max_size=8)), np.int64)
    pairs = st.tuples(st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1))
    excluded = np.array(draw(st.lists(pairs, max_size=40)), np.int64).reshape(-1, 2)
    return graph, seeds, (excluded[:, 0], excluded[:, 1])


@given(cases(), st.lists(st.sampled_from([-1, 1, 2, 3, 9]), max_size=3), st.integers(0, 2**40))
def test_blocks_against_brute_force(case: tuple, fan_outs: list[int], seed: int) -> None:
    graph, seeds, (users, items) = case
    sampled = NeighborSampling(graph, fan_outs, seed).sample(seeds, 1, 2, (users, items))
    check_structure(sampled, seeds.size)
    assert np.array_equal(sampled.n_id[: seeds.size], seeds)
    forbidden = {(u, i + NUM_USERS) for u, i in zip(users.tolist(), items.tolist(), strict=True)}
    forbidden |= {(w, v) for v, w in forbidden}
    remaining = {v: [w for w in row(graph, v) if (v, w) not in forbidden] for v in range(graph.num_nodes)}
    assert sampled.degree.tolist() == [len(remaining[v]) for v in sampled.n_id.tolist()]
    for fan_out, block in zip(fan_outs, sampled.blocks, strict=True):
        for j in range(block.num_dst):
            rest = remaining[int(sampled.n_id[j])]
            found = neighbors(sampled, block, j)
            assert found == sorted(set(found))
            assert set(found) <= set(rest)
            assert len(found) == (len(rest) if fan_out == -1 else min(fan_out, len(rest)))


def test_every_subset_of_neighbours_is_equally_likely() -> None:
    graph = build_graph(np.zeros(7, np.int64), np.arange(7), 1, 9)
    sampling = NeighborSampling(graph, [3], 11)
    subsets = [
        sum(1 << (w - 1) for w in sampled.n_id[1:].tolist())
        for sampled in (sampling.sample(np.array([0]), 0, step) for step in range(7000))
    ]
    values, counts = np.unique(subsets, return_counts=True)
    assert values.size == 35  # 7 choose 3
    assert chisquare(counts).pvalue > 1e-3


def test_neighbours_that_remain_after_exclusion_are_uniform() -> None:
    graph = build_graph(np.zeros(8, np.int64), np.arange(8), 1, 8)
    sampling, excluded = NeighborSampling(graph, [2], 5), (np.zeros(3, np.int64), np.array([0, 4, 5]))
    counts = np.zeros(8, np.int64)
    for step in range(4000):
        counts[sampling.sample(np.array([0]), 0, step, excluded).n_id[1:] - 1] += 1
    assert counts[[0, 4, 5]].sum() == 0
    assert chisquare(counts[[1, 2, 3, 6, 7]]).pvalue > 1e-3


# 40 neighbours fit one word of taken ranks, 200 several, 2,080 more than LARGEST_BIT_SET: each another way to choose.
@pytest.mark.parametrize("num_items", [40, 200, 2080])
@pytest.mark.parametrize("every", [0, 8])  # each user's items 0, 8, 16.. are excluded
def test_every_neighbour_and_every_pair_is_equally_likely(num_items: int, every: int) -> None:
    num_users, fan_out = 400, 10
    users, items = np.divmod(np.arange(num_users * num_items), num_items)
    graph = build_graph(users, items, num_users, num_items)
    out = items % every == 0 if every else np.zeros(items.size, bool)
    rest = np.setdiff1d(np.arange(num_items), items[out])
    singles, pairs, bins = np.zeros(num_items, np.int64), np.zeros((5, 5), np.int64), 5
    for step in range(60):
        for k, seed in ((fan_out, 1), (2, 2)):
            sampled = NeighborSampling(graph, [k], seed).sample(
                np.arange(num_users), 0, step, (users[out], items[out])
            )
            drawn = sampled.n_id[sampled.blocks[0].indices].reshape(num_users, k) - num_users
            if k == fan_out:
                singles += np.bincount(drawn.ravel(), minlength=num_items)
            else:
                a, b = (np.searchsorted(rest, drawn) * bins // rest.size).T
                np.add.at(pairs, (a, b), 1)
    assert singles.sum() == singles[rest].sum() == 60 * num_users * fan_out
    # Draws of one row exclude each other, which makes counts steadier than independent ones by this factor.
    steadier = (rest.size - fan_out) / (rest.size - 1)
    assert 1e-4 < chi2.sf(chisquare(singles[rest]).statistic / steadier, rest.size - 1) < 1 - 1e-4
    size = rest.size // bins
    expected = np.triu(np.full((bins, bins), size * size), 1) + np.diag(np.full(bins, size * (size - 1) // 2))
    upper = np.triu_indices(bins)
    assert pairs[np.tril_indices(bins, -1)].sum() == 0  # ascending
    assert chisquare(pairs[upper], expected[upper] * (pairs.sum() / expected.sum())).pvalue > 1e-4


def test_three_ways_to_choose_ranks_choose_the_same() -> None:
    def chosen(n: int, count: int, state: int) -> list[list[int]]:
        values, room = np.empty(count, np.int64), np.empty(count, np.int32)
        words, before = np.empty(32, np.uint64), np.empty(32, np.int64)
        outs = [np.full(count + 2, -1) for _ in range(3)]
        if n <= _draws.WORD:
            _draws.ranks_in_word(np.uint64(state), values, outs[0], 1, count, n, 100)
        _draws.ranks_in_words(np.uint64(state), values, words, before, outs[1], 1, count, n, 100)
        _draws.ranks_searched(np.uint64(state), room, outs[2], 1, count, n, 100)
        return [out.tolist() for out in outs[(0 if n <= _draws.WORD else 1) :]]

    random = np.random.default_rng(3)
    for n in (2, 3, 20, 63, 64, 65, 128, 129, 2047, 2048):
        for count in sorted({1, min(n - 1, 10), min(n - 1, 40)}):
            for _ in range(20):
                first, *others = chosen(n, count, int(random.integers(0, 2**63)))
                assert all(other == first for other in others)
                assert first[0] == first[-1] == -1  # nothing beside its place
                ranks = [rank - 100 for rank in first[1:-1]]
                assert ranks == sorted(set(ranks))
                assert 0 <= ranks[0] <= ranks[-1] < n


def test_what_a_seed_sees_does_not_depend_on_the_other_seeds() -> None:
    graph = random_graph(4, 60, 50, 0.3)
    sampling, excluded = NeighborSampling(graph, [3, 4, 2], 3), (np.arange(20), np.arange(20))
    together = sampling.sample(np.arange(0, 110, 5), 2, 7, excluded)
    for seed in (0, 35, 90):
        alone = sampling.sample(np.array([seed]), 2, 7, excluded)
        pair = sampling.sample(np.array([seed + 1, seed]), 2, 7, excluded)
        assert reached(alone, seed) == reached(together, seed) == reached(pair, seed)


def test_keys_distinguish_run_epoch_step_and_hop() -> None:
    graph = random_graph(4, 40, 200, 0.5)
    seeds = np.arange(40)
    places = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
    samples = [NeighborSampling(graph, [5, 5], s).sample(seeds, epoch, step) for s, epoch, step in places]
    assert len({digest(sampled) for sampled in samples}) == len(places)
    first, second = samples[0].blocks
    hop_0 = [neighbors(samples[0], first, j) for j in range(40)]
    assert hop_0 != [neighbors(samples[0], second, j) for j in range(40)]


def test_threads_and_earlier_calls_change_nothing() -> None:
    graph = random_graph(6, 300, 200, 0.2)
    sampling = NeighborSampling(graph, [5, 5], 3)

    def one(step: int) -> str:
        seeds = np.random.default_rng(step).permutation(500)[:60]
        return digest(sampling.sample(seeds, 0, step, (np.arange(100), np.arange(100))))

    expected = [one(step) for step in range(40)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(one, reversed(range(40)))) == expected[::-1]


def test_another_process_draws_the_same() -> None:
    code = (
        "import numpy as np, hashlib\n"
        "from gnnmr_dist.data.graph import build_graph\n"
        "from gnnmr_dist.data.sampling import NeighborSampling\n"
        "u, i = np.nonzero(np.random.default_rng(1).random((40, 30)) < 0.4)\n"
        "s = NeighborSampling(build_graph(u, i, 40, 30), [3, 3], 9).sample(np.arange(9), 1, 2)\n"
        "print(hashlib.sha256(b''.join(b.indices.tobytes() for b in s.blocks)).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = NeighborSampling(random_graph(1, 40, 30, 0.4), [3, 3], 9).sample(np.arange(9), 1, 2)
    assert out.strip() == hashlib.sha256(b"".join(b.indices.tobytes() for b in here.blocks)).hexdigest()


def test_numbers_that_run_out_start_anew() -> None:
    graph = random_graph(6, 300, 200, 0.2)
    seeds, sampling = np.arange(50), NeighborSampling(graph, [5, 5], 3)
    expected = digest(sampling.sample(seeds, 0, 0))
    (table,) = sampling._tables._spare
    table.base = 2**31 - 1 - graph.num_nodes  # the largest that leaves room for every node
    table.numbers[:] = table.base - 1
    assert digest(sampling.sample(seeds, 0, 0)) == expected
    assert table.base == 1
    assert digest(sampling.sample(seeds, 0, 0)) == expected


def test_memory_does_not_grow() -> None:
    graph = random_graph(6, 300, 200, 0.2)
    sampling, excluded = NeighborSampling(graph, [5, 5], 3), (np.arange(100), np.arange(100))
    for step in range(20):
        sampling.sample(np.arange(50), 0, step, excluded)
    tracemalloc.start()
    resident = resident_bytes()
    for step in range(1000):
        sampling.sample(np.arange(50), 1, step, excluded)
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert traced < 500_000  # a table kept per call would be 2 MB, the samples 30 MB
    assert resident_bytes() - resident < 10_000_000  # what compiled code allocates is not traced


@given(cases(), st.integers(1, 3))
def test_full_blocks_are_the_whole_graph_less_the_excluded(case: tuple, num_layers: int) -> None:
    graph, _, excluded = case
    full = full_blocks(graph, num_layers, excluded)
    nodes = np.arange(graph.num_nodes)
    sampled = NeighborSampling(graph, [-1] * num_layers, 0).sample(nodes, 0, 0, excluded)
    assert digest(full) == digest(sampled)
    assert len(full.blocks) == num_layers


def test_a_node_without_neighbours_and_one_with_all_excluded() -> None:
    graph = build_graph(np.array([0, 0]), np.array([0, 1]), 2, 3)
    sampling = NeighborSampling(graph, [2, 2], 0)
    lonely = sampling.sample(np.array([1, 4]), 0, 0)
    assert [b.indices.size for b in lonely.blocks] == [0, 0]
    stripped = sampling.sample(np.array([0]), 0, 0, (np.array([0, 0]), np.array([0, 1])))
    assert stripped.n_id.tolist() == [0]
    assert stripped.degree.tolist() == [0]


def test_no_seeds_give_empty_blocks() -> None:
    sampled = NeighborSampling(random_graph(0, 5, 5, 0.5), [2, -1], 0).sample(np.empty(0, np.int64), 0, 0)
    check_structure(sampled, 0)
    assert sampled.n_id.size == 0


def test_bad_arguments_are_refused_and_leave_no_trace() -> None:
    graph = random_graph(0, 5, 5, 0.9)
    sampling = NeighborSampling(graph, [2], 0)
    before = digest(sampling.sample(np.arange(5), 0, 0))
    with pytest.raises(ValueError, match="seed 3 stands twice"):
        sampling.sample(np.array([1, 3, 2, 3]), 0, 0)
    with pytest.raises(ValueError, match="seeds must lie in"):
        sampling.sample(np.array([10]), 0, 0)
    with pytest.raises(ValueError, match="excluded items must lie in"):
        sampling.sample(np.array([1]), 0, 0, (np.array([0]), np.array([5])))
    with pytest.raises(ValueError, match="2 excluded users but 1 items"):
        sampling.sample(np.array([1]), 0, 0, (np.array([0, 1]), np.array([4])))
    with pytest.raises(ValueError, match="fan-out"):
        NeighborSampling(graph, [3, 0], 0)
    assert digest(sampling.sample(np.arange(5), 0, 0)) == before
