"""MMGCN: one graph network per modality, fused by their mean and trained as one (Wei et al. 2019, ACM MM).

Theirs, per modality and layer, with N(v) the neighbours and e_v an ID embedding shared by all modalities:

    h_v   = leaky_relu( mean over w in N(v) of W_1 x_w )
    x'_v  = leaky_relu( W_2 x_v ) + e_v
    x_v <- leaky_relu( W_3 h_v + x'_v )

with x^(0) of a user a preference vector of its own, of an item its projected features, at unit length; a node's
embedding is the mean over modalities of the last layer's x; dot products, BPR and L2. In the implementation that MMRec
carries preference and ID tables are no parameters and never trained: here they are, unless ``as_published``.
Ours: sampled neighbours, their mean over what was sampled; a learned vector for missing features; ``weight_decay``
for L2; the sum (not the concatenation) in the last line.

Axes: n nodes, d width, N nodes of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gnnmr_dist.models.blocks import Block, weighted_sum
from gnnmr_dist.models.encoder import Encoder, Network, NodeBatch
from gnnmr_dist.models.id_tables import Maker, random_table
from gnnmr_dist.models.inputs import ItemRows, Kind
from gnnmr_dist.models.layers import Layer, Rows


class MMGCNLayer(Layer):
    """One layer on rows [x_v, e_v] [n, 2d]: x moves on, the ID embedding e rides along."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.neighbours, self.own, self.gate = (nn.Linear(width, width) for _ in range(3))
        for linear in (self.neighbours, self.own, self.gate):
            nn.init.xavier_uniform_(linear.weight)

    def transform(self, h: Tensor) -> Rows:
        """W_1 x and leaky_relu(W_2 x) + e beside e, [S, d] and [S, 2d]."""
        x, ids = h.split(self.width, dim=1)
        own = functional.leaky_relu(self.own(x)) + ids
        return self.neighbours(x), torch.cat([own, ids], dim=1)

    def aggregate(self, rows: Rows, block: Block) -> Tensor:
        """See :class:`Layer`."""
        weight = (1 / block.sampled().clamp(min=1))[block.destination].unsqueeze(1)
        mean = weighted_sum(weight, rows[0].unsqueeze(1), block).flatten(1)
        own, ids = rows[1][block.own].split(self.width, dim=1)
        x = functional.leaky_relu(self.gate(functional.leaky_relu(mean)) + own)
        return torch.cat([x, ids], dim=1)


class MMGCNEncoder(Encoder):
    """One modality's network; the ID table [N, d] is :class:`MMGCN`'s."""

    def __init__(
        self,
        num_users: int,
        num_items: int,
        some: tuple[Kind, int],
        layers: Sequence[MMGCNLayer],
        *,
        ids: nn.Parameter,
        make: Maker = torch.zeros,
    ) -> None:
        width = ids.shape[1]
        super().__init__(
            num_users, num_items, [some], layers, embedding_dim=width, combination="last", make=make
        )
        self.num_users, self.width = num_users, width
        self._ids = [ids]  # in a list: a parameter of MMGCN, not of every branch

    def preferences(self, users: Tensor) -> Tensor:
        """X^(0) [n, d] of users."""
        return functional.normalize(self.user_input(users), dim=1)

    def contents(self, rows: Sequence[ItemRows], n: int) -> Tensor:
        """X^(0) [n, d] of items."""
        return functional.normalize(super().featured_items(rows, n), dim=1)

    def users(self, users: Tensor) -> Tensor:
        """X^(0) and ID embedding, [n, 2d]."""
        return torch.cat([self.preferences(users), self._ids[0][users]], dim=1)

    def items(self, items: Tensor, rows: Sequence[ItemRows]) -> Tensor:
        """X^(0) and ID embedding, [n, 2d]."""
        return torch.cat([self.contents(rows, items.numel()), self._ids[0][items + self.num_users]], dim=1)

    def featured_items(self, rows: Sequence[ItemRows], n: int) -> Tensor:
        """X^(0) and no ID embedding, [n, 2d]."""
        x = self.contents(rows, n)
        return torch.cat([x, x.new_zeros(x.shape)], dim=1)

    def combine(self, layers: Sequence[Tensor]) -> Tensor:
        """X [n, d] of the last layer."""
        return layers[-1][:, : self.width]


class MMGCN(Network):
    """The branches and the ID table [N, d] that they share."""

    def __init__(
        self,
        num_users: int,
        num_items: int,
        inputs: Sequence[tuple[Kind, int]],
        *,
        width: int,
        num_layers: int,
        make: Maker = torch.zeros,
    ) -> None:
        super().__init__()
        self.num_users = num_users
        self.id_table = random_table(num_users + num_items, width, make)
        self.encoders = nn.ModuleList(
            MMGCNEncoder(
                num_users,
                num_items,
                some,
                [MMGCNLayer(width) for _ in range(num_layers)],
                ids=self.id_table,
                make=make,
            )
            for some in inputs
        )

    @property
    def branches(self) -> Sequence[tuple[MMGCNEncoder, Sequence[int]]]:
        """One modality each."""
        return [(e, (m,)) for m, e in enumerate(self.encoders) if isinstance(e, MMGCNEncoder)]

    def fuse(self, parts: Sequence[Tensor]) -> Tensor:
        """The mean over modalities."""
        return torch.stack(list(parts)).mean(dim=0)

    def forward(self, batch: NodeBatch, rows: Sequence[ItemRows]) -> Tensor:
        """See :class:`Network`; the ID embeddings are looked up once for all branches."""
        nodes = torch.cat([batch.users, batch.items + self.num_users])
        places = torch.cat([batch.user_places, batch.item_places])
        ids = functional.embedding(nodes, self.id_table, sparse=True)
        parts = []
        for encoder, reads in self.branches:
            contents = encoder.contents([rows[m] for m in reads], batch.items.numel())
            x = torch.cat([encoder.preferences(batch.users), contents])
            h = torch.cat([x, ids], dim=1)
            parts.append(encoder.propagate(h.new_empty(h.shape).index_copy(0, places, h), batch))
        return self.fuse(parts)

    def _tables(self) -> dict[str, nn.Parameter]:
        preferences = {
            f"encoders.{m}.user_input.table": e.user_input.table for m, (e, _) in enumerate(self.branches)
        }
        return {"id_table": self.id_table, **preferences}

    def freeze_tables(self) -> None:
        """Leave preferences and ID embeddings as they were made, as the published code does by mistake."""
        for table in self._tables().values():
            table.requires_grad_(False)

    def id_tables(self) -> dict[str, nn.Parameter]:
        """Preferences and ID embeddings, unless frozen."""
        return {name: table for name, table in self._tables().items() if table.requires_grad}

    def id_rows(self, batch: NodeBatch) -> dict[str, Tensor]:
        """Of those."""
        nodes = torch.cat([batch.users, batch.items + self.num_users])
        return {name: nodes if name == "id_table" else batch.users for name in self.id_tables()}
