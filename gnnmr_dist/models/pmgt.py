"""PMGT: item vectors from a graph transformer pre-trained on an item-item graph, then matrix factorisation.

Liu et al. 2021, "Pre-training Graph Transformer with Multimodal Side Information for Recommendation". Its
paper's: an item is encoded together with a sampled context of neighbours; modalities are projected and joined
by an attentive gate; position and role (target or context) embeddings; transformer layers whose attention is (1
- a) softmax(QK' / sqrt c) + a softmax(1 - cos(Q, K)); pre-training by neighbour prediction and reconstruction
of masked nodes' features; item vectors then start a recommender. Ours: that recommender is matrix factorisation
under BPR (the paper's is neural collaborative filtering), for its score is a dot product as every method's; an
item-side map W (identity at first) follows the vectors, which are fine-tuned or frozen. Assumed: the gate's
form, post-norm layers, no dropout, target nodes are never masked, in what space features are reconstructed
(:class:`Reconstruction`).

Axes: n items, M modalities, d width, T = 1 + S tokens (the target, then its context), H heads, c = d / H.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gnnmr_dist.models.encoder import Encoder, NodeBatch
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.models.inputs import ItemInput, ItemRows, Kind

CONTEXT = 8
"""S, neighbours beside the target (assumed)."""
LAYERS = 2
"""Transformer layers (assumed)."""
DIVERSITY = 0.2
"""a, the share of the attention that prefers what differs."""


def diversity_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, share: float) -> Tensor:
    """((1 - share) softmax(q k' / sqrt c) + share softmax(1 - cos(q, k))) v.

    Args:
        q, k, v: [n, H, T, c].
        valid: bool [n, T], which tokens may be attended to (at least one of each item).
        share: a.
    """
    hidden = ~valid[:, None, None, :]
    alike = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    cosine = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-1, -2)
    near = torch.softmax(alike.masked_fill(hidden, float("-inf")), dim=-1)
    far = torch.softmax((1 - cosine).masked_fill(hidden, float("-inf")), dim=-1)
    return ((1 - share) * near + share * far) @ v


class TransformerLayer(nn.Module):
    """Diversity attention, then a feed-forward part, each added to its input and normalised."""

    def __init__(self, width: int, heads: int, share: float) -> None:
        super().__init__()
        self.heads, self.share = heads, share
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """[n, T, d] from x [n, T, d]; ``valid`` bool [n, T]."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        mixed = diversity_attention(q, k, v, valid, self.share).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.out(mixed))
        out: Tensor = self.norms[1](x + self.narrow(functional.gelu(self.widen(x))))
        return out


class ModalityGate(nn.Module):
    """One vector from M: their mean by softmax( tanh( V [x_1 ; ... ; x_M] + b ) )."""

    def __init__(self, modalities: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(modalities * width, modalities)

    def forward(self, parts: Tensor) -> Tensor:
        """[n, d] from parts [n, M, d]."""
        weights = torch.softmax(torch.tanh(self.gate(parts.flatten(1))), dim=-1)
        return (weights.unsqueeze(-1) * parts).sum(dim=1)


class GraphTransformer(nn.Module):
    """Tokens' vectors from the features of a target and its context."""

    def __init__(self, inputs: Sequence[tuple[Kind, int]], width: int, heads: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(ItemInput(kind, size, width) for kind, size in inputs)
        self.gate = ModalityGate(len(inputs), width)
        self.position = nn.Parameter(torch.randn(1 + CONTEXT, width) * 0.02)
        self.role = nn.Parameter(torch.randn(2, width) * 0.02)
        self.mask = nn.Parameter(torch.randn(width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, DIVERSITY) for _ in range(LAYERS))

    def features(self, rows: Sequence[ItemRows]) -> Tensor:
        """[n, d], the gated modalities of n items."""
        parts = [module(some) for module, some in zip(self.inputs, rows, strict=True)]
        out: Tensor = self.gate(torch.stack(parts, dim=1))
        return out

    def forward(self, features: Tensor, valid: Tensor, masked: Tensor | None = None) -> Tensor:
        """Vectors [n, T, d] of all tokens.

        Args:
            features: [n, T, d], anything where not valid.
            valid: bool [n, T]; the target always is.
            masked: bool [n, T], tokens whose features are hidden (None = none).
        """
        if masked is not None:
            features = torch.where(masked.unsqueeze(-1), self.mask, features)
        tokens = valid.shape[1]
        role = torch.cat([self.role[:1], self.role[1:].expand(tokens - 1, -1)])
        x: Tensor = self.norm(features + self.position[:tokens] + role)
        for layer in self.layers:
            x = layer(x, valid)
        return x


class Reconstruction(nn.Module):
    """How badly hidden features are guessed, the mean over modalities.

    Dense: mean squared error of the rows at mean square 1 (free of their scale; guessing 0 costs 1).
    Categories and bags: cross-entropy of a softmax over the codes against the item's code, or against
    all of its codes in equal shares.
    """

    def __init__(self, inputs: Sequence[tuple[Kind, int]], width: int) -> None:
        super().__init__()
        self.kinds = [kind for kind, _ in inputs]
        self.heads = nn.ModuleList(nn.Linear(width, size) for _, size in inputs)

    def forward(self, h: Tensor, rows: Sequence[ItemRows]) -> Tensor:
        """The loss (a scalar) of the vectors h [n, d] of the hidden items with these rows."""
        losses = [
            _guess_loss(kind, head(h), some)
            for kind, head, some in zip(self.kinds, self.heads, rows, strict=True)
        ]
        return torch.stack(losses).mean()


def _guess_loss(kind: Kind, guess: Tensor, rows: ItemRows) -> Tensor:
    present = rows.present
    if not bool(present.any()):
        return guess.sum() * 0
    if kind == "dense":
        truth = rows.values.to(guess.dtype)[present]
        size = truth.square().mean().sqrt().clamp(min=1e-6)
        return (guess[present] - truth / size).square().mean()
    logs = torch.log_softmax(guess, dim=-1)
    if kind == "category":
        return functional.nll_loss(logs[present], rows.values[present])
    assert rows.offsets is not None
    length = rows.offsets.diff()
    item = torch.repeat_interleave(torch.arange(length.numel(), device=length.device), length)
    return -(logs[item, rows.values] / length[item]).sum() / present.sum()


def neighbour_loss(targets: Tensor, neighbours: Tensor, negatives: int = 3) -> Tensor:
    """Mean of -ln sigmoid(t.p) - mean of ln sigmoid(-t.p') with products over sqrt d; p' = other rows' neighbours.

    Args:
        targets: [n, d].
        neighbours: [n, d], one of each target.
        negatives: how many of the following rows' neighbours, at most n - 1.
    """
    scale = targets.shape[1] ** -0.5
    loss = -functional.logsigmoid((targets * neighbours).sum(dim=1) * scale).mean()
    count = min(negatives, targets.shape[0] - 1)
    for shift in range(1, count + 1):
        other = neighbours.roll(-shift, dims=0)
        loss = loss - functional.logsigmoid(-(targets * other).sum(dim=1) * scale).mean() / count
    return loss


class PMGT(Encoder):
    """Matrix factorisation whose item table starts from the transformer's vectors; the transformer stays as it is.

    An item unknown to training has the transformer's vector of its features without a context.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        inputs: Sequence[tuple[Kind, int]],
        *,
        width: int,
        heads: int,
        make: Maker = torch.zeros,
    ) -> None:
        super().__init__(num_users, num_items, (), (), embedding_dim=width, make=make)
        self.kinds = tuple(inputs)
        self.transformer = GraphTransformer(inputs, width, heads).requires_grad_(False)
        self.map = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.map.weight)

    @property
    def branches(self) -> Sequence[tuple[Encoder, Sequence[int]]]:
        """Itself, reading everything."""
        return [(self, range(len(self.kinds)))]

    @property
    def vectors(self) -> nn.Parameter:
        """The item table [I, d]."""
        assert self.item_table is not None
        return self.item_table

    def freeze(self) -> None:
        """Keep the item vectors as pre-training leaves them; their map is still trained."""
        self.vectors.requires_grad_(False)

    def items(self, items: Tensor, rows: Sequence[ItemRows]) -> Tensor:
        """See :class:`Encoder`; the rows are not needed."""
        del rows
        out: Tensor = self.map(functional.embedding(items, self.vectors, sparse=True))
        return out

    def featured_items(self, rows: Sequence[ItemRows], n: int) -> Tensor:
        """See :class:`Encoder`."""
        features = self.transformer.features(rows).unsqueeze(1)
        valid = torch.ones(n, 1, dtype=torch.bool, device=features.device)
        out: Tensor = self.map(self.scaled(self.transformer(features, valid)[:, 0]))
        return out

    @staticmethod
    def scaled(h: Tensor) -> Tensor:
        """A transformer's vectors at the size of freshly made tables, length about 1."""
        out: Tensor = h * h.shape[1] ** -0.5
        return out

    def id_tables(self) -> dict[str, nn.Parameter]:
        """The users', and the items' unless frozen."""
        tables = super().id_tables()
        return {name: table for name, table in tables.items() if table.requires_grad}

    def id_rows(self, batch: NodeBatch) -> dict[str, Tensor]:
        """Of those."""
        known = self.id_tables()
        return {name: rows for name, rows in super().id_rows(batch).items() if name in known}
