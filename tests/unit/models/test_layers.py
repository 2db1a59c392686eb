"""Layers against PyTorch Geometric as oracle: outputs, gradients of inputs and of every weight."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from helpers import edge_index, random_graph, whole_block
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, LGConv, SAGEConv

from gnnmr_dist.models.blocks import make_block
from gnnmr_dist.models.layers import GATLayer, GATv2Layer, GCNLayer, Layer, LightGCNLayer, SAGELayer

WIDTH = 8
SEEDS = (0, 1, 2)


def compare(
    layer: Layer, oracle: nn.Module, pairs: list[tuple[nn.Parameter, nn.Parameter]], seed: int
) -> None:
    """Copy the layer's weights into the oracle, then compare outputs and all gradients on a random graph."""
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(ours.view(theirs.shape))
    assert len(pairs) == len(list(layer.parameters())) == len(list(oracle.parameters()))
    graph = random_graph(seed, num_users=9, num_items=7, num_edges=25)
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(graph.num_nodes, WIDTH, generator=generator, requires_grad=True)
    seen = h.detach().clone().requires_grad_()
    out, expected = layer(h, whole_block(graph)), oracle(seen, edge_index(graph))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(out.shape, generator=generator)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(h.grad, seen.grad, rtol=1e-5, atol=1e-5)
    for ours, theirs in pairs:
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad.view(ours.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("self_loops", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_gat(seed: int, heads: int, self_loops: bool) -> None:
    torch.manual_seed(seed)
    layer = GATLayer(WIDTH, heads=heads, self_loops=self_loops, negative_slope=0.3)
    oracle = GATConv(
        WIDTH, WIDTH // heads, heads=heads, add_self_loops=self_loops, negative_slope=0.3, bias=False
    )
    pairs = [(layer.linear.weight, oracle.lin.weight)]
    pairs += [(layer.att_source, oracle.att_src), (layer.att_destination, oracle.att_dst)]
    compare(layer, oracle, pairs, seed)


@pytest.mark.parametrize("self_loops", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_gatv2(seed: int, heads: int, self_loops: bool) -> None:
    torch.manual_seed(seed)
    layer = GATv2Layer(WIDTH, heads=heads, self_loops=self_loops)
    oracle = GATv2Conv(WIDTH, WIDTH // heads, heads=heads, add_self_loops=self_loops, bias=False)
    pairs = [
        (layer.linear.weight, oracle.lin_l.weight),
        (layer.linear_destination.weight, oracle.lin_r.weight),
    ]
    compare(layer, oracle, [*pairs, (layer.att, oracle.att)], seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_gcn(seed: int) -> None:
    torch.manual_seed(seed)
    layer, oracle = GCNLayer(WIDTH), GCNConv(WIDTH, WIDTH, bias=False, add_self_loops=True, normalize=True)
    compare(layer, oracle, [(layer.linear.weight, oracle.lin.weight)], seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_sage(seed: int) -> None:
    torch.manual_seed(seed)
    layer, oracle = SAGELayer(WIDTH), SAGEConv(WIDTH, WIDTH, aggr="mean", bias=False)
    pairs = [(layer.linear.weight, oracle.lin_l.weight), (layer.linear_self.weight, oracle.lin_r.weight)]
    compare(layer, oracle, pairs, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_lightgcn(seed: int) -> None:
    compare(LightGCNLayer(), LGConv(), [], seed)


@pytest.mark.parametrize("attention", [GATLayer, GATv2Layer])
@pytest.mark.parametrize("self_loops", [True, False])
def test_uniform_attention_scaled_by_degree_is_the_symmetric_normalisation(
    attention: type[GATLayer] | type[GATv2Layer], self_loops: bool
) -> None:
    graph = random_graph(3, num_users=9, num_edges=25)
    layer = attention(WIDTH, heads=2, self_loops=self_loops, degree_scaling=True, identity=True)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("att"):
                parameter.zero_()
    oracle = GCNConv(WIDTH, WIDTH, bias=False) if self_loops else LGConv()
    if self_loops:
        with torch.no_grad():
            oracle.lin.weight.copy_(torch.eye(WIDTH))
    h = torch.randn(graph.num_nodes, WIDTH)
    torch.testing.assert_close(
        layer(h, whole_block(graph)), oracle(h, edge_index(graph)), rtol=1e-5, atol=1e-5
    )


def test_identity_initialisation_passes_rows_through() -> None:
    h = torch.randn(4, WIDTH)
    for layer in (GATLayer(WIDTH, identity=True), GCNLayer(WIDTH, identity=True)):
        torch.testing.assert_close(layer.transform(h)[0].flatten(1), h)
    assert not torch.equal(GATLayer(WIDTH).linear.weight, torch.eye(WIDTH))


@pytest.mark.parametrize("layer", [LightGCNLayer(), GCNLayer(WIDTH), SAGELayer(WIDTH)])
def test_a_uniform_sample_estimates_the_whole_sum_without_bias(layer: Layer) -> None:
    """The mean over all samples of 2 of 5 neighbours is what all 5 give."""
    h = torch.randn(6, WIDTH)
    degree = torch.tensor([5.0, 1, 2, 3, 4, 5])

    def row(sources: tuple[int, ...]) -> Tensor:
        block = make_block(torch.tensor([0, len(sources)]), torch.tensor(sources), degree)
        return layer(h, block)

    samples = torch.stack([row(chosen) for chosen in combinations(range(1, 6), 2)])
    torch.testing.assert_close(samples.mean(dim=0), row((1, 2, 3, 4, 5)))


@pytest.mark.parametrize(
    "layer", [GATLayer(WIDTH), GATLayer(WIDTH, self_loops=False), GATv2Layer(WIDTH), GCNLayer(WIDTH)]
)
def test_nodes_without_neighbours_stay_finite(layer: Layer) -> None:
    block = make_block(torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(3))
    h = torch.randn(3, WIDTH, requires_grad=True)
    out = layer(h, block)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("layer", [GATLayer(WIDTH), GATv2Layer(WIDTH), GCNLayer(WIDTH), SAGELayer(WIDTH)])
def test_bfloat16_autocast_runs_and_stays_near(layer: Layer) -> None:
    graph = random_graph(4)
    h = torch.randn(graph.num_nodes, WIDTH)
    exact = layer(h, whole_block(graph))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = layer(h, whole_block(graph))
    torch.testing.assert_close(near.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layer_type", [GATLayer, GATv2Layer])
def test_a_self_loop_keeps_its_share_in_a_sample(layer_type: type[Layer]) -> None:
    torch.manual_seed(0)
    layer = layer_type(4)  # no logit: attention is uniform
    for name, parameter in layer.named_parameters():
        if name.startswith("att"):
            torch.nn.init.zeros_(parameter)
    h = torch.zeros(3, 4)
    h[0] = 1.0  # node 0 has degree 10, of which 2 neighbours (rows 1 and 2, zeros) are sampled
    block = make_block(torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([10.0, 1.0, 1.0]))
    share = layer(h, block) / layer.linear(h)[:1]
    torch.testing.assert_close(share, torch.full((1, 4), 1 / 11))  # as with all ten, not 1 / 3
