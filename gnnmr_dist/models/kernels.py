"""Compiled CPU loops of message passing. One thread each, rows in order: the same bits in every run.

Machines whose vector instructions differ may round sums differently (the compiler chooses how to add channels up).

Axes: E edges, S sources, D destinations, H heads, c channels per head.
"""

from __future__ import annotations

from typing import Any

import numba
import torch
from torch import Tensor

from gnnmr_dist.models.vector_rows import spread_row, sum_rows


def weighted_sum(indptr: Tensor, source: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """[D, H, c]: sum over the edges of each row of weight [E, H] times x [S, H, c]."""
    out = torch.empty(indptr.numel() - 1, *x.shape[1:], dtype=x.dtype)
    _forward(indptr.numpy(), source.numpy(), _array(weight), _array(x), out.numpy())
    return out


def weighted_sum_backward(
    indptr: Tensor, source: Tensor, weight: Tensor, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weight [E, H] and x [S, H, c] from that of the sum [D, H, c], in one pass over the edges."""
    grad_weight = torch.zeros(weight.shape, dtype=weight.dtype)
    grad_x = torch.zeros(x.shape, dtype=x.dtype)
    arrays = (_array(weight), _array(x), _array(grad))
    _backward(indptr.numpy(), source.numpy(), *arrays, grad_weight.numpy(), grad_x.numpy())
    return grad_weight, grad_x


def _array(t: Tensor) -> Any:
    return t.detach().contiguous().numpy()


@numba.njit(cache=True, nogil=True)
def _forward(indptr: Any, source: Any, weight: Any, x: Any, out: Any) -> None:
    none = x.dtype.type(0)
    for h in range(x.shape[1]):
        to, rows, factor = out[:, h], x[:, h], weight[:, h]
        for v in range(indptr.size - 1):
            sum_rows(to, v, rows, 0, none, source, factor, (indptr[v], indptr[v + 1], 0))


@numba.njit(cache=True, nogil=True)
def _backward(
    indptr: Any, source: Any, weight: Any, x: Any, grad: Any, grad_weight: Any, grad_x: Any
) -> None:
    none = x.dtype.type(0)
    for h in range(x.shape[1]):
        upper, rows, to = grad[:, h], x[:, h], grad_x[:, h]
        factor, dot = weight[:, h], grad_weight[:, h]
        for v in range(indptr.size - 1):
            span = (indptr[v], indptr[v + 1], 0)
            spread_row(upper, v, rows, to, 0, none, source, factor, dot, span)
