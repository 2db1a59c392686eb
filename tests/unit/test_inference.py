"""Layer-wise embeddings of all nodes against the full-graph forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    COMBINATIONS,
    ENCODERS,
    all_rows,
    bag_table,
    category_table,
    dense_table,
    make_settings,
    random_graph,
    whole_batch,
)

from gnnmr_dist.data.graph import build_graph
from gnnmr_dist.inference import embed_all, embed_unlinked_items, mean_user_fallback
from gnnmr_dist.models.encoder import Encoder
from gnnmr_dist.networks import build_network

GRAPH = random_graph(6, num_users=9, num_items=7, num_edges=40)
assert (GRAPH.degree() > 0).all(), "no fallback in the comparisons below"
TABLES: dict[str, Any] = {
    "dense": (dense_table(7, 5, missing=(1,)), 5),
    "category": (category_table(7, (1,)), 3),
    "bag": (bag_table(7, (1,)), 4),
}
SLICES = ((1, 1), (2, 3), (5, 7), (1 << 16, 1 << 20))


def encoder(
    kind: Any = "dense", layers: int = 2, num_users: int = 9, num_items: int = 7, **model: Any
) -> Encoder:
    settings = make_settings(
        model={"heads": 2, "activation": "leaky_relu", "identity_init": False, **model}
    ).model
    return build_network(num_users, num_items, [(kind, TABLES[kind][1])], settings, layers, key=1)


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("name", ENCODERS)
def test_layer_wise_equals_the_full_graph_forward(name: str, combination: str) -> None:
    model = encoder(encoder=name, layer_combination=combination)
    table = TABLES["dense"][0]
    expected = model(whole_batch(GRAPH, 2), [all_rows(table)]).detach()
    for rows, edges in SLICES:
        out = embed_all(model, GRAPH, [table], rows_at_once=rows, edges_at_once=edges)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        assert not out.requires_grad


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("layers", [1, 3])
def test_every_kind_of_feature_and_depth(kind: str, layers: int) -> None:
    model, table = encoder(kind, layers), TABLES[kind][0]
    expected = model(whole_batch(GRAPH, layers), [all_rows(table)]).detach()
    for rows, edges in SLICES:
        out = embed_all(model, GRAPH, [table], rows_at_once=rows, edges_at_once=edges)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_users_without_train_data_get_the_mean_of_the_others() -> None:
    known = build_graph(np.array([0, 0, 2]), np.array([0, 1, 1]), 4, 7)  # users 1 and 3 have nothing
    model, table = encoder(num_users=4), TABLES["dense"][0]
    plain = model(whole_batch(known, 2), [all_rows(table)]).detach()
    out = embed_all(model, known, [table])
    expected = plain.clone()
    expected[[1, 3]] = (plain[0] + plain[2]) / 2
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_mean_user_fallback_by_hand() -> None:
    embeddings = torch.tensor([[1.0, 2], [9, 9], [3, 6], [5, 5]])  # three users, one item
    out = mean_user_fallback(embeddings.clone(), torch.tensor([2.0, 0, 1]))
    assert out.tolist() == [[1, 2], [2, 4], [3, 6], [5, 5]]
    unchanged = mean_user_fallback(embeddings.clone(), torch.zeros(3))
    assert torch.equal(unchanged, embeddings)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_an_unlinked_item_is_embedded_as_one_of_the_data_set_without_edges(
    name: str, combination: str
) -> None:
    linked = build_graph(np.array([0, 1, 2]), np.array([0, 1, 3]), 4, 7)  # items 2, 4, 5, 6 have no edges
    model = encoder(encoder=name, layer_combination=combination, item_id="none", num_users=4)
    table = TABLES["dense"][0]
    whole = embed_all(model, linked, [table])
    out = embed_unlinked_items(model, [all_rows(table)], table.num_rows)
    cold = [2, 4, 5, 6]
    torch.testing.assert_close(out[cold], whole[4:][cold], rtol=1e-5, atol=1e-5)
