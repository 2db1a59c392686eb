"""Moves of rows whose gradients make no tensor of zeros and no copy that can be had in place.

The gradients given to :func:`with_front` and :func:`with_products` are added to where they lie: their first result must
have one consumer, whose backward pass makes its gradient anew (as products and the sums over edges do).

Axes: n rows, d columns, k rows of the front, p products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def place_rows(first: Tensor, second: Tensor, first_places: Tensor, second_places: Tensor) -> Tensor:
    """Rows of two tensors at their places of one [n, d]; the places [n1] and [n2] are 0..n-1, each once."""
    out: Tensor = _Place.apply(first, second, first_places, second_places)  # type: ignore[no-untyped-call]
    return out


def with_front(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(x, x[:k]) for x [n, d]."""
    out: tuple[Tensor, Tensor] = _WithFront.apply(x, k)  # type: ignore[no-untyped-call]
    return out


def with_products(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """(x, x a^T) for x [n, d] and few rows a [p, d], in the precision of x."""
    out: tuple[Tensor, Tensor] = _WithProducts.apply(x, a.to(x.dtype))  # type: ignore[no-untyped-call]
    return out


class _Place(Function):
    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, first_places: Tensor, second_places: Tensor
    ) -> Tensor:
        ctx.save_for_backward(first_places, second_places)
        second = second.to(first.dtype)
        out = first.new_empty(first.shape[0] + second.shape[0], first.shape[1])
        return out.index_copy_(0, first_places, first).index_copy_(0, second_places, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        first, second = (grad.index_select(0, places) for places in ctx.saved_tensors)
        return first, second, None, None


class _WithFront(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        ctx.k = k
        ctx.set_materialize_grads(False)
        return x.view_as(x), x[:k].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, front: Tensor | None) -> tuple[Tensor | None, None]:
        if front is not None:
            _used(grad)[: ctx.k] += front
        return grad, None


class _WithProducts(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, a)
        ctx.set_materialize_grads(False)
        with torch.autocast(x.device.type, enabled=False):
            return x.view_as(x), x @ a.T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, products: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        x, a = ctx.saved_tensors
        if products is None:
            return grad, None
        return _used(grad).addmm_(products, a), products.T @ x


def _used(grad: Tensor | None) -> Tensor:
    if grad is None:
        raise RuntimeError("the first result must be used")
    return grad
