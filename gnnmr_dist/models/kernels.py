"""Compiled CPU loops of message passing. One thread each, rows in order: the same bits in every run.

Machines whose vector instructions differ may round sums differently (the compiler chooses how to add channels up).

Axes: E edges, S sources, D destinations, H heads, c channels per head.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from gnnmr_dist.models.arithmetic import FASTMATH


def weighted_sum(indptr: Tensor, source: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """[D, H, c]: sum over the edges of each row of weight [E, H] times x [S, H, c]."""
    out = torch.zeros(indptr.numel() - 1, *x.shape[1:], dtype=x.dtype)
    _forward(indptr.numpy(), source.numpy(), _array(weight), _array(x), out.numpy())
    return out


def weighted_sum_backward(
    indptr: Tensor, source: Tensor, weight: Tensor, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weight [E, H] and x [S, H, c] from that of the sum [D, H, c], in one pass over the edges."""
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype)
    grad_x = torch.zeros(x.shape, dtype=x.dtype)
    arrays = (_array(weight), _array(x), _array(grad))
    _backward(indptr.numpy(), source.numpy(), *arrays, grad_weight.numpy(), grad_x.numpy())
    return grad_weight, grad_x


def _array(t: Tensor) -> Any:
    return t.detach().contiguous().numpy()


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _forward(indptr: Any, source: Any, weight: Any, x: Any, out: Any) -> None:
    channels = x.shape[2]
    for v in range(indptr.size - 1):
        for e in range(indptr[v], indptr[v + 1]):
            w = source[e]
            for h in range(x.shape[1]):
                a = weight[e, h]
                for c in range(channels):
                    out[v, h, c] += a * x[w, h, c]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _backward(
    indptr: Any, source: Any, weight: Any, x: Any, grad: Any, grad_weight: Any, grad_x: Any
) -> None:
    channels = x.shape[2]
    for v in range(indptr.size - 1):
        for e in range(indptr[v], indptr[v + 1]):
            w = source[e]
            for h in range(x.shape[1]):
                a = weight[e, h]
                total = np.float32(0.0) * a
                for c in range(channels):
                    g = grad[v, h, c]
                    total += g * x[w, h, c]
                    grad_x[w, h, c] += a * g
                grad_weight[e, h] = total
