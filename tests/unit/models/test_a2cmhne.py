"""A2CMHNE: attention over branches by hand; sampled = full graph = layer-wise; tables and gradients; new items."""

from __future__ import annotations

import math

import torch
from helpers import all_rows, category_table, dense_table, make_settings, random_graph, whole_batch

from gnnmr_dist.inference import embed_all, embed_unlinked_items
from gnnmr_dist.models.a2cmhne import A2CMHNE, BranchAttention
from gnnmr_dist.networks import build_network

GRAPH = random_graph(6, num_users=9, num_items=7, num_edges=40)
TABLES = [dense_table(7, 5, missing=(1,)), category_table(7, (2,))]


def network(**model: object) -> A2CMHNE:
    settings = make_settings(model={"method": "a2cmhne", **model}).model
    made = build_network(9, 7, [("dense", 5), ("category", 3)], settings, 2, key=1)
    assert isinstance(made, A2CMHNE)
    with torch.no_grad():
        made.attention.query.normal_(generator=torch.Generator().manual_seed(0))
    return made


def test_attention_by_hand() -> None:
    attention = BranchAttention(2, 1)
    with torch.no_grad():
        attention.project.weight.fill_(2.0)
        attention.project.bias.fill_(1.0)
        attention.query.copy_(torch.tensor([[3.0], [-1.0]]))
    a, b = math.exp(3 * math.tanh(2 * 0.5 + 1)), math.exp(-math.tanh(2 * -1 + 1))
    out = attention([torch.tensor([[0.5]]), torch.tensor([[-1.0]])])
    torch.testing.assert_close(out, torch.tensor([[(a * 0.5 - b) / (a + b)]]))


def test_all_branches_weigh_alike_at_first() -> None:
    parts = [torch.randn(4, 3), torch.randn(4, 3)]
    torch.testing.assert_close(BranchAttention(2, 3)(parts), (parts[0] + parts[1]) / 2)


def test_layer_wise_equals_the_full_graph_forward() -> None:
    for model in ({}, {"encoder": "lightgcn"}, {"layer_combination": "concat"}):
        made = network(**model)
        expected = made(whole_batch(GRAPH, 2), [all_rows(t) for t in TABLES]).detach()
        out = embed_all(made, GRAPH, TABLES, rows_at_once=5, edges_at_once=7)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_reaches_every_parameter() -> None:
    made = network()
    made(whole_batch(GRAPH, 2), [all_rows(t) for t in TABLES]).square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []
    named = dict(made.named_parameters())
    tables = made.id_tables()
    assert set(tables) == {"structure.user_input.table", "structure.item_table"}
    assert all(table is named[name] and table.grad.is_sparse for name, table in tables.items())
    assert set(made.id_rows(whole_batch(GRAPH, 2))) == set(tables)


def test_new_items_are_known_by_their_content() -> None:
    made = network()
    rows = [all_rows(t) for t in TABLES]
    out = embed_unlinked_items(made, rows, 7)
    assert out.shape == (7, 8)
    assert torch.linalg.vector_norm(out[0] - out[3]) > 1e-3
