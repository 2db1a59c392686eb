"""Softmax-weighted sums over a block with optional self-loops (Eqs. 3 to 5): compiled on the CPU, torch elsewhere.

Axes: E edges of the block, S source rows, D destination rows, H heads, c channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gnnmr_dist.models.attention_kernels import attention_backward, attention_forward
from gnnmr_dist.models.blocks import Block, arrays, compiled, edge_softmax, single, weighted_sum


def weighted_by_softmax(
    logits: Tensor, own: Tensor | None, x: Tensor, block: Block, degree_scaling: bool
) -> Tensor:
    """Sum of ``x`` weighted by the softmax of ``logits``, optionally times sqrt(deg v / deg w) per edge.

    A self-loop counts in the degrees, as it does in the softmax. Beside a self-loop, each edge of a sample stands for
    deg v / number sampled edges of the whole graph: the log of that is added to its logit, so that the loop keeps the
    share it has when all neighbours are there.

    Args:
        logits: [E, H].
        own: logits of the self-loops [D, H], or None without them.
        x: [S, H, c].
        block: the edges.
        degree_scaling: whether to scale.

    Returns:
        [D, H, c].
    """
    if own is not None:
        logits = logits + block.shift[block.destination].unsqueeze(1)
    weight, own_weight = edge_softmax(logits, block, own)
    if degree_scaling:
        degree = block.degree + (0 if own is None else 1)
        weight = weight * (degree[block.own][block.destination] / degree[block.source]).sqrt().unsqueeze(1)
    out = weighted_sum(weight, x, block)
    return out if own_weight is None else out + own_weight.unsqueeze(-1) * x[block.own]


def additive_attention(
    x: Tensor, halves: Tensor, block: Block, *, loop: bool, slope: float, degree_scaling: bool
) -> Tensor:
    """:func:`weighted_by_softmax` of the logits LeakyReLU(halves[w, h] + halves[v, H + h]) of edges w -> v (Eq. 4).

    Args:
        x: [S, H, c].
        halves: [S, 2H], every row's part of the logits as a source, then as a destination.
        block: the edges.
        loop: whether every destination attends to itself too.
        slope: of LeakyReLU.
        degree_scaling: see :func:`weighted_by_softmax`.

    Returns:
        [D, H, c]; half precision is summed, and returned, in float32.
    """
    x, halves = single(x), single(halves)
    if compiled(x, halves):
        out: Tensor = _Attention.apply(x, halves, block, loop, slope, degree_scaling)  # type: ignore[no-untyped-call]
        return out
    here, there = halves[:, : x.shape[1]], halves[block.own, x.shape[1] :]
    logits = functional.leaky_relu(here[block.source] + there[block.destination], slope)
    own = functional.leaky_relu(here[block.own] + there, slope) if loop else None
    return weighted_by_softmax(logits, own, x, block, degree_scaling)


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, halves: Tensor, block: Block, loop: bool, slope: float, degree_scaling: bool
    ) -> Tensor:
        x, halves = x.contiguous(), halves.contiguous()
        shift, up, down = (t.to(x.dtype) for t in _factors(block, loop, degree_scaling))
        heads = x.shape[1]
        out = x.new_empty(block.num_destinations, *x.shape[1:])
        weight, own = x.new_empty(heads, block.num_edges), x.new_empty(block.num_destinations, heads)
        ctx.plain = (block.indptr.numpy(), block.source.numpy(), block.first)
        ctx.options = (loop, x.numpy().dtype.type(slope))
        attention_forward(
            *ctx.plain, *arrays(x, halves, shift, up, down), *ctx.options, *arrays(out, weight, own)
        )
        ctx.save_for_backward(x, halves, up, down, weight, own)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, weight, own = ctx.saved_tensors
        found = [torch.zeros_like(t) for t in inputs[:2]]
        rest = arrays(weight, own, grad.contiguous(), *found)
        attention_backward(*ctx.plain, *arrays(*inputs), *ctx.options, *rest)
        return *found, None, None, None, None


def _factors(block: Block, loop: bool, degree_scaling: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Shift of the logits [D]; the parts of an edge's degree factor, up [S] of destinations and down [S] of sources."""
    shift = block.shift if loop else torch.zeros_like(block.degree[block.own])
    if not degree_scaling:
        one = torch.ones_like(block.degree)
        return shift, one, one
    return (shift, *(block.roots_with_loop if loop else block.roots))
