"""Message passing behind one seam: ``transform`` every source row once, ``aggregate`` over a block.

Splitting the two lets training run on sampled blocks (destinations are the first source rows) and inference run
layer by layer over slices of the whole graph, with the very same code. Axes: S sources, D destinations, E edges,
H heads, d width (H * c channels).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from gnnmr_dist.models.blocks import Block, edge_softmax, weighted_sum

Rows = tuple[Tensor, ...]  # tensors with one row per node


class Layer(nn.Module, ABC):
    """One layer h^(l) -> h^(l+1), width d on both sides."""

    @abstractmethod
    def transform(self, h: Tensor) -> Rows:
        """What a node contributes, from h [S, d]; row-wise, so any chunking gives the same."""

    @abstractmethod
    def aggregate(self, source: Rows, destination: Rows, block: Block) -> Tensor:
        """[D, d] from transformed rows of the block's sources and destinations."""

    def forward(self, h: Tensor, block: Block) -> Tensor:
        """[D, d] from h [S, d] on a block whose destinations are its first D sources."""
        source = self.transform(h)
        return self.aggregate(source, tuple(t[: block.num_destinations] for t in source), block)


def _linear(width: int, identity: bool) -> nn.Linear:
    linear = nn.Linear(width, width, bias=False)
    if identity:
        nn.init.eye_(linear.weight)
    else:
        nn.init.xavier_uniform_(linear.weight)
    return linear


def _attend(
    logits: Tensor,
    own: Tensor | None,
    source: Tensor,
    destination: Tensor,
    block: Block,
    degree_scaling: bool,
) -> Tensor:
    """Softmax-weighted sum with an optional self-loop, optionally times sqrt(deg v / deg w) per edge.

    A self-loop counts in the degrees, as it does in the softmax. Beside a self-loop, each edge of a sample stands for
    deg v / number sampled edges of the whole graph: the log of that is added to its logit, so that the loop keeps the
    share it has when all neighbours are there.
    """
    if own is not None:
        logits = logits + _rescale(block).clamp(min=1).log()[block.destination].unsqueeze(1)
    weight, own_weight = edge_softmax(logits, block, own)
    if degree_scaling:
        loop = 0 if own is None else 1
        above = (loop + block.degree_destination)[block.destination]
        below = (loop + block.degree_source)[block.source]
        weight = weight * (above / below).sqrt().unsqueeze(1)
    out = weighted_sum(weight, source, block)
    return out if own_weight is None else out + own_weight.unsqueeze(-1) * destination


class GATLayer(Layer):
    """Graph attention (Velickovic et al. 2018; Eqs. 3 to 5): a_vw = softmax_w LeakyReLU(att . [W h_v ; W h_w]).

    ``degree_scaling`` multiplies a_vw by sqrt(deg v / deg w), degrees counting the self-loop if there is one: a
    softmax only averages and so forgets degrees. Uniform attention over all neighbours times this factor is the
    symmetric normalisation: GCN's 1 / sqrt((1 + deg v)(1 + deg w)) with self-loops, LightGCN's
    1 / sqrt(deg v deg w) without.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 1,
        self_loops: bool = True,
        negative_slope: float = 0.2,
        degree_scaling: bool = False,
        identity: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.self_loops, self.degree_scaling = heads, self_loops, degree_scaling
        self.negative_slope = negative_slope
        self.linear = _linear(width, identity)
        self.att_source = nn.Parameter(torch.empty(heads, width // heads))
        self.att_destination = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.xavier_uniform_(self.att_source)
        nn.init.xavier_uniform_(self.att_destination)

    def transform(self, h: Tensor) -> Rows:
        """W h [S, H, c] and its two halves of the attention logit, [S, H] each."""
        x = self.linear(h).unflatten(1, self.att_source.shape)
        return x, (x * self.att_source).sum(dim=-1), (x * self.att_destination).sum(dim=-1)

    def aggregate(self, source: Rows, destination: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        logits = functional.leaky_relu(
            source[1][block.source] + destination[2][block.destination], self.negative_slope
        )
        own = None
        if self.self_loops:
            own = functional.leaky_relu(destination[1] + destination[2], self.negative_slope)
        return _attend(logits, own, source[0], destination[0], block, self.degree_scaling).flatten(1)


class GATv2Layer(Layer):
    """Dynamic attention (Brody et al. 2022): a_vw = softmax_w att . LeakyReLU(W_l h_w + W_r h_v)."""

    def __init__(
        self,
        width: int,
        *,
        heads: int = 1,
        self_loops: bool = True,
        negative_slope: float = 0.2,
        degree_scaling: bool = False,
        identity: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.self_loops, self.degree_scaling = heads, self_loops, degree_scaling
        self.negative_slope = negative_slope
        self.linear = _linear(width, identity)
        self.linear_destination = _linear(width, identity)
        self.att = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.xavier_uniform_(self.att)

    def transform(self, h: Tensor) -> Rows:
        """W_l h and W_r h, [S, H, c] each."""
        shape = self.att.shape
        return self.linear(h).unflatten(1, shape), self.linear_destination(h).unflatten(1, shape)

    def aggregate(self, source: Rows, destination: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        logits = self._logits(source[0][block.source] + destination[1][block.destination])
        own = self._logits(destination[0] + destination[1]) if self.self_loops else None
        return _attend(logits, own, source[0], destination[0], block, self.degree_scaling).flatten(1)

    def _logits(self, x: Tensor) -> Tensor:
        return (functional.leaky_relu(x, self.negative_slope) * self.att).sum(dim=-1)


def _rescale(block: Block) -> Tensor:
    """deg v / number sampled, float [D]: makes a sum over a uniform sample an unbiased estimate of the whole sum."""
    return block.degree_destination / block.sampled().clamp(min=1)


class GCNLayer(Layer):
    """Kipf and Welling (2017): sum over w of W h_w / sqrt((1 + deg v)(1 + deg w)), self-loop included."""

    def __init__(self, width: int, *, identity: bool = False) -> None:
        super().__init__()
        self.linear = _linear(width, identity)

    def transform(self, h: Tensor) -> Rows:
        """W h [S, d]."""
        return (self.linear(h),)

    def aggregate(self, source: Rows, destination: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        right = (1 + block.degree_source).rsqrt()[block.source]
        left = ((1 + block.degree_destination).rsqrt() * _rescale(block))[block.destination]
        out = weighted_sum((left * right).unsqueeze(1), source[0].unsqueeze(1), block).flatten(1)
        return out + destination[0] / (1 + block.degree_destination).unsqueeze(1)


class SAGELayer(Layer):
    """Hamilton et al. (2017), mean: W_1 h_v + W_2 mean over w of h_w."""

    def __init__(self, width: int, *, identity: bool = False) -> None:
        super().__init__()
        self.linear = _linear(width, identity)
        self.linear_self = _linear(width, identity)

    def transform(self, h: Tensor) -> Rows:
        """W_2 h and W_1 h, [S, d] each."""
        return self.linear(h), self.linear_self(h)

    def aggregate(self, source: Rows, destination: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        weight = (1 / block.sampled().clamp(min=1))[block.destination].unsqueeze(1)
        return weighted_sum(weight, source[0].unsqueeze(1), block).flatten(1) + destination[1]


class LightGCNLayer(Layer):
    """He et al. (2020): sum over w of h_w / sqrt(deg v deg w); no weights, no self-loop, no non-linearity."""

    def transform(self, h: Tensor) -> Rows:
        """H itself."""
        return (h,)

    def aggregate(self, source: Rows, destination: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        right = block.degree_source.clamp(min=1).rsqrt()[block.source]
        left = (block.degree_destination.clamp(min=1).rsqrt() * _rescale(block))[block.destination]
        return weighted_sum((left * right).unsqueeze(1), source[0].unsqueeze(1), block).flatten(1)
