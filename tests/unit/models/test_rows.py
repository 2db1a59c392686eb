"""Moves of rows against plain indexing and products, values and gradients."""

from __future__ import annotations

import pytest
import torch

from gnnmr_dist.models.rows import place_rows, with_front, with_products


def test_placed_rows_are_those_of_both() -> None:
    first, second = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 4))
    places = torch.randperm(6)
    weight = torch.randn(6, 3, dtype=torch.float64)
    out = place_rows(first, second, places[:2], places[2:])
    assert torch.equal(out[places], torch.cat([first, second]))
    found = torch.autograd.grad((out * weight).sum(), (first, second))
    assert torch.equal(torch.cat(found), weight[places])


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
