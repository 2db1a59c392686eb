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

from gnnmr_dist.models.attention import additive_attention, weighted_by_softmax
from gnnmr_dist.models.blocks import Block, single, weighted_sum
from gnnmr_dist.models.rows import with_products

Rows = tuple[Tensor, ...]  # tensors with one row per node


class Layer(nn.Module, ABC):
    """One layer h^(l) -> h^(l+1), width d on both sides."""

    @abstractmethod
    def transform(self, h: Tensor) -> Rows:
        """What a node contributes, from h [S, d]; row-wise, so any chunking gives the same."""

    @abstractmethod
    def aggregate(self, rows: Rows, block: Block) -> Tensor:
        """[D, d] from the transformed rows of the block's sources, its destinations among them."""

    def forward(self, h: Tensor, block: Block) -> Tensor:
        """[D, d] from h [S, d]."""
        return self.aggregate(self.transform(h), block)


def _linear(width: int, identity: bool) -> nn.Linear:
    linear = nn.Linear(width, width, bias=False)
    if identity:
        nn.init.eye_(linear.weight)
    else:
        nn.init.xavier_uniform_(linear.weight)
    return linear


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
        """What is summed [S, H, c], and the two halves of the attention logits [S, 2H].

        With one head that is h itself: W (sum of a h) = sum of a (W h), so W need only be applied to the D sums.
        """
        if self.heads == 1:
            both = torch.cat([self.att_source, self.att_destination])
            x, halves = with_products(single(h), both @ self.linear.weight)
        else:
            both = torch.cat([torch.block_diag(*self.att_source), torch.block_diag(*self.att_destination)])
            x, halves = with_products(single(self.linear(h)), both)
        return x.unflatten(1, self.att_source.shape), halves

    def aggregate(self, rows: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        x, halves = rows
        loop, slope = self.self_loops, self.negative_slope
        out = additive_attention(
            x, halves, block, loop=loop, slope=slope, degree_scaling=self.degree_scaling
        ).flatten(1)
        return self.linear(out) if self.heads == 1 else out


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

    def aggregate(self, rows: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        x, there = rows[0], rows[1][block.own]
        logits = self._logits(x[block.source] + there[block.destination])
        own = self._logits(x[block.own] + there) if self.self_loops else None
        return weighted_by_softmax(logits, own, x, block, self.degree_scaling).flatten(1)

    def _logits(self, x: Tensor) -> Tensor:
        return (functional.leaky_relu(x, self.negative_slope) * self.att).sum(dim=-1)


class GCNLayer(Layer):
    """Kipf and Welling (2017): sum over w of W h_w / sqrt((1 + deg v)(1 + deg w)), self-loop included."""

    def __init__(self, width: int, *, identity: bool = False) -> None:
        super().__init__()
        self.linear = _linear(width, identity)

    def transform(self, h: Tensor) -> Rows:
        """W h [S, d]."""
        return (self.linear(h),)

    def aggregate(self, rows: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        norm = (1 + block.degree).rsqrt()
        weight = norm[block.source] * (norm[block.own] * block.rescale())[block.destination]
        out = weighted_sum(weight.unsqueeze(1), rows[0].unsqueeze(1), block).flatten(1)
        return out + rows[0][block.own] / (1 + block.degree[block.own]).unsqueeze(1)


class SAGELayer(Layer):
    """Hamilton et al. (2017), mean: W_1 h_v + W_2 mean over w of h_w."""

    def __init__(self, width: int, *, identity: bool = False) -> None:
        super().__init__()
        self.linear = _linear(width, identity)
        self.linear_self = _linear(width, identity)

    def transform(self, h: Tensor) -> Rows:
        """W_2 h and W_1 h, [S, d] each."""
        return self.linear(h), self.linear_self(h)

    def aggregate(self, rows: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        weight = (1 / block.sampled().clamp(min=1))[block.destination].unsqueeze(1)
        return weighted_sum(weight, rows[0].unsqueeze(1), block).flatten(1) + rows[1][block.own]


class LightGCNLayer(Layer):
    """He et al. (2020): sum over w of h_w / sqrt(deg v deg w); no weights, no self-loop, no non-linearity."""

    def transform(self, h: Tensor) -> Rows:
        """H itself."""
        return (h,)

    def aggregate(self, rows: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        norm = block.degree.clamp(min=1).rsqrt()
        weight = norm[block.source] * (norm[block.own] * block.rescale())[block.destination]
        return weighted_sum(weight.unsqueeze(1), rows[0].unsqueeze(1), block).flatten(1)
