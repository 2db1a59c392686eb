"""Moves of rows whose gradients make no tensor of zeros and no copy that can be had in place.

On the CPU in float32 and float64 they are compiled (row_kernels.py), elsewhere torch's. The gradients given to
:func:`with_front` and :func:`with_products` are added to where they lie: their first result must have one consumer,
whose backward pass makes its gradient anew (as products and the sums over edges do).

Axes: n rows, d columns, k rows of the front, p products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gnnmr_dist.models import row_kernels
from gnnmr_dist.models.blocks import arrays, compiled

LEAST_LENGTH = 1e-12
"""Rows shorter than this are divided by it, as torch's ``normalize`` does."""


def place_rows(
    table: Tensor, rows: Tensor, others: Tensor, row_places: Tensor, other_places: Tensor
) -> Tensor:
    """``table[rows]`` [n1, d] and ``others`` [n2, d] at their places of one [n, d].

    The places [n1] and [n2] are 0..n-1, each once. The table's gradient is sparse: ``rows``, which must be all
    different, with a row each.
    """
    out: Tensor = _Place.apply(table, rows, others, row_places, other_places)  # type: ignore[no-untyped-call]
    return out


def fill_missing(known: Tensor, present: Tensor, missing: Tensor) -> Tensor:
    """``known`` [n, d], with the vector ``missing`` [d] in the rows that are not ``present`` (bool [n])."""
    if not compiled(known, missing):
        return torch.where(present.unsqueeze(1), known, missing)
    out: Tensor = _FillMissing.apply(known, (~present).nonzero().squeeze(1), missing)  # type: ignore[no-untyped-call]
    return out


def mean_of(layers: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape."""
    out: Tensor = _Mean.apply(*layers)  # type: ignore[no-untyped-call]
    return out


def unit_rows(x: Tensor) -> Tensor:
    """Rows [..., d] divided by their length."""
    if not compiled(x):
        return functional.normalize(x, dim=-1, eps=LEAST_LENGTH)
    out: Tensor = _UnitRows.apply(x)  # type: ignore[no-untyped-call]
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
        ctx: Any, table: Tensor, rows: Tensor, others: Tensor, row_places: Tensor, other_places: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows, row_places, other_places)
        ctx.size, others = table.shape, others.to(table.dtype)
        out = table.new_empty(rows.numel() + others.shape[0], table.shape[1])
        if not compiled(table):
            return out.index_copy_(0, row_places, table[rows]).index_copy_(0, other_places, others)
        row_kernels.put_rows(*arrays(table, rows, row_places, out))
        row_kernels.put_rows(*arrays(others, torch.arange(others.shape[0]), other_places, out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, *places = ctx.saved_tensors
        of_rows, of_others = (grad.index_select(0, where) for where in places)
        of_table = torch.sparse_coo_tensor(rows.unsqueeze(0), of_rows, ctx.size, check_invariants=False)
        return of_table, None, of_others, None, None


class _FillMissing(Function):
    @staticmethod
    def forward(ctx: Any, known: Tensor, absent: Tensor, missing: Tensor) -> Tensor:
        ctx.save_for_backward(absent)
        return known.index_copy(0, absent, missing.expand(absent.numel(), -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (absent,) = ctx.saved_tensors
        of_missing = grad.index_select(0, absent).sum(dim=0)
        return grad.index_fill(0, absent, 0), None, of_missing


class _Mean(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, *others: Tensor) -> Tensor:
        ctx.count = 1 + len(others)
        mean: Tensor = reduce(torch.add, others, first) / ctx.count
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        each: Tensor = grad / ctx.count
        return (each, *[each] * (ctx.count - 1))


class _UnitRows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out, inverse = torch.empty_like(x), x.new_empty(x.shape[:-1])
        ctx.least = arrays(x)[0].dtype.type(LEAST_LENGTH)
        rows, result = arrays(x.flatten(0, -2), out.flatten(0, -2))
        row_kernels.unit_rows(rows, ctx.least, result, inverse.flatten().numpy())
        ctx.save_for_backward(out, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        unit, inverse = ctx.saved_tensors
        found = torch.empty_like(unit)
        given, out, result = arrays(*(t.flatten(0, -2) for t in (unit, grad.contiguous(), found)))
        row_kernels.unit_rows_backward(given, ctx.least, inverse.flatten().numpy(), out, result)
        return found


class _WithFront(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        ctx.k = k
        ctx.set_materialize_grads(False)
        return x.view_as(x), x[:k]

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
