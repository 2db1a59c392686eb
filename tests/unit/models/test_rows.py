"""Moves of rows against plain indexing and products, values and gradients."""

from __future__ import annotations

import pytest
import torch

from gnnmr_dist.models import rows
from gnnmr_dist.models.rows import fill_missing, mean_of, place_rows, unit_rows, with_front, with_products


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test once with the compiled loops and once with torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(rows, "compiled", lambda *_: False)


def test_placed_rows_are_those_of_both() -> None:
    table, others = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    places, chosen = torch.randperm(6), torch.tensor([4, 1])
    weight = torch.randn(6, 3, dtype=torch.float64)
    out = place_rows(table, chosen, others, places[:2], places[2:])
    assert torch.equal(out[places], torch.cat([table[chosen], others]))
    of_table, of_others = torch.autograd.grad((out * weight).sum(), (table, others))
    assert of_table.is_sparse
    assert torch.equal(of_table._indices()[0], chosen)
    assert torch.equal(of_table.to_dense()[chosen], weight[places[:2]])
    assert torch.equal(of_others, weight[places[2:]])


@pytest.mark.parametrize("present", [[True, False, True], [True, True, True], [False, False, False]])
def test_missing_rows_are_filled(present: list[bool]) -> None:
    known, missing = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 2), (2,)))
    there = torch.tensor(present)
    out = fill_missing(known, there, missing)
    assert torch.equal(out, torch.where(there.unsqueeze(1), known, missing))
    assert torch.autograd.gradcheck(lambda k, m: fill_missing(k, there, m), (known, missing))


def test_a_mean_and_its_gradients() -> None:
    layers = [torch.randn(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    torch.testing.assert_close(mean_of(layers), torch.stack(layers).mean(dim=0))
    assert torch.autograd.gradcheck(lambda *given: mean_of(given), layers)
    assert torch.equal(mean_of(layers[:1]), layers[0])


def test_rows_at_unit_length() -> None:
    assert unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        pytest.approx([0.6, 0.8]),
        [0.0, 0.0],
    ]
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unit_rows(x), torch.nn.functional.normalize(x, dim=-1))
    assert torch.autograd.gradcheck(unit_rows, x)


def test_a_row_too_short_to_have_a_direction_has_a_finite_gradient() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-14, 0.0]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(unit_rows(x).sum(), x)
    torch.testing.assert_close(found, torch.full_like(x, 1e12))


def test_products_and_their_gradients() -> None:
    x, a = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 2))

    def value(whole: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        return (2 * whole).pow(3).sum() + products.sin().sum()

    found = torch.autograd.grad(value(*with_products(x * 1, a)), (x, a))
    for got, want in zip(found, torch.autograd.grad(value(x, x @ a.T), (x, a)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("k", [0, 2, 5])
def test_a_front_adds_its_gradient(k: int) -> None:
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def value(whole: torch.Tensor, front: torch.Tensor) -> torch.Tensor:
        return (2 * whole).pow(3).sum() + front.pow(2).sum()

    found = torch.autograd.grad(value(*with_front(x * 1, k)), x)[0]
    torch.testing.assert_close(found, torch.autograd.grad(value(x, x[:k]), x)[0])


def test_a_front_that_is_not_used() -> None:
    x = torch.ones(4, 2, requires_grad=True)
    whole, _ = with_front(x * 1, 2)
    whole.sum().backward()
    assert x.grad is not None
    assert x.grad.eq(1).all()
