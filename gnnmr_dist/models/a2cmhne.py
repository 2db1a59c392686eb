"""A2CMHNE: attention over structure and content embeddings of every node, adapted to ranking.

Hu et al. 2019, "A2CMHNE: Attention-Aware Collaborative Multimodal Heterogeneous Network Embedding" (ACM TOMM). Its
paper's: nodes have a structure-based and content-based embeddings (texts, images), learned together and integrated by
attention; it is judged on node classification and link prediction. Our adaptation: the structure is the user-item
graph, encoded like every other method's; there is one content branch per modality; users, who have no content, get that
of their neighbours; one BPR ranking loss on the fused vectors trains everything. Assumed (we know the abstract, not the
formulas): the form of the attention, and that the branches collaborate through the common loss alone.

Axes: n nodes, d width of an embedding, B = 1 + M branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnnmr_dist.models.encoder import Encoder, Network, NodeBatch
from gnnmr_dist.models.inputs import ItemRows


class ContentEncoder(Encoder):
    """One modality on the graph: an item starts from its features alone, a user from nothing (zeros, no table)."""

    def __init__(self, *arguments: Any, embedding_dim: int, **options: Any) -> None:
        super().__init__(*arguments, embedding_dim=embedding_dim, **{**options, "item_id": "none"})
        del self.user_input
        self.width = embedding_dim

    def users(self, users: Tensor) -> Tensor:
        """Zeros [n, d]."""
        return next(self.parameters()).new_zeros(users.numel(), self.width)

    def placed_inputs(self, batch: NodeBatch, rows: Sequence[ItemRows]) -> Tensor:
        """See :class:`Encoder`."""
        items = self.items(batch.items, rows)
        everyone = items.new_zeros(batch.users.numel() + batch.items.numel(), self.width)
        return everyone.index_copy(0, batch.item_places, items)

    def id_tables(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def id_rows(self, batch: NodeBatch) -> dict[str, Tensor]:
        """None."""
        return {}


class BranchAttention(nn.Module):
    """Of every node, the mean of its branches' embeddings by softmax_b( q_b . tanh(W h_b + c) ).

    W and c are shared. Every branch has a query of its own, zero at first: all weigh alike until data tell them apart.
    """

    def __init__(self, branches: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.query = nn.Parameter(torch.zeros(branches, width))

    def weights(self, parts: Tensor) -> Tensor:
        """[n, B], rows sum to 1, from parts [n, B, d]."""
        return torch.softmax((torch.tanh(self.project(parts)) * self.query).sum(dim=-1), dim=1)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """[n, d] from the branches' [n, d]."""
        stacked = torch.stack(list(parts), dim=1)
        return (self.weights(stacked).unsqueeze(-1) * stacked).sum(dim=1)


class A2CMHNE(Network):
    """A structure branch (IDs), a content branch for each modality, and attention over them."""

    def __init__(self, structure: Encoder, contents: Sequence[ContentEncoder], width: int) -> None:
        super().__init__()
        self.structure = structure
        self.contents = nn.ModuleList(contents)
        self.attention = BranchAttention(1 + len(contents), width)

    @property
    def branches(self) -> Sequence[tuple[Encoder, Sequence[int]]]:
        """Structure, which reads nothing, then each modality's content."""
        contents = [(c, (m,)) for m, c in enumerate(self.contents) if isinstance(c, Encoder)]
        return [(self.structure, ()), *contents]

    def fuse(self, parts: Sequence[Tensor]) -> Tensor:
        """Attention over the branches."""
        out: Tensor = self.attention(parts)
        return out

    def forward(self, batch: NodeBatch, rows: Sequence[ItemRows]) -> Tensor:
        """See :class:`Network`."""
        return self.fuse([branch(batch, [rows[m] for m in reads]) for branch, reads in self.branches])

    def id_tables(self) -> dict[str, nn.Parameter]:
        """The structure's."""
        return {f"structure.{name}": table for name, table in self.structure.id_tables().items()}

    def id_rows(self, batch: NodeBatch) -> dict[str, Tensor]:
        """The structure's."""
        return {f"structure.{name}": rows for name, rows in self.structure.id_rows(batch).items()}
