"""PMGT's mathematics against hand arithmetic: diversity attention, gate, losses; padding; what is trained."""

from __future__ import annotations

import math

import torch
from helpers import all_rows, bag_table, category_table, dense_table, make_settings, random_graph, whole_batch
from torch.nn import functional

from gnnmr_dist.inference import embed_all, embed_unlinked_items
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.models.pmgt import (
    PMGT,
    GraphTransformer,
    ModalityGate,
    Reconstruction,
    diversity_attention,
    neighbour_loss,
)
from gnnmr_dist.networks import build_network

TABLES = [dense_table(6, 5, missing=(1,)), category_table(6), bag_table(6, (2,))]
INPUTS = [("dense", 5), ("category", 3), ("bag", 4)]


def test_diversity_attention_by_hand() -> None:
    q = torch.tensor([[[[1.0, 0.0]]]])
    k = torch.tensor([[[[2.0, 0.0], [0.0, 3.0]]]])
    v = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    near = 1 / (1 + math.exp(-2 / math.sqrt(2)))  # logits 2 / sqrt 2 and 0
    far = 1 / (1 + math.e)  # 1 - cos: 0 and 1
    out = diversity_attention(q, k, v, torch.ones(1, 2, dtype=torch.bool), 0.2)
    first = 0.8 * near + 0.2 * far
    torch.testing.assert_close(out, torch.tensor([[[[first, 1 - first]]]]))


def test_without_diversity_it_is_scaled_dot_product_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind(0)
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1, 3:] = False
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
    torch.testing.assert_close(diversity_attention(q, k, v, valid, 0.0), expected)


def test_gate_by_hand() -> None:
    gate = ModalityGate(2, 1)
    with torch.no_grad():
        gate.gate.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        gate.gate.bias.copy_(torch.tensor([0.5, 0.0]))
    a, b = math.exp(math.tanh(1 - 2 + 0.5)), math.exp(math.tanh(1.0))  # x = 1, -1
    out = gate(torch.tensor([[[1.0], [-1.0]]]))
    torch.testing.assert_close(out, torch.tensor([[(a - b) / (a + b)]]))


def test_neighbour_loss_by_hand() -> None:
    t, p = torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0], [-1.0]])

    def cost(x: float) -> float:
        return math.log1p(math.exp(-x))

    expected = (cost(2) + cost(-1)) / 2 + (cost(2) + cost(-1)) / 2  # others: 2 * -1 and 1 * 1, signs turned
    torch.testing.assert_close(neighbour_loss(t, p), torch.tensor(expected))


def test_reconstruction_by_hand() -> None:
    guess = Reconstruction([("dense", 2), ("category", 2), ("bag", 2)], 1)
    with torch.no_grad():
        for head in guess.heads:
            head.weight.zero_()
            head.bias.copy_(torch.tensor([0.0, math.log(3)]))
        guess.heads[0].bias.zero_()
    seen = torch.tensor([True, False])
    rows = [
        ItemRows(seen, torch.tensor([[3.0, 4.0], [9.0, 9.0]])),
        ItemRows(seen, torch.tensor([1, -1])),
        ItemRows(seen, torch.tensor([0, 1]), torch.tensor([0, 2, 2])),
    ]
    category, bag = -math.log(0.75), -(math.log(0.25) + math.log(0.75)) / 2
    torch.testing.assert_close(guess(torch.zeros(2, 1), rows), torch.tensor((1 + category + bag) / 3))


def test_empty_places_and_hidden_features_change_nothing() -> None:
    body = GraphTransformer([("dense", 5)], 8, 2)
    x = torch.randn(3, 4, 8)
    valid = torch.tensor([[True, True, False, False]]).expand(3, 4)
    short = body(x[:, :2], valid[:, :2])
    torch.testing.assert_close(body(x, valid)[:, :2], short)
    masked = torch.tensor([[False, True, False, False]]).expand(3, 4)
    other = x.clone()
    other[:, 1] = 7
    torch.testing.assert_close(body(x, valid, masked)[:, 0], body(other, valid, masked)[:, 0])


def network() -> PMGT:
    settings = make_settings(model={"method": "pmgt", "heads": 2}, sampling={"num_neighbors": []}).model
    made = build_network(7, 6, INPUTS, settings, 0, key=1)  # type: ignore[arg-type]
    assert isinstance(made, PMGT)
    return made


def test_layer_wise_equals_forward_and_tables_are_parameters() -> None:
    made, graph, rows = network(), random_graph(6, num_edges=36), [all_rows(t) for t in TABLES]
    batch = whole_batch(graph, 0)
    assert (graph.degree()[:7] > 0).all(), "no fallback here"
    whole = torch.cat([made.users(batch.users), made.items(batch.items, rows)])
    torch.testing.assert_close(embed_all(made, graph, TABLES, rows_at_once=2), whole)
    whole.square().sum().backward()
    without = [n for n, p in made.named_parameters() if p.grad is None]
    assert all(name.startswith("transformer.") for name in without)
    assert set(made.id_tables()) == {"user_input.table", "item_table"} == set(made.id_rows(batch))
    made.freeze()
    assert set(made.id_tables()) == {"user_input.table"} == set(made.id_rows(batch))


def test_new_items_are_known_by_their_features() -> None:
    out = embed_unlinked_items(network(), [all_rows(t) for t in TABLES], 6)
    assert out.shape == (6, 8)
    assert torch.linalg.vector_norm(out[0] - out[3]) > 1e-3
