"""The scores of a step (Eq. 6) from the seeds' vectors: what a user's rows share is computed once.

Axes: s seeds, d embedding size, b rows, p own columns (the positive, maybe a negative), n users, C shared candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gnnmr_dist.models import row_kernels
from gnnmr_dist.models.blocks import arrays, compiled


def step_products(
    h: Tensor, users: Tensor, row_user: Tensor, own: Tensor, candidates: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Products over temperature: of each row's user with its own items [b, p], of each user with the candidates [n, C].

    Args:
        h: vectors of the seeds [s, d].
        users: places of the users among the seeds, all different [n].
        row_user: which of them each row has [b].
        own: places of each row's own items [b, p].
        candidates: places, all different [C].
        temperature: divides the products.
    """
    out: tuple[Tensor, Tensor] = _Products.apply(h, users, row_user, own, candidates, temperature)  # type: ignore[no-untyped-call]
    return out


class _Products(Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        users: Tensor,
        row_user: Tensor,
        own: Tensor,
        candidates: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        u, items = h.index_select(0, users).div_(temperature), h.index_select(0, candidates)
        ctx.save_for_backward(h, u, items, users, row_user, own, candidates)
        ctx.temperature = temperature
        if compiled(h):
            pairs = h.new_empty(own.shape)
            row_kernels.pair_products(*arrays(u, row_user, h, own, pairs))
        else:
            pairs = torch.einsum("bd,bpd->bp", u[row_user], h[own])
        return pairs, u @ items.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pairs: Tensor, grad_shared: Tensor) -> tuple[Tensor | None, ...]:
        h, u, items, users, row_user, own, candidates = ctx.saved_tensors
        found, grad_u, grad_items = h.new_zeros(h.shape), grad_shared @ items, grad_shared.T @ u
        if compiled(h, grad_pairs):
            row_kernels.pair_products_backward(
                *arrays(u, row_user, h, own, grad_pairs.contiguous(), grad_u, found)
            )
            one = arrays(found)[0].dtype.type(1)
            row_kernels.add_rows(
                *arrays(grad_u), one / one.dtype.type(ctx.temperature), *arrays(users, found)
            )
            row_kernels.add_rows(*arrays(grad_items), one, *arrays(candidates, found))
            return found, None, None, None, None, None
        row_u = u[row_user]
        for column in range(own.shape[1]):
            g, places = grad_pairs[:, column : column + 1], own[:, column]
            grad_u.index_add_(0, row_user, g * h[places])
            found.index_add_(0, places, g * row_u)
        found.index_add_(0, users, grad_u.div_(ctx.temperature))
        found.index_add_(0, candidates, grad_items)
        return found, None, None, None, None, None
