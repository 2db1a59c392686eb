"""The encoder: sampled blocks against the full graph, item IDs, combinations, scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import COMBINATIONS, ENCODERS, all_rows, dense_table, make_settings, random_graph, whole_batch

from gnnmr_dist.data.sampling import NeighborSampling
from gnnmr_dist.data.steps import gather_rows, node_batch
from gnnmr_dist.models.encoder import Encoder, make_layer, score_vectors
from gnnmr_dist.networks import build_network

GRAPH = random_graph(5, num_users=8, num_items=6, num_edges=22)
TABLE = dense_table(6, 5, missing=(2,))


def encoder(num_layers: int = 2, **model: object) -> Encoder:
    settings = make_settings(model={"embedding_dim": 8, "heads": 2, "activation": "elu", **model}).model
    made = build_network(GRAPH.num_users, GRAPH.num_items, [("dense", 5)], settings, num_layers, key=3)
    assert isinstance(made, Encoder)
    return made


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("name", ENCODERS)
def test_sampling_all_neighbours_equals_the_full_graph_forward(name: str, combination: str) -> None:
    for num_layers in (1, 2, 3):
        model = encoder(num_layers, encoder=name, layer_combination=combination, identity_init=False)
        whole = model(whole_batch(GRAPH, num_layers), [all_rows(TABLE)])
        seeds = np.array([11, 3, 0, 9])
        sampled = NeighborSampling(GRAPH, [-1] * num_layers, seed=0).sample(seeds, 0, 0)
        batch = node_batch(sampled, GRAPH.num_users)
        out = model(batch, [gather_rows(TABLE, batch.items.numpy())])
        torch.testing.assert_close(out, whole[seeds], rtol=1e-5, atol=1e-5)
        assert out.shape[1] == (8 * (num_layers + 1) if combination == "concat" else 8)


def test_combinations_by_hand() -> None:
    layers = [torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 6.0]]), torch.tensor([[0.0, 0.0]])]
    assert encoder(layer_combination="mean").combine(layers).tolist() == [[1, 2]]
    assert encoder(layer_combination="last").combine(layers).tolist() == [[0, 0]]
    assert encoder(layer_combination="concat").combine(layers).tolist() == [[3, 0, 0, 6, 0, 0]]


@pytest.mark.parametrize(("item_id", "with_id"), [("none", []), ("missing", [2]), ("all", list(range(6)))])
def test_which_items_have_an_id_vector(item_id: str, with_id: list[int]) -> None:
    model = encoder(item_id=item_id)
    rows, numbers = [all_rows(TABLE)], torch.arange(6)
    plain = model.item_inputs[0](rows[0])
    difference = (model.items(numbers, rows) - plain).abs().sum(dim=1)
    assert difference.nonzero().flatten().tolist() == with_id
    assert torch.equal(model.featured_items(rows, 6), plain)  # unknown items have none


def test_initial_weights_depend_on_the_key_alone() -> None:
    first = encoder().state_dict()
    torch.manual_seed(999)
    before = torch.random.get_rng_state()
    second = encoder().state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_table_is_a_parameter() -> None:
    """Preference tables that are not parameters never train: a fault of well-known code."""
    model = encoder(item_id="all")
    names = {name for name, _ in model.named_parameters()}
    assert {
        "user_input.table",
        "item_table",
        "item_inputs.0.missing",
        "item_inputs.0.project.weight",
    } <= names
    assert names == set(model.state_dict())  # nothing hidden in buffers
    assert all(p.requires_grad for p in model.parameters())


def test_unknown_encoder() -> None:
    arguments = {
        "heads": 1,
        "self_loops": True,
        "negative_slope": 0.2,
        "degree_scaling": False,
        "identity": False,
    }
    with pytest.raises(ValueError, match="unknown encoder"):
        make_layer("transformer", 8, **arguments)  # type: ignore[arg-type]


def test_scores_are_dot_products_or_cosines() -> None:
    h = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    dot, cosine = score_vectors(h, "dot"), score_vectors(h, "cosine")
    assert float(dot[0] @ dot[1]) == 3
    assert float(cosine[0] @ cosine[1]) == pytest.approx(3 / 5)
    assert torch.isfinite(score_vectors(torch.zeros(1, 2), "cosine")).all()
