"""Moves of rows against plain indexing and products, values and gradients."""

from __future__ import annotations

import pytest
import torch

from gnnmr_dist.models import rows, scores
from gnnmr_dist.models.rows import (
    LEAST_LENGTH,
    fill_missing,
    mean_of,
    place_rows,
    unit_rows,
    with_front,
    with_products,
)
from gnnmr_dist.models.scores import step_products


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here holds for the compiled loops and for the torch form that other devices take."""
    if request.param == "torch":
        for module in (rows, scores):
            monkeypatch.setattr(module, "compiled", lambda *_: False)
    return str(request.param)


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_placed_rows_are_those_of_both() -> None:
    table, others, numbers = doubles(7, 3), doubles(4, 3), torch.tensor([5, 2])
    places = torch.randperm(6)
    weight = torch.randn(6, 3, dtype=torch.float64)
    out = place_rows(table, numbers, others, places[:2], places[2:])
    assert torch.equal(out[places], torch.cat([table[numbers], others]))
    of_table, of_others = torch.autograd.grad((out * weight).sum(), (table, others))
    assert torch.equal(of_others, weight[places[2:]])
    assert of_table.is_sparse
    assert torch.equal(of_table._indices()[0], numbers)
    assert torch.equal(of_table._values(), weight[places[:2]])


def test_missing_rows_are_filled_and_send_no_gradient_back() -> None:
    known, missing = doubles(4, 3), doubles(3)
    present, weight = torch.tensor([True, False, True, False]), torch.randn(4, 3, dtype=torch.float64)
    out = fill_missing(known * 1, present, missing)
    assert torch.equal(out, torch.where(present[:, None], known, missing))
    of_known, of_missing = torch.autograd.grad((out * weight).sum(), (known, missing))
    assert torch.equal(of_known, weight * present[:, None])
    torch.testing.assert_close(of_missing, weight[1] + weight[3])


def test_a_mean() -> None:
    layers = [doubles(3, 2) for _ in range(3)]
    out = mean_of(layers)
    torch.testing.assert_close(out, torch.stack(layers).mean(dim=0))
    assert torch.autograd.gradcheck(lambda *some: mean_of(some), layers)


def test_unit_rows_and_their_gradient() -> None:
    x = doubles(5, 3)
    torch.testing.assert_close(unit_rows(x), torch.nn.functional.normalize(x, dim=1))
    assert torch.autograd.gradcheck(unit_rows, x)
    whole = doubles(2, 4, 3)
    torch.testing.assert_close(unit_rows(whole).norm(dim=2), torch.ones(2, 4, dtype=torch.float64))


def test_rows_too_short_to_have_a_direction() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    out = unit_rows(x)
    assert out.eq(0).all()
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((2, 3), 1 / LEAST_LENGTH))


def test_products_of_a_step_and_their_gradient() -> None:
    h = doubles(6, 3)
    users, row_user = torch.tensor([0, 1]), torch.tensor([1, 0, 1])
    own, candidates = torch.tensor([[2, 3], [4, 2], [5, 4]]), torch.tensor([5, 2])

    def products(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return step_products(h, users, row_user, own, candidates, 0.5)

    pairs, shared = products(h)
    torch.testing.assert_close(pairs, (h[users][row_user][:, None] * h[own]).sum(dim=2) / 0.5)
    torch.testing.assert_close(shared, h[users] @ h[candidates].T / 0.5)
    assert torch.autograd.gradcheck(products, h)


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
