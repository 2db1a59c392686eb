"""Our sampler inside PyG's loaders, and PyG's sampler behind our interface."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch_geometric.typing
from torch_geometric.data import Data
from torch_geometric.loader import LinkNeighborLoader, NeighborLoader, NodeLoader
from torch_geometric.nn import GATConv
from torch_geometric.sampler import EdgeSamplerInput, NodeSamplerInput

from gnnmr_dist.data.graph import Graph, build_graph
from gnnmr_dist.data.pyg_sampler import CounterNeighborSampler, PyGBlocks, _cumulated_blocks
from gnnmr_dist.errors import InputError

EXTENSION = torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE


def small_graph() -> Graph:
    users, items = np.nonzero(np.random.default_rng(0).random((30, 20)) < 0.3)
    return build_graph(users, items, 30, 20)


def small_data(graph: Graph) -> Data:
    """The same edges in shuffled order, with the edge's place as its attribute."""
    source = np.asarray(graph.indices, np.int64)
    edges = np.stack([source, np.repeat(np.arange(graph.num_nodes), graph.degree())])
    edges = edges[:, np.random.default_rng(1).permutation(source.size)]
    x = torch.arange(graph.num_nodes, dtype=torch.float32)[:, None].repeat(1, 4)
    return Data(x=x, edge_index=torch.from_numpy(edges), edge_attr=torch.arange(source.size))


def same(first: Data, second: Data) -> bool:
    return torch.equal(first.n_id, second.n_id) and torch.equal(first.edge_index, second.edge_index)


def test_sample_is_in_pygs_convention() -> None:
    graph = small_graph()
    sampler = CounterNeighborSampler(graph, [3, -1], 5)
    out = sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([4, 40, 0])))
    assert out.node[:3].tolist() == [4, 40, 0]
    assert out.node.unique().numel() == out.node.numel() == sum(out.num_sampled_nodes)
    source, target = out.node[out.row], out.node[out.col]
    assert torch.equal(torch.from_numpy(graph.indices[out.edge.numpy()]).long(), source)
    assert np.array_equal(np.searchsorted(graph.indptr, out.edge.numpy(), side="right") - 1, target.numpy())
    count = torch.bincount(out.col, minlength=out.node.numel())
    degree = torch.from_numpy(graph.degree())[out.node]
    ends = np.cumsum(out.num_sampled_nodes)
    assert torch.equal(count[: ends[0]], degree[: ends[0]].clamp(max=3))
    assert torch.equal(count[ends[0] : ends[1]], degree[ends[0] : ends[1]])
    assert count[ends[1] :].sum() == 0  # each node is expanded once, the last hop's not at all
    assert out.num_sampled_edges == [int(count[: ends[0]].sum()), int(count[ends[0] : ends[1]].sum())]


def test_neighbor_loader_trains_a_gat() -> None:
    data = small_data(small_graph())
    sampler = CounterNeighborSampler(data, [4, 4], 1)
    loader = NeighborLoader(data, [4, 4], neighbor_sampler=sampler, batch_size=16)
    torch.manual_seed(0)
    convolution = GATConv(4, 1)
    for batch in loader:
        assert torch.equal(batch.x[:, 0].long(), batch.n_id)
        assert torch.equal(data.edge_index[:, batch.edge_attr], batch.n_id[batch.edge_index])
        convolution(batch.x, batch.edge_index)[: batch.batch_size].sum().backward()
    assert convolution.lin.weight.grad.abs().sum() > 0


def test_loader_workers_and_positions() -> None:
    graph = small_graph()
    data = small_data(graph)
    sampler = CounterNeighborSampler(graph, [2, 2], 1)
    options = {"node_sampler": sampler, "batch_size": 8, "input_nodes": torch.arange(40)}
    plain = NodeLoader(data, **options)
    with_workers = NodeLoader(data, num_workers=2, persistent_workers=True, **options)
    epochs = []
    for epoch in range(2):
        sampler.set_position(epoch)
        epochs.append(list(plain))
        from_workers = list(with_workers)
        assert all(same(a, b) for a, b in zip(epochs[-1], from_workers, strict=True))
    assert not any(same(a, b) for a, b in zip(*epochs, strict=True))


@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_link_neighbor_loader_with_negatives(mode: str) -> None:
    graph = small_graph()
    data = small_data(graph)
    options = {
        "neighbor_sampler": CounterNeighborSampler(data, [3, 3], 2),
        "edge_label_index": data.edge_index[:, :60],
        "neg_sampling": mode,
        "batch_size": 20,
    }
    plain = list(LinkNeighborLoader(data, [3, 3], **options))
    from_workers = list(LinkNeighborLoader(data, [3, 3], num_workers=2, **options))
    key = "edge_label_index" if mode == "binary" else "dst_neg_index"
    assert len(plain) == 3
    for a, b in zip(plain, from_workers, strict=True):
        assert same(a, b)
        assert torch.equal(a[key], b[key])
    first = plain[0]
    pair = (
        first.edge_label_index[:, :20]
        if mode == "binary"
        else torch.stack([first.src_index, first.dst_pos_index])
    )
    assert torch.equal(first.n_id[pair], data.edge_index[:, first.input_id])
    assert GATConv(4, 2)(first.x, first.edge_index).shape == (first.n_id.numel(), 2)


def test_sampling_links_leaves_torchs_generator_alone() -> None:
    graph = small_graph()
    sampler = CounterNeighborSampler(graph, [2], 2)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    sampler.sample_from_edges(EdgeSamplerInput(None, torch.tensor([0]), torch.tensor([31])))
    assert torch.equal(torch.rand(3), expected)


def test_bad_inputs_are_refused() -> None:
    graph = small_graph()
    sampler = CounterNeighborSampler(graph, [2], 2)
    with pytest.raises(ValueError, match="seed 3 stands twice"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([3, 3])))
    with pytest.raises(ValueError, match="temporal"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([3]), time=torch.tensor([0])))
    with pytest.raises(ValueError, match="fan-out"):
        CounterNeighborSampler(graph, [0], 2)


def test_cumulated_blocks_by_hand() -> None:
    """Seed 0 found 1 and 2; 1 found 0 and 3; 2 found 3 (excluded): targets and sources in local numbers."""
    target, source = np.array([0, 0, 1, 1, 2]), np.array([1, 2, 0, 3, 3])
    kept = np.array([True, True, True, True, False])
    inner, outer = _cumulated_blocks(source, target, kept, 1, 2)
    assert (inner.num_dst, inner.num_src, outer.num_dst, outer.num_src) == (1, 3, 3, 4)
    assert (inner.indptr.tolist(), inner.indices.tolist()) == ([0, 2], [1, 2])
    assert (outer.indptr.tolist(), outer.indices.tolist()) == ([0, 2, 4, 4], [1, 2, 0, 3])


@pytest.mark.skipif(EXTENSION, reason="pyg-lib or torch-sparse is installed")
def test_a_missing_extension_is_told_in_one_line() -> None:
    with pytest.raises(InputError, match="expected pyg-lib or torch-sparse to be installed, got neither"):
        PyGBlocks(small_graph(), [2], seed=0)


@pytest.mark.skipif(not EXTENSION, reason="needs pyg-lib or torch-sparse")
@pytest.mark.parametrize("fan_outs", [[3, 3], [-1, -1]])
def test_pygs_own_sampler_gives_blocks(fan_outs: list[int]) -> None:
    graph = small_graph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without pyg-lib PyG warns that torch-sparse is going away
        sampler = PyGBlocks(graph, fan_outs, seed=0)
    seeds, (users, items) = np.array([40, 2, 7]), graph.edges(np.arange(0, graph.num_edges, 3))
    sampled = sampler.sample(seeds, 0, 0, (users, items))
    forbidden = set(zip(users.tolist(), (items + graph.num_users).tolist(), strict=True))
    assert sampled.n_id[:3].tolist() == seeds.tolist()
    num_dst = 3
    for fan_out, block in zip(fan_outs, sampled.blocks, strict=True):
        assert block.num_dst == num_dst == block.indptr.size - 1
        num_dst = block.num_src
        for j in range(block.num_dst):
            node = int(sampled.n_id[j])
            found = sampled.n_id[block.indices[block.indptr[j] : block.indptr[j + 1]]].tolist()
            row = graph.indices[graph.indptr[node] : graph.indptr[node + 1]].tolist()
            rest = [w for w in row if (min(node, w), max(node, w)) not in forbidden]
            assert sampled.degree[j] == len(rest)
            assert found == sorted(set(found))
            assert set(found) <= set(rest)
            assert len(found) == len(rest) if fan_out == -1 else len(found) <= fan_out
    assert num_dst == sampled.n_id.size
