"""The scores of a step's rows (Eq. 6) from the seeds' vectors, with a gradient that makes no copy of the whole table.

Axes: s seeds, d embedding size, b rows, C shared candidates, p own columns (the positive, maybe a negative).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def row_scores(
    h: Tensor, users: Tensor, own: Sequence[Tensor], candidates: Tensor, temperature: float
) -> Tensor:
    """Dot products over temperature [b, p + C]: each row's user with its own items, then with every candidate.

    Args:
        h: vectors of the seeds [s, d].
        users: each row's user, a place among the seeds [b].
        own: p tensors [b], each row's own items.
        candidates: places [C], all different.
        temperature: divides the scores.
    """
    out: Tensor = _RowScores.apply(h, users, torch.stack(list(own)), candidates, temperature)  # type: ignore[no-untyped-call]
    return out


class _RowScores(Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, users: Tensor, own: Tensor, candidates: Tensor, temperature: float
    ) -> Tensor:
        u, shared = h[users] / temperature, h[candidates]
        out = h.new_empty(users.numel(), own.shape[0] + candidates.numel())
        for column, places in enumerate(own):
            torch.sum(u * h[places], dim=1, out=out[:, column])
        torch.mm(u, shared.T, out=out[:, own.shape[0] :])
        ctx.save_for_backward(h, u, shared, users, own, candidates)
        ctx.temperature = temperature
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        h, u, shared, users, own, candidates = ctx.saved_tensors
        right = grad[:, own.shape[0] :]
        found, grad_u = torch.zeros_like(h), right @ shared
        for column, places in enumerate(own):
            g = grad[:, column : column + 1]
            grad_u.addcmul_(g, h[places])
            found.index_add_(0, places, g * u)
        found.index_add_(0, users, grad_u.div_(ctx.temperature))
        found.index_add_(0, candidates, right.T @ u)
        return found, None, None, None, None
