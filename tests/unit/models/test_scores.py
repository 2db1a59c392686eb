"""Scores of a step against whole rows of plain products, values and gradients, in both forms."""

from __future__ import annotations

import pytest
import torch

from gnnmr_dist.models import scores
from gnnmr_dist.models.scores import step_products


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test once with the compiled loops and once with torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(scores, "compiled", lambda *_: False)


def test_products_by_hand() -> None:
    h = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    own, shared = step_products(
        h, torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([[1], [2]]), torch.tensor([2, 1]), 0.5
    )
    assert own.tolist() == [[6.0], [4.0]]
    assert shared.tolist() == [[4.0, 6.0]]


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("rows", [6, 0])
def test_products_and_their_gradients(columns: int, rows: int) -> None:
    h = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    users, row_user = torch.tensor([2, 0, 1]), torch.randint(0, 3, (rows,))
    own, candidates = torch.randint(3, 9, (rows, columns)), torch.tensor([8, 3, 5])

    def plain(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = h[users] / 0.3
        return (u[row_user].unsqueeze(1) * h[own]).sum(dim=-1), u @ h[candidates].T

    def ours(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return step_products(h, users, row_user, own, candidates, 0.3)

    for got, want in zip(ours(h), plain(h), strict=True):
        torch.testing.assert_close(got, want)
    assert torch.autograd.gradcheck(ours, h)


def test_vectors_and_gradients_of_another_layout() -> None:
    h = torch.randn(4, 9, dtype=torch.float64).T.requires_grad_()
    users, own = torch.tensor([1, 0]), torch.tensor([[3], [5], [8]])
    given = (users, torch.tensor([0, 1, 1]), own, torch.tensor([5, 2]), 0.3)
    assert torch.autograd.gradcheck(lambda h: step_products(h, *given), h)
