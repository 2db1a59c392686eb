"""Rows taken in another order or from the front, with gradients that make no tensor of zeros.

Axes: n rows, d columns, k rows of the front.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def permute_rows(x: Tensor, order: Tensor) -> Tensor:
    """``x[order]`` for x [n, d] and a permutation [n]: rows are taken once, so its gradient is a copy, not a sum."""
    out: Tensor = _Permute.apply(x, order)  # type: ignore[no-untyped-call]
    return out


def with_front(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(x, x[:k]) for x [n, d]; the front's gradient is added to that of x where it lies."""
    out: tuple[Tensor, Tensor] = _WithFront.apply(x, k)  # type: ignore[no-untyped-call]
    return out


class _Permute(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_empty(grad.shape).index_copy_(0, ctx.saved_tensors[0], grad), None


class _WithFront(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        ctx.k = k
        ctx.set_materialize_grads(False)
        return x.view_as(x), x[:k].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, front: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            raise RuntimeError("the first of what with_front returns must be used")
        if front is not None:
            grad[: ctx.k] += front  # made by the consumer of x, which keeps no hold of it
        return grad, None
