"""Every method's network: samples and slices against the whole graph, tables, gradients; some by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import all_rows, category_table, dense_table, make_settings, random_graph, whole_batch
from torch import Tensor
from torch.nn import functional

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.config import Settings
from gnnmr_dist.data.sampling import NeighborSampling
from gnnmr_dist.data.steps import gather_rows, node_batch
from gnnmr_dist.errors import InputError
from gnnmr_dist.inference import embed_all, embed_unlinked_items
from gnnmr_dist.models.encoder import Network
from gnnmr_dist.models.mmgcn import MMGCN, MMGCNLayer
from gnnmr_dist.models.vbpr import VBPR
from gnnmr_dist.networks import NETWORKS, build_network

GRAPH = random_graph(5, num_users=8, num_items=6, num_edges=22)
TABLES = [dense_table(6, 5, missing=(2,)), category_table(6, missing=(4,))]
INPUTS: list[Any] = [("dense", 5), ("category", 3)]
LAYERLESS = ("bpr-mf", "vbpr", "pmgt")
FEATURED = [*(name for name in NETWORKS if name not in CLOSED_FORM), "gnnmr"]
METHODS = [*FEATURED, "lightgcn", "bpr-mf"]


def settings_of(method: str, **model: Any) -> Settings:
    return make_settings(
        model={"method": method, "embedding_dim": 4, **model},
        sampling={"num_neighbors": () if method in LAYERLESS else (-1, -1)},
    )


def network(method: str, **model: Any) -> Network:
    settings = settings_of(method, **model)
    layers = len(settings.sampling.num_neighbors)
    inputs = INPUTS if method in FEATURED else []
    return build_network(8, 6, inputs, settings.model, layers, key=3)


def rows_of(method: str, items: np.ndarray[Any, Any]) -> list[Any]:
    return [gather_rows(table, items) for table in TABLES] if method in FEATURED else []


def whole(method: str, made: Network) -> Tensor:
    layers = len(settings_of(method).sampling.num_neighbors)
    batch = whole_batch(GRAPH, layers)
    out: Tensor = made(batch, rows_of(method, np.arange(6)))
    return out


@pytest.mark.parametrize("method", METHODS)
def test_samples_and_slices_equal_the_whole_graph(method: str) -> None:
    made, settings = network(method), settings_of(method)
    expected = whole(method, made).detach()
    seeds = np.array([11, 3, 0, 9])
    sampled = NeighborSampling(GRAPH, settings.sampling.num_neighbors, seed=0).sample(seeds, 0, 0)
    batch = node_batch(sampled, GRAPH.num_users)
    out = made(batch, rows_of(method, batch.items.numpy()))
    torch.testing.assert_close(out, expected[seeds], rtol=1e-5, atol=1e-5)
    tables = TABLES if rows_of(method, np.arange(1)) else []
    for rows, edges in ((1000, 1000), (3, 5)):
        sliced = embed_all(made, GRAPH, tables, rows_at_once=rows, edges_at_once=edges)
        torch.testing.assert_close(sliced, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_tables_are_parameters_whose_gradients_have_every_row_once(method: str) -> None:
    made, settings = network(method), settings_of(method)
    parameters = dict(made.named_parameters())
    assert set(parameters) == set(made.state_dict())
    sampled = NeighborSampling(GRAPH, settings.sampling.num_neighbors, seed=0).sample(np.array([0, 9]), 0, 0)
    batch = node_batch(sampled, GRAPH.num_users)
    made(batch, rows_of(method, batch.items.numpy())).pow(2).sum().backward()
    named = made.id_rows(batch)
    assert set(named) == set(made.id_tables())
    for name, rows in named.items():
        grad = parameters[name].grad
        assert grad is not None
        assert grad.is_sparse
        assert sorted(grad._indices()[0].tolist()) == sorted(rows.tolist())
        assert rows.unique().numel() == rows.numel()


@pytest.mark.parametrize("method", ["vbpr", "mmgcn", "a2cmhne"])
def test_a_gradient_reaches_every_parameter(method: str) -> None:
    made = network(method)
    with torch.no_grad():  # some start at zero, which stops the gradients of others
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape))
    out = whole(method, made)
    (out * torch.randn(out.shape)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.to_dense().ne(0).any()) for p in made.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_new_items_have_embeddings_of_the_right_width(method: str) -> None:
    made = network(method)
    new = embed_unlinked_items(made, rows_of(method, np.arange(3)), 3)
    assert new.shape == (3, whole(method, made).shape[1])


@pytest.mark.parametrize("method", LAYERLESS[1:])
def test_layers_where_there_are_none(method: str) -> None:
    with pytest.raises(InputError, match=f"expected none with method {method}, got 2"):
        build_network(8, 6, INPUTS, settings_of(method).model, 2, key=3)


def test_vbpr_by_hand() -> None:
    made = network("vbpr")
    assert isinstance(made, VBPR)
    assert made.item_table is not None
    with torch.no_grad():
        made.item_table[:, 4] = torch.arange(6.0)
        for module in made.beta:
            for parameter in module.parameters():
                parameter.uniform_()
    h = whole("vbpr", made).detach()
    user, item = 3, 1  # item 1 has both modalities
    row, code = torch.from_numpy(TABLES[0].values[item]), int(TABLES[1].codes[item])
    projected = made.item_inputs[0].project(row) + made.item_inputs[1].codes[code]
    visual = made.beta[0].project(row) + made.beta[1].codes[code]
    g_user, theta = made.user_input.table[user].split(4)
    expected = made.item_table[item, 4] + g_user @ made.item_table[item, :4] + theta @ projected + visual
    torch.testing.assert_close(h[user] @ h[8 + item], expected.squeeze().detach())


def test_mmgcn_by_hand() -> None:
    """One node, two layers, in plain loops over the whole graph."""
    made, leaky = network("mmgcn"), functional.leaky_relu
    assert isinstance(made, MMGCN)
    neighbours = [GRAPH.indices[GRAPH.indptr[v] : GRAPH.indptr[v + 1]].tolist() for v in range(14)]
    finals = []
    for (encoder, _), table in zip(made.branches, TABLES, strict=True):
        x = torch.cat([encoder.user_input.table, encoder.item_inputs[0](all_rows(table))])
        x = x / x.norm(dim=1, keepdim=True)
        for layer in encoder.layers:
            assert isinstance(layer, MMGCNLayer)
            messages = layer.neighbours(x)
            mean = [
                torch.stack([messages[w] for w in near]).mean(dim=0) if near else torch.zeros(4)
                for near in neighbours
            ]
            own = leaky(layer.own(x)) + made.id_table
            x = leaky(layer.gate(leaky(torch.stack(mean))) + own)
        finals.append(x)
    torch.testing.assert_close(whole("mmgcn", made), (finals[0] + finals[1]) / 2)


def test_mmgcn_as_published_trains_no_table() -> None:
    ours, published = network("mmgcn"), network("mmgcn", as_published=True)
    assert set(ours.id_tables()) == {"id_table", *(f"encoders.{m}.user_input.table" for m in (0, 1))}
    assert published.id_tables() == {}
    whole("mmgcn", published).sum().backward()
    for name in ours.id_tables():
        assert dict(published.named_parameters())[name].grad is None
