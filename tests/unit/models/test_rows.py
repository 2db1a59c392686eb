"""Permutations and fronts against plain indexing, values and gradients."""

from __future__ import annotations

import pytest
import torch

from gnnmr_dist.models.rows import permute_rows, with_front


def test_a_permutation_is_indexing() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(6)
    weight = torch.randn(6, 3, dtype=torch.float64)
    found = torch.autograd.grad((permute_rows(x, order) * weight).sum(), x)[0]
    assert torch.equal(permute_rows(x, order), x[order])
    assert torch.equal(found, torch.autograd.grad((x[order] * weight).sum(), x)[0])


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
