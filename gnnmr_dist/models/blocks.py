"""One hop of message passing as tensors, and the products that run over it.

Axes: E edges of the block, S source rows, D destination rows, H heads, c channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gnnmr_dist.models import kernels


@dataclass(frozen=True)
class Block:
    """CSR from destinations to sources: the sources of destination v are ``source[indptr[v]:indptr[v + 1]]``.

    Destination v itself is source row ``first`` + v. ``degree`` [S] are degrees in the whole graph (float), of which
    the block may hold only a sample.
    """

    indptr: Tensor
    source: Tensor
    degree: Tensor
    first: int = 0

    @property
    def num_destinations(self) -> int:
        """D."""
        return self.indptr.numel() - 1

    @property
    def num_edges(self) -> int:
        """E."""
        return self.source.numel()

    @property
    def own(self) -> slice:
        """The source rows that are the destinations."""
        return slice(self.first, self.first + self.num_destinations)

    @cached_property
    def destination(self) -> Tensor:
        """Each edge's destination, int64 [E]."""
        rows = torch.arange(self.num_destinations, device=self.indptr.device)
        return torch.repeat_interleave(rows, self.indptr.diff(), output_size=self.num_edges)

    def sampled(self) -> Tensor:
        """Number of edges of every destination in this block, float [D]."""
        return self.indptr.diff().to(self.degree.dtype)

    def rescale(self) -> Tensor:
        """deg v / number sampled, float [D]: with it a sum over a uniform sample estimates the whole without bias."""
        return self.degree[self.own] / self.sampled().clamp(min=1)

    @cached_property
    def shift(self) -> Tensor:
        """Log of :meth:`rescale`, at least 0, float [D]: each sampled edge's weight beside a self-loop."""
        return self.rescale().clamp(min=1).log()

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """Roots of the sources' degrees [S], and one over them."""
        root = self.degree.sqrt()
        return root, root.reciprocal()

    @cached_property
    def roots_with_loop(self) -> tuple[Tensor, Tensor]:
        """The same where a self-loop counts in the degree."""
        root = (self.degree + 1).sqrt()
        return root, root.reciprocal()

    def to(self, device: torch.device) -> Block:
        """The same block on a device."""
        indptr, source, degree = (
            t.to(device, non_blocking=True) for t in (self.indptr, self.source, self.degree)
        )
        return Block(indptr, source, degree, self.first)


def make_block(indptr: Tensor, source: Tensor, degree: Tensor, first: int = 0) -> Block:
    """A block from its CSR arrays; raises ValueError when they do not fit together."""
    num_destinations = indptr.numel() - 1
    if first + num_destinations > degree.numel():
        raise ValueError(f"destinations {first}..{first + num_destinations - 1} but {degree.numel()} degrees")
    if int(indptr[-1]) != source.numel():
        raise ValueError(f"indptr ends at {int(indptr[-1])} but there are {source.numel()} sources")
    return Block(indptr, source, degree, first)


class _WeightedSum(Function):
    """out[v] = sum over edges e into v of weight[e] * x[source[e]], per head.

    On the CPU two compiled loops over the CSR rows (models/kernels.py); elsewhere CSR products in both directions.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, block: Block) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.block = block
        if compiled(weight, x):
            return kernels.weighted_sum(block.indptr, block.source, weight, x)
        with torch.autocast(x.device.type, enabled=False):
            return _csr_product(block.indptr, block.source, weight, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, x = ctx.saved_tensors
        block = ctx.block
        if compiled(weight, x, grad):
            return *kernels.weighted_sum_backward(block.indptr, block.source, weight, x, grad), None
        grad_weight = (grad[block.destination] * x[block.source]).sum(dim=-1)
        order = torch.argsort(block.source, stable=True)
        indptr = torch.zeros(x.shape[0] + 1, dtype=torch.int64, device=x.device)
        torch.cumsum(torch.bincount(block.source, minlength=x.shape[0]), dim=0, out=indptr[1:])
        return grad_weight, _csr_product(indptr, block.destination[order], weight[order], grad), None


def compiled(*tensors: Tensor) -> bool:
    """Whether the compiled CPU loops take these tensors: float32 or float64 on the CPU, all alike."""
    first = tensors[0]
    return first.dtype in (torch.float32, torch.float64) and all(
        t.device.type == "cpu" and t.dtype == first.dtype for t in tensors
    )


def arrays(*tensors: Tensor) -> list[Any]:
    """The tensors' own memory, for compiled loops to read and to fill."""
    return [t.detach().numpy() if t.requires_grad else t.numpy() for t in tensors]


def single(t: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def _csr_product(indptr: Tensor, column: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """[D, H, c] from CSR with weights [E, H] and rows x [S, H, c]; D = indptr's rows."""
    shape = (indptr.numel() - 1, x.shape[0])
    outputs = []
    for h in range(x.shape[1]):
        matrix = torch.sparse_csr_tensor(
            indptr, column, weight[:, h].contiguous(), shape, check_invariants=False
        )
        outputs.append(matrix @ x[:, h])
    return torch.stack(outputs, dim=1)


def weighted_sum(weight: Tensor, x: Tensor, block: Block) -> Tensor:
    """Sum of source rows into destinations.

    Args:
        weight: [E, H].
        x: [S, H, c].
        block: E edges over S sources and D destinations.

    Returns:
        [D, H, c]; zero rows where a destination has no edge. Half precision is summed, and returned, in float32.
    """
    x = single(x)
    weight = weight.to(x.dtype)
    out: Tensor = _WeightedSum.apply(weight, x, block)  # type: ignore[no-untyped-call]
    return out


def edge_softmax(
    logits: Tensor, block: Block, self_logits: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Softmax of edge logits over the edges into each destination (Eq. 4), an own self-loop included if given.

    Args:
        logits: [E, H].
        block: the edges.
        self_logits: [D, H], logits of a self-loop at every destination, or None.

    Returns:
        weights [E, H] and self-loop weights [D, H] (None without them). A destination without edges and without
        self-loop has nothing to sum.
    """
    shape = (block.num_destinations, logits.shape[1])
    index = block.destination
    with torch.no_grad():
        peak = logits.new_full(shape, float("-inf")) if self_logits is None else self_logits.detach().clone()
        peak.scatter_reduce_(
            0, index.unsqueeze(1).expand_as(logits), logits.detach(), "amax", include_self=True
        )
    weight = torch.exp(logits - peak[index])
    total = weight.new_zeros(shape).index_add(0, index, weight)
    if self_logits is None:
        return weight / total[index], None
    own = torch.exp(self_logits - peak)
    total = total + own
    return weight / total[index], own / total
