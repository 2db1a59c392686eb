"""Node inputs by hand: projections, look-ups, bags, missing rows."""

from __future__ import annotations

import torch
from helpers import all_rows, bag_table, category_table, dense_table

from gnnmr_dist.models.inputs import ItemInput, ItemRows, UserInput


def test_dense_is_a_linear_projection_and_missing_is_one_learned_vector() -> None:
    layer, table = ItemInput("dense", 5, 3), dense_table(6, 5, missing=(1, 4))
    rows = all_rows(table)
    out = layer(rows)
    expected = torch.from_numpy(table.values) @ layer.project.weight.T + layer.project.bias
    expected[[1, 4]] = layer.missing
    torch.testing.assert_close(out, expected)


def test_half_precision_features_are_projected_in_float32() -> None:
    layer = ItemInput("dense", 5, 3)
    rows = ItemRows(torch.ones(2, dtype=torch.bool), torch.randn(2, 5).half())
    assert layer(rows).dtype == torch.float32


def test_category_is_a_look_up() -> None:
    layer, rows = ItemInput("category", 3, 4), all_rows(category_table(6, missing=(2,)))
    out = layer(rows)
    assert torch.equal(out[[0, 1, 3, 4]], layer.codes[[0, 1, 0, 1]])
    assert torch.equal(out[2], layer.missing)
    out[2].sum().backward()
    assert layer.codes.grad is None or not layer.codes.grad.any()  # -1 never trains code 0


def test_bag_is_the_mean_of_its_codes() -> None:
    layer, rows = ItemInput("bag", 4, 2), all_rows(bag_table(4, missing=(1, 3)))
    # item 0: code 0; item 1 missing; item 2: codes 1, 2, 3; item 3 missing, last and empty
    out = layer(rows)
    torch.testing.assert_close(out[0], layer.codes[0])
    torch.testing.assert_close(out[2], (layer.codes[1] + layer.codes[2] + layer.codes[3]) / 3)
    assert torch.equal(out[[1, 3]], layer.missing.expand(2, -1))


def test_bags_that_are_all_empty() -> None:
    layer = ItemInput("bag", 4, 2)
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = ItemRows(torch.zeros(2, dtype=torch.bool), nothing, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(layer(rows), layer.missing.expand(2, -1))


def test_categories_are_never_dense_one_hot() -> None:
    layer = ItemInput("category", 100_000, 2)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "codes": (100_000, 2),
        "missing": (2,),
    }


def test_users_have_trained_vectors() -> None:
    layer = UserInput(4, 3)
    out = layer(torch.tensor([2, 2, 0]))
    assert torch.equal(out, layer.table[[2, 2, 0]])
    out.sum().backward()
    assert layer.table.grad is not None
    assert layer.table.grad.is_sparse, "the gradient follows the batch, not the table"
    assert layer.table.grad.to_dense()[:, 0].tolist() == [1, 0, 2, 0]
